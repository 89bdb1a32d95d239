//! Packs blocks with known lifetimes into one arena: dynamic storage allocation, offline.
//!
//! Several deterministic orders of greedy placement are tried (by size, by lifetime, by
//! time, from both ends), then the best is improved by moving the blocks that stick out
//! above the lower bound to the front of the order and placing again ("squeaky wheel"
//! optimisation, Joslin and Clements, JAIR 10, 1999). Greedy placement by size is the
//! method of Pisarchyk and Lee, "Efficient memory management for deep neural net
//! inference", MLSys 2020. The search stops at the lower bound, so most inputs take one or
//! two placements; it never depends on a clock.

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

/// Work allowed to the improvement phase, in pairs of blocks compared: about 50 ms.
const IMPROVE_WORK: u64 = 60_000_000;
/// Most rounds of improvement from one starting order.
const IMPROVE_ROUNDS: u64 = 200;

/// Packs blocks. The same blocks give the same packing.
pub fn pack(blocks: &[Block]) -> Packing {
    let positions = blocks.iter().map(|b| b.live.end).max().unwrap_or(0) as usize;
    let profile = live_profile(blocks.iter().map(|b| (b.size, b.live.clone())), positions);
    let bound = profile.iter().copied().max().unwrap_or_default().0;
    let items: Vec<Item> = blocks
        .iter()
        .enumerate()
        .filter(|(_, b)| b.size.0 > 0 && !b.live.is_empty())
        .map(|(id, b)| Item { id, size: b.size.0, t0: b.live.start, t1: b.live.end })
        .collect();
    let best = Search { items: &items, profile: &profile, bound }.run();
    let mut offsets = vec![Bytes::ZERO; blocks.len()];
    for (item, &offset) in items.iter().zip(&best.offsets) {
        offsets[item.id] = Bytes(offset);
    }
    Packing { offsets, height: Bytes(best.height), lower_bound: Bytes(bound) }
}

#[derive(Clone, Copy, Debug)]
struct Item {
    id: usize,
    size: u64,
    t0: u32,
    t1: u32,
}

impl Item {
    fn span(&self) -> u64 {
        u64::from(self.t1 - self.t0)
    }
}

/// How a block chooses among the gaps it fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// The lowest.
    First,
    /// The tightest, then the lowest.
    Best,
    /// Blocks that live shorter than the limit: the highest below the bound; others the lowest.
    TwoEnded {
        /// The limit, in positions.
        short: u32,
    },
}

struct Placement {
    offsets: Vec<u64>,
    height: u64,
}

struct Search<'a> {
    items: &'a [Item],
    profile: &'a [Bytes],
    bound: u64,
}

impl Search<'_> {
    fn run(&self) -> Placement {
        let n = self.items.len();
        let mut best = Placement { offsets: vec![0; n], height: if n == 0 { 0 } else { u64::MAX } };
        let mut starts: Vec<(u64, Vec<u32>, Fit)> = Vec::new();
        for (order, fit) in self.orders() {
            if best.height <= self.bound {
                return best;
            }
            let p = self.place(&order, fit);
            starts.push((p.height, order, fit));
            if p.height < best.height {
                best = p;
            }
        }
        // Stable: ties keep the order of the list above.
        starts.sort_by_key(|s| s.0);
        let pairs = (n as u64).pow(2) / 4 + 1;
        let rounds = (IMPROVE_WORK / pairs).min(3 * IMPROVE_ROUNDS);
        for (i, (_, order, fit)) in starts.into_iter().take(3).enumerate() {
            // The best start gets half of the rounds.
            let share = if i == 0 { rounds / 2 } else { rounds / 4 };
            self.improve(order, fit, share.min(IMPROVE_ROUNDS), &mut best);
            if best.height <= self.bound {
                break;
            }
        }
        best
    }

    fn improve(&self, mut order: Vec<u32>, fit: Fit, rounds: u64, best: &mut Placement) {
        for _ in 0..rounds {
            if best.height <= self.bound {
                return;
            }
            let p = self.place(&order, fit);
            let sticks_out = |i: u32| p.offsets[i as usize] + self.items[i as usize].size > self.bound;
            let (mut front, rest): (Vec<u32>, Vec<u32>) = order.iter().partition(|&&i| sticks_out(i));
            front.extend(rest);
            let stuck = front == order;
            order = front;
            if p.height < best.height {
                *best = p;
            }
            if stuck {
                return;
            }
        }
    }

    /// The starting orders, most promising first.
    fn orders(&self) -> impl Iterator<Item = (Vec<u32>, Fit)> + '_ {
        let items = self.items;
        // The largest profile value a block meets: those at the peak must tile it exactly.
        let peaks = RangeMax::new(self.profile);
        let crest: Vec<u64> = items.iter().map(|b| peaks.max(b.t0, b.t1)).collect();
        let all = 0..items.len() as u32;
        let horizon = self.profile.len() as u32;
        let sorted = move |key: &dyn Fn(&Item, u64) -> (Reverse<u64>, Reverse<u64>, u64)| {
            let mut order: Vec<u32> = all.clone().collect();
            order.sort_by_cached_key(|&i| (key(&items[i as usize], crest[i as usize]), i));
            order
        };
        (0..9).map(move |k| match k {
            0 => (sorted(&|b, c| (Reverse(c), Reverse(b.span()), 0)), Fit::First),
            1 => (sorted(&|b, _| (Reverse(b.size), Reverse(b.span()), 0)), Fit::First),
            2 => (sorted(&|b, _| (Reverse(b.size), Reverse(b.span()), 0)), Fit::Best),
            3 => (sorted(&|b, _| (Reverse(b.span()), Reverse(b.size), 0)), Fit::First),
            4 => (sorted(&|b, _| (Reverse(b.span().saturating_mul(b.size)), Reverse(b.size), 0)), Fit::First),
            5 => (
                sorted(&|b, _| (Reverse(0), Reverse(0), u64::from(b.t0))),
                Fit::TwoEnded { short: horizon / 16 + 2 },
            ),
            6 => {
                (sorted(&|b, c| (Reverse(c), Reverse(b.size), 0)), Fit::TwoEnded { short: horizon / 16 + 2 })
            }
            7 => (
                sorted(&|b, _| (Reverse(b.span()), Reverse(b.size), 0)),
                Fit::TwoEnded { short: horizon / 16 + 2 },
            ),
            _ => (sorted(&|b, _| (Reverse(u64::from(b.t1)), Reverse(b.span()), 0)), Fit::First),
        })
    }

    /// Places blocks one by one in the given order.
    fn place(&self, order: &[u32], fit: Fit) -> Placement {
        let mut offsets = vec![0; self.items.len()];
        let mut height = 0;
        // Placed blocks by offset.
        let mut placed: Vec<Slot> = Vec::with_capacity(order.len());
        for &i in order {
            let item = &self.items[i as usize];
            let offset = match fit {
                Fit::First => lowest(&placed, item),
                Fit::Best => tightest(&placed, item),
                Fit::TwoEnded { short } if item.t1 - item.t0 < short => highest(&placed, item, self.bound),
                Fit::TwoEnded { .. } => lowest(&placed, item),
            };
            offsets[i as usize] = offset;
            let end = offset + item.size;
            height = height.max(end);
            let at = placed.partition_point(|s| s.offset <= offset);
            placed.insert(at, Slot { offset, end, t0: item.t0, t1: item.t1 });
        }
        Placement { offsets, height }
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    offset: u64,
    end: u64,
    t0: u32,
    t1: u32,
}

impl Slot {
    fn meets(&self, item: &Item) -> bool {
        self.t0 < item.t1 && item.t0 < self.t1
    }
}

/// The lowest offset at which the item fits.
fn lowest(placed: &[Slot], item: &Item) -> u64 {
    let mut cursor = 0;
    for s in placed {
        if s.meets(item) {
            if s.offset >= cursor + item.size {
                return cursor;
            }
            cursor = cursor.max(s.end);
        }
    }
    cursor
}

/// The offset of the smallest gap the item fits, or on top of everything it meets.
fn tightest(placed: &[Slot], item: &Item) -> u64 {
    let mut cursor = 0;
    let mut best: Option<(u64, u64)> = None;
    for s in placed.iter().filter(|s| s.meets(item)) {
        if s.offset >= cursor + item.size {
            let gap = (s.offset - cursor, cursor);
            best = Some(best.map_or(gap, |b| b.min(gap)));
        }
        cursor = cursor.max(s.end);
    }
    best.map_or(cursor, |(_, at)| at)
}

/// The highest offset at which the item fits below the ceiling; above it the lowest.
fn highest(placed: &[Slot], item: &Item, ceiling: u64) -> u64 {
    let mut cursor = 0;
    let mut best = None;
    for s in placed.iter().filter(|s| s.meets(item)) {
        let end = s.offset.min(ceiling);
        if end >= cursor + item.size {
            best = Some(end - item.size);
        }
        cursor = cursor.max(s.end);
    }
    if ceiling >= cursor + item.size {
        best = Some(ceiling - item.size);
    }
    best.unwrap_or(cursor)
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
