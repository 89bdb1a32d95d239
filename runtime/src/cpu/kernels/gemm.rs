//! Matrix products: the GEMM every kernel uses, and the ops Gemm and MatMul.
//!
//! Large products go to [`super::dense`] where the processor has 512-bit vectors. Else the
//! multiplication is the `gemm-f32` crate's, always single-threaded: its blocking follows from
//! the shape of the call. Large products are cut into blocks of C, again by shape alone, so
//! the bits do not depend on the number of threads.

use super::args::{Call, shape};
#[cfg(target_arch = "x86_64")]
use super::dense;
use super::layout::{Axis, broadcast_strides, collapse, offsets};
use super::loops;
use super::par::{Disjoint, Par};
use gemm_common::Parallelism;
use std::ops::Range;
use vdnn_ir::kernel::{KernelError, TensorMut};

/// A matrix to read; element (i, j) is `data[i * rs + j * cs]`.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    rs: usize,
    cs: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix whose rows start every `ld` elements. Panics if it reaches beyond
    /// the data.
    pub(super) fn new(data: &'a [f32], rows: usize, cols: usize, ld: usize) -> Self {
        if rows > 0 && cols > 0 {
            assert!((rows - 1) * ld + cols <= data.len(), "a matrix inside its data");
        }
        Self { data, rows, cols, rs: ld, cs: 1 }
    }

    /// The transpose.
    pub(super) fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, rs: self.cs, cs: self.rs, ..self }
    }

    /// Transposed if `yes`.
    fn t_if(self, yes: bool) -> Self {
        if yes { self.t() } else { self }
    }

    /// A part of the rows and columns.
    fn part(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.end <= self.rows && cols.end <= self.cols, "a part of the matrix");
        let at = (rows.start * self.rs + cols.start * self.cs).min(self.data.len());
        Self { data: &self.data[at..], rows: rows.len(), cols: cols.len(), ..self }
    }
}

/// Where a product goes: row-major, rows every `ld` elements from `at`.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) at: usize,
    pub(super) ld: usize,
}

/// `C = alpha a b`, or `C += alpha a b`, on the calling thread. Without `add` the old
/// content of C is not read.
///
/// # Safety
/// The elements of C (`a.rows` by `b.cols` at `to`) may not be accessed otherwise while
/// this runs.
#[expect(unsafe_code, reason = "the GEMM takes pointers, so that blocks of one C can be written at once")]
pub(super) unsafe fn product(
    a: Mat<'_>,
    b: Mat<'_>,
    alpha: f32,
    add: bool,
    c: &Disjoint<'_, f32>,
    to: Target,
) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert_eq!(k, b.rows, "inner extents agree");
    if m == 0 || n == 0 {
        return;
    }
    let dst = c.at(to.at, (m - 1) * to.ld + n);
    // The kernel prefers columns, so it computes the transpose: C^T = b^T a^T.
    let run = gemm_f32::gemm::f32::get_gemm_fn();
    // SAFETY: `Mat` keeps a and b inside their slices, `at` has checked C, and the caller
    // keeps C to this call.
    unsafe {
        run(
            n,
            m,
            k,
            dst,
            to.ld as isize,
            1,
            add,
            b.data.as_ptr(),
            b.rs as isize,
            b.cs as isize,
            a.data.as_ptr(),
            a.rs as isize,
            a.cs as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// `C = a b`, or `C += a b`, into a slice whose rows start every `ld` elements.
pub(super) fn product_into(a: Mat<'_>, b: Mat<'_>, add: bool, c: &mut [f32], ld: usize) {
    let c = Disjoint::new(c);
    // SAFETY: `c` is borrowed exclusively.
    #[expect(unsafe_code, reason = "calls the pointer-based product")]
    unsafe {
        product(a, b, 1.0, add, &c, Target { at: 0, ld });
    }
}

/// Multiply-adds that cost as much as one element visit of a memory-bound loop.
pub(super) const MACS_PER_VISIT: usize = 16;

/// Products smaller than this are one task.
const MIN_BLOCKED_MACS: usize = 1 << 20;

/// `C = alpha a b` or `C += alpha a b`, in blocks of C over the threads.
fn blocked(par: &Par, a: Mat<'_>, b: Mat<'_>, alpha: f32, add: bool, c: &Disjoint<'_, f32>, to: Target) {
    let (m, n) = (a.rows, b.cols);
    let macs = m * n * a.cols;
    #[cfg(target_arch = "x86_64")]
    if par.wide() && alpha == 1.0 && !add && to.ld == n && macs >= MIN_BLOCKED_MACS {
        let c = c.at(to.at, m * n);
        // SAFETY: the caller keeps these elements to this call.
        #[expect(unsafe_code, reason = "a whole matrix of one output")]
        let c = unsafe { std::slice::from_raw_parts_mut(c, m * n) };
        let view = |m: Mat<'_>| dense::View { rs: m.rs, cs: m.cs };
        if dense::product(par, [m, n, a.cols], (a.data, view(a)), (b.data, view(b)), c) {
            return;
        }
    }
    let (mb, nb) = match macs {
        0..MIN_BLOCKED_MACS => (m.max(1), n.max(1)),
        _ if n >= 2 * m => (m, n.div_ceil(8).next_multiple_of(48)),
        _ => (m.div_ceil(8).next_multiple_of(8), n),
    };
    let (rows, cols) = (m.div_ceil(mb), n.div_ceil(nb));
    par.run(rows * cols, macs / MACS_PER_VISIT, |i| {
        let (r, q) = (i / cols * mb, i % cols * nb);
        let (rows, cols) = (r..(r + mb).min(m), q..(q + nb).min(n));
        let to = Target { at: to.at + r * to.ld + q, ld: to.ld };
        // SAFETY: each task has its own block of C, and the caller keeps the rest away.
        #[expect(unsafe_code, reason = "blocks of one C")]
        unsafe {
            product(a.part(rows, 0..a.cols), b.part(0..b.rows, cols), alpha, add, c, to);
        }
    });
}

/// [`vdnn_ir::Op::Gemm`].
pub(super) fn gemm(
    call: &Call<'_>,
    trans_a: bool,
    trans_b: bool,
    alpha: f32,
    beta: f32,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let matrix = |i: usize, trans: bool| -> Result<Mat<'_>, KernelError> {
        let dims = shape(call.input(i)?.ty);
        Ok(Mat::new(call.f32(i)?, dims[0], dims[1], dims[1]).t_if(trans))
    };
    let (a, b) = (matrix(0, trans_a)?, matrix(1, trans_b)?);
    let out = call.one(outputs)?;
    let dims = shape(out.ty);
    let y = call.f32_out(out)?;
    blocked(call.par, a, b, alpha, false, &Disjoint::new(&mut *y), Target { at: 0, ld: dims[1] });
    if let Some(c) = call.f32_if_present(2)?.filter(|_| beta != 0.0) {
        let from = shape(call.input(2)?.ty);
        let steps = broadcast_strides(&from, &dims);
        call.par.chunks(y, dims[1], 1, |i, row| {
            let c = &c[i * steps[0]..];
            if steps[1] == 0 {
                let c = beta * c[0];
                loops::map_in_place(row, |y| y + c);
            } else {
                loops::map2_in_place(&c[..row.len()], row, |y, c| y + beta * c);
            }
        });
    }
    Ok(())
}

/// [`vdnn_ir::Op::MatMul`].
pub(super) fn matmul(
    call: &Call<'_>,
    trans_a: bool,
    trans_b: bool,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let (da, db) = (shape(call.input(0)?.ty), shape(call.input(1)?.ty));
    let (a, b) = (call.f32(0)?, call.f32(1)?);
    let out = call.one(outputs)?;
    let dims = shape(out.ty);
    let y = Disjoint::new(call.f32_out(out)?);
    let (ma, mb) = (&da[da.len() - 2..], &db[db.len() - 2..]);
    let (m, n) = (dims[dims.len() - 2], dims[dims.len() - 1]);
    let batch = &dims[..dims.len() - 2];
    let count: usize = batch.iter().product();
    if !trans_a && db.len() == 2 {
        // One matrix for the whole batch: its rows form one tall product.
        let a = Mat::new(a, count * m, ma[1], ma[1]);
        let b = Mat::new(b, mb[0], mb[1], mb[1]).t_if(trans_b);
        blocked(call.par, a, b, 1.0, false, &y, Target { at: 0, ld: n });
        return Ok(());
    }
    let sa = broadcast_strides(&da[..da.len() - 2], batch);
    let sb = broadcast_strides(&db[..db.len() - 2], batch);
    let axes = collapse(
        (0..batch.len()).map(|i| Axis { extent: batch[i], steps: [sa[i] as isize, sb[i] as isize] }),
    );
    let (size_a, size_b) = (ma[0] * ma[1], mb[0] * mb[1]);
    let pair = |i: usize| {
        let [at_a, at_b] = offsets(&axes, i).map(|o| o as usize);
        let a = Mat::new(&a[at_a * size_a..][..size_a], ma[0], ma[1], ma[1]).t_if(trans_a);
        let b = Mat::new(&b[at_b * size_b..][..size_b], mb[0], mb[1], mb[1]).t_if(trans_b);
        (a, b, Target { at: i * m * n, ld: n })
    };
    if count < 8 {
        for i in 0..count {
            let (a, b, to) = pair(i);
            blocked(call.par, a, b, 1.0, false, &y, to);
        }
        return Ok(());
    }
    let depth = if trans_a { ma[0] } else { ma[1] };
    call.par.run(count, count * m * n * depth / MACS_PER_VISIT, |i| {
        let (a, b, to) = pair(i);
        // SAFETY: task i alone writes the ith matrix of y.
        #[expect(unsafe_code, reason = "the matrices of one output")]
        unsafe {
            product(a, b, 1.0, false, &y, to);
        }
    });
    Ok(())
}
