//! The transpose of 16 by 16 elements in registers.

#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::{
    __m512, _MM_HINT_T0, _mm_prefetch, _mm512_castpd_ps, _mm512_castps_pd, _mm512_loadu_ps,
    _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_storeu_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps,
    _mm512_unpacklo_pd, _mm512_unpacklo_ps,
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

/// Writes the transpose of the first `cols` columns of a matrix of `rows` rows to `out`, of
/// `cols` rows. Rows are `from_ld` and `to_ld` apart. Panics if a slice is too short; takes
/// 512-bit vectors if [`super::tile::available`].
pub(super) fn matrix(from: &[f32], from_ld: usize, rows: usize, cols: usize, out: &mut [f32], to_ld: usize) {
    if rows == 0 || cols == 0 {
        return;
    }
    assert!((rows - 1) * from_ld + cols <= from.len(), "all rows of the matrix");
    assert!((cols - 1) * to_ld + rows <= out.len(), "all rows of the transpose");
    let whole = if super::tile::available() { (rows / 16 * 16, cols / 16 * 16) } else { (0, 0) };
    for r in (0..whole.0).step_by(16) {
        for c in (0..whole.1).step_by(16) {
            // SAFETY: the extension is there; 16 rows and columns from (r, c) are inside
            // the matrix, and so are theirs inside the transpose.
            #[expect(unsafe_code, reason = "vector instructions after detection")]
            unsafe {
                let out = out.as_mut_ptr().add(c * to_ld + r);
                block(from.as_ptr().add(r * from_ld + c), from_ld, out, to_ld);
            }
        }
    }
    for r in 0..rows {
        let done = if r < whole.0 { whole.1 } else { 0 };
        for c in done..cols {
            out[c * to_ld + r] = from[r * from_ld + c];
        }
    }
}

/// Asks for `len` elements at offset `from` of `x`, which may lie outside of it.
#[expect(unsafe_code, reason = "prefetching takes an address")]
pub(super) fn prefetch(x: &[f32], from: usize, len: usize) {
    for line in (0..len).step_by(16) {
        // SAFETY: prefetching may name any address.
        #[allow(unused_unsafe, reason = "newer compilers call the instruction safe")]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(from + line).cast());
        }
    }
}

/// # Safety
/// 16 rows of 16 elements are readable, and writable in the transpose.
#[expect(unsafe_code, reason = "loads and stores of whole vectors")]
#[target_feature(enable = "avx512f")]
unsafe fn block(from: *const f32, from_ld: usize, to: *mut f32, to_ld: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [_mm512_setzero_ps(); 16];
        for (i, row) in rows.iter_mut().enumerate() {
            // The rows of the block after the next; rows may be far apart.
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add((i + 32) * from_ld).cast());
            *row = _mm512_loadu_ps(from.add(i * from_ld));
        }
        for (i, row) in square(rows).iter().enumerate() {
            _mm512_storeu_ps(to.add(i * to_ld), *row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns() {
        for (rows, cols) in [(16, 16), (1, 1), (17, 40), (40, 17), (5, 33), (32, 48), (0, 3)] {
            let (from_ld, to_ld) = (cols + 3, rows + 2);
            let from: Vec<f32> = (0..rows * from_ld).map(|i| i as f32).collect();
            let mut to = vec![-1f32; cols * to_ld];
            matrix(&from, from_ld, rows, cols, &mut to, to_ld);
            for c in 0..cols {
                for r in 0..to_ld {
                    let want = if r < rows { from[r * from_ld + c] } else { -1.0 };
                    assert_eq!(to[c * to_ld + r], want, "row {r}, column {c} of {rows} x {cols}");
                }
            }
        }
    }
}
