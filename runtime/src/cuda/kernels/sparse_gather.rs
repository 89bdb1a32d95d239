//! Convolutions with packed weights whose inputs are read where they lie: which ways, and launches.

use super::context::Cx;
use super::planes;
use super::shape::Divisor;
use super::source::{Kernel, Source};
use super::sparse::{PROCESSOR_WARPS, Packed};
use super::sparse_conv::{Layer, Operands, PROCESSOR_SHARED, REGISTERS};
use super::step::{GRID, Step, parts_of};
use crate::cuda::error::CudaError;
use bytemuck::{Pod, Zeroable};
use std::fmt;

/// Taps that a mask has bits for.
const TAPS: u64 = 32;

/// Strides, windows and planes at most: far from where the kernel's 32-bit places end.
const STRIDE: u64 = 1 << 12;
const POSITIONS: u64 = 1 << 30;

/// `Extents` of sparse_gather.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Extents {
    planes: planes::Extents,
    turns: u32,
    split: u32,
    relu: u32,
    across: Divisor,
}

/// How outputs are dealt to warps: parameters of the kernel, then of its launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// Accesses of a lane for each weight, 32 of them apart.
    run: u64,
    /// Outputs next to each other of an access.
    wide: u64,
    /// Weights whose inputs are on their way at the same time.
    unroll: u64,
    /// Warps of a block.
    warps: u64,
    /// 2^split warps share a filter.
    split: u64,
    /// Filters of a warp, one after the other.
    turns: u64,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run, wide, unroll, .. } = self;
        write!(f, "{run}, {wide}, {unroll}")
    }
}

impl Way {
    /// Outputs of a lane.
    fn values(&self) -> u64 {
        self.run * self.wide
    }

    /// Filters of a block.
    fn filters(&self) -> u64 {
        (self.warps >> self.split) * self.turns
    }

    /// Dynamic shared memory of a block, in bytes.
    fn shared(&self) -> u64 {
        let sums = if self.split > 0 { self.turns.min(2) * 128 * self.values() } else { 0 };
        self.warps * (3 * 128 + sums)
    }

    /// Blocks over an image's outputs and over filters.
    fn blocks(&self, layer: &Layer) -> [u64; 2] {
        let planes = &layer.planes;
        let outputs = (planes.to[0] * planes.to[1]).div_ceil(32 * self.values());
        [outputs, planes.filters.div_ceil(self.filters())]
    }
}

/// Whether outputs lie where their inputs do.
fn same(layer: &Layer) -> bool {
    layer.planes.strides == [1, 1] && layer.planes.from == layer.planes.to
}

/// The ways there are, none for layers that the kernel does not take.
pub(super) fn ways(layer: &Layer) -> impl Iterator<Item = Way> + '_ {
    let planes = &layer.planes;
    let positions = planes.to[0].saturating_mul(planes.to[1]);
    let spans = |i: usize| planes.strides[i].max(planes.kernel[i].saturating_mul(planes.dilations[i]));
    let takes = !layer.last
        && planes.taps() <= TAPS
        && positions <= POSITIONS
        && [0, 1].into_iter().all(|i| spans(i) <= STRIDE)
        && spans(0).saturating_mul(planes.from[1]) <= POSITIONS;
    let lanes: &[(u64, u64)] = match () {
        () if !takes => &[],
        () if planes.is_line() && positions.is_multiple_of(4) => &[(1, 1), (2, 1), (1, 4), (2, 4)],
        () => &[(1, 1), (2, 1), (4, 1), (8, 1)],
    };
    let warps = lanes.iter().flat_map(|lane| [4, 8, 16].map(|warps| (*lane, warps)));
    let unrolled = warps.flat_map(|(lane, warps)| [8, 4].map(|unroll| (lane, warps, unroll)));
    let split = unrolled.flat_map(|(lane, warps, unroll)| [0, 1, 2, 3].map(|s| (lane, warps, unroll, s)));
    split
        .flat_map(|((run, wide), warps, unroll, split)| {
            [1, 2, 4, 8].map(|turns| Way { run, wide, unroll, warps, split, turns })
        })
        // More values than that would need the registers of the next warp.
        .filter(|way| way.values() * way.unroll <= 32 && way.warps >> way.split > 0)
        // Outputs that nothing takes, weights that are none.
        .filter(move |way| way.run == 1 || 32 * way.values() < positions + 32 * way.wide)
        .filter(|way| way.split == 0 || layer.entries >= (8 << way.split) as f64)
        .filter(|way| planes.filters.div_ceil(way.filters()) <= GRID)
        .filter(|way| way.turns == 1 || (way.warps >> way.split) * (way.turns - 1) < planes.filters)
}

/// The way that [`cycles`] finds fastest, the first of equals, and its cycles.
pub(super) fn best(layer: &Layer, processors: u64) -> Option<(f64, Way)> {
    let mut best: Option<(f64, Way)> = None;
    for way in ways(layer) {
        let cycles = cycles(layer, &way, processors);
        if best.is_none_or(|(least, _)| cycles < least) {
            best = Some((cycles, way));
        }
    }
    best
}

/// What [`cycles`] knows of the device, in clock cycles: fitted to 4,523 ways of 48 layers on an H200,
/// together with those of [`Layer::cycles`]. What both choose is within 6 % of the best in the mean.
mod costs {
    /// Until the first input is asked for: starts, entries, places.
    pub(super) const BEGIN: f64 = 290.0;
    /// From a group of accesses to its sums.
    pub(super) const LATENCY: f64 = 360.0;
    /// To tell where 32 weights' inputs lie: for a warp by itself, and for the multiprocessor.
    pub(super) const TELL: [f64; 2] = [345.0, 1.0];
    /// To end a filter, the same.
    pub(super) const END: [f64; 2] = [740.0, 44.0];
    /// Of an access of 32 lanes to elements next to each other, at odd places or at even ones.
    pub(super) const ACCESS: [f64; 2] = [2.2, 0.7];
    /// Of reading where a weight's inputs lie.
    pub(super) const HEARD: f64 = 0.19;
    /// Bytes that the second cache brings.
    pub(super) const BROUGHT: f64 = 48.0;
    /// Share of what is not longest that is not hidden behind it.
    pub(super) const REST: f64 = 0.165;
}

/// Clock cycles that a launch takes, roughly: what a multiprocessor's first cache serves, what the
/// second one brings, or what a warp by itself waits for.
fn cycles(layer: &Layer, way: &Way, processors: u64) -> f64 {
    let p = &layer.planes;
    let [outputs, groups] = way.blocks(layer);
    let blocks = p.images * outputs * groups;
    let registers = 40 + way.unroll * way.values();
    let resident = (PROCESSOR_SHARED / (way.shared() + 1024))
        .min(PROCESSOR_WARPS / way.warps)
        .min(REGISTERS / (32 * way.warps * registers.next_multiple_of(8)))
        .max(1);
    let held = blocks.div_ceil(processors).min(resident) as f64;
    let rounds = blocks.div_ceil(processors * resident) as f64;
    let (run, warps, turns) = (way.run as f64, way.warps as f64, way.turns as f64);
    let entries = layer.entries / (1 << way.split) as f64;
    let heard = (entries / 32.0).ceil().max(1.0);
    let groups = (entries / way.unroll as f64).ceil().max(1.0);
    let even = p.is_line() && (p.to[1].is_multiple_of(32) || way.wide == 4);
    let access = way.wide as f64 * costs::ACCESS[usize::from(even)];
    let served = entries * (run * access + costs::HEARD) + heard * costs::TELL[1] + costs::END[1];
    let each = way.unroll as f64 * run * access;
    let alone = groups * (costs::LATENCY + each) + heard * costs::TELL[0] + costs::END[0];
    // What a block reads of a channel, of which several taps and filters may read the same.
    let bytes = 4.0 * (32 * way.values()) as f64;
    let window = ((p.kernel[0] - 1) * p.dilations[0] * p.from[1]) as f64;
    let span = 4.0 * ((p.from[0] * p.from[1]) as f64).min((32 * way.values()) as f64 + window + 8.0);
    let reads = layer.entries * way.filters().min(p.filters) as f64 / p.channels.max(1) as f64;
    let brought = p.channels as f64 * span * (1.0 - (-reads * (bytes + 32.0) / span).exp());
    let serve = held * warps * turns * served;
    let bring = held * brought / costs::BROUGHT;
    let wait = turns * alone;
    rounds * serve.max(bring).max(wait)
        + costs::REST * (serve + bring + wait - serve.max(bring).max(wait))
        + costs::BEGIN
}

/// Launches a way.
pub(super) fn launch(
    cx: &mut Cx<'_>,
    layer: &Layer,
    way: &Way,
    weights: &Packed,
    operands: &Operands,
) -> Result<(), CudaError> {
    let planes = &layer.planes;
    let extents = Extents {
        planes: planes.extents(cx)?,
        turns: way.turns as u32,
        split: way.split as u32,
        relu: u32::from(operands.relu),
        across: Divisor::new(planes.to[1]),
    };
    let arguments = format!("{}, {way}, {}", planes.arguments(), same(layer));
    let kernel = Kernel::instance(Source::SparseGather, "SPARSE_GATHER", &arguments);
    for (image, images) in parts_of(planes.images, GRID) {
        let args = operands.args(weights, planes.bytes(image, [4; 2])).pod(&extents);
        let (grid, block) = (cx.grid(way.blocks(layer), images)?, 32 * way.warps as u32);
        cx.push(Step { kernel: kernel.clone(), grid, block, shared: way.shared() as u32, args });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::planes::Planes;
    use super::*;
    use vdnn_ir::Dims;
    use vdnn_ir::op::ConvAttrs;

    fn layer(conv: &ConvAttrs, [n, c, m, h, w]: [u64; 5], to: [u64; 2]) -> Layer {
        let (x, y) = (Dims::from_slice(&[n, c, h, w]), Dims::from_slice(&[n, m, to[0], to[1]]));
        let entries = (c * conv.kernel[0] * conv.kernel[1]) as f64 / 50.0;
        Layer { planes: Planes::new(conv, &x, &y), entries, last: false }
    }

    #[test]
    fn few_weights_of_small_images_are_shared_by_many_warps() {
        let conv = ConvAttrs::square(3, 1, 1, 1);
        let layer = layer(&conv, [1, 512, 512, 7, 7], [7, 7]);
        let (_, way) = best(&layer, 132).expect("a way");
        let [outputs, groups] = way.blocks(&layer);
        assert!(way.split > 0 && outputs * groups * way.warps >= 1024, "{way:?}");
        assert!(ways(&layer).all(|way| way.values() <= 2), "there are 49 outputs");
    }

    #[test]
    fn accesses_are_wide_where_outputs_and_inputs_are_aligned() {
        let conv = ConvAttrs::square(1, 1, 0, 1);
        let wide = |layer: &Layer| ways(layer).any(|way| way.wide == 4);
        assert!(wide(&layer(&conv, [1, 64, 64, 14, 14], [14, 14])));
        assert!(!wide(&layer(&conv, [1, 64, 64, 7, 7], [7, 7])));
        let strided = ConvAttrs::square(1, 2, 0, 1);
        assert!(!wide(&layer(&strided, [1, 64, 64, 28, 28], [14, 14])));
    }

    #[test]
    fn what_the_kernel_cannot_take_has_no_way() {
        let conv = ConvAttrs::square(3, 1, 1, 1);
        let mut layer = layer(&conv, [1, 8, 8, 9, 9], [9, 9]);
        assert!(best(&layer, 132).is_some());
        assert!(best(&Layer { last: true, ..layer }, 132).is_none());
        layer.planes.kernel = [7, 5];
        assert!(best(&layer, 132).is_none(), "35 taps");
        (layer.planes.kernel, layer.planes.strides) = ([3, 3], [1, 1 << 20]);
        assert!(best(&layer, 132).is_none());
    }
}
