//! Measuring kernels for the cost model: each way to run an op, on operands filled with
//! random numbers, timed on the device.

mod engines;
mod link;
mod memory;

pub use link::LinkTimes;

use super::arena::DeviceArena;
use super::backend::CudaOptions;
use super::blas::{self, Blas};
use super::cudnn::{self, Candidate, Dnn, DnnOptions, Source};
use super::device::{self, Device, DeviceFacts};
use super::divided;
use super::error::CudaError;
use super::kernels::{self, Modules};
use super::launch::{DeviceRange, LaunchSpec, Operand, Prepared, SCRATCH};
use super::libs;
use super::meter::Meter;
use cudarc::driver::{result, sys};
use memory::{Memory, fill_bytes, fill_words, packed_at_random, read, size, write_words};
use vdnn_cost::measured::NOT_CAPTURED;
use vdnn_cost::{MeasuredOn, MeasuredRow};
use vdnn_ir::graph::ConvAlgo;
use vdnn_ir::random::splitmix64;
use vdnn_ir::{Bytes, ConvSchedule, DType, Nanos, Op, Precision, TensorType, bf16};
use vdnn_plan::plan::ALIGNMENT;

/// Random numbers made on the host; longer tensors repeat them.
const NOISE: usize = 4 << 20;
/// What TF32's 10 bits of mantissa cannot tell from 1, and f32's 23 can.
const FINE: f32 = 1.0 + 1.0 / 4096.0;
/// Terms of a sum of such values that f32 still adds without rounding.
const EXACT_TERMS: u64 = 2048;

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeasureLimits {
    /// Convolution engines from the head of the heuristics' list.
    pub ranked: usize,
    /// Engines from the list of fallbacks.
    pub fallback: usize,
    /// Engines that are in no list.
    pub others: usize,
    /// Timings of one kernel at most.
    pub repeats: usize,
    /// Largest workspace an engine may ask for.
    pub workspace: Bytes,
}

impl Default for MeasureLimits {
    fn default() -> Self {
        Self { ranked: 8, fallback: 4, others: 8, repeats: 20, workspace: Bytes(8 << 30) }
    }
}

impl MeasureLimits {
    /// The candidates to measure, in their order: of each kind as many as the limits say, the
    /// engines in no list only if no other candidate is of the same engine. Where an epilogue
    /// is fused by some engine, running it apart is a second best that gets a quarter of the
    /// ranked ones.
    fn choose(&self, candidates: &[Candidate]) -> Vec<Candidate> {
        let fits = || candidates.iter().filter(|c| c.workspace <= self.workspace);
        let apart = |c: &Candidate| cudnn::is_apart(c.config);
        let fused = fits().any(|c| !apart(c));
        let mut chosen: Vec<Candidate> = Vec::new();
        let mut counts = [[0usize; 3]; 2];
        for c in fits() {
            let few = fused && apart(c);
            let (kind, limit) = match c.source {
                Source::ModeA | Source::ModeB => (0, if few { self.ranked.div_ceil(4) } else { self.ranked }),
                Source::Fallback => (1, if few { 0 } else { self.fallback }),
                Source::Exhaustive => (2, if few { 0 } else { self.others }),
            };
            let known = |o: &Candidate| o.config.engine() == c.config.engine() && apart(o) == apart(c);
            let count = &mut counts[usize::from(apart(c))][kind];
            if *count < limit && !(c.source == Source::Exhaustive && chosen.iter().any(known)) {
                *count += 1;
                chosen.push(*c);
            }
        }
        chosen
    }
}

/// Measures kernels on one device. Holds the device's context and the libraries; memory for
/// operands grows to the largest op measured.
#[derive(Debug)]
pub struct Measurer {
    // In the order in which they may be destroyed: the context is last.
    meter: Meter,
    operands: Memory,
    workspace: Memory,
    scratch: DeviceArena,
    /// The same numbers as f32 and as bf16, and as a ReLU leaves them.
    noise: [DeviceArena; 3],
    blas: Blas,
    dnn: Dnn,
    modules: Modules,
    device: Device,
}

impl Measurer {
    /// Loads the libraries and opens the device.
    ///
    /// # Errors
    /// If a library or the device is missing, or too old.
    pub fn new(options: &CudaOptions) -> Result<Self, CudaError> {
        libs::load_all(&options.libs)?;
        let device = Device::open(&options.device)?;
        let modules = Modules::new(device.facts(), options.cache_dir.clone())?;
        let deterministic = options.deterministic;
        Ok(Self {
            meter: Meter::new()?,
            operands: Memory::new("the operands of a measured kernel")?,
            workspace: Memory::new("the workspace of a measured kernel")?,
            scratch: DeviceArena::new(SCRATCH, "the scratch of a measured kernel")?,
            noise: noise_on_device()?,
            blas: Blas::new()?,
            dnn: Dnn::with_options(DnnOptions { deterministic, ..DnnOptions::default() })?,
            modules,
            device,
        })
    }

    /// What the times are taken on, for a table made on the day `date`.
    pub fn on(&self, date: &str) -> MeasuredOn {
        measured_on(self.device.facts(), self.dnn.version(), date)
    }

    /// Measures an op on operands of these types. A convolution gives one row per engine
    /// tried, also where it does not run (no time); any other op gives one row. In strict f32,
    /// an engine or product whose results are not those of f32 products counts as one that
    /// does not run, with the flag `not-f32`.
    ///
    /// # Errors
    /// If the op has no kernel at all, or the device fails or is too small.
    pub fn measure(
        &mut self,
        op: &Op,
        inputs: &[&TensorType],
        outputs: &[&TensorType],
        precision: Precision,
        limits: &MeasureLimits,
    ) -> Result<Vec<MeasuredRow>, CudaError> {
        let kernel = Kernel { op, inputs, outputs, precision };
        let rows = match self.prepared_rows(kernel, limits) {
            // One of many ways to run it: that it is none is worth keeping.
            Err(CudaError::Unsupported { .. }) if matches!(op, Op::Pyramid(_)) => {
                Ok(vec![MeasuredRow { algo: None, workspace: Bytes::ZERO, time: None, flags: Vec::new() }])
            }
            rows => rows,
        };
        self.dnn.forget_unused();
        rows
    }

    /// Time of a convolution as a schedule runs it in a workspace: all micro-batches one after
    /// the other, as a plan launches them.
    ///
    /// # Errors
    /// If it cannot run so, or the device fails or is too small.
    #[expect(clippy::too_many_arguments, reason = "a launch: an op, its operands and how it runs")]
    pub fn measure_schedule(
        &mut self,
        op: &Op,
        inputs: &[&TensorType],
        outputs: &[&TensorType],
        precision: Precision,
        schedule: &ConvSchedule,
        workspace: Bytes,
        limits: &MeasureLimits,
    ) -> Result<Nanos, CudaError> {
        let kernel = Kernel { op, inputs, outputs, precision };
        let range = self.workspace.take(workspace)?;
        let range = range.first(workspace);
        let places = self.place(kernel)?;
        let launch = match schedule {
            ConvSchedule::Whole(algo) => self.prepare(kernel, &places, Some(*algo), false, range)?,
            ConvSchedule::Divided(_) => {
                let all = |types: &[&TensorType], ptrs: &[sys::CUdeviceptr]| -> Vec<(TensorType, _)> {
                    types.iter().zip(ptrs).map(|(&ty, &ptr)| (ty.clone(), ptr)).collect()
                };
                let (i, o) = (all(inputs, &places.inputs), all(outputs, &places.outputs));
                let i: Vec<Operand<'_>> = i.iter().map(|(ty, ptr)| Operand { ty, ptr: *ptr }).collect();
                let o: Vec<Operand<'_>> = o.iter().map(|(ty, ptr)| Operand { ty, ptr: *ptr }).collect();
                let spec = LaunchSpec {
                    op,
                    inputs: &i,
                    outputs: &o,
                    workspace: range,
                    scratch: self.scratch.range(),
                    algo: None,
                    exact: false,
                    accumulate: false,
                    precision,
                    name: "measured",
                };
                divided::prepare(&spec, schedule, &self.dnn, &mut self.modules)?
            }
        };
        let timing = self.meter.time(&*launch, limits.repeats)?;
        drop(launch);
        self.dnn.forget_unused();
        Ok(timing.median())
    }

    fn prepared_rows(
        &mut self,
        kernel: Kernel<'_>,
        limits: &MeasureLimits,
    ) -> Result<Vec<MeasuredRow>, CudaError> {
        if kernel.op.is_conv() { self.engines(kernel, limits) } else { self.only(kernel, limits) }
    }

    /// The row of an op with one kernel.
    fn only(&mut self, kernel: Kernel<'_>, limits: &MeasureLimits) -> Result<Vec<MeasuredRow>, CudaError> {
        let places = self.place(kernel)?;
        let need = vdnn_cost::rings(kernel.op, kernel.inputs);
        let workspace = self.workspace.take(need)?.first(need);
        let launch = self.prepare(kernel, &places, None, false, workspace)?;
        let timing = self.meter.time(&*launch, limits.repeats)?;
        let mut flags = Vec::new();
        let exact = self.is_as_precise(kernel, &places, &*launch, &mut flags)?;
        if !timing.captured {
            flags.push(NOT_CAPTURED.to_owned());
        }
        let time = exact.then(|| timing.median());
        Ok(vec![MeasuredRow { algo: None, workspace: need, time, flags }])
    }

    fn prepare(
        &mut self,
        kernel: Kernel<'_>,
        places: &Places,
        algo: Option<ConvAlgo>,
        accumulate: bool,
        workspace: Option<DeviceRange>,
    ) -> Result<Box<dyn Prepared>, CudaError> {
        let at =
            |types: &[&'_ TensorType], ptrs: &[sys::CUdeviceptr]| -> Vec<(TensorType, sys::CUdeviceptr)> {
                types.iter().zip(ptrs).map(|(&ty, &ptr)| (ty.clone(), ptr)).collect()
            };
        let (inputs, outputs) = (at(kernel.inputs, &places.inputs), at(kernel.outputs, &places.outputs));
        fn operand(o: &(TensorType, sys::CUdeviceptr)) -> Operand<'_> {
            Operand { ty: &o.0, ptr: o.1 }
        }
        let inputs: Vec<Operand<'_>> = inputs.iter().map(operand).collect();
        let outputs: Vec<Operand<'_>> = outputs.iter().map(operand).collect();
        let spec = LaunchSpec {
            op: kernel.op,
            inputs: &inputs,
            outputs: &outputs,
            workspace,
            scratch: self.scratch.range(),
            algo,
            exact: false,
            accumulate,
            precision: kernel.precision,
            name: "measured",
        };
        match kernel.op {
            Op::Gemm { .. } | Op::MatMul { .. } => blas::prepare(&spec, &self.blas),
            op if op.is_conv() => {
                cudnn::prepare(&spec, &self.dnn, &mut || kernels::epilogue(&spec, &mut self.modules))
            }
            _ => kernels::prepare(&spec, &mut self.modules),
        }
    }

    /// Gives every operand its place and the inputs their numbers: random ones of both signs,
    /// or zeros for integers, which are valid labels and indices.
    fn place(&mut self, kernel: Kernel<'_>) -> Result<Places, CudaError> {
        let all = || kernel.inputs.iter().chain(kernel.outputs);
        let total = all().map(|t| t.bytes().align_up(ALIGNMENT)).sum();
        let mut at = self.operands.take(total)?.ptr;
        let mut next = |t: &&TensorType| {
            let here = at;
            at += t.bytes().align_up(ALIGNMENT).0;
            here
        };
        let places = Places {
            inputs: kernel.inputs.iter().map(&mut next).collect(),
            outputs: kernel.outputs.iter().map(&mut next).collect(),
        };
        self.fill_inputs(kernel, &places)?;
        Ok(places)
    }

    /// Gives the inputs their numbers, and waits for it: fills are on the default stream, which
    /// the meter's does not wait for.
    fn fill_inputs(&self, kernel: Kernel<'_>, places: &Places) -> Result<(), CudaError> {
        for (i, (ty, &ptr)) in kernel.inputs.iter().zip(&places.inputs).enumerate() {
            let [wide, narrow, half] = &self.noise;
            match ty.dtype {
                // The time depends on zeros: as many as a ReLU leaves ([`vdnn_cost::RELU_ZEROS`]).
                DType::F32 if i == 0 && matches!(kernel.op, Op::SparseInputConv { .. }) => {
                    self.fill_random(ptr, ty, half)?;
                }
                DType::F32 => self.fill_random(ptr, ty, wide)?,
                DType::BF16 => self.fill_random(ptr, ty, narrow)?,
                // Zeros would be weights without entries.
                DType::I32 if matches!(kernel.op, Op::SparseConv { .. }) => {
                    write_words(ptr, &packed_at_random(kernel.op, ty))?;
                }
                _ => fill_bytes(ptr, ty.bytes(), 0)?,
            }
        }
        self.device.synchronize()
    }

    /// Numbers of the noise, and copies of them where there are not enough.
    #[expect(unsafe_code, reason = "copies on the device")]
    fn fill_random(
        &self,
        to: sys::CUdeviceptr,
        ty: &TensorType,
        noise: &DeviceArena,
    ) -> Result<(), CudaError> {
        let noise = noise.range();
        let total = size(ty.bytes())?;
        let mut done = total.min(size(noise.bytes)?);
        // SAFETY: the range is that of an operand, which `take` gave, and as long as it; the
        // noise is another block, and long enough.
        unsafe { result::memcpy_dtod_sync(to, noise.ptr, done) }.map_err(CudaError::of("cuMemcpyDtoD"))?;
        while done < total {
            let more = done.min(total - done);
            // SAFETY: as above; source and destination are disjoint parts of it.
            unsafe { result::memcpy_dtod_sync(to + done as u64, to, more) }
                .map_err(CudaError::of("cuMemcpyDtoD"))?;
            done += more;
        }
        Ok(())
    }

    /// True if [`Self::is_as_precise`] has something to see, for which it overwrites the inputs.
    fn is_checked(kernel: Kernel<'_>) -> bool {
        let products = kernel.op.is_conv() || matches!(kernel.op, Op::Gemm { .. } | Op::MatMul { .. });
        products && kernel.precision == Precision::F32
    }

    /// True unless strict f32 was asked for and products are of less: the first operand is
    /// 1 + 2^-12 in one run and 1 in another, the second is 1 in its first places and 0
    /// elsewhere, so that sums are exact in f32, and the results must differ by that factor;
    /// TF32 cannot tell the two apart.
    fn is_as_precise(
        &self,
        kernel: Kernel<'_>,
        places: &Places,
        launch: &dyn Prepared,
        flags: &mut Vec<String>,
    ) -> Result<bool, CudaError> {
        if !Self::is_checked(kernel) {
            return Ok(true);
        }
        let mut results = Vec::new();
        for first in [FINE, 1.0] {
            for (i, (ty, &ptr)) in kernel.inputs.iter().zip(&places.inputs).enumerate() {
                // A bias, and the third operand of a product, would hide the factor.
                fill_words(ptr, ty.bytes(), if i == 0 { first } else { 0.0 })?;
                if i == 1 {
                    fill_words(ptr, ty.bytes().min(Bytes(4 * EXACT_TERMS)), 1.0)?;
                }
            }
            // Fills are on the default stream, which the meter's does not wait for.
            self.device.synchronize()?;
            self.meter.run(launch)?;
            results.push(read(places.outputs[0], kernel.outputs[0].bytes())?);
        }
        let exact = scales_by(&results[0], &results[1], FINE);
        if !exact {
            flags.push("not-f32".to_owned());
        }
        Ok(exact)
    }
}

/// What times taken on a device with this version of cuDNN are kept under.
fn measured_on(facts: &DeviceFacts, cudnn: String, date: &str) -> MeasuredOn {
    let (major, minor) = facts.compute_capability;
    MeasuredOn {
        device: facts.name.clone(),
        capability: format!("{major}.{minor}"),
        driver: format!("{}.{}", facts.driver_version / 1000, facts.driver_version % 1000 / 10),
        cudnn,
        date: date.to_owned(),
    }
}

/// The device of these options, and what a [`Measurer`] would take its times on; makes no
/// context.
///
/// # Errors
/// If a library or the device is missing, or too old.
pub fn identify(options: &CudaOptions, date: &str) -> Result<(DeviceFacts, MeasuredOn), CudaError> {
    let loaded = libs::load_all(&options.libs)?;
    let (_, facts) = device::find(&options.device)?;
    let cudnn = loaded.into_iter().find(|l| l.library == libs::Library::Cudnn);
    let on = measured_on(&facts, cudnn.map(|l| l.version).unwrap_or_default(), date);
    Ok((facts, on))
}

/// What is measured.
#[derive(Clone, Copy)]
struct Kernel<'a> {
    op: &'a Op,
    inputs: &'a [&'a TensorType],
    outputs: &'a [&'a TensorType],
    precision: Precision,
}

/// Addresses of operands.
struct Places {
    inputs: Vec<sys::CUdeviceptr>,
    outputs: Vec<sys::CUdeviceptr>,
}

/// Uniform in [-1, 1), the same in every process, none of them zero: operands of zeros would
/// draw less power and so run at higher clocks than real ones.
fn noise() -> Vec<f32> {
    let number = |i| {
        // An odd number of 24 bits, from the middle of two neighbours.
        let bits = (splitmix64(0x9e37_79b9_7f4a_7c15, i) >> 41) as u32;
        (2 * bits + 1) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..NOISE as u64).map(number).collect()
}

/// That, on the device of the current context, as f32 and as bf16, and as a ReLU leaves it.
#[expect(unsafe_code, reason = "copies to the device")]
fn noise_on_device() -> Result<[DeviceArena; 3], CudaError> {
    let wide = noise();
    let half: Vec<f32> = wide.iter().map(|x| x.max(0.0)).collect();
    let narrow: Vec<u16> = wide.iter().map(|&x| bf16::round(x)).collect();
    let copy = |bytes: &[u8]| {
        let arena = DeviceArena::new(Bytes(bytes.len() as u64), "the numbers that measured kernels read")?;
        // SAFETY: the block was made as long as the bytes.
        unsafe { result::memcpy_htod_sync(arena.range().ptr, bytes) }
            .map_err(CudaError::of("cuMemcpyHtoD"))?;
        Ok(arena)
    };
    let [wide, half] = [&wide, &half].map(|v| copy(bytemuck::cast_slice(v)));
    Ok([wide?, copy(bytemuck::cast_slice(&narrow))?, half?])
}

/// True if `a[i]` is `factor * b[i]`, to a quarter of what the factor differs from 1, wherever
/// `b[i]` is not small beside the largest (transforms leave noise where zeros should be); and
/// there is something that is not zero.
fn scales_by(a: &[f32], b: &[f32], factor: f32) -> bool {
    let fine = f64::from(factor) - 1.0;
    let largest = b.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let close = |(a, b): (&f32, &f32)| {
        let ratio = f64::from(*a) / f64::from(*b);
        (ratio - 1.0 - fine).abs() <= fine.abs() / 4.0
    };
    largest > 0.0 && a.iter().zip(b).filter(|(_, b)| b.abs() >= largest / 4.0).all(close)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::cudnn::Notes;
    use vdnn_ir::graph::EngineConfig;

    fn candidate(engine: u16, knob: i32, apart: bool, workspace: u64, source: Source) -> Candidate {
        let mut knobs = vec![(2, knob)];
        knobs.extend(apart.then_some((255, 1)));
        let config = EngineConfig::new(engine, &knobs).expect("few knobs");
        Candidate { config, workspace: Bytes(workspace), notes: Notes::default(), source }
    }

    #[test]
    fn each_kind_of_candidate_has_its_share() {
        let all = [
            candidate(5, 0, false, 0, Source::ModeA),
            candidate(5, 1, false, 99, Source::ModeA),
            candidate(5, 2, false, 0, Source::ModeA),
            candidate(6, 0, false, 0, Source::ModeA),
            candidate(1, 0, false, 0, Source::Fallback),
            candidate(2, 0, false, 0, Source::Fallback),
            candidate(5, -1, false, 0, Source::Exhaustive),
            candidate(6, -1, false, 0, Source::Exhaustive),
            candidate(7, -1, false, 0, Source::Exhaustive),
            candidate(8, -1, false, 0, Source::Exhaustive),
            candidate(5, 0, true, 0, Source::ModeA),
            candidate(5, 1, true, 0, Source::ModeA),
            candidate(7, -1, true, 0, Source::Exhaustive),
        ];
        let limits = MeasureLimits { ranked: 2, fallback: 1, others: 2, repeats: 1, workspace: Bytes(50) };
        let kept = |all: &[Candidate]| -> Vec<usize> {
            let at = |c| all.iter().position(|a| *a == c).expect("one of them");
            limits.choose(all).into_iter().map(at).collect()
        };
        // 1 is too large, 3 past the share, 6 is of an engine that is in, 11 and 12 are apart.
        assert_eq!(kept(&all), [0, 2, 4, 7, 8, 10]);
        // With nothing fused, what is apart has the whole share.
        assert_eq!(kept(&all[10..]), [0, 1, 2]);
    }

    #[test]
    fn noise_has_no_zero_and_both_signs() {
        let noise = noise();
        assert_eq!(noise, super::noise());
        assert!(noise.iter().all(|x| *x != 0.0 && (-1.0..1.0).contains(x)));
        let mean = noise.iter().map(|&x| f64::from(x)).sum::<f64>() / noise.len() as f64;
        let square = noise.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / noise.len() as f64;
        assert!(mean.abs() < 1e-2 && (square - 1.0 / 3.0).abs() < 1e-2, "{mean} {square}");
    }

    #[test]
    fn tf32_does_not_pass_for_f32() {
        // Sums of 576 products, as f32 gives them, and as TF32 does, to which both operands are 1.
        let ones = vec![576.0f32, 384.0, 0.0, 256.0];
        let fine: Vec<f32> = ones.iter().map(|x| x * FINE * (1.0 + 1e-6)).collect();
        assert!(scales_by(&fine, &ones, FINE));
        assert!(!scales_by(&ones, &ones, FINE));
        let one_bad = [fine[0], ones[1], 0.0, fine[3]];
        assert!(!scales_by(&one_bad, &ones, FINE));
        assert!(!scales_by(&[0.0], &[0.0], FINE), "nothing seen proves nothing");
        assert!(scales_by(&[FINE, 3e-7], &[1.0, 1e-7], FINE), "noise of a transform");
        assert!(!scales_by(&[f32::NAN], &[1.0], FINE));
        // The fraction is one that TF32's ten bits lose and f32's keep.
        assert_eq!(f32::from_bits(FINE.to_bits() & !0x1fff), 1.0);
    }
}
