//! Convolutions and products with packed blocks of weights ([`vdnn_ir::sparse::blocks`]), on tensor
//! cores.

use super::context::Cx;
use super::source::{Kernel, Source};
use super::tiles::{Problem, SHARED, Tile, WARPS, element, launch, problem_of};
use crate::cuda::error::CudaError;
use vdnn_ir::op::ConvAttrs;
use vdnn_ir::sparse::SparseForm;
use vdnn_ir::sparse::blocks::{BLOCK, BlockShape};
use vdnn_ir::{Dims, Precision};

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
    if cx.spec.precision == Precision::F32 {
        return Err(cx.unsupported("tensor cores have no strict f32; compile with --sparse force=csr"));
    }
    let (problem, [last, whole]) = problem_of(cx, conv, form)?;
    let (Some(shape), Some(room)) = (BlockShape::of(w_dims), form.room(w_dims[0], packed.ty.elements()))
    else {
        return Err(cx.unsupported("packed weights of another size"));
    };
    let groups = shape.groups() as u64;
    let demand = Demand { groups, blocks: room, processors: u64::from(cx.processors) };
    let tile = demand.fastest(&problem).ok_or_else(|| cx.unsupported(TOO_LARGE))?;
    // Indices of blocks have 31 bits.
    cx.count(room)?;
    let types = [x.ty.dtype, y.ty.dtype].map(element).join(", ");
    let arguments = format!("{types}, {}, {last}, {whole}", tile.arguments(&problem));
    let kernel = Kernel::instance(Source::SparseBlocks, "SPARSE_BLOCKS", &arguments);
    let head = (groups + 1 + room).next_multiple_of(4);
    let weights = [0, 4 * (groups + 1), 4 * head].map(|at| packed.ptr + at);
    launch(cx, (&problem, &tile, groups), &kernel, &weights, relu)
}

/// What decides how much there is to do, and how many can do it.
#[derive(Clone, Copy, Debug)]
struct Demand {
    groups: u64,
    blocks: u64,
    processors: u64,
}

impl Demand {
    /// The tile that is predicted to be the fastest: of everything a multiprocessor does the
    /// scarcest counts, products as they read shared memory, and what comes to it; and a block of
    /// threads takes no less than the time to wait for its data.
    fn fastest(&self, p: &Problem) -> Option<Tile> {
        let fits = |t: &Tile| p.shared(t) <= SHARED && p.planes.channels.div_ceil(t.channels) <= STAGES;
        Tile::fastest(p, self.groups, &MOSTS, fits, |t| self.time(p, t))
    }

    /// Predicted cycles.
    fn time(&self, p: &Problem, tile: &Tile) -> f64 {
        let [down, across] = tile.outputs();
        let groups = (tile.rows * tile.each).min(self.groups);
        let blocks = p.planes.images
            * p.planes.to[0].div_ceil(down)
            * p.planes.to[1].div_ceil(across)
            * self.groups.div_ceil(tile.rows * tile.each);
        let share = self.blocks as f64 / self.groups as f64;
        let all = (p.planes.channels.div_ceil(BLOCK as u64) * p.planes.kernel[0] * p.planes.kernel[1]) as f64;
        let stages = p.planes.channels.div_ceil(tile.channels) as f64;
        // Channels that none of the lists has are skipped.
        let items = groups as f64 * all / stages;
        let stages = stages * (1.0 - (1.0 - (share / all).min(1.0)).powf(items)).max(0.0);
        let columns = WARPS / tile.rows;
        // Four matrices of shared memory are read in four cycles, half a block of f32 for two tiles.
        let reads = (tile.tiles.div_ceil(2) * p.size / 2) as f64;
        // Warps wait for the one that has most to do with the channels at hand.
        let each = share * tile.each as f64 / stages.max(1.0);
        let uneven = if tile.rows > 1 { 0.5 / each.max(1.0).sqrt() } else { 0.0 };
        let products =
            share * groups as f64 * columns as f64 * (4.0 * reads + 12.0) * (1.0 + uneven) + 60.0 * stages;
        let [high, wide] = p.planes.reach(tile.outputs());
        let bytes = stages * (high * wide * tile.channels * p.size) as f64;
        let results = (down * across * groups * BLOCK as u64 * p.size) as f64;
        let work = products.max(bytes / 40.0) + 0.3 * products.min(bytes / 40.0) + results / 20.0;
        let wait = 1500.0 + stages * 250.0 + share * tile.each as f64 * (40.0 + 24.0 * reads);
        let rounds = blocks.div_ceil(self.processors) as f64;
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
                    let t = demand.fastest(&p).expect("a tile");
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
}
