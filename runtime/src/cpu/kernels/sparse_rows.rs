//! Packed weights times runs of a panel, with 512-bit vectors.

#![cfg(target_arch = "x86_64")]

use super::sparse::{LANES, VECTORS};
use std::arch::x86_64::{
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

/// Adds to the sums, at most [`VECTORS`] vectors of them, the products of the first entries whose
/// column is in the table, of which every offset must have as many elements of the panel behind it
/// as there are sums; returns how many words those entries are.
///
/// Panics if the sums are no whole vectors, or this processor has no vectors of 512 bits
/// ([`super::tile::available`]); runs stay in the panel whatever the table says.
#[expect(unsafe_code, reason = "vector instructions")]
pub(super) fn add(entries: &[i32], table: &[u32], panel: &[f32], sums: &mut [f32]) -> usize {
    assert!(sums.len().is_multiple_of(LANES) && sums.len() <= VECTORS * LANES && panel.len() >= sums.len());
    assert!(super::tile::available(), "512-bit vectors");
    macro_rules! by_vectors {
        ($($n:literal),+) => {
            match sums.len() / LANES {
                // SAFETY: the extensions were just found; N vectors are what the sums have.
                $($n => unsafe { row::<$n>(entries, table, panel, sums) },)+
                _ => 0,
            }
        };
    }
    by_vectors!(1, 2, 3, 4, 5, 6, 7, 8)
}

/// # Safety
/// The processor has AVX-512F, and the sums are N vectors.
#[expect(unsafe_code, reason = "vector instructions")]
#[target_feature(enable = "avx512f")]
unsafe fn row<const N: usize>(entries: &[i32], table: &[u32], panel: &[f32], sums: &mut [f32]) -> usize {
    // The last element at which a run may begin.
    let last = panel.len() - sums.len();
    let mut acc = [_mm512_setzero_ps(); N];
    for (j, acc) in acc.iter_mut().enumerate() {
        // SAFETY: the sums are N vectors.
        *acc = unsafe { _mm512_loadu_ps(sums.as_ptr().add(j * LANES)) };
    }
    let mut done = 0;
    for entry in entries.chunks_exact(2) {
        let Some(&offset) = table.get(entry[0] as u32 as usize) else { break };
        let value = _mm512_set1_ps(f32::from_bits(entry[1] as u32));
        let run = panel.as_ptr().wrapping_add((offset as usize).min(last));
        for (j, acc) in acc.iter_mut().enumerate() {
            // SAFETY: a run of the sums' length from `last` or before it ends in the panel.
            *acc = _mm512_fmadd_ps(value, unsafe { _mm512_loadu_ps(run.add(j * LANES)) }, *acc);
        }
        done += 2;
    }
    for (j, acc) in acc.iter().enumerate() {
        // SAFETY: the sums are N vectors.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr().add(j * LANES), *acc) };
    }
    done
}
