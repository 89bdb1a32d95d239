//! Work and traffic of an op, for cost models.

use super::Op;
use crate::types::TensorType;
use crate::units::{Bytes, Flops};

/// Floating-point operations of one execution (a multiply-add is two).
pub fn flops(op: &Op, inputs: &[&TensorType], outputs: &[&TensorType]) -> Flops {
    let _ = (op, inputs, outputs);
    Flops(0)
}

/// Bytes read and written in device memory if every operand is touched once.
pub fn traffic(op: &Op, inputs: &[&TensorType], outputs: &[&TensorType]) -> Bytes {
    let _ = op;
    inputs.iter().chain(outputs).map(|t| t.bytes()).sum()
}
