//! Kernels that no other beats in time and workspace: the *desirable set* of Oyama et al.
//! (CLUSTER 2018, section III-B).

use vdnn_ir::{Bytes, Nanos};

/// One way to run some images of a convolution. `T` says what it is: an algorithm, as a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel<T> {
    /// What runs.
    pub algo: T,
    /// Images it runs at once.
    pub images: u64,
    /// Scratch it needs.
    pub workspace: Bytes,
    /// Its time.
    pub time: Nanos,
}

/// What has a workspace and a time.
pub trait Priced {
    /// Scratch.
    fn workspace(&self) -> Bytes;
    /// Time.
    fn time(&self) -> Nanos;
}

impl<T> Priced for Kernel<T> {
    fn workspace(&self) -> Bytes {
        self.workspace
    }
    fn time(&self) -> Nanos {
        self.time
    }
}

/// A set in which a larger workspace always buys a shorter time: by workspace strictly
/// increasing, time strictly decreasing. Of two that are equal in both the first is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Front<P>(Vec<P>);

impl<P> Default for Front<P> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<P: Priced> Front<P> {
    /// Adds an element unless one is no worse in both respects; those it is no worse than
    /// leave. True if it was added.
    pub fn insert(&mut self, p: P) -> bool {
        // All before `at` need no more workspace; the last of them is the fastest.
        let at = self.0.partition_point(|q| q.workspace() <= p.workspace());
        if at > 0 && self.0[at - 1].time() <= p.time() {
            return false;
        }
        let from = if at > 0 && self.0[at - 1].workspace() == p.workspace() { at - 1 } else { at };
        let to = at + self.0[at..].iter().take_while(|q| q.time() >= p.time()).count();
        self.0.splice(from..to, [p]);
        true
    }

    /// The elements by workspace.
    pub fn as_slice(&self) -> &[P] {
        &self.0
    }

    /// The elements by workspace.
    pub fn into_vec(self) -> Vec<P> {
        self.0
    }
}

impl<P: Priced> FromIterator<P> for Front<P> {
    fn from_iter<I: IntoIterator<Item = P>>(items: I) -> Self {
        let mut front = Self::default();
        for p in items {
            front.insert(p);
        }
        front
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vdnn_ir::random::splitmix64;

    fn kernel(workspace: u64, time: u64) -> Kernel<()> {
        Kernel { algo: (), images: 1, workspace: Bytes(workspace), time: Nanos(time) }
    }

    fn pairs(front: &Front<Kernel<()>>) -> Vec<(u64, u64)> {
        front.as_slice().iter().map(|k| (k.workspace.0, k.time.0)).collect()
    }

    /// Kernels whose time falls with their workspace, with noise as large as the fall.
    fn random(count: u64, seed: u64) -> Vec<Kernel<()>> {
        let most = 64u64 << 20;
        (0..count)
            .map(|i| {
                let memory = splitmix64(seed, 2 * i) % (most + 1);
                let fall = (most - memory) * 1_000_000 / most;
                kernel(memory, fall + splitmix64(seed, 2 * i + 1) % 1_000_000)
            })
            .collect()
    }

    #[test]
    fn a_kernel_is_in_the_set_unless_one_beats_it() {
        let all = random(10_000, 0);
        let front: Front<_> = all.iter().copied().collect();
        assert!(
            front.as_slice().windows(2).all(|w| w[0].workspace < w[1].workspace && w[0].time > w[1].time)
        );
        assert!(front.as_slice().len() > 5);
        for k in &all {
            let beaten = front.as_slice().iter().any(|f| f.time < k.time && f.workspace <= k.workspace);
            let tied = front.as_slice().iter().any(|f| {
                f.time == k.time
                    && f.workspace <= k.workspace
                    && (f.workspace, f.time) != (k.workspace, k.time)
            });
            assert_eq!(pairs(&front).contains(&(k.workspace.0, k.time.0)), !beaten && !tied, "{k:?}");
        }
    }

    #[test]
    fn the_set_is_what_comparing_all_pairs_leaves_in_any_order() {
        for seed in 1..40 {
            // Few values, so that there are ties in both.
            let all: Vec<_> =
                random(60, seed).iter().map(|k| kernel(k.workspace.0 >> 22, k.time.0 / 100_000)).collect();
            let mut expected: Vec<(u64, u64)> = all
                .iter()
                .filter(|k| {
                    !all.iter().any(|o| {
                        o.workspace <= k.workspace
                            && o.time <= k.time
                            && (o.workspace, o.time) != (k.workspace, k.time)
                    })
                })
                .map(|k| (k.workspace.0, k.time.0))
                .collect();
            expected.sort_unstable();
            expected.dedup();
            let forwards: Front<_> = all.iter().copied().collect();
            let backwards: Front<_> = all.iter().rev().copied().collect();
            let mut sorted = all.clone();
            sorted.sort_by_key(|k| (k.time, std::cmp::Reverse(k.workspace)));
            let by_time: Front<_> = sorted.into_iter().collect();
            assert_eq!(pairs(&forwards), expected, "seed {seed}");
            assert_eq!(pairs(&backwards), expected, "seed {seed}");
            assert_eq!(pairs(&by_time), expected, "seed {seed}");
        }
    }

    #[test]
    fn equal_workspaces_keep_the_faster() {
        let mut front = Front::default();
        assert!(front.insert(kernel(4, 10)));
        assert!(!front.insert(kernel(4, 10)) && !front.insert(kernel(4, 11)) && !front.insert(kernel(5, 10)));
        assert!(front.insert(kernel(4, 9)));
        assert_eq!(pairs(&front), [(4, 9)]);
        assert!(front.insert(kernel(8, 5)) && front.insert(kernel(2, 5)));
        assert_eq!(pairs(&front), [(2, 5)]);
    }
}
