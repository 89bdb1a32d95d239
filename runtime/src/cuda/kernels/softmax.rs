//! Softmax and log-softmax along one axis, and their gradients.

use super::context::Cx;
use super::shape::{Divisor, around};
use super::source::{Kernel, Source};
use super::step::{Args, Step, THREADS};
use crate::cuda::error::CudaError;
use crate::cuda::launch::Operand;

/// Longest rows that a warp handles alone.
const WARP_ROW: u64 = 512;

/// [`vdnn_ir::Op::Softmax`], with `log` [`vdnn_ir::Op::LogSoftmax`].
pub(super) fn softmax(cx: &mut Cx<'_>, axis: u64, log: bool) -> Result<(), CudaError> {
    let (x, y) = (cx.f32(0)?, cx.f32_out(0)?);
    apply(cx, x, y, axis, log)
}

/// Softmax or its logarithm of `x` into `y`.
pub(super) fn apply(
    cx: &mut Cx<'_>,
    x: Operand<'_>,
    y: Operand<'_>,
    axis: u64,
    log: bool,
) -> Result<(), CudaError> {
    let args = Args::new().ptr(x.ptr).ptr(y.ptr);
    lines(cx, "SOFTMAX", args, around(x.ty, axis), log)
}

/// [`vdnn_ir::Op::SoftmaxGrad`], with `log` [`vdnn_ir::Op::LogSoftmaxGrad`].
pub(super) fn softmax_grad(cx: &mut Cx<'_>, axis: u64, log: bool) -> Result<(), CudaError> {
    let (dy, y, dx) = (cx.f32(0)?, cx.f32(1)?, cx.f32_out(0)?);
    let args = Args::new().ptr(dy.ptr).ptr(y.ptr).ptr(dx.ptr);
    lines(cx, "SOFTMAX_GRAD", args, around(dx.ty, axis), log)
}

fn lines(
    cx: &mut Cx<'_>,
    what: &str,
    args: Args,
    [outer, axis, inner]: [u64; 3],
    log: bool,
) -> Result<(), CudaError> {
    if outer * axis * inner == 0 {
        return Ok(());
    }
    let (lines, axis32) = (cx.count(outer * inner)?, cx.count(axis)?);
    let args = args.u32(lines).u32(axis32);
    if inner > 1 {
        let kernel = Kernel::instance(Source::Softmax, &format!("{what}_COLUMNS"), &log.to_string());
        cx.per_thread(kernel, lines, args.pod(&Divisor::new(inner)));
    } else {
        let group = if axis <= WARP_ROW { 32 } else { THREADS };
        let kernel = Kernel::instance(Source::Softmax, &format!("{what}_ROWS"), &format!("{group}, {log}"));
        cx.push(Step::new(kernel, lines.div_ceil(THREADS / group), args));
    }
    Ok(())
}
