//! Tests of in-place reuse.

use super::Inplace;
use crate::memory::testnet::*;
use crate::pass::{PassCtx, Stats, run_pass};
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::{BinaryKind, SliceAttrs, UnaryKind};
use vdnn_ir::{Graph, Op, Output, ParamRole, Phase, TensorType, ValueId};

fn run(graph: &mut Graph) -> Stats {
    graph.phase = Phase::Placed;
    let cost = cost();
    run_pass(&Inplace, graph, &PassCtx { cost: &cost }).expect("inplace").stats
}

/// Adds a node.
type Add<'a> = dyn FnMut(&mut Graph, Op, &[ValueId]) -> ValueId + 'a;

/// Builds nodes on two inputs of one type and one of another; returns the pairs per node.
fn pairs(build: impl FnOnce(&mut Graph, &mut Add<'_>) -> ValueId) -> Vec<Vec<(u32, u32)>> {
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

fn rows(first: u64, len: u64) -> Op {
    Op::Slice(SliceAttrs {
        starts: [first, 0].into_iter().collect(),
        steps: [1, 1].into_iter().collect(),
        lens: [len, 64].into_iter().collect(),
    })
}

const JOIN: Op = Op::Concat { axis: 0 };
const EXP: Op = Op::Unary(UnaryKind::Exp);
const NONE: [(u32, u32); 0] = [];

#[test]
fn rows_of_an_input_are_left_in_it_and_results_are_made_in_their_concat() {
    let got = pairs(|g, add| {
        let x = g.add_input("x", TensorType::f32([4, 64]));
        let parts = [0, 2].map(|first| {
            let s = add(g, rows(first, 2), &[x]);
            let e = add(g, NEG, &[s]);
            add(g, RELU, &[e])
        });
        let y = add(g, JOIN, &parts);
        add(g, RELU, &[y])
    });
    // `neg` may not overwrite the input, the first relu its operand, the last one the result.
    let part = [vec![(0, 0)], vec![], vec![(0, 0)]];
    assert_eq!(got[..6], [part.clone(), part].concat());
    assert_eq!(got[6..], [vec![(0, 1), (0, 0)], vec![(0, 0)]]);
}

#[test]
fn rows_are_not_overwritten_while_others_of_the_same_bytes_are_read() {
    let got = pairs(|g, add| {
        let x = g.add_input("x", TensorType::f32([2, 64]));
        let (a, b) = (add(g, NEG, &[x]), add(g, EXP, &[x]));
        let y = add(g, JOIN, &[a, b]);
        let late = add(g, NEG, &[y]);
        let a = add(g, NEG, &[a]);
        add(g, JOIN, &[late, a])
    });
    // The second `neg` of the result leaves `a` alone; the last reader of `a` may overwrite it.
    assert_eq!(got[2..5], [vec![(0, 1), (0, 0)], vec![], vec![(0, 0)]]);
    // Which lies in the bytes of another concat then.
    assert_eq!(got[5], [(0, 0)]);
}

#[test]
fn only_rows_with_bytes_of_their_own_share_those_of_a_concat() {
    let concat = |build: &dyn Fn(&mut Graph, &mut Add<'_>) -> Vec<ValueId>| {
        let mut at = 0;
        let got = pairs(|g, add| {
            let parts = build(g, add);
            at = g.order().len();
            add(g, JOIN, &parts)
        });
        got[at].clone()
    };
    let x = |g: &mut Graph| g.add_input("x", TensorType::f32([4, 64]));
    // An input, a parameter, a slice of something else, one value twice.
    assert_eq!(
        concat(&|g, _| vec![x(g), g.add_param("w", TensorType::f32([4, 64]), ParamRole::Frozen)]),
        NONE
    );
    let slice_and_own = |g: &mut Graph, add: &mut Add<'_>| {
        let x = x(g);
        vec![add(g, rows(1, 2), &[x]), add(g, EXP, &[x])]
    };
    assert_eq!(concat(&slice_and_own), [(0, 1)]);
    assert_eq!(
        concat(&|g, add| {
            let x = x(g);
            let a = add(g, EXP, &[x]);
            vec![a, a]
        }),
        NONE
    );
    // 60 numbers a row end where no buffer may begin.
    let narrow = |g: &mut Graph, add: &mut Add<'_>| {
        let x = g.add_input("x", TensorType::f32([1, 60]));
        vec![add(g, EXP, &[x]), add(g, NEG, &[x])]
    };
    assert_eq!(concat(&narrow), [(0, 0)]);
    // A concat of concats; the inner one is as good as any other result.
    let nested = |g: &mut Graph, add: &mut Add<'_>| {
        let x = x(g);
        let (a, b) = (add(g, EXP, &[x]), add(g, NEG, &[x]));
        vec![add(g, JOIN, &[a, b]), add(g, NEG, &[x])]
    };
    assert_eq!(concat(&nested), [(0, 1), (0, 0)]);
}

#[test]
fn bytes_are_not_kept_long_for_a_few_rows_of_them() {
    let read_after = |n: usize, len: u64| {
        let got = pairs(|g, add| {
            let x = g.add_input("x", TensorType::f32([64, 64]));
            let a = add(g, NEG, &[x]);
            let s = add(g, rows(0, len), &[a]);
            let mut y = x;
            for _ in 0..n {
                y = add(g, EXP, &[y]);
            }
            let part = add(g, rows(0, len), &[y]);
            add(g, ADD, &[part, s])
        });
        !got[1].is_empty()
    };
    assert!(read_after(9, 60), "nearly all of it");
    assert!(!read_after(9, 2), "a copy of two rows is cheap");
    let made_before = |n: usize| {
        let got = pairs(|g, add| {
            let x = g.add_input("x", TensorType::f32([64, 64]));
            let few = g.add_input("few", TensorType::f32([2, 64]));
            let few = add(g, NEG, &[few]);
            let mut y = x;
            for _ in 0..n {
                y = add(g, Op::Softmax { axis: 1 }, &[y]);
            }
            add(g, JOIN, &[few, y])
        });
        got.last().cloned().expect("the concat")
    };
    assert_eq!(made_before(9), [(0, 1)]);
}
