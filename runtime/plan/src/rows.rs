//! Slices and concats of rows that find tensors where they would put them.
//!
//! A launch of such an op ([`vdnn_ir::rows`]) moves nothing if its result lies in its operand
//! at the slice's place, or its operand in its result at the operand's place. To a plan that is
//! a fact about addresses: executors, simulator and checker take it from here.

use crate::plan::{BufId, Buffer, Plan};
use smallvec::SmallVec;
use vdnn_ir::rows::{Placement, placement};
use vdnn_ir::{Bytes, Op, TensorType};

/// An operand of a concat that is not in its place yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowMove {
    /// Which operand.
    pub operand: usize,
    /// Where it belongs, from the start of the result.
    pub at: Bytes,
    /// Its size.
    pub len: Bytes,
}

/// What a launch has still to move, in the order of the operands.
pub type RowMoves = SmallVec<[RowMove; 4]>;

/// What a slice or concat of rows has still to move if at least one of its operands shares
/// bytes with its result as it should; `None` if none does, for other ops and for malformed
/// launches: they run as any other.
pub fn rows_in_place(plan: &Plan, op: &Op, inputs: &[BufId], outputs: &[BufId]) -> Option<RowMoves> {
    if !matches!(op, Op::Slice(_) | Op::Concat { .. }) {
        return None;
    }
    let &[output] = outputs else { return None };
    let y = plan.buffers.get(output)?;
    let operands: Vec<&Buffer> = inputs.iter().map(|&b| plan.buffers.get(b)).collect::<Option<_>>()?;
    let types: SmallVec<[&TensorType; 4]> = operands.iter().map(|b| &b.ty).collect();
    let is = |b: &Buffer, inner: Bytes, outer: Bytes, at: Bytes| {
        b.space == y.space && outer.checked_add(at) == Some(inner)
    };
    match placement(op, &types)? {
        Placement::ResultInOperand(at) => {
            let x = operands.first()?;
            is(x, y.offset, x.offset, at).then(RowMoves::new)
        }
        Placement::OperandsInResult(places) => {
            let mut moves = RowMoves::new();
            for (operand, (x, &at)) in operands.iter().zip(&places).enumerate() {
                if !is(x, x.offset, y.offset, at) {
                    moves.push(RowMove { operand, at, len: x.ty.bytes() });
                }
            }
            (moves.len() < operands.len()).then_some(moves)
        }
    }
}

/// True if an operand is among those to be moved.
pub fn moves_operand(moves: &RowMoves, operand: usize) -> bool {
    moves.binary_search_by_key(&operand, |m| m.operand).is_ok()
}
