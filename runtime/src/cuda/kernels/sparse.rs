//! Convolutions and products with packed weights ([`vdnn_ir::sparse`]).

use super::context::Cx;
use super::shape::{Divisor, Image};
use super::source::{Kernel, Source};
use super::step::{Args, Step, THREADS};
use crate::cuda::error::CudaError;
use bytemuck::{Pod, Zeroable};
use cudarc::driver::sys::CUdeviceptr;
use vdnn_ir::op::ConvAttrs;
use vdnn_ir::{Dims, Layout};

/// Warps of a block; the source calls it WARPS.
const WARPS: u64 = (THREADS / 32) as u64;

/// Images that a warp of a product serves at most.
const IMAGES: u64 = 8;

/// `Extents` of sparse.cu.
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
    tiles_across: Divisor,
}

/// What an op's launches share.
struct Packed {
    starts: CUdeviceptr,
    entries: CUdeviceptr,
    bias: CUdeviceptr,
}

impl Packed {
    fn args(&self, x: CUdeviceptr, y: CUdeviceptr) -> Args {
        Args::new().ptr(x).ptr(self.starts).ptr(self.entries).ptr(self.bias).ptr(y)
    }
}

/// [`vdnn_ir::Op::SparseConv`].
pub(super) fn conv(cx: &mut Cx<'_>, conv: &ConvAttrs, w_dims: &Dims) -> Result<(), CudaError> {
    let (x, packed, y) = (cx.f32(0)?, cx.input(1)?, cx.f32_out(0)?);
    if y.ty.elements() == 0 {
        return Ok(());
    }
    let bias = if cx.spec.inputs.len() > 2 { cx.f32(2)?.ptr } else { 0 };
    let weights = Packed { starts: packed.ptr, entries: packed.ptr + 4 * (w_dims[0] + 1), bias };
    if conv.kernel.is_empty() {
        return rows(cx, &weights, w_dims, [x.ptr, y.ptr], x.ty.dims[0]);
    }
    if conv.groups != 1 || conv.kernel.len() != 2 {
        return Err(cx.unsupported(
            "of packed convolutions, those with groups or other than two axes run on the CPU only",
        ));
    }
    let (from, to) = (Image::new(x.ty), Image::new(y.ty));
    let flat = conv.kernel.iter().all(|&k| k == 1)
        && conv.strides.iter().all(|&s| s == 1)
        && conv.before.iter().chain(&conv.after).all(|&p| p == 0);
    // Without neighbours a plane is one long row.
    let plane = |dims: &Dims| if flat { [1, dims[2] * dims[3]] } else { [dims[2], dims[3]] };
    let ([height, width], [out_height, out_width]) = (plane(&x.ty.dims), plane(&y.ty.dims));
    let target = 2 * u64::from(cx.processors);
    let tile = Choice::new(target, from.images, to.channels, [out_height, out_width], flat);
    let down = 32 * tile.run / tile.across;
    let (tiles_across, tiles_down) = (out_width.div_ceil(tile.across), out_height.div_ceil(down));
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
        tiles_across: Divisor::new(tiles_across),
    };
    // Indices within an image have 32 bits, and a grid's third extent 16.
    cx.count(from.channels * from.plane)?;
    cx.count(to.channels * to.plane)?;
    cx.count(w_dims.iter().product::<u64>().saturating_mul(2))?;
    let last = x.ty.layout == Layout::ChannelsLast;
    let words: Vec<String> = conv
        .kernel
        .iter()
        .chain(&conv.strides)
        .chain(&conv.dilations)
        .chain(&[tile.across, tile.run, tile.each])
        .map(u64::to_string)
        .collect();
    let kernel = Kernel::instance(Source::Sparse, "SPARSE_CONV", &format!("{}, {last}", words.join(", ")));
    let blocks = to.channels.div_ceil(WARPS * tile.each);
    let grid = [cx.count(tiles_across * tiles_down)?, cx.count(blocks)?];
    let mut image = 0;
    while image < from.images {
        let images = (from.images - image).min(0xffff);
        let [x, y] = [(x.ptr, &from), (y.ptr, &to)].map(|(at, i)| at + 4 * image * i.channels * i.plane);
        let args = weights.args(x, y).pod(&extents);
        let grid = [grid[0], grid[1], images as u32];
        cx.push(Step { kernel: kernel.clone(), grid, block: THREADS, shared: 0, args });
        image += images;
    }
    Ok(())
}

/// A fully connected layer.
fn rows(
    cx: &mut Cx<'_>,
    weights: &Packed,
    w_dims: &Dims,
    [x, y]: [CUdeviceptr; 2],
    images: u64,
) -> Result<(), CudaError> {
    let (rows, columns) = (cx.count(w_dims[0])?, cx.count(w_dims[1])?);
    cx.count(w_dims[0].saturating_mul(w_dims[1]).saturating_mul(2))?;
    let each = images.next_power_of_two().min(IMAGES);
    let kernel = Kernel::instance(Source::Sparse, "SPARSE_ROWS", &each.to_string());
    let args = weights.args(x, y).u32(cx.count(images)?).u32(columns).u32(rows);
    let grid = [u64::from(rows).div_ceil(WARPS) as u32, cx.count(images.div_ceil(each))?, 1];
    cx.push(Step { kernel, grid, block: THREADS, shared: 0, args });
    Ok(())
}

/// How outputs are dealt to blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Choice {
    /// Outputs of a tile next to each other.
    across: u64,
    /// Outputs of a lane.
    run: u64,
    /// Filters of a warp.
    each: u64,
}

impl Choice {
    /// As much for each warp as leaves `target` blocks.
    fn new(target: u64, images: u64, filters: u64, [height, width]: [u64; 2], flat: bool) -> Self {
        let mut most = (0, Self { across: 32, run: 2, each: 1 });
        for run in [4, 2] {
            let across = match width {
                _ if flat => 32 * run,
                0..=8 => 8,
                9..=16 => 16,
                _ => 32,
            };
            for each in [8, 4, 2, 1] {
                let tiles = width.div_ceil(across) * height.div_ceil(32 * run / across);
                let blocks = images * tiles * filters.div_ceil(WARPS * each);
                if blocks >= target {
                    return Self { across, run, each };
                }
                if blocks > most.0 {
                    most = (blocks, Self { across, run, each });
                }
            }
        }
        most.1
    }
}
