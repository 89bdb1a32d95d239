//! The algorithm API of cuDNN 1 to 8, which cuDNN 9 still answers by its engines: one of a
//! handful of algorithms by name. Also its addition of a bias in place.

use super::api::{Raw, Session, Status};
use super::graph::{CROSS_CORRELATION, FLOAT};
use super::plan::{Pointers, address};
use super::problem::{Direction, Problem, Shape};
use crate::cuda::error::CudaError;
use crate::cuda::launch::{DeviceRange, Prepared};
use cudarc::driver::sys::CUstream;
use std::ffi::{c_int, c_void};
use std::rc::Rc;
use vdnn_cost::Precision;
use vdnn_ir::Bytes;
use vdnn_ir::graph::ConvAlgo;

/// `CUDNN_TENSOR_OP_MATH`: products in TF32 allowed.
const TENSOR_OP_MATH: c_int = 1;
/// `CUDNN_FMA_MATH`: f32 products only.
const FMA_MATH: c_int = 3;

type Destroy = unsafe extern "C" fn(Raw) -> Status;

/// A descriptor of this API; destroyed when dropped.
struct Old {
    raw: Raw,
    destroy: Destroy,
    _session: Rc<Session>,
}

impl std::fmt::Debug for Old {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Old({:p})", self.raw)
    }
}

impl Old {
    #[expect(unsafe_code, reason = "calls into cuDNN")]
    fn new(
        session: &Rc<Session>,
        call: &'static str,
        create: unsafe extern "C" fn(*mut Raw) -> Status,
        destroy: Destroy,
    ) -> Result<Self, CudaError> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the out pointer is valid.
        session.check(call, unsafe { create(&raw mut raw) })?;
        Ok(Self { raw, destroy, _session: Rc::clone(session) })
    }
}

impl Drop for Old {
    #[expect(unsafe_code, reason = "calls into cuDNN")]
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        unsafe { (self.destroy)(self.raw) };
    }
}

/// Values as C ints.
fn ints(values: &[i64]) -> Result<Vec<c_int>, CudaError> {
    values.iter().map(|&v| c_int::try_from(v)).collect::<Result<_, _>>().map_err(|_| CudaError::Unsupported {
        op: "convolution".to_owned(),
        why: "an extent or stride beyond 31 bits, which cuDNN's older functions take at most".to_owned(),
    })
}

#[expect(unsafe_code, reason = "calls into cuDNN")]
fn tensor(session: &Rc<Session>, shape: &Shape) -> Result<Old, CudaError> {
    let api = &session.api;
    let d = Old::new(session, "cudnnCreateTensorDescriptor", api.tensor_create, api.tensor_destroy)?;
    let (dims, strides) = (ints(&shape.dims)?, ints(&shape.strides)?);
    // SAFETY: the descriptor lives, and both lists have the given number of values.
    let status =
        unsafe { (api.tensor_set)(d.raw, FLOAT, dims.len() as c_int, dims.as_ptr(), strides.as_ptr()) };
    session.check("cudnnSetTensorNdDescriptor", status)?;
    Ok(d)
}

/// `cudnnConvolution{Fwd,BwdData,BwdFilter}Algo_t` of an algorithm. Implicit GEMM of the
/// gradients is a sum by atomics, so deterministic plans get its ordered sibling.
fn number(algo: ConvAlgo, dir: Direction, deterministic: bool) -> Option<c_int> {
    use ConvAlgo as A;
    use Direction as D;
    Some(match (algo, dir) {
        (A::ImplicitGemm, D::Fprop) => 0,
        (A::ImplicitGemm, _) => c_int::from(deterministic),
        (A::ImplicitPrecompGemm, _) => 1,
        (A::Gemm, D::Fprop) => 2,
        (A::Fft, D::Fprop) => 4,
        (A::Fft, _) => 2,
        (A::FftTiling, D::Fprop) => 5,
        (A::FftTiling, D::Dgrad) => 3,
        (A::FftTiling, D::Wgrad) => 6,
        (A::Winograd, D::Fprop) => 6,
        (A::Winograd, D::Dgrad) => 4,
        (A::WinogradNonfused, D::Fprop) => 7,
        (A::WinogradNonfused, _) => 5,
        (A::Gemm, _) | (A::Winograd, D::Wgrad) | (A::Engine(_), _) => return None,
    })
}

/// A convolution by a named algorithm.
#[derive(Debug)]
pub(super) struct LegacyConv {
    session: Rc<Session>,
    dir: Direction,
    accumulate: bool,
    x: Old,
    w: Old,
    y: Old,
    conv: Old,
    algo: c_int,
    /// Scratch it needs.
    pub workspace: Bytes,
}

impl LegacyConv {
    /// The algorithm for this problem (the bias apart).
    ///
    /// # Errors
    /// [`CudaError::Unsupported`] if the algorithm does not exist in this direction or the
    /// padding is not symmetric; [`CudaError::Cudnn`] if cuDNN refuses the shape.
    #[expect(unsafe_code, reason = "calls into cuDNN")]
    pub(super) fn new(
        session: &Rc<Session>,
        problem: &Problem,
        algo: ConvAlgo,
        precision: Precision,
        deterministic: bool,
    ) -> Result<Self, CudaError> {
        let unsupported = |why: &str| CudaError::Unsupported { op: algo.to_string(), why: why.to_owned() };
        let number = number(algo, problem.dir, deterministic)
            .ok_or_else(|| unsupported("cuDNN has no such algorithm in this direction"))?;
        if !problem.is_symmetric() {
            return Err(unsupported("padding that differs in front and behind"));
        }
        let math = match precision {
            Precision::F32 => FMA_MATH,
            Precision::Tf32 => TENSOR_OP_MATH,
            Precision::Bf16 => return Err(unsupported("bf16; compile with --algo performance")),
        };
        let api = &session.api;
        let w = Old::new(session, "cudnnCreateFilterDescriptor", api.filter_create, api.filter_destroy)?;
        let dims = ints(&problem.w.dims)?;
        let format = c_int::from(problem.channels_last);
        // SAFETY: the descriptor lives and the list has the given number of values.
        let status = unsafe { (api.filter_set)(w.raw, FLOAT, format, dims.len() as c_int, dims.as_ptr()) };
        session.check("cudnnSetFilterNdDescriptor", status)?;
        let conv = Old::new(session, "cudnnCreateConvolutionDescriptor", api.conv_create, api.conv_destroy)?;
        let (pad, strides) = (ints(&problem.before)?, ints(&problem.strides)?);
        let dilations = ints(&problem.dilations)?;
        // SAFETY: as above; the three lists are of one length.
        let status = unsafe {
            (api.conv_set)(
                conv.raw,
                pad.len() as c_int,
                pad.as_ptr(),
                strides.as_ptr(),
                dilations.as_ptr(),
                CROSS_CORRELATION,
                FLOAT,
            )
        };
        session.check("cudnnSetConvolutionNdDescriptor", status)?;
        // SAFETY: the descriptor lives.
        let status = unsafe { (api.conv_groups)(conv.raw, ints(&[problem.groups])?[0]) };
        session.check("cudnnSetConvolutionGroupCount", status)?;
        // SAFETY: the descriptor lives.
        session.check("cudnnSetConvolutionMathType", unsafe { (api.conv_math)(conv.raw, math) })?;
        let mut this = Self {
            session: Rc::clone(session),
            dir: problem.dir,
            accumulate: problem.accumulate,
            x: tensor(session, &problem.x)?,
            w,
            y: tensor(session, &problem.y)?,
            conv,
            algo: number,
            workspace: Bytes::ZERO,
        };
        this.workspace = this.workspace_size()?;
        Ok(this)
    }

    #[expect(unsafe_code, reason = "calls into cuDNN")]
    fn workspace_size(&self) -> Result<Bytes, CudaError> {
        let api = &self.session.api;
        let (x, w, y, conv) = (self.x.raw, self.w.raw, self.y.raw, self.conv.raw);
        let (call, ask, [a, b, c, d]) = match self.dir {
            Direction::Fprop => {
                ("cudnnGetConvolutionForwardWorkspaceSize", api.fprop_workspace, [x, w, conv, y])
            }
            Direction::Dgrad => {
                ("cudnnGetConvolutionBackwardDataWorkspaceSize", api.dgrad_workspace, [w, y, conv, x])
            }
            Direction::Wgrad => {
                ("cudnnGetConvolutionBackwardFilterWorkspaceSize", api.wgrad_workspace, [x, y, conv, w])
            }
        };
        let mut bytes = 0usize;
        // SAFETY: the descriptors live and are in the order of the direction's function.
        let status = unsafe { ask(self.session.handle, a, b, c, d, self.algo, &raw mut bytes) };
        self.session.check(call, status)?;
        Ok(Bytes(bytes as u64))
    }
}

/// A named algorithm with its addresses.
#[derive(Debug)]
pub(super) struct LegacyLaunch {
    pub conv: LegacyConv,
    pub pointers: Pointers,
    pub workspace: Option<DeviceRange>,
    pub epilogue: Option<Box<dyn Prepared>>,
}

impl Prepared for LegacyLaunch {
    #[expect(unsafe_code, reason = "calls into cuDNN")]
    fn enqueue(&self, stream: CUstream) -> Result<(), CudaError> {
        let (c, p) = (&self.conv, &self.pointers);
        let session = &c.session;
        session.set_stream(stream)?;
        let (one, beta) = (1.0f32, if c.accumulate { 1.0f32 } else { 0.0 });
        let one = (&raw const one).cast::<c_void>();
        let beta = (&raw const beta).cast::<c_void>();
        let (x, w, y) = ((c.x.raw, p.x), (c.w.raw, p.w), (c.y.raw, p.y));
        let (call, run, a, b, r) = match c.dir {
            Direction::Fprop => ("cudnnConvolutionForward", session.api.fprop, x, w, y),
            Direction::Dgrad => ("cudnnConvolutionBackwardData", session.api.dgrad, w, y, x),
            Direction::Wgrad => ("cudnnConvolutionBackwardFilter", session.api.wgrad, x, y, w),
        };
        let scratch = self.workspace.map_or(0, |s| s.ptr);
        // SAFETY: handle and descriptors live, in the order of the direction's function; the
        // scratch range has the size cuDNN asked for; the addresses are ranges of the arena.
        let status = unsafe {
            run(
                session.handle,
                one,
                a.0,
                address(a.1),
                b.0,
                address(b.1),
                c.conv.raw,
                c.algo,
                address(scratch),
                c.workspace.0 as usize,
                beta,
                r.0,
                address(r.1),
            )
        };
        session.check(call, status)?;
        self.epilogue.as_ref().map_or(Ok(()), |e| e.enqueue(stream))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_headers() {
        use ConvAlgo::{Fft, FftTiling, Gemm, ImplicitGemm, ImplicitPrecompGemm, Winograd, WinogradNonfused};
        let of = |dir, deterministic| ConvAlgo::CLASSIC.map(|a| number(a, dir, deterministic));
        let order = [ImplicitGemm, ImplicitPrecompGemm, Gemm, Fft, FftTiling, Winograd, WinogradNonfused];
        assert_eq!(ConvAlgo::CLASSIC, order);
        assert_eq!(of(Direction::Fprop, true), [0, 1, 2, 4, 5, 6, 7].map(Some));
        let (a, b) = (Some(0), Some(1));
        assert_eq!(of(Direction::Dgrad, false), [a, b, None, Some(2), Some(3), Some(4), Some(5)]);
        assert_eq!(of(Direction::Wgrad, false), [a, b, None, Some(2), Some(6), None, Some(5)]);
        assert_eq!(of(Direction::Wgrad, true)[0], b, "implicit GEMM of gradients adds by atomics");
    }
}
