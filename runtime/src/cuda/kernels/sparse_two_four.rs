//! Convolutions and products with packed weights of two of four ([`vdnn_ir::sparse::two_four`]), on the
//! sparse instructions of tensor cores.

use super::context::Cx;
use super::source::{Kernel, Source};
use super::tiles::{GROUP, Problem, SHARED, Tile, WARPS, element, launch, problem_of};
use crate::cuda::error::CudaError;
use vdnn_ir::Dims;
use vdnn_ir::op::ConvAttrs;
use vdnn_ir::sparse::SparseForm;
use vdnn_ir::sparse::blocks::BlockShape;
use vdnn_ir::sparse::two_four::CHANNELS;

/// Groups of filters of a warp, and tiles of outputs, whose sums leave registers for the rest.
const MOSTS: [(u64, u64); 13] =
    [(1, 1), (1, 2), (1, 4), (1, 7), (1, 8), (2, 2), (2, 4), (2, 7), (2, 8), (4, 2), (4, 4), (4, 7), (4, 8)];

/// Sums of a warp with which two blocks of threads find room on a multiprocessor.
const NARROW: u64 = 16;

/// Shared memory of a block that is alone.
const SHARED_ALONE: u64 = 200 << 10;

/// Bytes of a piece of weights.
const PIECE: u64 = 576;

/// [`vdnn_ir::Op::SparseConv`] with weights of two of four.
pub(super) fn conv(cx: &mut Cx<'_>, conv: &ConvAttrs, w_dims: &Dims, relu: bool) -> Result<(), CudaError> {
    let (packed, y) = (cx.input(1)?, cx.real_out(0)?);
    if y.ty.elements() == 0 {
        return Ok(());
    }
    let (problem, [last, whole]) = problem_of(cx, conv, SparseForm::TwoFourBf16)?;
    let Some(shape) = BlockShape::of(w_dims) else {
        return Err(cx.unsupported("packed weights of another size"));
    };
    let demand = Demand { groups: shape.groups() as u64, processors: u64::from(cx.processors) };
    let tile = demand.fastest(&problem).ok_or_else(|| {
        cx.unsupported("its window is more than blocks of threads have room for; compile with --sparse off")
    })?;
    cx.count(packed.ty.elements())?;
    let (depth, blocks) = (depth(&tile), blocks(&tile));
    let arguments =
        format!("{}, {}, {depth}, {blocks}, {last}, {whole}", element(y.ty.dtype), tile.arguments(&problem));
    let kernel = Kernel::instance(Source::SparseTwoFour, "SPARSE_TWO_FOUR", &arguments);
    launch(cx, (&problem, &tile, demand.groups), &kernel, &[packed.ptr], relu)
}

/// Blocks of threads that a multiprocessor is to have room for.
fn blocks(tile: &Tile) -> u64 {
    if tile.each * tile.tiles <= NARROW { 2 } else { 1 }
}

/// Pieces of each group that a warp keeps in registers.
fn depth(tile: &Tile) -> u64 {
    match tile.each {
        1 => 6,
        2 => 3,
        _ => 2,
    }
}

/// What decides how much there is to do, and how many can do it.
#[derive(Clone, Copy, Debug)]
struct Demand {
    groups: u64,
    processors: u64,
}

impl Demand {
    /// The tile that is predicted to be the fastest.
    fn fastest(&self, p: &Problem) -> Option<Tile> {
        let fits = |t: &Tile| p.shared(t) <= if blocks(t) == 2 { SHARED } else { SHARED_ALONE };
        Tile::fastest(p, self.groups, &MOSTS, fits, |t| self.time(p, t))
    }

    /// Predicted cycles: of everything a multiprocessor does the scarcest counts, products, reads of
    /// shared memory and weights, and what comes to it; and a block of threads takes no less than the
    /// time to wait for its data.
    fn time(&self, p: &Problem, tile: &Tile) -> f64 {
        let [outputs, filters] = tile.grid(p, self.groups);
        let all = p.planes.images * outputs * filters;
        let stages = p.planes.channels.div_ceil(tile.channels) as f64;
        let items = (p.planes.channels.div_ceil(CHANNELS as u64) * p.planes.taps()) as f64;
        // An instruction of a warp takes a tensor core about seven cycles, of which there are four. A
        // piece of weights is 4.5 reads of 128 bytes, and four matrices of inputs are four.
        let (each, tiles) = (tile.each as f64, tile.tiles as f64);
        let (products, reads) = (1.75 * each * tiles, 4.5 * each + 4.0 * tiles);
        let scarcest = products.max(reads) + 0.3 * products.min(reads);
        let work = items * WARPS as f64 * (scarcest + 4.0) + 80.0 * stages;
        let [high, wide] = p.planes.reach(tile.outputs());
        let inputs = stages * (high * wide * tile.channels * p.size) as f64;
        let groups = (tile.rows * tile.each).min(self.groups);
        let bytes = (inputs + items * (groups * PIECE) as f64) / 40.0;
        let [down, across] = tile.outputs();
        let results = (down * across * groups * GROUP * p.size) as f64 / 20.0;
        let work = work.max(bytes) + 0.3 * work.min(bytes) + results;
        let late = 600.0 / depth(tile) as f64;
        let wait = 1500.0 + stages * 300.0 + items * late.max(30.0 + 8.0 * each * tiles);
        let rounds = all.div_ceil(self.processors) as f64;
        let together = blocks(tile) as f64;
        (rounds * work).max((rounds / together).ceil() * wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fit_and_cover_little_else() {
        // Images, channels, size, window, stride, groups of filters.
        for [images, channels, size, window, stride, groups] in [
            [1, 64, 56, 3, 1, 4],
            [32, 64, 56, 3, 1, 4],
            [32, 128, 28, 3, 1, 8],
            [32, 256, 14, 3, 1, 16],
            [32, 512, 7, 3, 1, 32],
            [32, 128, 56, 3, 2, 8],
            [32, 256, 56, 1, 1, 4],
            [32, 512, 28, 1, 2, 64],
            [1, 512, 7, 1, 1, 128],
            [8, 64, 224, 3, 1, 4],
            [2, 16, 40, 7, 2, 2],
        ] {
            let conv = ConvAttrs::square(window, stride, window / 2, 1);
            let dims = |size: u64| Dims::from_slice(&[images, channels, size, size]);
            let p = Problem::new(&conv, &dims(size), &dims(size.div_ceil(stride)), [true, true]);
            let t = Demand { groups, processors: 132 }.fastest(&p).expect("a tile");
            assert!(t.channels.is_multiple_of(CHANNELS as u64) && t.each * t.tiles <= 32, "{t:?}");
            let [down, across] = t.outputs();
            let covered = p.planes.to[0].next_multiple_of(down) * p.planes.to[1].next_multiple_of(across);
            assert!(covered <= 2 * p.planes.to[0] * p.planes.to[1] + 64, "{t:?} for {images} of {size}");
            let room = blocks(&t) * p.shared(&t);
            assert!(room <= 2 * SHARED, "{t:?}: {room}");
        }
    }
}
