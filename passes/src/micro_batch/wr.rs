//! One convolution: the best division of its batch under a limit of the workspace, and the
//! divisions that no other beats.
//!
//! All micro-batches use one workspace in turn, so times add up and the workspace is the
//! largest of them: *workspace reuse* (WR) of Oyama et al. (CLUSTER 2018, section III-C). Its
//! recurrence is `T(b) = min over m of t(m) + T(b - m)`, `T(0) = 0`, where `t(m)` is the time
//! of the fastest kernel of `m` images within the limit. The front is the same recurrence
//! under every limit at which a `t(m)` falls. Times are whole nanoseconds: sums of floats
//! would tell equal divisions apart.

use super::pareto::{Front, Kernel, Priced};
use vdnn_ir::{Bytes, Nanos};

/// A division of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Division<T> {
    /// What runs: kernel and number of launches, by images, most first.
    pub runs: Vec<(Kernel<T>, u64)>,
    /// The largest workspace of the kernels.
    pub workspace: Bytes,
    /// Sum of their times.
    pub time: Nanos,
}

impl<T> Division<T> {
    /// Launches in all.
    pub fn launches(&self) -> u64 {
        self.runs.iter().map(|r| r.1).sum()
    }
}

impl<T> Priced for Division<T> {
    fn workspace(&self) -> Bytes {
        self.workspace
    }
    fn time(&self) -> Nanos {
        self.time
    }
}

/// The fastest kernel of each size under a growing limit, and the recurrence over them.
struct Table<'a, T> {
    batch: usize,
    /// By images; `None` while no kernel of the size is within the limit.
    best: Vec<Option<&'a Kernel<T>>>,
    /// Sizes that have a kernel, increasing.
    sizes: Vec<usize>,
}

impl<'a, T: Copy> Table<'a, T> {
    fn new(batch: u64) -> Option<Self> {
        let batch = usize::try_from(batch).ok().filter(|&b| b > 0 && b < MAX_BATCH)?;
        Some(Self { batch, best: vec![None; batch + 1], sizes: Vec::new() })
    }

    /// Lets a kernel in. True if it is the fastest of its size.
    fn admit(&mut self, kernel: &'a Kernel<T>) -> bool {
        let Some(size) = usize::try_from(kernel.images).ok().filter(|&s| s > 0 && s <= self.batch) else {
            return false;
        };
        match self.best[size] {
            Some(best) if best.time <= kernel.time => return false,
            Some(_) => {}
            None => self.sizes.insert(self.sizes.partition_point(|&s| s < size), size),
        }
        self.best[size] = Some(kernel);
        true
    }

    /// The recurrence. Of equally fast divisions the one with the fewest launches.
    fn solve(&self) -> Option<Division<T>> {
        let n = self.batch;
        let mut least: Vec<Option<(u64, u64)>> = vec![None; n + 1];
        let mut last = vec![0usize; n + 1];
        least[0] = Some((0, 0));
        for b in 1..=n {
            // Of two parts or more one is at most half.
            let half = self.sizes.partition_point(|&m| m <= b / 2);
            for &m in self.sizes[..half].iter().chain([&b]) {
                let (Some(rest), Some(kernel)) = (least[b - m], self.best[m]) else { continue };
                let here = (rest.0.saturating_add(kernel.time.0), rest.1 + 1);
                if least[b].is_none_or(|best| here < best) {
                    least[b] = Some(here);
                    last[b] = m;
                }
            }
        }
        let time = Nanos(least[n]?.0);
        let mut counts = vec![0u64; n + 1];
        let mut b = n;
        while b > 0 {
            counts[last[b]] += 1;
            b -= last[b];
        }
        let mut runs: Vec<(Kernel<T>, u64)> = Vec::new();
        for m in (1..=n).rev().filter(|&m| counts[m] > 0) {
            runs.push((*self.best[m]?, counts[m]));
        }
        let workspace = runs.iter().map(|r| r.0.workspace).max().unwrap_or(Bytes::ZERO);
        Some(Division { runs, workspace, time })
    }
}

/// Batches from here on are not divided; it bounds the work.
pub const MAX_BATCH: usize = 1 << 20;

/// The fastest division of `batch` images into kernels that need at most `limit`, of several
/// the one with the least workspace; `None` if none of them add up to the batch.
pub fn divide<T: Copy>(batch: u64, kernels: &[Kernel<T>], limit: Bytes) -> Option<Division<T>> {
    let within: Vec<Kernel<T>> = kernels.iter().filter(|k| k.workspace <= limit).copied().collect();
    front(batch, &within).pop()
}

/// Every division that no other beats in time and workspace, by workspace.
pub fn front<T: Copy>(batch: u64, kernels: &[Kernel<T>]) -> Vec<Division<T>> {
    let Some(mut table) = Table::new(batch) else { return Vec::new() };
    let mut front = Front::default();
    let sorted = by_workspace(kernels);
    let mut rest = &sorted[..];
    while let Some(first) = rest.first() {
        let same = rest.partition_point(|k| k.workspace == first.workspace);
        // Not `any`: all must be admitted.
        let news = rest[..same].iter().filter(|k| table.admit(k)).count();
        if news > 0
            && let Some(division) = table.solve()
        {
            front.insert(division);
        }
        rest = &rest[same..];
    }
    front.into_vec()
}

/// Kernels by workspace; equal ones in the order given.
fn by_workspace<T>(kernels: &[Kernel<T>]) -> Vec<&Kernel<T>> {
    let mut sorted: Vec<&Kernel<T>> = kernels.iter().collect();
    sorted.sort_by_key(|k| (k.workspace, k.time));
    sorted
}

#[cfg(test)]
#[path = "wr_tests.rs"]
mod tests;
