//! Device memory of measured kernels, and what is written to it and read from it.

use crate::cuda::arena::DeviceArena;
use crate::cuda::error::CudaError;
use crate::cuda::launch::DeviceRange;
use cudarc::driver::{result, sys};
use vdnn_ir::Bytes;

/// Results compared to see whether products are f32.
pub(super) const LOOK: usize = 4096;

/// Device memory that is only given back for more.
#[derive(Debug)]
pub(super) struct Memory {
    what: &'static str,
    arena: DeviceArena,
}

impl Memory {
    pub(super) fn new(what: &'static str) -> Result<Self, CudaError> {
        Ok(Self { what, arena: DeviceArena::new(Bytes::ZERO, what)? })
    }

    /// At least `bytes`, content undefined.
    pub(super) fn take(&mut self, bytes: Bytes) -> Result<DeviceRange, CudaError> {
        if self.arena.range().bytes < bytes {
            // First give back, then take: both may not fit.
            self.arena = DeviceArena::new(Bytes::ZERO, self.what)?;
            self.arena = DeviceArena::new(bytes, self.what)?;
        }
        Ok(DeviceRange { bytes, ..self.arena.range() })
    }
}

pub(super) fn size(bytes: Bytes) -> Result<usize, CudaError> {
    usize::try_from(bytes.0).map_err(|_| CudaError::OutOfMemory {
        what: "an operand of a measured kernel".to_owned(),
        bytes,
        free: None,
    })
}

/// Sets every f32 of a range, an operand's own.
#[expect(unsafe_code, reason = "fills device memory")]
pub(super) fn fill_words(ptr: sys::CUdeviceptr, bytes: Bytes, value: f32) -> Result<(), CudaError> {
    // SAFETY: the range is an operand's.
    CudaError::check("cuMemsetD32", unsafe {
        sys::cuMemsetD32_v2(ptr, value.to_bits(), size(bytes)? / size_of::<f32>())
    })
}

/// Sets every byte of a range, an operand's own.
#[expect(unsafe_code, reason = "fills device memory")]
pub(super) fn fill_bytes(ptr: sys::CUdeviceptr, bytes: Bytes, value: u8) -> Result<(), CudaError> {
    // SAFETY: the range is an operand's.
    CudaError::check("cuMemsetD8", unsafe { sys::cuMemsetD8_v2(ptr, value, size(bytes)?) })
}

/// The first [`LOOK`] values of an operand.
#[expect(unsafe_code, reason = "copies from the device")]
pub(super) fn read(ptr: sys::CUdeviceptr, bytes: Bytes) -> Result<Vec<f32>, CudaError> {
    let mut values = vec![0.0f32; LOOK.min(size(bytes)? / size_of::<f32>())];
    // SAFETY: the range is part of an operand's.
    unsafe { result::memcpy_dtoh_sync(&mut values, ptr) }.map_err(CudaError::of("cuMemcpyDtoH"))?;
    Ok(values)
}
