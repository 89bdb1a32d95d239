//! The transpose of 16 by 16 elements in registers.

#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::{
    __m512, _mm512_castpd_ps, _mm512_castps_pd, _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_unpackhi_pd,
    _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

/// Element j of result i is element i of operand j.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn square(r: [__m512; 16]) -> [__m512; 16] {
    // Within each quarter of the registers, 4 by 4.
    let mut t = [_mm512_setzero_ps(); 16];
    for i in 0..4 {
        let [a, b, c, d] = [r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3]];
        let ab = [_mm512_castps_pd(_mm512_unpacklo_ps(a, b)), _mm512_castps_pd(_mm512_unpackhi_ps(a, b))];
        let cd = [_mm512_castps_pd(_mm512_unpacklo_ps(c, d)), _mm512_castps_pd(_mm512_unpackhi_ps(c, d))];
        t[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab[0], cd[0]));
        t[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab[0], cd[0]));
        t[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab[1], cd[1]));
        t[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab[1], cd[1]));
    }
    // Then the quarters, 4 by 4: `t[4 i + j]` holds column `4 q + j` of rows `4 i..` in its
    // quarter q.
    let mut out = [_mm512_setzero_ps(); 16];
    for j in 0..4 {
        let [a, b, c, d] = [t[j], t[4 + j], t[8 + j], t[12 + j]];
        let low = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d)];
        let high = [_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d)];
        out[j] = _mm512_shuffle_f32x4::<0x88>(low[0], low[1]);
        out[4 + j] = _mm512_shuffle_f32x4::<0x88>(high[0], high[1]);
        out[8 + j] = _mm512_shuffle_f32x4::<0xdd>(low[0], low[1]);
        out[12 + j] = _mm512_shuffle_f32x4::<0xdd>(high[0], high[1]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::arch::x86_64::{_mm512_loadu_ps, _mm512_storeu_ps};

    #[test]
    #[expect(unsafe_code, reason = "loads and stores of whole vectors")]
    fn rows_become_columns() {
        if !super::super::tile::available() {
            return;
        }
        let from: Vec<f32> = (0..256u16).map(f32::from).collect();
        let mut to = vec![0f32; 256];
        // SAFETY: the extension is there, and both vectors have 16 times 16 elements.
        unsafe {
            let mut rows = [_mm512_setzero_ps(); 16];
            for (row, from) in rows.iter_mut().zip(from.chunks_exact(16)) {
                *row = _mm512_loadu_ps(from.as_ptr());
            }
            for (row, to) in square(rows).iter().zip(to.chunks_exact_mut(16)) {
                _mm512_storeu_ps(to.as_mut_ptr(), *row);
            }
        }
        for i in 0..16 {
            for j in 0..16 {
                assert_eq!(to[i * 16 + j], from[j * 16 + i]);
            }
        }
    }
}
