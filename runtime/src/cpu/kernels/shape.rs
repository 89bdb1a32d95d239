//! Ops that only move data, for every element type: elements are copied by size.

use super::args::{Call, shape};
use super::layout::{Axes, Axis, broadcast_strides, collapse, offsets, strides};
use super::par::{CHUNK, Par};
use smallvec::SmallVec;
use vdnn_ir::DType;
use vdnn_ir::kernel::{KernelError, TensorMut};
use vdnn_ir::op::SliceAttrs;

/// An element of any type of its size.
trait Element: bytemuck::Pod + Send + Sync {}
impl<T: bytemuck::Pod + Send + Sync> Element for T {}

/// Calls a function generic over [`Element`] for the size of a type.
macro_rules! by_size {
    ($dtype:expr, $f:ident($($arg:expr),*)) => {
        match $dtype.bytes() {
            1 => $f::<u8>($($arg),*),
            2 => $f::<u16>($($arg),*),
            4 => $f::<u32>($($arg),*),
            _ => $f::<u64>($($arg),*),
        }
    };
}

/// Rows of the output that are transposed together.
const ROWS: usize = 16;

/// Fills `y`, row-major over `axes`, from `x[base + steps]`.
fn walk_copy<T: Element>(par: &Par, axes: &Axes<1>, x: &[u8], base: usize, y: &mut [u8]) {
    let (x, y): (&[T], &mut [T]) = (bytemuck::cast_slice(x), bytemuck::cast_slice_mut(y));
    if y.is_empty() {
        return;
    }
    let whole = Axis { extent: 1, steps: [1] };
    let (last, outer) = axes.split_last().unwrap_or((&whole, &[]));
    let (n, step) = (last.extent, last.steps[0]);
    let rows = (CHUNK / n).max(1).next_multiple_of(ROWS);
    let start = |row: usize| (base as isize + offsets(outer, row)[0]) as usize;
    // If neighbouring rows are neighbours in x, copy some together: x is read in runs.
    let turn = outer.last().filter(|a| a.steps == [1] && step != 1 && step > 0).map(|a| a.extent);
    par.chunks(y, rows * n, 1, |i, y| {
        let mut row = i * rows;
        let mut rest = y;
        while !rest.is_empty() {
            let together = turn.map_or(1, |extent| ROWS.min(extent - row % extent)).min(rest.len() / n);
            let (run, tail) = std::mem::take(&mut rest).split_at_mut(together * n);
            rest = tail;
            let from = start(row);
            row += together;
            if together > 1 {
                for (c, x) in x[from..].chunks(step as usize).take(n).enumerate() {
                    for (r, &x) in x[..together].iter().enumerate() {
                        run[r * n + c] = x;
                    }
                }
                continue;
            }
            let stride = step.unsigned_abs();
            match step {
                0 => run.fill(x[from]),
                1 => run.copy_from_slice(&x[from..from + n]),
                2.. => run.iter_mut().zip(x[from..].iter().step_by(stride)).for_each(|(y, &x)| *y = x),
                _ => {
                    let backwards = x[..=from].iter().rev().step_by(stride);
                    run.iter_mut().zip(backwards).for_each(|(y, &x)| *y = x);
                }
            }
        }
    });
}

/// [`vdnn_ir::Op::Transpose`].
pub(super) fn transpose(
    call: &Call<'_>,
    perm: &[u64],
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let x = call.input(0)?;
    let y = call.one(outputs)?;
    let dims = shape(x.ty);
    let own = strides(&dims);
    let axes = collapse(perm.iter().map(|&p| {
        let p = p as usize;
        Axis { extent: dims[p], steps: [own[p] as isize] }
    }));
    by_size!(x.ty.dtype, walk_copy(call.par, &axes, x.bytes, 0, y.bytes));
    Ok(())
}

/// [`vdnn_ir::Op::Gather`].
pub(super) fn gather(call: &Call<'_>, axis: usize, outputs: &mut [TensorMut<'_>]) -> Result<(), KernelError> {
    let (x, index) = (call.input(0)?, call.input(1)?);
    let y = call.one(outputs)?;
    let dims = shape(x.ty);
    let indices: &[i32] = call.cast(1, index, DType::I32)?;
    let extent = dims[axis];
    if let Some(bad) = indices.iter().find(|&&i| usize::try_from(i).map_or(true, |i| i >= extent)) {
        return Err(KernelError::BadData(format!("gather: index {bad} of an axis of extent {extent}")));
    }
    let inner = dims[axis + 1..].iter().product::<usize>() * x.ty.dtype.bytes() as usize;
    if inner == 0 || y.bytes.is_empty() {
        return Ok(());
    }
    let together = (CHUNK * 4 / inner).max(1);
    call.par.chunks(y.bytes, together * inner, 1, |chunk, y| {
        for (i, y) in (chunk * together..).zip(y.chunks_exact_mut(inner)) {
            let from = (i / indices.len() * extent + indices[i % indices.len()] as usize) * inner;
            y.copy_from_slice(&x.bytes[from..from + inner]);
        }
    });
    Ok(())
}

/// [`vdnn_ir::Op::Expand`].
pub(super) fn expand(call: &Call<'_>, outputs: &mut [TensorMut<'_>]) -> Result<(), KernelError> {
    let x = call.input(0)?;
    let y = call.one(outputs)?;
    let dims = shape(y.ty);
    let steps = broadcast_strides(&shape(x.ty), &dims);
    let axes = collapse(dims.iter().zip(steps).map(|(&extent, s)| Axis { extent, steps: [s as isize] }));
    by_size!(x.ty.dtype, walk_copy(call.par, &axes, x.bytes, 0, y.bytes));
    Ok(())
}

/// The walk over the sliced elements of a tensor of shape `dims`, and the first one.
fn slice_walk(a: &SliceAttrs, dims: &[usize]) -> (SmallVec<[(usize, isize); 6]>, usize) {
    let own = strides(dims);
    let base = a.starts.iter().zip(&own).map(|(&s, &o)| s as usize * o).sum();
    let walk = (0..dims.len()).map(|i| (a.lens[i] as usize, a.steps[i] as isize * own[i] as isize));
    (walk.collect(), base)
}

/// [`vdnn_ir::Op::Slice`].
pub(super) fn slice(
    call: &Call<'_>,
    a: &SliceAttrs,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let x = call.input(0)?;
    let y = call.one(outputs)?;
    let (walk, base) = slice_walk(a, &shape(x.ty));
    let axes = collapse(walk.into_iter().map(|(extent, step)| Axis { extent, steps: [step] }));
    by_size!(x.ty.dtype, walk_copy(call.par, &axes, x.bytes, base, y.bytes));
    Ok(())
}

/// Writes the elements of `x` along `axes` (steps in x, steps in y) into `y`.
fn scatter<T: Element>(axes: &Axes<2>, x: &[u8], from: usize, y: &mut [u8], to: usize) {
    let (x, y): (&[T], &mut [T]) = (bytemuck::cast_slice(x), bytemuck::cast_slice_mut(y));
    let count: usize = axes.iter().map(|a| a.extent).product();
    if count == 0 {
        return;
    }
    let whole = Axis { extent: 1, steps: [1, 1] };
    let (last, outer) = axes.split_last().unwrap_or((&whole, &[]));
    for row in 0..count / last.extent {
        let [at_x, at_y] = offsets(outer, row);
        let (mut i, mut j) = (from as isize + at_x, to as isize + at_y);
        if last.steps == [1, 1] {
            y[j as usize..][..last.extent].copy_from_slice(&x[i as usize..][..last.extent]);
            continue;
        }
        for _ in 0..last.extent {
            y[j as usize] = x[i as usize];
            i += last.steps[0];
            j += last.steps[1];
        }
    }
}

/// [`vdnn_ir::Op::SliceGrad`].
pub(super) fn slice_grad(
    call: &Call<'_>,
    a: &SliceAttrs,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let dy = call.input(0)?;
    let dx = call.one(outputs)?;
    let own = strides(&shape(dy.ty));
    let (walk, base) = slice_walk(a, &shape(dx.ty));
    let axes = collapse(
        walk.into_iter().zip(own).map(|((extent, step), own)| Axis { extent, steps: [own as isize, step] }),
    );
    dx.bytes.fill(0);
    by_size!(dy.ty.dtype, scatter(&axes, dy.bytes, 0, dx.bytes, base));
    Ok(())
}

/// [`vdnn_ir::Op::Pad`].
pub(super) fn pad(
    call: &Call<'_>,
    before: &[i64],
    value: f32,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let x = call.input(0)?;
    let y = call.one(outputs)?;
    fill_with(call, y, value)?;
    let (from, to) = (shape(x.ty), shape(y.ty));
    let (own_x, own_y) = (strides(&from), strides(&to));
    let (mut at_x, mut at_y) = (0, 0);
    let axes: Axes<2> = (0..from.len())
        .map(|i| {
            // The part of x that is not cropped away, and its place in y.
            let crop = (-before[i]).max(0) as usize;
            let lead = before[i].max(0) as usize;
            at_x += crop * own_x[i];
            at_y += lead * own_y[i];
            let extent = from[i].saturating_sub(crop).min(to[i].saturating_sub(lead));
            Axis { extent, steps: [own_x[i] as isize, own_y[i] as isize] }
        })
        .collect();
    by_size!(x.ty.dtype, scatter(&collapse(axes), x.bytes, at_x, y.bytes, at_y));
    Ok(())
}

/// [`vdnn_ir::Op::Fill`].
pub(super) fn fill(call: &Call<'_>, value: f32, outputs: &mut [TensorMut<'_>]) -> Result<(), KernelError> {
    fill_with(call, call.one(outputs)?, value)
}

fn fill_with(call: &Call<'_>, y: &mut TensorMut<'_>, value: f32) -> Result<(), KernelError> {
    match y.ty.dtype {
        d @ DType::F32 => call.cast_out(y, d)?.fill(value),
        d @ DType::F64 => call.cast_out(y, d)?.fill(f64::from(value)),
        d @ DType::I32 => call.cast_out(y, d)?.fill(value as i32),
        d @ DType::I64 => call.cast_out(y, d)?.fill(value as i64),
        d @ DType::U8 => call.cast_out(y, d)?.fill(value as u8),
        d @ DType::Bool => call.cast_out(y, d)?.fill(u8::from(value != 0.0)),
        DType::F16 | DType::BF16 if value.to_bits() == 0 => y.bytes.fill(0),
        d => return Err(call.unsupported(format!("filling {d} with {value}"))),
    }
    Ok(())
}

/// Bytes per index of `axis`, for a row-major tensor.
fn inner_bytes(dims: &[usize], axis: usize, dtype: DType) -> usize {
    dims[axis + 1..].iter().product::<usize>() * dtype.bytes() as usize
}

/// [`vdnn_ir::Op::Concat`].
pub(super) fn concat(call: &Call<'_>, axis: usize, outputs: &mut [TensorMut<'_>]) -> Result<(), KernelError> {
    let y = call.one(outputs)?;
    let dims = shape(y.ty);
    let inner = inner_bytes(&dims, axis, y.ty.dtype);
    let row = dims[axis] * inner;
    let mut pieces = Vec::with_capacity(call.arity());
    let mut at = 0;
    for i in 0..call.arity() {
        let x = call.input(i)?;
        let size = x.ty.dims[axis] as usize * inner;
        pieces.push((x.bytes, at..at + size));
        at += size;
    }
    call.par.chunks(y.bytes, row, 1, |n, y| {
        for (x, range) in &pieces {
            y[range.clone()].copy_from_slice(&x[n * range.len()..][..range.len()]);
        }
    });
    Ok(())
}

/// [`vdnn_ir::Op::Split`].
pub(super) fn split(
    call: &Call<'_>,
    axis: usize,
    sizes: &[u64],
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let x = call.input(0)?;
    let dims = shape(x.ty);
    let inner = inner_bytes(&dims, axis, x.ty.dtype);
    let row = dims[axis] * inner;
    let mut at = 0;
    for (y, &size) in outputs.iter_mut().zip(sizes) {
        let size = size as usize * inner;
        call.par.chunks(y.bytes, size, 1, |n, y| y.copy_from_slice(&x.bytes[n * row + at..][..size]));
        at += size;
    }
    Ok(())
}

/// Reshapes and transfers: the output is the first input. Nothing to do if they share bytes.
pub(super) fn copy(call: &Call<'_>, outputs: &mut [TensorMut<'_>]) -> Result<(), KernelError> {
    let y = call.one(outputs)?;
    if let Some(x) = call.operand(0)? {
        y.bytes.copy_from_slice(x.bytes);
    }
    Ok(())
}
