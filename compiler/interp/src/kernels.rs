//! One plain function per op. Sums run in f64 in the order of the loops and are rounded
//! once. Nothing here is shared with the fast kernels.

mod conv;
pub(crate) mod element;
mod elementwise;
mod loss;
mod matrix;
mod movement;
mod norm;
mod pool;
mod reduce;
mod walk;
mod window;

use element::{Element, in_graph};
use vdnn_ir::kernel::{KernelError, Kernels, Operand, TensorMut, TensorRef, through_plainer};
use vdnn_ir::op::Op;
use vdnn_ir::op::infer::infer;
use vdnn_ir::sparse::through_dense;
use vdnn_ir::{DType, Tensor, TensorType};

/// Kernels for every op, single-threaded, with scalar loops. An in-place input is copied first.
#[derive(Clone, Copy, Debug, Default)]
pub struct NaiveKernels;

impl Kernels for NaiveKernels {
    fn launch(
        &self,
        op: &Op,
        inputs: &[Operand<'_>],
        outputs: &mut [TensorMut<'_>],
    ) -> Result<(), KernelError> {
        launch::<f32>(self, op, inputs, outputs)
    }
}

/// The same kernels where every f32 of the graph is stored as an f64.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WideKernels;

impl Kernels for WideKernels {
    fn launch(
        &self,
        op: &Op,
        inputs: &[Operand<'_>],
        outputs: &mut [TensorMut<'_>],
    ) -> Result<(), KernelError> {
        launch::<f64>(self, op, inputs, outputs)
    }
}

/// One launch of `kernels`, whose floats in memory are `E`.
fn launch<E: Element>(
    kernels: &dyn Kernels,
    op: &Op,
    inputs: &[Operand<'_>],
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    if let Some(done) = through_plainer(kernels, op, inputs, outputs) {
        return done;
    }
    let copies = inputs
        .iter()
        .map(|operand| match operand {
            Operand::Ref(_) => Ok(None),
            Operand::InPlace(n) => outputs
                .get(*n)
                .and_then(|y| Tensor::from_bytes(y.ty.clone(), y.bytes))
                .map(Some)
                .ok_or_else(|| KernelError::BadData(format!("{op}: no output {n} to read in place"))),
        })
        .collect::<Result<Vec<Option<Tensor>>, _>>()?;
    let inputs: Vec<TensorRef<'_>> = inputs
        .iter()
        .zip(&copies)
        .filter_map(|(operand, copy)| match operand {
            Operand::Ref(x) => Some(*x),
            Operand::InPlace(_) => copy.as_ref().map(Tensor::view),
        })
        .collect();
    check::<E>(op, &inputs, outputs)?;
    if let Some(done) = through_dense(kernels, op, &inputs, outputs) {
        return done;
    }
    dispatch::<E>(op, &inputs, outputs)
}

/// The loops below index freely, so types and sizes are checked once, here.
fn check<E: Element>(
    op: &Op,
    inputs: &[TensorRef<'_>],
    outputs: &[TensorMut<'_>],
) -> Result<(), KernelError> {
    let types: Vec<TensorType> = inputs.iter().map(|x| in_graph::<E>(x.ty)).collect();
    let types: Vec<&TensorType> = types.iter().collect();
    let results = infer(op, &types, outputs.len()).map_err(|e| KernelError::BadData(e.0))?;
    if !results.iter().cloned().eq(outputs.iter().map(|y| in_graph::<E>(y.ty))) {
        return Err(KernelError::BadData(format!("{op}: outputs of other types than inferred")));
    }
    let whole = |ty: &TensorType, n: usize| ty.bytes().0 == n as u64;
    if !inputs.iter().all(|x| whole(x.ty, x.bytes.len()))
        || !outputs.iter().all(|y| whole(y.ty, y.bytes.len()))
    {
        return Err(KernelError::BadData(format!("{op}: a buffer of another size than its type")));
    }
    Ok(())
}

fn dispatch<E: Element>(op: &Op, x: &[TensorRef<'_>], y: &mut [TensorMut<'_>]) -> Result<(), KernelError> {
    match op {
        Op::Conv(attrs) => conv::forward::<E>(attrs, x, &mut y[0]),
        Op::ConvDgrad { conv, .. } => conv::dgrad::<E>(conv, x, &mut y[0]),
        Op::ConvWgrad { conv, .. } => conv::wgrad::<E>(conv, x, &mut y[0]),
        Op::MaxPool(pool) => pool::max::<E>(pool, x[0], y),
        Op::MaxPoolGrad { pool, .. } => pool::max_grad::<E>(pool, x, &mut y[0]),
        Op::AvgPool { pool, count_include_pad } => {
            pool::average::<E>(pool, *count_include_pad, x[0], &mut y[0])
        }
        Op::AvgPoolGrad { pool, count_include_pad, .. } => {
            pool::average_grad::<E>(pool, *count_include_pad, x[0], &mut y[0]);
        }
        Op::BatchNormInfer { eps, .. } => norm::infer::<E>(eps.0, x, &mut y[0]),
        Op::BatchNormTrain { eps, momentum } => norm::train::<E>(eps.0, momentum.0, x, y),
        Op::BatchNormGrad => norm::grad::<E>(x, y),
        Op::BatchNormInferGrad { eps } => norm::infer_grad::<E>(eps.0, x, y),
        Op::Lrn(lrn) => norm::lrn::<E>(lrn, x[0], &mut y[0]),
        Op::LrnGrad(lrn) => norm::lrn_grad::<E>(lrn, x, &mut y[0]),
        Op::Gemm { trans_a, trans_b, alpha, beta } => {
            matrix::gemm::<E>(*trans_a, *trans_b, alpha.0, beta.0, x, &mut y[0]);
        }
        Op::MatMul { trans_a, trans_b } => matrix::matmul::<E>(*trans_a, *trans_b, x, &mut y[0]),
        Op::Unary(kind) => return elementwise::unary(op, *kind, x[0], &mut y[0]),
        Op::UnaryGrad(kind) => elementwise::unary_grad::<E>(*kind, x, &mut y[0]),
        Op::Binary(kind) => return elementwise::binary(op, *kind, x, &mut y[0]),
        Op::Dropout { ratio, seed, first } => {
            elementwise::dropout::<E>(ratio.0, [*seed, *first], x, &mut y[0]);
        }
        Op::SgdUpdate => elementwise::sgd::<E>(x, y),
        Op::Fill { value, .. } => element::put::<E>(&mut y[0]).fill(E::round(f64::from(value.0))),
        Op::Reduce { kind, axes, .. } => return reduce::reduce(op, *kind, axes, x[0], &mut y[0]),
        Op::Softmax { axis } => reduce::softmax::<E>(*axis, x[0], &mut y[0], false),
        Op::LogSoftmax { axis } => reduce::softmax::<E>(*axis, x[0], &mut y[0], true),
        Op::SoftmaxGrad { axis } => reduce::softmax_grad::<E>(*axis, x, &mut y[0]),
        Op::LogSoftmaxGrad { axis } => reduce::log_softmax_grad::<E>(*axis, x, &mut y[0]),
        Op::SoftmaxCrossEntropy { reduction, ignore_index } => {
            return loss::forward::<E>(*reduction, *ignore_index, x, y);
        }
        Op::SoftmaxCrossEntropyGrad { reduction, ignore_index } => {
            return loss::grad::<E>(*reduction, *ignore_index, x, &mut y[0]);
        }
        Op::NegativeLogLikelihood { reduction, ignore_index } => {
            return loss::pick::<E>(*reduction, *ignore_index, x, &mut y[0]);
        }
        Op::NegativeLogLikelihoodGrad { reduction, ignore_index, .. } => {
            return loss::pick_grad::<E>(*reduction, *ignore_index, x, &mut y[0]);
        }
        Op::Concat { axis } => movement::concat(*axis as usize, x, &mut y[0]),
        Op::Split { axis, .. } => movement::split(*axis as usize, x[0], y),
        Op::Slice(slice) => movement::slice(slice, x[0], &mut y[0]),
        Op::SliceGrad { slice, .. } => movement::slice_grad(slice, x[0], &mut y[0]),
        Op::Pad { before, value, .. } => return movement::pad(op, before, value.0, x[0], &mut y[0]),
        Op::Transpose { perm } => movement::transpose(perm, x[0], &mut y[0]),
        Op::Expand { .. } => movement::expand(x[0], &mut y[0]),
        Op::Gather { axis } => return movement::gather(*axis as usize, x[0], x[1], &mut y[0]),
        Op::Reshape { .. }
        | Op::Relayout { .. }
        | Op::Cast { .. }
        | Op::OffloadStart
        | Op::OffloadDone
        | Op::PrefetchStart
        | Op::PrefetchDone => {
            y[0].bytes.copy_from_slice(x[0].bytes);
        }
        Op::BatchNormInferRelu { .. }
        | Op::BatchNormApplyRelu { .. }
        | Op::BatchNormTrainReluJoined { .. }
        | Op::BatchNormReluGradJoined { .. }
        | Op::BatchNormTrainRelu { .. }
        | Op::BatchNormReluGrad { .. }
        | Op::AddSlice(_)
        | Op::PackSparse { .. }
        | Op::SparseConv { .. }
        | Op::ConvEpilogue { .. }
        | Op::SparseInputConv { .. }
        | Op::Pyramid(_)
        | Op::Elementwise(_) => {
            return Err(KernelError::Unsupported { op: op.to_string(), why: "it runs as its parts".into() });
        }
    }
    Ok(())
}

fn unsupported(op: &Op, dtype: DType) -> KernelError {
    KernelError::Unsupported { op: op.to_string(), why: format!("elements of type {dtype}") }
}

/// The extents of a type as indices.
fn dims(ty: &TensorType) -> Vec<usize> {
    ty.dims.iter().map(|&d| d as usize).collect()
}

/// Splits extents into those before, at and after an axis, as products.
fn around(ty: &TensorType, axis: usize) -> [usize; 3] {
    let d = dims(ty);
    [d[..axis].iter().product(), d[axis], d[axis + 1..].iter().product()]
}
