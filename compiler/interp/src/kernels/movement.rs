//! Ops that move elements of any type: all are strided copies.

use super::walk::{broadcast, row_major, rows};
use super::{dims, unsupported};
use vdnn_ir::DType;
use vdnn_ir::kernel::{KernelError, TensorMut, TensorRef};
use vdnn_ir::op::{Op, SliceAttrs};

/// A place in a buffer: offset of the first element and a stride per dimension, in elements.
struct Layout {
    start: isize,
    strides: Vec<isize>,
}

impl Layout {
    fn whole(dims: &[usize]) -> Self {
        Self { start: 0, strides: row_major(dims) }
    }
    /// The part of a tensor of shape `dims` from index `at` of `axis` on.
    fn from(dims: &[usize], axis: usize, at: usize) -> Self {
        let strides = row_major(dims);
        Self { start: strides[axis] * at as isize, strides }
    }
    /// The elements of a tensor of shape `dims` that a slice selects.
    fn of_slice(slice: &SliceAttrs, dims: &[usize]) -> Self {
        let own = row_major(dims);
        let start = own.iter().zip(&slice.starts).map(|(&s, &i)| s * i as isize).sum();
        let strides = own.iter().zip(&slice.steps).map(|(&s, &step)| s.wrapping_mul(step as isize)).collect();
        Self { start, strides }
    }
}

/// Copies a block of shape `dims` of elements of `size` bytes.
fn copy(dims: &[usize], size: usize, from: &[u8], source: &Layout, to: &mut [u8], target: &Layout) {
    let starts = [source.start, target.start];
    rows(dims, [&source.strides, &target.strides], starts, |at, n, steps| {
        if steps == [1, 1] {
            let [a, b] = at.map(|o| o as usize * size);
            to[b..b + n * size].copy_from_slice(&from[a..a + n * size]);
            return;
        }
        for k in 0..n as isize {
            let [a, b] = [0, 1].map(|i| (at[i] + k * steps[i]) as usize * size);
            to[b..b + size].copy_from_slice(&from[a..a + size]);
        }
    });
}

fn size(ty: DType) -> usize {
    ty.bytes() as usize
}

/// Elements `indices[j]` of an axis become elements `j`.
pub(super) fn gather(
    axis: usize,
    x: TensorRef<'_>,
    indices: TensorRef<'_>,
    y: &mut TensorMut<'_>,
) -> Result<(), KernelError> {
    let (own, out) = (dims(x.ty), dims(y.ty));
    let mut block = out.clone();
    block[axis] = 1;
    for (j, index) in bytemuck::cast_slice::<u8, i32>(indices.bytes).iter().enumerate() {
        let at = usize::try_from(*index).ok().filter(|&i| i < own[axis]).ok_or_else(|| {
            KernelError::BadData(format!("gather: index {index} of an axis of extent {}", own[axis]))
        })?;
        let (source, target) = (Layout::from(&own, axis, at), Layout::from(&out, axis, j));
        copy(&block, size(x.ty.dtype), x.bytes, &source, y.bytes, &target);
    }
    Ok(())
}

pub(super) fn concat(axis: usize, inputs: &[TensorRef<'_>], y: &mut TensorMut<'_>) {
    let whole = dims(y.ty);
    let mut at = 0;
    for x in inputs {
        let part = dims(x.ty);
        let target = Layout::from(&whole, axis, at);
        copy(&part, size(x.ty.dtype), x.bytes, &Layout::whole(&part), y.bytes, &target);
        at += part[axis];
    }
}

pub(super) fn split(axis: usize, x: TensorRef<'_>, outputs: &mut [TensorMut<'_>]) {
    let whole = dims(x.ty);
    let mut at = 0;
    for y in outputs {
        let part = dims(y.ty);
        let source = Layout::from(&whole, axis, at);
        copy(&part, size(x.ty.dtype), x.bytes, &source, y.bytes, &Layout::whole(&part));
        at += part[axis];
    }
}

pub(super) fn slice(attrs: &SliceAttrs, x: TensorRef<'_>, y: &mut TensorMut<'_>) {
    let out = dims(y.ty);
    let source = Layout::of_slice(attrs, &dims(x.ty));
    copy(&out, size(x.ty.dtype), x.bytes, &source, y.bytes, &Layout::whole(&out));
}

/// dy into the selected elements of dx, zero elsewhere.
pub(super) fn slice_grad(attrs: &SliceAttrs, dy: TensorRef<'_>, dx: &mut TensorMut<'_>) {
    let block = dims(dy.ty);
    let target = Layout::of_slice(attrs, &dims(dx.ty));
    dx.bytes.fill(0);
    copy(&block, size(dy.ty.dtype), dy.bytes, &Layout::whole(&block), dx.bytes, &target);
}

pub(super) fn pad(
    op: &Op,
    before: &[i64],
    value: f32,
    x: TensorRef<'_>,
    y: &mut TensorMut<'_>,
) -> Result<(), KernelError> {
    let element: Vec<u8> = match x.ty.dtype {
        DType::F32 => value.to_ne_bytes().into(),
        DType::F64 => f64::from(value).to_ne_bytes().into(),
        DType::I32 => (value as i32).to_ne_bytes().into(),
        DType::I64 => (value as i64).to_ne_bytes().into(),
        DType::U8 => vec![value as u8],
        DType::Bool => vec![u8::from(value != 0.0)],
        DType::F16 | DType::BF16 if value.to_bits() == 0 => vec![0, 0],
        other => return Err(unsupported(op, other)),
    };
    for place in y.bytes.chunks_exact_mut(element.len()) {
        place.copy_from_slice(&element);
    }
    // What is left of x after cropping, and where it lands.
    let (own, out) = (dims(x.ty), dims(y.ty));
    let mut block = Vec::new();
    let (mut source, mut target) = (Layout::whole(&own), Layout::whole(&out));
    for i in 0..own.len() {
        let cropped = before[i].min(0).unsigned_abs() as usize;
        let shifted = before[i].max(0) as usize;
        block.push((own[i] - cropped).min(out[i].saturating_sub(shifted)));
        source.start += source.strides[i] * cropped as isize;
        target.start += target.strides[i] * shifted as isize;
    }
    copy(&block, element.len(), x.bytes, &source, y.bytes, &target);
    Ok(())
}

pub(super) fn transpose(perm: &[u64], x: TensorRef<'_>, y: &mut TensorMut<'_>) {
    let own = row_major(&dims(x.ty));
    let strides = perm.iter().map(|&p| own[p as usize]).collect();
    let out = dims(y.ty);
    copy(&out, size(x.ty.dtype), x.bytes, &Layout { start: 0, strides }, y.bytes, &Layout::whole(&out));
}

pub(super) fn expand(x: TensorRef<'_>, y: &mut TensorMut<'_>) {
    let out = dims(y.ty);
    let source = Layout { start: 0, strides: broadcast(&dims(x.ty), out.len()) };
    copy(&out, size(x.ty.dtype), x.bytes, &source, y.bytes, &Layout::whole(&out));
}
