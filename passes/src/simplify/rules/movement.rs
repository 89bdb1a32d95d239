//! Rules of ops that only move elements.

use super::{Rhs, View, none, same_if};
use egg::Id;
use smallvec::{SmallVec, smallvec};
use vdnn_ir::Op;
use vdnn_ir::types::Dims;

type Found = SmallVec<[Rhs; 1]>;

/// `reshape(reshape(x)) = reshape(x)`.
pub fn reshape_of_reshape(v: &View<'_>, op: &Op, x: &[Id]) -> Found {
    let Op::Reshape { dims } = op else { return none() };
    let inner = v.ops(x[0]).filter(|(op, _)| matches!(op, Op::Reshape { .. }));
    inner.map(|(_, y)| Rhs::Node(Op::Reshape { dims: dims.clone() }, smallvec![y[0]])).collect()
}

/// `reshape(x) = x` if x has that shape.
pub fn reshape_to_same_shape(v: &View<'_>, op: &Op, x: &[Id]) -> Found {
    let Op::Reshape { dims } = op else { return none() };
    same_if(v.dims(x[0]) == dims.as_slice(), x[0])
}

/// `transpose(transpose(x))` is one transpose.
pub fn transpose_of_transpose(v: &View<'_>, op: &Op, x: &[Id]) -> Found {
    let Op::Transpose { perm: outer } = op else { return none() };
    let composed = |(op, y): (&Op, &[Id])| match op {
        Op::Transpose { perm: inner } => {
            let perm = outer.iter().map(|&i| inner[i as usize]).collect();
            Some(Rhs::Node(Op::Transpose { perm }, smallvec![y[0]]))
        }
        _ => None,
    };
    v.ops(x[0]).filter_map(composed).collect()
}

/// The identity permutation moves nothing.
pub fn transpose_of_nothing(_: &View<'_>, op: &Op, x: &[Id]) -> Found {
    let Op::Transpose { perm } = op else { return none() };
    same_if(perm.iter().copied().eq(0..perm.len() as u64), x[0])
}

/// A transpose that keeps the order of all axes of extent other than 1 moves nothing: a view.
pub fn transpose_to_reshape(v: &View<'_>, op: &Op, x: &[Id]) -> Found {
    let Op::Transpose { perm } = op else { return none() };
    let dims = v.dims(x[0]);
    let moved: SmallVec<[u64; 4]> = perm.iter().copied().filter(|&i| dims[i as usize] != 1).collect();
    if moved.windows(2).any(|w| w[0] > w[1]) || perm.iter().copied().eq(0..perm.len() as u64) {
        return none();
    }
    let dims: Dims = perm.iter().map(|&i| dims[i as usize]).collect();
    smallvec![Rhs::Node(Op::Reshape { dims }, smallvec![x[0]])]
}

/// `expand(expand(x)) = expand(x)`.
pub fn expand_of_expand(v: &View<'_>, op: &Op, x: &[Id]) -> Found {
    let Op::Expand { dims } = op else { return none() };
    let inner = v.ops(x[0]).filter(|(op, _)| matches!(op, Op::Expand { .. }));
    inner.map(|(_, y)| Rhs::Node(Op::Expand { dims: dims.clone() }, smallvec![y[0]])).collect()
}

/// `expand(x) = x` if x has that shape.
pub fn expand_to_same_shape(v: &View<'_>, op: &Op, x: &[Id]) -> Found {
    let Op::Expand { dims } = op else { return none() };
    same_if(v.dims(x[0]) == dims.as_slice(), x[0])
}

/// Padding by nothing.
pub fn pad_of_nothing(_: &View<'_>, op: &Op, x: &[Id]) -> Found {
    let Op::Pad { before, after, .. } = op else { return none() };
    same_if(before.iter().chain(after).all(|&n| n == 0), x[0])
}

/// A slice that takes every element in order.
pub fn slice_of_everything(v: &View<'_>, op: &Op, x: &[Id]) -> Found {
    let Op::Slice(s) = op else { return none() };
    // An extent of one is taken whole by any step.
    let in_order = s.steps.iter().zip(&s.lens).all(|(&step, &len)| step == 1 || len <= 1);
    same_if(s.lens.as_slice() == v.dims(x[0]) && in_order, x[0])
}

/// The concatenation of one tensor.
pub fn concat_of_one(_: &View<'_>, op: &Op, x: &[Id]) -> Found {
    let Op::Concat { .. } = op else { return none() };
    same_if(x.len() == 1, x[0])
}

/// A split into one part.
pub fn split_of_one(_: &View<'_>, op: &Op, x: &[Id]) -> Found {
    let Op::Split { sizes, .. } = op else { return none() };
    same_if(sizes.len() == 1, x[0])
}
