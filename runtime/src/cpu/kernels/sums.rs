//! Sums in f64 of one or two slices, the reading pass of normalisations and weight gradients.
//!
//! They are written with 512-bit vectors by hand: compilers turn the plain loops of
//! [`super::math`], which other processors use, into code several times slower than memory.

use super::loops;
use super::par::Par;

/// `sum(a - at_a)` and `sum((a - at_a) (b - at_b))` in f64, in an order that depends on the
/// length alone. Panics if `b` is shorter than `a`.
pub(super) fn moments(par: &Par, a: &[f32], at_a: f64, b: &[f32], at_b: f64) -> (f64, f64) {
    let b = &b[..a.len()];
    #[cfg(target_arch = "x86_64")]
    if par.wide() {
        // SAFETY: `Par::wide` has found the extension.
        #[expect(unsafe_code, reason = "vector instructions after detection")]
        return unsafe { wide(a, at_a, b, at_b) };
    }
    let _ = par;
    loops::sum2_by(a, b, |a, _| f64::from(a) - at_a, |a, b| (f64::from(a) - at_a) * (f64::from(b) - at_b))
}

/// Vectors of 8 summed side by side: enough additions in flight.
#[cfg(target_arch = "x86_64")]
const SIDE: usize = 4;

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "loads of whole vectors")]
#[target_feature(enable = "avx512f")]
fn wide(a: &[f32], at_a: f64, b: &[f32], at_b: f64) -> (f64, f64) {
    use std::arch::x86_64::{
        _mm256_loadu_ps, _mm512_add_pd, _mm512_cvtps_pd, _mm512_fmadd_pd, _mm512_reduce_add_pd,
        _mm512_set1_pd, _mm512_setzero_pd, _mm512_sub_pd,
    };
    let (from_a, from_b) = (_mm512_set1_pd(at_a), _mm512_set1_pd(at_b));
    let (mut s, mut t) = ([_mm512_setzero_pd(); SIDE], [_mm512_setzero_pd(); SIDE]);
    let (blocks_a, rest_a) = a.as_chunks::<{ 8 * SIDE }>();
    let (blocks_b, rest_b) = b.as_chunks::<{ 8 * SIDE }>();
    for (a, b) in blocks_a.iter().zip(blocks_b) {
        for (i, (s, t)) in s.iter_mut().zip(&mut t).enumerate() {
            // SAFETY: vector i of the block.
            let (a, b) =
                unsafe { (_mm256_loadu_ps(a.as_ptr().add(8 * i)), _mm256_loadu_ps(b.as_ptr().add(8 * i))) };
            let a = _mm512_sub_pd(_mm512_cvtps_pd(a), from_a);
            let b = _mm512_sub_pd(_mm512_cvtps_pd(b), from_b);
            *s = _mm512_add_pd(*s, a);
            *t = _mm512_fmadd_pd(a, b, *t);
        }
    }
    let [s, t] = [s, t].map(|v| {
        let pair = [_mm512_add_pd(v[0], v[1]), _mm512_add_pd(v[2], v[3])];
        _mm512_reduce_add_pd(_mm512_add_pd(pair[0], pair[1]))
    });
    let rest = rest_a.iter().zip(rest_b).fold((0f64, 0f64), |(s, t), (&a, &b)| {
        let a = f64::from(a) - at_a;
        (s + a, t + a * (f64::from(b) - at_b))
    });
    (s + rest.0, t + rest.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_exact_for_small_integers() {
        for n in [0usize, 1, 31, 32, 33, 1000] {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let b: Vec<f32> = (0..n + 3).map(|i| (i % 7) as f32).collect();
            let want = a.iter().zip(&b).fold((0.0, 0.0), |(s, t), (&a, &b)| {
                let a = f64::from(a) - 2.0;
                (s + a, t + a * (f64::from(b) - 3.0))
            });
            for par in [Par::new(1), Par::narrow(1)] {
                assert_eq!(moments(&par, &a, 2.0, &b, 3.0), want, "{n} elements");
            }
        }
    }
}
