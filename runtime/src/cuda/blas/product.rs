//! One matrix product in cuBLASLt's own terms.

use crate::cuda::error::CudaError;
use crate::cuda::launch::{DeviceRange, Prepared};
use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::{CUdeviceptr, CUstream};
use std::ffi::{CStr, c_void};
use std::fmt;
use std::rc::Rc;
use vdnn_ir::{Bytes, Precision};

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
pub(super) struct Matrix {
    /// Column-major extents, before any transposition.
    pub rows: u64,
    pub cols: u64,
    /// Elements from one matrix of the batch to the next; 0 to use one for all.
    pub stride: u64,
}

impl Matrix {
    /// The row-major matrix `rows x cols`.
    pub(super) fn row_major(rows: u64, cols: u64, stride: u64) -> Self {
        Self { rows: cols, cols: rows, stride }
    }
}

/// One product in the library's terms: `d = alpha * op(a) op(b) + beta * c`, c like d.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub a: Matrix,
    pub b: Matrix,
    pub d: Matrix,
    pub trans_a: bool,
    pub trans_b: bool,
    pub batch: u64,
    pub alpha: f32,
    pub beta: f32,
    /// A vector of `d.rows` values is added to each column.
    pub bias: bool,
    /// Addresses are multiples of this.
    pub alignment: u32,
    /// a and b are bf16; d and the bias are f32 always.
    pub narrow: bool,
    pub precision: Precision,
}

/// Device addresses of a product.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub a: CUdeviceptr,
    pub b: CUdeviceptr,
    /// Equal to `d` to add to it in place; ignored with beta 0.
    pub c: CUdeviceptr,
    pub d: CUdeviceptr,
    pub bias: CUdeviceptr,
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
    fn new(m: Matrix, batch: u64, narrow: bool) -> Result<Self, CudaError> {
        let ld = i64::try_from(m.rows.max(1)).unwrap_or(i64::MAX);
        let ty = if narrow { sys::cudaDataType::CUDA_R_16BF } else { sys::cudaDataType::CUDA_R_32F };
        let desc = result::create_matrix_layout(ty, m.rows, m.cols, ld);
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
pub(super) struct Matmul {
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
    pub(super) fn new(
        blas: &Blas,
        p: Product,
        at: Addresses,
        scratch: DeviceRange,
    ) -> Result<Self, CudaError> {
        use sys::cublasComputeType_t as Compute;
        use sys::cublasLtMatmulDescAttributes_t as A;
        use sys::cublasLtMatmulPreferenceAttributes_t as P;
        let compute = match p.precision {
            // Products of two bf16 are exact in f32.
            _ if p.narrow => Compute::CUBLAS_COMPUTE_32F,
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
        let a = LayoutDesc::new(p.a, p.batch, p.narrow)?;
        let b = LayoutDesc::new(p.b, p.batch, p.narrow)?;
        let d = LayoutDesc::new(p.d, p.batch, false)?;

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
