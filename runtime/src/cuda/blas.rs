//! Matrix products by cuBLASLt.
//!
//! The library is column-major. A row-major matrix read as column-major is its transpose, so
//! `y = op(a) op(b)` is asked for as `y' = op(b)' op(a)'`: the operands change places and
//! every other parameter stays.
//!
//! # Precision and order
//! Strict f32 is `CUBLAS_COMPUTE_32F`, which uses no TF32 unless the environment variable
//! `NVIDIA_TF32_OVERRIDE` forces it; TF32 is `CUBLAS_COMPUTE_32F_FAST_TF32`. Products split along
//! the reduction are summed through the workspace in a fixed order, never in the output, so
//! the same launch gives the same bits each time.

use super::error::CudaError;
use super::launch::{DeviceRange, LaunchSpec, Operand, Prepared};
use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::{CUdeviceptr, CUstream, cuMemsetD32Async};
use std::ffi::{CStr, c_void};
use std::fmt;
use std::rc::Rc;
use vdnn_ir::{Bytes, DType, Layout, Op, Precision};

/// Most workspace a product asks for. More than NVIDIA's advice for Hopper (32 MiB) gains
/// nothing.
const WORKSPACE: Bytes = Bytes(32 << 20);
/// Partial sums in the compute type in the workspace; none at all is always allowed too.
const REDUCTION_MASK: u32 = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
/// Algorithms asked for; the first that is usable is taken.
const CHOICES: usize = 8;

/// The handle itself; destroyed when the last product is dropped.
struct Handle(sys::cublasLtHandle_t);

impl Drop for Handle {
    #[expect(unsafe_code, reason = "calls into cuBLASLt")]
    fn drop(&mut self) {
        // SAFETY: made by `Blas::new`, destroyed once.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({:p})", self.0)
    }
}

/// A cuBLASLt handle of the context that was current when it was made.
#[derive(Debug)]
pub(crate) struct Blas {
    handle: Rc<Handle>,
}

fn check<T>(call: &'static str, r: Result<T, result::CublasError>) -> Result<T, CudaError> {
    r.map_err(|e| CudaError::Blas { call, text: status_text(e) })
}

#[expect(unsafe_code, reason = "reads a C string of cuBLASLt")]
fn status_text(e: result::CublasError) -> String {
    // SAFETY: takes any status and gives a static string or null.
    let text = unsafe { sys::cublasLtGetStatusString(e.0) };
    if text.is_null() {
        return format!("{:?}", e.0);
    }
    // SAFETY: as above, and null is excluded.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

impl Blas {
    /// Creates the handle.
    ///
    /// # Errors
    /// [`CudaError::MissingLibrary`] without cuBLASLt; [`CudaError::Blas`] if it does not start.
    #[expect(unsafe_code, reason = "asks the loader for a library")]
    pub(crate) fn new() -> Result<Self, CudaError> {
        // SAFETY: loading runs the library's initialisers, which ask nothing of the caller.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::MissingLibrary {
                library: "cuBLASLt".to_owned(),
                tried: cudarc::get_lib_name_candidates("cublasLt"),
            });
        }
        let handle = check("cublasLtCreate", result::create_handle())?;
        Ok(Self { handle: Rc::new(Handle(handle)) })
    }
}

/// A matrix as the library sees it, in a strided batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Matrix {
    /// Column-major extents, before any transposition.
    rows: u64,
    cols: u64,
    /// Elements from one matrix of the batch to the next; 0 to use one for all.
    stride: u64,
}

impl Matrix {
    /// The row-major matrix `rows x cols`.
    fn row_major(rows: u64, cols: u64, stride: u64) -> Self {
        Self { rows: cols, cols: rows, stride }
    }
}

/// One product in the library's terms: `d = alpha * op(a) op(b) + beta * c`, c like d.
#[derive(Clone, Copy, Debug)]
struct Product {
    a: Matrix,
    b: Matrix,
    d: Matrix,
    trans_a: bool,
    trans_b: bool,
    batch: u64,
    alpha: f32,
    beta: f32,
    /// A vector of `d.rows` values is added to each column.
    bias: bool,
    /// Addresses are multiples of this.
    alignment: u32,
    precision: Precision,
}

/// Device addresses of a product.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    a: CUdeviceptr,
    b: CUdeviceptr,
    /// Equal to `d` to add to it in place; ignored with beta 0.
    c: CUdeviceptr,
    d: CUdeviceptr,
    bias: CUdeviceptr,
}

struct Desc(sys::cublasLtMatmulDesc_t);
struct LayoutDesc(sys::cublasLtMatrixLayout_t);
struct Preference(sys::cublasLtMatmulPreference_t);

macro_rules! dropped_by {
    ($ty:ty, $destroy:path) => {
        impl Drop for $ty {
            #[expect(unsafe_code, reason = "calls into cuBLASLt")]
            fn drop(&mut self) {
                // SAFETY: made once, destroyed once.
                let _ = unsafe { $destroy(self.0) };
            }
        }
        impl fmt::Debug for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:p})", stringify!($ty), self.0)
            }
        }
    };
}
dropped_by!(Desc, result::destroy_matmul_desc);
dropped_by!(LayoutDesc, result::destroy_matrix_layout);
dropped_by!(Preference, result::destroy_matmul_pref);

impl Desc {
    #[expect(unsafe_code, reason = "calls into cuBLASLt")]
    fn set<T: Copy>(&self, attr: sys::cublasLtMatmulDescAttributes_t, value: T) -> Result<(), CudaError> {
        // SAFETY: the descriptor lives; the library copies the value, whose size it checks.
        let r = unsafe {
            result::set_matmul_desc_attribute(self.0, attr, (&raw const value).cast(), size_of::<T>())
        };
        check("cublasLtMatmulDescSetAttribute", r)
    }
}

impl LayoutDesc {
    #[expect(unsafe_code, reason = "calls into cuBLASLt")]
    fn new(m: Matrix, batch: u64) -> Result<Self, CudaError> {
        let ld = i64::try_from(m.rows.max(1)).unwrap_or(i64::MAX);
        let desc = result::create_matrix_layout(sys::cudaDataType::CUDA_R_32F, m.rows, m.cols, ld);
        let desc = Self(check("cublasLtMatrixLayoutCreate", desc)?);
        use sys::cublasLtMatrixLayoutAttribute_t as A;
        let count = i32::try_from(batch).unwrap_or(i32::MAX);
        let stride = m.stride as i64;
        // SAFETY: the descriptor lives; the library copies values of the documented types.
        unsafe {
            check(
                "cublasLtMatrixLayoutSetAttribute",
                result::set_matrix_layout_attribute(
                    desc.0,
                    A::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                    (&raw const count).cast(),
                    size_of::<i32>(),
                )
                .and_then(|()| {
                    result::set_matrix_layout_attribute(
                        desc.0,
                        A::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                        (&raw const stride).cast(),
                        size_of::<i64>(),
                    )
                }),
            )?;
        }
        Ok(desc)
    }
}

impl Preference {
    #[expect(unsafe_code, reason = "calls into cuBLASLt")]
    fn set<T: Copy>(
        &self,
        attr: sys::cublasLtMatmulPreferenceAttributes_t,
        value: T,
    ) -> Result<(), CudaError> {
        // SAFETY: the preference lives; the library copies the value, whose size it checks.
        let r = unsafe {
            result::set_matmul_pref_attribute(self.0, attr, (&raw const value).cast(), size_of::<T>())
        };
        check("cublasLtMatmulPreferenceSetAttribute", r)
    }
}

/// A product with its algorithm and addresses.
#[derive(Debug)]
struct Matmul {
    handle: Rc<Handle>,
    desc: Desc,
    a: LayoutDesc,
    b: LayoutDesc,
    d: LayoutDesc,
    alpha: f32,
    beta: f32,
    algo: sys::cublasLtMatmulAlgo_t,
    at: Addresses,
    scratch: DeviceRange,
}

impl Matmul {
    /// Chooses the algorithm by the library's heuristics.
    #[expect(unsafe_code, reason = "calls into cuBLASLt")]
    fn new(blas: &Blas, p: Product, at: Addresses, scratch: DeviceRange) -> Result<Self, CudaError> {
        use sys::cublasComputeType_t as Compute;
        use sys::cublasLtMatmulDescAttributes_t as A;
        use sys::cublasLtMatmulPreferenceAttributes_t as P;
        let compute = match p.precision {
            Precision::F32 => Compute::CUBLAS_COMPUTE_32F,
            Precision::Tf32 => Compute::CUBLAS_COMPUTE_32F_FAST_TF32,
            Precision::Bf16 => Compute::CUBLAS_COMPUTE_32F_FAST_16BF,
        };
        let desc = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F);
        let desc = Desc(check("cublasLtMatmulDescCreate", desc)?);
        // `cublasOperation_t`: none 0, transposed 1.
        desc.set(A::CUBLASLT_MATMUL_DESC_TRANSA, i32::from(p.trans_a))?;
        desc.set(A::CUBLASLT_MATMUL_DESC_TRANSB, i32::from(p.trans_b))?;
        if p.bias {
            desc.set(
                A::CUBLASLT_MATMUL_DESC_EPILOGUE,
                sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32,
            )?;
            desc.set(A::CUBLASLT_MATMUL_DESC_BIAS_POINTER, at.bias)?;
        }
        let a = LayoutDesc::new(p.a, p.batch)?;
        let b = LayoutDesc::new(p.b, p.batch)?;
        let d = LayoutDesc::new(p.d, p.batch)?;

        let preference = Preference(check("cublasLtMatmulPreferenceCreate", result::create_matmul_pref())?);
        let bytes = scratch.bytes.min(WORKSPACE);
        preference.set(P::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, bytes.0)?;
        preference.set(P::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, REDUCTION_MASK)?;
        for attr in [
            P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(attr, p.alignment)?;
        }
        let none = sys::cublasLtMatmulHeuristicResult_t {
            algo: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
            workspaceSize: 0,
            state: sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
            wavesCount: 0.0,
            reserved: [0; 4],
        };
        let mut found = [none; CHOICES];
        let mut count = 0;
        // SAFETY: all descriptors live; the array has the number of elements given.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                blas.handle.0,
                desc.0,
                a.0,
                b.0,
                d.0,
                d.0,
                preference.0,
                CHOICES as i32,
                found.as_mut_ptr(),
                &raw mut count,
            )
        };
        check("cublasLtMatmulAlgoGetHeuristic", status.result())?;
        let usable = found.iter().take(usize::try_from(count).unwrap_or(0)).find(|r| {
            r.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && r.workspaceSize as u64 <= bytes.0
        });
        let usable = usable.ok_or_else(|| CudaError::Unsupported {
            op: format!("{p:?}"),
            why: format!("cuBLASLt has no algorithm within a workspace of {bytes}"),
        })?;
        Ok(Self {
            handle: Rc::clone(&blas.handle),
            desc,
            a,
            b,
            d,
            alpha: p.alpha,
            beta: p.beta,
            algo: usable.algo,
            at,
            scratch: DeviceRange { ptr: scratch.ptr, bytes: Bytes(usable.workspaceSize as u64) },
        })
    }
}

/// A device address as C has it; never dereferenced on the host.
fn address(ptr: CUdeviceptr) -> *mut c_void {
    std::ptr::without_provenance_mut(ptr as usize)
}

impl Prepared for Matmul {
    #[expect(unsafe_code, reason = "calls into cuBLASLt")]
    fn enqueue(&self, stream: CUstream) -> Result<(), CudaError> {
        // SAFETY: handle and descriptors live; the factors are f32, as the scale type says,
        // and read before the call returns; the addresses are ranges of the arena.
        let r = unsafe {
            result::matmul(
                self.handle.0,
                self.desc.0,
                (&raw const self.alpha).cast(),
                (&raw const self.beta).cast(),
                address(self.at.a),
                self.a.0,
                address(self.at.b),
                self.b.0,
                address(self.at.c),
                self.d.0,
                address(self.at.d),
                self.d.0,
                &raw const self.algo,
                address(self.scratch.ptr),
                self.scratch.bytes.0 as usize,
                stream.cast(),
            )
        };
        check("cublasLtMatmul", r)
    }
}

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
/// [`CudaError::Unsupported`] for element types other than f32, empty reductions and shapes
/// cuBLASLt has nothing for.
pub(crate) fn prepare(spec: &LaunchSpec<'_>, blas: &Blas) -> Result<Box<dyn Prepared>, CudaError> {
    let unsupported = |why: String| CudaError::Unsupported { op: spec.op.to_string(), why };
    for o in spec.inputs.iter().chain(spec.outputs) {
        if o.ty.dtype != DType::F32 {
            return Err(unsupported(format!("cuBLASLt is given f32 tensors only, and one is {}", o.ty)));
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

/// One strided batch of products: elements to skip in a, b and y.
type Skip = [u64; 3];

/// How broadcast batch dimensions fall into strided batches.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Batches {
    /// Products per batch.
    count: u64,
    /// Matrices from one product to the next, in a and b: 1 or 0.
    step: [u64; 2],
    /// First matrix of each batch, in a, b and y.
    starts: Vec<Skip>,
}

/// Splits the batch dimensions `y`, to which `a` and `b` broadcast: neighbours that broadcast
/// alike are one; the last such run is the strided batch, the rest are enumerated.
fn batches(a: &[u64], b: &[u64], y: &[u64]) -> Batches {
    let at = |list: &[u64], i: usize| {
        let missing = y.len() - list.len();
        if i < missing { 1 } else { list[i - missing] }
    };
    // Extent of y, and whether a and b have it too.
    let mut runs: Vec<(u64, [bool; 2])> = Vec::new();
    for (i, &extent) in y.iter().enumerate() {
        if extent == 1 {
            continue;
        }
        let has = [at(a, i) != 1, at(b, i) != 1];
        match runs.last_mut() {
            Some(last) if last.1 == has => last.0 *= extent,
            _ => runs.push((extent, has)),
        }
    }
    let (count, has) = runs.pop().unwrap_or((1, [true, true]));
    let own = |has: bool, extent: u64| if has { extent } else { 1 };
    let mut starts: Vec<Skip> = vec![[0, 0, 0]];
    // From the innermost run outwards; matrices that the runs inside span.
    let mut span = [own(has[0], count), own(has[1], count), count];
    for (extent, has) in runs.into_iter().rev() {
        starts = (0..extent)
            .flat_map(|i| {
                let step =
                    [if has[0] { i * span[0] } else { 0 }, if has[1] { i * span[1] } else { 0 }, i * span[2]];
                starts
                    .iter()
                    .map(move |s| [s[0] + step[0], s[1] + step[1], s[2] + step[2]])
                    .collect::<Vec<_>>()
            })
            .collect();
        span = [span[0] * own(has[0], extent), span[1] * own(has[1], extent), span[2] * extent];
    }
    Batches { count, step: has.map(u64::from), starts }
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
        let skip = |ptr: CUdeviceptr, matrices: u64, size: u64| ptr + matrices * size * 4;
        let (pa, pb, py) =
            (skip(a.ptr, start[0], a_size), skip(b.ptr, start[1], b_size), skip(y.ptr, start[2], y_size));
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

    /// What the batches say, product by product: matrices of a and b for each of y.
    fn listed(b: &Batches) -> Vec<(u64, u64, u64)> {
        let of = |s: &Skip, i: u64| (s[2] + i, s[0] + i * b.step[0], s[1] + i * b.step[1]);
        let mut all: Vec<_> = b.starts.iter().flat_map(|s| (0..b.count).map(move |i| of(s, i))).collect();
        all.sort_unstable();
        all
    }

    /// The same by the definition of broadcasting.
    fn expected(a: &[u64], b: &[u64], y: &[u64]) -> Vec<(u64, u64, u64)> {
        let total: u64 = y.iter().product();
        let index = |list: &[u64], flat: u64| {
            let (mut rest, mut at, mut step) = (flat, 0, 1);
            for i in 0..y.len() {
                let position = rest % y[y.len() - 1 - i];
                rest /= y[y.len() - 1 - i];
                if i < list.len() {
                    let extent = list[list.len() - 1 - i];
                    at += if extent == 1 { 0 } else { position * step };
                    step *= extent;
                }
            }
            at
        };
        (0..total).map(|f| (f, index(a, f), index(b, f))).collect()
    }

    #[test]
    fn batches_are_those_of_broadcasting() {
        let cases: [(&[u64], &[u64], &[u64]); 9] = [
            (&[], &[], &[]),
            (&[5], &[5], &[5]),
            (&[5], &[], &[5]),
            (&[2, 3], &[3], &[2, 3]),
            (&[2, 1], &[1, 3], &[2, 3]),
            (&[2, 1, 4], &[3, 4], &[2, 3, 4]),
            (&[1, 6], &[7, 1], &[7, 6]),
            (&[2, 3, 1, 5], &[1, 3, 4, 1], &[2, 3, 4, 5]),
            (&[1, 1], &[3, 2], &[3, 2]),
        ];
        for (a, b, y) in cases {
            assert_eq!(listed(&batches(a, b, y)), expected(a, b, y), "{a:?} {b:?} -> {y:?}");
        }
        let one = batches(&[2, 3], &[2, 3], &[2, 3]);
        assert_eq!((one.count, one.starts.len()), (6, 1), "equal batches are one strided batch");
        assert_eq!(batches(&[2, 3], &[3], &[2, 3]).starts.len(), 2);
    }

    #[test]
    fn alignment_is_that_of_the_worst_address() {
        assert_eq!(alignment(&[0x1000, 0x2010]), 16);
        assert_eq!(alignment(&[0x1000, 0x2004]), 4);
        assert_eq!(alignment(&[0x1000]), 256);
    }
}
