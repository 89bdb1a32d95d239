//! The predicted time of a group: the slowest of arithmetic, memory and second-level cache, and
//! one launch.

use crate::chain::{Chain, Kind};
use crate::cost::{count, product};
use crate::geometry::Geometry;
use crate::machine::{BANDWIDTH, MAX_REGISTERS, OTHER_REGISTERS, THREADS, Target};
use crate::program::{ACCUMULATOR, element};
use crate::tiling::Tiling;
use vdnn_ir::{Bytes, Nanos};

/// What a group costs in some tiles.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// Multiply-adds over those with every position computed once.
    pub recompute: f64,
    /// Shared memory of a block.
    pub shared: Bytes,
    /// Registers of a thread; an estimate.
    pub registers: u64,
    /// Blocks of the whole batch.
    pub blocks: u64,
    /// Share of the multiprocessors that work.
    pub utilisation: f64,
    /// Read from and written to device memory: input and result once, weights once.
    pub memory: Bytes,
    /// The same as blocks ask for it: halos and weights again and again.
    pub cache: Bytes,
    /// The time.
    pub time: Nanos,
}

/// Predicts a chain fused in these tiles, `batch` images; `None` if the tiles do not cut it or a
/// block would need more shared memory or registers than there are.
pub fn estimate(chain: &Chain, tiling: Tiling, target: &Target, batch: u64) -> Option<Estimate> {
    let geometry = Geometry::new(chain, tiling).ok()?;
    let element = element(target.precision);
    // Sizes first: most tilings end here.
    let (_, shared) = crate::program::places(chain, &geometry, target.precision);
    let [y, x] = geometry.tracks.last()?;
    let accumulators = product(&[chain.output().channels, y.capacity, x.capacity]);
    let registers = OTHER_REGISTERS.saturating_add(accumulators.div_ceil(THREADS));
    if shared > target.machine.shared || registers > MAX_REGISTERS {
        return None;
    }
    let counts = count(chain, &geometry, target.precision);
    let images = batch as f64;
    let blocks = batch.saturating_mul(geometry.grid[0]).saturating_mul(geometry.grid[1]);
    let utilisation = target.utilisation(blocks);
    let arithmetic: f64 =
        (0..chain.layers().len()).map(|l| 2.0 * counts.macs[l] as f64 * waste(chain, l, target)).sum::<f64>()
            * images
            / (target.peak * target.fused_efficiency() * utilisation);
    let [y, x] = &geometry.tracks[0];
    let input = product(&[chain.input().channels, y.live.len(), x.live.len(), element.0]);
    let sum = |list: &[u64]| list.iter().fold(0u64, |n, &m| n.saturating_add(m));
    let once = batch.saturating_mul(sum(&[input, chain.output().bytes(element).0, counts.residual.0]));
    let memory = Bytes(once).saturating_add(weights(chain, element));
    let asked = sum(&[counts.loaded.0, counts.residual.0, counts.weights.0, counts.stored.0]);
    let cache = Bytes(batch.saturating_mul(asked));
    let bandwidth = target.bandwidth * BANDWIDTH;
    let moved = (memory.as_f64() / bandwidth).max(cache.as_f64() / (bandwidth * target.machine.l2_speed));
    Some(Estimate {
        recompute: counts.recompute(chain),
        shared,
        registers,
        blocks,
        utilisation,
        memory,
        cache,
        time: Nanos(arithmetic.max(moved).ceil() as u64).saturating_add(target.launch),
    })
}

fn weights(chain: &Chain, element: Bytes) -> Bytes {
    let layer = |l: usize| match chain.layers()[l].kind {
        Kind::Conv { out, bias, .. } => {
            Bytes(chain.weight_elements(l) * element.0 + if bias { out * ACCUMULATOR.0 } else { 0 })
        }
        _ => Bytes::ZERO,
    };
    (0..chain.layers().len()).map(layer).sum()
}

fn waste(chain: &Chain, layer: usize, target: &Target) -> f64 {
    match chain.layers()[layer].kind {
        Kind::Conv { groups, out, .. } => target.waste(out / groups, chain.macs_per_element(layer)),
        _ => 1.0,
    }
}
