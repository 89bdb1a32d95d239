//! Gradients of pooling.

use super::super::sweep::{Forward, Sweep};
use super::dy;
use crate::pass::PassError;
use vdnn_ir::Op;
use vdnn_ir::op::PoolAttrs;

/// Reads the indices of the maxima only: neither x nor y is kept.
pub(super) fn max_pool(s: &mut Sweep<'_>, at: &Forward, pool: &PoolAttrs) -> Result<(), PassError> {
    let dy = dy(s, at)?;
    let Some(&indices) = at.outputs.get(1) else {
        return Err(PassError::Unsupported(format!("max-pool `{}` was left without indices", at.name)));
    };
    let op = Op::MaxPoolGrad { pool: pool.clone(), x_dims: s.dims(at.inputs[0]) };
    let dx = s.emit(at, op, &[dy, indices], "grad")?;
    s.contribute(at, at.inputs[0], dx)
}

/// Reads shapes only.
pub(super) fn avg_pool(
    s: &mut Sweep<'_>,
    at: &Forward,
    pool: &PoolAttrs,
    count_include_pad: bool,
) -> Result<(), PassError> {
    let dy = dy(s, at)?;
    let op = Op::AvgPoolGrad { pool: pool.clone(), count_include_pad, x_dims: s.dims(at.inputs[0]) };
    let dx = s.emit(at, op, &[dy], "grad")?;
    s.contribute(at, at.inputs[0], dx)
}
