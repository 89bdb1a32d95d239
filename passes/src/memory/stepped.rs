//! Packs blocks whose parts come into use one after the other.
//!
//! The result of a concat whose operands are made in it grows row by row, and a tensor that is read
//! slice by slice shrinks; before and after, others may use the bytes. Such a block is a staircase
//! in time, and is placed as a whole at the lowest offset at which every part fits.

use super::pack::live_profile;
use std::cmp::Reverse;
use std::ops::Range;
use vdnn_ir::Bytes;

/// The bytes `[start, end)` of a block, and the positions `[from, until)` at which they are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// First byte.
    pub start: Bytes,
    /// One past the last byte.
    pub end: Bytes,
    /// First position.
    pub from: u32,
    /// One past the last position.
    pub until: u32,
}

/// A block: disjoint parts with gaps nowhere.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) parts: Vec<Part>,
}

impl Shape {
    /// Size and lifetime of each part.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (Bytes, Range<u32>)> + '_ {
        self.parts.iter().map(|p| (p.end - p.start, p.from..p.until))
    }

    /// One past the last position.
    pub(super) fn until(&self) -> u32 {
        self.parts.iter().map(|p| p.until).max().unwrap_or(0)
    }

    /// The first position.
    pub(super) fn first(&self) -> u32 {
        self.parts.iter().map(|p| p.from).min().unwrap_or(0)
    }

    pub(super) fn size(&self) -> u64 {
        self.parts.iter().map(|p| p.end.0).max().unwrap_or(0)
    }

    /// True if its front is given back before its end.
    pub(super) fn shrinks(&self) -> bool {
        self.parts.first().zip(self.parts.last()).is_some_and(|(first, last)| first.until < last.until)
    }
}

/// Bytes `[start, end)` of the arena in use at `t0..t1`.
struct Slot {
    start: i128,
    end: i128,
    t0: u32,
    t1: u32,
}

/// Pairs of parts that may be compared in all.
const WORK: u64 = 150_000_000;
/// Orders tried at most.
const ORDERS: u64 = 400;
/// Number of heuristics of [`sorted`].
const KEYS: u64 = 8;

/// A packing.
#[derive(Clone)]
pub(super) struct Placed {
    pub(super) offsets: Vec<Bytes>,
    pub(super) height: Bytes,
    /// Place in the order of the block that ends highest.
    pub(super) highest: usize,
    /// Bytes above the goal, each as often as positions at which it is in use.
    pub(super) above: u128,
}

/// Where blocks go, and the height of the arena: the best of several greedy orders and of those
/// that come of placing the highest block of the order before first, until the bound is reached
/// or the work is done. `None` if there are too many parts. The same blocks give the
/// same packing.
pub(super) fn pack(shapes: &[Shape], bound: Bytes) -> Option<(Vec<Bytes>, Bytes)> {
    let parts = shapes.iter().map(|s| s.parts.len() as u64).sum::<u64>();
    let orders = (WORK / (parts * parts / 2).max(1)).min(ORDERS);
    let crests = crests(shapes);
    let mut best: Option<Placed> = None;
    // What is left of the work is shared by the heuristics.
    let rounds = orders.div_ceil(KEYS);
    for key in 0..orders.min(KEYS) {
        let mut order = sorted(shapes, &crests, key);
        for _ in 0..rounds {
            let placed = place(shapes, &order, bound, &|_| false);
            let highest = placed.highest;
            if best.as_ref().is_none_or(|b| placed.height < b.height) {
                best = Some(placed);
            }
            if highest == 0 || best.as_ref().is_some_and(|b| b.height <= bound) {
                break;
            }
            order[..=highest].rotate_right(1);
        }
    }
    let best = best?;
    Some((best.offsets, best.height))
}

/// The fullest position that each block lives through.
pub(super) fn crests(shapes: &[Shape]) -> Vec<u64> {
    let positions = shapes.iter().map(Shape::until).max().unwrap_or(0) as usize;
    let profile = live_profile(shapes.iter().flat_map(Shape::blocks), positions);
    let crest = |s: &Shape| profile[s.first() as usize..s.until() as usize].iter().max().map_or(0, |b| b.0);
    shapes.iter().map(crest).collect()
}

/// The blocks by the `key`-th heuristic.
pub(super) fn sorted(shapes: &[Shape], crests: &[u64], key: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..shapes.len()).collect();
    order.sort_by_cached_key(|&i| {
        let s = &shapes[i];
        let (span, size) = (u64::from(s.until().saturating_sub(s.first())), s.size());
        let keys = match key {
            0 => (crests[i], span),
            1 => (crests[i], size),
            2 => (size, span),
            3 => (span, size),
            4 => (span.saturating_mul(size), size),
            // What is made later goes below what its parts are made of.
            5 => (u64::from(s.first()), size),
            6 => (u64::from(s.until()), size),
            _ => (u64::from(u32::MAX - s.first()), span),
        };
        (Reverse(keys), i)
    });
    order
}

/// Places blocks one by one, each at the lowest offset it fits; those that are hung, at the highest below
/// the goal if there is one.
pub(super) fn place(shapes: &[Shape], order: &[usize], goal: Bytes, hung: &dyn Fn(usize) -> bool) -> Placed {
    let mut slots: Vec<Slot> = Vec::new();
    let mut offsets = vec![Bytes::ZERO; shapes.len()];
    let (mut height, mut highest, mut above) = (0, 0, 0);
    // Offsets strictly between these two bounds are taken.
    let mut taken: Vec<(i128, i128)> = Vec::new();
    let goal = i128::from(goal.0);
    for (at, &i) in order.iter().enumerate() {
        let shape = &shapes[i];
        taken.clear();
        let until = shape.until();
        for slot in slots.iter().filter(|s| s.t0 < until) {
            let meeting = shape.parts.iter().filter(|p| p.from < slot.t1 && slot.t0 < p.until);
            taken.extend(
                meeting.map(|p| (slot.start - i128::from(p.end.0), slot.end - i128::from(p.start.0))),
            );
        }
        taken.sort_unstable();
        let below = if hung(i) { highest_below(&taken, goal - i128::from(shape.size())) } else { None };
        let offset = below.unwrap_or_else(|| lowest(&taken));
        for p in shape.parts.iter().filter(|p| p.start < p.end && p.from < p.until) {
            let (start, end) = (offset + i128::from(p.start.0), offset + i128::from(p.end.0));
            slots.push(Slot { start, end, t0: p.from, t1: p.until });
            if end > height {
                (height, highest) = (end, at);
            }
            above += (end - start.max(goal)).max(0).unsigned_abs() * u128::from(p.until - p.from);
        }
        offsets[i] = Bytes(u64::try_from(offset).unwrap_or(u64::MAX));
    }
    Placed { offsets, height: Bytes(u64::try_from(height).unwrap_or(u64::MAX)), highest, above }
}

/// The lowest offset that is in none of these, which are in order.
fn lowest(taken: &[(i128, i128)]) -> i128 {
    let mut offset = 0;
    for &(low, high) in taken {
        if low >= offset {
            break;
        }
        offset = high.max(offset);
    }
    offset
}

/// The highest one that is no higher than `top`.
fn highest_below(taken: &[(i128, i128)], top: i128) -> Option<i128> {
    // All offsets before `free` are taken or have been looked at.
    let (mut free, mut best) = (0, None);
    for &(low, high) in taken {
        if free > top {
            break;
        }
        if low >= free {
            best = Some(low.min(top));
        }
        free = high.max(free);
    }
    if free <= top { Some(top) } else { best }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn part(start: u64, end: u64, live: Range<u32>) -> Part {
        Part { start: Bytes(start), end: Bytes(end), from: live.start, until: live.end }
    }

    #[test]
    fn what_is_not_in_use_yet_is_used_by_others() {
        // Two halves of a result, each made by way of something larger.
        let result = Shape { parts: vec![part(0, 256, 1..6), part(256, 512, 4..6)] };
        let work = |t: u32| Shape { parts: vec![part(0, 1024, t..t + 2)] };
        let (offsets, height) = pack(&[result.clone(), work(0), work(3)], Bytes(1536)).expect("few");
        // Beside the whole at the moment at which the second half is made.
        assert_eq!(height, Bytes(1536));
        assert_ne!(offsets[0], offsets[1]);
        // A work that ends as the second half begins lies in its bytes.
        let early = Shape { parts: vec![part(0, 1024, 2..4)] };
        assert_eq!(pack(&[result, early], Bytes(1280)).expect("few").1, Bytes(1280));
    }

    #[test]
    fn what_is_made_of_slices_follows_them_into_their_bytes() {
        // Each fourth of the result is made of the same fourth of the operand, which is then dead.
        let fourths = |live: &dyn Fn(u32) -> Range<u32>| -> Vec<Part> {
            (0..4).map(|i| part(u64::from(i) * 256, u64::from(i + 1) * 256, live(i))).collect()
        };
        let operand = Shape { parts: fourths(&|i| 0..i + 2) };
        let result = Shape { parts: fourths(&|i| i + 1..6) };
        let (offsets, height) = pack(&[operand, result], Bytes(1280)).expect("few");
        assert_eq!(height, Bytes(1280));
        assert_eq!(offsets[0].0.abs_diff(offsets[1].0), 256);
    }

    /// No two parts in use at the same time share a byte, and none ends above the height.
    pub(crate) fn assert_apart(shapes: &[Shape], offsets: &[Bytes], height: Bytes) {
        let placed: Vec<(usize, u64, u64, Range<u32>)> = shapes
            .iter()
            .zip(offsets)
            .enumerate()
            .flat_map(|(i, (s, o))| {
                s.parts.iter().map(move |p| (i, (*o + p.start).0, (*o + p.end).0, p.from..p.until))
            })
            .collect();
        for (k, (i, s0, e0, t0)) in placed.iter().enumerate() {
            assert!(*e0 <= height.0 && offsets[*i].0.is_multiple_of(256));
            for (j, s1, e1, t1) in &placed[..k] {
                let apart = e0 <= s1 || e1 <= s0 || t0.end <= t1.start || t1.end <= t0.start;
                assert!(i == j || apart, "{i} and {j}");
            }
        }
    }

    #[test]
    fn parts_in_use_together_share_no_byte() {
        let mut state = 3u64;
        let mut next = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        for _ in 0..60 {
            let shapes: Vec<Shape> = (0..next(40))
                .map(|_| {
                    let (mut at, first) = (0, next(30) as u32);
                    let parts: Vec<Part> = (0..1 + next(4))
                        .map(|_| {
                            let start = at;
                            at += 256 * (1 + next(6));
                            let from = first + next(6) as u32;
                            part(start, at, from..from + 1 + next(6) as u32)
                        })
                        .collect();
                    Shape { parts }
                })
                .collect();
            let Some((offsets, height)) = pack(&shapes, Bytes::ZERO) else { panic!("few") };
            assert_apart(&shapes, &offsets, height);
            let profile = live_profile(shapes.iter().flat_map(Shape::blocks), 64);
            assert!(profile.iter().all(|&b| b <= height));
        }
    }
}
