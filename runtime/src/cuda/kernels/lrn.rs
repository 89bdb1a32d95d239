//! Local response normalisation and its gradient.

use super::context::Cx;
use super::shape::{Divisor, Image};
use super::source::{Kernel, Source};
use super::step::{Args, LIMIT};
use crate::cuda::error::CudaError;
use crate::cuda::launch::Operand;
use bytemuck::{Pod, Zeroable};
use vdnn_ir::op::LrnAttrs;

/// `Lrn` of lrn.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Lrn {
    inner: Divisor,
    channels: Divisor,
    before: u32,
    after: u32,
    factor: f32,
    bias: f32,
    beta: f32,
    slope: f32,
}

/// [`vdnn_ir::Op::Lrn`].
pub(super) fn forward(cx: &mut Cx<'_>, attrs: &LrnAttrs) -> Result<(), CudaError> {
    let operands = [cx.real(0)?, cx.real_out(0)?];
    launch(cx, "LRN", attrs, &operands)
}

/// [`vdnn_ir::Op::LrnGrad`].
pub(super) fn grad(cx: &mut Cx<'_>, attrs: &LrnAttrs) -> Result<(), CudaError> {
    let operands = [cx.real(0)?, cx.real(1)?, cx.real(2)?, cx.real_out(0)?];
    launch(cx, "LRN_GRAD", attrs, &operands)
}

fn launch(cx: &mut Cx<'_>, name: &str, attrs: &LrnAttrs, operands: &[Operand<'_>]) -> Result<(), CudaError> {
    let image = Image::new(operands[0].ty);
    if image.elements() == 0 {
        return Ok(());
    }
    let kernel = Kernel::instance(Source::Lrn, name, cx.element(operands[0])?.name);
    let bytes = operands[0].ty.dtype.bytes();
    let size = attrs.size.max(1);
    let within = |channels: u64| channels.min(image.channels) as u32;
    let (alpha, beta) = (f64::from(attrs.alpha.0), f64::from(attrs.beta.0));
    let lrn = Lrn {
        inner: Divisor::new(if image.last { 1 } else { image.plane }),
        channels: Divisor::new(image.channels),
        before: within((size - 1) / 2),
        after: within(size / 2),
        factor: (alpha / size as f64) as f32,
        bias: attrs.bias.0,
        beta: attrs.beta.0,
        slope: (2.0 * alpha * beta / size as f64) as f32,
    };
    let per_image = u64::from(cx.count(image.channels * image.plane)?);
    let most = (LIMIT - 1) / per_image;
    let mut first = 0;
    while first < image.images {
        let images = most.min(image.images - first);
        let n = cx.count(images * per_image)?;
        let args = operands.iter().fold(Args::new(), |args, x| args.ptr(x.ptr + bytes * first * per_image));
        cx.per_thread(kernel.clone(), n, args.u32(n).pod(&lrn));
        first += images;
    }
    Ok(())
}
