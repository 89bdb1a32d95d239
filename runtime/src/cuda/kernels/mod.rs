//! Kernels of our own, compiled by NVRTC, for every op but convolutions and matrix products by
//! themselves; pyramids, which have some inside, are printed by `vdnn-pyramid`.
//!
//! Planning turns an op into launches of kernels ([`step::Step`]), pure data that tests can
//! look at without a device; binding compiles and loads what they need. Reductions are in f64,
//! in an order that depends on shapes and the number of multiprocessors alone: there are no
//! floating-point atomics. Operands of rank 4 may be row-major or channels-last; what matters
//! to most kernels is only whether channels are the fastest dimension.

mod batchnorm;
mod compile;
mod context;
mod convert;
mod loss;
mod lrn;
mod modules;
mod movement;
mod pack;
mod pieces;
mod planes;
mod pointwise;
mod pool;
mod program;
mod proof;
mod pyramid;
mod reduce;
mod shape;
mod softmax;
mod source;
mod sparse;
mod sparse_blocks;
mod sparse_conv;
mod sparse_gather;
mod sparse_input;
mod sparse_two_four;
mod step;
#[cfg(test)]
mod tests;
mod tiles;
mod update;

pub(crate) use modules::Modules;
pub(crate) use pack::copy_packed;
pub(crate) use proof::{count_different, delay_by, trap};

use super::error::CudaError;
use super::launch::{DeviceRange, LaunchSpec, Prepared};
use context::Cx;
use source::{Kernel, Source};
use step::{Args, ITEMS, Step, THREADS};
use vdnn_ir::Op;
use vdnn_ir::sparse::SparseForm;

/// Prepares a launch of any op but convolutions and matrix products.
///
/// # Errors
/// [`CudaError::Unsupported`] for an element type, rank or size that no kernel handles; also if
/// a kernel cannot be compiled or loaded.
pub(crate) fn prepare(spec: &LaunchSpec<'_>, modules: &mut Modules) -> Result<Box<dyn Prepared>, CudaError> {
    let steps = plan(spec, modules.processors())?;
    Ok(Box::new(modules.bind(steps)?))
}

/// Prepares what follows the products of a convolution, in place on its result: the bias, the
/// other summand and the ReLU that its operands and op ask for.
///
/// # Errors
/// As [`prepare`].
pub(crate) fn epilogue(spec: &LaunchSpec<'_>, modules: &mut Modules) -> Result<Box<dyn Prepared>, CudaError> {
    let mut cx = Cx::new(spec, modules.processors());
    batchnorm::epilogue(&mut cx, matches!(spec.op, Op::ConvEpilogue { relu: true, .. }))?;
    let steps = std::mem::take(&mut cx.steps);
    Ok(Box::new(modules.bind(steps)?))
}

/// A kernel of one thread that spins for `nanos` and touches no memory.
pub(crate) fn delay(nanos: u64, modules: &mut Modules) -> Result<Box<dyn Prepared>, CudaError> {
    let kernel = Kernel::fixed(Source::Update, "spin");
    let step = Step { kernel, grid: [1; 3], block: 1, shared: 0, args: Args::new().u64(nanos) };
    Ok(Box::new(modules.bind(vec![step])?))
}

/// Sets all whole 32-bit words of a range to `value`. The range begins at a multiple of 16.
pub(crate) fn poison(
    range: DeviceRange,
    value: u32,
    modules: &mut Modules,
) -> Result<Box<dyn Prepared>, CudaError> {
    let words = range.bytes.0 / 4;
    let blocks = (words / 4).div_ceil(u64::from(THREADS * ITEMS)).max(1);
    let blocks = u32::try_from(blocks).map_err(|_| CudaError::Unsupported {
        op: "poison".to_owned(),
        why: format!("a range of {}", range.bytes),
    })?;
    let args = Args::new().ptr(range.ptr).u32(value).u64(words);
    let step = Step::new(Kernel::fixed(Source::Update, "fill32"), blocks, args);
    Ok(Box::new(modules.bind(vec![step])?))
}

/// The kernel launches that compute an op on a device with this many multiprocessors.
fn plan(spec: &LaunchSpec<'_>, processors: u32) -> Result<Vec<Step>, CudaError> {
    let mut cx = Cx::new(spec, processors);
    let cx = &mut cx;
    // Vector accesses need it; plans give more.
    if let Some(odd) = spec.inputs.iter().chain(spec.outputs).find(|x| x.ptr % 16 != 0) {
        return Err(cx.unsupported(format!("an operand at {:#x}, which is no multiple of 16", odd.ptr)));
    }
    match spec.op {
        Op::MaxPool(pool) => pool::max(cx, pool),
        Op::MaxPoolGrad { pool, .. } => pool::max_grad(cx, pool),
        Op::AvgPool { pool, count_include_pad } => pool::average(cx, pool, *count_include_pad),
        Op::AvgPoolGrad { pool, count_include_pad, .. } => pool::average_grad(cx, pool, *count_include_pad),
        Op::BatchNormInfer { eps, .. } => batchnorm::infer(cx, eps.0, false),
        Op::BatchNormInferRelu { eps } if spec.inputs.len() > 5 => pieces::batch_norm_relu(cx, Some(eps.0)),
        Op::BatchNormInferRelu { eps } => batchnorm::infer(cx, eps.0, true),
        Op::BatchNormApplyRelu { .. } if spec.inputs.len() > 5 => pieces::batch_norm_relu(cx, None),
        Op::BatchNormApplyRelu { .. } => batchnorm::apply_relu(cx),
        Op::Pyramid(attrs) => pyramid::pyramid(cx, attrs),
        Op::BatchNormTrain { eps, momentum } => batchnorm::train(cx, eps.0, momentum.0, false),
        Op::BatchNormTrainRelu { eps, momentum } => batchnorm::train(cx, eps.0, momentum.0, true),
        Op::BatchNormTrainReluJoined { eps, momentum, known } => {
            batchnorm::train_joined(cx, eps.0, momentum.0, *known)
        }
        Op::BatchNormReluGradJoined { added, .. } => batchnorm::relu_grad_joined(cx, *added),
        Op::BatchNormGrad => batchnorm::grad(cx, None),
        Op::BatchNormReluGrad { .. } => batchnorm::relu_grad(cx),
        Op::BatchNormInferGrad { eps } => batchnorm::grad(cx, Some(eps.0)),
        Op::Lrn(attrs) => lrn::forward(cx, attrs),
        Op::LrnGrad(attrs) => lrn::grad(cx, attrs),
        Op::Unary(kind) => pointwise::unary(cx, *kind),
        Op::UnaryGrad(kind) => pointwise::unary_grad(cx, *kind),
        Op::Binary(kind) => pointwise::binary(cx, *kind),
        Op::Elementwise(attrs) => program::program(cx, attrs),
        Op::Reduce { kind, axes, keepdims } => reduce::reduce(cx, *kind, axes, *keepdims),
        Op::Softmax { axis } => softmax::softmax(cx, *axis, false),
        Op::LogSoftmax { axis } => softmax::softmax(cx, *axis, true),
        Op::SoftmaxGrad { axis } => softmax::softmax_grad(cx, *axis, false),
        Op::LogSoftmaxGrad { axis } => softmax::softmax_grad(cx, *axis, true),
        Op::SoftmaxCrossEntropy { reduction, ignore_index } => {
            loss::cross_entropy(cx, *reduction, *ignore_index)
        }
        Op::SoftmaxCrossEntropyGrad { reduction, ignore_index } => {
            loss::cross_entropy_grad(cx, *reduction, *ignore_index)
        }
        Op::NegativeLogLikelihood { reduction, ignore_index } => {
            loss::negative_log_likelihood(cx, *reduction, *ignore_index)
        }
        Op::NegativeLogLikelihoodGrad { reduction, ignore_index, .. } => {
            loss::negative_log_likelihood_grad(cx, *reduction, *ignore_index)
        }
        Op::Concat { axis } => pieces::concat(cx, *axis),
        Op::Split { axis, .. } => movement::split(cx, *axis),
        Op::Slice(slice) => movement::slice(cx, slice),
        Op::AddSlice(slice) => movement::add_slice(cx, slice),
        Op::SliceGrad { slice, .. } => movement::slice_grad(cx, slice),
        Op::Pad { before, value, .. } => movement::pad(cx, before, value.0),
        Op::Transpose { perm } => movement::permute(cx, perm),
        Op::Expand { .. } => movement::expand(cx),
        Op::Relayout { .. } => movement::relayout(cx),
        Op::Dropout { ratio, seed, first } => convert::dropout(cx, ratio.0, *seed, *first),
        Op::Cast { .. } => convert::cast(cx),
        Op::SgdUpdate => update::sgd(cx),
        Op::Fill { value, .. } => update::fill(cx, value.0),
        Op::Reshape { .. } => update::copy(cx),
        Op::SparseConv { conv, w_dims, form: SparseForm::Csr, relu } => sparse::conv(cx, conv, w_dims, *relu),
        Op::SparseConv { conv, w_dims, form: SparseForm::TwoFourBf16, relu } => {
            sparse_two_four::conv(cx, conv, w_dims, *relu)
        }
        Op::SparseConv { conv, w_dims, form, relu } => sparse_blocks::conv(cx, conv, w_dims, (*form, *relu)),
        Op::SparseInputConv { conv, relu } => sparse_input::conv(cx, conv, *relu),
        Op::Gather { .. } | Op::PackSparse { .. } => {
            Err(cx.unsupported("it runs on the CPU only; compile with --sparse off"))
        }
        Op::Conv(_)
        | Op::ConvEpilogue { .. }
        | Op::ConvDgrad { .. }
        | Op::ConvWgrad { .. }
        | Op::Gemm { .. }
        | Op::MatMul { .. }
        | Op::OffloadStart
        | Op::OffloadDone
        | Op::PrefetchStart
        | Op::PrefetchDone => Err(cx.unsupported("it runs on a library or a copy engine")),
    }?;
    Ok(std::mem::take(&mut cx.steps))
}
