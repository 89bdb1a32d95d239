//! Tests of simplification.

use super::*;
use vdnn_cost::{CostModel, Precision};
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::{BinaryKind, UnaryKind};
use vdnn_ir::{Op, Output, TensorType};

/// `blocks` times: `x = relu(relu(tanh(x) + x))`. A tree extractor would see 2^blocks terms.
fn residual(blocks: usize) -> Graph {
    let mut g = Graph::new("residual");
    let mut x = g.add_input("x", TensorType::f32([4, 8]));
    for i in 0..blocks {
        let mut add = |op: Op, inputs: &[vdnn_ir::ValueId], what: &str| {
            g.add1(op, inputs, NodeSpec::forward(format!("{what}{i}"))).expect("a legal op")
        };
        let t = add(Op::Unary(UnaryKind::Tanh), &[x], "tanh");
        let s = add(Op::Binary(BinaryKind::Add), &[t, x], "sum");
        let r = add(Op::Unary(UnaryKind::Relu), &[s], "relu");
        x = add(Op::Unary(UnaryKind::Relu), &[r], "again");
    }
    g.outputs.push(Output { name: "y".into(), value: x });
    g
}

fn simplify(graph: &mut Graph) -> Outcome {
    let cost = CostModel::named("h200", Precision::F32).expect("the profile");
    crate::pass::run_pass(&Simplify, graph, &PassCtx { cost: &cost }).expect("simplify")
}

#[test]
fn a_deep_residual_chain_loses_exactly_its_doubled_relus() {
    let mut g = residual(200);
    let outcome = simplify(&mut g);
    assert_eq!(outcome.stats["relu-of-relu"], 200);
    assert_eq!(g.order().len(), 600);
    assert!(g.nodes().all(|(_, n)| !n.name.starts_with("again")));
    assert!(!simplify(&mut g).changed, "nothing is left to do");
}

#[test]
fn the_result_is_the_same_every_time() {
    let first = {
        let mut g = residual(20);
        simplify(&mut g);
        g.to_string()
    };
    for _ in 0..5 {
        let mut g = residual(20);
        simplify(&mut g);
        assert_eq!(g.to_string(), first);
    }
}

#[test]
fn a_long_chain_of_reshapes_collapses_within_the_limits() {
    let mut g = Graph::new("chain");
    let mut x = g.add_input("x", TensorType::f32([2, 12]));
    for i in 0..200 {
        let dims: &[u64] = if i % 2 == 0 { &[4, 6] } else { &[3, 8] };
        let op = Op::Reshape { dims: dims.into() };
        x = g.add1(op, &[x], NodeSpec::forward(format!("r{i}"))).expect("a legal op");
    }
    g.outputs.push(Output { name: "y".into(), value: x });
    simplify(&mut g);
    assert_eq!(g.order().len(), 1);
}
