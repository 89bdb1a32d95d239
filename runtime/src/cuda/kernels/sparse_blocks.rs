//! Convolutions and products with packed blocks of weights ([`vdnn_ir::sparse::blocks`]), on tensor
//! cores.

use super::context::Cx;
use super::planes::{self, Planes};
use super::shape::Divisor;
use super::source::{Kernel, Source};
use super::step::{Args, GRID, LIMIT, Step, THREADS, parts_of};
use crate::cuda::error::CudaError;
use bytemuck::{Pod, Zeroable};
use vdnn_ir::op::ConvAttrs;
use vdnn_ir::sparse::SparseForm;
use vdnn_ir::sparse::blocks::{BLOCK, BlockShape};
use vdnn_ir::{DType, Dims, Layout, Precision};

/// Warps of a block.
const WARPS: u64 = (THREADS / 32) as u64;

/// Shared memory of which two blocks find room on a multiprocessor, beside what is static.
const SHARED: u64 = 108 << 10;

/// Groups of filters of a warp, and tiles of outputs, whose sums leave registers for the rest.
const MOSTS: [(u64, u64); 13] = [
    (1, 1),
    (1, 2),
    (1, 4),
    (1, 6),
    (1, 7),
    (1, 8),
    (1, 12),
    (1, 14),
    (1, 16),
    (2, 2),
    (2, 4),
    (2, 7),
    (2, 8),
];

/// What is said where shared memory has no room for a tile, or for a note of all channels.
const TOO_LARGE: &str =
    "its window or channels are more than blocks of threads have room for; compile with --sparse force=csr";

/// Numbers of channels brought together; the source calls it STAGES_MOST.
const STAGES: u64 = 2048;

/// `Extents` of sparse_blocks.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Extents {
    planes: planes::Extents,
    groups: u32,
    tiles_across: Divisor,
}

/// [`vdnn_ir::Op::SparseConv`] with blocks.
pub(super) fn conv(
    cx: &mut Cx<'_>,
    conv: &ConvAttrs,
    w_dims: &Dims,
    (form, relu): (SparseForm, bool),
) -> Result<(), CudaError> {
    let (x, packed, y) = (cx.real(0)?, cx.input(1)?, cx.real_out(0)?);
    if y.ty.elements() == 0 {
        return Ok(());
    }
    let element = if form == SparseForm::BlockBf16 { DType::BF16 } else { DType::F32 };
    if x.ty.dtype != element {
        return Err(cx.unsupported(format!("feature maps {} beside blocks of {element}", x.ty)));
    }
    if cx.spec.precision == Precision::F32 {
        return Err(cx.unsupported("tensor cores have no strict f32; compile with --sparse force=csr"));
    }
    if !matches!(conv.kernel.len(), 0 | 2) {
        return Err(
            cx.unsupported("of convolutions with blocks, those of other than two axes run on the CPU only")
        );
    }
    let (Some(shape), Some(room)) = (BlockShape::of(w_dims), form.room(w_dims[0], packed.ty.elements()))
    else {
        return Err(cx.unsupported("packed weights of another size"));
    };
    let last = x.ty.rank() == 2 || x.ty.layout == Layout::ChannelsLast;
    let problem = Problem::new(conv, &x.ty.dims, &y.ty.dims, [last, element == DType::BF16]);
    let (planes, groups) = (problem.planes, shape.groups() as u64);
    let demand = Demand { groups, blocks: room, processors: u64::from(cx.processors) };
    let tile = Tile::new(&problem, &demand).ok_or_else(|| cx.unsupported(TOO_LARGE))?;
    let [down, across] = tile.outputs();
    let tiles = [planes.to[0].div_ceil(down), planes.to[1].div_ceil(across)];
    let extents = Extents {
        planes: planes.extents(cx)?,
        groups: cx.count(groups)?,
        tiles_across: Divisor::new(tiles[1]),
    };
    // Indices of blocks have 31 bits.
    cx.count(room)?;
    let name = |ty: DType| if ty == DType::BF16 { "bf16" } else { "float" };
    let whole = last && planes.channels.is_multiple_of(problem.width());
    let numbers = [tile.high, tile.line, tile.rows, tile.each, tile.tiles, tile.channels, tile.slots];
    let types = [x.ty.dtype, y.ty.dtype].map(name).join(", ");
    let arguments = format!(
        "{types}, {}, {}, {last}, {whole}",
        planes.arguments(),
        numbers.map(|n| n.to_string()).join(", ")
    );
    let kernel = Kernel::instance(Source::SparseBlocks, "SPARSE_BLOCKS", &arguments);
    let head = (groups + 1 + room).next_multiple_of(4);
    let operand = |i: usize| if cx.spec.inputs.len() > i { cx.real(i).map(|o| o.ptr) } else { Ok(0) };
    let (bias, added) = (operand(2)?, operand(3)?);
    let grid = [tiles[0] * tiles[1], groups.div_ceil(tile.rows * tile.each)];
    let shared = cx.count(problem.shared(&tile))?;
    for (image, images) in parts_of(planes.images, GRID) {
        let [from, to] = planes.bytes(image, [x.ty.dtype.bytes(), y.ty.dtype.bytes()]);
        let args = Args::new()
            .ptr(x.ptr + from)
            .ptr(packed.ptr)
            .ptr(packed.ptr + 4 * (groups + 1))
            .ptr(packed.ptr + 4 * head)
            .ptr(bias)
            .ptr(if added == 0 { 0 } else { added + to })
            .ptr(y.ptr + to)
            .u32(u32::from(relu))
            .pod(&extents);
        let grid = cx.grid(grid, images)?;
        cx.push(Step { kernel: kernel.clone(), grid, block: THREADS, shared, args });
    }
    Ok(())
}

/// A convolution as the kernel sees it.
#[derive(Clone, Copy, Debug)]
struct Problem {
    planes: Planes,
    /// Bytes of an element.
    size: u64,
}

impl Problem {
    fn new(conv: &ConvAttrs, x: &Dims, y: &Dims, [last, narrow]: [bool; 2]) -> Self {
        let size = if narrow { 2 } else { 4 };
        let line = |positions: u64| Planes::line(1, x[1], y[1], positions);
        if conv.kernel.is_empty() {
            return Self { planes: line(x[0]), size };
        }
        let planes = Planes::new(conv, x, y);
        // Without neighbours all positions are one long row, where images lie behind each other.
        let all = planes.images.saturating_mul(planes.to[1]);
        let fits = all.saturating_mul(planes.channels.max(planes.filters)) < LIMIT;
        Self { planes: if last && planes.is_line() && fits { line(all) } else { planes }, size }
    }

    /// Elements of 16 bytes.
    fn width(&self) -> u64 {
        16 / self.size
    }

    /// Shared memory of a tile: in each slot the lines of positions with their channels, then where
    /// each position is. The source has the same sums; here they are saturating.
    fn shared(&self, tile: &Tile) -> u64 {
        let [high, wide] = self.planes.reach(tile.outputs());
        let (spread, odd) = match tile.high {
            1 => (1, 8),
            8 => (2, 1),
            _ => (8, 8 / tile.high),
        };
        let apart = wide.saturating_add((odd + spread - wide % spread) % spread);
        let pitch = tile.slots * (tile.channels * self.size + 16);
        let places = high.saturating_mul(wide).saturating_mul(4);
        high.saturating_mul(apart).saturating_mul(pitch).saturating_add(places)
    }
}

/// What decides how much there is to do, and how many can do it.
#[derive(Clone, Copy, Debug)]
struct Demand {
    groups: u64,
    blocks: u64,
    processors: u64,
}

/// What a block of threads does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    /// Outputs of eight that are below each other, and how many eights are next to each other.
    high: u64,
    line: u64,
    /// Warps that share no filters.
    rows: u64,
    /// Groups of filters of a warp.
    each: u64,
    /// Tiles of eight outputs of a warp.
    tiles: u64,
    /// Channels brought together, and how many of those have room.
    channels: u64,
    slots: u64,
}

impl Tile {
    /// The tile that is predicted to be the fastest: of everything a multiprocessor does the
    /// scarcest counts, products as they read shared memory, and what comes to it; and a block of
    /// threads takes no less than the time to wait for its data.
    fn new(p: &Problem, demand: &Demand) -> Option<Self> {
        let mut best: Option<(f64, Self)> = None;
        for rows in [1, 2, 4, 8] {
            for (each, tiles) in MOSTS {
                if rows * each > 1 && rows * each >= 2 * demand.groups {
                    continue;
                }
                let all = tiles * (WARPS / rows);
                for line in (1..=all).filter(|&l| {
                    all.is_multiple_of(l) && (tiles.is_multiple_of(l) || l.is_multiple_of(tiles))
                }) {
                    // Outputs without neighbours are one line.
                    for high in
                        [1, 2, 4, 8].into_iter().filter(|&h| p.planes.to[0] > 1 || (h, line) == (1, all))
                    {
                        for bytes in [64, 128, 256] {
                            let tile =
                                Self { high, line, rows, each, tiles, channels: bytes / p.size, slots: 3 };
                            let fits = |t: &Self| {
                                p.shared(t) <= SHARED && p.planes.channels.div_ceil(t.channels) <= STAGES
                            };
                            let Some(way) = [tile, Self { slots: 2, ..tile }].into_iter().find(fits) else {
                                continue;
                            };
                            let time = way.time(p, demand);
                            if best.is_none_or(|(least, _)| time < least) {
                                best = Some((time, way));
                            }
                        }
                    }
                }
            }
        }
        best.map(|b| b.1)
    }

    /// Outputs down and across.
    fn outputs(&self) -> [u64; 2] {
        [WARPS / self.rows * self.tiles / self.line * self.high, self.line * (8 / self.high)]
    }

    /// Predicted cycles.
    fn time(&self, p: &Problem, demand: &Demand) -> f64 {
        let [down, across] = self.outputs();
        let groups = (self.rows * self.each).min(demand.groups);
        let blocks = p.planes.images
            * p.planes.to[0].div_ceil(down)
            * p.planes.to[1].div_ceil(across)
            * demand.groups.div_ceil(self.rows * self.each);
        let share = demand.blocks as f64 / demand.groups as f64;
        let all = (p.planes.channels.div_ceil(BLOCK as u64) * p.planes.kernel[0] * p.planes.kernel[1]) as f64;
        let stages = p.planes.channels.div_ceil(self.channels) as f64;
        // Channels that none of the lists has are skipped.
        let items = groups as f64 * all / stages;
        let stages = stages * (1.0 - (1.0 - (share / all).min(1.0)).powf(items)).max(0.0);
        let columns = WARPS / self.rows;
        // Four matrices of shared memory are read in four cycles, half a block of f32 for two tiles.
        let reads = (self.tiles.div_ceil(2) * p.size / 2) as f64;
        // Warps wait for the one that has most to do with the channels at hand.
        let each = share * self.each as f64 / stages.max(1.0);
        let uneven = if self.rows > 1 { 0.5 / each.max(1.0).sqrt() } else { 0.0 };
        let products =
            share * groups as f64 * columns as f64 * (4.0 * reads + 12.0) * (1.0 + uneven) + 60.0 * stages;
        let [high, wide] = p.planes.reach(self.outputs());
        let bytes = stages * (high * wide * self.channels * p.size) as f64;
        let results = (down * across * groups * BLOCK as u64 * p.size) as f64;
        let work = products.max(bytes / 40.0) + 0.3 * products.min(bytes / 40.0) + results / 20.0;
        let wait = 1500.0 + stages * 250.0 + share * self.each as f64 * (40.0 + 24.0 * reads);
        let rounds = blocks.div_ceil(demand.processors) as f64;
        (rounds * work).max((rounds / 2.0).ceil() * wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Images, channels, size, window, stride, groups of filters.
    fn problem([images, channels, size, window, stride]: [u64; 5], narrow: bool) -> Problem {
        let conv = ConvAttrs::square(window, stride, window / 2, 1);
        let out = size.div_ceil(stride);
        let dims = |size: u64| Dims::from_slice(&[images, channels, size, size]);
        Problem::new(&conv, &dims(size), &dims(out), [true, narrow])
    }

    #[test]
    fn tiles_fit_and_cover_little_else() {
        for narrow in [false, true] {
            for shape in [
                [1, 64, 56, 3, 1],
                [32, 64, 56, 3, 1],
                [32, 128, 28, 3, 1],
                [32, 256, 14, 3, 1],
                [32, 512, 7, 3, 1],
                [32, 128, 56, 3, 2],
                [32, 256, 56, 1, 1],
                [32, 512, 28, 1, 2],
                [1, 512, 7, 1, 1],
                [8, 64, 224, 3, 1],
                [2, 16, 40, 7, 2],
            ] {
                let p = problem(shape, narrow);
                for (groups, share) in [(2, 1.0), (4, 0.1), (32, 0.02), (16, 0.0)] {
                    let all = p.planes.channels.div_ceil(16) * p.planes.taps() * groups;
                    let demand = Demand { groups, blocks: (all as f64 * share) as u64, processors: 132 };
                    let t = Tile::new(&p, &demand).expect("a tile");
                    assert!(p.shared(&t) <= SHARED && t.each * t.tiles <= 16, "{t:?}");
                    let [down, across] = t.outputs();
                    assert_eq!(down * across, 8 * t.tiles * WARPS / t.rows, "{t:?}");
                    let covered =
                        p.planes.to[0].next_multiple_of(down) * p.planes.to[1].next_multiple_of(across);
                    assert!(covered <= 2 * p.planes.to[0] * p.planes.to[1] + 64, "{t:?} for {shape:?}");
                }
            }
        }
    }

    #[test]
    fn flat_convolutions_are_one_line() {
        let p = problem([32, 256, 56, 1, 1], false);
        assert_eq!((p.planes.images, p.planes.from, p.planes.to), (1, [1, 32 * 56 * 56], [1, 32 * 56 * 56]));
        // Indices would not have room.
        let p = problem([4096, 256, 56, 1, 1], false);
        assert_eq!((p.planes.images, p.planes.from), (4096, [1, 56 * 56]));
    }
}
