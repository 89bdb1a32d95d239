//! What a kernel library is given for one launch, and what it makes of it.

use super::error::CudaError;
use cudarc::driver::sys::{CUdeviceptr, CUstream};
use std::fmt;

use vdnn_ir::graph::ConvAlgo;
use vdnn_ir::{Bytes, Op, Precision, TensorType};

/// Size of the scratch range that all launches of a compute stream share, outside of the arena.
pub const SCRATCH: Bytes = Bytes(64 << 20);

/// A tensor in the device arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand<'a> {
    /// Its type, which includes the layout of its bytes.
    pub ty: &'a TensorType,
    /// Its first byte, aligned to [`vdnn_plan::plan::ALIGNMENT`].
    pub ptr: CUdeviceptr,
}

/// A byte range of device memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceRange {
    /// Its first byte.
    pub ptr: CUdeviceptr,
    /// Its length.
    pub bytes: Bytes,
}

impl DeviceRange {
    /// Its first `bytes`; `None` for none. It has as many.
    pub(crate) fn first(self, bytes: Bytes) -> Option<Self> {
        (bytes > Bytes::ZERO).then_some(Self { bytes, ..self })
    }
}

/// One launch of a plan with its addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaunchSpec<'a> {
    /// What is computed.
    pub op: &'a Op,
    /// Operands, as the op orders them.
    pub inputs: &'a [Operand<'a>],
    /// Results. One may have an operand's address, for the pairs of [`Op::inplace`].
    pub outputs: &'a [Operand<'a>],
    /// The plan's workspace, for convolutions.
    pub workspace: Option<DeviceRange>,
    /// One range of [`SCRATCH`] bytes for all launches of the compute stream; its content
    /// is undefined.
    pub scratch: DeviceRange,
    /// Convolution algorithm.
    pub algo: Option<ConvAlgo>,
    /// A classic name of `algo` means exactly that algorithm, by cuDNN's older API; otherwise any
    /// engine may stand for it.
    pub exact: bool,
    /// The result is added to what the output holds; for weight gradients only.
    pub accumulate: bool,
    /// Arithmetic of products.
    pub precision: Precision,
    /// For messages.
    pub name: &'a str,
}

/// A launch with every address and handle resolved. Enqueueing is legal under stream
/// capture and allocates nothing on the device.
pub(crate) trait Prepared: fmt::Debug {
    /// Puts the work on the stream, whose context is current, and returns.
    ///
    /// # Errors
    /// If the driver or the library refuses.
    fn enqueue(&self, stream: CUstream) -> Result<(), CudaError>;
}
