//! Dropout, and casts between f32 and bf16.

use super::context::Cx;
use super::source::{Kernel, Source};
use super::step::Args;
use crate::cuda::error::CudaError;
use vdnn_ir::Layout;

/// [`vdnn_ir::Op::Dropout`].
pub(super) fn dropout(cx: &mut Cx<'_>, ratio: f32, seed: u64, before: u64) -> Result<(), CudaError> {
    let (x, step, y) = (cx.real(0)?, cx.input(1)?, cx.real_out(0)?);
    if y.ty.layout == Layout::ChannelsLast && !y.ty.layout_is_moot() {
        return Err(cx.unsupported("the mask follows row-major order; the tensor is channels-last"));
    }
    let n = y.ty.elements();
    if n == 0 {
        return Ok(());
    }
    let element = cx.element(x)?;
    let scale = 1.0 / (1.0 - f64::from(ratio));
    let args = Args::new().ptr(x.ptr).ptr(step.ptr).ptr(y.ptr).u64(n).u64(seed).u64(before);
    let args = args.f64(scale).f32(ratio);
    cx.per_items(Kernel::instance(Source::Dropout, "DROPOUT", element.name), n / element.width, args)
}

/// [`vdnn_ir::Op::Cast`].
pub(super) fn cast(cx: &mut Cx<'_>) -> Result<(), CudaError> {
    let (x, y) = (cx.real(0)?, cx.real_out(0)?);
    let n = y.ty.elements();
    if n == 0 {
        return Ok(());
    }
    let types = format!("{}, {}", cx.element(x)?.name, cx.element(y)?.name);
    let kernel = Kernel::instance(Source::Cast, "CAST", &types);
    cx.per_items(kernel, n / 8, Args::new().ptr(x.ptr).ptr(y.ptr).u64(n))
}
