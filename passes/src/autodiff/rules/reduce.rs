//! Gradients of reductions.

use super::super::fill;
use super::super::sweep::{Forward, Sweep};
use super::dy;
use crate::pass::PassError;
use vdnn_ir::op::{BinaryKind, ReduceKind, UnaryKind};
use vdnn_ir::types::Dims;
use vdnn_ir::{Op, Real, ValueId};

/// Sum and Mean read shapes only; Max reads x and y.
pub(super) fn reduce(
    s: &mut Sweep<'_>,
    at: &Forward,
    kind: ReduceKind,
    axes: &Dims,
) -> Result<(), PassError> {
    let dy = dy(s, at)?;
    let x = at.inputs[0];
    let x_dims = s.dims(x);
    let kept: Dims = (0u64..).zip(&x_dims).map(|(i, &d)| if axes.contains(&i) { 1 } else { d }).collect();
    let dy = s.reshape(at, dy, &kept, "grad")?;
    let dx = match kind {
        ReduceKind::Sum => expand(s, at, dy, &x_dims)?,
        ReduceKind::Mean => {
            let count: u64 = axes.iter().map(|&i| x_dims[i as usize]).product();
            let scale = Real(1.0 / count as f32);
            let op = Op::Unary(UnaryKind::Affine { scale, shift: Real(0.0) });
            let share = s.emit(at, op, &[dy], "grad")?;
            expand(s, at, share, &x_dims)?
        }
        ReduceKind::Max => max(s, at, dy, axes, &kept)?,
    };
    s.contribute(at, x, dx)
}

fn expand(s: &mut Sweep<'_>, at: &Forward, v: ValueId, dims: &Dims) -> Result<ValueId, PassError> {
    if s.dims(v) == *dims {
        return Ok(v);
    }
    s.emit(at, Op::Expand { dims: dims.clone() }, &[v], "grad")
}

/// Shares dy evenly among the elements that equal the maximum (as torch's `amax`).
fn max(s: &mut Sweep<'_>, at: &Forward, dy: ValueId, axes: &Dims, kept: &Dims) -> Result<ValueId, PassError> {
    let (x, y) = (at.inputs[0], at.outputs[0]);
    let y = s.reshape(at, y, kept, "maximum")?;
    let one: Dims = kept.iter().map(|_| 1).collect();
    let one = s.emit(at, fill(1.0, &one), &[], "one")?;
    // `below` is 1 where x is less than the maximum; the mask is its complement.
    let gap = s.emit(at, Op::Binary(BinaryKind::Sub), &[y, x], "gap")?;
    let below = s.emit(at, Op::Binary(BinaryKind::Gate), &[one, gap], "below")?;
    let complement = Op::Unary(UnaryKind::Affine { scale: Real(-1.0), shift: Real(1.0) });
    let mask = s.emit(at, complement, &[below], "mask")?;
    let sum = Op::Reduce { kind: ReduceKind::Sum, axes: axes.clone(), keepdims: true };
    let count = s.emit(at, sum, &[mask], "count")?;
    let share = s.emit(at, Op::Binary(BinaryKind::Div), &[dy, count], "share")?;
    s.emit(at, Op::Binary(BinaryKind::Mul), &[mask, share], "grad")
}
