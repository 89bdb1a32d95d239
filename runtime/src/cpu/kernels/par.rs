//! Parallel loops over tasks fixed by shape.

use gemm_common::pulp;
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Estimated work, in element visits, under which a loop stays on the calling thread:
/// waking the pool costs about as much as this many.
const SERIAL_BELOW: usize = 1 << 16;

/// Elements per task of an elementwise loop: large against the cost of a task, small
/// against a second-level cache.
pub(super) const CHUNK: usize = 1 << 14;

/// A pool of threads, or none for a single one.
#[derive(Debug)]
pub(super) struct Par {
    pool: Option<rayon::ThreadPool>,
    serial_below: usize,
}

impl Par {
    pub(super) fn new(threads: usize) -> Self {
        let build = || rayon::ThreadPoolBuilder::new().num_threads(threads).build().ok();
        Self { pool: if threads > 1 { build() } else { None }, serial_below: SERIAL_BELOW }
    }

    /// Threads that take even the smallest loop.
    #[cfg(test)]
    pub(super) fn eager(threads: usize) -> Self {
        Self { serial_below: 0, ..Self::new(threads) }
    }

    pub(super) fn threads(&self) -> usize {
        self.pool.as_ref().map_or(1, rayon::ThreadPool::current_num_threads)
    }

    /// Runs `task(0..tasks)`. `work` is the total in element visits. Tasks must not depend
    /// on each other; which thread runs which is unspecified.
    pub(super) fn run(&self, tasks: usize, work: usize, task: impl Fn(usize) + Send + Sync) {
        match &self.pool {
            Some(pool) if tasks > 1 && work >= self.serial_below => pool.install(|| {
                (0..tasks).into_par_iter().with_max_len(tasks.div_ceil(64)).for_each(task);
            }),
            _ => (0..tasks).for_each(task),
        }
    }

    /// Runs `task(i, chunk)` on the `i`th run of `size` elements of `out`; the last may be
    /// shorter. `weight` is the work per element.
    pub(super) fn chunks<T: Send>(
        &self,
        out: &mut [T],
        size: usize,
        weight: usize,
        task: impl Fn(usize, &mut [T]) + Send + Sync,
    ) {
        let size = size.max(1);
        let work = out.len().saturating_mul(weight);
        let tasks = out.len().div_ceil(size);
        match &self.pool {
            Some(pool) if tasks > 1 && work >= self.serial_below => pool.install(|| {
                out.par_chunks_mut(size)
                    .with_max_len(tasks.div_ceil(64))
                    .enumerate()
                    .for_each(|(i, chunk)| task(i, chunk));
            }),
            _ => out.chunks_mut(size).enumerate().for_each(|(i, chunk)| task(i, chunk)),
        }
    }
}

/// Runs `f` compiled for the best vector extension of this processor. Only the width
/// changes: multiplications and additions are never fused, so the bits do not.
pub(super) fn simd<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// A slice that tasks write in parts that do not overlap.
pub(super) struct Disjoint<'a, T> {
    data: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: this is a `&mut [T]` whose parts are handed to several threads; the contract of
// `get` and `at` keeps the parts apart.
#[expect(unsafe_code, reason = "parts of one slice are written by several threads")]
unsafe impl<T: Send> Send for Disjoint<'_, T> {}
// SAFETY: as for `Send`.
#[expect(unsafe_code, reason = "parts of one slice are written by several threads")]
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Self { data: slice.as_mut_ptr(), len: slice.len(), owner: PhantomData }
    }

    /// The elements in `range`. Panics if it is out of bounds.
    ///
    /// # Safety
    /// No other reference to these elements may be alive while this one is.
    #[expect(unsafe_code, clippy::mut_from_ref, reason = "the caller keeps the ranges apart")]
    pub(super) unsafe fn get(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "a part of the slice");
        // SAFETY: in bounds by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.len()) }
    }

    /// Pointer to element `start`, of which `span` elements are in bounds. Panics if not.
    pub(super) fn at(&self, start: usize, span: usize) -> *mut T {
        assert!(start.checked_add(span).is_some_and(|end| end <= self.len), "a part of the slice");
        self.data.wrapping_add(start)
    }
}
