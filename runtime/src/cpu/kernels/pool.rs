//! Max and average pooling and their gradients, one task per plane.
//!
//! Loops run tap by tap over whole rows, so that they vectorise; taps come in row-major
//! order, which makes the first maximum the recorded one. The average of a row of one
//! output is a plain sum.

use super::args::{Call, shape};
use super::geometry::{self, Dim, Space, inputs, outputs, taps};
use super::loops;
use super::par::{Disjoint, simd_fn};
use super::phases::{self, Phases};
use super::scratch;
use smallvec::SmallVec;
use std::ops::Range;
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
                f(id * h.input + ih, (kd * h.kernel + kh) * w.kernel);
            }
        }
    }
}

/// What all output rows share, so that no row divides.
struct Rows {
    /// Per tap of a window row that some output reads: the tap, those outputs, and the
    /// position in the row of the first one's input.
    taps: SmallVec<[(usize, Range<usize>, usize); 8]>,
    /// First tap of each output that lies in the input.
    first: Vec<i32>,
    /// Positions of each output's window along each dimension that count for an average.
    counts: [Vec<f64>; 3],
}

impl Rows {
    fn new(s: &Space, include_pad: bool) -> Self {
        let w = &s[2];
        let taps = (0..w.kernel).map(|kw| (kw, w.valid(kw))).filter(|(_, valid)| !valid.is_empty());
        let count = |d: &Dim, o: usize| if include_pad { d.padded_taps(o) } else { d.taps(o).len() };
        Self {
            taps: taps
                .map(|(kw, valid)| {
                    let first = ((valid.start * w.stride) as isize + w.origin(kw)) as usize;
                    (kw, valid, first)
                })
                .collect(),
            first: (0..w.output).map(|o| w.taps(o).start as i32).collect(),
            counts: s.map(|d| (0..d.output).map(|o| count(&d, o) as f64).collect()),
        }
    }

    /// `1 / divisor` of every output of a row.
    fn factors(&self, od: usize, oh: usize, out: &mut [f64]) {
        let [d, h, w] = &self.counts;
        let outer = d[od] * h[oh];
        for (out, w) in out.iter_mut().zip(w) {
            *out = 1.0 / (outer * w).max(1.0);
        }
    }
}

/// Largest element and its tap per output of a row.
fn max_row(s: &Space, rows: &Rows, x: Phases<'_>, [od, oh]: [usize; 2], y: &mut [f32], best: &mut [i32]) {
    y.fill(f32::NEG_INFINITY);
    let mut first = true;
    window_rows(s, od, oh, |row, tap| {
        if first {
            // Should nothing exceed minus infinity, the first tap inside the input it is.
            best.iter_mut().zip(&rows.first).for_each(|(best, first)| *best = tap as i32 + first);
            first = false;
        }
        for (kw, valid, from) in &rows.taps {
            let x = x.run(row, *from, valid.len());
            max_tap(&mut y[valid.clone()], &mut best[valid.clone()], x, (tap + kw) as i32);
        }
    });
}

simd_fn! {
    /// Takes the elements of `x` that are larger; NaN is larger than numbers.
    fn max_tap(y: &mut [f32], best: &mut [i32], x: &[f32], tap: i32) {
        for ((y, best), &x) in y.iter_mut().zip(best).zip(x) {
            let take = (x > *y) | (x.is_nan() & !y.is_nan());
            *y = if take { x } else { *y };
            *best = if take { tap } else { *best };
        }
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
    let (idx, rows) = (idx.map(Disjoint::new), Rows::new(s, false));
    call.par.chunks(y, plane, 2 * taps(s), |p, y| {
        let x = &x[p * size..][..size];
        // SAFETY: plane p of both outputs is written by task p alone.
        #[expect(unsafe_code, reason = "two outputs written by the same tasks")]
        let mut idx = idx.as_ref().map(|idx| unsafe { idx.get(p * plane..(p + 1) * plane) });
        scratch::with(w.output, |best| {
            let best: &mut [i32] = bytemuck::cast_slice_mut(best);
            best.fill(0);
            phases::with(x, w.input, w.stride, |x| {
                for (row, y) in y.chunks_exact_mut(w.output).enumerate() {
                    max_row(s, &rows, x, [row / h.output, row % h.output], y, best);
                    if let Some(idx) = &mut idx {
                        let idx = &mut idx[row * w.output..][..w.output];
                        idx.iter_mut().zip(&*best).for_each(|(i, &b)| *i = I::from_tap(b));
                    }
                }
            });
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
    let (size, [_, h, w], rows) = (inputs(&s), s, Rows::new(&s, include_pad));
    call.par.chunks(y, geometry::outputs(&s), 2 * taps(&s), |p, y| {
        let x = &x[p * size..][..size];
        scratch::with(4 * w.output, |buffer| {
            let (sum, factor) = bytemuck::cast_slice_mut::<_, f64>(buffer).split_at_mut(w.output);
            phases::with(x, w.input, w.stride, |x| {
                for (row, y) in y.chunks_exact_mut(w.output).enumerate() {
                    let (od, oh) = (row / h.output, row % h.output);
                    rows.factors(od, oh, factor);
                    sum.fill(0.0);
                    window_rows(&s, od, oh, |row, _| sum_row(&w, &rows, x, row, sum));
                    for ((y, &s), &f) in y.iter_mut().zip(&*sum).zip(&*factor) {
                        *y = (s * f) as f32;
                    }
                }
            });
        });
    });
    Ok(())
}

/// Adds one input row to the sums of an output row.
fn sum_row(w: &Dim, rows: &Rows, x: Phases<'_>, row: usize, sum: &mut [f64]) {
    if let ([sum], 1, 1) = (&mut *sum, w.dilation, w.stride) {
        // One output: its taps lie side by side.
        let taps = w.taps(0);
        if let Some(from) = w.at(0, taps.start) {
            *sum += loops::sum_by(x.run(row, from, taps.len()), f64::from);
        }
        return;
    }
    for (_, valid, from) in &rows.taps {
        loops::accumulate(&mut sum[valid.clone()], x.run(row, *from, valid.len()));
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
    let (plane, [_, h, w], rows) = (geometry::outputs(&s), s, Rows::new(&s, include_pad));
    call.par.chunks(dx, inputs(&s), 2 * taps(&s), |p, dx| {
        dx.fill(0.0);
        scratch::with(3 * w.output.next_multiple_of(2), |buffer| {
            let (factor, share) = buffer.split_at_mut(2 * w.output.next_multiple_of(2));
            let factor = &mut bytemuck::cast_slice_mut::<_, f64>(factor)[..w.output];
            for (row, dy) in dy[p * plane..][..plane].chunks_exact(w.output).enumerate() {
                let (od, oh) = (row / h.output, row % h.output);
                rows.factors(od, oh, factor);
                for ((s, &f), &dy) in share.iter_mut().zip(&*factor).zip(dy) {
                    *s = (f64::from(dy) * f) as f32;
                }
                window_rows(&s, od, oh, |row, _| {
                    let dx = &mut dx[row * w.input..][..w.input];
                    for (_, valid, from) in &rows.taps {
                        let (dx, share) = (&mut dx[*from..], &share[valid.clone()]);
                        match w.stride {
                            1 => loops::map2_in_place(share, &mut dx[..share.len()], |d, s| d + s),
                            n => dx.iter_mut().step_by(n).zip(share).for_each(|(d, &s)| *d += s),
                        }
                    }
                });
            }
        });
    });
    Ok(())
}
