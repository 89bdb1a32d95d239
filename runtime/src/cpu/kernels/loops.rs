//! The vectorised loops that several kernels share.

use super::math;
use super::par::simd_fn;

simd_fn! {
    /// `y[i] = f(x[i])`.
    pub(super) fn map<F: Fn(f32) -> f32>(x: &[f32], y: &mut [f32], f: F) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = f(x);
        }
    }

    /// `y[i] = f(y[i])`.
    pub(super) fn map_in_place<F: Fn(f32) -> f32>(y: &mut [f32], f: F) {
        for y in y {
            *y = f(*y);
        }
    }

    /// `y[i] = f(a[i], b[i])`.
    pub(super) fn map2<F: Fn(f32, f32) -> f32>(a: &[f32], b: &[f32], y: &mut [f32], f: F) {
        for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
            *y = f(a, b);
        }
    }

    /// `y[i] = f(y[i], b[i])`.
    pub(super) fn map2_in_place<F: Fn(f32, f32) -> f32>(b: &[f32], y: &mut [f32], f: F) {
        for (y, &b) in y.iter_mut().zip(b) {
            *y = f(*y, b);
        }
    }

    /// As [`math::sum_by`].
    pub(super) fn sum_by<F: Fn(f32) -> f64>(x: &[f32], f: F) -> f64 {
        math::sum_by(x, f)
    }

    /// As [`math::sum2_by`].
    pub(super) fn sum2_by<F: Fn(f32, f32) -> f64, G: Fn(f32, f32) -> f64>(
        x: &[f32],
        y: &[f32],
        f: F,
        g: G,
    ) -> (f64, f64) {
        math::sum2_by(x, y, f, g)
    }

    /// `sums[i] += x[i]`.
    pub(super) fn accumulate(sums: &mut [f64], x: &[f32]) {
        for (s, &x) in sums.iter_mut().zip(x) {
            *s += f64::from(x);
        }
    }
}
