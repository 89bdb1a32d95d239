//! Max and average pooling and their gradients, one task per plane.
//!
//! Loops run tap by tap over whole rows, so that they vectorise; taps come in row-major
//! order, which makes the first maximum the recorded one.

use super::args::{Call, shape};
use super::geometry::{self, Space, inputs, outputs, taps};
use super::par::{Disjoint, simd};
use super::scratch;
use std::sync::atomic::{AtomicBool, Ordering};
use vdnn_ir::DType;
use vdnn_ir::kernel::{KernelError, TensorMut};
use vdnn_ir::op::PoolAttrs;

/// Calls `f(input row, row tap)` for every input row that output row (`od`, `oh`) reads; the
/// row tap is the offset in the window of the row's first tap.
#[inline(always)]
fn window_rows(s: &Space, od: usize, oh: usize, mut f: impl FnMut(usize, usize)) {
    let [d, h, w] = s;
    for kd in d.taps(od) {
        for kh in h.taps(oh) {
            if let (Some(id), Some(ih)) = (d.at(od, kd), h.at(oh, kh)) {
                f((id * h.input + ih) * w.input, (kd * h.kernel + kh) * w.kernel);
            }
        }
    }
}

/// Largest element and its tap per output of a row; NaN wins over numbers.
#[inline(always)]
fn max_row(s: &Space, x: &[f32], od: usize, oh: usize, y: &mut [f32], best: &mut [i32]) {
    let w = &s[2];
    y.fill(f32::NEG_INFINITY);
    let mut first = true;
    window_rows(s, od, oh, |row, tap| {
        let x = &x[row..row + w.input];
        if first {
            // Should nothing exceed minus infinity, the first tap inside the input it is.
            for (o, best) in best.iter_mut().enumerate() {
                *best = (tap + w.taps(o).start) as i32;
            }
            first = false;
        }
        for kw in 0..w.kernel {
            let valid = w.valid(kw);
            if valid.is_empty() {
                continue;
            }
            let from = ((valid.start * w.stride) as isize + w.origin(kw)) as usize;
            let (x, tap) = (&x[from..], (tap + kw) as i32);
            let (y, best) = (&mut y[valid.clone()], &mut best[valid]);
            match w.stride {
                1 => max_tap(y, best, x.iter(), tap),
                2 => max_tap(y, best, x.iter().step_by(2), tap),
                s => max_tap(y, best, x.iter().step_by(s), tap),
            }
        }
    });
}

#[inline(always)]
fn max_tap<'a>(y: &mut [f32], best: &mut [i32], x: impl Iterator<Item = &'a f32>, tap: i32) {
    for ((y, best), &x) in y.iter_mut().zip(best).zip(x) {
        let take = (x > *y) | (x.is_nan() & !y.is_nan());
        *y = if take { x } else { *y };
        *best = if take { tap } else { *best };
    }
}

/// [`vdnn_ir::Op::MaxPool`]. A window wholly in the padding gives minus infinity and index 0.
pub(super) fn max(call: &Call<'_>, a: &PoolAttrs, outputs: &mut [TensorMut<'_>]) -> Result<(), KernelError> {
    let x = call.f32(0)?;
    match outputs {
        [y] => {
            let s = geometry::pool(call, a, &shape(call.input(0)?.ty), &shape(y.ty))?;
            max_into::<u8>(call, &s, x, call.f32_out(y)?, None);
        }
        [y, idx] => {
            let s = geometry::pool(call, a, &shape(call.input(0)?.ty), &shape(y.ty))?;
            let y = call.f32_out(y)?;
            if idx.ty.dtype == DType::U8 {
                max_into::<u8>(call, &s, x, y, Some(call.cast_out(idx, DType::U8)?));
            } else {
                max_into::<i32>(call, &s, x, y, Some(call.cast_out(idx, DType::I32)?));
            }
        }
        _ => return Err(call.unsupported(format!("{} outputs", outputs.len()))),
    }
    Ok(())
}

/// An element type of window offsets.
trait Index: bytemuck::Pod + Send + Sync {
    fn from_tap(tap: i32) -> Self;
    fn to_tap(self) -> usize;
}
impl Index for u8 {
    fn from_tap(tap: i32) -> Self {
        tap as Self
    }
    fn to_tap(self) -> usize {
        usize::from(self)
    }
}
impl Index for i32 {
    fn from_tap(tap: i32) -> Self {
        tap
    }
    fn to_tap(self) -> usize {
        usize::try_from(self).unwrap_or(usize::MAX)
    }
}

fn max_into<I: Index>(call: &Call<'_>, s: &Space, x: &[f32], y: &mut [f32], idx: Option<&mut [I]>) {
    let (plane, size, [_, h, w]) = (outputs(s), inputs(s), *s);
    let idx = idx.map(Disjoint::new);
    call.par.chunks(y, plane, 2 * taps(s), |p, y| {
        let x = &x[p * size..][..size];
        // SAFETY: plane p of both outputs is written by task p alone.
        #[expect(unsafe_code, reason = "two outputs written by the same tasks")]
        let mut idx = idx.as_ref().map(|idx| unsafe { idx.get(p * plane..(p + 1) * plane) });
        scratch::with(w.output, |best| {
            let best: &mut [i32] = bytemuck::cast_slice_mut(best);
            best.fill(0);
            for (row, y) in y.chunks_exact_mut(w.output).enumerate() {
                simd(|| max_row(s, x, row / h.output, row % h.output, y, best));
                if let Some(idx) = &mut idx {
                    let idx = &mut idx[row * w.output..][..w.output];
                    idx.iter_mut().zip(&*best).for_each(|(i, &b)| *i = I::from_tap(b));
                }
            }
        });
    });
}

/// [`vdnn_ir::Op::MaxPoolGrad`].
pub(super) fn max_grad(
    call: &Call<'_>,
    a: &PoolAttrs,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let idx = call.input(1)?;
    let out = call.one(outputs)?;
    let s = geometry::pool(call, a, &shape(out.ty), &shape(call.input(0)?.ty))?;
    let (dy, dx) = (call.f32(0)?, call.f32_out(out)?);
    let ok = match idx.ty.dtype {
        DType::U8 => scatter::<u8>(call, &s, dy, call.cast(1, idx, DType::U8)?, dx),
        _ => scatter::<i32>(call, &s, dy, call.cast(1, idx, DType::I32)?, dx),
    };
    if ok {
        Ok(())
    } else {
        Err(KernelError::BadData(format!(
            "a max-pool index lies outside its window of {} positions; the indices must come from the \
             forward pool with the same attributes",
            taps(&s)
        )))
    }
}

/// Adds every dy where its maximum was; false if an index is outside the window.
fn scatter<I: Index>(call: &Call<'_>, s: &Space, dy: &[f32], idx: &[I], dx: &mut [f32]) -> bool {
    let (plane, [d, h, w], window) = (outputs(s), *s, taps(s));
    if dy.is_empty() {
        dx.fill(0.0);
        return true;
    }
    let bad = AtomicBool::new(false);
    call.par.chunks(dx, inputs(s), 2, |p, dx| {
        dx.fill(0.0);
        let (dy, idx) = (&dy[p * plane..][..plane], &idx[p * plane..][..plane]);
        for (row, (dy, idx)) in dy.chunks_exact(w.output).zip(idx.chunks_exact(w.output)).enumerate() {
            let (od, oh) = (row / h.output, row % h.output);
            for (ow, (&dy, &tap)) in dy.iter().zip(idx).enumerate() {
                let tap = tap.to_tap();
                if tap >= window {
                    bad.store(true, Ordering::Relaxed);
                    continue;
                }
                let [kd, kh, kw] = geometry::tap_at(s, tap);
                // A window wholly in the padding has nowhere to put its gradient.
                if let (Some(i), Some(j), Some(k)) = (d.at(od, kd), h.at(oh, kh), w.at(ow, kw)) {
                    dx[(i * h.input + j) * w.input + k] += dy;
                }
            }
        }
    });
    !bad.into_inner()
}

/// `1 / divisor` of every output of a row.
fn divisors(s: &Space, od: usize, oh: usize, include_pad: bool, out: &mut [f64]) {
    let [d, h, w] = s;
    let count = |dim: &geometry::Dim, o: usize| {
        if include_pad { dim.padded_taps(o) } else { dim.taps(o).len() }
    };
    let outer = count(d, od) * count(h, oh);
    for (ow, out) in out.iter_mut().enumerate() {
        *out = 1.0 / (outer * count(w, ow)).max(1) as f64;
    }
}

/// [`vdnn_ir::Op::AvgPool`]; sums in f64.
pub(super) fn avg(
    call: &Call<'_>,
    a: &PoolAttrs,
    include_pad: bool,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let out = call.one(outputs)?;
    let s = geometry::pool(call, a, &shape(call.input(0)?.ty), &shape(out.ty))?;
    let x = call.f32(0)?;
    let y = call.f32_out(out)?;
    let (size, [_, h, w]) = (inputs(&s), s);
    call.par.chunks(y, geometry::outputs(&s), 2 * taps(&s), |p, y| {
        let x = &x[p * size..][..size];
        scratch::with(4 * w.output, |buffer| {
            let (sum, factor) = bytemuck::cast_slice_mut::<_, f64>(buffer).split_at_mut(w.output);
            for (row, y) in y.chunks_exact_mut(w.output).enumerate() {
                let (od, oh) = (row / h.output, row % h.output);
                divisors(&s, od, oh, include_pad, factor);
                sum.fill(0.0);
                simd(|| {
                    window_rows(&s, od, oh, |from, _| avg_row(&w, &x[from..from + w.input], sum));
                    for ((y, &s), &f) in y.iter_mut().zip(&*sum).zip(&*factor) {
                        *y = (s * f) as f32;
                    }
                });
            }
        });
    });
    Ok(())
}

#[inline(always)]
fn avg_row(w: &geometry::Dim, x: &[f32], sum: &mut [f64]) {
    if let [sum] = sum {
        // One output: its taps are the row (or what of it lies in the window).
        let taps = w.taps(0);
        if let (1, Some(from)) = (w.dilation, w.at(0, taps.start)) {
            *sum += super::math::sum_by(&x[from..from + taps.len()], f64::from);
            return;
        }
    }
    for kw in 0..w.kernel {
        let valid = w.valid(kw);
        if valid.is_empty() {
            continue;
        }
        let x = &x[((valid.start * w.stride) as isize + w.origin(kw)) as usize..];
        let sum = &mut sum[valid];
        match w.stride {
            1 => sum.iter_mut().zip(x).for_each(|(s, &x)| *s += f64::from(x)),
            n => sum.iter_mut().zip(x.iter().step_by(n)).for_each(|(s, &x)| *s += f64::from(x)),
        }
    }
}

/// [`vdnn_ir::Op::AvgPoolGrad`].
pub(super) fn avg_grad(
    call: &Call<'_>,
    a: &PoolAttrs,
    include_pad: bool,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let out = call.one(outputs)?;
    let s = geometry::pool(call, a, &shape(out.ty), &shape(call.input(0)?.ty))?;
    let dy = call.f32(0)?;
    let dx = call.f32_out(out)?;
    if dy.is_empty() {
        dx.fill(0.0);
        return Ok(());
    }
    let (plane, [_, h, w]) = (geometry::outputs(&s), s);
    call.par.chunks(dx, inputs(&s), 2 * taps(&s), |p, dx| {
        dx.fill(0.0);
        scratch::with(3 * w.output.next_multiple_of(2), |buffer| {
            let (factor, share) = buffer.split_at_mut(2 * w.output.next_multiple_of(2));
            let factor = &mut bytemuck::cast_slice_mut::<_, f64>(factor)[..w.output];
            for (row, dy) in dy[p * plane..][..plane].chunks_exact(w.output).enumerate() {
                let (od, oh) = (row / h.output, row % h.output);
                divisors(&s, od, oh, include_pad, factor);
                for ((s, &f), &dy) in share.iter_mut().zip(&*factor).zip(dy) {
                    *s = (f64::from(dy) * f) as f32;
                }
                simd(|| {
                    window_rows(&s, od, oh, |from, _| spread(&w, share, &mut dx[from..from + w.input]));
                });
            }
        });
    });
    Ok(())
}

#[inline(always)]
fn spread(w: &geometry::Dim, share: &[f32], dx: &mut [f32]) {
    for kw in 0..w.kernel {
        let valid = w.valid(kw);
        if valid.is_empty() {
            continue;
        }
        let dx = &mut dx[((valid.start * w.stride) as isize + w.origin(kw)) as usize..];
        let share = &share[valid];
        match w.stride {
            1 => dx.iter_mut().zip(share).for_each(|(d, &s)| *d += s),
            n => dx.iter_mut().step_by(n).zip(share).for_each(|(d, &s)| *d += s),
        }
    }
}
