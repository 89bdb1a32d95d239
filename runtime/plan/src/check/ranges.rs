//! A map from half-open byte ranges to values.

use std::collections::BTreeMap;

/// Disjoint ranges with a value each; bytes in no range have no value.
#[derive(Clone, Debug)]
pub(super) struct RangeMap<T> {
    /// Start to (end, value).
    map: BTreeMap<u64, (u64, T)>,
}

impl<T> Default for RangeMap<T> {
    fn default() -> Self {
        Self { map: BTreeMap::new() }
    }
}

impl<T: Clone> RangeMap<T> {
    /// Makes `at` a boundary.
    fn cut(&mut self, at: u64) {
        if let Some((&start, (end, value))) = self.map.range_mut(..at).next_back()
            && start < at
            && at < *end
        {
            let rest = (*end, value.clone());
            *end = at;
            self.map.insert(at, rest);
        }
    }

    /// Gives `[start, end)` one value, forgetting what was there.
    pub(super) fn set(&mut self, start: u64, end: u64, value: T) {
        debug_assert!(start < end);
        self.cut(start);
        self.cut(end);
        // The usual write covers at most a few ranges.
        while let Some((&key, _)) = self.map.range(start..end).next() {
            self.map.remove(&key);
        }
        self.map.insert(start, (end, value));
    }

    /// The ranges that meet `[start, end)`, whole, in address order.
    pub(super) fn over(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64, &T)> {
        let first = self
            .map
            .range(..start)
            .next_back()
            .filter(|(_, (e, _))| *e > start)
            .map(|(&s, (e, v))| (s, *e, v));
        first.into_iter().chain(self.map.range(start..end).map(|(&s, (e, v))| (s, *e, v)))
    }
}

impl<T: Clone + Default> RangeMap<T> {
    /// Applies `f` to every part of `[start, end)`; bytes without a value start from the default.
    pub(super) fn update(&mut self, start: u64, end: u64, mut f: impl FnMut(&mut T)) {
        self.cut(start);
        self.cut(end);
        let mut at = start;
        let mut gaps = Vec::new();
        for (&s, (e, value)) in self.map.range_mut(start..end) {
            if at < s {
                gaps.push((at, s));
            }
            f(value);
            at = *e;
        }
        if at < end {
            gaps.push((at, end));
        }
        for (s, e) in gaps {
            let mut value = T::default();
            f(&mut value);
            self.map.insert(s, (e, value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The map against one value per byte.
    #[test]
    fn agrees_with_a_byte_array() {
        const N: u64 = 48;
        let mut state = 7u64;
        let mut next = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        for _ in 0..200 {
            let mut map = RangeMap::<u32>::default();
            let mut bytes = vec![None::<u32>; N as usize];
            for step in 1..40 {
                let start = next(N - 1);
                let end = start + 1 + next(N - start - 1).min(12);
                if next(2) == 0 {
                    map.set(start, end, step);
                    bytes[start as usize..end as usize].fill(Some(step));
                } else {
                    map.update(start, end, |v| *v += 1000);
                    for b in &mut bytes[start as usize..end as usize] {
                        *b = Some(b.unwrap_or(0) + 1000);
                    }
                }
                let mut seen = vec![None; N as usize];
                for (s, e, v) in map.over(0, N) {
                    for b in &mut seen[s as usize..e as usize] {
                        assert_eq!(*b, None, "ranges are disjoint");
                        *b = Some(*v);
                    }
                }
                assert_eq!(seen, bytes);
                let met = map.over(start, end).map(|(s, e, _)| e.min(end) - s.max(start)).sum::<u64>();
                assert_eq!(met, end - start, "the range just written is covered");
            }
        }
    }
}
