//! Offloaded tensors that lie packed on the host: the same bytes come out of a step, and whatever
//! reads a packed tensor as another is refused.

use std::collections::BTreeMap;
use vdnn_ir::{Graph, Mode, Tensor};
use vdnn_passes::{AlgoMode, Fuse, Packing, Policy, SyncMode};
use vdnn_plan::{Command, CopyForm, Plan, check, parse_plan, stats};
use vdnn_runtime::cpu::CpuOptions;
use vdnn_tests::arbitrary::{random_cnn_of, random_inputs, random_params};
use vdnn_tests::harness;
use vdnnc::options::CompileOptions;

const GRAPHS: u64 = 60;

fn step(graph: &Graph, plan: Plan, seed: u64) -> BTreeMap<String, Tensor> {
    let inputs = harness::step_inputs(&plan, random_inputs(graph, seed));
    let cpu = CpuOptions { poison: true, ..CpuOptions::default() };
    let mut executor = harness::executor(plan, &random_params(graph, seed), cpu);
    let mut all = executor.step(&inputs).expect("the plan runs");
    for p in executor.params().to_vec() {
        all.insert(format!("param {}", p.name), executor.read_param(&p.name).expect("it exists"));
    }
    all
}

fn packs(plan: &Plan) -> usize {
    plan.commands.iter().filter(|c| matches!(c, Command::Copy { form: CopyForm::Pack, .. })).count()
}

#[test]
fn packed_offloads_change_no_byte_of_a_step() {
    let mut packed = 0;
    for seed in 0..GRAPHS {
        let graph = random_cnn_of(seed, 4);
        for (policy, sync, fuse) in [
            (Policy::All, SyncMode::Event, Fuse::Off),
            (Policy::Conv, SyncMode::Layer, Fuse::Epilogue),
            (Policy::All, SyncMode::Layer, Fuse::Epilogue),
        ] {
            let options = harness::options(Mode::Train, policy, AlgoMode::Memory);
            let plain = CompileOptions { sync, fuse, ..options };
            let packing = CompileOptions { packing: Packing::Auto, ..plain.clone() };
            let [plain, plan] = [plain, packing].map(|o| harness::compile(&graph, 4, &o).plan);
            assert_eq!(parse_plan(&plan.to_string()).expect("it parses"), plan);
            assert_eq!(
                stats(&plain).offload_bytes,
                stats(&plan).offload_bytes,
                "tensors, not bytes on the link"
            );
            packed += packs(&plan);
            let (wanted, found) = (step(&graph, plain, seed), step(&graph, plan, seed));
            for (name, tensor) in &wanted {
                assert!(
                    found[name].bytes() == tensor.bytes(),
                    "graph {seed}, {policy}, {sync}: {name} differs"
                );
            }
        }
    }
    assert!(packed > 100, "only {packed} tensors were packed");
}

#[test]
fn only_what_a_relu_made_is_packed_and_the_step_is_shorter_for_it() {
    let mut shorter = 0;
    for seed in 0..GRAPHS {
        let graph = random_cnn_of(seed, 64);
        let mut options = harness::options(Mode::Train, Policy::All, AlgoMode::Memory);
        let plain = harness::compile(&graph, 64, &options);
        options.packing = Packing::Auto;
        let packed = harness::compile(&graph, 64, &options);
        if packs(&packed.plan) == 0 {
            assert_eq!(packed.plan.commands, plain.plan.commands);
            continue;
        }
        let [a, b] = [&plain.plan, &packed.plan].map(|p| p.predicted.step);
        shorter += usize::from(b < a);
        assert!(b <= a, "graph {seed}: {b} packed, {a} as it is");
        let s = stats(&packed.plan);
        assert!(s.offload_packed <= s.offload_bytes && s.prefetch_packed <= s.prefetch_bytes);
    }
    assert!(shorter > 10, "only {shorter} steps are shorter");
}

#[test]
fn a_packed_tensor_read_as_another_is_refused() {
    let mut tried = 0;
    for seed in 0..GRAPHS {
        let graph = random_cnn_of(seed, 4);
        let mut options = harness::options(Mode::Train, Policy::All, AlgoMode::Memory);
        options.packing = Packing::Auto;
        let plan = harness::compile(&graph, 4, &options).plan;
        for i in 0..plan.commands.len() {
            for to in [CopyForm::Plain, CopyForm::Pack, CopyForm::Unpack] {
                let mut other = plan.clone();
                match &mut other.commands[i] {
                    Command::Copy { form, .. } if *form != to => *form = to,
                    _ => continue,
                }
                tried += 1;
                assert!(check(&other).is_err(), "graph {seed}: c{i} as {to:?} passes");
            }
        }
    }
    assert!(tried > 200, "only {tried} copies");
}
