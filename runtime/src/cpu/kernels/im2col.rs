//! Unfolding of images into matrices and back (im2col; Chellapilla et al., 2006).
//!
//! Row `(channel, tap)` and column `output position` of the matrix hold the input that the
//! output reads at that tap, or zero in the padding.

use super::geometry::{Dim, Space, inputs, outputs, tap_at, taps};
use std::ops::Range;

/// Writes rows `rows` and columns `cols` of the unfolding of `x` (planes of one image's
/// group) to `out`, whose rows start every `ld` elements.
pub(super) fn im2col(
    s: &Space,
    x: &[f32],
    rows: Range<usize>,
    cols: Range<usize>,
    out: &mut [f32],
    ld: usize,
) {
    let (taps, plane) = (taps(s), inputs(s));
    for (r, row) in rows.enumerate() {
        let [kd, kh, kw] = tap_at(s, row % taps);
        let x = &x[row / taps * plane..][..plane];
        let out = &mut out[r * ld..][..cols.len()];
        unfold_row(s, x, [kd, kh, kw], cols.clone(), out);
    }
}

fn unfold_row(s: &Space, x: &[f32], tap: [usize; 3], cols: Range<usize>, out: &mut [f32]) {
    let [d, h, w] = s;
    if d.output == 1 && d.kernel == 1 && h.stride == 1 && w.stride == 1 && w.input == w.output {
        shifted_row(h, w, x, tap, cols, out);
    } else {
        general_row(s, x, tap, cols, out);
    }
}

/// A row of a convolution that keeps the width: one shifted copy of the plane, with the
/// columns that read padding set to zero.
fn shifted_row(h: &Dim, w: &Dim, x: &[f32], [_, kh, kw]: [usize; 3], cols: Range<usize>, out: &mut [f32]) {
    let width = w.output;
    let shift = h.origin(kh) * width as isize + w.origin(kw);
    let lines = h.valid(kh);
    let clamp = |i: isize| i.clamp(cols.start as isize, cols.end as isize) as usize;
    let from = clamp((lines.start * width) as isize).max(clamp(-shift));
    let to = clamp((lines.end * width) as isize).min(clamp(x.len() as isize - shift)).max(from);
    out[..from - cols.start].fill(0.0);
    out[to - cols.start..].fill(0.0);
    if from < to {
        let source = (from as isize + shift) as usize;
        out[from - cols.start..to - cols.start].copy_from_slice(&x[source..source + to - from]);
    }
    let valid = w.valid(kw);
    if valid.len() < width {
        for line in cols.start / width..cols.end.div_ceil(width) {
            for edge in [0..valid.start, valid.end..width] {
                let at = |ow: usize| (line * width + ow).clamp(cols.start, cols.end) - cols.start;
                for x in &mut out[at(edge.start)..at(edge.end)] {
                    *x = 0.0;
                }
            }
        }
    }
}

/// A row of any window, line by line.
fn general_row(s: &Space, x: &[f32], [kd, kh, kw]: [usize; 3], cols: Range<usize>, out: &mut [f32]) {
    let [d, h, w] = s;
    let (valid, origin) = (w.valid(kw), w.origin(kw));
    let (mut at, mut ow) = (cols.start, cols.start % w.output);
    let line = cols.start / w.output;
    let (mut od, mut oh) = (line / h.output, line % h.output);
    while at < cols.end {
        let run = at - cols.start..(at - ow + w.output).min(cols.end) - cols.start;
        let (from, place_d, place_h) = (ow, d.at(od, kd), h.at(oh, kh));
        (at, ow, oh) = (at + run.len(), 0, oh + 1);
        if oh == h.output {
            (od, oh) = (od + 1, 0);
        }
        let (Some(id), Some(ih)) = (place_d, place_h) else {
            out[run].fill(0.0);
            continue;
        };
        // Outputs of this run whose input exists, as positions in `out`.
        let place = |o: usize| run.start + o.clamp(from, from + run.len()) - from;
        let (lo, hi) = (place(valid.start), place(valid.end));
        if lo < hi {
            let first = (((from + lo - run.start) * w.stride) as isize + origin) as usize;
            let x = &x[(id * h.input + ih) * w.input + first..];
            let n = hi - lo;
            let out = &mut out[lo..];
            match w.stride {
                1 => copy_start(x, out, n),
                2 => strided::<2>(x, &mut out[..n]),
                s => out[..n].iter_mut().zip(x.iter().step_by(s)).for_each(|(o, &x)| *o = x),
            }
        }
        out[run.start..lo].fill(0.0);
        out[hi.max(lo)..run.end].fill(0.0);
    }
}

/// Copies at least `n` elements: a short run as a whole vector if there is room. What it
/// writes too much is written again afterwards.
#[inline(always)]
fn copy_start(x: &[f32], out: &mut [f32], n: usize) {
    match (x.first_chunk::<16>(), out.first_chunk_mut::<16>()) {
        (Some(x), Some(out)) if n <= 16 => *out = *x,
        _ => out[..n].copy_from_slice(&x[..n]),
    }
}

/// Every `S`th element; a constant step compiles to shuffles.
#[inline(always)]
fn strided<const S: usize>(x: &[f32], out: &mut [f32]) {
    let Some(n) = out.len().checked_sub(1) else { return };
    for (o, x) in out[..n].iter_mut().zip(x.as_chunks::<S>().0) {
        *o = x[0];
    }
    out[n] = x[n * S];
}

/// Adds the rows of `col`, the whole unfolding of `channels` planes, back onto those planes
/// of `x`, in tap order.
pub(super) fn col2im(s: &Space, channels: usize, col: &[f32], x: &mut [f32]) {
    let (taps, plane, width) = (taps(s), inputs(s), outputs(s));
    let [d, h, w] = *s;
    for c in 0..channels {
        let x = &mut x[c * plane..][..plane];
        for tap in 0..taps {
            let [kd, kh, kw] = tap_at(s, tap);
            let col = &col[(c * taps + tap) * width..][..width];
            let valid = w.valid(kw);
            if valid.is_empty() {
                continue;
            }
            let first = ((valid.start * w.stride) as isize + w.origin(kw)) as usize;
            for od in d.valid(kd) {
                let id = ((od * d.stride) as isize + d.origin(kd)) as usize;
                for oh in h.valid(kh) {
                    let ih = ((oh * h.stride) as isize + h.origin(kh)) as usize;
                    let col = &col[(od * h.output + oh) * w.output..][valid.clone()];
                    let x = &mut x[(id * h.input + ih) * w.input + first..];
                    match w.stride {
                        1 => x.iter_mut().zip(col).for_each(|(x, &c)| *x += c),
                        s => x.iter_mut().step_by(s).zip(col).for_each(|(x, &c)| *x += c),
                    }
                }
            }
        }
    }
}
