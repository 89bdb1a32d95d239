//! A fixed block of memory that several threads use at once, in disjoint ranges.

use crate::error::RunError;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use vdnn_ir::Bytes;

/// Alignment of the block: a page, so that every [`vdnn_plan::plan::ALIGNMENT`] holds in memory too.
const PAGE: usize = 4096;

/// Zero-initialised memory of fixed size and address.
#[derive(Debug)]
pub(super) struct Arena {
    start: NonNull<u8>,
    len: usize,
}

#[expect(unsafe_code, reason = "the arena owns its memory")]
// SAFETY: the block is owned, and no method ties it to the thread that made it.
unsafe impl Send for Arena {}
#[expect(unsafe_code, reason = "shared access goes through unsafe methods that demand disjointness")]
// SAFETY: `&Arena` gives access to the bytes only through the unsafe methods, whose
// callers promise that conflicting accesses do not overlap in time.
unsafe impl Sync for Arena {}

impl Arena {
    /// Takes a block; pages are touched only when used.
    #[expect(unsafe_code, reason = "allocation with an alignment that no Vec gives")]
    pub(super) fn new(bytes: Bytes, name: &'static str) -> Result<Self, RunError> {
        let error = RunError::OutOfMemory { arena: name, bytes };
        let Ok(len) = usize::try_from(bytes.0) else { return Err(error) };
        if len == 0 {
            return Ok(Self { start: NonNull::dangling(), len });
        }
        let Ok(layout) = Layout::from_size_align(len, PAGE) else { return Err(error) };
        // SAFETY: the layout has a non-zero size.
        let start = unsafe { alloc_zeroed(layout) };
        NonNull::new(start).map(|start| Self { start, len }).ok_or(error)
    }

    fn assert_inside(&self, start: usize, len: usize) {
        assert!(start <= self.len && len <= self.len - start, "a range inside the arena");
    }

    /// Bytes to read.
    ///
    /// # Panics
    /// If the range is not inside the arena.
    ///
    /// # Safety
    /// While the slice lives, nothing writes these bytes.
    #[expect(unsafe_code, reason = "views into the shared block")]
    pub(super) unsafe fn bytes(&self, start: usize, len: usize) -> &[u8] {
        self.assert_inside(start, len);
        // SAFETY: inside the block, which is initialised (zeroed) and lives as long as
        // `self`; the caller promises that nothing writes it meanwhile.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(start), len) }
    }

    /// Bytes to write.
    ///
    /// # Panics
    /// If the range is not inside the arena.
    ///
    /// # Safety
    /// While the slice lives, nothing else reads or writes these bytes.
    #[expect(unsafe_code, clippy::mut_from_ref, reason = "disjoint views into the shared block")]
    pub(super) unsafe fn bytes_mut(&self, start: usize, len: usize) -> &mut [u8] {
        self.assert_inside(start, len);
        // SAFETY: as in `bytes`; the caller promises that no other reference to these
        // bytes is used meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(start), len) }
    }

    /// All bytes, for the owner alone.
    #[expect(unsafe_code, reason = "the exclusive borrow is the proof")]
    pub(super) fn all_mut(&mut self) -> &mut [u8] {
        // SAFETY: `&mut self` excludes every other reference made by these methods.
        unsafe { self.bytes_mut(0, self.len) }
    }
}

impl Drop for Arena {
    #[expect(unsafe_code, reason = "gives back what `new` took")]
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: allocated in `new` with this size and alignment.
            unsafe { dealloc(self.start.as_ptr(), Layout::from_size_align_unchecked(self.len, PAGE)) }
        }
    }
}
