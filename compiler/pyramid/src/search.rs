//! Which tiles are worth trying and what they are predicted to take ([`estimate()`]), and the best
//! division of layers into groups by dynamic programming over where they end.

mod estimate;

pub use estimate::{Estimate, estimate};

use crate::chain::Chain;
use crate::tiling::{Mode, Tiling};
use std::ops::Range;

/// The division of so many layers into groups with the least sum of prices, of equal ones that with
/// the earlier ends of groups. `price` says what a group comes to and is; `None` for layers that are no
/// group. A layer by itself must be one, or nothing is divided.
///
/// Dynamic programming: the best division of the first `n` layers ends with some group, and what
/// is before it is the best division of fewer.
pub fn least_division<C: Copy + Ord, G>(
    layers: usize,
    nothing: C,
    plus: impl Fn(C, C) -> C,
    mut price: impl FnMut(Range<usize>) -> Option<(C, G)>,
) -> Vec<G> {
    // Of each end: the price up to there, and the last group with where it starts.
    let mut best: Vec<(C, Option<(usize, G)>)> = vec![(nothing, None)];
    for end in 1..=layers {
        let mut least: Option<(C, Option<(usize, G)>)> = None;
        for start in (0..end).rev() {
            let Some((more, group)) = price(start..end) else { continue };
            let total = plus(best[start].0, more);
            if least.as_ref().is_none_or(|(price, _)| total < *price) {
                least = Some((total, Some((start, group))));
            }
        }
        let Some(least) = least else { return Vec::new() };
        best.push(least);
    }
    let mut groups = Vec::new();
    let mut end = layers;
    while let Some((start, group)) = best[end].1.take() {
        end = start;
        groups.push(group);
    }
    groups.reverse();
    groups
}

/// Extents worth trying: powers of two, and the sevenths that images of 224 come in.
const EXTENTS: [u64; 12] = [1, 2, 4, 7, 8, 14, 16, 28, 32, 56, 64, 112];

/// The tilings that a search looks at, in a fixed order.
pub fn tilings(chain: &Chain) -> Vec<Tiling> {
    let out = chain.output();
    let extents = |most: u64| {
        let mut list: Vec<u64> = EXTENTS.into_iter().filter(|&e| e < most).collect();
        list.push(most);
        list
    };
    let mut all = Vec::new();
    for rows in extents(out.height) {
        for cols in extents(out.width) {
            // Long thin tiles have the most halo.
            if rows.min(out.width) <= 2 * cols && cols.min(out.height) <= 4 * rows {
                all.push(Tiling { rows, cols, mode: Mode::Recompute });
            }
        }
    }
    let mut segments: Vec<u64> = [1, 2, 4].map(|n| out.height.div_ceil(n)).to_vec();
    segments.dedup();
    for rows in segments {
        for cols in extents(out.width) {
            for step in [1, 2, 4, 7].into_iter().filter(|&s| s < rows) {
                all.push(Tiling { rows, cols, mode: Mode::Reuse { step } });
            }
        }
    }
    all
}

#[cfg(test)]
mod tests;
