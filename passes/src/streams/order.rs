//! What is ordered before what on several lanes, and what touches the same bytes.

use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::ops::Range;

/// The `count`-th item of a lane, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub(super) lane: usize,
    pub(super) count: u32,
}

/// How many items of each lane come first: a vector clock.
pub(super) type Clock = Vec<u32>;

/// Happens-before of the items of lanes, each ordered after those before it in its lane and after
/// what it waits for.
pub(super) struct Order {
    now: Vec<Clock>,
    after: Vec<Vec<Clock>>,
}

impl Order {
    pub(super) fn new(lanes: usize) -> Self {
        Self { now: vec![vec![0; lanes]; lanes], after: vec![Vec::new(); lanes] }
    }

    pub(super) fn lanes(&self) -> usize {
        self.now.len()
    }

    /// True if the next item of the lane is ordered after all of these.
    pub(super) fn knows(&self, lane: usize, items: &[u32]) -> bool {
        self.now[lane].iter().zip(items).all(|(known, needed)| known >= needed)
    }

    /// Orders the next item of a lane after all of these; returns those that it must wait for.
    pub(super) fn wait(&mut self, lane: usize, items: &[u32]) -> Vec<At> {
        let mut waits = Vec::new();
        for (other, &count) in items.iter().enumerate() {
            if count > self.now[lane][other] && other != lane {
                waits.push(At { lane: other, count });
            }
        }
        for at in &waits {
            let seen = &self.after[at.lane][at.count as usize - 1];
            for (mine, theirs) in self.now[lane].iter_mut().zip(seen) {
                *mine = (*mine).max(*theirs);
            }
        }
        waits
    }

    /// The next item of a lane.
    pub(super) fn push(&mut self, lane: usize) -> At {
        self.now[lane][lane] += 1;
        self.after[lane].push(self.now[lane].clone());
        At { lane, count: self.now[lane][lane] }
    }

    /// What is ordered before an item, and itself.
    pub(super) fn clock(&self, at: At) -> &[u32] {
        &self.after[at.lane][at.count as usize - 1]
    }
}

/// What touched a range last: a write, and per lane the last read since.
#[derive(Clone, Default)]
struct Last {
    write: Option<At>,
    reads: SmallVec<[At; 4]>,
}

/// The last accesses to every byte of an arena.
#[derive(Default)]
pub(super) struct Accesses {
    /// Disjoint ranges: start to end and accesses.
    ranges: BTreeMap<u64, (u64, Last)>,
}

impl Accesses {
    /// Raises `needed` to all that an access to these bytes must come after.
    pub(super) fn conflicts(&self, bytes: &Range<u64>, writes: bool, needed: &mut [u32]) {
        let met = self.ranges.range(..bytes.end).rev().take_while(|(_, (end, _))| *end > bytes.start);
        for (_, (_, last)) in met {
            for at in last.write.iter().chain(last.reads.iter().filter(|_| writes)) {
                needed[at.lane] = needed[at.lane].max(at.count);
            }
        }
    }

    /// Notes an access.
    pub(super) fn note(&mut self, bytes: &Range<u64>, writes: bool, at: At) {
        self.cut(bytes.start);
        self.cut(bytes.end);
        if writes {
            let stale: Vec<u64> = self.ranges.range(bytes.clone()).map(|(&start, _)| start).collect();
            for start in stale {
                self.ranges.remove(&start);
            }
            self.ranges.insert(bytes.start, (bytes.end, Last { write: Some(at), reads: SmallVec::new() }));
            return;
        }
        let mut gaps = Vec::new();
        let mut from = bytes.start;
        for (&start, (end, last)) in self.ranges.range_mut(bytes.clone()) {
            if from < start {
                gaps.push((from, start));
            }
            match last.reads.iter_mut().find(|r| r.lane == at.lane) {
                Some(mine) => *mine = at,
                None => last.reads.push(at),
            }
            from = *end;
        }
        if from < bytes.end {
            gaps.push((from, bytes.end));
        }
        for (start, end) in gaps {
            self.ranges.insert(start, (end, Last { write: None, reads: SmallVec::from_slice(&[at]) }));
        }
    }

    /// Makes `at` a boundary.
    fn cut(&mut self, at: u64) {
        if let Some((&start, (end, last))) = self.ranges.range_mut(..at).next_back()
            && start < at
            && at < *end
        {
            let rest = (*end, last.clone());
            *end = at;
            self.ranges.insert(at, rest);
        }
    }
}
