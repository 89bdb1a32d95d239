//! Parallel loops over tasks fixed by shape.

use super::team::Team;
use std::marker::PhantomData;
use std::ops::Range;

/// Estimated work, in element visits, under which a loop stays on the calling thread:
/// waking the pool costs about as much as this many.
const SERIAL_BELOW: usize = 1 << 15;

/// Elements per task of an elementwise loop: large against the cost of a task, small
/// against a second-level cache.
pub(super) const CHUNK: usize = 1 << 14;

/// The threads of a kernel set.
#[derive(Debug)]
pub(super) struct Par {
    team: Team,
    serial_below: usize,
    wide: bool,
}

impl Par {
    pub(super) fn new(threads: usize) -> Self {
        Self { team: Team::new(threads), serial_below: SERIAL_BELOW, wide: has_wide_products() }
    }

    /// Without the products for 512-bit vectors, as on other processors.
    #[cfg(test)]
    pub(super) fn narrow(threads: usize) -> Self {
        Self { wide: false, ..Self::eager(threads) }
    }

    /// True if products may use 512-bit vectors ([`super::tile`]).
    pub(super) fn wide(&self) -> bool {
        self.wide
    }

    /// Threads that take even the smallest loop.
    #[cfg(test)]
    pub(super) fn eager(threads: usize) -> Self {
        Self { serial_below: 0, ..Self::new(threads) }
    }

    pub(super) fn threads(&self) -> usize {
        self.team.threads()
    }

    /// Runs `task(0..tasks)`. `work` is the total in element visits. Tasks must not depend
    /// on each other; which thread runs which is unspecified.
    pub(super) fn run(&self, tasks: usize, work: usize, task: impl Fn(usize) + Send + Sync) {
        if tasks > 1 && work >= self.serial_below {
            self.team.run(tasks, &task);
        } else {
            (0..tasks).for_each(task);
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
        let len = out.len();
        let out = Disjoint::new(out);
        self.run(tasks, work, |i| {
            // SAFETY: run i of the elements is task i's alone.
            #[expect(unsafe_code, reason = "chunks of one slice")]
            let chunk = unsafe { out.get(i * size..len.min((i + 1) * size)) };
            task(i, chunk);
        });
    }
}

/// True if [`super::tile`] runs here.
fn has_wide_products() -> bool {
    #[cfg(target_arch = "x86_64")]
    return super::tile::available();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Defines functions that are compiled for several vector extensions; a call takes the best
/// this processor has. Only the width changes: multiplications and additions are never
/// fused, so the bits do not.
///
/// Everything hot must be inlined into the body: closures that it takes should be small,
/// functions that it calls `#[inline(always)]`.
macro_rules! simd_fn {
    ($(
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $(<$($g:ident: $bound:path),+>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block
    )+) => {$(
        $(#[$meta])*
        #[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "calls after detection"))]
        $vis fn $name $(<$($g: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<$($g: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
                fn v4 $(<$($g: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn v3 $(<$($g: $bound),+>)? ($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match $crate::cpu::kernels::par::vectors() {
                    // SAFETY: `vectors` has found the extensions of v4.
                    2 => return unsafe { v4($($arg),*) },
                    // SAFETY: `vectors` has found AVX2.
                    1 => return unsafe { v3($($arg),*) },
                    _ => {}
                }
            }
            body($($arg),*)
        }
    )+};
}
pub(super) use simd_fn;

/// The widest vector extension that [`simd_fn`] knows and this processor has.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) fn vectors() -> u8 {
    use std::arch::is_x86_feature_detected as has;
    // The standard library caches the answers.
    if has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl") {
        2
    } else {
        u8::from(has!("avx2"))
    }
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
