//! The set of live bytes of one arena.

use std::collections::BTreeMap;
use vdnn_ir::Bytes;

/// A union of half-open byte ranges. Buffers may share bytes (views, in-place results), so
/// counting buffers would count bytes twice.
#[derive(Debug, Default)]
pub(crate) struct LiveBytes {
    /// Start to end; disjoint and not touching.
    ranges: BTreeMap<u64, u64>,
    total: u64,
}

impl LiveBytes {
    /// Number of live bytes.
    pub(crate) fn total(&self) -> Bytes {
        Bytes(self.total)
    }

    /// Makes `[start, end)` live.
    pub(crate) fn insert(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        while let Some((&s, &e)) = self.ranges.range(..=end).next_back() {
            if e < start {
                break;
            }
            self.ranges.remove(&s);
            self.total -= e - s;
            (start, end) = (start.min(s), end.max(e));
        }
        self.ranges.insert(start, end);
        self.total += end - start;
    }

    /// Makes `[start, end)` dead.
    pub(crate) fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        while let Some((&s, &e)) = self.ranges.range(..end).next_back() {
            if e <= start {
                break;
            }
            self.ranges.remove(&s);
            self.total -= e - s;
            for (s, e) in [(s, start), (end, e)] {
                if s < e {
                    self.ranges.insert(s, e);
                    self.total += e - s;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_merge_split_and_count_once() {
        let mut live = LiveBytes::default();
        live.insert(0, 10);
        live.insert(5, 10);
        assert_eq!(live.total(), Bytes(10));
        live.insert(10, 20);
        assert_eq!((live.total(), live.ranges.len()), (Bytes(20), 1));
        live.remove(4, 6);
        assert_eq!((live.total(), live.ranges.len()), (Bytes(18), 2));
        live.insert(30, 30);
        live.remove(7, 7);
        live.remove(100, 200);
        assert_eq!(live.total(), Bytes(18));
        live.remove(0, 1000);
        assert_eq!((live.total(), live.ranges.len()), (Bytes(0), 0));
    }

    #[test]
    fn agrees_with_a_bitmap() {
        // A fixed linear congruential sequence of operations on 64 bytes.
        let mut state = 1u64;
        let mut next = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        let mut live = LiveBytes::default();
        let mut bits = 0u64;
        for _ in 0..5_000 {
            let (a, b) = (next(64), next(64));
            let mask = (a..b).fold(0, |m, i| m | 1 << i);
            if next(2) == 0 {
                live.insert(a, b);
                bits |= mask;
            } else {
                live.remove(a, b);
                bits &= !mask;
            }
            assert_eq!(live.total(), Bytes(u64::from(bits.count_ones())));
        }
    }
}
