//! A longer search for a packing of blocks whose parts come into use one after the other.
//!
//! Blocks are placed in an order, each at the lowest offset at which it fits or, *hung*, at the highest
//! below the goal. A block that shrinks while another grows has to be at the other end
//! of the arena: at the same end what lies between the two is in nobody's reach. From several orders, with blocks
//! hung that shrink or are there from the start, steps are taken that do not make it worse: a block
//! that ends highest goes to an earlier place, two change places, one is hung or is no longer.
//! Worse is what has more bytes above the goal, each as often as positions at which it is in use.

use super::stepped::{Placed, Shape, crests, place, sorted};
use vdnn_ir::Bytes;
use vdnn_ir::random::splitmix64;

/// Steps from each start.
const STEPS: u64 = 2000;
/// Pairs of parts that may be compared in all.
const WORK: u64 = 800_000_000;
/// Blocks smaller than one part in so many of the goal come last, where they do not matter.
const SMALL: u64 = 512;
/// Orders to start from, as heuristics of [`sorted`].
const STARTS: [u64; 4] = [2, 3, 4, 7];

/// Looks for a packing no higher than `goal`: offsets and height of the lowest that is found; `None` if there
/// are too many parts. The same blocks give the same packing.
pub(super) fn pack(shapes: &[Shape], goal: Bytes) -> Option<(Vec<Bytes>, Bytes)> {
    let parts = shapes.iter().map(|s| s.parts.len() as u64).sum::<u64>();
    let steps = (WORK / (parts * parts / 2).max(1) / (2 * STARTS.len() as u64)).min(STEPS);
    let crests = crests(shapes);
    let first = |s: &Shape| s.first() == shapes.iter().map(Shape::first).min().unwrap_or(0);
    let hung: [&dyn Fn(&Shape) -> bool; 2] = [&first, &Shape::shrinks];
    let mut best: Option<Placed> = None;
    for (n, key) in STARTS.into_iter().enumerate() {
        let (order, small): (Vec<usize>, Vec<usize>) =
            sorted(shapes, &crests, key).into_iter().partition(|&i| shapes[i].size() > goal.0 / SMALL);
        for (k, hung) in hung.iter().enumerate() {
            let hung = shapes.iter().map(hung).collect();
            let start = Climb { shapes, goal, order: order.clone(), hung, small: &small };
            let seed = (n * 2 + k) as u64;
            if let Some(found) = start.run(steps, seed)
                && best.as_ref().is_none_or(|best| found.height < best.height)
            {
                best = Some(found);
            }
            if best.as_ref().is_some_and(|best| best.height <= goal) {
                break;
            }
        }
    }
    best.map(|best| (best.offsets, best.height))
}

#[derive(Clone)]
struct Climb<'a> {
    shapes: &'a [Shape],
    goal: Bytes,
    order: Vec<usize>,
    /// By block.
    hung: Vec<bool>,
    small: &'a [usize],
}

impl Climb<'_> {
    /// The lowest packing of so many steps.
    fn run(mut self, steps: u64, seed: u64) -> Option<Placed> {
        if steps == 0 || self.order.is_empty() {
            return None;
        }
        let mut here = self.place();
        let mut best = here.clone();
        for step in 0..steps {
            if best.height <= self.goal {
                break;
            }
            let next = self.changed(here.highest, splitmix64(seed, step));
            let placed = next.place();
            if (placed.above, placed.height) <= (here.above, here.height) {
                (self, here) = (next, placed);
                if here.height < best.height {
                    best = here.clone();
                }
            }
        }
        Some(best)
    }

    fn place(&self) -> Placed {
        let order: Vec<usize> = self.order.iter().chain(self.small).copied().collect();
        place(self.shapes, &order, self.goal, &|i| self.hung[i])
    }

    /// One step, given the place in the order of the block that ends highest.
    fn changed(&self, highest: usize, random: u64) -> Self {
        let mut next = self.clone();
        let n = next.order.len();
        let one = |below: usize| (random >> 8) as usize % below;
        let other = (random >> 32) as usize % n;
        let highest = highest.min(n - 1);
        match random % 4 {
            0 => next.order[one(highest + 1)..=highest].rotate_right(1),
            1 => next.order.swap(one(n), other),
            2 => next.hung[self.order[other]] ^= true,
            _ => {
                next.order[one(highest + 1)..=highest].rotate_right(1);
                next.hung[self.order[highest]] ^= true;
            }
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::super::stepped::{self, Part, tests::assert_apart};
    use super::*;

    /// Cuts a box of positions and bytes into blocks, which can be packed without a gap.
    fn cut(
        (from, until): (u32, u32),
        (start, end): (u64, u64),
        random: &mut dyn FnMut(u64) -> u64,
    ) -> Vec<Shape> {
        let (long, high) = (until - from, (end - start) / 256);
        let small = long < 3 || high < 3;
        if small {
            return vec![Shape {
                parts: vec![Part { start: Bytes(0), end: Bytes(end - start), from, until }],
            }];
        }
        if random(2) == 0 {
            let middle = from + 1 + random(u64::from(long) - 1) as u32;
            let first = cut((from, middle), (start, end), random);
            first.into_iter().chain(cut((middle, until), (start, end), random)).collect()
        } else {
            let middle = start + 256 * (1 + random(high - 1));
            let first = cut((from, until), (start, middle), random);
            first.into_iter().chain(cut((from, until), (middle, end), random)).collect()
        }
    }

    #[test]
    fn packings_are_lower_than_those_of_greedy_orders() {
        let goal = Bytes(48 * 256);
        let (mut quick, mut thorough) = (Vec::new(), Vec::new());
        for seed in 0..8 {
            let mut drawn = 0;
            let mut random = |below: u64| {
                drawn += 1;
                splitmix64(seed, drawn) % below
            };
            let shapes = cut((0, 16), (0, goal.0), &mut random);
            quick.push(stepped::pack(&shapes, goal).expect("few parts").1.0 / 256);
            let (offsets, height) = pack(&shapes, goal).expect("few parts");
            assert_apart(&shapes, &offsets, height);
            thorough.push(height.0 / 256);
        }
        let gaps = |heights: &[u64]| heights.iter().sum::<u64>() - 8 * 48;
        assert!(gaps(&thorough) * 2 < gaps(&quick), "{thorough:?}, greedy orders: {quick:?}");
    }
}
