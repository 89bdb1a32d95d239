//! Gradients of matrix products.

use super::super::sweep::{Forward, Sweep};
use super::dy;
use crate::pass::PassError;
use vdnn_ir::op::UnaryKind;
use vdnn_ir::types::Dims;
use vdnn_ir::{Op, Real, ValueId};

/// The attributes of [`Op::Gemm`].
#[derive(Clone, Copy, Debug)]
pub(super) struct GemmAttrs {
    pub ta: bool,
    pub tb: bool,
    pub alpha: Real,
    pub beta: Real,
}

/// Reads a (for db) and b (for da). With `y = alpha A B + beta c`, where A and B are a and b
/// after their transposition: `dA = alpha dy B'` and `dB = alpha A' dy`, computed directly in
/// a's and b's own layout.
pub(super) fn gemm(s: &mut Sweep<'_>, at: &Forward, attrs: GemmAttrs) -> Result<(), PassError> {
    let dy = dy(s, at)?;
    let GemmAttrs { ta, tb, alpha, beta } = attrs;
    let (a, b) = (at.inputs[0], at.inputs[1]);
    if let Some(&c) = at.inputs.get(2).filter(|&&c| s.needs(c)) {
        let dims = s.dims(c);
        let mut dc = s.unbroadcast(at, dy, &dims, "bias_grad")?;
        if beta != Real(1.0) {
            let scaled = Op::Unary(UnaryKind::Affine { scale: beta, shift: Real(0.0) });
            dc = s.emit(at, scaled, &[dc], "bias_grad")?;
        }
        s.contribute(at, c, dc)?;
    }
    let product = |trans_a, trans_b| Op::Gemm { trans_a, trans_b, alpha, beta: Real(1.0) };
    if s.needs(b) {
        let db = if tb {
            s.emit(at, product(true, ta), &[dy, a], "wgrad")?
        } else {
            s.emit(at, product(!ta, false), &[a, dy], "wgrad")?
        };
        s.contribute(at, b, db)?;
    }
    if s.needs(a) {
        let da = if ta {
            s.emit(at, product(tb, true), &[b, dy], "dgrad")?
        } else {
            s.emit(at, product(false, !tb), &[dy, b], "dgrad")?
        };
        s.contribute(at, a, da)?;
    }
    Ok(())
}

/// Reads a (for db) and b (for da); broadcast batch dimensions are summed.
pub(super) fn matmul(s: &mut Sweep<'_>, at: &Forward, ta: bool, tb: bool) -> Result<(), PassError> {
    let dy = dy(s, at)?;
    let (a, b) = (at.inputs[0], at.inputs[1]);
    let product = |trans_a, trans_b| Op::MatMul { trans_a, trans_b };
    if s.needs(b) {
        let dims = s.dims(b);
        let db = match folded(s, at, a, dy, ta, dims.len())? {
            // One long product sums over the batch inside the kernel.
            Some((rows, dy_rows)) if tb => s.emit(at, product(true, false), &[dy_rows, rows], "wgrad")?,
            Some((rows, dy_rows)) => s.emit(at, product(true, false), &[rows, dy_rows], "wgrad")?,
            None if tb => s.emit(at, product(true, ta), &[dy, a], "wgrad")?,
            None => s.emit(at, product(!ta, false), &[a, dy], "wgrad")?,
        };
        let db = s.unbroadcast(at, db, &dims, "wgrad")?;
        s.contribute(at, b, db)?;
    }
    if s.needs(a) {
        let dims = s.dims(a);
        let da = if ta {
            s.emit(at, product(tb, true), &[b, dy], "dgrad")?
        } else {
            s.emit(at, product(false, !tb), &[dy, b], "dgrad")?
        };
        let da = s.unbroadcast(at, da, &dims, "dgrad")?;
        s.contribute(at, a, da)?;
    }
    Ok(())
}

/// `a` and `dy` with their batch dimensions folded into rows, when a batch of matrices meets
/// the single matrix b: without this, db would exist once per batch element before the sum.
fn folded(
    s: &mut Sweep<'_>,
    at: &Forward,
    a: ValueId,
    dy: ValueId,
    ta: bool,
    b_rank: usize,
) -> Result<Option<(ValueId, ValueId)>, PassError> {
    let (a_dims, dy_dims) = (s.dims(a), s.dims(dy));
    if ta || b_rank != 2 || a_dims.len() <= 2 {
        return Ok(None);
    }
    let rows: u64 = a_dims[..a_dims.len() - 1].iter().product();
    let flat = |dims: &Dims| -> Dims { [rows, dims[dims.len() - 1]].as_slice().into() };
    let a = s.reshape(at, a, &flat(&a_dims), "rows")?;
    let dy = s.reshape(at, dy, &flat(&dy_dims), "rows")?;
    Ok(Some((a, dy)))
}
