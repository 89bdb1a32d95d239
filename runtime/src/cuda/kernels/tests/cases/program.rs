//! Elementwise programs.

use super::{Case, Rng};
use vdnn_ir::op::{BinaryKind, ElementwiseAttrs, ElementwiseStep, Op, StepOperand, UnaryKind};

fn program(steps: &str) -> Op {
    format!("elementwise(steps:[{steps}])").parse().expect("a program")
}

pub(super) fn programs(rng: &mut Rng, out: &mut Vec<Case>) {
    let shapes: [&[u64]; 5] = [&[4099], &[2, 3, 5, 7], &[2, 8, 4, 6], &[], &[0]];
    let silu = program("unary(sigmoid,x(0)),binary(mul,x(0),t(0))");
    let gradients = program(
        "unary_grad(relu,x(0),x(1)),binary(add,x(2),t(0)),unary_grad(hard_sigmoid(alpha:0.2,beta:0.5),t(1),x(3))",
    );
    let sum = program(
        "binary(add,x(0),x(1)),binary(add,t(0),x(2)),binary(add,t(1),x(3)),binary(add,t(2),x(4)),binary(add,t(3),x(5))",
    );
    for dims in shapes {
        out.push(Case::new(silu.clone(), vec![rng.tensor(dims, -4.0, 4.0)], 2e-6));
        for (op, n) in [(&gradients, 4), (&sum, 6)] {
            out.push(Case::new(op.clone(), (0..n).map(|_| rng.special(dims)).collect(), 2e-6));
        }
    }
    let gated = program("binary(mul,x(0),x(1)),binary(add,t(0),x(2)),unary(leaky_relu(alpha:0.1),t(1))");
    let broadcasts: [[&[u64]; 3]; 8] = [
        [&[2, 3, 5, 7], &[], &[2, 3, 5, 7]],
        [&[2, 8, 4, 6], &[1, 8, 1, 1], &[8, 1, 1]],
        [&[2, 3, 5, 7], &[2, 3, 1, 1], &[7]],
        [&[2, 8, 4, 8], &[2, 8, 1, 1], &[2, 8, 4, 8]],
        [&[8, 1, 1], &[2, 8, 4, 8], &[4, 8]],
        [&[3, 1], &[1, 4], &[]],
        [&[4099], &[1], &[]],
        [&[1, 1, 1, 1], &[1], &[1, 1, 1, 1]],
    ];
    for shapes in broadcasts {
        let inputs = shapes.iter().map(|dims| rng.special(dims)).collect();
        out.push(Case::new(gated.clone(), inputs, 2e-6));
    }
    // As many steps as there may be; bounded, so that errors stay small.
    let mut steps = Vec::new();
    for i in 0..8u8 {
        let last = if i == 0 { StepOperand::X(0) } else { StepOperand::T(2 * i - 1) };
        let bounded =
            [UnaryKind::Tanh, UnaryKind::Sigmoid, UnaryKind::Abs, UnaryKind::Neg][usize::from(i) % 4];
        steps.push(ElementwiseStep::Unary(bounded, last));
        let kind = [BinaryKind::Sub, BinaryKind::Mul, BinaryKind::Max][usize::from(i) % 3];
        steps.push(ElementwiseStep::Binary(kind, StepOperand::X(i % 6), StepOperand::T(2 * i)));
    }
    let op = Op::Elementwise(ElementwiseAttrs { steps });
    for dims in [&[2, 8, 5, 8][..], &[4099]] {
        let mut inputs: Vec<_> = (0..6).map(|_| rng.tensor(dims, -1.0, 1.0)).collect();
        out.push(Case::new(op.clone(), inputs.clone(), 1e-5));
        if let &[_, c, ..] = dims {
            inputs[4] = rng.tensor(&[c, 1, 1], -1.0, 1.0);
            inputs[5] = rng.tensor(&[], -1.0, 1.0);
            out.push(Case::new(op.clone(), inputs, 1e-5));
        }
    }
}
