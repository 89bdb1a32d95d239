//! Speed of a whole plan on the CPU backend, and where its time goes.
//!
//! `cargo bench -p vdnn-runtime --bench plan -- FILE.vplan [THREADS [STEPS]] [--serve]`
//! runs the plan with made-up parameters and inputs and prints the median time of a step,
//! then the time per kind of op and the slowest launches, with their share of the step.
//! With `--serve` it runs a step per line of its input instead and answers with the seconds
//! and the peak RSS in MiB (`tests/peers/cpu_peers.py` alternates it with other programs). As
//! in the bench of single kernels, one thread is measured in processor time.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vdnn_ir::kernel::{KernelError, Kernels, Operand, TensorMut};
use vdnn_ir::op::{Op, work};
use vdnn_ir::{DType, Tensor, TensorType};
use vdnn_runtime::cpu::kernels::CpuKernels;
use vdnn_runtime::cpu::{CpuBackend, CpuOptions};
use vdnn_runtime::error::LoadParamError;
use vdnn_runtime::executor::{Executor, ParamLoader};

/// Processor time of the calling thread (Linux).
fn processor_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

/// Measures processor time if there is one thread and the system tells, else time.
struct Watch {
    wall: Instant,
    busy: Option<Duration>,
}

impl Watch {
    fn start(threads: usize) -> Self {
        Self { busy: if threads == 1 { processor_time() } else { None }, wall: Instant::now() }
    }

    fn seconds(&self) -> f64 {
        match (self.busy, processor_time()) {
            (Some(from), Some(to)) => to.saturating_sub(from),
            _ => self.wall.elapsed(),
        }
        .as_secs_f64()
    }
}

/// What one launch was and took.
struct Sample {
    kind: String,
    shape: String,
    seconds: f64,
    flops: f64,
    bytes: f64,
}

/// The fast kernels with a watch.
struct Timed {
    kernels: CpuKernels,
    samples: Mutex<Vec<Sample>>,
    on: bool,
}

impl Kernels for Timed {
    fn launch(
        &self,
        op: &Op,
        inputs: &[Operand<'_>],
        outputs: &mut [TensorMut<'_>],
    ) -> Result<(), KernelError> {
        if !self.on {
            return self.kernels.launch(op, inputs, outputs);
        }
        let watch = Watch::start(self.kernels.threads());
        let done = self.kernels.launch(op, inputs, outputs);
        let seconds = watch.seconds();
        let ins: Vec<&TensorType> = inputs
            .iter()
            .map(|i| match i {
                Operand::Ref(t) => t.ty,
                Operand::InPlace(o) => outputs[*o].ty,
            })
            .collect();
        let outs: Vec<&TensorType> = outputs.iter().map(|t| t.ty).collect();
        let types: Vec<String> = ins.iter().take(2).map(ToString::to_string).collect();
        self.samples.lock().expect("no panic").push(Sample {
            kind: op.name() + &conv_kind(op),
            shape: format!(
                "{} -> {}",
                types.join(" "),
                outs.first().map(ToString::to_string).unwrap_or_default()
            ),
            seconds,
            flops: work::flops(op, &ins, &outs).0 as f64,
            bytes: work::traffic(op, &ins, &outs).0 as f64,
        });
        done
    }
}

fn conv_kind(op: &Op) -> String {
    match op {
        Op::Conv(conv) | Op::ConvDgrad { conv, .. } | Op::ConvWgrad { conv, .. } => {
            format!(" {}x{}/{}", conv.kernel[0], conv.kernel[1], conv.strides[0])
        }
        Op::Unary(kind) | Op::UnaryGrad(kind) => format!(" {kind:?}"),
        Op::Binary(kind) => format!(" {kind:?}"),
        _ => String::new(),
    }
}

/// Values that look random and keep activations near one.
fn made_up(ty: &TensorType) -> Tensor {
    if ty.dtype != DType::F32 {
        return Tensor::zeros(ty.clone());
    }
    let fan_in: u64 = ty.dims.iter().skip(1).product();
    let (base, scale) = if ty.rank() < 2 { (1.0, 0.2) } else { (0.0, (24.0 / fan_in as f32).sqrt()) };
    // Written where they stay: the peak memory is to be the plan's.
    let mut made = Tensor::zeros(ty.clone());
    let mut state = 1u32;
    for value in bytemuck::cast_slice_mut::<u8, f32>(made.bytes_mut()) {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *value = base + scale * ((state >> 8) as f32 / 16_777_216.0 - 0.5);
    }
    made
}

struct MadeUp;

impl ParamLoader for MadeUp {
    fn load(&self, _: &str, ty: &TensorType) -> Result<Tensor, LoadParamError> {
        Ok(made_up(ty))
    }

    /// Row by row: the peak memory is to be the plan's.
    fn pieces(&self, _: &str, ty: &TensorType, take: &mut dyn FnMut(&[u8])) -> Result<(), LoadParamError> {
        let rows = if ty.rank() < 2 { 1 } else { ty.dims[0] };
        let mut row = ty.clone();
        if rows > 1 {
            row.dims[0] = 1;
        }
        let made = made_up(&row);
        (0..rows).for_each(|_| take(made.bytes()));
        Ok(())
    }
}

/// Peak resident memory of this process in MiB (Linux), else 0.
fn peak_mib() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0.0) / 1024.0
}

fn main() {
    let all: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let serve = all.iter().any(|a| a == "--serve");
    let args: Vec<&String> = all.iter().filter(|a| !a.starts_with("--")).collect();
    let Some(file) = args.first() else {
        println!("usage: cargo bench -p vdnn-runtime --bench plan -- FILE.vplan [THREADS [STEPS]]");
        return;
    };
    let number = |i: usize| args.get(i).and_then(|a| a.parse::<usize>().ok());
    let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (threads, steps) = (number(1).unwrap_or(available), number(2).unwrap_or(5));
    let plan = vdnn_plan::codec::load(&std::fs::read(file).expect("a plan file")).expect("a plan");
    let inputs: BTreeMap<String, Tensor> = plan
        .inputs
        .iter()
        .map(|i| {
            let ty = &plan.buffers[i.buf].ty;
            let hyper = i.name == "vdnnc.hyper";
            (i.name.clone(), if hyper { Tensor::from_f32([3], &[1e-4, 0.9, 1e-4]) } else { made_up(ty) })
        })
        .collect();
    let kernels = CpuKernels::new(threads);
    let timed = Arc::new(Timed { kernels, samples: Mutex::default(), on: !serve });
    let options = CpuOptions { threads, ..CpuOptions::default() };
    let backend = CpuBackend::with_kernels(timed.clone(), options);
    let mut executor = Executor::load(plan, &MadeUp, backend).expect("a plan that loads");
    executor.step(&inputs).expect("a step");
    timed.samples.lock().expect("no panic").clear();
    let mut time = || {
        let watch = Watch::start(threads);
        executor.step(&inputs).expect("a step");
        watch.seconds()
    };
    if serve {
        println!("ready");
        for _ in std::io::stdin().lines() {
            println!("{} {:.0}", time(), peak_mib());
        }
        return;
    }
    let mut times: Vec<f64> = (0..steps.max(1)).map(|_| time()).collect();
    times.sort_by(f64::total_cmp);
    let step = times[times.len() / 2];
    println!("{threads} threads, median step {:.2} ms, peak RSS {:.0} MiB", step * 1e3, peak_mib());
    report(&timed.samples.lock().expect("no panic"), times.len(), times.iter().sum());
}

fn report(samples: &[Sample], steps: usize, total: f64) {
    let print = |title: &str, key: &dyn Fn(&Sample) -> String, limit: usize| {
        let mut groups: BTreeMap<String, (usize, f64, f64, f64)> = BTreeMap::new();
        for s in samples {
            let g = groups.entry(key(s)).or_default();
            *g = (g.0 + 1, g.1 + s.seconds, g.2 + s.flops, g.3 + s.bytes);
        }
        let mut rows: Vec<_> = groups.into_iter().collect();
        rows.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
        println!("{title}");
        for (key, (count, seconds, flops, bytes)) in rows.into_iter().take(limit) {
            println!(
                "{:>6.1} % {:>9.3} ms {:>4} x {:>7.1} GFLOP/s {:>6.1} GB/s  {key}",
                100.0 * seconds / total,
                seconds / steps as f64 * 1e3,
                count / steps,
                flops / seconds / 1e9,
                bytes / seconds / 1e9,
            );
        }
    };
    print("per kind", &|s| s.kind.clone(), 40);
    print("slowest", &|s| format!("{} {}", s.kind, s.shape), 40);
}
