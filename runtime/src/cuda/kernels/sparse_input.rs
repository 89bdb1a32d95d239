//! Convolutions that leave out products with zeros of the input.

use super::context::Cx;
use super::shape::{Divisor, Image};
use super::source::{Kernel, Source};
use super::step::{Args, GRID, Step, THREADS};
use crate::cuda::error::CudaError;
use bytemuck::{Pod, Zeroable};
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
/// Registers of a thread for anything else.
const OTHERS: u64 = 26;
/// Share of inputs other than zero that tiles are chosen for.
const FULL: f64 = 0.4;

/// `Extents` of sparse_input.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Extents {
    channels: u32,
    height: u32,
    width: u32,
    filters: u32,
    out_height: u32,
    out_width: u32,
    top: i32,
    left: i32,
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
    let (from, to) = (Image::new(x.ty), Image::new(y.ty));
    let plain = |n: &u64| *n == 1;
    let flat = conv.kernel.iter().chain(&conv.strides).all(plain)
        && conv.before.iter().chain(&conv.after).all(|&p| p == 0);
    // Without neighbours a plane is one long row.
    let plane = |dims: &[u64]| if flat { [1, dims[2] * dims[3]] } else { [dims[2], dims[3]] };
    let ([height, width], [out_height, out_width]) = (plane(&x.ty.dims), plane(&y.ty.dims));
    let window = Window { conv, flat };
    let layer = Layer {
        images: to.images,
        quads: from.channels.div_ceil(QUAD).max(1),
        filters: to.channels,
        height: out_height,
        width: out_width,
        processors: u64::from(cx.processors),
    };
    let Some(tile) = layer.best(&window) else {
        return Err(cx.unsupported(
            "windows of so many positions have no kernel that leaves out zeros; compile with --sparse off",
        ));
    };
    let filter_blocks = to.channels.div_ceil(32 * tile.each);
    let (across, down) = (out_width.div_ceil(tile.across), out_height.div_ceil(tile.down));
    let tiles = across * down;
    // As many blocks as run at once, if there are so many quads of channels.
    let share = WARPS / tile.tiles;
    let base = layer.images * tiles.div_ceil(tile.tiles) * filter_blocks;
    let fits = (cx.spec.scratch.bytes.0 / 4 / elements).max(1);
    let most = layer.quads.div_ceil(share).min(fits);
    let splits = (layer.processors * tile.blocks / base.max(1)).clamp(1, most);
    let quads = layer.quads.div_ceil(splits);
    let splits = layer.quads.div_ceil(quads);
    let parts = if splits > 1 { cx.scratch(0, 4 * splits * elements)? } else { 0 };

    let pad = |i: usize| cx.count(conv.before[i]).map(|p| p as i32);
    let extents = Extents {
        channels: cx.count(from.channels)?,
        height: cx.count(height)?,
        width: cx.count(width)?,
        filters: cx.count(to.channels)?,
        out_height: cx.count(out_height)?,
        out_width: cx.count(out_width)?,
        top: pad(0)?,
        left: pad(1)?,
        quads: cx.count(quads)?,
        tiles: cx.count(tiles)?,
        relu: u32::from(relu),
        unused: 0,
        elements,
        tiles_across: Divisor::new(across),
        filter_blocks: Divisor::new(filter_blocks),
    };
    // Indices within an image have 32 bits.
    cx.count(from.channels * from.plane)?;
    cx.count(w.ty.elements())?;
    let last = x.ty.layout == Layout::ChannelsLast;
    let words: Vec<String> = conv
        .kernel
        .iter()
        .chain(&conv.strides)
        .chain(&conv.dilations)
        .chain(&[tile.down, tile.across, tile.each, tile.tiles, tile.blocks])
        .map(u64::to_string)
        .collect();
    let arguments = format!("{}, {last}", words.join(", "));
    let kernel = Kernel::instance(Source::SparseInput, "SPARSE_INPUT_CONV", &arguments);
    let grid = [tiles.div_ceil(tile.tiles), filter_blocks * splits];
    let mut image = 0;
    while image < to.images {
        let images = (to.images - image).min(GRID);
        let [x, y] = [(x.ptr, &from), (y.ptr, &to)].map(|(at, i)| at + 4 * image * i.channels * i.plane);
        let added = if added == 0 { 0 } else { added + 4 * image * to.channels * to.plane };
        let part = if parts == 0 { 0 } else { parts + 4 * image * to.channels * to.plane };
        let args = Args::new().ptr(x).ptr(w.ptr).ptr(bias).ptr(added).ptr(y).ptr(part).pod(&extents);
        let grid = cx.grid(grid, images)?;
        cx.push(Step { kernel: kernel.clone(), grid, block: THREADS, shared: 0, args });
        image += images;
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
            .pod(&Divisor::new(if last { 1 } else { out_height * out_width }))
            .pod(&Divisor::new(to.channels))
            .u32(u32::from(relu));
        let positions = cx.count(elements / width)?;
        cx.per_thread(kernel, positions, args);
    }
    Ok(())
}

/// A convolution's window.
struct Window<'a> {
    conv: &'a ConvAttrs,
    /// One tap, no padding: rows follow each other.
    flat: bool,
}

impl Window<'_> {
    fn taps(&self) -> u64 {
        self.conv.kernel.iter().product()
    }

    /// Inputs of a tile of outputs but for rows and columns without taps.
    fn positions(&self, tile: [u64; 2]) -> u64 {
        let extent = |i: usize| {
            let (k, d) = (self.conv.kernel[i], self.conv.dilations[i]);
            let stride = if k == 1 { 1 } else { self.conv.strides[i] };
            (tile[i] - 1).saturating_mul(stride).saturating_add((k - 1).saturating_mul(d)).saturating_add(1)
        };
        extent(0).saturating_mul(extent(1))
    }

    /// Tiles that are worth a thought; small ones for windows that leave no room for others.
    fn tiles(&self) -> &'static [[u64; 2]] {
        match self.taps() {
            1 if self.flat => &[[1, 28], [1, 14]],
            1 => &[[4, 7], [2, 7]],
            _ if self.positions([2, 2]) > POSITIONS => &[[1, 1]],
            _ => &[[7, 7], [4, 4], [2, 2]],
        }
    }
}

/// What of a convolution the choice of tiles looks at.
struct Layer {
    images: u64,
    quads: u64,
    filters: u64,
    height: u64,
    width: u64,
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
    /// The tile with the shortest time by [`Self::cycles`]; `None` if there is none for the window.
    fn best(&self, window: &Window<'_>) -> Option<Tile> {
        let taps = window.taps();
        let mut best: Option<(f64, Tile)> = None;
        for &[down, across] in window.tiles() {
            for each in [8, 4, 2, 1] {
                let values = (down * across).saturating_add(taps).saturating_mul(each);
                if window.positions([down, across]) > POSITIONS || values > VALUES {
                    continue;
                }
                let blocks = match values + OTHERS {
                    0..=64 => 4,
                    65..=84 => 3,
                    85..=128 => 2,
                    _ => 1,
                };
                let small = down * across <= 16 && across * down < self.height * self.width;
                let tile = Tile { down, across, each, tiles: if small { 2 } else { 1 }, blocks };
                let cycles = self.cycles(window, &tile);
                if best.is_none_or(|(least, _)| cycles < least) {
                    best = Some((cycles, tile));
                }
            }
        }
        best.map(|(_, tile)| tile)
    }

    /// A guess at the time, in cycles of a multiprocessor with four schedulers: what is longest of
    /// the instructions of all warps, the time of those that follow each other, and the weights' way
    /// at 40 bytes a cycle. An input costs a test and a branch beside its products, a weight an
    /// access, four channels a turn to memory.
    fn cycles(&self, window: &Window<'_>, tile: &Tile) -> f64 {
        let outputs = tile.down * tile.across;
        let tiles = self.height.div_ceil(tile.down) * self.width.div_ceil(tile.across);
        let inside = (self.height * self.width) as f64 / (tiles * outputs) as f64;
        let positions = window.positions([tile.down, tile.across]) as f64;
        let weights = (window.taps() * tile.each) as f64;
        let products = FULL * inside * outputs as f64 * weights;
        let quad = |test: f64, channel: f64, turn: f64| {
            QUAD as f64 * (test * positions + products + 2.0 * weights + channel) + turn
        };
        let units = self.images * tiles * self.filters.div_ceil(32 * tile.each) * self.quads;
        let each = units as f64 / self.processors as f64;
        let busy = each / 4.0 * quad(2.25, 40.0, 200.0);
        let at_once = self.processors * WARPS * tile.blocks;
        let late = units.div_ceil(at_once) as f64 * quad(8.0, 150.0, 1200.0);
        let way = each * QUAD as f64 * 128.0 * weights / tile.tiles as f64 / 40.0;
        busy.max(late).max(way)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tile(kernel: u64, [images, channels, filters, extent]: [u64; 4]) -> Tile {
        let two = |n: u64| [n, n].as_slice().into();
        let conv = ConvAttrs {
            kernel: two(kernel),
            strides: two(1),
            before: two(kernel / 2),
            after: two(kernel / 2),
            dilations: two(1),
            groups: 1,
        };
        let flat = kernel == 1;
        let (height, width) = if flat { (1, extent * extent) } else { (extent, extent) };
        let quads = channels.div_ceil(QUAD);
        let layer = Layer { images, quads, filters, height, width, processors: 132 };
        layer.best(&Window { conv: &conv, flat }).expect("a tile")
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
        let two = |n: u64| [n, n].as_slice().into();
        let conv = ConvAttrs {
            kernel: two(11),
            strides: two(4),
            before: two(2),
            after: two(2),
            dilations: two(1),
            groups: 1,
        };
        let layer = Layer { images: 1, quads: 1, filters: 64, height: 55, width: 55, processors: 132 };
        assert_eq!(layer.best(&Window { conv: &conv, flat: false }), None);
    }
}
