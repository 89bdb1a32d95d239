//! The two blocks of memory of a plan.

use super::error::CudaError;
use super::launch::DeviceRange;
use cudarc::driver::{result, sys};
use std::ffi::c_void;
use vdnn_ir::Bytes;

/// One block of device memory, aligned to at least 256 bytes.
#[derive(Debug)]
pub(super) struct DeviceArena {
    start: sys::CUdeviceptr,
    bytes: Bytes,
}

impl DeviceArena {
    /// Takes a block in the current context.
    #[expect(unsafe_code, reason = "allocates on the device")]
    pub(super) fn new(bytes: Bytes, what: &str) -> Result<Self, CudaError> {
        if bytes == Bytes::ZERO {
            return Ok(Self { start: 0, bytes });
        }
        // SAFETY: a plain allocation; freed in `drop`.
        match unsafe { result::malloc_sync(size(bytes, what)?) } {
            Ok(start) => Ok(Self { start, bytes }),
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let free = result::mem_get_info().ok().map(|(free, _)| Bytes(free as u64));
                Err(CudaError::OutOfMemory { what: what.to_owned(), bytes, free })
            }
            Err(e) => Err(CudaError::driver("cuMemAlloc", e.0)),
        }
    }

    /// Address of byte `at`.
    ///
    /// # Panics
    /// If `[at, at + len)` is not inside the block.
    pub(super) fn at(&self, at: usize, len: usize) -> sys::CUdeviceptr {
        assert!(inside(self.bytes, at, len), "a range inside the arena");
        self.start + at as u64
    }

    /// All of it.
    pub(super) fn range(&self) -> DeviceRange {
        DeviceRange { ptr: self.start, bytes: self.bytes }
    }
}

impl Drop for DeviceArena {
    #[expect(unsafe_code, reason = "gives back what `new` took")]
    fn drop(&mut self) {
        if self.start != 0 {
            // SAFETY: from `cuMemAlloc`, freed once; nothing runs any more (the owner
            // synchronises first).
            let _ = unsafe { result::free_sync(self.start) };
        }
    }
}

/// One block of page-locked host memory, at the same address for the host and the device.
#[derive(Debug)]
pub(super) struct PinnedArena {
    start: *mut u8,
    bytes: Bytes,
}

impl PinnedArena {
    /// Pins a block: portable, and not write-combined, since the host reads what is
    /// offloaded there.
    #[expect(unsafe_code, reason = "allocates pinned memory")]
    pub(super) fn new(bytes: Bytes, what: &str) -> Result<Self, CudaError> {
        if bytes == Bytes::ZERO {
            return Ok(Self { start: std::ptr::null_mut(), bytes });
        }
        // SAFETY: a plain allocation; freed in `drop`.
        match unsafe { result::malloc_host(size(bytes, what)?, sys::CU_MEMHOSTALLOC_PORTABLE) } {
            Ok(start) => Ok(Self { start: start.cast(), bytes }),
            Err(e) => {
                let text = CudaError::driver("cuMemHostAlloc", e.0).text();
                Err(CudaError::CannotPin { what: what.to_owned(), bytes, text })
            }
        }
    }

    /// Address of byte `at`, for the host.
    ///
    /// # Panics
    /// If `[at, at + len)` is not inside the block.
    #[expect(unsafe_code, reason = "pointer arithmetic")]
    pub(super) fn at(&self, at: usize, len: usize) -> *mut u8 {
        assert!(inside(self.bytes, at, len), "a range inside the arena");
        // SAFETY: inside the block, or at its end for an empty range.
        unsafe { self.start.add(at) }
    }

    /// Address of byte `at`, for the device.
    pub(super) fn device_at(&self, at: usize, len: usize) -> sys::CUdeviceptr {
        self.at(at, len) as sys::CUdeviceptr
    }
}

impl Drop for PinnedArena {
    #[expect(unsafe_code, reason = "gives back what `new` took")]
    fn drop(&mut self) {
        if !self.start.is_null() {
            // SAFETY: from `cuMemHostAlloc`, freed once; nothing runs any more.
            let _ = unsafe { result::free_host(self.start.cast::<c_void>()) };
        }
    }
}

fn size(bytes: Bytes, what: &str) -> Result<usize, CudaError> {
    usize::try_from(bytes.0).map_err(|_| CudaError::OutOfMemory { what: what.to_owned(), bytes, free: None })
}

fn inside(bytes: Bytes, at: usize, len: usize) -> bool {
    at.checked_add(len).is_some_and(|end| end as u64 <= bytes.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_blocks_touch_no_driver_and_ranges_are_half_open() {
        let device = DeviceArena::new(Bytes::ZERO, "nothing").expect("no allocation");
        let host = PinnedArena::new(Bytes::ZERO, "nothing").expect("no allocation");
        assert_eq!((device.at(0, 0), host.device_at(0, 0)), (0, 0));
        assert!(inside(Bytes(8), 4, 4) && !inside(Bytes(8), 5, 4) && !inside(Bytes(8), usize::MAX, 2));
    }
}
