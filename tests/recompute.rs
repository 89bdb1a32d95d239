//! Steps that make feature maps again in backward compute the bytes of those that keep them.

use prost::Message;
use std::collections::BTreeMap;
use vdnn_frontends::onnx::{self, ImportOptions};
use vdnn_frontends::zoo::{self, ZooOptions};
use vdnn_ir::parse::parse_graph;
use vdnn_ir::{Bytes, Graph, Mode, Op, Phase, Tensor};
use vdnn_passes::{AlgoMode, Fuse, Policy, Recompute};
use vdnn_plan::{Plan, codec};
use vdnn_runtime::cpu::CpuOptions;
use vdnn_tests::arbitrary::{random_cnn, random_inputs, random_params};
use vdnn_tests::dense::dense;
use vdnn_tests::harness::{self, POLICIES};
use vdnnc::options::CompileOptions;

const GRAPHS: u64 = 60;

fn options(policy: Policy, fuse: Fuse, recompute: Recompute) -> CompileOptions {
    CompileOptions { fuse, recompute, ..harness::options(Mode::Train, policy, AlgoMode::Dynamic) }
}

/// Nodes that make something again.
fn again(graph: &Graph) -> usize {
    graph.nodes().filter(|(_, n)| n.name.ends_with("/again")).count()
}

/// Outputs and parameters after a step.
fn step(graph: &Graph, plan: Plan, params: &BTreeMap<String, Tensor>, seed: u64) -> BTreeMap<String, Tensor> {
    let inputs = harness::step_inputs(&plan, random_inputs(graph, seed));
    let cpu = CpuOptions { poison: true, ..CpuOptions::default() };
    let mut executor = harness::executor(plan, params, cpu);
    let mut all = executor.step(&inputs).expect("the plan runs");
    for p in executor.params().to_vec() {
        all.insert(format!("param {}", p.name), executor.read_param(&p.name).expect("it exists"));
    }
    all
}

#[test]
fn what_is_made_again_has_the_bytes_of_what_was_kept() {
    let (mut nodes, mut norms, mut joined) = (0, 0, 0);
    for seed in 0..GRAPHS {
        let graph =
            if seed.is_multiple_of(4) { dense([3, 4, 5, 5], 3, 2 + seed / 8) } else { random_cnn(seed) };
        let batch = graph.ty(graph.inputs()[0]).dims[0];
        let params = random_params(&graph, seed);
        let kept = harness::compile(&graph, batch, &options(Policy::None, Fuse::Off, Recompute::Off));
        let wanted = step(&graph, kept.plan, &params, seed);
        for fuse in [Fuse::Off, Fuse::Epilogue] {
            let kept = harness::compile(&graph, batch, &options(Policy::None, fuse, Recompute::Off));
            let peak = kept.summary.peak;
            assert_eq!(step(&graph, kept.plan, &params, seed), wanted, "graph {seed}, {fuse}");
            for policy in [Policy::None, Policy::All, Policy::Conv, Policy::Dyn] {
                let found = harness::compile(&graph, batch, &options(policy, fuse, Recompute::Cheap));
                let count = |is: &dyn Fn(&Op) -> bool| found.graph.nodes().filter(|(_, n)| is(&n.op)).count();
                nodes += again(&found.graph);
                norms += count(&|op| matches!(op, Op::BatchNormApplyRelu { .. }));
                joined += count(&|op| matches!(op, Op::BatchNormTrainReluJoined { .. }));
                if policy == Policy::None {
                    assert!(found.summary.peak <= peak, "graph {seed}: {} over {peak}", found.summary.peak);
                }
                let got = step(&graph, found.plan, &params, seed);
                assert_eq!(got, wanted, "graph {seed}, {policy}, {fuse}");
            }
        }
    }
    assert!(nodes > 100, "only {nodes} launches made something again");
    assert!(norms > 100, "only {norms} of them batch norms");
    assert!(joined > 100, "only {joined} batch norms joined what they read");
}

fn import(name: &str, batch: u64, classes: Option<u64>) -> Graph {
    let model = zoo::build_zeroed(name, &ZooOptions { batch: None, classes, seed: 0 }).expect("a zoo net");
    let options = ImportOptions { batch: Some(batch), dims: BTreeMap::new(), training: true };
    onnx::import_bytes(model.encode_to_vec().into(), None, &options)
        .unwrap_or_else(|e| panic!("{name}: {e}"))
        .graph
}

#[test]
fn zoo_nets_are_planned_and_are_smaller_under_every_policy() {
    // Of the peak without recomputation, in percent.
    for (name, at_most) in [
        ("densenet121", 40),
        ("densenet201", 40),
        ("resnet50", 90),
        ("vgg16", 100),
        ("googlenet-bn", 90),
        ("alexnet", 100),
    ] {
        let graph = import(name, 16, None);
        let mut peaks = Vec::new();
        for policy in POLICIES {
            let options = options(policy, Fuse::Epilogue, Recompute::Cheap);
            let compiled = harness::compile(&graph, 16, &options);
            let (peak, bound) = (compiled.summary.peak, compiled.summary.lower_bound);
            assert!(peak.as_f64() <= 1.02 * bound.as_f64(), "{name} {policy}: {peak} for {bound}");
            peaks.push((policy, peak));
            let bytes = codec::encode(&compiled.plan);
            assert!(codec::load(&bytes).ok().as_ref() == Some(&compiled.plan), "{name} {policy}: binary");
            assert!(
                harness::compile(&graph, 16, &options).plan == compiled.plan,
                "{name}: not deterministic"
            );
        }
        let off = harness::compile(&graph, 16, &options(Policy::None, Fuse::Epilogue, Recompute::Off));
        let least = peaks.iter().find(|p| p.0 == Policy::None).expect("a policy").1;
        assert!(100 * least.0 <= at_most * off.summary.peak.0, "{name}: {least} of {}", off.summary.peak);
        let options = options(Policy::None, Fuse::Epilogue, Recompute::Cheap);
        let joint = vdnnc::driver::stop_after(graph, Phase::Joint, &options, &harness::cost(&options))
            .expect("joint");
        let text = joint.to_string();
        assert_eq!(parse_graph(&text).expect("the text parses").to_string(), text, "{name}");
    }
}

#[test]
fn auto_recomputes_where_the_budget_asks_for_it_and_before_anything_is_offloaded() {
    let graph = import("densenet121", 16, None);
    let plan = |policy, recompute, memory| {
        let options = CompileOptions { memory, ..options(policy, Fuse::Epilogue, recompute) };
        harness::compile(&graph, 16, &options)
    };
    let off = plan(Policy::None, Recompute::Off, None).summary;
    let auto = plan(Policy::Dyn, Recompute::Auto, None);
    assert_eq!((auto.summary.peak, auto.summary.step), (off.peak, off.step), "it fits");
    let mut step = off.step;
    for percent in [80, 60, 40] {
        let budget = Bytes(off.peak.0 / 100 * percent);
        let found = plan(Policy::Dyn, Recompute::Auto, Some(budget)).summary;
        assert!(found.peak <= budget);
        assert_eq!(found.chosen_policy, Policy::None, "{percent} %");
        assert!(found.step >= step && found.step.0 < off.step.0 / 100 * 130, "{percent} %");
        let offloading = plan(Policy::Dyn, Recompute::Off, Some(budget)).summary;
        assert!(found.step < offloading.step, "{percent} %");
        step = found.step;
    }
}
