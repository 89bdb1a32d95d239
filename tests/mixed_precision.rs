//! bf16 plans: what the caller sees and what the optimizer keeps stays f32, every policy computes
//! the same bytes, and training follows that in f32.

use prost::Message;
use std::collections::BTreeMap;
use vdnn_cost::Precision;
use vdnn_frontends::onnx::{self, ImportOptions};
use vdnn_frontends::zoo::{self, ZooOptions};
use vdnn_ir::{DType, Graph, Mode, Op, Tensor, TensorType};
use vdnn_passes::{AlgoMode, Fuse, Policy};
use vdnn_plan::{BufId, Command, Plan};
use vdnn_runtime::cpu::CpuOptions;
use vdnn_tests::arbitrary::{random_cnn, random_inputs, random_params};
use vdnn_tests::harness;
use vdnnc::commands::synthetic;

fn compile(
    graph: &Graph,
    batch: u64,
    mode: Mode,
    (precision, policy, fuse): (Precision, Policy, Fuse),
) -> Plan {
    let mut options = harness::options(mode, policy, AlgoMode::Dynamic);
    options.precision = precision;
    options.fuse = fuse;
    harness::compile(graph, batch, &options).plan
}

/// Inputs and outputs by name, with their types.
fn interface(plan: &Plan) -> BTreeMap<String, TensorType> {
    let inputs = plan.inputs.iter().map(|b| (b.name.clone(), b.buf));
    let all = inputs.chain(plan.outputs.iter().map(|o| (o.name.clone(), o.buf)));
    all.map(|(name, buf)| (name, plan.buffers[buf].ty.clone())).collect()
}

/// Everything a step leaves.
fn step(
    plan: Plan,
    given: &BTreeMap<String, Tensor>,
    params: &BTreeMap<String, Tensor>,
) -> BTreeMap<String, Tensor> {
    let inputs = harness::step_inputs(&plan, given.clone());
    let mut executor = harness::executor(plan, params, CpuOptions { poison: true, ..CpuOptions::default() });
    let mut all = executor.step(&inputs).expect("the plan runs");
    for p in executor.params().to_vec() {
        all.insert(format!("param {}", p.name), executor.read_param(&p.name).expect("it exists"));
    }
    all
}

#[test]
fn policies_agree_to_the_byte_and_the_interface_stays_f32() {
    let mut narrow = 0;
    for seed in 0..30 {
        let graph = random_cnn(seed);
        let batch = graph.ty(graph.inputs()[0]).dims[0];
        let (params, inputs) = (random_params(&graph, seed), random_inputs(&graph, seed));
        for mode in [Mode::Train, Mode::Infer] {
            let plain = compile(&graph, batch, mode, (Precision::F32, Policy::None, Fuse::Off));
            for fuse in [Fuse::Off, Fuse::Epilogue] {
                let ways = [Policy::None, Policy::All, Policy::Conv];
                let plans = ways.map(|policy| compile(&graph, batch, mode, (Precision::Bf16, policy, fuse)));
                for plan in &plans {
                    assert_eq!(interface(plan), interface(&plain), "graph {seed}, {mode}");
                    let reread = vdnn_plan::parse::parse_plan(&plan.to_string());
                    assert_eq!(reread.expect("the text of a plan parses"), *plan);
                    for command in &plan.commands {
                        let Command::Launch { op, inputs, .. } = command else { continue };
                        let is_narrow = |b: &BufId| plan.buffers[*b].ty.dtype == DType::BF16;
                        if op.is_conv() || matches!(op, Op::Gemm { .. } | Op::MatMul { .. }) {
                            assert!(inputs[..2].iter().all(is_narrow), "graph {seed}: {op}");
                            narrow += 1;
                        }
                    }
                }
                let [first, others @ ..] = plans.map(|plan| step(plan, &inputs, &params));
                for other in others {
                    assert_eq!(first, other, "graph {seed}, {mode}, {fuse:?}");
                }
                let finite = |t: &Tensor| t.ty().dtype != DType::F32 || t.f32().iter().all(|x| x.is_finite());
                assert!(first.values().all(finite), "graph {seed}, {mode}, {fuse:?}");
            }
        }
    }
    assert!(narrow > 500, "only {narrow} products of bf16");
}

/// Losses of steps on the same data.
fn losses(name: &str, batch: u64, steps: i64, precision: Precision) -> Vec<f32> {
    let model = zoo::build(name, &ZooOptions { batch: None, classes: Some(10), seed: 1 }).expect("a zoo net");
    let options = ImportOptions { batch: Some(batch), dims: BTreeMap::new(), training: true };
    let imported = onnx::import_bytes(model.encode_to_vec().into(), None, &options).expect("it imports");
    let params = harness::params(&imported);
    let plan = compile(&imported.graph, batch, Mode::Train, (precision, Policy::None, Fuse::Epilogue));
    let wanted: Vec<(String, TensorType)> =
        plan.inputs.iter().map(|i| (i.name.clone(), plan.buffers[i.buf].ty.clone())).collect();
    let mut inputs = synthetic::inputs(&wanted).expect("small inputs");
    let mut executor = harness::executor(plan, &params, CpuOptions::default());
    (0..steps)
        .map(|step| {
            for (name, _) in &wanted {
                match name.as_str() {
                    "vdnnc.hyper" => inputs.insert(name.clone(), harness::hyper(0.002, 0.9, 1e-4)),
                    "vdnnc.step" => inputs.insert(name.clone(), Tensor::from_i64([], &[step])),
                    _ => continue,
                };
            }
            executor.step(&inputs).expect("the plan runs")["loss"].f32()[0]
        })
        .collect()
}

#[test]
fn lenet_learns_in_bf16_as_in_f32() {
    let [wide, narrow] = [Precision::F32, Precision::Bf16].map(|p| losses("lenet", 16, 30, p));
    for (step, (w, n)) in wide.iter().zip(&narrow).enumerate() {
        assert!((w - n).abs() <= 0.02 * wide[0], "step {step}: {narrow:?} in bf16, {wide:?} in f32");
    }
    assert!(wide != narrow && narrow[29] < 0.5 * narrow[0], "{narrow:?} in bf16, {wide:?} in f32");
}
