//! Output extents of convolutions and pools.

use super::{InferError, MAX_WINDOW, Rule, list};
use crate::op::{ConvAttrs, PoolAttrs};
use crate::types::{DType, Dims};

fn fail<T>(expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Result<T, InferError> {
    Err(InferError(format!("expected {expected}, found {found}")))
}

/// One spatial dimension of a sliding window.
#[derive(Clone, Copy)]
struct Axis {
    input: u64,
    kernel: u64,
    stride: u64,
    before: u64,
    after: u64,
    dilation: u64,
}

impl Axis {
    /// Input and padding together, and the span of the dilated kernel.
    fn spans(&self) -> Result<(u64, u64), InferError> {
        for (what, value, least) in [
            ("a stride", self.stride, 1),
            ("a dilation", self.dilation, 1),
            ("a kernel extent", self.kernel, 1),
            ("padding", self.before, 0),
            ("padding", self.after, 0),
        ] {
            if value < least || value > MAX_WINDOW {
                return fail(format_args!("{what} in {least}..={MAX_WINDOW}"), value);
            }
        }
        if self.input == 0 {
            return fail("spatial extents above zero", 0);
        }
        let padded = self.input.checked_add(self.before + self.after);
        // At most 2^62: both factors are below 2^31.
        let span = (self.kernel - 1) * self.dilation + 1;
        match padded {
            Some(padded) if span <= padded => Ok((padded, span)),
            Some(padded) => fail(format_args!("a dilated kernel within the padded extent {padded}"), span),
            None => fail("an extent that fits 64 bits", self.input),
        }
    }
}

fn axes(
    x: &[u64],
    kernel: &Dims,
    strides: &Dims,
    before: &Dims,
    after: &Dims,
    dilations: &Dims,
) -> Result<Vec<Axis>, InferError> {
    if x.len() < 3 {
        return fail("x of shape [N,C,spatial..]", list(x));
    }
    if x.contains(&0) {
        return fail("x without zero extents", list(x));
    }
    let rank = x.len() - 2;
    for (what, values) in [
        ("kernel extents", kernel),
        ("strides", strides),
        ("paddings before", before),
        ("paddings after", after),
        ("dilations", dilations),
    ] {
        if values.len() != rank {
            return fail(format_args!("{rank} {what}"), list(values));
        }
    }
    Ok((0..rank)
        .map(|i| Axis {
            input: x[i + 2],
            kernel: kernel[i],
            stride: strides[i],
            before: before[i],
            after: after[i],
            dilation: dilations[i],
        })
        .collect())
}

/// The shape `[N, M, out..]` of a convolution of `x[N,C,..]` by `w[M,C/groups,kernel..]`,
/// with `out = floor((in + before + after - (k-1)*dilation - 1) / stride) + 1`.
///
/// # Errors
/// If ranks, channels, groups or the kernel disagree, or an extent would be empty.
pub fn conv_out_dims(conv: &ConvAttrs, x: &[u64], w: &[u64]) -> Result<Dims, InferError> {
    let axes = axes(x, &conv.kernel, &conv.strides, &conv.before, &conv.after, &conv.dilations)?;
    if w.len() != x.len() {
        return fail(format_args!("w of rank {}", x.len()), list(w));
    }
    if w.contains(&0) {
        return fail("w without zero extents", list(w));
    }
    if w[2..] != conv.kernel[..] {
        return fail(format_args!("w with kernel {}", list(&conv.kernel)), list(w));
    }
    let g = conv.groups;
    if g == 0 || !x[1].is_multiple_of(g) || !w[0].is_multiple_of(g) {
        return fail(format_args!("groups dividing {} input and {} output channels", x[1], w[0]), g);
    }
    if w[1] != x[1] / g {
        return fail(format_args!("w with {} input channels per group", x[1] / g), list(w));
    }
    let mut out = Dims::from_slice(&[x[0], w[0]]);
    for axis in axes {
        let (padded, span) = axis.spans()?;
        out.push((padded - span) / axis.stride + 1);
    }
    Ok(out)
}

/// The shape `[N, C, out..]` of a pool over `x[N,C,..]`. Rounds down, or with `ceil_mode`
/// up but without windows that would start at or beyond `in + before` (ONNX, PyTorch).
///
/// Padding must be smaller than the dilated kernel, so every window holds an element.
///
/// # Errors
/// If the ranks disagree, an extent would be empty or a window could lie in the padding.
pub fn pool_out_dims(pool: &PoolAttrs, x: &[u64]) -> Result<Dims, InferError> {
    let axes = axes(x, &pool.kernel, &pool.strides, &pool.before, &pool.after, &pool.dilations)?;
    let mut out = Dims::from_slice(&x[..2]);
    for axis in axes {
        let (padded, span) = axis.spans()?;
        if axis.before >= span || axis.after >= span {
            return fail(
                format_args!("padding smaller than the dilated kernel {span}"),
                axis.before.max(axis.after),
            );
        }
        if axis.dilation > axis.input && axis.before > 0 {
            // The taps of a window that starts in the padding could step over the input.
            return fail(format_args!("a dilation of at most the extent {}", axis.input), axis.dilation);
        }
        let room = padded - span;
        let mut n = room / axis.stride + 1;
        if pool.ceil_mode {
            n = room.div_ceil(axis.stride) + 1;
            if (n - 1) * axis.stride >= axis.input + axis.before {
                n -= 1;
            }
        }
        out.push(n);
    }
    Ok(out)
}

/// Element type of a max pool's index output: the offset in the window in row-major order.
///
/// # Errors
/// If the window has more positions than i32 can count.
pub fn pool_index_dtype(pool: &PoolAttrs) -> Result<DType, InferError> {
    match pool.kernel.iter().try_fold(1u64, |n, &k| n.checked_mul(k)) {
        Some(..=256) => Ok(DType::U8),
        Some(..=MAX_WINDOW) => Ok(DType::I32),
        _ => fail(format_args!("a window of at most {MAX_WINDOW} positions"), list(&pool.kernel)),
    }
}

pub(super) fn conv_out(cx: &Rule<'_>, conv: &ConvAttrs, x: &[u64], w: &[u64]) -> Result<Dims, InferError> {
    conv_out_dims(conv, x, w).map_err(|e| cx.error(&e.0))
}

pub(super) fn pool_out(cx: &Rule<'_>, pool: &PoolAttrs, x: &[u64]) -> Result<Dims, InferError> {
    pool_out_dims(pool, x).map_err(|e| cx.error(&e.0))
}
