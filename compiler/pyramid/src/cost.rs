//! What a program does and takes, exactly, from its geometry alone: sums of interval lengths.
//! [`crate::interpret`] counts the same as it goes.

use crate::chain::{Chain, Kind, Pointwise};
use crate::geometry::Geometry;
use crate::interval::Interval;
use crate::program::{ACCUMULATOR, element, places};
use vdnn_ir::{Bytes, Precision};

/// A product, or the largest number: chains may come from hostile files.
pub(crate) fn product(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |n: u64, &f| n.saturating_mul(f))
}

/// Work, traffic and memory of one block, or of all blocks of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Multiply-adds per layer; zero for pools.
    pub macs: Vec<u64>,
    /// Read of the input.
    pub loaded: Bytes,
    /// Read of residuals.
    pub residual: Bytes,
    /// Read of weights and biases: all of a layer's whenever a block computes part of it.
    pub weights: Bytes,
    /// Written of the result.
    pub stored: Bytes,
    /// Elements of buffers written as padding.
    pub padded: u64,
    /// Shared memory of a block.
    pub shared: Bytes,
    /// Accumulators of a block, all threads together.
    pub accumulators: Bytes,
}

impl Counts {
    /// Multiply-adds of all layers.
    pub fn total_macs(&self) -> u64 {
        self.macs.iter().fold(0, |n: u64, &m| n.saturating_add(m))
    }

    /// Multiply-adds over those of the chain with every position computed once; 1 without any.
    pub fn recompute(&self, chain: &Chain) -> f64 {
        let once = (0..chain.layers().len()).fold(0u64, |n, l| n.saturating_add(chain.macs(l)));
        if once == 0 { 1.0 } else { self.total_macs() as f64 / once as f64 }
    }
}

/// Lengths along one axis, summed over some tiles and steps.
struct Sums {
    computed: u64,
    written: u64,
    /// Tiles and steps that compute anything.
    busy: u64,
}

impl Sums {
    fn of(parts: impl Iterator<Item = (Interval, Interval)>) -> Self {
        parts.fold(Self { computed: 0, written: 0, busy: 0 }, |s, (computed, written)| Self {
            computed: s.computed.saturating_add(computed.len()),
            written: s.written.saturating_add(written.len()),
            busy: s.busy + u64::from(!computed.is_empty()),
        })
    }
}

/// The counts of all blocks of an image.
pub fn count(chain: &Chain, geometry: &Geometry, precision: Precision) -> Counts {
    counts(chain, geometry, precision, 0..geometry.grid[0], 0..geometry.grid[1])
}

/// The counts of one block, by its place `[y, x]` in the grid.
pub fn count_tile(chain: &Chain, geometry: &Geometry, precision: Precision, tile: [u64; 2]) -> Counts {
    counts(chain, geometry, precision, tile[0]..tile[0] + 1, tile[1]..tile[1] + 1)
}

fn counts(
    chain: &Chain,
    geometry: &Geometry,
    precision: Precision,
    rows: std::ops::Range<u64>,
    cols: std::ops::Range<u64>,
) -> Counts {
    let n = chain.layers().len();
    let element = element(precision);
    let mut c = Counts { shared: places(chain, geometry, precision).1, ..Counts::default() };
    for (b, [y, x]) in geometry.tracks.iter().enumerate() {
        let steps = |t| geometry.steps.clone().map(move |j| (y.computed(t, j), y.fresh(t, j)));
        let y = Sums::of(rows.clone().flat_map(steps));
        let x = Sums::of(cols.clone().map(|t| (x.live(t), x.held(t))));
        let channels = chain.shapes()[b].channels;
        let elements = product(&[channels, y.computed, x.computed]);
        if b < n {
            let written = product(&[channels, y.written, x.written]);
            c.padded = c.padded.saturating_add(written - elements);
        }
        let Some(l) = b.checked_sub(1) else {
            c.loaded = Bytes(product(&[elements, element.0]));
            continue;
        };
        c.macs.push(product(&[elements, chain.macs_per_element(l)]));
        if let Kind::Conv { out, bias, .. } = chain.layers()[l].kind {
            let bias = if bias { out * ACCUMULATOR.0 } else { 0 };
            let once = chain.weight_elements(l) * element.0 + bias;
            c.weights = c.weights.saturating_add(Bytes(product(&[y.busy, x.busy, once])));
        }
        if chain.layers()[l].then.contains(&Pointwise::Add) {
            let adds = chain.layers()[l].then.iter().filter(|p| **p == Pointwise::Add).count() as u64;
            c.residual = Bytes(product(&[adds, elements, element.0]));
        }
        if b == n {
            c.stored = Bytes(product(&[elements, element.0]));
            let [y, x] = &geometry.tracks[n];
            c.accumulators = Bytes(product(&[channels, y.capacity, x.capacity, ACCUMULATOR.0]));
        }
    }
    c
}
