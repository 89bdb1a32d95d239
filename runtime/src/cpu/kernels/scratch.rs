//! Temporary buffers, kept per thread between launches so that a step in its steady state
//! does not allocate.

use bytemuck::Zeroable;
use std::cell::RefCell;

/// One cache line, which is also the widest vector.
#[derive(Clone, Copy, Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([f32; 16]);

thread_local! {
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with a buffer of `len` elements of unspecified content, aligned to 64 bytes.
/// Calls may nest; each level has a buffer of its own.
pub(super) fn with<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let lines = len.div_ceil(16);
    let mut buffer = take(lines);
    if buffer.len() < lines {
        buffer.resize(lines, Line::zeroed());
    }
    let result = f(&mut bytemuck::cast_slice_mut(&mut buffer)[..len]);
    FREE.with_borrow_mut(|free| free.push(buffer));
    result
}

/// The smallest free buffer that is large enough, else the largest.
fn take(lines: usize) -> Vec<Line> {
    FREE.with_borrow_mut(|free| {
        let best = (0..free.len()).min_by_key(|&i| match free[i].len() {
            n if n >= lines => (0, n),
            n => (1, usize::MAX - n),
        });
        best.map(|i| free.swap_remove(i)).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn buffers_are_reused_and_nested_ones_differ() {
        let first = super::with(100, |b| b.as_ptr() as usize);
        super::with(90, |a| {
            assert_eq!(a.as_ptr() as usize, first);
            assert_eq!(a.as_ptr() as usize % 64, 0);
            super::with(90, |b| assert_ne!(a.as_ptr(), b.as_ptr()));
        });
        super::with(0, |b| assert!(b.is_empty()));
    }
}
