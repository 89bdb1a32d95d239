//! Shape and type rules: the types of an op's outputs from those of its inputs.
//!
//! All size arithmetic is checked: attributes and shapes come from files. A tensor may
//! have extents of zero, but no more than [`MAX_TENSOR`] bytes even if every zero extent
//! counted as one, so strides of legal tensors never overflow either.

mod grad;
mod layouts;
mod movement;
mod nn;
mod sparse;
#[cfg(test)]
mod tests;
mod window;

pub use movement::{broadcast_dims, reduce_dims};
pub use window::{conv_out_dims, pool_index_dtype, pool_out_dims};

use super::{Op, UnaryKind};
use crate::types::{DType, Dims, Layout, TensorType};
use crate::units::Bytes;
use smallvec::{SmallVec, smallvec};

/// The largest tensor the IR accepts.
pub const MAX_TENSOR: Bytes = Bytes(1 << 46);

/// The largest padding, stride or dilation the IR accepts.
pub const MAX_WINDOW: u64 = i32::MAX as u64;

/// Why an op cannot take these inputs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InferError(pub String);

type Types = SmallVec<[TensorType; 2]>;

/// The output types of `op` applied to inputs of the given types. `n_outputs` tells
/// whether the optional output of [`Op::MaxPool`] is wanted; every other op has a fixed
/// number of outputs, whatever `n_outputs` says, but for the fourth of
/// [`Op::BatchNormReluGrad`].
///
/// # Errors
/// If the arity, an element type, a shape or a layout is outside the op's contract, or a size
/// overflows.
pub fn infer(op: &Op, inputs: &[&TensorType], n_outputs: usize) -> Result<Types, InferError> {
    if inputs.iter().all(|t| t.layout == Layout::RowMajor) {
        let cx = Rule { op, inputs };
        let mut types = shapes(&cx, n_outputs)?;
        layouts::assign(&cx, &mut types)?;
        return Ok(types);
    }
    // The shape rules know logical extents only.
    let plain: SmallVec<[TensorType; 4]> = inputs.iter().map(|t| t.in_layout(Layout::RowMajor)).collect();
    let plain: SmallVec<[&TensorType; 4]> = plain.iter().collect();
    let mut types = shapes(&Rule { op, inputs: &plain }, n_outputs)?;
    layouts::assign(&Rule { op, inputs }, &mut types)?;
    Ok(types)
}

pub use layouts::takes_channels_last;

/// The output types but for their layouts.
fn shapes(cx: &Rule<'_>, n_outputs: usize) -> Result<Types, InferError> {
    let (op, inputs) = (cx.op, cx.inputs);
    match op {
        Op::Conv(conv) => nn::conv(cx, conv),
        Op::MaxPool(pool) => nn::max_pool(cx, pool, n_outputs),
        Op::AvgPool { pool, .. } => {
            cx.arity(1, 1)?;
            cx.one(inputs[0].dtype, window::pool_out(cx, pool, cx.real(0, "x")?)?)
        }
        Op::BatchNormInfer { .. } => nn::batch_norm_infer(cx),
        Op::BatchNormTrain { .. } => nn::batch_norm_train(cx),
        Op::BatchNormInferRelu { .. } | Op::BatchNormApplyRelu { .. } => nn::batch_norm_relu(cx, 4),
        Op::BatchNormTrainRelu { .. } => nn::batch_norm_train_relu(cx),
        Op::BatchNormTrainReluJoined { known, .. } => nn::batch_norm_train_relu_joined(cx, *known),
        Op::ConvEpilogue { conv, .. } => nn::conv_epilogue(cx, conv),
        Op::Pyramid(pyramid) => {
            let parts = pyramid.typed(inputs)?;
            parts.into_iter().next_back().map(|p| smallvec![p.result]).ok_or_else(|| cx.error("no layers"))
        }
        Op::Lrn(lrn) => {
            cx.arity(1, 1)?;
            nn::lrn(cx, lrn)
        }
        Op::Gemm { trans_a, trans_b, .. } => nn::gemm(cx, *trans_a, *trans_b),
        Op::MatMul { trans_a, trans_b } => nn::matmul(cx, *trans_a, *trans_b),
        Op::Unary(kind) => {
            cx.arity(1, 1)?;
            if !matches!(kind, UnaryKind::Neg | UnaryKind::Abs) {
                cx.real(0, "x")?;
            }
            cx.same(0)
        }
        Op::Binary(_) => {
            cx.arity(2, 2)?;
            cx.equal_dtypes(0, 1)?;
            let dims = broadcast_dims(cx.dims(0), cx.dims(1)).map_err(|e| cx.error(&e.0))?;
            cx.one(inputs[0].dtype, dims)
        }
        Op::Elementwise(program) => {
            let ty = program.typed(inputs)?;
            cx.one(ty.dtype, ty.dims)
        }
        Op::Reduce { axes, keepdims, .. } => {
            cx.arity(1, 1)?;
            let dims = reduce_dims(cx.dims(0), axes, *keepdims).map_err(|e| cx.error(&e.0))?;
            let dtype = inputs[0].dtype;
            cx.one(if dtype == DType::BF16 { DType::F32 } else { dtype }, dims)
        }
        Op::Softmax { axis } | Op::LogSoftmax { axis } => {
            cx.arity(1, 1)?;
            cx.f32(0, "x")?;
            cx.axis(*axis, 0)?;
            cx.same(0)
        }
        Op::Concat { axis } => movement::concat(cx, *axis),
        Op::Split { axis, sizes } => movement::split(cx, *axis, sizes),
        Op::Slice(slice) => {
            cx.arity(1, 1)?;
            movement::slice(cx, slice, cx.dims(0))?;
            cx.one(inputs[0].dtype, slice.lens.clone())
        }
        Op::AddSlice(slice) => {
            cx.arity(2, 2)?;
            cx.equal_dtypes(0, 1)?;
            movement::slice(cx, slice, cx.dims(1))?;
            cx.real_dims(0, "a", &slice.lens, 1)?;
            cx.same(0)
        }
        Op::Pad { before, after, .. } => movement::pad(cx, before, after),
        Op::Reshape { dims } => movement::reshape(cx, dims),
        Op::Transpose { perm } => movement::transpose(cx, perm),
        Op::Expand { dims } => movement::expand(cx, dims),
        Op::Dropout { ratio, .. } => nn::dropout(cx, ratio.0),
        Op::SoftmaxCrossEntropy { reduction, .. } => nn::cross_entropy(cx, *reduction),
        Op::NegativeLogLikelihood { reduction, .. } => nn::negative_log_likelihood(cx, *reduction),
        Op::Fill { dims, .. } => {
            cx.arity(0, 0)?;
            cx.one(DType::F32, dims.clone())
        }
        Op::Gather { axis } => movement::gather(cx, *axis),
        Op::PackSparse { nonzeros, form } => sparse::pack(cx, *nonzeros, *form),
        Op::SparseConv { conv, w_dims, form, relu } => sparse::conv(cx, conv, w_dims, (*form, *relu)),
        Op::SparseInputConv { conv, .. } => sparse::input_conv(cx, conv),
        Op::ConvDgrad { conv, x_dims } => grad::conv_dgrad(cx, conv, x_dims),
        Op::ConvWgrad { conv, w_dims } => grad::conv_wgrad(cx, conv, w_dims),
        Op::MaxPoolGrad { pool, x_dims } => grad::max_pool(cx, pool, x_dims),
        Op::AvgPoolGrad { pool, x_dims, .. } => grad::avg_pool(cx, pool, x_dims),
        Op::BatchNormGrad | Op::BatchNormInferGrad { .. } => grad::batch_norm(cx),
        Op::BatchNormReluGrad { .. } => grad::batch_norm_relu(cx, n_outputs),
        Op::BatchNormReluGradJoined { added, .. } => grad::batch_norm_relu_joined(cx, *added),
        Op::LrnGrad(lrn) => {
            cx.arity(3, 3)?;
            cx.equal(0, 1)?;
            cx.equal(0, 2)?;
            nn::lrn(cx, lrn)
        }
        Op::UnaryGrad(_) => {
            cx.arity(2, 2)?;
            cx.real(0, "dy")?;
            cx.equal(0, 1)?;
            cx.same(0)
        }
        Op::SoftmaxGrad { axis } | Op::LogSoftmaxGrad { axis } => {
            cx.arity(2, 2)?;
            cx.f32(0, "dy")?;
            cx.equal(0, 1)?;
            cx.axis(*axis, 0)?;
            cx.same(0)
        }
        Op::SliceGrad { slice, x_dims } => grad::slice(cx, slice, x_dims),
        Op::SoftmaxCrossEntropyGrad { reduction, .. } => grad::cross_entropy(cx, *reduction),
        Op::NegativeLogLikelihoodGrad { reduction, x_dims, .. } => {
            grad::negative_log_likelihood(cx, *reduction, x_dims)
        }
        Op::SgdUpdate => grad::sgd(cx),
        Op::Relayout { .. } => {
            cx.arity(1, 1)?;
            cx.same(0)
        }
        Op::Cast { to } => {
            cx.arity(1, 1)?;
            cx.real(0, "x")?;
            if !matches!(to, DType::F32 | DType::BF16) {
                return cx.fail("f32 or bf16 to cast to", to);
            }
            cx.one(*to, inputs[0].dims.clone())
        }
        Op::OffloadStart | Op::PrefetchStart => {
            cx.arity(1, 1)?;
            cx.same(0)
        }
        Op::OffloadDone | Op::PrefetchDone => {
            cx.arity(2, 2)?;
            cx.equal(0, 1)?;
            cx.same(0)
        }
    }
}

/// Checks that a type is small enough for the IR.
///
/// # Errors
/// If it has more than [`MAX_TENSOR`] bytes, zero extents counted as one, or a layout its
/// rank does not have.
pub fn check_size(ty: &TensorType) -> Result<(), InferError> {
    if ty.layout == Layout::ChannelsLast && ty.rank() != 4 {
        return Err(InferError(format!("expected a channels-last tensor to have rank 4, found {ty}")));
    }
    let bytes = ty.dims.iter().try_fold(ty.dtype.bytes(), |n, &d| n.checked_mul(d.max(1)));
    match bytes {
        Some(b) if b <= MAX_TENSOR.0 => Ok(()),
        _ => Err(InferError(format!("expected a tensor of at most {MAX_TENSOR}, found {ty}"))),
    }
}

fn list(dims: &[u64]) -> String {
    let items: Vec<String> = dims.iter().map(u64::to_string).collect();
    format!("[{}]", items.join(","))
}

/// One application of an op: the checks the rules share.
struct Rule<'a> {
    op: &'a Op,
    inputs: &'a [&'a TensorType],
}

impl<'a> Rule<'a> {
    fn error(&self, text: &str) -> InferError {
        InferError(format!("{}: {text}", self.op.name()))
    }
    fn fail<T>(
        &self,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) -> Result<T, InferError> {
        Err(self.error(&format!("expected {expected}, found {found}")))
    }
    fn arity(&self, least: usize, most: usize) -> Result<(), InferError> {
        let n = self.inputs.len();
        if (least..=most).contains(&n) {
            Ok(())
        } else if least == most {
            self.fail(format_args!("{least} inputs"), n)
        } else if most == usize::MAX {
            self.fail(format_args!("at least {least} inputs"), n)
        } else {
            self.fail(format_args!("{least} to {most} inputs"), n)
        }
    }
    fn dims(&self, i: usize) -> &'a [u64] {
        &self.inputs[i].dims
    }
    /// The dims of input `i`, which must be f32.
    fn f32(&self, i: usize, what: &str) -> Result<&'a [u64], InferError> {
        let ty = self.inputs[i];
        if ty.dtype == DType::F32 { Ok(&ty.dims) } else { self.fail(format_args!("{what} of type f32"), ty) }
    }
    /// The dims of input `i`, which must be f32 or bf16.
    fn real(&self, i: usize, what: &str) -> Result<&'a [u64], InferError> {
        let ty = self.inputs[i];
        match ty.dtype {
            DType::F32 | DType::BF16 => Ok(&ty.dims),
            _ => self.fail(format_args!("{what} of type f32 or bf16"), ty),
        }
    }
    /// Input `i` must have exactly these dims, and the elements of input `like`, f32 or bf16.
    fn real_dims(&self, i: usize, what: &str, dims: &[u64], like: usize) -> Result<(), InferError> {
        self.real(i, what)?;
        let (ty, dtype) = (self.inputs[i], self.inputs[like].dtype);
        if ty.dtype == dtype && ty.dims.as_slice() == dims {
            Ok(())
        } else {
            self.fail(format_args!("{what} of type {dtype}{}", list(dims)), ty)
        }
    }
    /// Input `i` must be f32 of exactly these dims.
    fn f32_dims(&self, i: usize, what: &str, dims: &[u64]) -> Result<(), InferError> {
        let ty = self.inputs[i];
        if ty.dtype == DType::F32 && ty.dims.as_slice() == dims {
            Ok(())
        } else {
            self.fail(format_args!("{what} of type f32{}", list(dims)), ty)
        }
    }
    /// Labels may be i64 (as the frontends make them) or i32.
    fn labels(&self, i: usize, dims: &[u64]) -> Result<(), InferError> {
        let ty = self.inputs[i];
        if matches!(ty.dtype, DType::I64 | DType::I32) && ty.dims.as_slice() == dims {
            Ok(())
        } else {
            self.fail(format_args!("labels of type i64{}", list(dims)), ty)
        }
    }
    fn equal_dtypes(&self, a: usize, b: usize) -> Result<(), InferError> {
        let (x, y) = (self.inputs[a], self.inputs[b]);
        if x.dtype == y.dtype {
            Ok(())
        } else {
            self.fail(format_args!("input {b} of element type {}", x.dtype), y)
        }
    }
    fn equal(&self, a: usize, b: usize) -> Result<(), InferError> {
        let (x, y) = (self.inputs[a], self.inputs[b]);
        if x == y { Ok(()) } else { self.fail(format_args!("input {b} of type {x}"), y) }
    }
    fn axis(&self, axis: u64, i: usize) -> Result<usize, InferError> {
        let rank = self.inputs[i].rank();
        match usize::try_from(axis) {
            Ok(a) if a < rank => Ok(a),
            _ => self.fail(format_args!("an axis below the rank of {}", self.inputs[i]), axis),
        }
    }
    fn channels(&self, i: usize, what: &str) -> Result<u64, InferError> {
        match self.real(i, what)? {
            [_, c, ..] => Ok(*c),
            _ => self.fail(format_args!("{what} of shape [N,C,..]"), self.inputs[i]),
        }
    }
    fn ty(&self, dtype: DType, dims: Dims) -> Result<TensorType, InferError> {
        let ty = TensorType::new(dtype, dims);
        check_size(&ty).map_err(|e| self.error(&e.0))?;
        Ok(ty)
    }
    fn one(&self, dtype: DType, dims: Dims) -> Result<Types, InferError> {
        Ok(smallvec![self.ty(dtype, dims)?])
    }
    /// One output of the type of input `i`.
    fn same(&self, i: usize) -> Result<Types, InferError> {
        self.one(self.inputs[i].dtype, self.inputs[i].dims.clone())
    }
}
