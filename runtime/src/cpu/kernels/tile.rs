//! The innermost product with 512-bit vectors: a block of C of at most 8 rows and 48
//! columns, kept in registers while the inner dimension runs.
//!
//! The blocking is that of Goto and van de Geijn, "Anatomy of High-Performance Matrix
//! Multiplication" (TOMS 34, 2008): B is packed into panels as wide as the block that stay
//! in the first-level cache, A streams past them from the second-level one. A is read where
//! it lies. The block has 24 accumulators: more than the 8 multiply-adds in flight on two
//! units of four cycles, and few enough to leave registers for the operands.

#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::{
    __m512, _MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_fmadd_ps, _mm512_load_ps,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
};

/// Elements of a vector.
pub(super) const LANES: usize = 16;

/// Rows of a block.
pub(super) const ROWS: usize = 8;

/// Vectors across a block.
pub(super) const VECTORS: usize = 3;

/// Columns of a block.
pub(super) const COLS: usize = VECTORS * LANES;

/// What the product is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Nothing: the old content of C is not read.
    Zero,
    /// One number per row.
    Bias(*const f32),
    /// The content of C.
    Add,
}

/// `C = start + A B` for one block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Element (i, k) of A is at `a[i * rs + k]`.
    pub(super) a: *const f32,
    /// Distance of the rows of A.
    pub(super) rs: usize,
    /// Element (k, j) of B is at `b[k * vectors * LANES + j]`; 64-byte aligned.
    pub(super) b: *const f32,
    /// Inner extent.
    pub(super) depth: usize,
    /// Element (i, j) of C is at `c[i * ldc + j]`.
    pub(super) c: *mut f32,
    /// Distance of the rows of C.
    pub(super) ldc: usize,
    /// Rows, 1 to [`ROWS`].
    pub(super) rows: usize,
    /// Vectors across, 1 to [`VECTORS`].
    pub(super) vectors: usize,
    /// Columns of C that exist, at most `vectors * LANES`; B has the others too.
    pub(super) cols: usize,
    /// What the product is added to.
    pub(super) start: Start,
}

/// True if the processor has what [`multiply`] needs.
pub(super) fn available() -> bool {
    std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512vl")
        && std::arch::is_x86_feature_detected!("bmi2")
}

/// Computes a block.
///
/// # Safety
/// [`available`] is true; A has `rows` rows of `depth` elements, B `depth` rows of `vectors`
/// aligned vectors, all readable; C's `rows` by `cols` elements belong to the caller alone,
/// and a bias has `rows` elements.
#[expect(unsafe_code, reason = "vector instructions on raw blocks")]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn multiply(t: &Block) {
    macro_rules! by_shape {
        ($($rows:literal),+) => {
            match (t.rows, t.vectors) {
                // SAFETY: the caller's promise.
                $(($rows, 1) => unsafe { block::<$rows, 1>(t) },
                // SAFETY: the caller's promise.
                ($rows, 2) => unsafe { block::<$rows, 2>(t) },
                // SAFETY: the caller's promise.
                ($rows, 3) => unsafe { block::<$rows, 3>(t) },)+
                shape => unreachable!("no block of {shape:?}"),
            }
        };
    }
    by_shape!(8, 4, 1, 2, 3, 5, 6, 7);
}

/// # Safety
/// As [`multiply`], with `R` rows and `V` vectors.
#[expect(unsafe_code, reason = "vector instructions on raw blocks")]
#[target_feature(enable = "avx512f")]
unsafe fn block<const R: usize, const V: usize>(t: &Block) {
    // SAFETY: every address is inside A, B or C by the caller's promise; prefetching may
    // name any address.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); V]; R];
        for i in 0..R {
            for j in 0..V {
                _mm_prefetch::<_MM_HINT_ET0>(t.c.wrapping_add(i * t.ldc + j * LANES).cast());
            }
        }
        let (mut a, mut b, mut left) = (t.a, t.b, t.depth);
        while left > 0 {
            // The next block of rows is about to be read; a line holds 16 steps.
            let steps = left.min(LANES);
            let next = a.wrapping_add(R * t.rs);
            for i in 0..R {
                _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(i * t.rs).cast());
            }
            for _ in 0..steps {
                let mut v = [_mm512_setzero_ps(); V];
                for (j, v) in v.iter_mut().enumerate() {
                    *v = _mm512_load_ps(b.add(j * LANES));
                }
                for (i, acc) in acc.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*a.add(i * t.rs));
                    for (acc, v) in acc.iter_mut().zip(v) {
                        *acc = _mm512_fmadd_ps(x, v, *acc);
                    }
                }
                a = a.add(1);
                b = b.add(V * LANES);
            }
            left -= steps;
        }
        for (i, acc) in acc.iter().enumerate() {
            let row = t.c.add(i * t.ldc);
            for (j, &acc) in acc.iter().enumerate() {
                let mask = lanes(t.cols.saturating_sub(j * LANES));
                let at = row.wrapping_add(j * LANES);
                let sum: __m512 = match t.start {
                    Start::Zero => acc,
                    Start::Bias(bias) => _mm512_add_ps(acc, _mm512_set1_ps(*bias.add(i))),
                    Start::Add => _mm512_add_ps(_mm512_maskz_loadu_ps(mask, at), acc),
                };
                _mm512_mask_storeu_ps(at, mask, sum);
            }
        }
    }
}

/// The mask of the first `n` lanes.
pub(super) fn lanes(n: usize) -> u16 {
    if n >= LANES { u16::MAX } else { (1 << n) - 1 }
}

/// How `n` columns are cut into blocks as equally wide as possible: block `i` starts at
/// column `first(i)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Widths {
    cols: usize,
    blocks: usize,
}

impl Widths {
    pub(super) fn new(cols: usize) -> Self {
        Self { cols, blocks: cols.div_ceil(LANES).div_ceil(VECTORS) }
    }

    /// Number of blocks.
    pub(super) fn blocks(self) -> usize {
        self.blocks
    }

    /// First column of block `i`, a multiple of [`LANES`], or the number of columns.
    pub(super) fn first(self, i: usize) -> usize {
        let vectors = self.cols.div_ceil(LANES);
        (i * vectors / self.blocks.max(1) * LANES).min(self.cols)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_all_columns_with_at_most_three_vectors() {
        for cols in 0..400 {
            let w = Widths::new(cols);
            assert_eq!((w.first(0), w.first(w.blocks())), (0, cols));
            for i in 0..w.blocks() {
                let width = w.first(i + 1) - w.first(i);
                assert!(width > 0 && width <= COLS, "block {i} of {cols} columns has {width}");
            }
        }
    }
}
