//! Gradient of the loss.

use super::super::sweep::{Forward, Sweep};
use super::dy;
use crate::pass::PassError;
use vdnn_ir::Op;
use vdnn_ir::op::LossReduction;

/// Reads y.
pub(super) fn softmax(s: &mut Sweep<'_>, at: &Forward, axis: u64) -> Result<(), PassError> {
    let dy = dy(s, at)?;
    let dx = s.emit(at, Op::SoftmaxGrad { axis }, &[dy, at.outputs[0]], "grad")?;
    s.contribute(at, at.inputs[0], dx)
}

/// Reads y.
pub(super) fn log_softmax(s: &mut Sweep<'_>, at: &Forward, axis: u64) -> Result<(), PassError> {
    let dy = dy(s, at)?;
    let dx = s.emit(at, Op::LogSoftmaxGrad { axis }, &[dy, at.outputs[0]], "grad")?;
    s.contribute(at, at.inputs[0], dx)
}

/// Reads the log-probabilities and the labels. A gradient of the log-probabilities themselves
/// goes through LogSoftmax over the class axis.
pub(super) fn softmax_cross_entropy(
    s: &mut Sweep<'_>,
    at: &Forward,
    reduction: LossReduction,
    ignore_index: Option<i64>,
) -> Result<(), PassError> {
    let logits = at.inputs[0];
    let log_prob = at.outputs[1];
    if let Some(dloss) = s.grad(at.outputs[0]) {
        let mut operands = vec![dloss, log_prob, at.inputs[1]];
        operands.extend(at.inputs.get(2));
        let op = Op::SoftmaxCrossEntropyGrad { reduction, ignore_index };
        let dx = s.emit(at, op, &operands, "grad")?;
        s.contribute(at, logits, dx)?;
    }
    if let Some(dlog_prob) = s.grad(log_prob) {
        let dx = s.emit(at, Op::LogSoftmaxGrad { axis: 1 }, &[dlog_prob, log_prob], "grad")?;
        s.contribute(at, logits, dx)?;
    }
    Ok(())
}

/// Reads the labels.
pub(super) fn negative_log_likelihood(
    s: &mut Sweep<'_>,
    at: &Forward,
    reduction: LossReduction,
    ignore_index: Option<i64>,
) -> Result<(), PassError> {
    let dloss = dy(s, at)?;
    let mut operands = vec![dloss, at.inputs[1]];
    operands.extend(at.inputs.get(2));
    let x_dims = s.dims(at.inputs[0]);
    let op = Op::NegativeLogLikelihoodGrad { reduction, ignore_index, x_dims };
    let dx = s.emit(at, op, &operands, "grad")?;
    s.contribute(at, at.inputs[0], dx)
}
