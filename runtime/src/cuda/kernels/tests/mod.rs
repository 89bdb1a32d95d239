//! The kernels without a GPU: what each op plans compiles without spills, and, run by an
//! emulator of the execution model, agrees with the naive kernels. Each test is skipped, and
//! says so, where a compiler is missing.

mod cases;
mod emulator;
mod gather;
mod pack;
mod pyramids;
mod zeros;

use super::compile::{compile, options};
use super::source::{Kernel, Source};
use super::step::Step;
use crate::cuda::error::CudaError;
use crate::cuda::launch::{DeviceRange, LaunchSpec, Operand, SCRATCH};
use cases::Case;
use emulator::Emulator;
use std::collections::BTreeMap;
use std::path::PathBuf;
use vdnn_interp::NaiveKernels;
use vdnn_ir::kernel::{Kernels, TensorMut};
use vdnn_ir::op::infer::{infer, takes_channels_last};
use vdnn_ir::sparse::SparseForm;
use vdnn_ir::{Bytes, DType, Layout, Op, Precision, Tensor, TensorType};

/// Multiprocessors: an H200, and so few that little is cut into parts.
const PROCESSORS: [u32; 2] = [132, 1];

/// The types an op makes of its inputs.
fn types(op: &Op, inputs: &[Tensor], outputs: usize) -> Vec<TensorType> {
    let types: Vec<&TensorType> = inputs.iter().map(Tensor::ty).collect();
    infer(op, &types, outputs).unwrap_or_else(|e| panic!("{op}: {e}")).into_vec()
}

/// What the naive kernels compute.
fn naive(op: &Op, inputs: &[Tensor], outputs: usize) -> Vec<Tensor> {
    let mut made: Vec<Tensor> = types(op, inputs, outputs).into_iter().map(Tensor::zeros).collect();
    let types: Vec<TensorType> = made.iter().map(|t| t.ty().clone()).collect();
    let mut refs: Vec<TensorMut<'_>> =
        made.iter_mut().zip(&types).map(|(t, ty)| TensorMut { ty, bytes: t.bytes_mut() }).collect();
    let operands: Vec<_> = inputs.iter().map(|t| vdnn_ir::kernel::Operand::Ref(t.view())).collect();
    NaiveKernels.launch(op, &operands, &mut refs).unwrap_or_else(|e| panic!("{op}: {e}"));
    made
}

/// The case with bf16 operands, as many as its op takes; with the tolerance of two roundings.
fn narrow(case: &Case) -> Option<Case> {
    let real = |i: usize| case.inputs[i].ty().dtype == DType::F32;
    let legal = |mask: u32| {
        let chosen = |i: usize| mask >> i & 1 == 1;
        if (0..case.inputs.len()).any(|i| chosen(i) && !real(i)) {
            return None;
        }
        let to = |i: usize| if chosen(i) { DType::BF16 } else { case.inputs[i].ty().dtype };
        let inputs = case.inputs.iter().enumerate().map(|(i, t)| t.to_dtype(to(i)));
        let inputs: Vec<Tensor> = inputs.collect::<Option<_>>()?;
        let types: Vec<&TensorType> = inputs.iter().map(Tensor::ty).collect();
        infer(&case.op, &types, case.outputs).ok()?;
        Some(Case { inputs, tolerance: case.tolerance.max(1.0 / 128.0), ..case.clone() })
    };
    // No op with more operands than that computes on bf16.
    if case.inputs.len() > 8 { None } else { (1..1u32 << case.inputs.len()).rev().find_map(legal) }
}

/// The cases in both precisions and every layout that their ops take.
fn all_cases() -> Vec<Case> {
    let mut out = Vec::new();
    let cases = cases::all();
    let narrow: Vec<Case> = cases.iter().filter_map(narrow).collect();
    for case in cases.into_iter().chain(narrow) {
        if takes_channels_last(&case.op) && case.inputs.iter().any(|t| t.ty().rank() == 4) {
            let inputs = case.inputs.iter().map(|t| t.to_layout(Layout::ChannelsLast)).collect();
            out.push(Case { inputs, ..case.clone() });
        }
        out.push(case);
    }
    out
}

/// Where rings of stages are, in a workspace as large as they need.
const WORKSPACE: u64 = 1 << 32;

/// Tensors at addresses, as a launch sees them.
struct Placed {
    inputs: Vec<(TensorType, u64)>,
    outputs: Vec<(TensorType, u64)>,
    scratch: u64,
    scratch_bytes: u64,
}

impl Placed {
    fn plan(&self, op: &Op, processors: u32) -> Vec<Step> {
        // Blocks have kernels for tensor cores only.
        let blocks = matches!(op, Op::SparseConv { form, .. } if !form.is_csr());
        let precision = if blocks { Precision::Tf32 } else { Precision::F32 };
        self.plan_at(op, processors, precision).unwrap_or_else(|e| panic!("{op}: {e}"))
    }

    fn plan_at(&self, op: &Op, processors: u32, precision: Precision) -> Result<Vec<Step>, CudaError> {
        let operands =
            |list: &[(TensorType, u64)]| list.iter().map(|(t, p)| (t.clone(), *p)).collect::<Vec<_>>();
        let (inputs, outputs) = (operands(&self.inputs), operands(&self.outputs));
        let inputs: Vec<Operand<'_>> = inputs.iter().map(|(ty, ptr)| Operand { ty, ptr: *ptr }).collect();
        let outputs: Vec<Operand<'_>> = outputs.iter().map(|(ty, ptr)| Operand { ty, ptr: *ptr }).collect();
        let types: Vec<&TensorType> = inputs.iter().map(|o| o.ty).collect();
        let rings = DeviceRange { ptr: WORKSPACE, bytes: vdnn_cost::rings(op, &types) };
        let spec = LaunchSpec {
            op,
            inputs: &inputs,
            outputs: &outputs,
            workspace: rings.first(rings.bytes),
            scratch: DeviceRange { ptr: self.scratch, bytes: Bytes(self.scratch_bytes) },
            algo: None,
            exact: false,
            accumulate: false,
            precision,
            name: "test",
        };
        super::plan(&spec, processors)
    }
}

/// Every kernel the cases need, and a few shapes large enough for other choices.
fn all_kernels(cases: &[Case]) -> BTreeMap<Source, Vec<Kernel>> {
    let mut out: BTreeMap<Source, Vec<Kernel>> = BTreeMap::new();
    let mut add = |op: &Op, inputs: Vec<TensorType>, outputs: Vec<TensorType>| {
        let place = |types: Vec<TensorType>, at: u64| types.into_iter().map(|t| (t, at)).collect();
        let (inputs, outputs) = (place(inputs, 256), place(outputs, 512));
        let placed = Placed { inputs, outputs, scratch: 0, scratch_bytes: SCRATCH.0 };
        for processors in PROCESSORS {
            for step in placed.plan(op, processors) {
                let kernels = out.entry(step.kernel.source).or_default();
                if !kernels.contains(&step.kernel) {
                    kernels.push(step.kernel);
                }
            }
        }
    };
    for case in cases {
        let inputs: Vec<TensorType> = case.inputs.iter().map(|t| t.ty().clone()).collect();
        add(&case.op, inputs, types(&case.op, &case.inputs, case.outputs));
    }
    out.values_mut().for_each(|kernels| kernels.sort());
    out
}

/// All kernels of a source in one text.
fn together(source: Source, kernels: &[Kernel]) -> Kernel {
    let line = kernels.iter().map(|k| k.line.as_str()).collect();
    Kernel { source, line, name: source.name().to_owned(), target: None }
}

/// Loads NVRTC from `VDNNC_CUDA_LIBS` or the loader's path; false if it is nowhere.
fn have_nvrtc() -> bool {
    use crate::cuda::libs::{Library, LibrarySearch, load};
    let folders: Vec<PathBuf> = std::env::var_os("VDNNC_CUDA_LIBS").map(PathBuf::from).into_iter().collect();
    load(Library::Nvrtc, &LibrarySearch::from_environment(&folders)).is_ok()
}

#[test]
#[expect(clippy::print_stderr, reason = "says why it is skipped")]
fn every_kernel_compiles_without_spills() {
    if !have_nvrtc() {
        eprintln!("skipped: needs libnvrtc (folder in VDNNC_CUDA_LIBS)");
        return;
    }
    let mut options = options("sm_90");
    options.push("--ptxas-options=-v".to_owned());
    let mut all = all_kernels(&all_cases());
    all.extend(pack::kernels());
    gather::kernels(&mut all);
    all.insert(Source::Proof, vec![Kernel::fixed(Source::Proof, "spin_for")]);
    for (source, kernels) in all {
        let (cubin, log) = compile(&together(source, &kernels), &options).unwrap_or_else(|e| panic!("{e}"));
        assert!(cubin.starts_with(b"\x7fELF"), "{source:?}");
        let mut kernel = "";
        for line in log.lines() {
            assert!(!line.contains("warning"), "{}: {line}", source.name());
            kernel = line.split('\'').nth(1).filter(|_| line.contains("entry function")).unwrap_or(kernel);
            let spills =
                line.contains("spill stores") && !line.contains("0 bytes spill stores, 0 bytes spill loads");
            assert!(!spills, "{kernel} of {}: {line}", source.name());
            if line.contains("Used ") && std::env::var_os("VDNNC_REGISTERS").is_some() {
                eprintln!("{kernel}: {line}");
            }
        }
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "says why it is skipped")]
fn kernels_agree_with_the_naive_ones_on_an_emulator() {
    let Some(compiler) = std::env::var_os("VDNNC_EMULATOR_CXX") else {
        eprintln!("skipped: needs a C++17 compiler named in VDNNC_EMULATOR_CXX; takes minutes");
        return;
    };
    // A part of an op's text chooses its cases.
    let only = std::env::var("VDNNC_EMULATOR_ONLY").unwrap_or_default();
    let cases: Vec<Case> = all_cases().into_iter().filter(|c| c.op.to_string().contains(&only)).collect();
    let mut emulator = Emulator::build(&compiler, &all_kernels(&cases));
    let failures: Vec<String> = cases.iter().filter_map(|case| check(&mut emulator, case).err()).collect();
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// One case on several numbers of multiprocessors, with threads in both orders, and with every
/// input in place that may be: all with the same bits, and close to the naive kernels' result.
fn check(emulator: &mut Emulator, case: &Case) -> Result<(), String> {
    let Case { op, inputs, outputs, tolerance } = case;
    let wanted = naive(op, inputs, *outputs);
    let legal: Vec<(usize, usize)> = op
        .inplace()
        .iter()
        .copied()
        .filter(|&(o, i)| o < wanted.len() && i < inputs.len() && wanted[o].ty() == inputs[i].ty())
        .collect();
    // Most ops do not look at the number of multiprocessors.
    let depends = matches!(
        op,
        Op::Reduce { .. }
            | Op::AvgPool { .. }
            | Op::SparseInputConv { .. }
            | Op::SparseConv { form: SparseForm::TwoFourBf16, .. }
            | Op::BatchNormTrain { .. }
            | Op::BatchNormGrad
            | Op::BatchNormTrainRelu { .. }
            | Op::BatchNormReluGrad { .. }
            | Op::BatchNormTrainReluJoined { .. }
            | Op::BatchNormReluGradJoined { .. }
    );
    for &processors in &PROCESSORS[..if depends { 2 } else { 1 }] {
        let got = emulator.run(case, &[], processors, false)?;
        for (i, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
            agree(got, wanted, *tolerance)
                .map_err(|e| format!("{op} of {}: output {i}: {e}", case.types()))?;
        }
        let mut runs = vec![(vec![], true)];
        runs.extend(legal.iter().map(|&pair| (vec![pair], false)));
        if let [first, second, ..] = legal[..]
            && first.0 != second.0
        {
            runs.push((vec![first, second], true));
        }
        for (in_place, backwards) in runs {
            let other = emulator.run(case, &in_place, processors, backwards)?;
            if got.iter().zip(&other).any(|(a, b)| a.bytes() != b.bytes()) {
                let order = if backwards { "backwards" } else { "forwards" };
                return Err(format!("{op} of {} differs {order} with {in_place:?} in place", case.types()));
            }
        }
    }
    Ok(())
}

fn agree(got: &Tensor, wanted: &Tensor, tolerance: f32) -> Result<(), String> {
    let wide = |t: &Tensor| t.to_dtype(DType::F32);
    let (Some(got), Some(wanted)) = (wide(got), wide(wanted)) else {
        return if got.bytes() == wanted.bytes() { Ok(()) } else { Err("other bytes".to_owned()) };
    };
    let finite = wanted.f32().iter().filter(|x| x.is_finite());
    let scale = finite.fold(0f32, |m, x| m.max(x.abs()));
    for (i, (&g, &w)) in got.f32().iter().zip(wanted.f32()).enumerate() {
        let close = (g - w).abs() <= tolerance * scale;
        if !close && g != w && !(g.is_nan() && w.is_nan()) {
            return Err(format!("element {i} is {g}, not {w}"));
        }
    }
    Ok(())
}

#[test]
fn pools_beyond_32_bit_indices_are_launched_by_images() {
    let pool = vdnn_ir::op::PoolAttrs {
        kernel: [2, 2].as_slice().into(),
        strides: [2, 2].as_slice().into(),
        before: [0, 0].as_slice().into(),
        after: [0, 0].as_slice().into(),
        dilations: [1, 1].as_slice().into(),
        ceil_mode: false,
    };
    let ty = |text: &str| text.parse::<TensorType>().expect("a type");
    let (dy, index, dx) = (ty("f32[6000,64,112,112]"), ty("u8[6000,64,112,112]"), ty("f32[6000,64,224,224]"));
    let x_dims = dx.dims.clone();
    let placed = Placed {
        inputs: vec![(dy, 1 << 40), (index, 2 << 40)],
        outputs: vec![(dx, 3 << 40)],
        scratch: 0,
        scratch_bytes: SCRATCH.0,
    };
    let steps = placed.plan(&Op::MaxPoolGrad { pool, x_dims }, 132);
    // 5349 images of 64 * 56 * 112 patches lie below 2^31, 5350 do not.
    let pointers: Vec<Vec<u64>> =
        steps.iter().map(|s| s.args.all().take(3).map(|words| words[0]).collect()).collect();
    let small = 5349 * 64 * 112 * 112;
    let second = vec![(1 << 40) + 4 * small, (2 << 40) + small, (3 << 40) + 16 * small];
    assert_eq!(pointers, [vec![1 << 40, 2 << 40, 3 << 40], second]);
    let blocks: Vec<u32> = steps.iter().map(|s| s.grid[0]).collect();
    assert_eq!(blocks, [5349 * 64 * 56 * 112 / 256, 651 * 64 * 56 * 112 / 256]);
}

#[test]
fn concats_beyond_32_bit_indices_take_several_launches() {
    let ty = |text: &str| text.parse::<TensorType>().expect("a type");
    let placed = Placed {
        inputs: vec![(ty("f32[256,64,224,224]"), 1 << 40); 12],
        outputs: vec![(ty("f32[256,768,224,224]"), 2 << 40)],
        scratch: 0,
        scratch_bytes: SCRATCH.0,
    };
    let steps = placed.plan(&Op::Concat { axis: 1 }, 132);
    // A piece has 205,520,896 units of 16 bytes; ten lie below 2^31.
    let units: Vec<u64> = steps.iter().map(|s| s.args.all().nth(1).expect("a count")[0]).collect();
    assert_eq!(units, [10 * 205_520_896, 2 * 205_520_896]);
}

#[test]
fn bad_labels_make_the_loss_nan() {
    // Planned only: the kernels' guard is in `target` of loss.cu, run by the emulator's cases.
    let Some(compiler) = std::env::var_os("VDNNC_EMULATOR_CXX") else { return };
    let cases = cases::bad_labels();
    let mut emulator = Emulator::build(&compiler, &all_kernels(&cases));
    for case in &cases {
        let got = emulator.run(case, &[], 132, false).expect("a launch");
        assert!(got[0].f32().iter().any(|x| x.is_nan()), "{} of {}: {got:?}", case.op, case.types());
    }
}

#[test]
fn a_batch_norm_is_applied_again_to_the_bit() {
    let Some(compiler) = std::env::var_os("VDNNC_EMULATOR_CXX") else { return };
    let norms: Vec<Case> = all_cases()
        .into_iter()
        .filter(|c| matches!(c.op, Op::BatchNormTrainRelu { .. }) && c.inputs.len() == 5)
        .collect();
    assert!(norms.len() > 10);
    let apply = |case: &Case, results: &[Tensor]| {
        let Op::BatchNormTrainRelu { eps, .. } = case.op else { unreachable!("filtered") };
        let [x, scale, bias, ..] = case.inputs.as_slice() else { unreachable!("filtered") };
        let inputs = [scale, bias, &results[3], &results[4], x].into_iter().cloned().collect();
        Case { op: Op::BatchNormApplyRelu { eps }, inputs, outputs: 1, ..case.clone() }
    };
    let zeros = |c: &Case| types(&c.op, &c.inputs, 5).into_iter().map(Tensor::zeros).collect::<Vec<_>>();
    let again: Vec<Case> = norms.iter().map(|c| apply(c, &zeros(c))).collect();
    let all: Vec<Case> = norms.iter().chain(&again).cloned().collect();
    let mut emulator = Emulator::build(&compiler, &all_kernels(&all));
    for case in &norms {
        let made = emulator.run(case, &[], 132, false).expect("a launch");
        let again = emulator.run(&apply(case, &made), &[], 132, true).expect("a launch");
        assert!(made[0].bytes() == again[0].bytes(), "{} of {}", case.op, case.types());
    }
}
