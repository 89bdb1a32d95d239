//! Convolutions with one input channel per group, as direct loops over rows.

use super::gemm::MACS_PER_VISIT;
use super::geometry::{Conv, Dim, tap_at};
use super::math;
use super::par::{Par, simd};
use std::ops::Range;

/// A tap that reads or writes row `i` of the input for row `o` of the output.
struct Row {
    output: usize,
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
                input: (at(d, od, kd) * h.input + at(h, oh, kh)) * w.input,
                valid: valid.clone(),
                first,
            });
        }
    }
}

/// `y[i] += a * x[i * S]`.
#[inline(always)]
fn add_scaled(y: &mut [f32], a: f32, x: &[f32], stride: usize) {
    match stride {
        1 => y.iter_mut().zip(x).for_each(|(y, &x)| *y += a * x),
        s => y.iter_mut().zip(x.iter().step_by(s)).for_each(|(y, &x)| *y += a * x),
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
        simd(|| {
            for tap in 0..taps {
                let a = w[m * taps + tap];
                rows(g, tap, |r| {
                    let y = &mut y[r.output..][r.valid];
                    add_scaled(y, a, &x[r.input + r.first..], stride);
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
            simd(|| {
                for tap in 0..taps {
                    let a = w[m * taps + tap];
                    rows(g, tap, |r| {
                        let dy = &dy[r.output..][r.valid];
                        let dx = &mut dx[r.input + r.first..];
                        match stride {
                            1 => dx.iter_mut().zip(dy).for_each(|(d, &g)| *d += a * g),
                            s => dx.iter_mut().step_by(s).zip(dy).for_each(|(d, &g)| *d += a * g),
                        }
                    });
                }
            });
        }
    });
}

/// The gradient with respect to w; sums in f64.
pub(super) fn wgrad(par: &Par, g: &Conv, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let (taps, mg, stride) = (g.taps(), g.m_group(), g.space[2].stride);
    par.chunks(dw, taps, g.images * g.outputs(), |m, dw| {
        for (tap, dw) in dw.iter_mut().enumerate() {
            let mut sum = 0f64;
            for n in 0..g.images {
                let x = &x[(n * g.c + m / mg) * g.inputs()..][..g.inputs()];
                let dy = &dy[(n * g.m + m) * g.outputs()..][..g.outputs()];
                simd(|| {
                    rows(g, tap, |r| {
                        let dy = &dy[r.output..][r.valid];
                        let x = &x[r.input + r.first..];
                        sum += match stride {
                            1 => {
                                math::sum2_by(dy, &x[..dy.len()], |a, b| (f64::from(a) * f64::from(b), 0.0)).0
                            }
                            s => dy
                                .iter()
                                .zip(x.iter().step_by(s))
                                .map(|(&a, &b)| f64::from(a) * f64::from(b))
                                .sum(),
                        };
                    });
                });
            }
            *dw = sum as f32;
        }
    });
}
