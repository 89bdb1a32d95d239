//! Packs blocks with known lifetimes into one arena: dynamic storage allocation, offline.
//!
//! 1. Greedy placement, each block at the lowest offset it fits, in the order of the fullest
//!    moment each block lives through. For most networks that meets the lower bound.
//! 2. Else the blocks that live through nearly full moments (the *core*, few) are packed
//!    first: by several greedy orders (by size as in Pisarchyk and Lee, "Efficient memory
//!    management for deep neural net inference", MLSys 2020, by lifetime, by time), and if none
//!    of them is close to the bound by a backtracking search ([`super::sweep`]). The others
//!    are placed around the core. If some do not fit, a larger core is tried.
//!
//! Work is counted in steps, never in time, so the result is the same on every machine.

use super::greedy::{Item, Placed};
use super::sweep;
use std::cmp::Reverse;
use std::ops::Range;
use vdnn_ir::Bytes;

/// A block to place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Size; a multiple of the alignment, so every offset is one too.
    pub size: Bytes,
    /// When it is in use, half-open. Blocks whose intervals overlap get disjoint bytes.
    pub live: Range<u32>,
}

/// Where the blocks go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Offset of each block.
    pub offsets: Vec<Bytes>,
    /// Size of the arena.
    pub height: Bytes,
    /// Largest sum of live sizes at one time: no packing is lower.
    pub lower_bound: Bytes,
}

/// The sum of live sizes at each time in `0..positions`.
pub fn live_profile(blocks: impl IntoIterator<Item = (Bytes, Range<u32>)>, positions: usize) -> Vec<Bytes> {
    let mut rise = vec![0u64; positions + 1];
    let mut fall = vec![0u64; positions + 1];
    for (size, live) in blocks {
        if !live.is_empty() {
            rise[live.start as usize] += size.0;
            fall[(live.end as usize).min(positions)] += size.0;
        }
    }
    let mut sum = 0;
    (0..positions)
        .map(|p| {
            sum = sum + rise[p] - fall[p];
            Bytes(sum)
        })
        .collect()
}

/// Packs blocks. The same blocks give the same packing.
pub fn pack(blocks: &[Block]) -> Packing {
    let positions = blocks.iter().map(|b| b.live.end).max().unwrap_or(0) as usize;
    let profile = live_profile(blocks.iter().map(|b| (b.size, b.live.clone())), positions);
    let bound = profile.iter().copied().max().unwrap_or_default().0;
    let peaks = RangeMax::new(&profile);
    let items: Vec<Item> = blocks
        .iter()
        .enumerate()
        .filter(|(_, b)| b.size.0 > 0 && !b.live.is_empty())
        .map(|(id, b)| Item {
            id,
            size: b.size.0,
            t0: b.live.start,
            t1: b.live.end,
            crest: peaks.max(b.live.start, b.live.end),
        })
        .collect();
    let best = Search::new(&items, bound).run();
    let mut offsets = vec![Bytes::ZERO; blocks.len()];
    for (item, &offset) in items.iter().zip(&best.offsets) {
        offsets[item.id] = Bytes(offset);
    }
    Packing { offsets, height: Bytes(best.height), lower_bound: Bytes(bound) }
}

/// Work allowed in total, in pairs of blocks compared.
const WORK: u64 = 40_000_000;
/// Work of one backtracking search, in blocks looked at. Searches that succeed usually need
/// a few thousand.
const SWEEP_WORK: u64 = 60_000;
/// Work of all of them.
const SWEEPS_WORK: u64 = 600_000;
/// Blocks longer than one part in so many of the time are fixed before the sweep.
const LONG: [u32; 4] = [8, 1, 4, 16];
/// A result this close to the bound (one part in so many) is not improved further.
const CLOSE: u64 = 1024;
/// Blocks smaller than this part of the bound never belong to the core.
const SMALL: u64 = 4096;
/// A core is the blocks that meet more than this percentage of the bound.
const CORES: [u64; 3] = [75, 50, 25];
/// Heights the backtracking search aims at: the bound and one part in so many above.
const GOALS: [u64; 4] = [u64::MAX, CLOSE, 128, 64];
/// Number of heuristics of [`Search::sorted`].
const KEYS: usize = 7;

/// The best packing so far: offsets by item.
struct Best {
    offsets: Vec<u64>,
    height: u64,
}

struct Search<'a> {
    items: &'a [Item],
    bound: u64,
    work: u64,
    sweeps: u64,
    best: Best,
}

impl<'a> Search<'a> {
    fn new(items: &'a [Item], bound: u64) -> Self {
        let height = if items.is_empty() { 0 } else { u64::MAX };
        let best = Best { offsets: vec![0; items.len()], height };
        Self { items, bound, work: WORK, sweeps: SWEEPS_WORK, best }
    }

    fn close(&self, height: u64) -> bool {
        height <= self.bound + self.bound / CLOSE
    }

    fn run(mut self) -> Best {
        let all: Vec<u32> = (0..self.items.len() as u32).collect();
        let order = self.sorted(&all, 0);
        self.complete(&Placed::default(), &order);
        for percent in CORES {
            if self.close(self.best.height) || self.work == 0 {
                break;
            }
            let in_core = |i: &u32| {
                let b = &self.items[*i as usize];
                b.crest > self.bound / 100 * percent && b.size > self.bound / SMALL
            };
            let (core, rest): (Vec<u32>, Vec<u32>) = all.iter().partition(|i| in_core(i));
            let order = self.search(&core);
            let mut placed = Placed::default();
            self.place(&mut placed, &order);
            for key in [0, 1] {
                if !self.close(self.best.height) && placed.height() < self.best.height {
                    let order = self.sorted(&rest, key);
                    self.complete(&placed, &order);
                }
            }
        }
        self.best
    }

    /// Places `order` after what is placed; keeps the result if it is the best.
    fn complete(&mut self, placed: &Placed, order: &[u32]) {
        let mut placed = placed.clone();
        self.place(&mut placed, order);
        if placed.height() < self.best.height {
            self.best.height = placed.height();
            for (item, offset) in placed.offsets() {
                self.best.offsets[item as usize] = offset;
            }
        }
    }

    /// Finds a good order for a core. Groups of blocks that no lifetime connects do not
    /// interact, so each is searched alone.
    fn search(&mut self, core: &[u32]) -> Vec<u32> {
        let mut by_start = core.to_vec();
        by_start.sort_by_key(|&i| (self.items[i as usize].t0, i));
        let mut groups: Vec<(u32, Vec<u32>)> = Vec::new();
        for i in by_start {
            let b = &self.items[i as usize];
            match groups.last_mut().filter(|(end, _)| b.t0 < *end) {
                Some((end, group)) => {
                    *end = b.t1.max(*end);
                    group.push(i);
                }
                None => groups.push((b.t1, vec![i])),
            }
        }
        groups.iter().flat_map(|(_, group)| self.search_group(group)).collect()
    }

    /// Greedy orders first, then the backtracking search for something lower. Returns the
    /// blocks by offset: in that order greedy placement gives the same packing or a lower one.
    fn search_group(&mut self, group: &[u32]) -> Vec<u32> {
        let mut order = self.sorted(group, 0);
        let mut height = self.height_of(&order);
        for key in 1..KEYS {
            if self.close(height) {
                return order;
            }
            let candidate = self.sorted(group, key);
            let h = self.height_of(&candidate);
            if h < height {
                (height, order) = (h, candidate);
            }
        }
        let items: Vec<Item> = group.iter().map(|&i| self.items[i as usize]).collect();
        let start = items.iter().map(|b| b.t0).min().unwrap_or(0);
        let horizon = items.iter().map(|b| b.t1).max().unwrap_or(0) - start;
        for part in GOALS {
            let goal = self.bound + self.bound / part;
            for cut in LONG {
                if goal >= height {
                    return order;
                }
                let mut work = SWEEP_WORK.min(self.sweeps);
                self.sweeps -= work;
                let found = sweep::search(&items, goal, horizon / cut, &mut work);
                self.sweeps += work;
                if let Some(offsets) = found {
                    let mut by_offset: Vec<(u64, u32)> =
                        offsets.into_iter().zip(group.iter().copied()).collect();
                    by_offset.sort_unstable();
                    return by_offset.into_iter().map(|(_, i)| i).collect();
                }
            }
        }
        order
    }

    fn height_of(&mut self, order: &[u32]) -> u64 {
        let mut placed = Placed::default();
        self.place(&mut placed, order);
        placed.height()
    }

    /// The items by the `key`-th heuristic.
    fn sorted(&self, items: &[u32], key: usize) -> Vec<u32> {
        let mut order = items.to_vec();
        order.sort_by_cached_key(|&i| {
            let b = &self.items[i as usize];
            let (first, second) = match key {
                0 => (b.crest, b.span()),
                1 => (b.size, b.span()),
                2 => (b.span(), b.size),
                3 => (b.span().saturating_mul(b.size), b.size),
                4 => (b.crest, b.size),
                5 => (u64::from(u32::MAX - b.t0), b.span()),
                _ => (u64::from(b.t1), b.span()),
            };
            (Reverse((first, second)), i)
        });
        order
    }

    /// Places blocks one by one in the given order, each at the lowest offset it fits.
    fn place(&mut self, placed: &mut Placed, order: &[u32]) {
        for &i in order {
            placed.put(&self.items[i as usize], i);
        }
        let n = placed.len() as u64;
        self.work = self.work.saturating_sub(n * order.len() as u64 / 4);
    }
}

/// Maximum over ranges of a fixed sequence: a sparse table.
struct RangeMax {
    levels: Vec<Vec<u64>>,
}

impl RangeMax {
    fn new(values: &[Bytes]) -> Self {
        let mut levels = vec![values.iter().map(|b| b.0).collect::<Vec<_>>()];
        let mut width = 1;
        while 2 * width <= values.len() {
            let last = &levels[levels.len() - 1];
            let next = (0..=values.len() - 2 * width).map(|i| last[i].max(last[i + width])).collect();
            levels.push(next);
            width *= 2;
        }
        Self { levels }
    }

    /// The maximum over the non-empty range `from..to`.
    fn max(&self, from: u32, to: u32) -> u64 {
        let level = (to - from).ilog2();
        let row = &self.levels[level as usize];
        row[from as usize].max(row[to as usize - (1 << level)])
    }
}
