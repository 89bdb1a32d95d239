//! Convolutions with packed weights ([`vdnn_ir::sparse`]): which tiles, and launches.

use super::context::Cx;
use super::planes::{self, Planes};
use super::shape::Divisor;
use super::source::{Kernel, Source};
use super::sparse::{PROCESSOR_WARPS, Packed};
use super::sparse_gather;
use super::step::{Args, GRID, Step, parts_of};
use crate::cuda::error::CudaError;
use bytemuck::{Pod, Zeroable};
use cudarc::driver::sys::CUdeviceptr;
use std::fmt;
use vdnn_ir::op::ConvAttrs;
use vdnn_ir::{Dims, Layout};

/// Shared memory of a block at most, with what the driver takes of it.
const SHARED: u64 = 224 << 10;

/// Shared memory of a multiprocessor.
pub(super) const PROCESSOR_SHARED: u64 = 228 << 10;

/// Registers of a multiprocessor.
pub(super) const REGISTERS: u64 = 64 << 10;

/// `Extents` of sparse_conv.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Extents {
    planes: planes::Extents,
    turns: u32,
    slabs: u32,
    relu: u32,
    tiles_across: Divisor,
}

/// Launches of [`vdnn_ir::Op::SparseConv`] with two spatial dimensions.
pub(super) fn conv(
    cx: &mut Cx<'_>,
    conv: &ConvAttrs,
    weights: &Packed,
    (w_dims, room): (&Dims, u64),
    relu: bool,
) -> Result<(), CudaError> {
    let (x, y) = (cx.f32(0)?, cx.f32_out(0)?);
    let added = if cx.spec.inputs.len() > 3 { cx.f32(3)?.ptr } else { 0 };
    if conv.groups != 1 || conv.kernel.len() != 2 {
        return Err(cx.unsupported(
            "of packed convolutions, those with groups or other than two axes run on the CPU only",
        ));
    }
    cx.count(w_dims.iter().product::<u64>().saturating_mul(2))?;
    let planes = Planes::new(conv, &x.ty.dims, &y.ty.dims);
    let last = x.ty.layout == Layout::ChannelsLast;
    let layer = Layer { planes, entries: room as f64 / planes.filters.max(1) as f64, last };
    let operands = Operands { x: x.ptr, y: y.ptr, added, relu };
    match layer.choice(u64::from(cx.processors)) {
        Some(Choice::Staged(way)) => launch(cx, &layer, &way, weights, &operands),
        Some(Choice::Gathered(way)) => sparse_gather::launch(cx, &layer, &way, weights, &operands),
        None => Err(cx.unsupported(
            "a window that reads more than shared memory has room for; compile with --sparse off",
        )),
    }
}

/// What is multiplied and added, and where results go.
pub(super) struct Operands {
    x: CUdeviceptr,
    y: CUdeviceptr,
    /// 0 for nothing.
    added: CUdeviceptr,
    pub(super) relu: bool,
}

impl Operands {
    /// What both kernels take first, for images so many bytes of x and y further.
    pub(super) fn args(&self, weights: &Packed, [from, to]: [u64; 2]) -> Args {
        let added = if self.added == 0 { 0 } else { self.added + to };
        weights.args(self.x + from, self.y + to).ptr(added)
    }
}

/// Launches a way with tiles in shared memory.
fn launch(
    cx: &mut Cx<'_>,
    layer: &Layer,
    way: &Way,
    weights: &Packed,
    operands: &Operands,
) -> Result<(), CudaError> {
    let planes = &layer.planes;
    let tiles = [planes.to[1].div_ceil(way.across), planes.to[0].div_ceil(way.down())];
    let extents = Extents {
        planes: planes.extents(cx)?,
        turns: way.turns as u32,
        slabs: layer.slabs(way) as u32,
        relu: u32::from(operands.relu),
        tiles_across: Divisor::new(tiles[0]),
    };
    let arguments = format!("{}, {way}, {}", planes.arguments(), layer.last);
    let kernel = Kernel::instance(Source::SparseConv, "SPARSE_CONV", &arguments);
    let blocks = [tiles[0] * tiles[1], planes.filters.div_ceil(way.filters())];
    for (image, images) in parts_of(planes.images, GRID) {
        let args = operands.args(weights, planes.bytes(image, [4; 2])).pod(&extents);
        let (grid, block) = (cx.grid(blocks, images)?, 32 * way.warps as u32);
        cx.push(Step { kernel: kernel.clone(), grid, block, shared: layer.shared(way) as u32, args });
    }
    Ok(())
}

/// A kernel and its way.
#[derive(Clone, Copy, Debug)]
enum Choice {
    Staged(Way),
    Gathered(sparse_gather::Way),
}

#[cfg(test)]
thread_local! {
    /// What tests ask for: the staged way, or one of the others.
    pub(super) static ONLY: std::cell::Cell<Option<Only>> = const { std::cell::Cell::new(None) };
}

/// Ways that tests take of each layer, the first and the last among them.
#[cfg(test)]
pub(super) const GATHERED: usize = 7;

/// See [`ONLY`].
#[cfg(test)]
#[derive(Clone, Copy, Debug)]
pub(super) enum Only {
    Staged,
    /// A way that this number chooses, where there is one.
    Gathered(usize),
}

/// What a choice depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    pub(super) planes: Planes,
    /// Weights of a filter that are not zero.
    pub(super) entries: f64,
    /// Channels are the fastest dimension.
    pub(super) last: bool,
}

/// How outputs are dealt to blocks: parameters of the kernel, and `turns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    /// Outputs of a tile next to each other.
    across: u64,
    /// Outputs of a lane.
    run: u64,
    /// Channels in shared memory at a time.
    slab: u64,
    /// Warps of a block.
    warps: u64,
    /// Filters of a warp at a time.
    each: u64,
    /// Slabs in shared memory: with two, one comes while the other is multiplied.
    stages: u64,
    /// Times that a block takes filters.
    turns: u64,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { across, run, slab, warps, each, stages, .. } = self;
        write!(f, "{across}, {run}, {slab}, {warps}, {each}, {stages}")
    }
}

impl Way {
    fn down(&self) -> u64 {
        32 * self.run / self.across
    }

    /// Filters of a block.
    fn filters(&self) -> u64 {
        self.warps * self.each * self.turns
    }
}

impl Layer {
    fn slabs(&self, way: &Way) -> u64 {
        self.planes.channels.div_ceil(way.slab)
    }

    /// Elements of a slab in shared memory: `Tile::size` of the source. Saturating.
    fn size(&self, way: &Way) -> u64 {
        let [rows, columns] = self.planes.reach([way.down(), way.across]);
        let unit = if self.last { way.slab + 1 } else { 1 };
        let spread = way.across < 32 && self.planes.strides == [1, 1];
        let odd = if spread { (way.across * unit + 32 - columns % 32 * unit % 32) % 32 } else { 0 };
        let row = columns.saturating_mul(unit).saturating_add(odd);
        rows.saturating_mul(row).saturating_mul(if self.last { 1 } else { way.slab })
    }

    /// Dynamic shared memory of a block, in bytes.
    fn shared(&self, way: &Way) -> u64 {
        way.stages
            .saturating_mul(self.size(way))
            .div_ceil(4)
            .saturating_mul(16)
            .saturating_add(way.warps * 256)
    }

    /// The ways that have room, each kind of tile with turns that leave some blocks for all
    /// multiprocessors.
    fn ways(&self) -> impl Iterator<Item = Way> + '_ {
        let (planes, flat) = (&self.planes, self.planes.to[0] == 1);
        let runs = [8, 4, 2, 1].into_iter();
        let shapes = runs.flat_map(move |run| {
            let across: &[u64] = match planes.to[1] {
                _ if flat => &[32 * 8, 32 * 4, 64, 32],
                0..=8 => &[8],
                9..=16 => &[16, 8],
                17..=24 => &[32, 16, 8],
                _ => &[32, 16],
            };
            across
                .iter()
                .filter(move |a| if flat { **a == 32 * run } else { **a <= 32 * run })
                .map(move |a| (run, *a))
        });
        let all = planes.channels.next_power_of_two().max(8);
        let slabs = move || [8, 16, 32, 64, 128, 256, 512].into_iter().filter(move |s| *s <= all);
        shapes
            .flat_map(move |(run, across)| slabs().map(move |slab| (run, across, slab)))
            .flat_map(|(run, across, slab)| [4, 8, 16].map(|warps| (run, across, slab, warps)))
            .flat_map(|(run, across, slab, warps)| [8, 4, 2, 1].map(|each| (run, across, slab, warps, each)))
            .filter(|&(run, .., warps, each)| run * each <= 64 && !(warps == 16 && run * each > 32))
            .flat_map(move |(run, across, slab, warps, each)| {
                let stages = if planes.channels > slab { 2 } else { 1 };
                [1, 2, 4, 8].map(|turns| Way { across, run, slab, warps, each, stages, turns })
            })
            .filter(|way| way.turns == 1 || way.warps * way.each * (way.turns - 1) < planes.filters)
            .filter(|way| self.shared(way) <= SHARED)
    }

    /// What takes fewer cycles: tiles in shared memory, or inputs where they lie.
    fn choice(&self, processors: u64) -> Option<Choice> {
        let (staged, gathered) = (self.best(processors), sparse_gather::best(self, processors));
        #[cfg(test)]
        match ONLY.get() {
            Some(Only::Staged) => return staged.map(|(_, way)| Choice::Staged(way)),
            Some(Only::Gathered(n)) => {
                let ways: Vec<_> = sparse_gather::ways(self).collect();
                return match ways.len() {
                    0 => staged.map(|(_, way)| Choice::Staged(way)),
                    all => Some(Choice::Gathered(ways[n % GATHERED * (all - 1) / (GATHERED - 1)])),
                };
            }
            None => {}
        }
        match (staged, gathered) {
            (Some((_, way)), None) => Some(Choice::Staged(way)),
            (Some((least, way)), Some((cycles, _))) if least <= cycles => Some(Choice::Staged(way)),
            (_, gathered) => gathered.map(|(_, way)| Choice::Gathered(way)),
        }
    }

    /// The way that [`Self::cycles`] finds fastest, the first of equals, and its cycles.
    fn best(&self, processors: u64) -> Option<(f64, Way)> {
        let mut best: Option<(f64, Way)> = None;
        for way in self.ways() {
            let cycles = self.cycles(&way, processors);
            if best.is_none_or(|(least, _)| cycles < least) {
                best = Some((cycles, way));
            }
        }
        best
    }

    /// Clock cycles that a launch takes, roughly: what a multiprocessor's shared memory serves, the copies
    /// to it, or what a warp by itself waits for. The numbers are fitted to 2,208 ways of 48 layers on
    /// an H200.
    fn cycles(&self, way: &Way, processors: u64) -> f64 {
        let p = &self.planes;
        let tiles = p.to[1].div_ceil(way.across) * p.to[0].div_ceil(way.down());
        let blocks = p.images * tiles * p.filters.div_ceil(way.filters());
        let registers = (way.run * way.each + 2 * way.each + 40).next_multiple_of(8);
        let resident = (PROCESSOR_SHARED / (self.shared(way) + 1024))
            .min(PROCESSOR_WARPS / way.warps)
            .min(REGISTERS / (32 * way.warps * registers))
            .max(1);
        let held = blocks.div_ceil(processors).min(resident) as f64;
        let rounds = blocks.div_ceil(processors * resident) as f64;
        let slabs = self.slabs(way) as f64;
        let loads = if slabs > 1.0 { slabs * way.turns as f64 } else { 1.0 };
        let [rows, columns] = p.reach([way.down(), way.across]);
        let bring = loads * (rows * columns * way.slab.min(p.channels)) as f64 * 4.0 / 9.5;
        let (warps, run) = (way.warps as f64, way.run as f64);
        // Of one warp, over all its turns.
        let filters = (way.each * way.turns).min(p.filters) as f64;
        let chunks = filters * slabs * (1.0 + (self.entries / slabs / 32.0).floor());
        let served = filters * self.entries * (run + 0.18) + chunks * 26.0;
        let alone = filters * self.entries * (70.0 + run) + chunks * 135.0;
        let waits = if way.stages == 2 { 1.0 } else { loads } * 1540.0 + loads * 1300.0;
        let multiply = (held * warps * served).max(alone);
        let bring = held * bring;
        let overlap = if way.stages == 2 || held > 1.0 {
            bring.max(multiply) + bring.min(multiply) * 0.625
        } else {
            bring + multiply
        };
        rounds * (overlap + waits / held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers() -> impl Iterator<Item = Layer> {
        let shapes = [
            [1, 256, 64, 56, 56, 1],
            [32, 64, 64, 56, 56, 3],
            [1, 512, 512, 7, 7, 3],
            [32, 1024, 256, 14, 14, 1],
        ];
        let strides = [1, 2].into_iter();
        strides.flat_map(move |stride| shapes.map(|shape| (stride, shape))).flat_map(
            |(stride, [n, c, m, h, w, k])| {
                let conv = ConvAttrs::square(k, stride, if k == 1 { 0 } else { 1 }, 1);
                let dims = |c: u64, s: u64| Dims::from_slice(&[n, c, h / s, w / s]);
                let planes = Planes::new(&conv, &dims(c, 1), &dims(m, stride));
                let entries = (c * k * k) as f64 / 20.0;
                [false, true].map(|last| Layer { planes, entries, last })
            },
        )
    }

    #[test]
    fn blocks_have_room_and_there_are_many() {
        for layer in layers() {
            let (_, way) = layer.best(132).expect("a way");
            assert!(
                layer.shared(&way) <= SHARED && way.across * way.down() == 32 * way.run,
                "{layer:?}: {way:?}"
            );
            let p = &layer.planes;
            let tiles = p.to[1].div_ceil(way.across) * p.to[0].div_ceil(way.down());
            let blocks = p.images * tiles * p.filters.div_ceil(way.filters());
            assert!(blocks >= 60, "{layer:?}: {blocks} blocks of {way:?}");
        }
    }

    #[test]
    fn a_window_beyond_shared_memory_has_no_way() {
        let mut layer = layers().next().expect("a layer");
        (layer.planes.kernel, layer.planes.dilations) = ([99; 2], [9; 2]);
        assert!(layer.choice(132).is_none());
    }
}
