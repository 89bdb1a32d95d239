//! Where numbers are rounded at each precision: the same points in programs and layer by layer.

use vdnn_ir::{Precision, bf16};

/// A factor of a product as the matrix units take it.
pub(crate) fn factor(precision: Precision, x: f32) -> f32 {
    match precision {
        Precision::F32 => x,
        Precision::Tf32 => tf32(x),
        Precision::Bf16 => bf16::widen(bf16::round(x)),
    }
}

/// A number as it is kept between layers.
pub(crate) fn stored(precision: Precision, x: f32) -> f32 {
    if precision == Precision::Bf16 { bf16::widen(bf16::round(x)) } else { x }
}

/// The nearest number with ten bits after the point, ties away from zero (`cvt.rna.tf32.f32`).
fn tf32(x: f32) -> f32 {
    if !x.is_finite() {
        return x;
    }
    // Exponent and mantissa are one number: carries are right, also one into infinity.
    f32::from_bits(x.to_bits().wrapping_add(0x1000) & !0x1fff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tf32_keeps_ten_bits_and_rounds_ties_away() {
        let ulp = 2f32.powi(-10);
        assert_eq!(tf32(1.0 + ulp), 1.0 + ulp);
        assert_eq!(tf32(1.0 + ulp / 2.0), 1.0 + ulp);
        assert_eq!(tf32(-1.0 - ulp / 2.0), -1.0 - ulp);
        assert_eq!(tf32(1.0 + ulp / 2.0 - ulp / 1024.0), 1.0);
        assert!(tf32(f32::NAN).is_nan() && tf32(f32::INFINITY).is_infinite());
        assert_eq!(factor(Precision::Bf16, 1.0 + 2f32.powi(-9)), 1.0);
    }
}
