//! Gradients of the normalisations.

use super::super::sweep::{Forward, Sweep};
use super::dy;
use crate::pass::PassError;
use vdnn_ir::op::{BinaryKind, LrnAttrs, UnaryKind};
use vdnn_ir::{Op, Real};

/// Reads x, scale and the saved batch mean and inverse deviation (Ioffe and Szegedy 2015,
/// section 3; the saved pair is what cuDNN keeps).
pub(super) fn batch_norm_train(s: &mut Sweep<'_>, at: &Forward) -> Result<(), PassError> {
    let dy = dy(s, at)?;
    let (x, scale, bias) = (at.inputs[0], at.inputs[1], at.inputs[2]);
    let (batch_mean, batch_invstd) = (at.outputs[3], at.outputs[4]);
    let outs = s.emit_n(at, Op::BatchNormGrad, &[dy, x, scale, batch_mean, batch_invstd], "grad", 3)?;
    s.contribute(at, scale, outs[1])?;
    s.contribute(at, bias, outs[2])?;
    s.contribute(at, x, outs[0])
}

/// Reads x, scale and the running statistics, which are operands like any other here:
/// `dmean = -dbias * scale / std` and `dvar = -dscale * scale / (2 (var + eps))`, with `dbias`
/// the sum of dy and `dscale` the sum of dy times the normalised x.
pub(super) fn batch_norm_infer(s: &mut Sweep<'_>, at: &Forward, eps: Real) -> Result<(), PassError> {
    let dy = dy(s, at)?;
    let [x, scale, bias, mean, var] = at.inputs[..] else { unreachable!("inference checks the arity") };
    let op = Op::BatchNormInferGrad { eps };
    let outs = s.emit_n(at, op, &[dy, x, scale, mean, var], "grad", 3)?;
    let (dx, dscale, dbias) = (outs[0], outs[1], outs[2]);
    s.contribute(at, scale, dscale)?;
    s.contribute(at, bias, dbias)?;
    if s.needs(mean) || s.needs(var) {
        let affine = |scale, shift| Op::Unary(UnaryKind::Affine { scale: Real(scale), shift: Real(shift) });
        let var_eps = s.emit(at, affine(1.0, eps.0), &[var], "var_eps")?;
        if s.needs(mean) {
            let std = s.emit(at, Op::Unary(UnaryKind::Sqrt), &[var_eps], "std")?;
            let factor = s.emit(at, Op::Binary(BinaryKind::Div), &[scale, std], "factor")?;
            let product = s.emit(at, Op::Binary(BinaryKind::Mul), &[dbias, factor], "mean_grad")?;
            let dmean = s.emit(at, Op::Unary(UnaryKind::Neg), &[product], "mean_grad")?;
            s.contribute(at, mean, dmean)?;
        }
        if s.needs(var) {
            let factor = s.emit(at, Op::Binary(BinaryKind::Div), &[scale, var_eps], "factor")?;
            let product = s.emit(at, Op::Binary(BinaryKind::Mul), &[dscale, factor], "var_grad")?;
            let dvar = s.emit(at, affine(-0.5, 0.0), &[product], "var_grad")?;
            s.contribute(at, var, dvar)?;
        }
    }
    s.contribute(at, x, dx)
}

/// Reads x and y: the power in y is not recomputed.
pub(super) fn lrn(s: &mut Sweep<'_>, at: &Forward, attrs: &LrnAttrs) -> Result<(), PassError> {
    let dy = dy(s, at)?;
    let dx = s.emit(at, Op::LrnGrad(attrs.clone()), &[dy, at.inputs[0], at.outputs[0]], "grad")?;
    s.contribute(at, at.inputs[0], dx)
}
