//! Tests of in-place reuse.

use super::Inplace;
use crate::memory::testnet::*;
use crate::pass::{PassCtx, Stats, run_pass};
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::{BinaryKind, UnaryKind};
use vdnn_ir::{Graph, Op, Output, Phase, TensorType, ValueId};

fn run(graph: &mut Graph) -> Stats {
    graph.phase = Phase::Placed;
    let cost = cost();
    run_pass(&Inplace, graph, &PassCtx { cost: &cost }).expect("inplace").stats
}

/// Builds nodes on two inputs of one type and one of another; returns the pairs per node.
fn pairs(
    build: impl FnOnce(&mut Graph, &mut dyn FnMut(&mut Graph, Op, &[ValueId]) -> ValueId) -> ValueId,
) -> Vec<Vec<(u32, u32)>> {
    let mut g = Graph::new("t");
    let mut add = |g: &mut Graph, op: Op, inputs: &[ValueId]| {
        let name = format!("n{}", g.order().len());
        g.add1(op, inputs, NodeSpec::forward(name)).expect("well-typed")
    };
    let y = build(&mut g, &mut add);
    g.outputs.push(Output { name: "y".into(), value: y });
    run(&mut g);
    g.nodes().map(|(_, n)| n.inplace.to_vec()).collect()
}

fn input(g: &mut Graph, name: &str) -> ValueId {
    g.add_input(name, TensorType::f32([4, 8]))
}

const NEG: Op = Op::Unary(UnaryKind::Neg);
const RELU: Op = Op::Unary(UnaryKind::Relu);
const ADD: Op = Op::Binary(BinaryKind::Add);

#[test]
fn an_elementwise_op_overwrites_its_dead_operand_but_never_an_input() {
    let got = pairs(|g, add| {
        let x = input(g, "x");
        let a = add(g, NEG, &[x]);
        add(g, RELU, &[a])
    });
    assert_eq!(got, [vec![], vec![(0, 0)]]);
}

#[test]
fn a_value_read_later_is_left_alone() {
    let got = pairs(|g, add| {
        let x = input(g, "x");
        let a = add(g, NEG, &[x]);
        let b = add(g, RELU, &[a]);
        add(g, ADD, &[a, b])
    });
    // The sum is the last reader of both; it takes the first.
    assert_eq!(got, [vec![], vec![], vec![(0, 0)]]);
}

#[test]
fn a_reshape_keeps_the_bytes_alive_and_passes_them_on() {
    let flat = Op::Reshape { dims: [32].as_slice().into() };
    let back = Op::Reshape { dims: [4, 8].as_slice().into() };
    let got = pairs(|g, add| {
        let x = input(g, "x");
        let a = add(g, NEG, &[x]);
        let v = add(g, flat.clone(), &[a]);
        let b = add(g, RELU, &[a]);
        let w = add(g, RELU, &[v]);
        let w = add(g, back, &[w]);
        add(g, ADD, &[w, b])
    });
    // `b` may not overwrite `a`, which `w` still reads as `v`; `w` may.
    assert_eq!(got, [vec![], vec![], vec![], vec![(0, 0)], vec![], vec![(0, 0)]]);
}

#[test]
fn an_operand_read_twice_or_of_another_shape_cannot_be_overwritten() {
    let got = pairs(|g, add| {
        let x = input(g, "x");
        let a = add(g, NEG, &[x]);
        add(g, ADD, &[a, a])
    });
    assert_eq!(got, [vec![], vec![]]);
    let got = pairs(|g, add| {
        let x = input(g, "x");
        let row = g.add_input("row", TensorType::f32([8]));
        let a = add(g, NEG, &[row]);
        let b = add(g, NEG, &[x]);
        add(g, ADD, &[a, b])
    });
    assert_eq!(got[2], [(0, 1)], "the broadcast operand is too small");
}

#[test]
fn an_output_of_the_graph_is_not_overwritten() {
    let mut g = Graph::new("t");
    let x = input(&mut g, "x");
    let a = g.add1(NEG, &[x], NodeSpec::forward("a")).expect("a");
    let b = g.add1(RELU, &[a], NodeSpec::forward("b")).expect("b");
    g.outputs.push(Output { name: "a".into(), value: a });
    g.outputs.push(Output { name: "b".into(), value: b });
    assert_eq!(run(&mut g)["inplace"], 0);
}

#[test]
fn updates_are_in_place_and_relu_and_its_gradient_are_too() {
    let mut g = selected(resnet(2, 32, &[1]), true, false);
    let stats = run(&mut g);
    assert_eq!(stats["updates"], g.updates.len() as u64);
    for (_, node) in g.nodes() {
        match node.op {
            Op::SgdUpdate => assert_eq!(node.inplace.as_slice(), [(0, 0), (1, 1)]),
            Op::BatchNormTrain { .. } => assert_eq!(node.inplace.as_slice(), [(1, 3), (2, 4)]),
            Op::Unary(UnaryKind::Relu) | Op::UnaryGrad(_) => {
                assert_eq!(node.inplace.as_slice(), [(0, 0)], "{}", node.name);
            }
            _ => {}
        }
    }
}
