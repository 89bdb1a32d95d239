//! Plans with pyramids: the bytes of plans without any, chosen by measurements and predictions as
//! documented, with smaller arenas.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use vdnn_cost::{CostModel, Measured, MeasuredOn, MeasuredRow, Precision};
use vdnn_frontends::onnx::{self, ImportOptions, Imported};
use vdnn_frontends::zoo::{self, ZooOptions};
use vdnn_ir::op::{PyramidAttrs, PyramidStep, PyramidUse};
use vdnn_ir::{Bytes, Graph, Mode, Nanos, Op, Tensor, TensorType};
use vdnn_passes::fuse_pyramids::{chains, price};
use vdnn_passes::{AlgoMode, Fuse, Policy};
use vdnn_plan::{Command, Plan};
use vdnn_runtime::cpu::CpuOptions;
use vdnn_tests::arbitrary::{random_cnn, random_inputs, random_params};
use vdnn_tests::harness;
use vdnnc::commands::target::Target;
use vdnnc::driver::{self, Compiled, NoPlan};
use vdnnc::measuring::{Kernel, KernelTimer, TimerError};
use vdnnc::options::CompileOptions;
use vdnnc::slicing::{self, Slices};

const GRAPHS: u64 = 60;

/// Configurations, which mean nothing to the CPU.
const BETTER: &str = "loops recompute 2x2";
const WORSE: &str = "loops recompute 1x1";

fn options(precision: Precision, fuse: Fuse) -> CompileOptions {
    CompileOptions { precision, fuse, ..harness::options(Mode::Infer, Policy::None, AlgoMode::Dynamic) }
}

/// The joint graph without pyramids.
fn layers(graph: &Graph, options: &CompileOptions, cost: &CostModel) -> Graph {
    slicing::layers(graph, options, cost).expect("a joint graph")
}

fn row(time: u64) -> MeasuredRow {
    MeasuredRow { algo: None, workspace: Bytes::ZERO, time: Some(Nanos(time)), flags: Vec::new() }
}

/// Every pyramid that there could be, with a time that `time` makes of its layers' own; the layers
/// are said to be measured, too, at what they are predicted to take.
fn table(joint: &Graph, cost: &CostModel, time: &dyn Fn(Nanos) -> u64) -> Measured {
    let mut table = Measured::default();
    for found in chains(joint, cost) {
        for layer in &found.layers {
            for &id in &layer.nodes {
                let node = joint.node(id);
                let types = |list: &[vdnn_ir::ValueId]| list.iter().map(|&v| joint.ty(v)).collect::<Vec<_>>();
                let (inputs, outputs) = (types(&node.inputs), types(&node.outputs));
                let alone = price(joint, id, cost).0;
                let algo = node.op.is_conv().then_some(vdnn_ir::graph::ConvAlgo::ImplicitGemm);
                table.insert(
                    &node.op,
                    &inputs,
                    &outputs,
                    cost.precision(),
                    MeasuredRow { algo, ..row(alone.0) },
                );
            }
        }
        for end in 2..=found.layers.len() {
            for start in 0..end - 1 {
                let (pyramid, operands) = found.pyramid(start..end);
                let inputs: Vec<TensorType> = operands.into_iter().map(|o| o.ty(joint)).collect();
                let inputs: Vec<&TensorType> = inputs.iter().collect();
                let output = joint.ty(found.layers[end - 1].result);
                let alone = found.alone(start..end).0;
                // The second best is not the one.
                for (config, more) in [(WORSE, 1), (BETTER, 0)] {
                    let op = Op::Pyramid(pyramid.with_config(config));
                    table.insert(&op, &inputs, &[output], cost.precision(), row(time(alone) + more));
                }
            }
        }
    }
    table
}

fn compile(graph: &Graph, options: &CompileOptions, cost: &CostModel) -> Compiled {
    let batch = graph.ty(graph.inputs()[0]).dims[0];
    driver::compile(graph.clone(), batch, None, options, cost).unwrap_or_else(|e| panic!("{e:?}"))
}

/// The pyramids of a plan: their configurations.
fn pyramids(plan: &Plan) -> Vec<&str> {
    plan.commands
        .iter()
        .filter_map(|c| match c {
            Command::Launch { op: Op::Pyramid(p), .. } => Some(p.config.as_str()),
            _ => None,
        })
        .collect()
}

/// True with a sum that no ReLU follows: a node of its own in a plan without pyramids, which rounds.
fn rounds_less(pyramid: &PyramidAttrs) -> bool {
    pyramid.layers.iter().any(|l| {
        let sum = l.then.iter().position(|s| *s == PyramidStep::Add);
        sum.is_some_and(|at| l.then.get(at + 1) != Some(&PyramidStep::Relu))
    })
}

#[test]
fn plans_with_pyramids_give_the_bytes_of_those_without() {
    let (mut fused, mut convolutions, mut residuals) = (0, 0, 0);
    for seed in 0..GRAPHS {
        let graph = random_cnn(seed);
        let params = random_params(&graph, seed);
        for precision in Precision::ALL {
            let mut results: Vec<(BTreeMap<String, Tensor>, bool)> = Vec::new();
            for (fuse, slices) in [
                (Fuse::Epilogue, Slices::Off),
                (Fuse::Auto, Slices::Off),
                (Fuse::Pyramid, Slices::Off),
                (Fuse::All, Slices::Count(2)),
            ] {
                // bf16 rounds less often with epilogues fused: compared among themselves.
                if precision == Precision::Bf16 && !fuse.epilogues() {
                    continue;
                }
                let options = CompileOptions { slices, ..options(precision, fuse) };
                let base = harness::cost(&options);
                let joint = layers(&graph, &options, &base);
                let cost = base.clone().with_measured(table(&joint, &base, &|_| 0));
                let plan = compile(&graph, &options, &cost).plan;
                assert!(fuse.pyramids().is_some() || pyramids(&plan).is_empty());
                assert!(pyramids(&plan).iter().all(|&config| config == BETTER || slices != Slices::Off));
                let mut exact = true;
                for command in &plan.commands {
                    let Command::Launch { op: Op::Pyramid(pyramid), .. } = command else { continue };
                    fused += 1;
                    exact &= precision != Precision::Bf16 || !rounds_less(pyramid);
                    convolutions += pyramid.layers.iter().filter(|l| l.is_conv()).count();
                    let images = |u: &&PyramidUse| **u == PyramidUse::Image;
                    residuals += pyramid.uses().iter().filter(images).count() - 1;
                }
                let reread = vdnn_plan::parse::parse_plan(&plan.to_string()).expect("its text parses");
                assert_eq!(reread, plan);
                let inputs = harness::step_inputs(&plan, random_inputs(&graph, seed));
                let cpu = CpuOptions { poison: true, ..CpuOptions::default() };
                let outputs = harness::executor(plan, &params, cpu).step(&inputs).expect("the plan runs");
                results.push((outputs, exact));
            }
            for (result, exact) in &results {
                assert!(!exact || *result == results[0].0, "graph {seed}, {precision}");
            }
        }
    }
    assert!(fused > 100 && convolutions > fused && residuals > 10, "{fused} {convolutions} {residuals}");
}

fn zoo(name: &str, batch: u64) -> Imported {
    let options = ZooOptions { batch: None, classes: None, seed: 0 };
    let network = zoo::build(name, &options).expect("a network");
    let options = ImportOptions { batch: Some(batch), ..ImportOptions::default() };
    onnx::import_model(network, None, &options).expect("the zoo's networks import")
}

#[test]
fn measurements_decide_and_without_them_a_prediction_of_15_percent() {
    let graph = zoo("resnet18", 8).graph;
    let count = |fuse, rows: Option<&dyn Fn(Nanos) -> u64>| {
        let options = options(Precision::Tf32, fuse);
        let base = harness::cost(&options);
        let joint = layers(&graph, &options, &base);
        let cost = match rows {
            Some(time) => base.clone().with_measured(table(&joint, &base, time)),
            None => base,
        };
        let compiled = compile(&graph, &options, &cost);
        assert_eq!(compile(&graph, &options, &cost).plan, compiled.plan, "the same table, the same plan");
        (pyramids(&compiled.plan).len(), compiled.summary.step)
    };
    let nearly = |alone: Nanos| alone.0 - 2;
    let slower = |alone: Nanos| alone.0;
    // Measured beside measured layers, faster is faster, and what is not is not.
    assert!(count(Fuse::Auto, Some(&nearly)).0 > 8);
    assert_eq!(count(Fuse::All, Some(&slower)).0, 0);
    // Fitted predictions count, others where they are asked for; none makes a step longer.
    let (all, step) = count(Fuse::All, None);
    let (fitted, longer) = count(Fuse::Auto, None);
    let (none, layers) = count(Fuse::Epilogue, None);
    assert!(none == 0 && fitted > 0 && all >= fitted, "{all} {fitted}");
    assert!(step <= longer && longer < layers);
    // What was measured to be slow is, whatever is predicted.
    assert_eq!(count(Fuse::Auto, Some(&slower)).0, 0);
    for (fuse, rows) in [
        (Fuse::Off, None),
        (Fuse::Epilogue, Some(&nearly as &dyn Fn(Nanos) -> u64)),
        (Fuse::Off, Some(&nearly)),
    ] {
        assert_eq!(count(fuse, rows).0, 0, "{fuse}");
    }
}

#[test]
fn prices_of_plain_loops_are_not_believed_without_being_asked() {
    let graph = zoo("resnet18", 8).graph;
    let options = options(Precision::F32, Fuse::Auto);
    let plan = compile(&graph, &options, &harness::cost(&options)).plan;
    assert!(pyramids(&plan).is_empty());
}

#[test]
fn training_steps_have_none() {
    let graph = zoo("resnet18", 2).graph;
    let options = CompileOptions { mode: Mode::Train, ..options(Precision::Tf32, Fuse::All) };
    let trained = {
        let network = zoo::build("resnet18", &ZooOptions { batch: None, classes: None, seed: 0 });
        let options = ImportOptions { batch: Some(2), training: true, ..ImportOptions::default() };
        onnx::import_model(network.expect("a network"), None, &options).expect("it imports").graph
    };
    assert!(pyramids(&compile(&trained, &options, &harness::cost(&options)).plan).is_empty());
    let infers = CompileOptions { mode: Mode::Infer, ..options };
    assert!(!pyramids(&compile(&graph, &infers, &harness::cost(&infers)).plan).is_empty());
}

/// VGG-16 in strict f32 has 25.7 MB per image between its first two convolutions. With those and
/// the pool behind them as one kernel, and the second pool in its convolution, 9.6 MB are the most.
#[test]
fn a_budget_below_the_largest_tensors_is_met_by_pyramids() {
    const BATCH: u64 = 64;
    let graph = zoo("vgg16", BATCH).graph;
    let plan = |fuse, memory| {
        let options = CompileOptions { memory, ..options(Precision::F32, fuse) };
        driver::compile(graph.clone(), BATCH, None, &options, &harness::cost(&options))
    };
    let whole = plan(Fuse::Epilogue, None).expect("a plan").summary;
    let budget = whole.weights.saturating_add(Bytes(10_000_000 * BATCH));
    match plan(Fuse::Epilogue, Some(budget)) {
        Err(NoPlan::TooLarge { smallest, .. }) => {
            assert!(smallest.0.saturating_sub(whole.weights) > Bytes(25_000_000 * BATCH));
        }
        other => panic!("its layers cannot fit: {other:?}"),
    }
    let fused = plan(Fuse::All, Some(budget)).expect("a plan with pyramids");
    assert!(fused.summary.fits && fused.summary.peak <= budget);
    assert_eq!(pyramids(&fused.plan).len(), 2);
    // Where the layers fit, they stay: the pyramids are slower in f32.
    assert!(pyramids(&plan(Fuse::All, None).expect("a plan").plan).is_empty());
    // A limit that nothing meets is refused as ever, with the smallest arena that there is.
    match plan(Fuse::All, Some(whole.weights)) {
        Err(NoPlan::TooLarge { smallest, .. }) => assert!(smallest.0 <= budget),
        other => panic!("nothing fits there: {other:?}"),
    }
}

/// Times anything the same, and remembers what it was asked.
struct Clerk {
    asked: Rc<RefCell<Vec<Op>>>,
}

impl KernelTimer for Clerk {
    fn time(&mut self, kernel: &Kernel, _: Precision) -> Result<Vec<MeasuredRow>, TimerError> {
        self.asked.borrow_mut().push(kernel.op.clone());
        let algo = kernel.op.is_conv().then_some(vdnn_ir::graph::ConvAlgo::ImplicitGemm);
        // So that a pyramid is always worth its layers.
        let time = if matches!(kernel.op, Op::Pyramid(_)) { 500 } else { 1000 };
        Ok(vec![MeasuredRow { algo, ..row(time) }])
    }
}

#[test]
fn a_gpu_at_hand_measures_pyramids_where_they_are_asked_for_and_then_knows_them() {
    let dir = tempfile::tempdir().expect("a folder");
    let graph = zoo("resnet18", 4).graph;
    let run = |fuse| {
        let options = options(Precision::Bf16, fuse);
        let asked = Rc::new(RefCell::new(Vec::new()));
        let on = MeasuredOn {
            device: "Made-up GPU".to_owned(),
            capability: "9.0".to_owned(),
            driver: "13.0".to_owned(),
            cudnn: "9.19.0".to_owned(),
            date: "2026-11-21".to_owned(),
        };
        let timer = Box::new(Clerk { asked: Rc::clone(&asked) });
        let mut target = Target::measured(harness::cost(&options), on, dir.path().join("db"), timer);
        let cost = target.cost(&graph, &options).expect("times");
        let plan = compile(&graph, &options, &cost).plan;
        let timed = asked.borrow();
        let of_pyramids = timed.iter().filter(|op| matches!(op, Op::Pyramid(_))).count();
        (pyramids(&plan).len(), timed.len() - of_pyramids, of_pyramids)
    };
    let (fused, kernels, first) = run(Fuse::Auto);
    assert!(
        fused > 0 && kernels > 10 && first > 0,
        "{fused} {kernels} {first}: what is promising is measured"
    );
    let (fused, kernels, timed) = run(Fuse::All);
    assert!(fused > 1 && kernels == 0 && timed > 0, "{fused} {kernels} {timed}: and what is not hopeless");
    // Now that they are in the database, they are used without being asked for.
    assert_eq!(run(Fuse::Auto), (fused, 0, 0));
    assert_eq!(run(Fuse::All), (fused, 0, 0));
    assert_eq!(run(Fuse::Epilogue).0, 0);
}
