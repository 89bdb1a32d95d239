//! Fast f32 kernels for the host CPU.
//!
//! [`CpuKernels`] implements every computing [`Op`]. Work is cut into tasks whose borders
//! follow from the shapes alone, every output element is produced by exactly one task, and
//! each task adds in a fixed order. So the bits of a result depend on the inputs and the
//! instruction set, never on the number of threads, on addresses or on whether an operand
//! is in place.
//!
//! Convolutions and matrix products go through one GEMM; sums that feed
//! statistics, losses and bias gradients accumulate in f64.

mod args;
mod binary;
mod conv;
mod conv_grad;
mod dense;
mod depthwise;
mod elementwise;
mod gemm;
mod geometry;
mod im2col;
mod implicit;
mod layout;
mod loops;
mod loss;
mod lrn;
mod math;
mod norm;
mod par;
mod phase_grad;
mod phases;
mod pool;
mod program;
mod reduce;
mod scratch;
mod shape;
mod softmax;
mod sparse;
#[cfg(target_arch = "x86_64")]
mod sparse_rows;
mod sums;
mod team;
mod tile;
mod transpose;
mod update;
mod window;

#[cfg(test)]
mod tests;

use args::Call;
use par::Par;
use vdnn_ir::kernel::{KernelError, Kernels, Operand, TensorMut, through_plainer};
use vdnn_ir::op::Op;

/// The CPU kernel set, with its own thread pool.
///
/// Element types: arithmetic takes f32 (labels, steps and pool indices as the ops say);
/// ops that only move data take every type. Anything else is [`KernelError::Unsupported`].
#[derive(Debug)]
pub struct CpuKernels {
    par: Par,
}

impl CpuKernels {
    /// Kernels that run on `threads` threads (at least one). Should the system refuse to
    /// start them, the kernels run on the calling thread, with the same results.
    pub fn new(threads: usize) -> Self {
        Self { par: Par::new(threads) }
    }

    /// Number of threads the kernels use.
    pub fn threads(&self) -> usize {
        self.par.threads()
    }
}

impl Kernels for CpuKernels {
    fn launch(
        &self,
        op: &Op,
        inputs: &[Operand<'_>],
        outputs: &mut [TensorMut<'_>],
    ) -> Result<(), KernelError> {
        // Before it would run as its parts; operands of other types and layouts come back converted.
        if let Op::Elementwise(program) = op
            && program::takes(inputs, outputs)
        {
            return program::run(&Call::new(op, &self.par, inputs), program, outputs);
        }
        if let Some(done) = through_plainer(self, op, inputs, outputs) {
            return done;
        }
        let call = Call::new(op, &self.par, inputs);
        match op {
            Op::Conv(a) => conv::forward(&call, a, outputs),
            Op::ConvDgrad { conv, .. } => conv_grad::dgrad(&call, conv, outputs),
            Op::ConvWgrad { conv, .. } => conv_grad::wgrad(&call, conv, outputs),
            Op::MaxPool(a) => pool::max(&call, a, outputs),
            Op::MaxPoolGrad { pool, .. } => pool::max_grad(&call, pool, outputs),
            Op::AvgPool { pool, count_include_pad } => pool::avg(&call, pool, *count_include_pad, outputs),
            Op::AvgPoolGrad { pool, count_include_pad, .. } => {
                pool::avg_grad(&call, pool, *count_include_pad, outputs)
            }
            Op::BatchNormInfer { eps, .. } => norm::infer(&call, eps.0, outputs),
            Op::BatchNormTrain { eps, momentum } => norm::train(&call, eps.0, momentum.0, outputs),
            Op::BatchNormGrad => norm::train_grad(&call, outputs),
            Op::BatchNormInferGrad { eps } => norm::infer_grad(&call, eps.0, outputs),
            Op::Lrn(a) => lrn::forward(&call, a, outputs),
            Op::LrnGrad(a) => lrn::grad(&call, a, outputs),
            Op::Gemm { trans_a, trans_b, alpha, beta } => {
                gemm::gemm(&call, *trans_a, *trans_b, alpha.0, beta.0, outputs)
            }
            Op::MatMul { trans_a, trans_b } => gemm::matmul(&call, *trans_a, *trans_b, outputs),
            Op::Unary(kind) => elementwise::unary(&call, *kind, outputs),
            Op::UnaryGrad(kind) => elementwise::unary_grad(&call, *kind, outputs),
            Op::Dropout { ratio, seed, first } => {
                elementwise::dropout(&call, ratio.0, [*seed, *first], outputs)
            }
            Op::Binary(kind) => binary::binary(&call, *kind, outputs),
            Op::Reduce { kind, axes, .. } => reduce::reduce(&call, *kind, axes, outputs),
            Op::Softmax { axis } => softmax::softmax(&call, *axis as usize, false, outputs),
            Op::LogSoftmax { axis } => softmax::softmax(&call, *axis as usize, true, outputs),
            Op::SoftmaxGrad { axis } => softmax::grad(&call, *axis as usize, false, outputs),
            Op::LogSoftmaxGrad { axis } => softmax::grad(&call, *axis as usize, true, outputs),
            Op::SoftmaxCrossEntropy { reduction, ignore_index } => {
                loss::forward(&call, *reduction, *ignore_index, outputs)
            }
            Op::SoftmaxCrossEntropyGrad { reduction, ignore_index } => {
                loss::grad(&call, *reduction, *ignore_index, outputs)
            }
            Op::NegativeLogLikelihood { reduction, ignore_index } => {
                loss::pick(&call, *reduction, *ignore_index, outputs)
            }
            Op::NegativeLogLikelihoodGrad { reduction, ignore_index, .. } => {
                loss::pick_grad(&call, *reduction, *ignore_index, outputs)
            }
            Op::Concat { axis } => shape::concat(&call, *axis as usize, outputs),
            Op::Split { axis, sizes } => shape::split(&call, *axis as usize, sizes, outputs),
            Op::Slice(a) => shape::slice(&call, a, outputs),
            Op::SliceGrad { slice, .. } => shape::slice_grad(&call, slice, outputs),
            Op::Pad { before, value, .. } => shape::pad(&call, before, value.0, outputs),
            Op::Transpose { perm } => shape::transpose(&call, perm, outputs),
            Op::Expand { .. } => shape::expand(&call, outputs),
            Op::Gather { axis } => shape::gather(&call, *axis as usize, outputs),
            Op::PackSparse { form, .. } => sparse::pack(&call, *form, outputs),
            Op::SparseConv { conv, w_dims, form, relu } => {
                sparse::conv(&call, conv, w_dims, (*form, *relu), outputs)
            }
            Op::Fill { value, .. } => shape::fill(&call, value.0, outputs),
            Op::SgdUpdate => update::sgd(&call, outputs),
            Op::Reshape { .. }
            | Op::Relayout { .. }
            | Op::OffloadStart
            | Op::OffloadDone
            | Op::PrefetchStart
            | Op::PrefetchDone => shape::copy(&call, outputs),
            Op::BatchNormInferRelu { .. }
            | Op::BatchNormApplyRelu { .. }
            | Op::BatchNormTrainReluJoined { .. }
            | Op::BatchNormReluGradJoined { .. }
            | Op::BatchNormTrainRelu { .. }
            | Op::BatchNormReluGrad { .. }
            | Op::AddSlice(_)
            | Op::ConvEpilogue { .. }
            | Op::SparseInputConv { .. }
            | Op::Pyramid(_)
            | Op::Elementwise(_)
            | Op::Cast { .. } => {
                Err(KernelError::Unsupported { op: op.to_string(), why: "the interface runs it".into() })
            }
        }
    }
}
