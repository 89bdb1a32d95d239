//! Unfolding of images into matrices and back (im2col; Chellapilla et al., 2006).
//!
//! Row `(channel, tap)` and column `output position` of the matrix hold the input that the
//! output reads at that tap, or zero in the padding.

use super::geometry::{Space, inputs, outputs, tap_at, taps};
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

fn unfold_row(s: &Space, x: &[f32], [kd, kh, kw]: [usize; 3], cols: Range<usize>, out: &mut [f32]) {
    let [d, h, w] = *s;
    let valid = w.valid(kw);
    let origin = w.origin(kw);
    let mut rest = out;
    let mut at = cols.start;
    while !rest.is_empty() {
        let (line, ow) = (at / w.output, at % w.output);
        let n = rest.len().min(w.output - ow);
        let (run, tail) = std::mem::take(&mut rest).split_at_mut(n);
        rest = tail;
        at += n;
        let (Some(id), Some(ih)) = (d.at(line / h.output, kd), h.at(line % h.output, kh)) else {
            run.fill(0.0);
            continue;
        };
        let x = &x[(id * h.input + ih) * w.input..][..w.input];
        let lo = valid.start.clamp(ow, ow + n);
        let hi = valid.end.clamp(lo, ow + n);
        run[..lo - ow].fill(0.0);
        run[hi - ow..].fill(0.0);
        if lo == hi {
            continue;
        }
        let run = &mut run[lo - ow..hi - ow];
        let first = ((lo * w.stride) as isize + origin) as usize;
        match w.stride {
            1 => run.copy_from_slice(&x[first..first + run.len()]),
            2 => strided::<2>(&x[first..], run),
            s => run.iter_mut().zip(x[first..].iter().step_by(s)).for_each(|(o, &x)| *o = x),
        }
    }
}

/// Every `S`th element; a constant step compiles to shuffles.
#[inline(always)]
fn strided<const S: usize>(x: &[f32], out: &mut [f32]) {
    let n = out.len() - 1;
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
