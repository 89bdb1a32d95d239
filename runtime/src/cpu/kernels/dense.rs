//! Matrix products with 512-bit vectors.
//!
//! A product is a pointwise convolution of one image, or the weight gradient of one, so
//! those do the work; here operands are turned where they do not lie as needed. A product
//! with few columns, such as a fully connected layer on a small batch, streams the large
//! operand once, in long runs.

#![cfg(target_arch = "x86_64")]

use super::gemm::MACS_PER_VISIT;
use super::geometry::Conv;
use super::implicit;
use super::par::{Disjoint, Par};
use super::scratch;
use super::tile::{self, Block, COLS, LANES, ROWS, Start};
use super::transpose;
use super::window;

/// Inner extent of one pass over the rows of a task: 8 of them, the next 8 on their way and
/// the panel share a first-level cache.
const RUN: usize = 256;

/// Rows of the large operand per task.
const TASK_ROWS: usize = 128;

/// Element (i, j) of a matrix is at `i * rs + j * cs`.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) rs: usize,
    pub(super) cs: usize,
}

/// `C[m, n] = A[m, k] B[k, n]`, C without gaps. False, with nothing done, if the operands
/// lie in a way that these products do not take.
pub(super) fn product(
    par: &Par,
    [m, n, k]: [usize; 3],
    (a, va): (&[f32], View),
    (b, vb): (&[f32], View),
    c: &mut [f32],
) -> bool {
    let g = Conv::product([m, n, k]);
    let plain = |v: View, cols: usize| v.cs == 1 && v.rs == cols;
    if m == 0 || n == 0 || k == 0 || !window::fits(&g, 1) || !window::fits(&Conv::product([m, k, n]), 1) {
        return false;
    }
    if va.rs == 1 && va.cs == m && plain(vb, n) {
        scratch::with(m * k, |turned| {
            let rows = ((1 << 16) / k).max(1).next_multiple_of(LANES);
            let out = Disjoint::new(turned);
            par.run(m.div_ceil(rows), m * k, |i| {
                let (from, count) = (i * rows, rows.min(m - i * rows));
                // SAFETY: these rows of the transpose are written by this task alone.
                #[expect(unsafe_code, reason = "blocks of rows")]
                let out = unsafe { out.get(from * k..(from + count) * k) };
                transpose::matrix(&a[from..], m, k, count, out, k);
            });
            implicit::forward(par, &g, b, turned, None, c);
        });
        return true;
    }
    if !plain(va, k) {
        return false;
    }
    if plain(vb, n) {
        implicit::forward(par, &g, b, a, None, c);
        return true;
    }
    if vb.rs == 1 && vb.cs == k {
        if m <= COLS {
            few_rows(par, [m, n, k], a, b, c);
        } else {
            // dW[m, channels] = dY[m, positions] X[channels, positions]^T.
            implicit::weight_grad(par, &Conv::product([m, k, n]), b, a, c);
        }
        return true;
    }
    false
}

/// `C[m, n] = A[m, k] B[n, k]^T` for few m: in blocks, `C^T = B A^T` with A^T in a panel.
fn few_rows(par: &Par, [m, n, k]: [usize; 3], a: &[f32], b: &[f32], c: &mut [f32]) {
    let vectors = m.div_ceil(LANES);
    let width = vectors * LANES;
    scratch::with(k * width, |panel| {
        panel.fill(0.0);
        transpose::matrix(a, k, m, k, panel, width);
        let (panel, c) = (&*panel, Disjoint::new(c));
        par.run(n.div_ceil(TASK_ROWS), m * n * k / MACS_PER_VISIT, |task| {
            let rows = task * TASK_ROWS..((task + 1) * TASK_ROWS).min(n);
            scratch::with(rows.len() * width, |block| {
                for from in (0..k).step_by(RUN) {
                    for r in rows.clone().step_by(ROWS) {
                        // SAFETY: `product` was told of the extensions by its caller; the
                        // rows are in b, the panel has k rows of whole vectors, the block
                        // is this task's.
                        #[expect(unsafe_code, reason = "multiplies with vector instructions")]
                        unsafe {
                            tile::multiply(&Block {
                                a: b[r * k + from..].as_ptr(),
                                rs: k,
                                b: panel[from * width..].as_ptr(),
                                depth: RUN.min(k - from),
                                c: block[(r - rows.start) * width..].as_mut_ptr(),
                                ldc: width,
                                rows: ROWS.min(rows.end - r),
                                vectors,
                                cols: width,
                                start: if from == 0 { Start::Zero } else { Start::Add },
                            });
                        }
                    }
                }
                for i in 0..m {
                    // SAFETY: these columns of C are this task's.
                    #[expect(unsafe_code, reason = "columns of C")]
                    let c = unsafe { c.get(i * n + rows.start..i * n + rows.end) };
                    c.iter_mut().zip(block[i..].iter().step_by(width)).for_each(|(c, &x)| *c = x);
                }
            });
        });
    });
}
