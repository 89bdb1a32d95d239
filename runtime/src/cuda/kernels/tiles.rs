//! Tiles of the kernels that multiply packed weights on tensor cores (tiles.cuh): outputs and filters of a
//! block of threads, and how its inputs come to shared memory.

use super::context::Cx;
use super::planes::{self, Planes};
use super::shape::Divisor;
use super::source::Kernel;
use super::step::{Args, GRID, LIMIT, Step, THREADS, parts_of};
use crate::cuda::error::CudaError;
use bytemuck::{Pod, Zeroable};
use cudarc::driver::sys::CUdeviceptr;
use vdnn_ir::op::ConvAttrs;
use vdnn_ir::sparse::SparseForm;
use vdnn_ir::{DType, Dims, Layout};

/// Warps of a block.
pub(super) const WARPS: u64 = (THREADS / 32) as u64;

/// Filters of a group.
pub(super) const GROUP: u64 = 16;

/// Shared memory of which two blocks find room on a multiprocessor, beside what is static.
pub(super) const SHARED: u64 = 108 << 10;

/// `Extents` of tiles.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct Extents {
    planes: planes::Extents,
    groups: u32,
    tiles_across: Divisor,
}

/// A convolution as the kernels see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Problem {
    pub(super) planes: Planes,
    /// Bytes of an element.
    pub(super) size: u64,
}

impl Problem {
    pub(super) fn new(conv: &ConvAttrs, x: &Dims, y: &Dims, [last, narrow]: [bool; 2]) -> Self {
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
    pub(super) fn width(&self) -> u64 {
        16 / self.size
    }

    /// Shared memory of a tile: in each slot the lines of positions with their channels, then where
    /// each position is. The source has the same sums; here they are saturating.
    pub(super) fn shared(&self, tile: &Tile) -> u64 {
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

/// What a block of threads does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    /// Outputs of eight that are below each other, and how many eights are next to each other.
    pub(super) high: u64,
    pub(super) line: u64,
    /// Warps that share no filters.
    pub(super) rows: u64,
    /// Groups of filters of a warp.
    pub(super) each: u64,
    /// Tiles of eight outputs of a warp.
    pub(super) tiles: u64,
    /// Channels brought together, and how many of those have room.
    pub(super) channels: u64,
    pub(super) slots: u64,
}

impl Tile {
    /// The tile of least time among those of so many groups of filters and tiles of a warp that fit.
    pub(super) fn fastest(
        p: &Problem,
        groups: u64,
        menu: &[(u64, u64)],
        fits: impl Fn(&Self) -> bool,
        time: impl Fn(&Self) -> f64,
    ) -> Option<Self> {
        let mut best: Option<(f64, Self)> = None;
        for rows in [1, 2, 4, 8] {
            for &(each, tiles) in menu {
                if rows * each > 1 && rows * each >= 2 * groups {
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
                            let Some(way) = [tile, Self { slots: 2, ..tile }].into_iter().find(&fits) else {
                                continue;
                            };
                            let time = time(&way);
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
    pub(super) fn outputs(&self) -> [u64; 2] {
        [WARPS / self.rows * self.tiles / self.line * self.high, self.line * (8 / self.high)]
    }

    /// Blocks of threads: of the tiles of an image, and of so many groups of filters.
    pub(super) fn grid(&self, p: &Problem, groups: u64) -> [u64; 2] {
        let [down, across] = self.outputs();
        let tiles = p.planes.to[0].div_ceil(down) * p.planes.to[1].div_ceil(across);
        [tiles, groups.div_ceil(self.rows * self.each)]
    }

    /// What the kernel takes of the problem.
    ///
    /// # Errors
    /// As [`Planes::extents`].
    fn extents(&self, cx: &Cx<'_>, p: &Problem, groups: u64) -> Result<Extents, CudaError> {
        let across = p.planes.to[1].div_ceil(self.outputs()[1]);
        let (planes, groups) = (p.planes.extents(cx)?, cx.count(groups)?);
        Ok(Extents { planes, groups, tiles_across: Divisor::new(across) })
    }

    /// What the macros of the sources have behind the types: the window and the tile.
    pub(super) fn arguments(&self, p: &Problem) -> String {
        let numbers = [self.high, self.line, self.rows, self.each, self.tiles, self.channels, self.slots];
        format!("{}, {}", p.planes.arguments(), numbers.map(|n| n.to_string()).join(", "))
    }
}

/// Launches a kernel of tiles for an op with packed weights: what it takes of them, in the order of its
/// parameters, comes behind x; then bias, residual, y, ReLU and extents.
///
/// # Errors
/// If an operand is of a type that has no kernel, or something has no room in 32 bits.
pub(super) fn launch(
    cx: &mut Cx<'_>,
    (problem, tile, groups): (&Problem, &Tile, u64),
    kernel: &Kernel,
    weights: &[CUdeviceptr],
    relu: bool,
) -> Result<(), CudaError> {
    let (x, y) = (cx.real(0)?, cx.real_out(0)?);
    let operand = |i: usize| if cx.spec.inputs.len() > i { cx.real(i).map(|o| o.ptr) } else { Ok(0) };
    let (bias, added) = (operand(2)?, operand(3)?);
    let extents = tile.extents(cx, problem, groups)?;
    let grid = tile.grid(problem, groups);
    let shared = cx.count(problem.shared(tile))?;
    for (image, images) in parts_of(problem.planes.images, GRID) {
        let [from, to] = problem.planes.bytes(image, [x.ty.dtype.bytes(), y.ty.dtype.bytes()]);
        let args = weights.iter().fold(Args::new().ptr(x.ptr + from), |args, &at| args.ptr(at));
        let args = args
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

/// The convolution of an op with packed weights, and whether channels are innermost and of whole 16 bytes.
///
/// # Errors
/// If there is no kernel for the types or the number of axes.
pub(super) fn problem_of(
    cx: &Cx<'_>,
    conv: &ConvAttrs,
    form: SparseForm,
) -> Result<(Problem, [bool; 2]), CudaError> {
    let (x, y) = (cx.real(0)?, cx.real_out(0)?);
    let element = if form.is_bf16() { DType::BF16 } else { DType::F32 };
    if x.ty.dtype != element {
        return Err(cx.unsupported(format!("feature maps {} beside packed weights of {element}", x.ty)));
    }
    if !matches!(conv.kernel.len(), 0 | 2) {
        return Err(cx.unsupported(
            "of convolutions with weights in blocks or of two of four, those of other than two axes run on \
             the CPU only",
        ));
    }
    let last = x.ty.rank() == 2 || x.ty.layout == Layout::ChannelsLast;
    let problem = Problem::new(conv, &x.ty.dims, &y.ty.dims, [last, form.is_bf16()]);
    Ok((problem, [last, last && problem.planes.channels.is_multiple_of(problem.width())]))
}

/// The name of an element's type in the sources.
pub(super) fn element(ty: DType) -> &'static str {
    if ty == DType::BF16 { "bf16" } else { "float" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_convolutions_are_one_line() {
        let flat = |images: u64| {
            let dims = Dims::from_slice(&[images, 256, 56, 56]);
            Problem::new(&ConvAttrs::square(1, 1, 0, 1), &dims, &dims, [true, false])
        };
        let p = flat(32);
        assert_eq!((p.planes.images, p.planes.from, p.planes.to), (1, [1, 32 * 56 * 56], [1, 32 * 56 * 56]));
        // Indices would not have room.
        let p = flat(4096);
        assert_eq!((p.planes.images, p.planes.from), (4096, [1, 56 * 56]));
    }
}
