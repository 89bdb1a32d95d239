//! Rules of the forward network ops.

use super::{InferError, Rule, Types, broadcast_dims, list, movement, window};
use crate::op::{ConvAttrs, LossReduction, LrnAttrs, MAX_JOINED, PoolAttrs};
use crate::types::{DType, Dims};
use smallvec::smallvec;

pub(super) fn conv(cx: &Rule<'_>, conv: &ConvAttrs) -> Result<Types, InferError> {
    cx.arity(2, 3)?;
    let out = window::conv_out(cx, conv, cx.real(0, "x")?, cx.real(1, "w")?)?;
    cx.equal_dtypes(0, 1)?;
    if cx.inputs.len() == 3 {
        cx.real_dims(2, "b", &out[1..2], 0)?;
    }
    cx.one(cx.inputs[0].dtype, out)
}

pub(super) fn max_pool(cx: &Rule<'_>, pool: &PoolAttrs, n_outputs: usize) -> Result<Types, InferError> {
    cx.arity(1, 1)?;
    let out = window::pool_out(cx, pool, cx.real(0, "x")?)?;
    let dtype = cx.inputs[0].dtype;
    match n_outputs {
        1 => cx.one(dtype, out),
        2 => {
            let index = window::pool_index_dtype(pool).map_err(|e| cx.error(&e.0))?;
            Ok(smallvec![cx.ty(dtype, out.clone())?, cx.ty(index, out)?])
        }
        n => cx.fail("1 or 2 outputs", n),
    }
}

pub(super) fn conv_epilogue(cx: &Rule<'_>, conv: &ConvAttrs) -> Result<Types, InferError> {
    cx.arity(3, 4)?;
    let out = window::conv_out(cx, conv, cx.real(0, "x")?, cx.real(1, "w")?)?;
    cx.equal_dtypes(0, 1)?;
    cx.real_dims(2, "b", &out[1..2], 0)?;
    if cx.inputs.len() == 4 {
        cx.real_dims(3, "r", &out, 0)?;
    }
    cx.one(cx.inputs[0].dtype, out)
}

fn statistics(cx: &Rule<'_>) -> Result<u64, InferError> {
    let c = cx.channels(0, "x")?;
    for (i, what) in [(1, "scale"), (2, "bias"), (3, "mean"), (4, "var")] {
        cx.f32_dims(i, what, &[c])?;
    }
    Ok(c)
}

pub(super) fn batch_norm_infer(cx: &Rule<'_>) -> Result<Types, InferError> {
    cx.arity(5, 5)?;
    statistics(cx)?;
    cx.same(0)
}

/// Of [`Op::BatchNormInferRelu`] and [`Op::BatchNormApplyRelu`].
///
/// [`Op::BatchNormInferRelu`]: crate::Op::BatchNormInferRelu
/// [`Op::BatchNormApplyRelu`]: crate::Op::BatchNormApplyRelu
pub(super) fn batch_norm_relu(cx: &Rule<'_>, first: usize) -> Result<Types, InferError> {
    cx.arity(first + 1, usize::MAX)?;
    cx.channels(first, "x")?;
    let y = movement::joined(cx, first, 1)?;
    for (i, what) in ["scale", "bias", "mean", "deviation"].into_iter().enumerate() {
        cx.f32_dims(i, what, &y[1..2])?;
    }
    cx.one(cx.inputs[first].dtype, y)
}

pub(super) fn batch_norm_train(cx: &Rule<'_>) -> Result<Types, InferError> {
    cx.arity(5, 5)?;
    batch_norm_results(cx)
}

pub(super) fn batch_norm_train_relu(cx: &Rule<'_>) -> Result<Types, InferError> {
    cx.arity(5, 6)?;
    if cx.inputs.len() == 6 {
        cx.equal(0, 5)?;
    }
    batch_norm_results(cx)
}

pub(super) fn batch_norm_train_relu_joined(cx: &Rule<'_>, known: bool) -> Result<Types, InferError> {
    let first = if known { 6 } else { 4 };
    cx.arity(first + 1, first + MAX_JOINED)?;
    let types = batch_norm_relu(cx, first)?;
    let c = types[0].dims[1];
    if known {
        // Statistics of whole tensors.
        let ends = cx.inputs[first..].iter().scan(0, |end, x| {
            *end += x.dims[1];
            Some(*end)
        });
        let given = cx.dims(4);
        if given.len() != 1 || !ends.into_iter().any(|end| end == given[0]) {
            return cx.fail("statistics of the channels of the first few x", cx.inputs[4]);
        }
        cx.f32_dims(4, "known_mean", given)?;
        cx.f32_dims(5, "known_invstd", given)?;
    }
    with_statistics(cx, types, c)
}

fn batch_norm_results(cx: &Rule<'_>) -> Result<Types, InferError> {
    let c = statistics(cx)?;
    let types = cx.same(0)?;
    with_statistics(cx, types, c)
}

fn with_statistics(cx: &Rule<'_>, mut types: Types, c: u64) -> Result<Types, InferError> {
    for _ in 0..4 {
        types.push(cx.ty(DType::F32, smallvec![c])?);
    }
    Ok(types)
}

/// LRN and, with operands already checked to be of one type, its gradient.
pub(super) fn lrn(cx: &Rule<'_>, lrn: &LrnAttrs) -> Result<Types, InferError> {
    cx.channels(0, "x")?;
    if lrn.size == 0 {
        return cx.fail("a window of at least one channel", 0);
    }
    cx.same(0)
}

fn matrix(dims: &[u64], transposed: bool) -> (u64, u64) {
    let (rows, columns) = (dims[dims.len() - 2], dims[dims.len() - 1]);
    if transposed { (columns, rows) } else { (rows, columns) }
}

pub(super) fn gemm(cx: &Rule<'_>, trans_a: bool, trans_b: bool) -> Result<Types, InferError> {
    cx.arity(2, 3)?;
    let (a, b) = (cx.real(0, "a")?, cx.real(1, "b")?);
    cx.equal_dtypes(0, 1)?;
    for (dims, ty) in [(a, cx.inputs[0]), (b, cx.inputs[1])] {
        if dims.len() != 2 {
            return cx.fail("matrices of rank 2", ty);
        }
    }
    let ((m, k), (kb, n)) = (matrix(a, trans_a), matrix(b, trans_b));
    if k != kb {
        return cx.fail(format_args!("b with {k} rows to multiply with a"), kb);
    }
    if cx.inputs.len() == 3 {
        let c = cx.f32(2, "c")?;
        if broadcast_dims(c, &[m, n]).ok().as_deref() != Some(&[m, n]) {
            return cx.fail(format_args!("c that broadcasts to [{m},{n}]"), cx.inputs[2]);
        }
    }
    cx.one(DType::F32, smallvec![m, n])
}

pub(super) fn matmul(cx: &Rule<'_>, trans_a: bool, trans_b: bool) -> Result<Types, InferError> {
    cx.arity(2, 2)?;
    let (a, b) = (cx.real(0, "a")?, cx.real(1, "b")?);
    cx.equal_dtypes(0, 1)?;
    for (dims, ty) in [(a, cx.inputs[0]), (b, cx.inputs[1])] {
        if dims.len() < 2 {
            return cx.fail("operands of rank 2 or more", ty);
        }
    }
    let ((m, k), (kb, n)) = (matrix(a, trans_a), matrix(b, trans_b));
    if k != kb {
        return cx.fail(format_args!("b with {k} rows to multiply with a"), kb);
    }
    let mut dims: Dims = broadcast_dims(&a[..a.len() - 2], &b[..b.len() - 2]).map_err(|e| cx.error(&e.0))?;
    dims.extend([m, n]);
    cx.one(DType::F32, dims)
}

pub(super) fn dropout(cx: &Rule<'_>, ratio: f32) -> Result<Types, InferError> {
    cx.arity(2, 2)?;
    cx.real(0, "x")?;
    let step = cx.inputs[1];
    if step.dtype != DType::I64 || step.rank() != 0 {
        return cx.fail("step of type i64[]", step);
    }
    if !(0.0..1.0).contains(&ratio) {
        return cx.fail("a ratio in [0, 1)", ratio);
    }
    cx.same(0)
}

/// Checks `labels` and the optional weight at inputs `i` and `i + 1` against logits dims;
/// returns the dims of the loss.
pub(super) fn loss_dims(
    cx: &Rule<'_>,
    logits: &[u64],
    i: usize,
    reduction: LossReduction,
) -> Result<Dims, InferError> {
    let [n, c, rest @ ..] = logits else {
        return cx.fail("logits of shape [N,C,..]", list(logits));
    };
    let mut labels: Dims = smallvec![*n];
    labels.extend_from_slice(rest);
    cx.labels(i, &labels)?;
    if cx.inputs.len() > i + 1 {
        cx.f32_dims(i + 1, "weight", &[*c])?;
    }
    Ok(if reduction == LossReduction::None { labels } else { Dims::new() })
}

pub(super) fn cross_entropy(cx: &Rule<'_>, reduction: LossReduction) -> Result<Types, InferError> {
    cx.arity(2, 3)?;
    let logits = cx.f32(0, "logits")?;
    let loss = loss_dims(cx, logits, 1, reduction)?;
    Ok(smallvec![cx.ty(DType::F32, loss)?, cx.ty(DType::F32, logits.into())?])
}

pub(super) fn negative_log_likelihood(cx: &Rule<'_>, reduction: LossReduction) -> Result<Types, InferError> {
    cx.arity(2, 3)?;
    let loss = loss_dims(cx, cx.f32(0, "log_prob")?, 1, reduction)?;
    cx.one(DType::F32, loss)
}
