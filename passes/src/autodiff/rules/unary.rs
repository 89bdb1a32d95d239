//! Gradients of the one-operand elementwise ops.

use super::super::sweep::{Forward, Sweep};
use super::dy;
use crate::pass::PassError;
use vdnn_ir::op::{SavedOperand, UnaryKind};
use vdnn_ir::{Op, Real};

/// Reads x or y as [`UnaryKind::saves`] says; linear functions read neither.
pub(super) fn unary(s: &mut Sweep<'_>, at: &Forward, kind: UnaryKind) -> Result<(), PassError> {
    let dy = dy(s, at)?;
    let dx = match kind {
        UnaryKind::Neg => s.emit(at, Op::Unary(UnaryKind::Neg), &[dy], "grad")?,
        UnaryKind::Affine { scale, .. } => {
            let op = Op::Unary(UnaryKind::Affine { scale, shift: Real(0.0) });
            s.emit(at, op, &[dy], "grad")?
        }
        _ => {
            let saved = match kind.saves() {
                SavedOperand::X => at.inputs[0],
                SavedOperand::Y => s.saved_output(at)?,
            };
            s.emit(at, Op::UnaryGrad(kind), &[dy, saved], "grad")?
        }
    };
    s.contribute(at, at.inputs[0], dx)
}

/// Reads the step number: the mask is drawn again, not kept.
pub(super) fn dropout(s: &mut Sweep<'_>, at: &Forward, op: &Op) -> Result<(), PassError> {
    let dy = dy(s, at)?;
    let dx = s.emit(at, op.clone(), &[dy, at.inputs[1]], "grad")?;
    s.contribute(at, at.inputs[0], dx)
}
