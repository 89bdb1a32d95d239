//! Convolutions that leave out products with zeros of the input.

use super::context::Cx;
use super::planes::{self, Planes};
use super::shape::Divisor;
use super::source::{Kernel, Source};
use super::step::{Args, GRID, Step, THREADS, parts_of};
use crate::cuda::error::CudaError;
use bytemuck::{Pod, Zeroable};
use cudarc::driver::sys::CUdeviceptr;
use vdnn_ir::Layout;
use vdnn_ir::op::ConvAttrs;

/// Warps of a block; the source calls it WARPS.
const WARPS: u64 = (THREADS / 32) as u64;
/// Channels that a warp takes at once; the source calls it QUAD.
const QUAD: u64 = 4;
/// Inputs of a tile that have a case each.
const POSITIONS: u64 = 96;
/// Sums and weights of a thread for which there are registers.
const VALUES: u64 = 120;
/// Weights of a channel up to which a thread keeps those of the next one, too; the source calls it AHEAD.
const AHEAD: u64 = 18;
/// Registers of a thread for anything else.
const OTHERS: u64 = 30;

/// `Extents` of sparse_input.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Extents {
    planes: planes::Extents,
    quads: u32,
    tiles: u32,
    relu: u32,
    unused: u32,
    elements: u64,
    tiles_across: Divisor,
    filter_blocks: Divisor,
}

/// [`vdnn_ir::Op::SparseInputConv`].
pub(super) fn conv(cx: &mut Cx<'_>, conv: &ConvAttrs, relu: bool) -> Result<(), CudaError> {
    let (x, w, y) = (cx.f32(0)?, cx.f32(1)?, cx.f32_out(0)?);
    let optional = |i: usize| if cx.spec.inputs.len() > i { cx.f32(i).map(|o| o.ptr) } else { Ok(0) };
    let (bias, added) = (optional(2)?, optional(3)?);
    let elements = y.ty.elements();
    if elements == 0 {
        return Ok(());
    }
    let planes = Planes::new(conv, &x.ty.dims, &y.ty.dims);
    let layer = Layer { planes, processors: u64::from(cx.processors) };
    let Some(tile) = layer.best() else {
        return Err(cx.unsupported(
            "windows of so many positions have no kernel that leaves out zeros; compile with --sparse off",
        ));
    };
    let filter_blocks = planes.filters.div_ceil(32 * tile.each);
    let [down, across] = [planes.to[0].div_ceil(tile.down), planes.to[1].div_ceil(tile.across)];
    let tiles = across * down;
    let fits = (cx.spec.scratch.bytes.0 / 4 / elements).max(1);
    let share = WARPS / tile.tiles;
    let even = layer.quads().div_ceil(layer.splits(&tile).min(fits)).next_multiple_of(share);
    let quads = even.min(layer.quads());
    let splits = layer.quads().div_ceil(quads);
    let parts = if splits > 1 { cx.scratch(0, 4 * splits * elements)? } else { 0 };

    let extents = Extents {
        planes: planes.extents(cx)?,
        quads: cx.count(quads)?,
        tiles: cx.count(tiles)?,
        relu: u32::from(relu),
        unused: 0,
        elements,
        tiles_across: Divisor::new(across),
        filter_blocks: Divisor::new(filter_blocks),
    };
    cx.count(w.ty.elements())?;
    let last = x.ty.layout == Layout::ChannelsLast;
    let Tile { down, across, each, tiles: together, blocks } = tile;
    let arguments = format!("{}, {down}, {across}, {each}, {together}, {blocks}, {last}", planes.arguments());
    let kernel = Kernel::instance(Source::SparseInput, "SPARSE_INPUT_CONV", &arguments);
    let grid = [tiles.div_ceil(tile.tiles), filter_blocks * splits];
    for (image, images) in parts_of(planes.images, GRID) {
        let [from, to] = planes.bytes(image, [4; 2]);
        let moved = |at: CUdeviceptr| if at == 0 { 0 } else { at + to };
        let args = Args::new()
            .ptr(x.ptr + from)
            .ptr(w.ptr)
            .ptr(bias)
            .ptr(moved(added))
            .ptr(moved(y.ptr))
            .ptr(moved(parts))
            .pod(&extents);
        let grid = cx.grid(grid, images)?;
        cx.push(Step { kernel: kernel.clone(), grid, block: THREADS, shared: 0, args });
    }
    if splits > 1 {
        let width = if elements.is_multiple_of(4) { 4 } else { 1 };
        let kernel = Kernel::instance(Source::SparseInput, "SPARSE_INPUT_SUM", &width.to_string());
        let args = Args::new()
            .ptr(parts)
            .ptr(bias)
            .ptr(added)
            .ptr(y.ptr)
            .u32(cx.count(splits)?)
            .u32(cx.count(elements)?)
            .pod(&Divisor::new(if last { 1 } else { planes.to[0] * planes.to[1] }))
            .pod(&Divisor::new(planes.filters))
            .u32(u32::from(relu));
        let positions = cx.count(elements / width)?;
        cx.per_thread(kernel, positions, args);
    }
    Ok(())
}

/// What of a convolution the choice of tiles looks at.
struct Layer {
    planes: Planes,
    processors: u64,
}

/// How outputs are dealt to warps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    down: u64,
    across: u64,
    /// Filters of a lane.
    each: u64,
    /// Tiles of a block.
    tiles: u64,
    /// Blocks for which a multiprocessor has registers.
    blocks: u64,
}

impl Layer {
    /// Turns of a warp that takes all channels.
    fn quads(&self) -> u64 {
        self.planes.channels.div_ceil(QUAD).max(1)
    }

    /// Inputs of a tile of outputs but for rows and columns without taps.
    fn positions(&self, tile: [u64; 2]) -> u64 {
        let [rows, columns] = self.planes.reach(tile);
        rows.saturating_mul(columns)
    }

    /// Tiles that are worth a thought; small ones for windows that leave no room for others.
    fn tiles(&self) -> &'static [[u64; 2]] {
        match self.planes.taps() {
            1 if self.planes.is_line() => &[[1, 28], [1, 14]],
            1 => &[[4, 7], [2, 7]],
            _ if self.positions([2, 2]) > POSITIONS => &[[1, 1]],
            _ => &[[7, 7], [4, 7], [4, 4], [2, 4], [2, 2]],
        }
    }

    /// The tile with the shortest time by [`Self::cycles`]; `None` if there is none for the window.
    fn best(&self) -> Option<Tile> {
        let taps = self.planes.taps();
        let mut best: Option<(f64, Tile)> = None;
        for &[down, across] in self.tiles() {
            for each in [8, 4, 2, 1] {
                let kept = if taps.saturating_mul(each) <= AHEAD { 2 } else { 1 };
                let values = (down * across).saturating_add(taps.saturating_mul(kept)).saturating_mul(each);
                if self.positions([down, across]) > POSITIONS || values > VALUES {
                    continue;
                }
                let blocks = match values + OTHERS {
                    0..=64 => 4,
                    65..=80 => 3,
                    81..=128 => 2,
                    _ => 1,
                };
                // Warps that would have no channels take another tile.
                let tiles = WARPS / self.quads().next_power_of_two().min(WARPS);
                let tile = Tile { down, across, each, tiles, blocks };
                let cycles = self.cycles(&tile);
                if best.is_none_or(|(least, _)| cycles < least) {
                    best = Some((cycles, tile));
                }
            }
        }
        best.map(|(_, tile)| tile)
    }

    /// Blocks of all images, tiles and filters.
    fn blocks(&self, tile: &Tile) -> u64 {
        let [height, width] = self.planes.to;
        let tiles = height.div_ceil(tile.down) * width.div_ceil(tile.across);
        self.planes.images * tiles.div_ceil(tile.tiles) * self.planes.filters.div_ceil(32 * tile.each)
    }

    /// Parts that channels are dealt to, each warp the same number of quads in turn, so that there are
    /// about two blocks for each multiprocessor: more cost more in adding them up than they gain.
    fn splits(&self, tile: &Tile) -> u64 {
        let share = WARPS / tile.tiles;
        let work = self.quads() as f64 * self.blocks(tile) as f64;
        let turns = (work / (share * 2 * self.processors) as f64).round().max(1.0) as u64;
        self.quads().div_ceil(share * turns)
    }

    /// A guess at the time, in cycles of a multiprocessor with four schedulers. Its numbers are fitted
    /// to 874 times on an H200, of 13 layers of one image; what it chooses is within 2 % of the best of
    /// them in the mean and within 8 % always. An input costs a test and its share of products, a
    /// weight its way to a register; a warp alone is 2.5 times as slow as its share of four; each sum
    /// is exchanged; and more parts than one cost another launch and their way to memory and back.
    fn cycles(&self, tile: &Tile) -> f64 {
        let [height, width] = self.planes.to;
        let outputs = tile.down * tile.across;
        let tiles = height.div_ceil(tile.down) * width.div_ceil(tile.across);
        let inside = (height * width) as f64 / (tiles * outputs) as f64;
        let positions = self.positions([tile.down, tile.across]) as f64;
        let weights = (self.planes.taps() * tile.each) as f64;
        let products = 0.9 * inside * outputs as f64 * weights;
        let quad = QUAD as f64 * (1.7 * positions + products + 1.4 * weights + 60.0) + 160.0;
        let splits = self.splits(tile);
        let quads = self.quads().div_ceil(splits * (WARPS / tile.tiles)) as f64;
        let on_each = (self.blocks(tile) * splits).div_ceil(self.processors);
        let turns = on_each.div_ceil(tile.blocks) as f64;
        let warps = (on_each * WARPS) as f64 / 4.0;
        let multiplied = quads * quad * warps.max(2.5 * turns);
        let exchanged = 80.0 * (outputs * tile.each) as f64;
        let elements = (self.planes.images * self.planes.filters * height * width) as f64;
        let added = if splits > 1 { 1200.0 + splits as f64 * elements / 330.0 } else { 0.0 };
        multiplied + exchanged + added
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vdnn_ir::Dims;

    fn layer([kernel, stride, pad]: [u64; 3], [images, channels, filters, extent]: [u64; 4]) -> Layer {
        let conv = ConvAttrs::square(kernel, stride, pad, 1);
        let dims = |c: u64| Dims::from_slice(&[images, c, extent, extent]);
        Layer { planes: Planes::new(&conv, &dims(channels), &dims(filters)), processors: 132 }
    }

    fn tile(kernel: u64, sizes: [u64; 4]) -> Tile {
        layer([kernel, 1, kernel / 2], sizes).best().expect("a tile")
    }

    #[test]
    fn tiles_shrink_until_all_multiprocessors_have_work() {
        let outputs = |t: Tile| t.down * t.across;
        let (small, large) = (tile(3, [1, 128, 32, 7]), tile(3, [64, 128, 32, 56]));
        assert!(outputs(small) < outputs(large), "{small:?} {large:?}");
        assert_eq!((small.each, large.each), (1, 1), "32 filters are a warp's");
        assert!(tile(3, [1, 256, 256, 14]).each > 1);
        assert!(tile(1, [1, 256, 256, 14]).each > 1);
        assert_eq!(tile(1, [1, 256, 256, 14]).down, 1);
        // A window that no tile is left for.
        assert_eq!(layer([11, 4, 2], [1, 1, 64, 55]).best(), None);
    }
}
