//! Ops that move elements: all are copies of a block between two strided layouts.

use super::context::Cx;
use super::shape::{Axes, Axis, Divisor, Walk, broadcast_strides, collapse, positions, strides};
use super::source::{Kernel, Source};
use super::step::{Args, Step};
use crate::cuda::error::CudaError;
use crate::cuda::launch::Operand;
use cudarc::driver::sys::CUdeviceptr;
use vdnn_ir::DType;
use vdnn_ir::op::SliceAttrs;

/// Edge of the tiles that transpositions move through shared memory.
const TILE: u64 = 32;

/// A place in a tensor: address, offset of the first element and a stride per dimension, in
/// elements.
struct Place {
    ptr: CUdeviceptr,
    start: i64,
    strides: Vec<i64>,
}

impl Place {
    fn whole(x: Operand<'_>) -> Self {
        Self { ptr: x.ptr, start: 0, strides: strides(x.ty).to_vec() }
    }

    /// From index `at` of `axis` on.
    fn from(x: Operand<'_>, axis: usize, at: u64) -> Self {
        let mut place = Self::whole(x);
        place.start = place.strides[axis] * at as i64;
        place
    }

    /// Address of the first element, of `size` bytes.
    fn first(&self, size: u64) -> CUdeviceptr {
        self.ptr.wrapping_add_signed(self.start * size as i64)
    }

    /// The elements of `x` that a slice selects.
    fn of_slice(x: Operand<'_>, slice: &SliceAttrs) -> Self {
        let own = strides(x.ty);
        let start = own.iter().zip(&slice.starts).map(|(&s, &i)| s * i as i64).sum();
        let strides = own.iter().zip(&slice.steps).map(|(&s, &step)| s.wrapping_mul(step)).collect();
        Self { ptr: x.ptr, start, strides }
    }
}

/// The dimensions of a block of shape `dims`, in the order in which neighbouring threads write
/// neighbouring elements.
fn block(dims: &[u64], from: &Place, to: &Place) -> Axes {
    let mut axes: Axes = dims
        .iter()
        .enumerate()
        .map(|(d, &extent)| Axis { extent, step: [from.strides[d], to.strides[d]] })
        .filter(|axis| axis.extent > 1)
        .collect();
    axes.sort_by_key(|axis| std::cmp::Reverse((axis.step[1].unsigned_abs(), axis.step[0].unsigned_abs())));
    collapse(axes)
}

/// Copies a block of shape `dims` of elements of `size` bytes.
fn copy(cx: &mut Cx<'_>, dims: &[u64], size: u64, from: &Place, to: &Place) -> Result<(), CudaError> {
    if dims.contains(&0) {
        return Ok(());
    }
    let axes = block(dims, from, to);
    let (source, target) = (from.first(size), to.first(size));
    if size <= 8
        && let Some(i) = transposed(&axes)
    {
        return transpose(cx, axes, i, size, source, target);
    }
    let (axes, size) = widen(axes, size, source, target);
    let walk = Walk::new(&axes).ok_or_else(|| cx.unsupported("a copy of this shape"))?;
    let n = positions(&axes).unwrap_or(u64::MAX);
    let args = Args::new().ptr(source).ptr(target).u32(cx.count(n)?).pod(&walk);
    let element = ["u8", "u16", "u32", "u64", "uint4"][size.trailing_zeros() as usize];
    cx.per_items(Kernel::instance(Source::Movement, "COPY_STRIDED", element), n, args)
}

/// The axis that is contiguous in the source, if the target's is another and both are long
/// enough for tiles.
fn transposed(axes: &[Axis]) -> Option<usize> {
    let (last, outer) = axes.split_last()?;
    if last.step[1] != 1 || last.step[0] == 1 || last.extent < TILE / 2 {
        return None;
    }
    outer.iter().position(|axis| axis.step[0] == 1 && axis.extent >= TILE / 2)
}

fn transpose(
    cx: &mut Cx<'_>,
    mut axes: Axes,
    column_axis: usize,
    size: u64,
    source: CUdeviceptr,
    target: CUdeviceptr,
) -> Result<(), CudaError> {
    let columns = axes.remove(column_axis);
    let rows = axes.remove(axes.len() - 1);
    let (row_tiles, column_tiles) = (rows.extent.div_ceil(TILE), columns.extent.div_ceil(TILE));
    let walk = Walk::new(&axes).ok_or_else(|| cx.unsupported("a transposition of this shape"))?;
    let batch = positions(&axes).unwrap_or(u64::MAX);
    let blocks = batch.saturating_mul(row_tiles).saturating_mul(column_tiles);
    let args = Args::new()
        .ptr(source)
        .ptr(target)
        .u32(cx.count(rows.extent)?)
        .u32(cx.count(columns.extent)?)
        .i64(rows.step[0])
        .i64(columns.step[1])
        .pod(&Divisor::new(row_tiles))
        .pod(&Divisor::new(column_tiles))
        .pod(&walk);
    let element = ["u8", "u16", "u32", "u64"][size.trailing_zeros() as usize];
    let blocks = cx.count(blocks)?;
    cx.push(Step::new(Kernel::instance(Source::Movement, "TRANSPOSE", element), blocks, args));
    Ok(())
}

/// Makes elements of up to 16 bytes out of runs that are contiguous and aligned on both sides.
fn widen(mut axes: Axes, mut size: u64, source: CUdeviceptr, target: CUdeviceptr) -> (Axes, u64) {
    while size < 16 {
        let Some((last, outer)) = axes.split_last() else { break };
        let wide = 2 * size;
        let aligned = source.is_multiple_of(wide)
            && target.is_multiple_of(wide)
            && outer.iter().all(|axis| axis.step.iter().all(|s| s % 2 == 0));
        if last.step != [1, 1] || !last.extent.is_multiple_of(2) || !aligned {
            break;
        }
        for axis in &mut axes {
            axis.step = axis.step.map(|s| s / 2);
        }
        if let Some(last) = axes.last_mut() {
            last.extent /= 2;
            last.step = [1, 1];
        }
        size = wide;
    }
    (axes, size)
}

/// [`vdnn_ir::Op::Split`].
pub(super) fn split(cx: &mut Cx<'_>, axis: u64) -> Result<(), CudaError> {
    let x = cx.input(0)?;
    let mut at = 0;
    for y in cx.spec.outputs {
        let from = Place::from(x, axis as usize, at);
        copy(cx, &y.ty.dims, y.ty.dtype.bytes(), &from, &Place::whole(*y))?;
        at += y.ty.dims[axis as usize];
    }
    Ok(())
}

/// [`vdnn_ir::Op::Slice`].
pub(super) fn slice(cx: &mut Cx<'_>, slice: &SliceAttrs) -> Result<(), CudaError> {
    let (x, y) = (cx.input(0)?, cx.output(0)?);
    copy(cx, &y.ty.dims, y.ty.dtype.bytes(), &Place::of_slice(x, slice), &Place::whole(y))
}

/// [`vdnn_ir::Op::AddSlice`].
pub(super) fn add_slice(cx: &mut Cx<'_>, slice: &SliceAttrs) -> Result<(), CudaError> {
    let (a, x, y) = (cx.real(0)?, cx.real(1)?, cx.real_out(0)?);
    if y.ty.elements() == 0 {
        return Ok(());
    }
    let (element, size) = (cx.element(y)?, y.ty.dtype.bytes());
    let (from, to) = (Place::of_slice(x, slice), Place::whole(y));
    let axes = block(&y.ty.dims, &from, &to);
    let (wide, bytes) = widen(axes.clone(), size, from.first(size), y.ptr);
    let (axes, width) = if bytes == 16 { (wide, element.width) } else { (axes, 1) };
    let walk = Walk::new(&axes).ok_or_else(|| cx.unsupported("a sum of this shape"))?;
    let n = positions(&axes).unwrap_or(u64::MAX);
    let args = Args::new().ptr(a.ptr).ptr(from.first(size)).ptr(y.ptr).u32(cx.count(n)?).pod(&walk);
    let arguments = format!("{}, {width}", element.name);
    cx.per_items(Kernel::instance(Source::Movement, "ADD_STRIDED", &arguments), n, args)
}

/// [`vdnn_ir::Op::SliceGrad`]: zeros, then dy on top.
pub(super) fn slice_grad(cx: &mut Cx<'_>, slice: &SliceAttrs) -> Result<(), CudaError> {
    let (dy, dx) = (cx.real(0)?, cx.real_out(0)?);
    let size = dx.ty.dtype.bytes();
    if dy.ty.elements() < dx.ty.elements() {
        cx.fill(dx.ptr, size, 0, dx.ty.elements())?;
    }
    copy(cx, &dy.ty.dims, size, &Place::whole(dy), &Place::of_slice(dx, slice))
}

/// [`vdnn_ir::Op::Pad`]: the value everywhere, then what is left of x after cropping on top.
pub(super) fn pad(cx: &mut Cx<'_>, before: &[i64], value: f32) -> Result<(), CudaError> {
    let (x, y) = (cx.input(0)?, cx.output(0)?);
    let (mut from, mut to) = (Place::whole(x), Place::whole(y));
    let mut block = Vec::new();
    for (i, &shift) in before.iter().enumerate() {
        let (cropped, shifted) = ((-shift).max(0) as u64, shift.max(0) as u64);
        block.push((x.ty.dims[i] - cropped.min(x.ty.dims[i])).min(y.ty.dims[i].saturating_sub(shifted)));
        from.start += from.strides[i] * cropped as i64;
        to.start += to.strides[i] * shifted as i64;
    }
    if block != y.ty.dims.as_slice() {
        let bits = match x.ty.dtype {
            DType::F32 => u64::from(value.to_bits()),
            DType::F64 => f64::from(value).to_bits(),
            DType::I32 => u64::from(value as i32 as u32),
            DType::I64 => value as i64 as u64,
            DType::U8 => u64::from(value as u8),
            DType::Bool => u64::from(value != 0.0),
            DType::BF16 => u64::from(vdnn_ir::bf16::round(value)),
            DType::F16 if value.to_bits() == 0 => 0,
            other => return Err(cx.unsupported(format!("a value for elements of type {other}"))),
        };
        cx.fill(y.ptr, y.ty.dtype.bytes(), bits, y.ty.elements())?;
    }
    copy(cx, &block, x.ty.dtype.bytes(), &from, &to)
}

/// [`vdnn_ir::Op::Transpose`].
pub(super) fn permute(cx: &mut Cx<'_>, perm: &[u64]) -> Result<(), CudaError> {
    let (x, y) = (cx.input(0)?, cx.output(0)?);
    let own = strides(x.ty);
    let from = Place { ptr: x.ptr, start: 0, strides: perm.iter().map(|&p| own[p as usize]).collect() };
    copy(cx, &y.ty.dims, y.ty.dtype.bytes(), &from, &Place::whole(y))
}

/// [`vdnn_ir::Op::Expand`].
pub(super) fn expand(cx: &mut Cx<'_>) -> Result<(), CudaError> {
    let (x, y) = (cx.input(0)?, cx.output(0)?);
    let from = Place { ptr: x.ptr, start: 0, strides: broadcast_strides(x.ty, &y.ty.dims).to_vec() };
    copy(cx, &y.ty.dims, y.ty.dtype.bytes(), &from, &Place::whole(y))
}

/// [`vdnn_ir::Op::Relayout`].
pub(super) fn relayout(cx: &mut Cx<'_>) -> Result<(), CudaError> {
    let (x, y) = (cx.input(0)?, cx.output(0)?);
    copy(cx, &y.ty.dims, y.ty.dtype.bytes(), &Place::whole(x), &Place::whole(y))
}
