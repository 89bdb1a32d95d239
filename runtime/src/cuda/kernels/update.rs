//! The optimizer step, constants and plain copies.

use super::context::Cx;
use super::source::{Kernel, Source};
use super::step::Args;
use crate::cuda::error::CudaError;

/// [`vdnn_ir::Op::SgdUpdate`].
pub(super) fn sgd(cx: &mut Cx<'_>) -> Result<(), CudaError> {
    let [w, v, g, hyper] = [cx.f32(0)?, cx.f32(1)?, cx.f32(2)?, cx.f32(3)?].map(|x| x.ptr);
    let (w_out, v_out) = (cx.f32_out(0)?, cx.f32_out(1)?);
    let n = w_out.ty.elements();
    if n == 0 {
        return Ok(());
    }
    let args = Args::new().ptr(w).ptr(v).ptr(g).ptr(hyper).ptr(w_out.ptr).ptr(v_out.ptr).u64(n);
    cx.per_items(Kernel::fixed(Source::Update, "sgd"), n / 4, args)
}

/// [`vdnn_ir::Op::Fill`].
pub(super) fn fill(cx: &mut Cx<'_>, value: f32) -> Result<(), CudaError> {
    let y = cx.f32_out(0)?;
    cx.fill(y.ptr, 4, u64::from(value.to_bits()), y.ty.elements())
}

/// Ops that leave the bytes as they are but must put them elsewhere.
pub(super) fn copy(cx: &mut Cx<'_>) -> Result<(), CudaError> {
    let (x, y) = (cx.input(0)?, cx.output(0)?);
    let n = y.ty.bytes().0;
    if n == 0 || x.ptr == y.ptr {
        return Ok(());
    }
    let args = Args::new().ptr(x.ptr).ptr(y.ptr).u64(n);
    cx.per_items(Kernel::fixed(Source::Update, "copy_bytes"), n / 16, args)
}
