//! Offloaded tensors that lie packed on the host: the same bytes come out of a step, and whatever
//! reads a packed tensor as another is refused.

use std::collections::BTreeMap;
use vdnn_ir::parse::parse_graph;
use vdnn_ir::{Bytes, Graph, Mode, Tensor};
use vdnn_passes::{AlgoMode, Fuse, Packing, Policy, SyncMode};
use vdnn_plan::{Command, CopyForm, Plan, check, parse_plan, stats};
use vdnn_runtime::cpu::CpuOptions;
use vdnn_runtime::packed::Packed;
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

/// Two ReLUs in front of convolutions, on 4 x 3 x 64 x 64 numbers.
const NET: &str = r#"graph "net" phase=imported mode=infer {
  input %0 "x" : f32[4,3,64,64]
  param %1 "w1" trainable : f32[3,3,1,1]
  param %2 "w2" trainable : f32[3,3,1,1]
  n0: %3 : f32[4,3,64,64] = conv(kernel:[1,1],strides:[1,1],before:[0,0],after:[0,0],dilations:[1,1],groups:1) (%0, %1) forward "c1"
  n1: %4 : f32[4,3,64,64] = unary(relu) (%3) forward "r1"
  n2: %5 : f32[4,3,64,64] = conv(kernel:[1,1],strides:[1,1],before:[0,0],after:[0,0],dilations:[1,1],groups:1) (%4, %2) forward "c2"
  n3: %6 : f32[4,3,64,64] = unary(relu) (%5) forward "r2"
  n4: %7 : f32[4,3] = reduce(kind:mean,axes:[2,3],keepdims:false) (%6) forward "mean"
  output "y" = %7
}
"#;

#[test]
fn what_crossed_the_link_is_counted() {
    let graph = parse_graph(NET).expect("the network parses");
    let mut options = harness::options(Mode::Train, Policy::Conv, AlgoMode::Memory);
    options.packing = Packing::Auto;
    let plan = harness::compile(&graph, 4, &options).plan;
    assert_eq!(packs(&plan), 1, "the X of c2; that of c1 is the input");
    // As many negative numbers as others: half of what the ReLU makes is zeros.
    let ones = |sign: f32| [sign, 0.0, 0.0, 0.0, sign, 0.0, 0.0, 0.0, sign];
    let w = |sign| Tensor::from_f32([3, 3, 1, 1], &ones(sign));
    let params = BTreeMap::from([("w1".to_owned(), w(1.0)), ("w2".to_owned(), w(-1.0))]);
    let x: Vec<f32> = (0..4 * 3 * 64 * 64).map(|i| if i % 4 == 0 { 1.5 } else { -0.5 }).collect();
    let given = BTreeMap::from([("x".to_owned(), Tensor::from_f32([4, 3, 64, 64], &x))]);
    let inputs = harness::step_inputs(&plan, given);
    let mut executor = harness::executor(plan, &params, CpuOptions::default());
    executor.step(&inputs).expect("the plan runs");
    let (elements, kept) = (4 * 3 * 64 * 64, 3 * 64 * 64);
    let wanted = Packed { tensors: Bytes(4 * elements), on_link: Bytes(elements / 8 + 4 * kept) };
    assert_eq!(executor.packed().expect("idle"), wanted);
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
