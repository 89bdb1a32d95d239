//! Gradients of convolution: dgrad, wgrad, bias gradient.

use super::super::sweep::{Forward, Sweep};
use super::dy;
use crate::pass::PassError;
use vdnn_ir::Op;
use vdnn_ir::op::{ConvAttrs, ReduceKind};

/// Reads x (for dw) and w (for dx). db sums dy over batch and space. The data gradient comes
/// first, so that it can hide the copy of an x that is on its way back; the scheduler swaps the
/// two where x is at hand.
pub(super) fn conv(s: &mut Sweep<'_>, at: &Forward, conv: &ConvAttrs) -> Result<(), PassError> {
    let dy = dy(s, at)?;
    let (x, w) = (at.inputs[0], at.inputs[1]);
    if let Some(&b) = at.inputs.get(2).filter(|&&b| s.needs(b)) {
        let rank = s.graph.ty(dy).rank() as u64;
        let axes = (0..rank).filter(|&i| i != 1).collect();
        let sum = Op::Reduce { kind: ReduceKind::Sum, axes, keepdims: false };
        let db = s.emit(at, sum, &[dy], "bias_grad")?;
        s.contribute(at, b, db)?;
    }
    if s.needs(x) {
        let op = Op::ConvDgrad { conv: conv.clone(), x_dims: s.dims(x) };
        let dx = s.emit(at, op, &[dy, w], "dgrad")?;
        s.contribute(at, x, dx)?;
    }
    if s.needs(w) {
        let op = Op::ConvWgrad { conv: conv.clone(), w_dims: s.dims(w) };
        let dw = s.emit(at, op, &[x, dy], "wgrad")?;
        s.contribute(at, w, dw)?;
    }
    Ok(())
}
