//! Where the bytes of one tensor lie in those of another: slices and concats of rows.
//!
//! Rows (indices of the outermost dimension) lie behind one another in every layout. A slice of
//! rows is therefore part of its operand's bytes, and the operands of a concat of rows are
//! parts of the result's. If the tensors are placed like that, the op has nothing to move.

use crate::op::Op;
use crate::types::TensorType;
use crate::units::Bytes;
use smallvec::SmallVec;

/// Where the tensors of an op lie if it is to move nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Output 0 lies in operand 0, from this byte of it on.
    ResultInOperand(Bytes),
    /// Each operand lies in output 0, from this byte of it on.
    OperandsInResult(SmallVec<[Bytes; 4]>),
}

/// The placement of a slice or concat of rows; `None` for other ops, for what is as large as
/// the tensor it would lie in, and for malformed operands.
pub fn placement(op: &Op, inputs: &[&TensorType]) -> Option<Placement> {
    match op {
        Op::Slice(slice) => {
            let [x] = inputs else { return None };
            let (&first, other_starts) = slice.starts.split_first()?;
            let (&rows, other_lens) = slice.lens.split_first()?;
            let (&all, other_dims) = x.dims.split_first()?;
            let whole_rows = other_lens == other_dims && other_starts.iter().all(|&s| s == 0);
            let part = rows < all && first.checked_add(rows)? <= all;
            let dense = slice.steps.iter().all(|&s| s == 1);
            (whole_rows && part && dense).then_some(())?;
            Some(Placement::ResultInOperand(Bytes(first.checked_mul(row_bytes(x)?)?)))
        }
        Op::Concat { axis: 0 } if inputs.len() > 1 => {
            let mut at = 0u64;
            let mut places = SmallVec::new();
            for x in inputs {
                places.push(Bytes(at));
                at = at.checked_add(x.dims.first()?.checked_mul(row_bytes(x)?)?)?;
            }
            Some(Placement::OperandsInResult(places))
        }
        _ => None,
    }
}

fn row_bytes(ty: &TensorType) -> Option<u64> {
    ty.dims.get(1..)?.iter().try_fold(ty.dtype.bytes(), |size, &d| size.checked_mul(d))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::SliceAttrs;
    use crate::types::Layout;
    use smallvec::smallvec;

    fn slice(starts: [u64; 2], steps: [i64; 2], lens: [u64; 2]) -> Op {
        Op::Slice(SliceAttrs {
            starts: starts.into_iter().collect(),
            steps: steps.into_iter().collect(),
            lens: lens.into_iter().collect(),
        })
    }

    #[test]
    fn rows_of_a_slice_start_at_their_first_byte() {
        let x = TensorType::f32([6, 5]);
        let at = |op: Op| placement(&op, &[&x]);
        assert_eq!(at(slice([2, 0], [1, 1], [3, 5])), Some(Placement::ResultInOperand(Bytes(40))));
        assert_eq!(at(slice([0, 0], [1, 1], [1, 5])), Some(Placement::ResultInOperand(Bytes(0))));
        for other in [
            slice([0, 0], [1, 1], [6, 5]),
            slice([0, 1], [1, 1], [3, 4]),
            slice([0, 0], [2, 1], [3, 5]),
            slice([5, 0], [-1, 1], [3, 5]),
            slice([4, 0], [1, 1], [3, 5]),
        ] {
            assert_eq!(at(other.clone()), None, "{other}");
        }
        assert_eq!(placement(&slice([0, 0], [1, 1], [1, 5]), &[]), None);
    }

    #[test]
    fn operands_of_a_concat_of_rows_follow_one_another() {
        let [a, b] = [2, 3].map(|n| TensorType::f32([n, 4, 2, 2]).in_layout(Layout::ChannelsLast));
        let expected = Placement::OperandsInResult(smallvec![Bytes(0), Bytes(128), Bytes(320)]);
        assert_eq!(placement(&Op::Concat { axis: 0 }, &[&a, &b, &a]), Some(expected));
        assert_eq!(placement(&Op::Concat { axis: 1 }, &[&a, &a]), None);
        assert_eq!(placement(&Op::Concat { axis: 0 }, &[&a]), None);
    }
}
