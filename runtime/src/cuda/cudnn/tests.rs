//! What can be tested without a GPU: cuDNN, where it is installed, answers for a device that is
//! only described to it. Without the library these tests say so and pass.

use super::*;
use vdnn_ir::op::ConvAttrs;
use vdnn_ir::{DType, Layout};

/// An H200, as cuDNN 9.19 writes one down.
const H200: &str = r#"{
  "deviceName": "NVIDIA H200", "deviceVer": 900, "driverVer": 13000, "cudaDeviceId": 0,
  "multiProcessorCount": 132, "warpSize": 32, "regsPerBlock": 65536, "maxRegistersPerSM": 65536,
  "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64],
  "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448,
  "reservedSharedMemoryPerBlock": 1024, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024,
  "maxThreadsPerSM": 2048, "pciDeviceId": 0, "isTccDriver": 0, "supportCoopLaunch": 1,
  "smClockRateKHz": 1980000, "memClockRateKHz": 3201000, "l2CacheSize": 62914560,
  "totalGlobalMem": 150000000000
}"#;

/// cuDNN for a described H200; `None` where there is no cuDNN.
#[expect(clippy::print_stderr, reason = "says why a test does nothing")]
fn h200(options: DnnOptions) -> Option<Dnn> {
    match Target::described(H200) {
        Ok(target) => Some(Dnn::on(target, options)),
        Err(error @ CudaError::MissingLibrary { .. }) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("cuDNN refuses the description of a device: {error}"),
    }
}

/// The three directions of a square convolution.
struct Case {
    op: Op,
    inputs: Vec<TensorType>,
    outputs: Vec<TensorType>,
}

fn cases(
    n: u64,
    c: u64,
    k: u64,
    hw: u64,
    kernel: u64,
    (layout, precision): (Layout, Precision),
) -> [Case; 4] {
    let element = element(precision);
    let attrs = ConvAttrs::square(kernel, 1, kernel / 2, 1);
    let ty = |dims: [u64; 4]| TensorType::new(element, dims).in_layout(layout);
    let (x, w, y) = (ty([n, c, hw, hw]), ty([k, c, kernel, kernel]), ty([n, k, hw, hw]));
    let bias = TensorType::new(element, [k]);
    let dgrad = Op::ConvDgrad { conv: attrs.clone(), x_dims: x.dims.clone() };
    let wgrad = Op::ConvWgrad { conv: attrs.clone(), w_dims: w.dims.clone() };
    let conv = Op::Conv(attrs);
    let case = |op: &Op, inputs: &[&TensorType], output: &TensorType| Case {
        op: op.clone(),
        inputs: inputs.iter().map(|&t| t.clone()).collect(),
        outputs: vec![output.clone()],
    };
    [
        case(&conv, &[&x, &w], &y),
        case(&conv, &[&x, &w, &bias], &y),
        case(&dgrad, &[&y, &w], &x),
        case(&wgrad, &[&x, &y], &w),
    ]
}

impl Case {
    fn candidates(&self, precision: Precision, dnn: &Dnn) -> Result<Vec<Candidate>, CudaError> {
        let inputs: Vec<_> = self.inputs.iter().collect();
        let outputs: Vec<_> = self.outputs.iter().collect();
        candidates(&self.op, &inputs, &outputs, precision, true, dnn)
    }
}

#[test]
fn the_mark_of_a_separate_bias_survives_the_text_form() {
    let config = EngineConfig::new(7, &[(2, 3), (27, -1)]).expect("two knobs");
    let apart = apart_of(config).expect("room");
    assert!(is_apart(apart) && !is_apart(config));
    assert_eq!(apart.to_string(), "eng7_k2=3_k27=-1_k255=1");
    assert_eq!(apart.to_string().parse(), Ok(apart));
    let full: Vec<(u8, i32)> = (0..16).map(|k| (k, 0)).collect();
    assert_eq!(apart_of(EngineConfig::new(0, &full).expect("16 knobs")), None);
}

const STRICT: (Layout, Precision) = (Layout::RowMajor, Precision::F32);
const TF32: (Layout, Precision) = (Layout::ChannelsLast, Precision::Tf32);
const BF16: (Layout, Precision) = (Layout::ChannelsLast, Precision::Bf16);

/// Elements of feature maps and filters.
fn element(precision: Precision) -> DType {
    if precision == Precision::Bf16 { DType::BF16 } else { DType::F32 }
}

#[test]
fn each_direction_has_engines_of_the_arithmetic_asked_for() {
    let Some(dnn) = h200(DnnOptions::default()) else { return };
    for (layout, precision) in [STRICT, TF32, BF16] {
        for case in cases(32, 64, 128, 56, 3, (layout, precision)) {
            let found = case.candidates(precision, &dnn).unwrap();
            let text = || format!("{precision} {}: {found:?}", case.op);
            assert_eq!(found.first().map(|c| c.source), Some(Source::ModeA), "{}", text());
            let tensor_core = found.iter().filter(|c| c.notes.contains(Notes::TENSOR_CORE)).count();
            assert_eq!(tensor_core > 0, precision != Precision::F32, "{}", text());
            assert!(!found.iter().any(|c| c.notes.contains(Notes::DOWN_CONVERT_INPUTS)), "{}", text());
            assert!(found.iter().any(|c| c.workspace == Bytes::ZERO), "{}", text());
            let mut configs: Vec<_> = found.iter().map(|c| c.config).collect();
            configs.sort_unstable();
            configs.dedup();
            assert_eq!(configs.len(), found.len(), "one twice: {}", text());
            let biased = case.inputs.len() == 3;
            let apart = found.iter().filter(|c| is_apart(c.config)).count();
            assert_eq!(apart > 0, biased, "{}", text());
            assert!(apart < found.len(), "none fuses the bias: {}", text());
        }
    }
}

#[test]
fn a_configuration_written_down_builds_again_with_the_workspace_it_promised() {
    let Some(dnn) = h200(DnnOptions::default()) else { return };
    for (layout, precision) in [STRICT, TF32, BF16] {
        for case in cases(8, 32, 64, 28, 3, (layout, precision)) {
            let inputs: Vec<_> = case.inputs.iter().collect();
            let problem = Problem::of(&case.op, &inputs, &[&case.outputs[0]]).unwrap();
            for c in case.candidates(precision, &dnn).unwrap().into_iter().take(3) {
                let again: EngineConfig = c.config.to_string().parse().unwrap();
                let plan = dnn.build(&problem, again).unwrap();
                assert_eq!((plan.workspace, plan.notes), (c.workspace, c.notes), "{}", c.config);
            }
        }
    }
    dnn.forget_unused();
    assert!(dnn.built.borrow().is_empty());
}

#[test]
fn deterministic_means_no_engine_that_says_otherwise() {
    let wgrad = &cases(32, 64, 128, 56, 3, STRICT)[3];
    let nondeterministic = |deterministic| {
        let dnn = h200(DnnOptions { deterministic, ..DnnOptions::default() })?;
        let found = wgrad.candidates(Precision::F32, &dnn).unwrap();
        assert!(!found.is_empty());
        Some(found.iter().filter(|c| c.notes.contains(Notes::NONDETERMINISTIC)).count())
    };
    let Some(free) = nondeterministic(false) else { return };
    assert!(free > 0, "this convolution shows nothing");
    assert_eq!(nondeterministic(true), Some(0));
}

/// Prepares a case at addresses that are never used.
fn try_prepare(
    case: &Case,
    dnn: &Dnn,
    algo: Option<ConvAlgo>,
    workspace: u64,
    precision: Precision,
) -> Result<Box<dyn Prepared>, CudaError> {
    use crate::cuda::launch::{Operand, SCRATCH};
    let at = |i: usize| 0x1000_0000 * (i as u64 + 1);
    let inputs: Vec<_> = case.inputs.iter().enumerate().map(|(i, ty)| Operand { ty, ptr: at(i) }).collect();
    let outputs: Vec<_> =
        case.outputs.iter().enumerate().map(|(i, ty)| Operand { ty, ptr: at(i + 8) }).collect();
    let range = |i: usize, bytes: u64| DeviceRange { ptr: at(i), bytes: Bytes(bytes) };
    let spec = LaunchSpec {
        op: &case.op,
        inputs: &inputs,
        outputs: &outputs,
        workspace: (workspace > 0).then(|| range(16, workspace)),
        scratch: range(17, SCRATCH.0),
        algo,
        exact: false,
        accumulate: false,
        precision,
        name: "c",
    };
    let mut apart = || Err(CudaError::BadPlan { why: "no kernels here".to_owned() });
    prepare(&spec, dnn, &mut apart)
}

#[test]
fn a_plan_gets_the_engine_it_names_or_nothing() {
    let Some(dnn) = h200(DnnOptions::default()) else { return };
    let case = &cases(32, 64, 128, 56, 3, TF32)[0];
    let found = case.candidates(Precision::Tf32, &dnn).unwrap();
    let greedy = found.iter().find(|c| c.workspace.0 > 1 << 20).expect("one with workspace");
    let algo = Some(ConvAlgo::Engine(greedy.config));
    let run = |algo, workspace, precision| try_prepare(case, &dnn, algo, workspace, precision);
    assert!(run(algo, greedy.workspace.0, Precision::Tf32).is_ok());
    let refused = |r: Result<_, CudaError>, word: &str| match r {
        Err(CudaError::BadPlan { why }) => assert!(why.contains(word), "{why}"),
        other => panic!("{other:?}, but {word:?} was expected"),
    };
    refused(run(algo, greedy.workspace.0 - 1, Precision::Tf32), "needs a workspace");
    let fast = found.iter().find(|c| c.notes.contains(Notes::TENSOR_CORE)).expect("one");
    let fast_algo = Some(ConvAlgo::Engine(fast.config));
    refused(run(fast_algo, fast.workspace.0, Precision::F32), "TF32");
    let none = EngineConfig::new(9999, &[]).map(ConvAlgo::Engine);
    refused(run(none, 0, Precision::Tf32), "eng9999");
    let odd = EngineConfig::new(fast.config.engine(), &[(2, 12345)]).map(ConvAlgo::Engine);
    refused(run(odd, 1 << 30, Precision::Tf32), "k2=12345");
}

#[test]
fn a_classic_name_or_none_gets_what_fits() {
    let Some(dnn) = h200(DnnOptions::default()) else { return };
    for (layout, precision) in [STRICT, TF32, BF16] {
        for case in &cases(8, 32, 64, 28, 3, (layout, precision)) {
            for algo in [None, Some(ConvAlgo::ImplicitGemm), Some(ConvAlgo::WinogradNonfused)] {
                let launch = try_prepare(case, &dnn, algo, 0, precision);
                assert!(launch.is_ok(), "{precision} {}: {launch:?}", case.op);
            }
        }
    }
}

/// A convolution with nothing ordinary: extents of x without batch and channels, kernel,
/// strides, padding in front and behind, dilations, groups.
fn odd(
    [n, c, k]: [u64; 3],
    groups: u64,
    extents: &[u64],
    [kernel, strides, before, after, dilations]: [&[u64]; 5],
    (layout, precision): (Layout, Precision),
) -> Vec<Case> {
    let conv = ConvAttrs {
        kernel: kernel.into(),
        strides: strides.into(),
        before: before.into(),
        after: after.into(),
        dilations: dilations.into(),
        groups,
    };
    let reach = |i: usize| dilations[i] * (kernel[i] - 1) + 1;
    let out = |i: usize| (extents[i] + before[i] + after[i] - reach(i)) / strides[i] + 1;
    let ty = |head: [u64; 2], tail: Vec<u64>| {
        TensorType::new(element(precision), head.into_iter().chain(tail)).in_layout(layout)
    };
    let x = ty([n, c], extents.to_vec());
    let w = ty([k, c / groups], kernel.to_vec());
    let y = ty([n, k], (0..extents.len()).map(out).collect());
    let dgrad = Op::ConvDgrad { conv: conv.clone(), x_dims: x.dims.clone() };
    let wgrad = Op::ConvWgrad { conv: conv.clone(), w_dims: w.dims.clone() };
    let bias = TensorType::new(element(precision), [k]);
    vec![
        Case { op: Op::Conv(conv), inputs: vec![x.clone(), w.clone(), bias], outputs: vec![y.clone()] },
        Case { op: dgrad, inputs: vec![y.clone(), w.clone()], outputs: vec![x.clone()] },
        Case { op: wgrad, inputs: vec![x, y], outputs: vec![w] },
    ]
}

#[test]
fn odd_convolutions_have_engines_too() {
    let Some(dnn) = h200(DnnOptions { deterministic: true, ..DnnOptions::default() }) else { return };
    for (layout, precision) in [STRICT, TF32, BF16] {
        let two = [[7, 7], [2, 2], [3, 3], [3, 3], [1, 1]];
        let mut all = odd([4, 3, 64], 1, &[224, 224], two.each_ref().map(|a| &a[..]), (layout, precision));
        // Depthwise, grouped, dilated, padded on one side, a line.
        let square = |s, b, a, d| [[3, 3], [s, s], [b, b], [a, a], [d, d]];
        for (ckg, s) in [
            (([4, 32, 32], 32), square(1, 1, 1, 1)),
            (([4, 64, 128], 4), square(2, 1, 1, 1)),
            (([4, 16, 32], 1), square(1, 2, 2, 2)),
            (([4, 16, 32], 1), square(2, 0, 1, 1)),
        ] {
            all.extend(odd(ckg.0, ckg.1, &[28, 28], s.each_ref().map(|a| &a[..]), (layout, precision)));
        }
        if layout == Layout::RowMajor {
            all.extend(odd([4, 16, 32], 1, &[100], [&[5], &[2], &[2], &[1], &[1]], (layout, precision)));
            let cube = [[3; 3], [1; 3], [1; 3], [1; 3], [1; 3]];
            all.extend(odd([2, 8, 16], 1, &[8, 8, 8], cube.each_ref().map(|a| &a[..]), (layout, precision)));
        }
        let missing: Vec<String> = all
            .iter()
            .filter_map(|case| {
                let error = try_prepare(case, &dnn, None, 0, precision).err()?;
                Some(format!("{precision} {}: {error}", case.op))
            })
            .collect();
        assert!(missing.is_empty(), "{}", missing.join("\n"));
    }
}

#[test]
fn epilogues_are_fused_at_every_precision() {
    let Some(dnn) = h200(DnnOptions { deterministic: true, ..DnnOptions::default() }) else { return };
    for (layout, precision) in [STRICT, TF32, BF16] {
        for (kernel, relu, residual) in [(3, true, false), (1, true, true), (1, false, true)] {
            let [_, biased, ..] = cases(32, 64, 256, 56, kernel, (layout, precision));
            let Op::Conv(conv) = biased.op else { panic!("a convolution with bias comes second") };
            let mut case = Case { op: Op::ConvEpilogue { conv, relu }, ..biased };
            case.inputs.extend(residual.then(|| case.outputs[0].clone()));
            let found = case.candidates(precision, &dnn).unwrap();
            let fused: Vec<_> = found.iter().filter(|c| !is_apart(c.config)).collect();
            let fast = |c: &Candidate| precision == Precision::F32 || c.notes.contains(Notes::TENSOR_CORE);
            assert!(fused.iter().any(|c| fast(c)), "{precision} {}: {fused:?}", case.op);
            let algo = fused.first().map(|c| ConvAlgo::Engine(c.config));
            let prepared = try_prepare(&case, &dnn, algo, fused[0].workspace.0, precision);
            assert!(prepared.is_ok(), "{precision} {}: {prepared:?}", case.op);
        }
    }
}

#[test]
fn weight_gradients_can_be_added_to_what_is_there() {
    let Some(dnn) = h200(DnnOptions::default()) else { return };
    for setting @ (_, precision) in [STRICT, TF32, BF16] {
        let [fprop, _, _, wgrad] = cases(32, 64, 128, 56, 3, setting);
        let problem = |case: &Case| {
            let inputs: Vec<_> = case.inputs.iter().collect();
            Problem::of(&case.op, &inputs, &[&case.outputs[0]]).unwrap()
        };
        assert!(problem(&fprop).accumulating().is_err());
        let adding = problem(&wgrad).accumulating().unwrap();
        let found = wgrad.candidates(precision, &dnn).unwrap();
        let builds =
            |c: &&Candidate| dnn.build(&adding, c.config).is_ok_and(|plan| plan.workspace <= c.workspace);
        let adds: Vec<_> = found.iter().filter(builds).map(|c| c.config.to_string()).collect();
        assert!(!adds.is_empty(), "{precision}: none of {found:?}");
        assert_ne!(dnn.graph(&adding).unwrap().desc.raw(), dnn.graph(&problem(&wgrad)).unwrap().desc.raw());
    }
}
