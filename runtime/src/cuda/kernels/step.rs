//! One kernel launch before it is bound to a device: pure data, made by the planning of each op.

use super::source::Kernel;
use cudarc::driver::sys::CUdeviceptr;

/// Threads of a block; the sources call it THREADS.
pub(super) const THREADS: u32 = 256;

/// Accesses in flight per thread; the sources call it ITEMS.
pub(super) const ITEMS: u32 = 4;

/// Kernels divide 32-bit indices by multiplication, which is exact below this.
pub(super) const LIMIT: u64 = 1 << 31;

/// The second and third extents of a grid have 16 bits.
pub(super) const GRID: u64 = (1 << 16) - 1;

/// Cuts images into parts of at most so many: the first of each, and how many it has.
pub(super) fn parts_of(images: u64, most: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..images.div_ceil(most)).map(move |i| (i * most, most.min(images - i * most)))
}

/// Kernel arguments in order, each at an 8-byte boundary.
#[derive(Clone, Debug, Default)]
pub(super) struct Args {
    words: Vec<u64>,
    starts: Vec<usize>,
}

impl Args {
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.starts.push(self.words.len());
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.words.push(u64::from_ne_bytes(word));
        }
        self
    }

    /// A device address; 0 is the null pointer.
    pub(super) fn ptr(self, at: CUdeviceptr) -> Self {
        self.bytes(&at.to_ne_bytes())
    }

    pub(super) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub(super) fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub(super) fn i64(self, value: i64) -> Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub(super) fn f32(self, value: f32) -> Self {
        self.bytes(&value.to_ne_bytes())
    }

    pub(super) fn f64(self, value: f64) -> Self {
        self.bytes(&value.to_ne_bytes())
    }

    /// A structure, with the same fields in the source.
    pub(super) fn pod<T: bytemuck::Pod>(self, value: &T) -> Self {
        self.bytes(bytemuck::bytes_of(value))
    }

    /// The words of each argument.
    pub(super) fn all(&self) -> impl Iterator<Item = &[u64]> {
        let ends = self.starts.iter().skip(1).copied().chain([self.words.len()]);
        self.starts.iter().zip(ends).map(|(&from, to)| &self.words[from..to])
    }
}

/// A launch of one kernel, with blocks of [`THREADS`] threads where nothing else is said.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) kernel: Kernel,
    pub(super) grid: [u32; 3],
    pub(super) block: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub(super) shared: u32,
    pub(super) args: Args,
}

impl Step {
    /// A launch on a one-dimensional grid.
    pub(super) fn new(kernel: Kernel, blocks: u32, args: Args) -> Self {
        Self { kernel, grid: [blocks, 1, 1], block: THREADS, shared: 0, args }
    }
}
