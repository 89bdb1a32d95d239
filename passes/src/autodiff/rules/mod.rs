//! One gradient rule per op.
//!
//! A rule appends, for a forward node whose output gradients are known, the nodes that compute
//! the gradients of the inputs that need one, and contributes them. It must not read any
//! forward value it can do without; what each rule reads is stated on the rule. Except for
//! convolutions, parameter gradients come before the input gradient, so that the forward input
//! can die first.

mod binary;
mod conv;
mod loss;
mod matmul;
mod norm;
mod pool;
mod reduce;
mod shape;
mod unary;

use super::sweep::{Forward, Sweep};
use crate::pass::PassError;
use vdnn_ir::{Op, ValueId};

/// Differentiates one node, at least one of whose outputs has a gradient.
pub(super) fn apply(s: &mut Sweep<'_>, op: &Op, at: &Forward) -> Result<(), PassError> {
    match op {
        Op::Conv(attrs) => conv::conv(s, at, attrs),
        Op::MaxPool(pool) => pool::max_pool(s, at, pool),
        Op::AvgPool { pool, count_include_pad } => pool::avg_pool(s, at, pool, *count_include_pad),
        Op::BatchNormInfer { eps, .. } => norm::batch_norm_infer(s, at, *eps),
        Op::BatchNormTrain { .. } => norm::batch_norm_train(s, at),
        Op::Lrn(attrs) => norm::lrn(s, at, attrs),
        Op::Gemm { trans_a, trans_b, alpha, beta } => {
            matmul::gemm(s, at, matmul::GemmAttrs { ta: *trans_a, tb: *trans_b, alpha: *alpha, beta: *beta })
        }
        Op::MatMul { trans_a, trans_b } => matmul::matmul(s, at, *trans_a, *trans_b),
        Op::Unary(kind) => unary::unary(s, at, *kind),
        Op::Binary(kind) => binary::binary(s, at, *kind),
        Op::Reduce { kind, axes, .. } => reduce::reduce(s, at, *kind, axes),
        Op::Softmax { axis } => loss::softmax(s, at, *axis),
        Op::LogSoftmax { axis } => loss::log_softmax(s, at, *axis),
        Op::SoftmaxCrossEntropy { reduction, ignore_index } => {
            loss::softmax_cross_entropy(s, at, *reduction, *ignore_index)
        }
        Op::NegativeLogLikelihood { reduction, ignore_index } => {
            loss::negative_log_likelihood(s, at, *reduction, *ignore_index)
        }
        Op::Concat { axis } => shape::concat(s, at, *axis),
        Op::Split { axis, .. } => shape::split(s, at, *axis),
        Op::Slice(attrs) => shape::slice(s, at, attrs),
        Op::Pad { before, after, .. } => shape::pad(s, at, before, after),
        Op::Reshape { .. } => shape::reshape(s, at),
        Op::Transpose { perm } => shape::transpose(s, at, perm),
        Op::Expand { .. } => shape::expand(s, at),
        Op::Dropout { .. } => unary::dropout(s, at, op),
        Op::Fill { .. } => Ok(()),
        Op::ConvDgrad { .. }
        | Op::ConvWgrad { .. }
        | Op::MaxPoolGrad { .. }
        | Op::AvgPoolGrad { .. }
        | Op::BatchNormGrad
        | Op::BatchNormInferRelu { .. }
        | Op::BatchNormApplyRelu { .. }
        | Op::BatchNormTrainReluJoined { .. }
        | Op::BatchNormReluGradJoined { .. }
        | Op::AddSlice(_)
        | Op::BatchNormTrainRelu { .. }
        | Op::BatchNormReluGrad { .. }
        | Op::ConvEpilogue { .. }
        | Op::Pyramid(_)
        | Op::Elementwise(_)
        | Op::BatchNormInferGrad { .. }
        | Op::LrnGrad(_)
        | Op::UnaryGrad(_)
        | Op::SoftmaxGrad { .. }
        | Op::LogSoftmaxGrad { .. }
        | Op::SliceGrad { .. }
        | Op::SoftmaxCrossEntropyGrad { .. }
        | Op::NegativeLogLikelihoodGrad { .. }
        | Op::SgdUpdate
        | Op::Relayout { .. }
        | Op::Cast { .. }
        | Op::Gather { .. }
        | Op::PackSparse { .. }
        | Op::SparseConv { .. }
        | Op::SparseInputConv { .. }
        | Op::OffloadStart
        | Op::OffloadDone
        | Op::PrefetchStart
        | Op::PrefetchDone => Err(PassError::Unsupported(format!(
            "node `{}` ({}) has no gradient: only forward ops are differentiable",
            at.name,
            op.name()
        ))),
    }
}

/// The gradient of the node's first output; an error names a by-product that has one instead.
fn dy(s: &Sweep<'_>, at: &Forward) -> Result<ValueId, PassError> {
    if let Some(i) = (1..at.outputs.len()).find(|&i| s.grad(at.outputs[i]).is_some()) {
        return Err(PassError::Unsupported(format!(
            "the gradient of output {i} of `{}` is not supported: train on its first output",
            at.name
        )));
    }
    s.grad(at.outputs[0]).ok_or_else(|| {
        PassError::Unsupported(format!("no gradient reaches the first output of `{}`", at.name))
    })
}
