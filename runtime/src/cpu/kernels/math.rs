//! Elementary functions and sums written so that loops over them vectorise.
//!
//! The polynomials are those of the Cephes library (S. Moshier, expf.c and tanhf.c); the
//! errors stay within 2 units in the last place.

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts; the first has 9 bits, so its multiples are exact.
const LN2_HI: f32 = 355.0 / 512.0;
const LN2_LO: f32 = -2.121_944_4e-4;
/// Adding and subtracting 1.5 * 2^23 rounds to an integer.
const ROUND: f32 = 12_582_912.0;

/// Polynomial P with exp(r) = 1 + r + r^2 P(r) for |r| <= ln(2)/2.
#[inline(always)]
fn exp_tail(r: f32) -> f32 {
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.500_000_06] {
        p = p * r + c;
    }
    p
}

/// `e^x`; overflows to infinity, underflows through the subnormals to zero, keeps NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HI) - n * LN2_LO;
    let y = exp_tail(r) * (r * r) + r + 1.0;
    // The low bits of `shifted` are the integer. Two factors, as 2^n alone may not be normal.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    y * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `e^x - 1` without cancellation near zero.
#[inline(always)]
pub(super) fn exp_m1(x: f32) -> f32 {
    let near = exp_tail(x) * (x * x) + x;
    let far = exp(x) - 1.0;
    if x.abs() < 0.34 { near } else { far }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Hyperbolic tangent.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    for c in [2.063_909e-2, -5.373_971_6e-2, 0.133_314_42, -0.333_332_8] {
        p = p * z + c;
    }
    let near = p * z * x + x;
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 0.625 { near } else { far }
}

/// Lanes of the fixed-order sums: two of the widest vectors of f64.
pub(super) const LANES: usize = 16;

/// Adds the lanes pairwise.
#[inline(always)]
pub(super) fn fold(lanes: [f64; LANES]) -> f64 {
    let mut lanes = lanes;
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            lanes[i] += lanes[i + n];
        }
        n /= 2;
    }
    lanes[0]
}

/// Sum of `f(x)` in f64, in an order that depends on the length alone.
#[inline(always)]
pub(super) fn sum_by(x: &[f32], f: impl Fn(f32) -> f64) -> f64 {
    let mut lanes = [0f64; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane += f(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    fold(lanes)
}

/// Sums of `f(x, y)` and of `g(x, y)` in f64, in an order that depends on the length alone.
#[inline(always)]
pub(super) fn sum2_by(
    x: &[f32],
    y: &[f32],
    f: impl Fn(f32, f32) -> f64,
    g: impl Fn(f32, f32) -> f64,
) -> (f64, f64) {
    let (mut s, mut t) = ([0f64; LANES], [0f64; LANES]);
    let (xs, x_rest) = x.as_chunks::<LANES>();
    let (ys, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in xs.iter().zip(ys) {
        // Rebuilt as a whole; with two sums, adding in place defeats the vectoriser.
        s = std::array::from_fn(|i| s[i] + f(x[i], y[i]));
        t = std::array::from_fn(|i| t[i] + g(x[i], y[i]));
    }
    for (s, (&x, &y)) in s.iter_mut().zip(x_rest.iter().zip(y_rest)) {
        *s += f(x, y);
    }
    for (t, (&x, &y)) in t.iter_mut().zip(x_rest.iter().zip(y_rest)) {
        *t += g(x, y);
    }
    (fold(s), fold(t))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, lo: f32, hi: f32) -> f64 {
        let steps = 200_000;
        (0..=steps)
            .map(|i| lo + (hi - lo) * (i as f32 / steps as f32))
            .map(|x| {
                let y = exact(f64::from(x));
                (f64::from(f(x)) - y).abs() / y.abs().max(1e-30)
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn relative_errors_are_a_few_units_in_the_last_place() {
        assert!(worst(exp, f64::exp, -87.0, 88.7) < 2.5e-7);
        assert!(worst(exp_m1, f64::exp_m1, -20.0, 20.0) < 4e-7);
        assert!(worst(tanh, f64::tanh, -12.0, 12.0) < 3e-7);
        assert!(worst(sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -80.0, 30.0) < 4e-7);
    }

    #[test]
    fn extremes() {
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!((f64::from(exp(-100.0)) / (-100f64).exp() - 1.0).abs() < 0.02, "subnormal");
        assert_eq!((tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)), (1.0, -1.0));
        assert_eq!((sigmoid(f32::INFINITY), sigmoid(f32::NEG_INFINITY)), (1.0, 0.0));
        for f in [exp, exp_m1, tanh, sigmoid] {
            assert!(f(f32::NAN).is_nan());
        }
    }

    #[test]
    fn sums_are_exact_for_integers_of_any_length() {
        for n in [0usize, 1, 15, 16, 17, 1000] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            assert_eq!(sum_by(&x, f64::from), (n * n.saturating_sub(1) / 2) as f64);
            let (s, t) = sum2_by(&x, &x, |a, _| f64::from(a), |a, b| f64::from(a) * f64::from(b));
            assert_eq!(s, sum_by(&x, f64::from));
            assert_eq!(t, x.iter().map(|&x| f64::from(x * x)).sum());
        }
    }
}
