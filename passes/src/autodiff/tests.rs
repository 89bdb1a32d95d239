//! Tests of autodiff.

use super::*;
use vdnn_ir::op::{PoolAttrs, UnaryKind};
use vdnn_ir::{TensorType, types::Dims};

fn unary(graph: &mut Graph, kind: UnaryKind, x: ValueId) -> ValueId {
    graph.add1(Op::Unary(kind), &[x], NodeSpec::forward("op")).expect("a legal op")
}

#[test]
fn gradients_follow_a_pool_that_is_added_again() {
    let mut g = Graph::new("t");
    let x = g.add_input("x", TensorType::f32([1, 2, 4, 4]));
    let two: Dims = [2, 2].as_slice().into();
    let zero: Dims = [0, 0].as_slice().into();
    let one: Dims = [1, 1].as_slice().into();
    let pool = PoolAttrs {
        kernel: two.clone(),
        strides: two,
        before: zero.clone(),
        after: zero,
        dilations: one,
        ceil_mode: false,
    };
    let y = g.add1(Op::MaxPool(pool), &[x], NodeSpec::forward("pool")).expect("a legal op");
    g.outputs.push(Output { name: "y".into(), value: y });
    let dy = g.add_input("dy", g.ty(y).clone());
    let found = gradients(&mut g, &[(y, dy)], &[x, y]).expect("differentiable");
    assert_eq!(g.ty(found[0].expect("a gradient of x")), g.ty(x));
    assert_eq!(found[1], Some(dy), "the cotangent is the gradient of the pool's result");
    assert_ne!(g.outputs[0].value, y, "the output follows to the new node");
    vdnn_ir::verify::verify(&g).expect("a sound graph");
}

#[test]
fn contributions_add_up_in_reverse_program_order() {
    let mut g = Graph::new("t");
    let x = g.add_input("x", TensorType::f32([3]));
    let ys: Vec<ValueId> =
        [UnaryKind::Relu, UnaryKind::Tanh, UnaryKind::Exp].map(|k| unary(&mut g, k, x)).to_vec();
    let dy = g.add_input("dy", TensorType::f32([3]));
    let cotangents: Vec<_> = ys.iter().map(|&y| (y, dy)).collect();
    let total = gradients(&mut g, &cotangents, &[x]).expect("differentiable")[0].expect("a gradient");
    let sum = g.node(g.def_node(total).expect("computed")).clone();
    let kind = |v: ValueId| g.node(g.def_node(v).expect("computed")).op.clone();
    assert_eq!(sum.op, Op::Binary(vdnn_ir::op::BinaryKind::Add));
    assert_eq!(kind(sum.inputs[1]), Op::UnaryGrad(UnaryKind::Relu), "the first op contributes last");
}

#[test]
fn a_value_no_path_reaches_has_no_gradient() {
    let mut g = Graph::new("t");
    let x = g.add_input("x", TensorType::f32([3]));
    let z = g.add_input("z", TensorType::f32([3]));
    let y = unary(&mut g, UnaryKind::Exp, x);
    let dy = g.add_input("dy", TensorType::f32([3]));
    let before = g.order().len();
    assert_eq!(gradients(&mut g, &[(y, dy)], &[z]).expect("nothing to do"), [None]);
    assert_eq!(g.order().len(), before, "and nothing is computed for it");
}

#[test]
fn a_cotangent_of_the_wrong_type_is_refused() {
    let mut g = Graph::new("t");
    let x = g.add_input("x", TensorType::f32([3]));
    let y = unary(&mut g, UnaryKind::Exp, x);
    let dy = g.add_input("dy", TensorType::f32([4]));
    let error = gradients(&mut g, &[(y, dy)], &[x]).expect_err("the types differ").to_string();
    assert!(error.contains("f32[4]") && error.contains("f32[3]"), "{error}");
}
