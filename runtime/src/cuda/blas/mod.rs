//! Matrix products by cuBLASLt.
//!
//! The library is column-major. A row-major matrix read as column-major is its transpose, so
//! `y = op(a) op(b)` is asked for as `y' = op(b)' op(a)'`: the operands change places and
//! every other parameter stays.
//!
//! # Precision and order
//! Strict f32 is `CUBLAS_COMPUTE_32F`, which uses no TF32 unless the environment variable
//! `NVIDIA_TF32_OVERRIDE` forces it; TF32 is `CUBLAS_COMPUTE_32F_FAST_TF32`. Of bf16 operands both
//! give f32 results. Products split along
//! the reduction are summed through the workspace in a fixed order, never in the output, so
//! the same launch gives the same bits each time.

mod batches;
mod product;

pub(crate) use product::Blas;

use super::error::CudaError;
use super::launch::{DeviceRange, LaunchSpec, Operand, Prepared};
use batches::batches;
use cudarc::driver::sys::{CUdeviceptr, CUstream, cuMemsetD32Async};
use product::{Addresses, Matmul, Matrix, Product};
use vdnn_ir::{Bytes, DType, Layout, Op, Precision};

/// Writes ones.
#[derive(Debug)]
struct Ones {
    at: CUdeviceptr,
    count: usize,
}

impl Prepared for Ones {
    #[expect(unsafe_code, reason = "calls into the driver")]
    fn enqueue(&self, stream: CUstream) -> Result<(), CudaError> {
        // SAFETY: the range is part of the scratch range.
        let status = unsafe { cuMemsetD32Async(self.at, 1.0f32.to_bits(), self.count, stream) };
        CudaError::check("cuMemsetD32Async", status)
    }
}

/// Steps in order.
#[derive(Debug)]
struct Sequence(Vec<Box<dyn Prepared>>);

impl Prepared for Sequence {
    fn enqueue(&self, stream: CUstream) -> Result<(), CudaError> {
        self.0.iter().try_for_each(|step| step.enqueue(stream))
    }
}

/// Prepares a matrix product; its algorithm is chosen here.
///
/// # Errors
/// [`CudaError::Unsupported`] for element types other than f32 and bf16, empty reductions and shapes
/// cuBLASLt has nothing for.
pub(crate) fn prepare(spec: &LaunchSpec<'_>, blas: &Blas) -> Result<Box<dyn Prepared>, CudaError> {
    let unsupported = |why: String| CudaError::Unsupported { op: spec.op.to_string(), why };
    let narrow = spec.inputs.first().is_some_and(|a| a.ty.dtype == DType::BF16);
    for (i, o) in spec.inputs.iter().chain(spec.outputs).enumerate() {
        let wanted = if narrow && i < 2 { DType::BF16 } else { DType::F32 };
        if o.ty.dtype != wanted {
            return Err(unsupported(format!("cuBLASLt is given {wanted} here, and there is {}", o.ty)));
        }
        if o.ty.layout != Layout::RowMajor {
            return Err(unsupported(format!("{} is not row-major", o.ty)));
        }
    }
    let ([a, b, ..], [y]) = (spec.inputs, spec.outputs) else {
        return Err(unsupported("it has too few operands".to_owned()));
    };
    if y.ty.elements() == 0 {
        return Ok(Box::new(Sequence(Vec::new())));
    }
    if a.ty.elements() == 0 {
        return Err(unsupported("the reduction is over nothing".to_owned()));
    }
    let steps = match *spec.op {
        Op::Gemm { trans_a, trans_b, alpha, beta } => {
            gemm(spec, blas, (a, b, y), (trans_a, trans_b), (alpha.0, beta.0))?
        }
        Op::MatMul { trans_a, trans_b } => matmul(spec, blas, (a, b, y), (trans_a, trans_b))?,
        _ => return Err(unsupported("it is no matrix product".to_owned())),
    };
    Ok(Box::new(Sequence(steps)))
}

type Steps = Vec<Box<dyn Prepared>>;

/// How the third operand of a Gemm broadcasts to the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broadcast {
    Full,
    /// One value per column of y.
    Row,
    /// One value per row of y.
    Column,
    Scalar,
}

/// The broadcast of c's extents to `[m, n]`; `None` if they do not broadcast.
fn broadcast(c: &[u64], m: u64, n: u64) -> Option<Broadcast> {
    let (rows, cols) = match *c {
        [] => (1, 1),
        [cols] => (1, cols),
        [rows, cols] => (rows, cols),
        _ => return None,
    };
    match (rows == m, cols == n) {
        (true, true) => Some(Broadcast::Full),
        (false, true) if rows == 1 => Some(Broadcast::Row),
        (true, false) if cols == 1 => Some(Broadcast::Column),
        (false, false) if rows == 1 && cols == 1 => Some(Broadcast::Scalar),
        _ => None,
    }
}

/// `y = alpha * op(a) op(b) + beta * c`. A row of c is the library's bias; any other c that
/// broadcasts is first spread over y as a product with ones.
fn gemm(
    spec: &LaunchSpec<'_>,
    blas: &Blas,
    (a, b, y): (&Operand<'_>, &Operand<'_>, &Operand<'_>),
    (trans_a, trans_b): (bool, bool),
    (alpha, beta): (f32, f32),
) -> Result<Steps, CudaError> {
    let unsupported = |why: String| CudaError::Unsupported { op: spec.op.to_string(), why };
    let (&[ar, ac], &[br, bc], &[m, n]) = (&a.ty.dims[..], &b.ty.dims[..], &y.ty.dims[..]) else {
        return Err(unsupported("an operand is not of rank 2".to_owned()));
    };
    let mut product = Product {
        a: Matrix::row_major(br, bc, 0),
        b: Matrix::row_major(ar, ac, 0),
        d: Matrix::row_major(m, n, 0),
        trans_a: trans_b,
        trans_b: trans_a,
        batch: 1,
        alpha,
        beta: 0.0,
        bias: false,
        alignment: alignment(&[a.ptr, b.ptr, y.ptr]),
        narrow: a.ty.dtype == DType::BF16,
        precision: spec.precision,
    };
    let mut at = Addresses { a: b.ptr, b: a.ptr, c: y.ptr, d: y.ptr, bias: 0 };
    let mut steps: Steps = Vec::new();
    let c = spec.inputs.get(2).filter(|_| beta != 0.0);
    if let Some(c) = c {
        let kind = broadcast(&c.ty.dims, m, n)
            .ok_or_else(|| unsupported(format!("{} does not broadcast to {}", c.ty, y.ty)))?;
        match kind {
            Broadcast::Full => {
                product.beta = beta;
                product.alignment = product.alignment.min(alignment(&[c.ptr]));
                at.c = c.ptr;
            }
            Broadcast::Row if beta == 1.0 => {
                product.bias = true;
                at.bias = c.ptr;
            }
            _ => {
                steps = spread(spec, blas, c.ptr, y.ptr, (m, n), (kind, beta))?;
                product.beta = 1.0;
            }
        }
    }
    // The ones are done with when the product runs, so it may have all of the scratch range.
    match Matmul::new(blas, product, at, spec.scratch) {
        Ok(step) => steps.push(Box::new(step)),
        // A shape the bias epilogue does not take (an odd alignment, say).
        Err(_) if product.bias => {
            steps = spread(spec, blas, at.bias, y.ptr, (m, n), (Broadcast::Row, 1.0))?;
            let product = Product { bias: false, beta: 1.0, ..product };
            steps.push(Box::new(Matmul::new(blas, product, at, spec.scratch)?));
        }
        Err(error) => return Err(error),
    }
    Ok(steps)
}

/// `y[m,n] = beta * c`, c broadcast: products of c with ones, which are exact. The ones and a
/// spread scalar live at the start of the scratch range.
fn spread(
    spec: &LaunchSpec<'_>,
    blas: &Blas,
    c: CUdeviceptr,
    y: CUdeviceptr,
    (m, n): (u64, u64),
    (kind, beta): (Broadcast, f32),
) -> Result<Steps, CudaError> {
    let count = m.max(n);
    let ones_bytes = Bytes(count.saturating_mul(4).next_multiple_of(256));
    let reserved = Bytes(ones_bytes.0.saturating_mul(2));
    if reserved > spec.scratch.bytes {
        return Err(CudaError::Unsupported {
            op: spec.op.to_string(),
            why: format!("spreading c over y needs {reserved} of scratch"),
        });
    }
    let ones = spec.scratch.ptr;
    let line = ones + ones_bytes.0;
    let rest = DeviceRange { ptr: ones + reserved.0, bytes: Bytes(spec.scratch.bytes.0 - reserved.0) };
    // The outer product of a column of `rows` and a row of `cols` values.
    let outer = |column, row, to, (rows, cols), factor| -> Result<Box<dyn Prepared>, CudaError> {
        let product = Product {
            a: Matrix::row_major(1, cols, 0),
            b: Matrix::row_major(rows, 1, 0),
            d: Matrix::row_major(rows, cols, 0),
            trans_a: false,
            trans_b: false,
            batch: 1,
            alpha: factor,
            beta: 0.0,
            bias: false,
            alignment: alignment(&[column, row, to]),
            narrow: false,
            // Exact whatever the precision of the product proper.
            precision: Precision::F32,
        };
        let at = Addresses { a: row, b: column, c: to, d: to, bias: 0 };
        Ok(Box::new(Matmul::new(blas, product, at, rest)?))
    };
    let mut steps: Steps = vec![Box::new(Ones { at: ones, count: count as usize })];
    match kind {
        Broadcast::Row => steps.push(outer(ones, c, y, (m, n), beta)?),
        Broadcast::Column => steps.push(outer(c, ones, y, (m, n), beta)?),
        Broadcast::Scalar | Broadcast::Full => {
            steps.push(outer(c, ones, line, (1, n), beta)?);
            steps.push(outer(ones, line, y, (m, n), 1.0)?);
        }
    }
    Ok(steps)
}

/// `y = op(a) op(b)` over broadcast batch dimensions.
fn matmul(
    spec: &LaunchSpec<'_>,
    blas: &Blas,
    (a, b, y): (&Operand<'_>, &Operand<'_>, &Operand<'_>),
    (trans_a, trans_b): (bool, bool),
) -> Result<Steps, CudaError> {
    let unsupported = |why: &str| CudaError::Unsupported { op: spec.op.to_string(), why: why.to_owned() };
    let split = |o: &Operand<'_>| -> Result<(Vec<u64>, u64, u64), CudaError> {
        match &o.ty.dims[..] {
            [batch @ .., rows, cols] => Ok((batch.to_vec(), *rows, *cols)),
            _ => Err(unsupported("an operand is of rank below 2")),
        }
    };
    let ((a_batch, ar, ac), (b_batch, br, bc), (y_batch, m, n)) = (split(a)?, split(b)?, split(y)?);
    if a_batch.len() > y_batch.len() || b_batch.len() > y_batch.len() {
        return Err(unsupported("an operand has more batch dimensions than the result"));
    }
    let mut plan = batches(&a_batch, &b_batch, &y_batch);
    let (mut ar, mut m) = (ar, m);
    // One b for rows that follow each other: one tall product.
    if !trans_a && plan.step == [1, 0] && plan.count > 1 {
        (ar, m) = (ar * plan.count, m * plan.count);
        for s in &mut plan.starts {
            (s[0], s[2]) = (s[0] / plan.count, s[2] / plan.count);
        }
        plan.count = 1;
    }
    let (a_size, b_size, y_size) = (ar * ac, br * bc, m * n);
    let mut steps: Steps = Vec::new();
    for start in &plan.starts {
        let skip = |o: &Operand<'_>, matrices: u64, size: u64| o.ptr + matrices * size * o.ty.dtype.bytes();
        let (pa, pb, py) = (skip(a, start[0], a_size), skip(b, start[1], b_size), skip(y, start[2], y_size));
        let product = Product {
            a: Matrix::row_major(br, bc, plan.step[1] * b_size),
            b: Matrix::row_major(ar, ac, plan.step[0] * a_size),
            d: Matrix::row_major(m, n, y_size),
            trans_a: trans_b,
            trans_b: trans_a,
            batch: plan.count,
            alpha: 1.0,
            beta: 0.0,
            bias: false,
            alignment: alignment(&[pa, pb, py]),
            narrow: a.ty.dtype == DType::BF16,
            precision: spec.precision,
        };
        let at = Addresses { a: pb, b: pa, c: py, d: py, bias: 0 };
        steps.push(Box::new(Matmul::new(blas, product, at, spec.scratch)?));
    }
    Ok(steps)
}

/// The largest power of two, up to 256, that divides every address.
fn alignment(addresses: &[CUdeviceptr]) -> u32 {
    let zeros = addresses.iter().map(|a| a.trailing_zeros()).min().unwrap_or(8);
    1 << zeros.min(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c_broadcasts_in_four_ways() {
        assert_eq!(broadcast(&[4, 8], 4, 8), Some(Broadcast::Full));
        assert_eq!(broadcast(&[8], 4, 8), Some(Broadcast::Row));
        assert_eq!(broadcast(&[1, 8], 4, 8), Some(Broadcast::Row));
        assert_eq!(broadcast(&[4, 1], 4, 8), Some(Broadcast::Column));
        assert_eq!(broadcast(&[], 4, 8), Some(Broadcast::Scalar));
        assert_eq!(broadcast(&[1, 1], 4, 8), Some(Broadcast::Scalar));
        assert_eq!(broadcast(&[8], 1, 8), Some(Broadcast::Full));
        assert_eq!(broadcast(&[4], 4, 8), None);
        assert_eq!(broadcast(&[1, 4, 8], 4, 8), None);
    }

    #[test]
    fn alignment_is_that_of_the_worst_address() {
        assert_eq!(alignment(&[0x1000, 0x2010]), 16);
        assert_eq!(alignment(&[0x1000, 0x2004]), 4);
        assert_eq!(alignment(&[0x1000]), 256);
    }
}
