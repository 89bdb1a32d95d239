//! Elementwise chains as one op: activations as exporters write them, normalised inputs, gates of
//! squeeze-and-excitation blocks, sums of gradients; with every way an operand broadcasts.

use super::{Case, Generator};
use vdnn_ir::op::Op;

/// x * sigmoid(x).
const SILU: &str = "unary(sigmoid,x(0)),binary(mul,x(0),t(0))";
/// 0.5 x (1 + tanh(0.8 (x + 0.045 x^3))).
const GELU: &str = "unary(pow_const(exponent:3.0),x(0)),unary(affine(scale:0.044715,shift:0.0),t(0)),\
     binary(add,x(0),t(1)),unary(affine(scale:0.79788,shift:0.0),t(2)),unary(tanh,t(3)),\
     unary(affine(scale:1.0,shift:1.0),t(4)),binary(mul,x(0),t(5)),unary(affine(scale:0.5,shift:0.0),t(6))";
/// x * clip(x + 3, 0, 6) / 6.
const HARD_SWISH: &str = "unary(affine(scale:1.0,shift:3.0),x(0)),unary(clip(lo:0.0,hi:6.0),t(0)),\
     binary(mul,x(0),t(1)),unary(affine(scale:0.16666667,shift:0.0),t(2))";
/// (x - mean) / deviation.
const NORMALISED: &str = "binary(sub,x(0),x(1)),binary(div,t(0),x(2))";
/// The gate of a block, its sum with the shortcut, and the ReLU.
const GATED: &str = "binary(mul,x(0),x(1)),binary(add,t(0),x(2)),unary(relu,t(1))";
/// Gradients of two branches.
const GRADIENTS: &str = "unary_grad(relu,x(0),x(1)),binary(add,x(2),t(0)),unary_grad(tanh,t(1),x(3))";
const SUM: &str = "binary(add,x(0),x(1)),binary(add,t(0),x(2)),binary(add,t(1),x(3)),binary(add,t(2),x(4)),\
     binary(add,t(3),x(5))";

impl Generator {
    fn program(&mut self, steps: &str, operands: &[&[u64]], last_positive: bool) {
        let op: Op = format!("elementwise(steps:[{steps}])").parse().expect("a program");
        let last = operands.len() - 1;
        let operands = operands
            .iter()
            .enumerate()
            .map(|(i, dims)| if last_positive && i == last { self.positive(dims) } else { self.any(dims) });
        let operands = operands.collect();
        // Not differentiable: made behind autodiff.
        self.cases.push(Case { op, operands, outputs: 1, sources: vec![] });
    }

    pub(super) fn programs(&mut self) {
        for x in [&[2, 64, 28, 28][..], &[3, 13, 9, 7], &[4099], &[5, 1000], &[1, 1, 1, 1]] {
            for steps in [SILU, GELU, HARD_SWISH] {
                self.program(steps, &[x], false);
            }
            self.program(GRADIENTS, &[x; 4], false);
            self.program(SUM, &[x; 6], false);
        }
        for [n, c, h, w] in [[2, 64, 28, 28], [2, 3, 35, 33], [3, 24, 5, 8]] {
            let x: &[u64] = &[n, c, h, w];
            self.program(NORMALISED, &[x, &[1, c, 1, 1], &[c, 1, 1]], true);
            self.program(NORMALISED, &[x, &[], &[1]], true);
            self.program(NORMALISED, &[x, &[w], &[h, 1]], true);
            self.program(GATED, &[x, &[n, c, 1, 1], x], false);
            self.program(GATED, &[&[c, 1, 1], x, x], false);
        }
    }
}
