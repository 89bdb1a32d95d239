//! Search for a packing below a given height by a sweep over time with backtracking.
//!
//! Blocks are placed in order of their start, each at the edge of a gap between the blocks
//! then live. What was placed and has died no longer matters, so a dead end depends on the
//! live blocks only: states that failed are remembered, and backtracking stays near the
//! dead end. This suits layer-by-layer programs, where few large blocks are live at a time.

use super::greedy::{Item, Live, Placed};
use rustc_hash::{FxHashSet, FxHasher};
use std::hash::{Hash, Hasher};

/// The choice made for one block.
struct Frame {
    /// Live blocks before this one, by offset.
    live: Vec<Live>,
    /// Offsets to try, the best last.
    choices: Vec<u64>,
    /// Hash of block and live blocks.
    state: u64,
}

/// Offsets, by position in the list, of a packing of `items` of height at most `height`, or
/// `None` if the search finds none before `work`, a number of blocks looked at, is used up. It
/// is reduced by what was used.
///
/// Blocks that live longer than `long` are placed beforehand and for good, the longest first,
/// each as low as it fits: the feature maps of a training step, which nest like brackets, then
/// make a stack, and the sweep does not have to find that out.
pub(super) fn search(items: &[Item], height: u64, long: u32, work: &mut u64) -> Option<Vec<u64>> {
    let is_long = |i: &usize| items[*i].t1 - items[*i].t0 > long;
    let (mut fixed, mut order): (Vec<usize>, Vec<usize>) = (0..items.len()).partition(is_long);
    fixed.sort_by_key(|&i| (std::cmp::Reverse(items[i].t1 - items[i].t0), i));
    order.sort_by_key(|&i| (items[i].t0, std::cmp::Reverse(items[i].size), i));
    let mut placed = Placed::default();
    let mut offsets = vec![0; items.len()];
    for i in fixed {
        offsets[i] = placed.put(&items[i], i as u32);
    }
    if placed.height() > height {
        return None;
    }
    // The fixed blocks each other block meets, by offset.
    let obstacles: Vec<Vec<Live>> = order.iter().map(|&i| placed.meeting(&items[i])).collect();
    let mut failed: FxHashSet<u64> = FxHashSet::default();
    let mut frames: Vec<Frame> = Vec::with_capacity(items.len());
    let mut live: Vec<Live> = Vec::new();
    loop {
        let k = frames.len();
        let Some(&i) = order.get(k) else { return Some(offsets) };
        let item = &items[i];
        live.retain(|l| l.until > item.t0);
        *work = work.checked_sub((live.len() + obstacles[k].len()) as u64 + 4)?;
        let mut hasher = FxHasher::default();
        (k, &live).hash(&mut hasher);
        let state = hasher.finish();
        let choices =
            if failed.contains(&state) { Vec::new() } else { choices(&live, &obstacles[k], item, height) };
        frames.push(Frame { live: std::mem::take(&mut live), choices, state });
        // Take the next choice of the last frame that has one.
        loop {
            let frame = frames.last_mut()?;
            if let Some(offset) = frame.choices.pop() {
                let i = order[frames.len() - 1];
                let item = &items[i];
                offsets[i] = offset;
                live.clone_from(&frames[frames.len() - 1].live);
                let at = live.partition_point(|l| l.offset < offset);
                live.insert(at, Live { offset, end: offset + item.size, until: item.t1 });
                break;
            }
            failed.insert(frame.state);
            frames.pop();
        }
    }
}

/// Both edges of every gap the block fits, the tightest gap last. At the edge of a gap the
/// neighbour that dies at about the same time is preferred: then one larger gap comes of it.
fn choices(live: &[Live], obstacles: &[Live], item: &Item, height: u64) -> Vec<u64> {
    let apart = |until: Option<u32>| until.map_or(0, |u| u.abs_diff(item.t1));
    let mut found: Vec<(u64, u32, u64)> = Vec::new();
    let (mut cursor, mut below) = (0, None);
    let (mut a, mut b) = (live, obstacles);
    loop {
        // The next by offset of the two lists.
        let next = match (a.first(), b.first()) {
            (Some(x), Some(y)) if x.offset <= y.offset => take_first(&mut a),
            (_, Some(_)) => take_first(&mut b),
            (_, None) => take_first(&mut a),
        };
        let (end, above) = next.map_or((height, None), |l| (l.offset, Some(l.until)));
        if end >= cursor + item.size {
            let waste = end - cursor - item.size;
            found.push((waste, apart(below), cursor));
            if waste > 0 {
                found.push((waste, apart(above), end - item.size));
            }
        }
        match next {
            Some(l) if l.end > cursor => (cursor, below) = (l.end, Some(l.until)),
            Some(_) => {}
            None => break,
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    found.into_iter().map(|f| f.2).collect()
}

fn take_first(list: &mut &[Live]) -> Option<Live> {
    let (first, rest) = list.split_first()?;
    *list = rest;
    Some(*first)
}
