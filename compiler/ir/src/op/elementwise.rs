//! Elementwise programs: several elementwise ops with one result, computed element by element
//! without storing what lies between.
//!
//! Steps are in order, the last one is the result. Every step's result has the result's shape;
//! operands broadcast to it where a binary step reads them, as in [`Op::Binary`]. In f32 the bits
//! are those of the ops one after the other; on bf16, as of every fused op but a pyramid, only the
//! result is rounded ([`crate::bf16`]).

use super::infer::{InferError, broadcast_dims};
use super::{BinaryKind, Op, UnaryKind};
use crate::types::{DType, TensorType};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// Most steps of a program.
pub const MAX_STEPS: usize = 16;

/// Most operands of a program.
pub const MAX_OPERANDS: usize = 6;

/// What a step reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepOperand {
    /// Operand of the program.
    X(u8),
    /// Result of an earlier step.
    T(u8),
}

/// One op of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ElementwiseStep {
    /// [`Op::Unary`].
    Unary(UnaryKind, StepOperand),
    /// [`Op::UnaryGrad`] of dy and what was saved.
    UnaryGrad(UnaryKind, StepOperand, StepOperand),
    /// [`Op::Binary`].
    Binary(BinaryKind, StepOperand, StepOperand),
}

impl ElementwiseStep {
    /// The step that an op is, given what it reads; `None` for other ops.
    pub fn new(op: &Op, operands: &[StepOperand]) -> Option<Self> {
        match (op, operands) {
            (Op::Unary(kind), &[x]) => Some(Self::Unary(*kind, x)),
            (Op::UnaryGrad(kind), &[dy, s]) => Some(Self::UnaryGrad(*kind, dy, s)),
            (Op::Binary(kind), &[a, b]) => Some(Self::Binary(*kind, a, b)),
            _ => None,
        }
    }

    /// The op.
    pub fn op(&self) -> Op {
        match *self {
            Self::Unary(kind, _) => Op::Unary(kind),
            Self::UnaryGrad(kind, ..) => Op::UnaryGrad(kind),
            Self::Binary(kind, ..) => Op::Binary(kind),
        }
    }

    /// What it reads, in the op's order.
    pub fn operands(&self) -> SmallVec<[StepOperand; 2]> {
        match *self {
            Self::Unary(_, x) => SmallVec::from_slice(&[x]),
            Self::UnaryGrad(_, a, b) | Self::Binary(_, a, b) => SmallVec::from_slice(&[a, b]),
        }
    }
}

/// A program.
///
/// ```
/// # use vdnn_ir::Op;
/// // x * sigmoid(x)
/// let text = "elementwise(steps:[unary(sigmoid,x(0)),binary(mul,x(0),t(0))])";
/// assert_eq!(text.parse::<Op>().unwrap().to_string(), text);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ElementwiseAttrs {
    /// The steps, at least one and at most [`MAX_STEPS`].
    pub steps: Vec<ElementwiseStep>,
}

impl ElementwiseAttrs {
    /// True if the result is that of a ReLU.
    pub fn ends_in_relu(&self) -> bool {
        matches!(self.steps.last(), Some(ElementwiseStep::Unary(UnaryKind::Relu, _)))
    }

    /// True if the result is a sum of operands.
    pub fn is_sum(&self) -> bool {
        self.steps.iter().all(|s| matches!(s, ElementwiseStep::Binary(BinaryKind::Add, ..)))
    }

    /// The type of the result for operands of these types, row-major.
    ///
    /// # Errors
    /// If there are too many steps or operands or none, a step reads what is not there, operands
    /// are not all f32 or all bf16, or a step's result has another shape than the last one's.
    pub fn typed(&self, inputs: &[&TensorType]) -> Result<TensorType, InferError> {
        let fail = |why: String| Err(InferError(format!("elementwise: {why}")));
        let dtype = inputs.first().map_or(DType::F32, |t| t.dtype);
        if !(1..=MAX_OPERANDS).contains(&inputs.len()) {
            return fail(format!("expected 1 to {MAX_OPERANDS} inputs, found {}", inputs.len()));
        }
        if !(1..=MAX_STEPS).contains(&self.steps.len()) {
            return fail(format!("expected 1 to {MAX_STEPS} steps, found {}", self.steps.len()));
        }
        if let Some(odd) = inputs.iter().find(|t| t.dtype != dtype || !is_real(t.dtype)) {
            return fail(format!("expected operands all of type f32 or all of bf16, found {odd}"));
        }
        let mut made: Vec<TensorType> = Vec::with_capacity(self.steps.len());
        for (n, step) in self.steps.iter().enumerate() {
            let ty = |operand: &StepOperand| match *operand {
                StepOperand::X(i) => inputs.get(usize::from(i)).copied(),
                StepOperand::T(i) => made.get(usize::from(i)),
            };
            let Some(read) = step.operands().iter().map(ty).collect::<Option<SmallVec<[_; 2]>>>() else {
                return fail(format!("expected step {n} to read operands or earlier steps, found {step:?}"));
            };
            let dims = match (step, read.as_slice()) {
                (ElementwiseStep::Binary(..), [a, b]) => broadcast_dims(&a.dims, &b.dims)?,
                (ElementwiseStep::UnaryGrad(..), [dy, s]) if dy.dims != s.dims => {
                    return fail(format!("expected step {n} to read equal shapes, found {dy} and {s}"));
                }
                (_, read) => read[0].dims.clone(),
            };
            drop(read);
            made.push(TensorType::new(dtype, dims));
        }
        let Some(result) = made.pop() else { return fail("no steps".into()) };
        match made.iter().position(|t| t.dims != result.dims) {
            Some(n) => fail(format!("expected step {n} to have the shape of {result}, found {}", made[n])),
            None => Ok(result),
        }
    }
}

fn is_real(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::infer::infer;

    fn result(op: &str, inputs: &[&str]) -> Result<String, String> {
        let op: Op = op.parse()?;
        let inputs: Vec<TensorType> = inputs.iter().map(|t| t.parse().expect("a type")).collect();
        let inputs: Vec<&TensorType> = inputs.iter().collect();
        infer(&op, &inputs, 1).map(|t| t[0].to_string()).map_err(|e| e.0)
    }

    const SWISH: &str = "elementwise(steps:[unary(sigmoid,x(0)),binary(mul,x(0),t(0))])";
    const SCALED: &str = "elementwise(steps:[binary(mul,x(0),x(1)),unary(relu,t(0))])";

    #[test]
    fn results_have_the_shape_that_operands_broadcast_to() {
        assert_eq!(result(SWISH, &["f32[2,3]"]).as_deref(), Ok("f32[2,3]"));
        assert_eq!(result(SCALED, &["bf16[2,3,4,4]", "bf16[3,1,1]"]).as_deref(), Ok("bf16[2,3,4,4]"));
        let last = ["f32[2,3,4,4]nhwc", "f32[]"];
        assert_eq!(result(SCALED, &last).as_deref(), Ok("f32[2,3,4,4]nhwc"));
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let step = "unary(relu,x(0))";
        for (op, inputs, why) in [
            ("elementwise(steps:[])".to_owned(), &["f32[2]"][..], "1 to 16 steps"),
            (format!("elementwise(steps:[{}])", [step; 17].join(",")), &["f32[2]"], "1 to 16 steps"),
            (SWISH.to_owned(), &[], "1 to 6 inputs"),
            (SWISH.to_owned(), &["f32[2]"; 7], "1 to 6 inputs"),
            (SWISH.to_owned(), &["i32[2]"], "all of type f32"),
            (SCALED.to_owned(), &["f32[2]", "bf16[2]"], "all of type f32"),
            (SCALED.to_owned(), &["f32[2]"], "step 0 to read operands"),
            ("elementwise(steps:[unary(relu,t(0))])".to_owned(), &["f32[2]"], "step 0 to read operands"),
            // The sigmoid would be of a smaller shape.
            (
                "elementwise(steps:[unary(sigmoid,x(1)),binary(mul,x(0),t(0))])".to_owned(),
                &["f32[2,3]", "f32[3]"],
                "step 0 to have the shape of f32[2,3]",
            ),
            (
                "elementwise(steps:[unary_grad(relu,x(0),x(1))])".to_owned(),
                &["f32[2,3]", "f32[3]"],
                "equal shapes",
            ),
        ] {
            let error = result(&op, inputs).unwrap_err();
            assert!(error.contains(why), "{op}: {error}");
        }
    }
}
