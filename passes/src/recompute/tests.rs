//! Tests of recomputation.

use super::*;
use crate::autodiff::Autodiff;
use crate::fuse::FuseEpilogues;
use crate::nest_concats::NestConcats;
use crate::pass::run_pass;
use vdnn_cost::{CostModel, Precision};
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::UnaryKind;
use vdnn_ir::{Op, ParamRole, TensorType};

fn cost() -> CostModel {
    CostModel::named("h200", Precision::Tf32).expect("a shipped profile")
}

/// A step of layers that each read, batch-normalised, everything before them.
fn dense(layers: u64) -> Graph {
    let mut g = super::testnet::dense([4, 8, 32, 32], 8, layers);
    g.phase = Phase::Simplified;
    let cost = cost();
    let cx = PassCtx { cost: &cost };
    for pass in [&NestConcats as &dyn Pass, &Autodiff::default(), &FuseEpilogues] {
        run_pass(pass, &mut g, &cx).expect("a legal model");
    }
    g
}

fn recompute(graph: &Graph, within: Option<Bytes>) -> (Graph, Outcome) {
    let (mut graph, cost) = (graph.clone(), cost());
    let outcome =
        run_pass(&Recompute { within }, &mut graph, &PassCtx { cost: &cost }).expect("it recomputes");
    (graph, outcome)
}

fn peak(graph: &Graph) -> Bytes {
    Scheduled::new(graph, &PassCtx { cost: &cost() }).expect("it schedules").peak()
}

#[test]
fn the_peak_falls_and_nothing_dear_is_computed_twice() {
    let before = dense(8);
    let (after, outcome) = recompute(&before, None);
    assert!(outcome.changed);
    assert_eq!(outcome.stats["peak_before"], peak(&before).0);
    assert_eq!(outcome.stats["peak_after"], peak(&after).0);
    assert!(2 * peak(&after).0 < peak(&before).0, "{:?}", outcome.stats);
    let new = || after.nodes().filter(|(id, _)| before.get_node(*id).is_none());
    assert!(new().count() >= 8);
    for (_, node) in new() {
        let cheap = matches!(node.op, Op::BatchNormApplyRelu { .. } | Op::Concat { .. });
        assert!(cheap && node.stage == Stage::Backward, "{node:?}");
    }
    assert_eq!(recompute(&before, None).0.to_string(), after.to_string(), "not deterministic");
}

#[test]
fn what_fits_is_kept() {
    let graph = dense(8);
    let before = peak(&graph);
    let (same, outcome) = recompute(&graph, Some(before));
    assert!(!outcome.changed);
    assert_eq!(same.to_string(), graph.to_string());
    let (mut time, mut last) = (0, before);
    for sixteenths in (4..16).rev() {
        let limit = Bytes(before.0 / 16 * sixteenths);
        let (found, outcome) = recompute(&graph, Some(limit));
        assert!(outcome.changed);
        let least = recompute(&graph, None).1.stats["peak_after"];
        assert!(peak(&found) <= limit.max(Bytes(least)), "{sixteenths}: {} in {limit}", peak(&found));
        assert!(outcome.stats["nanoseconds"] >= time && peak(&found) <= last, "not monotone");
        (time, last) = (outcome.stats["nanoseconds"], peak(&found));
    }
}

#[test]
fn inference_and_steps_at_whose_peak_nothing_is_dropped_stay() {
    let mut graph = Graph::new("g");
    let x = graph.add_input("x", TensorType::f32([64]));
    let y = graph.add1(Op::Unary(UnaryKind::Exp), &[x], NodeSpec::forward("exp")).expect("a legal op");
    graph.outputs.push(vdnn_ir::Output { name: "y".into(), value: y });
    graph.phase = Phase::Joint;
    assert!(!recompute(&graph, None).1.changed);
    // The largest tensors are those of the op in the middle, and it needs them all.
    let graph = dense(1);
    let (after, outcome) = recompute(&graph, None);
    assert!(!outcome.changed, "{:?}", outcome.stats);
    assert_eq!(after.to_string(), graph.to_string());
}

#[test]
fn what_is_made_again_may_be_a_long_chain() {
    let long = 20_000;
    let mut g = Graph::new("chain");
    let mut x = g.add_input("x", TensorType::f32([2, 4]));
    let w = g.add_param("w", TensorType::f32([4, 4]), ParamRole::Trainable);
    let gemm = Op::Gemm { trans_a: false, trans_b: true, alpha: 1.0.into(), beta: 1.0.into() };
    x = g.add1(gemm, &[x, w], NodeSpec::forward("fc")).expect("a legal op");
    for i in 0..long {
        x = g.add1(Op::Unary(UnaryKind::Tanh), &[x], NodeSpec::forward(format!("t{i}"))).expect("a legal op");
    }
    g.outputs.push(vdnn_ir::Output { name: "y".into(), value: x });
    g.phase = Phase::Simplified;
    let cost = cost();
    Autodiff::default().run(&mut g, &PassCtx { cost: &cost }).expect("a step");
    let prices = Prices::new(&g, &cost);
    let every: BTreeSet<ValueId> = prices.candidates(&g).iter().map(|c| c.value).collect();
    assert!(every.len() + 2 > long, "{}", every.len());
    let made = remake(&g, &prices, &every).expect("a step").graph;
    assert_eq!(made.order().len(), g.order().len() + every.len());
}
