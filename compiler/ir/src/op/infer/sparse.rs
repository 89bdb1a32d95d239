//! Rules of packed weights and of zeros in feature maps.

use super::{InferError, Rule, Types, list, window};
use crate::op::ConvAttrs;
use crate::sparse::SparseForm;
use crate::types::{DType, Dims};

pub(super) fn pack(cx: &Rule<'_>, nonzeros: u64, form: SparseForm) -> Result<Types, InferError> {
    cx.arity(1, 1)?;
    let w = real(cx, 0, "w", form)?;
    let elements = cx.inputs[0].elements();
    if w.len() < 2 || !form.may_have(nonzeros, w) || i32::try_from(elements).is_err() {
        let room = format!("w[M,..] of below 2^31 elements and room for {} of them", portion(form));
        return cx.fail(room, format_args!("{} and {nonzeros}", cx.inputs[0]));
    }
    cx.one(DType::I32, Dims::from_slice(&[form.packed_len(w[0], nonzeros)]))
}

pub(super) fn conv(
    cx: &Rule<'_>,
    conv: &ConvAttrs,
    w_dims: &Dims,
    (form, relu): (SparseForm, bool),
) -> Result<Types, InferError> {
    let flat = conv.kernel.is_empty();
    cx.arity(2, if flat { 3 } else { 4 })?;
    if relu && (flat || cx.inputs.len() < 3) {
        return cx.fail("a ReLU with spatial dimensions and a bias only", form_name(form));
    }
    if conv.groups != 1 && !form.is_csr() {
        let wanted = format!("one group of channels for {}", form_name(form));
        return cx.fail(wanted, conv.groups);
    }
    let x = real(cx, 0, "x", form)?;
    let out = match (x, w_dims.as_slice()) {
        ([n, k], &[m, inner]) if *k == inner && flat && conv.groups == 1 => Dims::from_slice(&[*n, m]),
        ([_, _], _) => return cx.fail(format_args!("weights [M,{}]", x[1]), list(w_dims)),
        _ => window::conv_out(cx, conv, x, w_dims)?,
    };
    let packed = cx.inputs[1];
    let entries = packed.dims.first().and_then(|len| form.room(w_dims[0], *len));
    let elements = w_dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
    let fits = packed.dtype == DType::I32
        && packed.rank() == 1
        && elements.is_some_and(|e| i32::try_from(e).is_ok())
        && entries.is_some_and(|n| form.may_have(n, w_dims));
    if !fits {
        return cx.fail(format_args!("packed weights of shape {}", list(w_dims)), packed);
    }
    // As of a convolution, or of a product.
    if cx.inputs.len() > 2 {
        if flat {
            cx.f32_dims(2, "b", &w_dims[..1])?;
        } else {
            cx.real_dims(2, "b", &w_dims[..1], 0)?;
        }
    }
    if cx.inputs.len() > 3 {
        cx.real_dims(3, "r", &out, 0)?;
    }
    cx.one(if flat { DType::F32 } else { cx.inputs[0].dtype }, out)
}

/// How many entries there may be.
fn portion(form: SparseForm) -> &'static str {
    if form == SparseForm::TwoFourBf16 { "all" } else { "at most all" }
}

/// The dims of an operand in f32, or in bf16 beside such weights.
fn real<'a>(cx: &Rule<'a>, i: usize, what: &str, form: SparseForm) -> Result<&'a [u64], InferError> {
    if form.is_bf16() { cx.real(i, what) } else { cx.f32(i, what) }
}

fn form_name(form: SparseForm) -> String {
    format!("{form:?}").to_lowercase()
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
