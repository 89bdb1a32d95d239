//! Plans that run their batch in slices compute what the plain plan of the same model does, up
//! to the rounding of sums over the batch.

use std::collections::BTreeMap;
use std::time::Instant;
use vdnn_ir::id::EntityId;
use vdnn_ir::parse::parse_graph;
use vdnn_ir::random::splitmix64;
use vdnn_ir::{Bytes, Graph, Mode, NodeId, Op, Tensor};
use vdnn_passes::slice_batch::{Half, Halved, Regions, SliceBatch, Slicing, regions};
use vdnn_passes::{AlgoMode, Fuse, Policy};
use vdnn_plan::rows::rows_in_place;
use vdnn_plan::{Command, Plan};
use vdnn_runtime::cpu::{CpuBackend, CpuOptions};
use vdnn_runtime::executor::Executor;
use vdnn_tests::arbitrary::{random_cnn_of, random_inputs, random_params};
use vdnn_tests::harness;
use vdnn_tests::mutate::mutate;
use vdnnc::driver::{self, NoPlan};
use vdnnc::options::CompileOptions;
use vdnnc::slicing::{self, Slices, Way};
use vdnnc::timing::Timings;

const GRAPHS: u64 = 80;

/// Of the largest number of a tensor.
const TOLERANCE: f32 = 2e-5;

/// Results, and in training the parameters after the step.
fn run(graph: &Graph, batch: u64, options: &CompileOptions, seed: u64) -> Option<BTreeMap<String, Tensor>> {
    let plan = match driver::compile(graph.clone(), batch, None, options, &harness::cost(options)) {
        Ok(compiled) => compiled.plan,
        Err(NoPlan::Failed(f)) => {
            let f = f.to_string();
            assert!(
                f.contains("needs the whole batch") && f.contains("--micro-batch-regions"),
                "{}: {f}",
                graph.name
            );
            return None;
        }
        Err(NoPlan::TooLarge { .. }) => panic!("{}: there is no budget", graph.name),
    };
    Some(step(graph, plan, options.mode, seed))
}

/// What a plan of a graph computes.
fn step(graph: &Graph, plan: Plan, mode: Mode, seed: u64) -> BTreeMap<String, Tensor> {
    let inputs = harness::step_inputs(&plan, random_inputs(graph, seed));
    let cpu = CpuOptions { poison: true, ..CpuOptions::default() };
    let mut executor = harness::executor(plan, &random_params(graph, seed), cpu);
    let mut all = executor.step(&inputs).expect("the plan runs");
    if mode == Mode::Train {
        // Literals, such as the share of a slice, are parameters of the plan.
        for p in executor.params().to_vec().into_iter().filter(|p| !p.name.starts_with("const:")) {
            all.insert(format!("param {}", p.name), executor.read_param(&p.name).expect("it exists"));
        }
    }
    all
}

fn differs(a: &Tensor, b: &Tensor) -> bool {
    let scale = a.f32().iter().fold(0f32, |m, x| m.max(x.abs()));
    a.ty() != b.ty() || a.f32().iter().zip(b.f32()).any(|(a, b)| (a - b).abs() > TOLERANCE * scale)
}

#[test]
fn slices_of_every_size_give_the_results_of_the_whole_batch() {
    let (mut sliced, mut barriers) = (0, 0);
    for seed in 0..GRAPHS {
        let batch = [2, 3, 5, 7, 8][seed as usize % 5];
        let graph = random_cnn_of(seed, batch);
        for mode in [Mode::Train, Mode::Infer] {
            let mut options = harness::options(mode, Policy::None, AlgoMode::Dynamic);
            options.keep_gradients = seed.is_multiple_of(2);
            let whole = run(&graph, batch, &options, seed).expect("the whole batch always runs");
            for (slices, policy, fuse) in [
                (Slices::Count(2), Policy::None, Fuse::Off),
                (Slices::Count(3), Policy::All, Fuse::Epilogue),
                (Slices::Count(100), Policy::Conv, Fuse::Epilogue),
                (Slices::On, Policy::None, Fuse::Epilogue),
            ] {
                let options = CompileOptions { slices, policy, fuse, ..options.clone() };
                let Some(found) = run(&graph, batch, &options, seed) else {
                    barriers += 1;
                    continue;
                };
                assert_eq!(found.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
                for (name, tensor) in &found {
                    assert!(
                        !differs(&whole[name], tensor),
                        "graph {seed}, {mode}, {slices}: {name} differs: {:?} {:?}",
                        whole[name],
                        tensor
                    );
                }
                sliced += 1;
            }
        }
    }
    assert!(sliced > 300, "only {sliced} plans ran in slices");
    assert!(barriers > 20, "only {barriers} training steps were refused");
}

/// Some slices of some nodes, in halves by themselves or with what follows.
fn halves(seed: u64) -> Halved {
    let mut halved = Halved::default();
    for i in 0..400 {
        let drawn = splitmix64(seed, i);
        let half = if drawn & 1 == 0 { Half::Both } else { Half::Each };
        halved.insert(NodeId::from_index((drawn >> 8) as usize % 128), (drawn >> 32) % 4, half);
    }
    halved
}

/// The network in slices, planned.
fn planned(graph: &Graph, slicing: Slicing, options: &CompileOptions) -> Plan {
    planned_in(graph, SliceBatch::new(8, slicing), options)
}

fn planned_in(graph: &Graph, slices: SliceBatch, options: &CompileOptions) -> Plan {
    let (cost, mut timings) = (harness::cost(options), Timings::default());
    let way = Way { slices, stages: false, time: None };
    let joint = slicing::joint(graph, options, Some(way), &cost, &mut timings).expect("slices");
    driver::plan_joint(&joint, 8, None, options, &cost, Instant::now(), timings).expect("it fits").plan
}

#[test]
fn any_numbers_of_slices_of_the_nodes_give_the_results_of_the_whole_batch() {
    let mut sliced = 0;
    for seed in 0..GRAPHS {
        let graph = random_cnn_of(seed, 8);
        for mode in [Mode::Infer, Mode::Train] {
            let options = harness::options(mode, Policy::None, AlgoMode::Dynamic);
            let cost = harness::cost(&options);
            let whole = run(&graph, 8, &options, seed).expect("the whole batch always runs");
            for round in 0..4 {
                // Loops in loops, and next to each other.
                let number =
                    |i: u64| [1, 2, 4, 8, 4, 2, 3][(seed * 31 + round * 17 + i * i * 7 + i / 3) as usize % 7];
                let counts: Vec<u64> = (0..4096).map(number).collect();
                let slicing = match round {
                    3 => Slicing::Layers(counts),
                    _ => Slicing::Regions(counts),
                };
                let halved = if round > 1 { halves(seed) } else { Halved::default() };
                let slices = SliceBatch { batch: 8, slicing, halved };
                let way = Way { slices, stages: false, time: None };
                let mut timings = Timings::default();
                let Ok(joint) = slicing::joint(&graph, &options, Some(way), &cost, &mut timings) else {
                    continue;
                };
                let plan = driver::plan_joint(&joint, 8, None, &options, &cost, Instant::now(), timings);
                let plan = plan.unwrap_or_else(|e| panic!("graph {seed}, {mode}, {round}: {e:?}")).plan;
                for (name, tensor) in &step(&graph, plan, mode, seed) {
                    assert!(!differs(&whole[name], tensor), "graph {seed}, {mode}, {round}: {name} differs");
                }
                sliced += 1;
            }
        }
    }
    assert!(sliced > 300, "only {sliced} plans ran in slices");
}

/// Rows of every tensor but the last are a multiple of the alignment.
const WIDE: &str = r#"graph "wide" phase=imported mode=infer {
  input %0 "x" : f32[8,4,16,16]
  param %1 "w1" trainable : f32[8,4,3,3]
  param %2 "w2" trainable : f32[8,8,3,3]
  n0: %3 : f32[8,8,16,16] = conv(kernel:[3,3],strides:[1,1],before:[1,1],after:[1,1],dilations:[1,1],groups:1) (%0, %1) forward "conv1"
  n1: %4 : f32[8,8,16,16] = unary(relu) (%3) forward "relu1"
  n2: %5 : f32[8,8,8,8] = max_pool(kernel:[2,2],strides:[2,2],before:[0,0],after:[0,0],dilations:[1,1],ceil_mode:false) (%4) forward "pool1"
  n3: %6 : f32[8,8,8,8] = conv(kernel:[3,3],strides:[1,1],before:[1,1],after:[1,1],dilations:[1,1],groups:1) (%5, %2) forward "conv2"
  n4: %7 : f32[8,8,8,8] = binary(add) (%6, %5) forward "sum"
  n5: %8 : f32[8,8,4,4] = max_pool(kernel:[2,2],strides:[2,2],before:[0,0],after:[0,0],dilations:[1,1],ceil_mode:false) (%7) forward "pool2"
  n6: %9 : f32[8,8] = reduce(kind:mean,axes:[2,3],keepdims:false) (%8) forward "mean"
  output "y" = %9
}"#;

#[test]
fn rows_lie_in_place_and_what_lies_there_is_right() {
    let graph = parse_graph(WIDE).expect("the graph parses");
    let options = harness::options(Mode::Infer, Policy::None, AlgoMode::Dynamic);
    let whole = run(&graph, 8, &options, 1).expect("the whole batch runs");
    // The convolutions in eight slices, or four, of which two are joined for what follows.
    for (bytes, least) in [(15_000, 1), (15_000, 2), (30_000, 2), (60_000, 1)] {
        let plan = planned(&graph, Slicing::Target { bytes: Bytes(bytes), least }, &options);
        let mut moves = Vec::new();
        for c in &plan.commands {
            if let Command::Launch {
                op: op @ (Op::Slice(_) | Op::Concat { .. }),
                inputs,
                outputs,
                name,
                ..
            } = c
            {
                moves.push((name.clone(), rows_in_place(&plan, op, inputs, outputs).map(|m| m.len())));
            }
        }
        let still = moves.iter().filter(|(_, moves)| *moves == Some(0)).count();
        assert!(still > 2, "{bytes}, {least}: {moves:?}");
        assert!(moves.iter().all(|(name, moves)| *moves == Some(0) || name.contains("mean")), "{moves:?}");
        let found = step(&graph, plan, Mode::Infer, 1);
        assert!(!differs(&whole["y"], &found["y"]), "{bytes}, {least}");
    }
}

#[test]
fn a_result_follows_its_operand_into_the_bytes_of_slices_that_are_done() {
    let graph = parse_graph(WIDE).expect("the graph parses");
    let options = harness::options(Mode::Infer, Policy::None, AlgoMode::Dynamic);
    let whole = run(&graph, 8, &options, 1).expect("the whole batch runs");
    // Only the ReLU, whose operand and result are as large as anything, runs in slices; then only
    // what is in front of it, too.
    let plan_of = |numbers: &[u64]| planned(&graph, Slicing::Regions(numbers.to_vec()), &options);
    let undivided = plan_of(&[1; 16]).device.bytes;
    for numbers in [[1, 8, 1, 1, 1, 1, 1], [1, 1, 8, 1, 1, 1, 1], [2, 8, 4, 1, 1, 1, 1]] {
        let plan = plan_of(&numbers);
        assert!(plan.device.bytes <= undivided, "{numbers:?}: {} of {undivided}", plan.device.bytes);
        let found = step(&graph, plan, Mode::Infer, 1);
        assert!(!differs(&whole["y"], &found["y"]), "{numbers:?}");
    }
}

#[test]
fn regions_make_plans_that_are_smaller() {
    let graph = parse_graph(WIDE).expect("the graph parses");
    let options = harness::options(Mode::Infer, Policy::None, AlgoMode::Dynamic);
    let cost = harness::cost(&options);
    let joint = slicing::joint(&graph, &options, None, &cost, &mut Timings::default()).expect("joint");
    let found = regions(&joint, 8, &cost);
    assert!(found.len() > 2, "{found:?}");
    let smallest = found.iter().map(|r| r.peak).min().expect("some");
    assert!(smallest.0 * 2 < found[0].peak.0, "{found:?}");
    let whole = planned(&graph, Slicing::Count(1), &options);
    let results = step(&graph, whole.clone(), Mode::Infer, 1);
    let mut smallest = whole.device.bytes;
    for region in &found {
        let plan = planned_in(&graph, region.clone().slices(8), &options);
        smallest = smallest.min(plan.device.bytes);
        assert!(!differs(&results["y"], &step(&graph, plan, Mode::Infer, 1)["y"]), "{region:?}");
    }
    assert!(smallest.0 * 4 < whole.device.bytes.0 * 3, "{smallest} of {}", whole.device.bytes);
    // Halved are the slices that need more than others.
    let halved: Vec<_> = found.iter().filter(|r| !r.halved.is_empty()).collect();
    let less =
        |r: &&Regions| found.iter().any(|o| o.counts == r.counts && o.halved.is_empty() && r.peak < o.peak);
    assert!(!halved.is_empty() && halved.iter().all(less), "{halved:?}");
}

#[test]
fn damaged_rows_are_rejected_or_mean_the_same() {
    let graph = parse_graph(WIDE).expect("the graph parses");
    let params = random_params(&graph, 1);
    let inputs = random_inputs(&graph, 1);
    let (mut rejected, mut accepted) = (0, 0);
    let options = harness::options(Mode::Infer, Policy::None, AlgoMode::Dynamic);
    let slicing = |bytes: u64, least: u64| Slicing::Target { bytes: Bytes(bytes), least };
    for slicing in [Slicing::Count(4), slicing(15_000, 2), slicing(60_000, 1)] {
        let plan = planned(&graph, slicing.clone(), &options);
        let run = |plan: &Plan| {
            let backend = CpuBackend::new(CpuOptions { threads: 1, poison: true, ..CpuOptions::default() });
            let loader = vdnnc::commands::load::FromTensors(&params);
            let executor = Executor::load_unchecked_for_tests(plan.clone(), &loader, backend);
            executor.ok()?.step(&inputs).ok()
        };
        let same =
            |a: &BTreeMap<String, Tensor>, b: &BTreeMap<String, Tensor>| a["y"].bytes() == b["y"].bytes();
        let reference = run(&plan).expect("the plan runs");
        for seed in 0..1500 {
            let Some((mutant, what)) = mutate(&plan, seed) else { continue };
            if vdnn_plan::check(&mutant).is_err() {
                rejected += 1;
                continue;
            }
            accepted += 1;
            let found = run(&mutant);
            assert!(found.is_some_and(|found| same(&found, &reference)), "{slicing:?}, {seed}: {what}");
        }
    }
    assert!(rejected > 1000 && accepted > 50, "{rejected} rejected, {accepted} accepted");
}
