//! Which layers of a chain to fuse, and in which tiles: predicted times of groups, and the best
//! division of the chain into groups by dynamic programming over where they end.

mod estimate;

pub use estimate::{Estimate, estimate, unfused};

use crate::chain::{Chain, Kind};
use crate::machine::Target;
use crate::tiling::{Mode, Tiling};
use std::ops::Range;
use vdnn_ir::Nanos;

/// Bounds of a search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Most convolutions of a group.
    pub depth: usize,
    /// A group must be predicted to be so many times faster than its layers by themselves.
    pub gain: f64,
}

impl Default for Limits {
    /// Three convolutions (halos grow with every one), and what a prediction may be wrong by.
    fn default() -> Self {
        Self { depth: 3, gain: 1.15 }
    }
}

/// Layers that run together.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The layers.
    pub layers: Range<usize>,
    /// How they are fused; `None` for a layer by itself.
    pub fused: Option<Fused>,
    /// Predicted time of the layers by themselves.
    pub unfused: Nanos,
}

/// How a group is fused.
#[derive(Clone, Debug, PartialEq)]
pub struct Fused {
    /// The tiles.
    pub tiling: Tiling,
    /// What they cost.
    pub estimate: Estimate,
}

impl Group {
    /// Predicted time.
    pub fn time(&self) -> Nanos {
        self.fused.as_ref().map_or(self.unfused, |f| f.estimate.time)
    }

    /// Time of the layers by themselves over the group's.
    pub fn gain(&self) -> f64 {
        self.unfused.as_f64() / self.time().as_f64().max(1.0)
    }
}

/// A chain divided into groups.
#[derive(Clone, Debug, PartialEq)]
pub struct Division {
    /// The groups, in order; every layer is in one.
    pub groups: Vec<Group>,
}

impl Division {
    /// Predicted time.
    pub fn time(&self) -> Nanos {
        self.groups.iter().map(Group::time).sum()
    }

    /// Predicted time without any fusion.
    pub fn unfused(&self) -> Nanos {
        self.groups.iter().map(|g| g.unfused).sum()
    }
}

/// The division of a chain with the least predicted time. `alone` are the times of the layers by
/// themselves, such as [`unfused`] predicts or a table has; one per layer, else nothing is fused.
/// Of equal times the one with the earlier ends of groups.
pub fn search(chain: &Chain, alone: &[Nanos], target: &Target, batch: u64, limits: Limits) -> Division {
    divide(chain.layers().len(), alone, &|layers| fuse(chain, alone, layers, target, batch, limits))
}

/// The best way to fuse some layers, if it keeps the limits.
pub fn fuse(
    chain: &Chain,
    alone: &[Nanos],
    layers: Range<usize>,
    target: &Target,
    batch: u64,
    limits: Limits,
) -> Option<Fused> {
    let is_conv = |l: &&crate::Layer| matches!(l.kind, Kind::Conv { .. });
    let convolutions = chain.layers().get(layers.clone())?.iter().filter(is_conv).count();
    if layers.len() < 2 || convolutions == 0 || convolutions > limits.depth {
        return None;
    }
    let unfused: Nanos = alone.get(layers.clone())?.iter().copied().sum();
    let part = chain.part(layers)?;
    let fused = tilings(&part).into_iter().filter_map(|tiling| {
        let estimate = estimate(&part, tiling, target, batch)?;
        Some(Fused { tiling, estimate })
    });
    let best = fused.min_by(|a, b| {
        let key = |f: &Fused| (f.estimate.time, f.estimate.shared, f.tiling);
        key(a).cmp(&key(b))
    })?;
    (unfused.as_f64() >= limits.gain * best.estimate.time.as_f64()).then_some(best)
}

/// [`search`], whatever fuses.
fn divide(layers: usize, alone: &[Nanos], fuse: &dyn Fn(Range<usize>) -> Option<Fused>) -> Division {
    let groups = least_division(layers, Nanos::ZERO, Nanos::saturating_add, |layers| {
        let fused = if layers.len() == 1 { None } else { Some(fuse(layers.clone())?) };
        let unfused = layers.clone().map(|l| alone.get(l).copied().unwrap_or_default()).sum();
        let group = Group { layers, fused, unfused };
        Some((group.time(), group))
    });
    Division { groups }
}

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
