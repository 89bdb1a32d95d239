//! Convolutions with one input channel per group, as direct loops over rows.

use super::gemm::MACS_PER_VISIT;
use super::geometry::{Conv, Dim, tap_at};
use super::loops;
use super::par::Par;
use super::phases;
use super::scratch;
use super::sums;
use std::ops::Range;

/// A row of the input that a tap reads for a row of the output.
struct Row {
    /// Offset of the output row in its plane.
    output: usize,
    /// Number of the input row in its plane.
    input: usize,
    /// Outputs of the row whose input exists.
    valid: Range<usize>,
    /// Input index, within the row, of the first of them.
    first: usize,
}

/// Calls `f` for every output row that has inputs at this tap.
#[inline(always)]
fn rows(g: &Conv, tap: usize, mut f: impl FnMut(Row)) {
    let [kd, kh, kw] = tap_at(&g.space, tap);
    let [d, h, w] = &g.space;
    let valid = w.valid(kw);
    if valid.is_empty() {
        return;
    }
    let at = |dim: &Dim, o: usize, k: usize| ((o * dim.stride) as isize + dim.origin(k)) as usize;
    let first = at(w, valid.start, kw);
    for od in d.valid(kd) {
        for oh in h.valid(kh) {
            f(Row {
                output: (od * h.output + oh) * w.output,
                input: at(d, od, kd) * h.input + at(h, oh, kh),
                valid: valid.clone(),
                first,
            });
        }
    }
}

/// Multiply-adds per output element.
fn weight(g: &Conv) -> usize {
    4 + 4 * g.taps() / MACS_PER_VISIT
}

/// `y = conv(x, w) + bias`.
pub(super) fn forward(par: &Par, g: &Conv, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    let (taps, mg, stride) = (g.taps(), g.m_group(), g.space[2].stride);
    par.chunks(y, g.outputs(), weight(g), |i, y| {
        let (n, m) = (i / g.m, i % g.m);
        let x = &x[(n * g.c + m / mg) * g.inputs()..][..g.inputs()];
        y.fill(bias.map_or(0.0, |b| b[m]));
        phases::with(x, g.space[2].input, stride, |x| {
            for tap in 0..taps {
                let a = w[m * taps + tap];
                rows(g, tap, |r| {
                    let x = x.run(r.input, r.first, r.valid.len());
                    loops::map2_in_place(x, &mut y[r.output..][r.valid], |y, x| y + a * x);
                });
            }
        });
    });
}

/// The gradient with respect to x.
pub(super) fn dgrad(par: &Par, g: &Conv, dy: &[f32], w: &[f32], dx: &mut [f32]) {
    let (taps, mg, stride) = (g.taps(), g.m_group(), g.space[2].stride);
    par.chunks(dx, g.inputs(), weight(g), |i, dx| {
        let (n, c) = (i / g.c, i % g.c);
        dx.fill(0.0);
        for m in c * mg..(c + 1) * mg {
            let dy = &dy[(n * g.m + m) * g.outputs()..][..g.outputs()];
            for tap in 0..taps {
                let a = w[m * taps + tap];
                rows(g, tap, |r| {
                    let dy = &dy[r.output..][r.valid];
                    let dx = &mut dx[r.input * g.space[2].input + r.first..];
                    match stride {
                        1 => loops::map2_in_place(dy, &mut dx[..dy.len()], |d, g| d + a * g),
                        s => dx.iter_mut().step_by(s).zip(dy).for_each(|(d, &g)| *d += a * g),
                    }
                });
            }
        }
    });
}

/// The gradient with respect to w; sums in f64.
pub(super) fn wgrad(par: &Par, g: &Conv, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let (taps, mg, stride) = (g.taps(), g.m_group(), g.space[2].stride);
    par.chunks(dw, taps, g.images * g.outputs(), |m, dw| {
        scratch::with(2 * taps, |sums| {
            let sums: &mut [f64] = bytemuck::cast_slice_mut(sums);
            sums.fill(0.0);
            for n in 0..g.images {
                let x = &x[(n * g.c + m / mg) * g.inputs()..][..g.inputs()];
                let dy = &dy[(n * g.m + m) * g.outputs()..][..g.outputs()];
                phases::with(x, g.space[2].input, stride, |x| {
                    for (tap, sum) in sums.iter_mut().enumerate() {
                        rows(g, tap, |r| {
                            let x = x.run(r.input, r.first, r.valid.len());
                            let dy = &dy[r.output..][r.valid];
                            *sum += sums::moments(par, dy, 0.0, x, 0.0).1;
                        });
                    }
                });
            }
            dw.iter_mut().zip(sums).for_each(|(dw, sum)| *dw = *sum as f32);
        });
    });
}
