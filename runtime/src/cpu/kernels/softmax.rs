//! Softmax and log-softmax along one axis, and their gradients.

use super::args::{Call, shape};
use super::math;
use super::par::{Par, simd_fn};
use super::scratch;
use vdnn_ir::kernel::{KernelError, TensorMut};

/// Positions handled together when the axis is not the innermost dimension.
const BLOCK: usize = 64;

/// A tensor seen as `[outer, axis, inner]`.
#[derive(Clone, Copy)]
pub(super) struct View {
    pub(super) axis: usize,
    pub(super) inner: usize,
}

impl View {
    pub(super) fn new(dims: &[usize], axis: usize) -> Self {
        Self { axis: dims[axis], inner: dims[axis + 1..].iter().product() }
    }

    /// Elements of one outer index.
    pub(super) fn plane(self) -> usize {
        self.axis * self.inner
    }
}

/// [`vdnn_ir::Op::Softmax`] and, with `log`, [`vdnn_ir::Op::LogSoftmax`].
pub(super) fn softmax(
    call: &Call<'_>,
    axis: usize,
    log: bool,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let view = View::new(&shape(call.input(0)?.ty), axis);
    let x = call.f32(0)?;
    let y = call.f32_out(call.one(outputs)?)?;
    apply(call.par, view, log, x, y);
    Ok(())
}

/// Shifts by the maximum, so that no exponential overflows; sums in f64.
pub(super) fn apply(par: &Par, view: View, log: bool, x: &[f32], y: &mut [f32]) {
    let planes = (2048 / view.plane().max(1)).max(1);
    par.chunks(y, planes * view.plane(), 8, |i, y| {
        let x = &x[i * planes * view.plane()..][..y.len()];
        for (x, y) in x.chunks_exact(view.plane()).zip(y.chunks_exact_mut(view.plane())) {
            if view.inner == 1 {
                row(x, y, log);
            } else {
                for from in (0..view.inner).step_by(BLOCK) {
                    let n = BLOCK.min(view.inner - from);
                    columns(view, from, n, x, y, log);
                }
            }
        }
    });
}

simd_fn! {
    /// One contiguous row.
    fn row(x: &[f32], y: &mut [f32], log: bool) {
        let max = x.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m });
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = math::exp(x - max));
        let sum = math::sum_by(y, f64::from);
        if log {
            let shift = sum.ln() as f32;
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - max) - shift);
        } else {
            let scale = (1.0 / sum) as f32;
            y.iter_mut().for_each(|y| *y *= scale);
        }
    }
}

simd_fn! {
    /// `n` columns of a plane, at most [`BLOCK`].
    fn columns(view: View, from: usize, n: usize, x: &[f32], y: &mut [f32], log: bool) {
        let (mut max, mut sum) = ([f32::NEG_INFINITY; BLOCK], [0f64; BLOCK]);
        let at = |a: usize| a * view.inner + from..a * view.inner + from + n;
        for a in 0..view.axis {
            for (m, &x) in max.iter_mut().zip(&x[at(a)]) {
                *m = if x > *m { x } else { *m };
            }
        }
        for a in 0..view.axis {
            for (((y, &x), &m), s) in y[at(a)].iter_mut().zip(&x[at(a)]).zip(&max).zip(&mut sum) {
                *y = math::exp(x - m);
                *s += f64::from(*y);
            }
        }
        if log {
            let shift = sum.map(|s| s.ln() as f32);
            for a in 0..view.axis {
                for (((y, &x), &m), &s) in y[at(a)].iter_mut().zip(&x[at(a)]).zip(&max).zip(&shift) {
                    *y = (x - m) - s;
                }
            }
        } else {
            let scale = sum.map(|s| (1.0 / s) as f32);
            for a in 0..view.axis {
                y[at(a)].iter_mut().zip(&scale).for_each(|(y, &s)| *y *= s);
            }
        }
    }
}

/// [`vdnn_ir::Op::SoftmaxGrad`]: `dx = y (dy - sum(dy y))`; with `log`,
/// [`vdnn_ir::Op::LogSoftmaxGrad`]: `dx = dy - exp(y) sum(dy)`.
pub(super) fn grad(
    call: &Call<'_>,
    axis: usize,
    log: bool,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let out = call.one(outputs)?;
    let view = View::new(&shape(out.ty), axis);
    let (dy, y) = (call.f32(0)?, call.f32(1)?);
    let dx = call.f32_out(out)?;
    let planes = (2048 / view.plane().max(1)).max(1);
    call.par.chunks(dx, planes * view.plane(), 8, |i, dx| {
        let base = i * planes * view.plane();
        for (p, dx) in dx.chunks_exact_mut(view.plane()).enumerate() {
            let from = base + p * view.plane();
            let (dy, y) = (&dy[from..][..dx.len()], &y[from..][..dx.len()]);
            if view.inner == 1 {
                grad_row(dy, y, dx, log);
            } else {
                scratch::with(2 * view.inner, |sums| {
                    let sums: &mut [f64] = bytemuck::cast_slice_mut(sums);
                    grad_plane(view, dy, y, dx, sums, log);
                });
            }
        }
    });
    Ok(())
}

simd_fn! {
    /// The gradient of one contiguous row.
    fn grad_row(dy: &[f32], y: &[f32], dx: &mut [f32], log: bool) {
        let values = dx.iter_mut().zip(dy).zip(y);
        if log {
            let sum = math::sum_by(dy, f64::from) as f32;
            values.for_each(|((dx, &dy), &y)| *dx = dy - math::exp(y) * sum);
        } else {
            let sum = math::sum2_by(dy, y, |dy, _| f64::from(dy), |dy, y| f64::from(dy) * f64::from(y)).1 as f32;
            values.for_each(|((dx, &dy), &y)| *dx = y * (dy - sum));
        }
    }
}

simd_fn! {
    /// The gradient of a plane; `sums` is room for one number per column.
    fn grad_plane(view: View, dy: &[f32], y: &[f32], dx: &mut [f32], sums: &mut [f64], log: bool) {
        let n = view.inner;
        sums.fill(0.0);
        for (dy, y) in dy.chunks_exact(n).zip(y.chunks_exact(n)) {
            for ((s, &dy), &y) in sums.iter_mut().zip(dy).zip(y) {
                *s += f64::from(dy) * if log { 1.0 } else { f64::from(y) };
            }
        }
        for ((dx, dy), y) in dx.chunks_exact_mut(n).zip(dy.chunks_exact(n)).zip(y.chunks_exact(n)) {
            for (((dx, &dy), &y), &s) in dx.iter_mut().zip(dy).zip(y).zip(&*sums) {
                *dx = if log { dy - math::exp(y) * s as f32 } else { y * (dy - s as f32) };
            }
        }
    }
}
