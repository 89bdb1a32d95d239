//! A net for tests of recomputation, here and of whole plans.

use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::{ConvAttrs, ReduceKind, UnaryKind};
use vdnn_ir::{Dims, Graph, Op, Output, ParamRole, Real, TensorType, ValueId};

/// A net on `image` whose layers read, batch-normalised, all layers before them, every third layer
/// what only some of them made, and whose convolutions have `growth` filters each.
pub fn dense(image: [u64; 4], growth: u64, layers: u64) -> Graph {
    let mut g = Graph::new(format!("dense{layers}"));
    let conv = ConvAttrs::square(3, 1, 1, 1);
    let add = |g: &mut Graph, op: Op, inputs: &[ValueId], name: &str| {
        g.add1(op, inputs, NodeSpec::forward(name)).expect("a legal op")
    };
    let mut pieces = vec![g.add_input("x", TensorType::f32(image))];
    for i in 0..layers {
        let name = format!("layer{i}");
        let read = if i % 3 == 2 { &pieces[1..] } else { &pieces };
        let whole = match read {
            &[lone] => lone,
            all => add(&mut g, Op::Concat { axis: 1 }, all, &name),
        };
        let c = g.ty(whole).dims[1];
        let mut operands = vec![whole];
        for what in ["scale", "bias", "mean", "var"] {
            let role = if operands.len() < 3 { ParamRole::Trainable } else { ParamRole::Statistic };
            operands.push(g.add_param(format!("{name}.{what}"), TensorType::f32([c]), role));
        }
        let norm = Op::BatchNormInfer { eps: Real(1e-5), momentum: Real(0.9) };
        let y = add(&mut g, norm, &operands, &name);
        let y = add(&mut g, Op::Unary(UnaryKind::Relu), &[y], &name);
        let w = g.add_param(format!("{name}.w"), TensorType::f32([growth, c, 3, 3]), ParamRole::Trainable);
        pieces.push(add(&mut g, Op::Conv(conv.clone()), &[y, w], &name));
    }
    let last = match pieces.as_slice() {
        &[_, lone] => lone,
        all => add(&mut g, Op::Concat { axis: 1 }, all, "last"),
    };
    let mean = Op::Reduce { kind: ReduceKind::Mean, axes: Dims::from_slice(&[2, 3]), keepdims: false };
    let value = add(&mut g, mean, &[last], "pool");
    g.outputs.push(Output { name: "y".into(), value });
    g
}
