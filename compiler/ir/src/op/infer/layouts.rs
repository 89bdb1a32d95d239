//! Layout rules: one layout for all operands of rank 4.

use super::{InferError, Rule, Types};
use crate::op::Op;
use crate::types::Layout;

/// True if the op may run on channels-last operands: every operand of rank 4 then is, and
/// so is every result of rank 4. Other ops want row-major operands.
pub fn takes_channels_last(op: &Op) -> bool {
    matches!(
        op,
        Op::Conv(_)
            | Op::MaxPool(_)
            | Op::AvgPool { .. }
            | Op::BatchNormInfer { .. }
            | Op::BatchNormTrain { .. }
            | Op::Lrn(_)
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Elementwise(_)
            | Op::Reduce { .. }
            | Op::Concat { .. }
            | Op::Split { .. }
            | Op::Slice(_)
            | Op::AddSlice(_)
            | Op::Pad { .. }
            | Op::Expand { .. }
            | Op::ConvDgrad { .. }
            | Op::ConvWgrad { .. }
            | Op::MaxPoolGrad { .. }
            | Op::AvgPoolGrad { .. }
            | Op::BatchNormGrad
            | Op::BatchNormInferRelu { .. }
            | Op::BatchNormApplyRelu { .. }
            | Op::BatchNormTrainReluJoined { .. }
            | Op::BatchNormReluGradJoined { .. }
            | Op::BatchNormTrainRelu { .. }
            | Op::BatchNormReluGrad { .. }
            | Op::ConvEpilogue { .. }
            | Op::SparseConv { .. }
            | Op::SparseInputConv { .. }
            | Op::Pyramid(_)
            | Op::BatchNormInferGrad { .. }
            | Op::LrnGrad(_)
            | Op::UnaryGrad(_)
            | Op::SliceGrad { .. }
            | Op::SgdUpdate
            | Op::Relayout { .. }
            | Op::Cast { .. }
            | Op::OffloadStart
            | Op::OffloadDone
            | Op::PrefetchStart
            | Op::PrefetchDone
    )
}

/// Gives the results their layouts.
pub(super) fn assign(cx: &Rule<'_>, types: &mut Types) -> Result<(), InferError> {
    if let Op::Relayout { to } = cx.op {
        if types[0].rank() != 4 {
            return cx.fail("a tensor of rank 4", cx.inputs[0]);
        }
        types[0].layout = *to;
        return Ok(());
    }
    if cx.inputs.iter().all(|t| t.layout == Layout::RowMajor) {
        return Ok(());
    }
    if !takes_channels_last(cx.op) {
        let which = cx.inputs.iter().find(|t| t.layout == Layout::ChannelsLast);
        return cx.fail("row-major operands", which.expect("one is channels-last"));
    }
    if let Some(odd) = cx.inputs.iter().find(|t| t.rank() == 4 && t.layout == Layout::RowMajor) {
        return cx.fail("operands of one layout", odd);
    }
    for ty in types.iter_mut().filter(|t| t.rank() == 4) {
        ty.layout = Layout::ChannelsLast;
    }
    Ok(())
}
