//! Softmax cross-entropy, negative log likelihood, and their gradients.

use super::context::Cx;
use super::shape::{Divisor, around};
use super::softmax;
use super::source::{Kernel, Source};
use super::step::{Args, Step, THREADS};
use crate::cuda::error::CudaError;
use crate::cuda::launch::Operand;
use bytemuck::{Pod, Zeroable};
use cudarc::driver::sys::CUdeviceptr;
use vdnn_ir::op::LossReduction;
use vdnn_ir::{DType, TensorType};

/// `Labels` of loss.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Labels {
    labels: CUdeviceptr,
    weight: CUdeviceptr,
    ignored: i64,
    has_ignored: u32,
    wide: u32,
    classes: u32,
    unused: u32,
}

/// Labels and log-probabilities by memory order.
struct Targets {
    labels: Labels,
    /// Labels, one for each line of classes.
    positions: u32,
    inner: u64,
    classes: u64,
}

/// Bytes of scratch for partial sums, at most 16 for each of two blocks a multiprocessor.
const TOTAL_AT: u64 = 64 << 10;

impl Targets {
    /// The labels are input `at`; weights may follow.
    fn new(cx: &Cx<'_>, log_prob: &TensorType, at: usize, ignore: Option<i64>) -> Result<Self, CudaError> {
        let [outer, classes, inner] = around(log_prob, 1);
        let labels = cx.input(at)?;
        let wide = match labels.ty.dtype {
            DType::I64 => 1,
            DType::I32 => 0,
            other => return Err(cx.unsupported(format!("labels of type {other}"))),
        };
        let weight = if cx.spec.inputs.len() > at + 1 { cx.f32(at + 1)?.ptr } else { 0 };
        let labels = Labels {
            labels: labels.ptr,
            weight,
            ignored: ignore.unwrap_or(0),
            has_ignored: u32::from(ignore.is_some()),
            wide,
            classes: cx.count(classes)?,
            unused: 0,
        };
        Ok(Self { labels, positions: cx.count(outer * inner)?, inner, classes })
    }

    /// Sums losses (unless `log_prob` is null) and weights into partial sums and those into
    /// `loss` and `total`, where not null.
    fn combine(
        &self,
        cx: &mut Cx<'_>,
        log_prob: CUdeviceptr,
        loss: CUdeviceptr,
        total: CUdeviceptr,
        mean: bool,
    ) -> Result<(), CudaError> {
        let most = (2 * cx.processors).min((TOTAL_AT / 16) as u32);
        let blocks = self.positions.div_ceil(4 * THREADS).clamp(1, most);
        let partial = cx.scratch(0, TOTAL_AT)?;
        let args = Args::new()
            .ptr(log_prob)
            .ptr(partial)
            .u32(self.positions)
            .pod(&Divisor::new(self.inner))
            .pod(&self.labels);
        cx.push(Step::new(Kernel::fixed(Source::Loss, "nll_partial"), blocks, args));
        let args = Args::new().ptr(partial).ptr(loss).ptr(total).u32(blocks).u32(u32::from(mean));
        cx.push(Step::new(Kernel::fixed(Source::Loss, "nll_finish"), 1, args));
        Ok(())
    }

    fn losses(
        &self,
        cx: &mut Cx<'_>,
        reduction: LossReduction,
        log_prob: CUdeviceptr,
        loss: CUdeviceptr,
    ) -> Result<(), CudaError> {
        if reduction != LossReduction::None {
            return self.combine(cx, log_prob, loss, 0, reduction == LossReduction::Mean);
        }
        let args = Args::new()
            .ptr(log_prob)
            .ptr(loss)
            .u32(self.positions)
            .pod(&Divisor::new(self.inner))
            .pod(&self.labels);
        cx.per_thread(Kernel::fixed(Source::Loss, "nll_each"), self.positions, args);
        Ok(())
    }

    /// The address of the sum of weights that a mean divides by, once the steps so far ran.
    fn total(&self, cx: &mut Cx<'_>, reduction: LossReduction) -> Result<CUdeviceptr, CudaError> {
        if reduction != LossReduction::Mean {
            return Ok(0);
        }
        let total = cx.scratch(TOTAL_AT, 8)?;
        self.combine(cx, 0, 0, total, true)?;
        Ok(total)
    }

    /// The arguments behind the pointers of both gradients.
    fn gradient(&self, args: Args, n: u32, reduction: LossReduction) -> Args {
        args.u32(n)
            .u32(u32::from(reduction == LossReduction::None))
            .pod(&Divisor::new(self.inner))
            .pod(&Divisor::new(self.classes))
            .pod(&self.labels)
    }
}

/// [`vdnn_ir::Op::SoftmaxCrossEntropy`].
pub(super) fn cross_entropy(
    cx: &mut Cx<'_>,
    reduction: LossReduction,
    ignore: Option<i64>,
) -> Result<(), CudaError> {
    let (x, loss, log_prob) = (cx.f32(0)?, cx.f32_out(0)?, cx.f32_out(1)?);
    let targets = Targets::new(cx, log_prob.ty, 1, ignore)?;
    softmax::apply(cx, x, log_prob, 1, true)?;
    targets.losses(cx, reduction, log_prob.ptr, loss.ptr)
}

/// [`vdnn_ir::Op::NegativeLogLikelihood`].
pub(super) fn negative_log_likelihood(
    cx: &mut Cx<'_>,
    reduction: LossReduction,
    ignore: Option<i64>,
) -> Result<(), CudaError> {
    let (log_prob, loss) = (cx.f32(0)?, cx.f32_out(0)?);
    let targets = Targets::new(cx, log_prob.ty, 1, ignore)?;
    targets.losses(cx, reduction, log_prob.ptr, loss.ptr)
}

/// [`vdnn_ir::Op::SoftmaxCrossEntropyGrad`].
pub(super) fn cross_entropy_grad(
    cx: &mut Cx<'_>,
    reduction: LossReduction,
    ignore: Option<i64>,
) -> Result<(), CudaError> {
    let (dloss, log_prob, dx) = (cx.f32(0)?, cx.f32(1)?, cx.f32_out(0)?);
    let targets = Targets::new(cx, log_prob.ty, 2, ignore)?;
    let total = targets.total(cx, reduction)?;
    let args = Args::new().ptr(dloss.ptr).ptr(log_prob.ptr).ptr(total).ptr(dx.ptr);
    grad(cx, "cross_entropy_grad", &targets, args, dx, reduction)
}

/// [`vdnn_ir::Op::NegativeLogLikelihoodGrad`].
pub(super) fn negative_log_likelihood_grad(
    cx: &mut Cx<'_>,
    reduction: LossReduction,
    ignore: Option<i64>,
) -> Result<(), CudaError> {
    let (dloss, dx) = (cx.f32(0)?, cx.f32_out(0)?);
    let targets = Targets::new(cx, dx.ty, 1, ignore)?;
    let total = targets.total(cx, reduction)?;
    let args = Args::new().ptr(dloss.ptr).ptr(total).ptr(dx.ptr);
    grad(cx, "nll_grad", &targets, args, dx, reduction)
}

fn grad(
    cx: &mut Cx<'_>,
    kernel: &str,
    targets: &Targets,
    args: Args,
    dx: Operand<'_>,
    reduction: LossReduction,
) -> Result<(), CudaError> {
    let n = cx.count(dx.ty.elements())?;
    let args = targets.gradient(args, n, reduction);
    cx.per_thread(Kernel::fixed(Source::Loss, kernel), n, args);
    Ok(())
}
