//! Half-open intervals of positions along one axis of an image. Positions may be negative: in the
//! padding.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The positions `lo..hi`; empty unless `lo < hi`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Interval {
    /// The first position.
    pub lo: i64,
    /// One past the last.
    pub hi: i64,
}

impl Interval {
    /// No position.
    pub const EMPTY: Self = Self { lo: 0, hi: 0 };

    /// `lo..hi`, or [`Self::EMPTY`].
    pub const fn new(lo: i64, hi: i64) -> Self {
        if lo < hi { Self { lo, hi } } else { Self::EMPTY }
    }

    /// The positions of an image with this extent.
    pub const fn of_extent(extent: u64) -> Self {
        Self::new(0, extent as i64)
    }

    /// Number of positions.
    pub const fn len(self) -> u64 {
        if self.lo < self.hi { (self.hi - self.lo) as u64 } else { 0 }
    }

    /// True if there is no position.
    pub const fn is_empty(self) -> bool {
        self.lo >= self.hi
    }

    /// The positions in both.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        Self::new(self.lo.max(other.lo), self.hi.min(other.hi))
    }

    /// Every position moved by so many.
    #[must_use]
    pub fn shift(self, by: i64) -> Self {
        if self.is_empty() { Self::EMPTY } else { Self::new(self.lo + by, self.hi + by) }
    }

    /// True if every position of `other` is one of these.
    pub fn contains(self, other: Self) -> bool {
        other.is_empty() || (self.lo <= other.lo && other.hi <= self.hi)
    }

    /// True if `at` is one of the positions.
    pub fn has(self, at: i64) -> bool {
        self.lo <= at && at < self.hi
    }

    /// The positions in order.
    pub fn positions(self) -> std::ops::Range<i64> {
        self.lo..self.hi.max(self.lo)
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.lo, self.hi)
    }
}

#[cfg(test)]
mod tests {
    use super::Interval;

    #[test]
    fn empty_intervals_are_all_the_same() {
        assert_eq!(Interval::new(5, 3), Interval::EMPTY);
        assert_eq!(Interval::new(0, 4).intersect(Interval::new(4, 9)), Interval::EMPTY);
        assert_eq!(Interval::EMPTY.shift(7), Interval::EMPTY);
        assert!(Interval::new(2, 3).contains(Interval::EMPTY) && !Interval::EMPTY.has(0));
    }
}
