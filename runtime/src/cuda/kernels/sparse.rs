//! Convolutions and products with packed weights ([`vdnn_ir::sparse`]).

use super::context::Cx;
use super::source::{Kernel, Source};
use super::sparse_conv;
use super::step::{Args, GRID, Step, THREADS, parts_of};
use crate::cuda::error::CudaError;
use cudarc::driver::sys::CUdeviceptr;
use vdnn_ir::Dims;
use vdnn_ir::op::ConvAttrs;

/// Warps of a block; the source calls it WARPS.
const WARPS: u64 = (THREADS / 32) as u64;

/// Images that a warp of a product serves at most.
const IMAGES: u64 = 8;

/// Warps that a multiprocessor holds.
pub(super) const PROCESSOR_WARPS: u64 = 64;

/// What an op's launches share.
pub(super) struct Packed {
    starts: CUdeviceptr,
    entries: CUdeviceptr,
    bias: CUdeviceptr,
}

impl Packed {
    pub(super) fn args(&self, x: CUdeviceptr, y: CUdeviceptr) -> Args {
        Args::new().ptr(x).ptr(self.starts).ptr(self.entries).ptr(self.bias).ptr(y)
    }
}

/// [`vdnn_ir::Op::SparseConv`].
pub(super) fn conv(cx: &mut Cx<'_>, conv: &ConvAttrs, w_dims: &Dims, relu: bool) -> Result<(), CudaError> {
    let (x, packed, y) = (cx.f32(0)?, cx.input(1)?, cx.f32_out(0)?);
    if y.ty.elements() == 0 {
        return Ok(());
    }
    let bias = if cx.spec.inputs.len() > 2 { cx.f32(2)?.ptr } else { 0 };
    let weights = Packed { starts: packed.ptr, entries: packed.ptr + 4 * (w_dims[0] + 1), bias };
    let room = packed.ty.elements().saturating_sub(w_dims[0] + 1) / 2;
    if conv.kernel.is_empty() {
        return rows(cx, &weights, (w_dims, room), [x.ptr, y.ptr], x.ty.dims[0]);
    }
    sparse_conv::conv(cx, conv, &weights, (w_dims, room), relu)
}

/// A fully connected layer.
fn rows(
    cx: &mut Cx<'_>,
    weights: &Packed,
    (w_dims, room): (&Dims, u64),
    [x, y]: [CUdeviceptr; 2],
    images: u64,
) -> Result<(), CudaError> {
    let (rows, columns) = (cx.count(w_dims[0])?, cx.count(w_dims[1])?);
    cx.count(w_dims[0].saturating_mul(w_dims[1]).saturating_mul(2))?;
    let each = images.next_power_of_two().min(IMAGES);
    // As many warps for a row as the device holds at once, if each has something to do.
    let warps = PROCESSOR_WARPS * u64::from(cx.processors);
    let most = room / u64::from(rows.max(1)) / 32;
    let fits = |split: &u64| u64::from(rows) * images.div_ceil(each) * split <= warps && *split <= most;
    let split = [8, 4, 2].into_iter().find(fits).unwrap_or(1);
    let kernel = Kernel::instance(Source::Sparse, "SPARSE_ROWS", &format!("{each}, {split}"));
    let blocks = (u64::from(rows) * split).div_ceil(WARPS);
    for (image, some) in parts_of(images, GRID * each) {
        let (x, y) = (x + 4 * image * w_dims[1], y + 4 * image * w_dims[0]);
        let args = weights.args(x, y).u32(cx.count(some)?).u32(columns).u32(rows);
        let grid = cx.grid([blocks, some.div_ceil(each)], 1)?;
        cx.push(Step { kernel: kernel.clone(), grid, block: THREADS, shared: 0, args });
    }
    Ok(())
}
