//! Data movement: no rule here reads any forward value.

use super::super::sweep::{Forward, Sweep};
use super::dy;
use crate::pass::PassError;
use vdnn_ir::op::SliceAttrs;
use vdnn_ir::types::Dims;
use vdnn_ir::{Op, Real, ValueId};

/// Each input's gradient is its part of dy.
pub(super) fn concat(s: &mut Sweep<'_>, at: &Forward, axis: u64) -> Result<(), PassError> {
    let dy = dy(s, at)?;
    let mut offset = 0;
    for &x in &at.inputs {
        let lens = s.dims(x);
        let extent = lens[axis as usize];
        if s.needs(x) {
            let mut starts: Dims = lens.iter().map(|_| 0).collect();
            starts[axis as usize] = offset;
            let op = Op::Slice(SliceAttrs { starts, steps: lens.iter().map(|_| 1).collect(), lens });
            let dx = s.emit(at, op, &[dy], "grad")?;
            s.contribute(at, x, dx)?;
        }
        offset += extent;
    }
    Ok(())
}

/// The outputs' gradients side by side, zeros for those that no path reached. A single one is
/// scattered instead.
pub(super) fn split(s: &mut Sweep<'_>, at: &Forward, axis: u64) -> Result<(), PassError> {
    let x = at.inputs[0];
    let present: Vec<usize> = (0..at.outputs.len()).filter(|&i| s.grad(at.outputs[i]).is_some()).collect();
    let dx = match present[..] {
        [only] if at.outputs.len() > 1 => {
            let mut offset = 0;
            for &y in &at.outputs[..only] {
                offset += s.dims(y)[axis as usize];
            }
            let lens = s.dims(at.outputs[only]);
            let mut starts: Dims = lens.iter().map(|_| 0).collect();
            starts[axis as usize] = offset;
            let slice = SliceAttrs { starts, steps: lens.iter().map(|_| 1).collect(), lens };
            let d = s.grad_or_zeros(at, at.outputs[only])?;
            s.emit(at, Op::SliceGrad { slice, x_dims: s.dims(x) }, &[d], "grad")?
        }
        _ => {
            let parts: Vec<ValueId> =
                at.outputs.iter().map(|&y| s.grad_or_zeros(at, y)).collect::<Result<_, _>>()?;
            s.emit(at, Op::Concat { axis }, &parts, "grad")?
        }
    };
    s.contribute(at, x, dx)
}

/// dy scattered into zeros.
pub(super) fn slice(s: &mut Sweep<'_>, at: &Forward, slice: &SliceAttrs) -> Result<(), PassError> {
    let dy = dy(s, at)?;
    let op = Op::SliceGrad { slice: slice.clone(), x_dims: s.dims(at.inputs[0]) };
    let dx = s.emit(at, op, &[dy], "grad")?;
    s.contribute(at, at.inputs[0], dx)
}

/// Padding is undone by cropping, cropping by padding with zeros: the negated amounts.
pub(super) fn pad(s: &mut Sweep<'_>, at: &Forward, before: &[i64], after: &[i64]) -> Result<(), PassError> {
    let dy = dy(s, at)?;
    let negated = |amounts: &[i64]| amounts.iter().map(|&n| n.saturating_neg()).collect();
    let op = Op::Pad { before: negated(before), after: negated(after), value: Real(0.0) };
    let dx = s.emit(at, op, &[dy], "grad")?;
    s.contribute(at, at.inputs[0], dx)
}

/// The old shape.
pub(super) fn reshape(s: &mut Sweep<'_>, at: &Forward) -> Result<(), PassError> {
    let dy = dy(s, at)?;
    let dx = s.emit(at, Op::Reshape { dims: s.dims(at.inputs[0]) }, &[dy], "grad")?;
    s.contribute(at, at.inputs[0], dx)
}

/// The inverse permutation.
pub(super) fn transpose(s: &mut Sweep<'_>, at: &Forward, perm: &Dims) -> Result<(), PassError> {
    let dy = dy(s, at)?;
    let mut inverse: Dims = perm.iter().map(|_| 0).collect();
    for (i, &p) in (0u64..).zip(perm) {
        inverse[p as usize] = i;
    }
    let dx = s.emit(at, Op::Transpose { perm: inverse }, &[dy], "grad")?;
    s.contribute(at, at.inputs[0], dx)
}

/// The sum over the broadcast dimensions.
pub(super) fn expand(s: &mut Sweep<'_>, at: &Forward) -> Result<(), PassError> {
    let dy = dy(s, at)?;
    let dims = s.dims(at.inputs[0]);
    let dx = s.unbroadcast(at, dy, &dims, "grad")?;
    s.contribute(at, at.inputs[0], dx)
}
