//! Rules of packed weights and of zeros in feature maps.

use super::{InferError, Rule, Types, list, window};
use crate::op::ConvAttrs;
use crate::sparse;
use crate::types::{DType, Dims};

pub(super) fn pack(cx: &Rule<'_>, nonzeros: u64) -> Result<Types, InferError> {
    cx.arity(1, 1)?;
    let w = cx.f32(0, "w")?;
    let elements = cx.inputs[0].elements();
    if w.len() < 2 || nonzeros > elements || i32::try_from(elements).is_err() {
        let room =
            format_args!("w[M,..] of below 2^31 elements and room for at most all of them").to_string();
        return cx.fail(room, format_args!("{} and {nonzeros}", cx.inputs[0]));
    }
    cx.one(DType::I32, Dims::from_slice(&[sparse::packed_len(w[0], nonzeros)]))
}

pub(super) fn conv(cx: &Rule<'_>, conv: &ConvAttrs, w_dims: &Dims) -> Result<Types, InferError> {
    cx.arity(2, 3)?;
    let x = cx.f32(0, "x")?;
    let out = match (x, w_dims.as_slice()) {
        ([n, k], &[m, inner]) if *k == inner && conv.kernel.is_empty() && conv.groups == 1 => {
            Dims::from_slice(&[*n, m])
        }
        ([_, _], _) => return cx.fail(format_args!("weights [M,{}]", x[1]), list(w_dims)),
        _ => window::conv_out(cx, conv, x, w_dims)?,
    };
    let packed = cx.inputs[1];
    let entries = packed.dims.first().and_then(|len| sparse::room(w_dims[0], *len));
    let elements = w_dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
    let fits = packed.dtype == DType::I32
        && packed.rank() == 1
        && elements.is_some_and(|e| i32::try_from(e).is_ok() && entries.is_some_and(|n| n <= e));
    if !fits {
        return cx.fail(format_args!("packed weights of shape {}", list(w_dims)), packed);
    }
    if cx.inputs.len() == 3 {
        cx.f32_dims(2, "b", &w_dims[..1])?;
    }
    cx.one(DType::F32, out)
}

pub(super) fn input_conv(cx: &Rule<'_>, conv: &ConvAttrs) -> Result<Types, InferError> {
    cx.arity(2, 4)?;
    let (x, w) = (cx.f32(0, "x")?, cx.f32(1, "w")?);
    let ([_, c, _, _], &[inner, taps, filters], &[ky, kx], 1) = (x, w, conv.kernel.as_slice(), conv.groups)
    else {
        return cx.fail("x[N,C,H,W], w[C,k*k,M] and one group", cx.inputs[1]);
    };
    if inner != *c || ky.checked_mul(kx) != Some(taps) {
        return cx.fail(format_args!("weights [{c},{ky}*{kx},M]"), cx.inputs[1]);
    }
    let out = window::conv_out(cx, conv, x, &[filters, *c, ky, kx])?;
    if cx.inputs.len() > 2 {
        cx.f32_dims(2, "b", &[filters])?;
    }
    if cx.inputs.len() > 3 {
        cx.f32_dims(3, "r", &out)?;
    }
    cx.one(DType::F32, out)
}
