//! Search for a packing below a given height by a sweep over time with backtracking.
//!
//! Blocks are placed in order of their start, each at the edge of a gap between the blocks
//! then live. What was placed and has died no longer matters, so a dead end depends on the
//! live blocks only: states that failed are remembered, and backtracking stays near the
//! dead end. This suits layer-by-layer programs, where few large blocks are live at a time.

use super::pack::Item;
use rustc_hash::{FxHashSet, FxHasher};
use std::hash::{Hash, Hasher};

/// A live block.
#[derive(Clone, Copy, Hash)]
struct Live {
    offset: u64,
    end: u64,
    until: u32,
}

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
/// `None` if the search finds none within `work` live blocks visited.
pub(super) fn search(items: &[Item], height: u64, mut work: u64) -> Option<Vec<u64>> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&i| (items[i].t0, std::cmp::Reverse(items[i].size), i));
    let mut offsets = vec![0; items.len()];
    let mut failed: FxHashSet<u64> = FxHashSet::default();
    let mut frames: Vec<Frame> = Vec::with_capacity(items.len());
    let mut live: Vec<Live> = Vec::new();
    loop {
        let k = frames.len();
        let Some(&i) = order.get(k) else { return Some(offsets) };
        let item = &items[i];
        live.retain(|l| l.until > item.t0);
        work = work.checked_sub(live.len() as u64 + 4)?;
        let mut hasher = FxHasher::default();
        (k, &live).hash(&mut hasher);
        let state = hasher.finish();
        let choices = if failed.contains(&state) { Vec::new() } else { choices(&live, item, height) };
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
fn choices(live: &[Live], item: &Item, height: u64) -> Vec<u64> {
    let apart = |until: Option<u32>| until.map_or(0, |u| u.abs_diff(item.t1));
    let mut found: Vec<(u64, u32, u64)> = Vec::new();
    let (mut cursor, mut below) = (0, None);
    for l in live.iter().map(Some).chain([None]) {
        let (end, above) = l.map_or((height, None), |l| (l.offset, Some(l.until)));
        if end >= cursor + item.size {
            let waste = end - cursor - item.size;
            found.push((waste, apart(below), cursor));
            if waste > 0 {
                found.push((waste, apart(above), end - item.size));
            }
        }
        if let Some(l) = l {
            (cursor, below) = (l.end, Some(l.until));
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    found.into_iter().map(|f| f.2).collect()
}
