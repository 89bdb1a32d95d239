//! Rules of windows and reductions.

use super::{Rhs, View, none, same_if};
use egg::Id;
use smallvec::{SmallVec, smallvec};
use vdnn_ir::Op;
use vdnn_ir::op::PoolAttrs;
use vdnn_ir::op::infer::MAX_WINDOW;
use vdnn_ir::types::Dims;

type Found = SmallVec<[Rhs; 1]>;

/// `conv(pad(x, 0)) = conv(x)` with that much more padding, if only spatial axes are padded
/// and none is cropped.
pub fn conv_of_pad(v: &View<'_>, op: &Op, x: &[Id]) -> Found {
    let Op::Conv(conv) = op else { return none() };
    let merged = |(op, y): (&Op, &[Id])| {
        let Op::Pad { before, after, value } = op else { return None };
        if value.0 != 0.0 || before[..2].iter().chain(&after[..2]).any(|&n| n != 0) {
            return None;
        }
        let sum = |padding: &Dims, more: &[i64]| -> Option<Dims> {
            let add =
                |(&p, &m): (&u64, &i64)| p.checked_add(u64::try_from(m).ok()?).filter(|&n| n <= MAX_WINDOW);
            padding.iter().zip(more).map(add).collect()
        };
        let mut conv = conv.clone();
        conv.before = sum(&conv.before, &before[2..])?;
        conv.after = sum(&conv.after, &after[2..])?;
        let mut operands: SmallVec<[Id; 4]> = x.into();
        operands[0] = y[0];
        Some(Rhs::Node(Op::Conv(conv), operands))
    };
    v.ops(x[0]).filter_map(merged).collect()
}

fn is_one(pool: &PoolAttrs) -> bool {
    let ones = pool.kernel.iter().chain(&pool.strides).all(|&n| n == 1);
    ones && pool.before.iter().chain(&pool.after).all(|&n| n == 0)
}

/// A pool over single positions.
pub fn pool_of_one(_: &View<'_>, op: &Op, x: &[Id]) -> Found {
    match op {
        Op::MaxPool(pool) | Op::AvgPool { pool, .. } => same_if(is_one(pool), x[0]),
        _ => none(),
    }
}

/// A sum, mean or maximum over axes of extent 1 is a view.
pub fn reduce_of_ones(v: &View<'_>, op: &Op, x: &[Id]) -> Found {
    let Op::Reduce { axes, keepdims, .. } = op else { return none() };
    let dims = v.dims(x[0]);
    if axes.iter().any(|&a| dims[a as usize] != 1) {
        return none();
    }
    let kept = |i: usize| *keepdims || !axes.contains(&(i as u64));
    let dims: Dims = dims.iter().enumerate().filter(|&(i, _)| kept(i)).map(|(_, &d)| d).collect();
    smallvec![Rhs::Node(Op::Reshape { dims }, smallvec![x[0]])]
}
