//! Rules of gradient and update ops.

use super::{InferError, Rule, Types, movement, nn, window};
use crate::op::{ConvAttrs, LossReduction, MAX_JOINED, MAX_UPDATES, PoolAttrs, SliceAttrs};
use crate::types::{DType, Dims};
use smallvec::smallvec;

pub(super) fn conv_dgrad(cx: &Rule<'_>, conv: &ConvAttrs, x_dims: &Dims) -> Result<Types, InferError> {
    cx.arity(2, 2)?;
    let out = window::conv_out(cx, conv, x_dims, cx.real(1, "w")?)?;
    cx.real_dims(0, "dy", &out, 1)?;
    cx.one(cx.inputs[0].dtype, x_dims.clone())
}

pub(super) fn conv_wgrad(cx: &Rule<'_>, conv: &ConvAttrs, w_dims: &Dims) -> Result<Types, InferError> {
    cx.arity(2, 2)?;
    let out = window::conv_out(cx, conv, cx.real(0, "x")?, w_dims)?;
    cx.real_dims(1, "dy", &out, 0)?;
    cx.one(cx.inputs[0].dtype, w_dims.clone())
}

pub(super) fn max_pool(cx: &Rule<'_>, pool: &PoolAttrs, x_dims: &Dims) -> Result<Types, InferError> {
    cx.arity(2, 2)?;
    let out = window::pool_out(cx, pool, x_dims)?;
    cx.real_dims(0, "dy", &out, 0)?;
    let index = cx.ty(window::pool_index_dtype(pool).map_err(|e| cx.error(&e.0))?, out)?;
    // Layouts are compared apart.
    if *cx.inputs[1] != index.in_layout(cx.inputs[1].layout) {
        return cx.fail(format_args!("idx of type {index}"), cx.inputs[1]);
    }
    cx.one(cx.inputs[0].dtype, x_dims.clone())
}

pub(super) fn avg_pool(cx: &Rule<'_>, pool: &PoolAttrs, x_dims: &Dims) -> Result<Types, InferError> {
    cx.arity(1, 1)?;
    let out = window::pool_out(cx, pool, x_dims)?;
    cx.real_dims(0, "dy", &out, 0)?;
    cx.one(cx.inputs[0].dtype, x_dims.clone())
}

/// Both batch norm gradients: the last two operands are statistics per channel.
pub(super) fn batch_norm(cx: &Rule<'_>) -> Result<Types, InferError> {
    cx.arity(5, 5)?;
    let c = cx.channels(0, "dy")?;
    cx.equal(0, 1)?;
    for (i, what) in [(2, "scale"), (3, "mean"), (4, "var or invstd")] {
        cx.f32_dims(i, what, &[c])?;
    }
    let vector = cx.ty(DType::F32, smallvec![c])?;
    let mut types = cx.same(0)?;
    types.extend([vector.clone(), vector]);
    Ok(types)
}

pub(super) fn batch_norm_relu(cx: &Rule<'_>, n_outputs: usize) -> Result<Types, InferError> {
    cx.arity(6, 7)?;
    let c = cx.channels(0, "dy")?;
    cx.equal(0, 1)?;
    for (i, what) in [(2, "scale"), (3, "bias"), (4, "mean"), (5, "invstd")] {
        cx.f32_dims(i, what, &[c])?;
    }
    let gated = cx.inputs.len() == 7;
    if gated {
        cx.equal(0, 6)?;
    }
    let vector = cx.ty(DType::F32, smallvec![c])?;
    let dx = cx.ty(cx.inputs[0].dtype, cx.inputs[0].dims.clone())?;
    let mut types: Types = smallvec![dx.clone(), vector.clone(), vector];
    match n_outputs {
        4 if gated => types.push(dx),
        4 => return cx.fail("y among the operands of a node with output dr", "none"),
        _ => {}
    }
    Ok(types)
}

pub(super) fn batch_norm_relu_joined(cx: &Rule<'_>, added: bool) -> Result<Types, InferError> {
    let first = if added { 6 } else { 5 };
    cx.arity(first + 1, first + MAX_JOINED)?;
    let c = cx.channels(0, "dy")?;
    for (i, what) in [(1, "scale"), (2, "bias"), (3, "mean"), (4, "invstd")] {
        cx.f32_dims(i, what, &[c])?;
    }
    cx.channels(first, "x")?;
    let whole = movement::joined(cx, first, 1)?;
    cx.real_dims(0, "dy", &whole, first)?;
    if added {
        let channels = cx.channels(5, "g")?;
        let mut dims = whole;
        dims[1] = channels.max(c);
        cx.real_dims(5, "g", &dims, 0)?;
    }
    let vector = cx.ty(DType::F32, smallvec![c])?;
    let dx = cx.ty(cx.inputs[0].dtype, cx.inputs[0].dims.clone())?;
    Ok(smallvec![dx, vector.clone(), vector])
}

pub(super) fn slice(cx: &Rule<'_>, slice: &SliceAttrs, x_dims: &Dims) -> Result<Types, InferError> {
    cx.arity(1, 1)?;
    movement::slice(cx, slice, x_dims)?;
    cx.real_dims(0, "dy", &slice.lens, 0)?;
    cx.one(cx.inputs[0].dtype, x_dims.clone())
}

pub(super) fn cross_entropy(cx: &Rule<'_>, reduction: LossReduction) -> Result<Types, InferError> {
    cx.arity(3, 4)?;
    let logits = cx.f32(1, "log_prob")?;
    let loss = nn::loss_dims(cx, logits, 2, reduction)?;
    cx.f32_dims(0, "dloss", &loss)?;
    cx.same(1)
}

pub(super) fn negative_log_likelihood(
    cx: &Rule<'_>,
    reduction: LossReduction,
    x_dims: &Dims,
) -> Result<Types, InferError> {
    cx.arity(2, 3)?;
    let loss = nn::loss_dims(cx, x_dims, 1, reduction)?;
    cx.f32_dims(0, "dloss", &loss)?;
    cx.one(DType::F32, x_dims.clone())
}

pub(super) fn sgd(cx: &Rule<'_>) -> Result<Types, InferError> {
    // Up to the next multiple: three operands a weight.
    let weights = (cx.inputs.len().saturating_sub(1)).div_ceil(3).clamp(1, MAX_UPDATES);
    cx.arity(3 * weights + 1, 3 * weights + 1)?;
    let mut types = Types::new();
    for i in (0..weights).map(|i| 3 * i) {
        cx.f32(i, "w")?;
        cx.equal(i, i + 1)?;
        cx.equal(i, i + 2)?;
        let w = cx.ty(DType::F32, cx.inputs[i].dims.clone())?;
        types.extend([w.clone(), w]);
    }
    cx.f32_dims(3 * weights, "hyper", &[3])?;
    Ok(types)
}
