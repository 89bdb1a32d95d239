//! Shape and type rules: the types of an op's outputs from those of its inputs.

use super::Op;
use crate::types::TensorType;
use smallvec::SmallVec;

/// Why an op cannot take these inputs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InferError(pub String);

/// The output types of `op` applied to inputs of the given types; `n_outputs` tells
/// whether optional outputs are wanted.
///
/// # Errors
/// If the arity, an element type or a shape is outside the op's contract, or a size overflows.
pub fn infer(
    op: &Op,
    inputs: &[&TensorType],
    n_outputs: usize,
) -> Result<SmallVec<[TensorType; 2]>, InferError> {
    let _ = (op, inputs, n_outputs);
    Err(InferError("not yet".into()))
}
