//! Batch normalisation and its gradients: sums, coefficients, application.

use super::context::{Cx, Element};
use super::pieces::{Channels, apply_joined, grad_joined};
use super::reduce::lanes;
use super::shape::{Divisor, Image};
use super::source::{Kernel, Source};
use super::step::{Args, Step, THREADS};
use crate::cuda::error::CudaError;
use crate::cuda::launch::Operand;
use bytemuck::{Pod, Zeroable};
use cudarc::driver::sys::CUdeviceptr;

/// `Sources` of batchnorm_sums.cu.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Sources {
    x: CUdeviceptr,
    dy: CUdeviceptr,
    gate: CUdeviceptr,
    mean: CUdeviceptr,
    scale: CUdeviceptr,
    invstd: CUdeviceptr,
    bias: CUdeviceptr,
}

/// `Where` of batchnorm_apply.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Where {
    channels: Divisor,
    plane: Divisor,
}

/// A normalised tensor.
struct Norm {
    image: Image,
    element: Element,
    channels: u32,
    /// Where partial sums begin in the scratch: behind the coefficients.
    partial_at: u64,
}

/// Bytes of the coefficients of one channel.
const COEFFICIENT_BYTES: u64 = 16;

/// Partial sums of the channels.
struct Partial {
    at: CUdeviceptr,
    parts: u32,
}

impl Norm {
    fn new(cx: &Cx<'_>, x: Operand<'_>) -> Result<Self, CudaError> {
        let image = Image::new(x.ty);
        let partial_at = (COEFFICIENT_BYTES * image.channels).next_multiple_of(256);
        Ok(Self { image, element: cx.element(x)?, channels: cx.count(image.channels)?, partial_at })
    }

    /// The same without the first `count` channels.
    fn behind(&self, cx: &Cx<'_>, count: u64) -> Result<Self, CudaError> {
        let channels = self.image.channels - count;
        let image = Image { channels, ..self.image };
        Ok(Self { image, channels: cx.count(channels)?, ..*self })
    }

    /// Elements per channel.
    fn count(&self) -> f64 {
        (self.image.images * self.image.plane) as f64
    }

    /// Room for four coefficients per channel, in front of the partial sums.
    fn coefficients(&self, cx: &Cx<'_>) -> Result<CUdeviceptr, CudaError> {
        cx.scratch(0, COEFFICIENT_BYTES * self.image.channels)
    }

    /// Launches the sums; `grad` is 0 or 1, `gate` as in the source. Those of several x joined
    /// are read from the table.
    fn sums(
        &self,
        cx: &mut Cx<'_>,
        sources: Sources,
        grad: bool,
        gate: u32,
        joined: Option<&Channels>,
    ) -> Result<Partial, CudaError> {
        let suffix = if joined.is_some() { "_JOINED" } else { "" };
        let with_table = |args: Args| match joined {
            Some(joined) => args.pod(&joined.table),
            None => args,
        };
        let Image { images, channels, plane, last } = self.image;
        // Two f64 for each channel and part.
        let bytes = 16 * channels;
        if last {
            let whole = channels.is_multiple_of(4) && joined.is_none_or(|j| j.by_four);
            let width = if whole { 4 } else { 1 };
            let rows = u64::from(cx.count(images * plane)?);
            let lanes = lanes(channels / width);
            let groups = (channels / width).div_ceil(lanes);
            let tile = u64::from(THREADS) / lanes * self.depth(width, grad);
            let parts = cx.parts(rows.div_ceil(tile), groups, bytes);
            let at = cx.scratch(self.partial_at, bytes * parts)?;
            let arguments = format!("{}, {width}, {grad}, {gate}", self.element.name);
            let name = format!("BN_SUMS_ROWS{suffix}");
            let kernel = Kernel::instance(Source::BatchNormSums, &name, &arguments);
            let args = Args::new().pod(&sources).ptr(at).u32(self.channels);
            let args = with_table(args.u32(rows as u32).u32(lanes as u32));
            cx.push(Step { grid: [groups as u32, parts as u32, 1], ..Step::new(kernel, 1, args) });
            return Ok(Partial { at, parts: parts as u32 });
        }
        let width = if plane.is_multiple_of(4) { 4 } else { 1 };
        let units = u64::from(cx.count(images * plane / width)?);
        let tile = u64::from(THREADS) * self.depth(width, grad);
        let parts = cx.parts(units.div_ceil(tile), channels, bytes);
        let at = cx.scratch(self.partial_at, bytes * parts)?;
        let arguments = format!("{}, {width}, {grad}, {gate}", self.element.name);
        let name = format!("BN_SUMS_PLANES{suffix}");
        let kernel = Kernel::instance(Source::BatchNormSums, &name, &arguments);
        let args = Args::new().pod(&sources).ptr(at).u32(self.channels).pod(&Divisor::new(plane / width));
        let args = with_table(args.u32(units as u32));
        cx.push(Step { grid: [self.channels, parts as u32, 1], ..Step::new(kernel, 1, args) });
        Ok(Partial { at, parts: parts as u32 })
    }

    /// A pass over the tensor. The kernel's pointers come first; its order behind them.
    fn apply(
        &self,
        cx: &mut Cx<'_>,
        r#macro: &str,
        flags: &str,
        pointers: Args,
        coefficients: CUdeviceptr,
    ) -> Result<(), CudaError> {
        let Image { channels, plane, last, .. } = self.image;
        let n = self.image.elements();
        if n == 0 {
            return Ok(());
        }
        let width = self.element.width;
        // Narrow elements ask for more coefficients by the byte, which this saves.
        let same = width > 4 && u64::from(THREADS).is_multiple_of((channels / width).max(1));
        let (order, at) = match last {
            true if channels.is_multiple_of(width) => {
                (if same { "SAME" } else { "LAST" }, [channels / width, 1])
            }
            true => ("LAST1", [channels, 1]),
            false if plane.is_multiple_of(width) => ("PLANES", [channels, plane / width]),
            false => ("PLANES1", [channels, plane]),
        };
        // The kernels count vectors, or elements where a vector may hold several channels.
        cx.count(if order.ends_with('1') { n } else { n / width })?;
        let at = Where { channels: Divisor::new(at[0]), plane: Divisor::new(at[1]) };
        let args = pointers.ptr(coefficients).u64(n).u32(self.channels).pod(&at);
        let arguments = format!("{}, {order}, {flags}", self.element.name);
        cx.per_items(Kernel::instance(Source::BatchNormApply, r#macro, &arguments), n / width, args)
    }

    /// Vectors of each tensor that a thread of the sums has in flight: `DEPTH` of batchnorm_sums.cu.
    fn depth(&self, width: u64, grad: bool) -> u64 {
        match (width, grad) {
            (4, true) => self.element.width / 2,
            (4, false) => self.element.width,
            _ => 4,
        }
    }
}

fn coefficients(cx: &mut Cx<'_>, name: &str, blocks: u32, args: Args) {
    cx.push(Step::new(Kernel::fixed(Source::BatchNormCoefficients, name), blocks, args));
}

/// [`vdnn_ir::Op::BatchNormTrain`], or with `relu` [`vdnn_ir::Op::BatchNormTrainRelu`].
pub(super) fn train(cx: &mut Cx<'_>, eps: f32, momentum: f32, relu: bool) -> Result<(), CudaError> {
    let (x, y) = (cx.real(0)?, cx.real_out(0)?);
    let added = if cx.spec.inputs.len() > 5 { Some(cx.real(5)?) } else { None };
    let norm = Norm::new(cx, x)?;
    if norm.channels == 0 {
        return Ok(());
    }
    let sums = norm.sums(cx, Sources { x: x.ptr, ..Sources::default() }, false, 0, None)?;
    // Without a residual the backward pass computes y again, exactly.
    let plain = relu && added.is_none();
    let factors = train_coefficients(cx, &norm, &sums, 1, [eps, momentum], plain, &norm)?;
    let pointers = Args::new().ptr(x.ptr).ptr(added.map_or(0, |r| r.ptr)).ptr(y.ptr);
    norm.apply(cx, "BN_APPLY", &format!("{relu}, {}", added.is_some()), pointers, factors)
}

/// [`vdnn_ir::Op::BatchNormTrainReluJoined`].
pub(super) fn train_joined(cx: &mut Cx<'_>, eps: f32, momentum: f32, known: bool) -> Result<(), CudaError> {
    let whole = Norm::new(cx, cx.real_out(0)?)?;
    if whole.channels == 0 {
        return Ok(());
    }
    let first = if known { 6 } else { 4 };
    let count = if known { cx.f32(4)?.ty.elements() } else { 0 };
    let factors = whole.coefficients(cx)?;
    if count > 0 {
        let mut args = Args::new().ptr(cx.f32(4)?.ptr).ptr(cx.f32(5)?.ptr);
        for ptr in train_parameters(cx, 0, 0)? {
            args = args.ptr(ptr);
        }
        let channels = cx.count(count)?;
        let args = args.ptr(factors).u32(channels).u32(whole.channels).f64(f64::from(eps));
        let args = args.f64(f64::from(momentum));
        coefficients(cx, "bn_known_coefficients", channels.div_ceil(THREADS), args);
    }
    // The sums of the other channels, and what follows from them.
    if let Some(channels) = Channels::behind(cx, first, count)? {
        let norm = whole.behind(cx, count)?;
        let sums = norm.sums(cx, Sources::default(), false, 0, Some(&channels))?;
        train_coefficients(cx, &norm, &sums, 0, [eps, momentum], true, &whole)?;
    }
    apply_joined(cx, first, factors, true)
}

/// Scale, bias and running statistics, the inputs from number `first` on, and the statistics
/// among the results, from channel `from` on.
fn train_parameters(cx: &Cx<'_>, first: usize, from: u64) -> Result<[CUdeviceptr; 8], CudaError> {
    let inputs = [cx.f32(first)?, cx.f32(first + 1)?, cx.f32(first + 2)?, cx.f32(first + 3)?];
    let outputs = [cx.f32_out(1)?, cx.f32_out(2)?, cx.f32_out(3)?, cx.f32_out(4)?];
    let [a, b, c, d] = inputs.map(|t| t.ptr + 4 * from);
    let [e, f, g, h] = outputs.map(|t| t.ptr + 4 * from);
    Ok([a, b, c, d, e, f, g, h])
}

/// Launches what makes coefficients of sums, and of scale, bias, mean and variance, the inputs
/// from number `first` on; where they will be. `norm` has the last channels of `whole`. `plain`:
/// as a backward pass can compute them again.
fn train_coefficients(
    cx: &mut Cx<'_>,
    norm: &Norm,
    sums: &Partial,
    first: usize,
    [eps, momentum]: [f32; 2],
    plain: bool,
    whole: &Norm,
) -> Result<CUdeviceptr, CudaError> {
    let from = u64::from(whole.channels - norm.channels);
    let factors = whole.coefficients(cx)?;
    let mut args = Args::new().ptr(sums.at);
    for ptr in train_parameters(cx, first, from)? {
        args = args.ptr(ptr);
    }
    let args = args.ptr(factors + 4 * from).u32(norm.channels).u32(whole.channels).u32(sums.parts);
    let args = args.f64(norm.count()).f64(f64::from(eps)).f64(f64::from(momentum));
    coefficients(cx, "bn_train_coefficients", norm.channels.div_ceil(8), args.u32(u32::from(plain)));
    Ok(factors)
}

/// [`vdnn_ir::Op::BatchNormInfer`], or with `relu` [`vdnn_ir::Op::BatchNormInferRelu`] of one x,
/// which comes behind the parameters there.
pub(super) fn infer(cx: &mut Cx<'_>, eps: f32, relu: bool) -> Result<(), CudaError> {
    let (x, first) = if relu { (4, 0) } else { (0, 1) };
    let (x, y) = (cx.real(x)?, cx.real_out(0)?);
    let norm = Norm::new(cx, x)?;
    if norm.image.elements() == 0 {
        return Ok(());
    }
    let factors = given_coefficients(cx, first, norm.image.channels, Some(eps))?;
    let pointers = Args::new().ptr(x.ptr).ptr(0).ptr(y.ptr);
    norm.apply(cx, "BN_APPLY", &format!("{relu}, false"), pointers, factors)
}

/// [`vdnn_ir::Op::BatchNormApplyRelu`] of one x.
pub(super) fn apply_relu(cx: &mut Cx<'_>) -> Result<(), CudaError> {
    let (x, y) = (cx.real(4)?, cx.real_out(0)?);
    let norm = Norm::new(cx, x)?;
    if norm.image.elements() == 0 {
        return Ok(());
    }
    let factors = given_coefficients(cx, 0, norm.image.channels, None)?;
    let pointers = Args::new().ptr(x.ptr).ptr(0).ptr(y.ptr);
    norm.apply(cx, "BN_APPLY", "true, false", pointers, factors)
}

/// Launches what makes coefficients of scale, bias, mean and variance, the inputs from number
/// `first` on, or without `eps` of the inverse deviation in the variance's place; where they
/// will be.
pub(super) fn given_coefficients(
    cx: &mut Cx<'_>,
    first: usize,
    channels: u64,
    eps: Option<f32>,
) -> Result<CUdeviceptr, CudaError> {
    let parameters =
        [cx.f32(first)?, cx.f32(first + 1)?, cx.f32(first + 2)?, cx.f32(first + 3)?].map(|t| t.ptr);
    let factors = cx.scratch(0, COEFFICIENT_BYTES * channels)?;
    let args = parameters.into_iter().fold(Args::new(), Args::ptr).ptr(factors);
    let channels = cx.count(channels)?;
    let args = args.u32(channels);
    let (name, args) = match eps {
        Some(eps) => ("bn_infer_coefficients", args.f64(f64::from(eps))),
        None => ("bn_apply_coefficients", args),
    };
    coefficients(cx, name, channels.div_ceil(THREADS), args);
    Ok(factors)
}

/// [`vdnn_ir::Op::BatchNormGrad`], or with `eps` [`vdnn_ir::Op::BatchNormInferGrad`].
pub(super) fn grad(cx: &mut Cx<'_>, eps: Option<f32>) -> Result<(), CudaError> {
    let (dy, x, dx) = (cx.real(0)?, cx.real(1)?, cx.real_out(0)?);
    let norm = Norm::new(cx, x)?;
    if norm.channels == 0 {
        return Ok(());
    }
    let [scale, mean, deviation] = [cx.f32(2)?, cx.f32(3)?, cx.f32(4)?].map(|t| t.ptr);
    let (dscale, dbias) = (cx.f32_out(1)?, cx.f32_out(2)?);
    let sources = Sources { x: x.ptr, dy: dy.ptr, mean, ..Sources::default() };
    let sums = norm.sums(cx, sources, true, 0, None)?;
    let factors = norm.coefficients(cx)?;
    let args = Args::new().ptr(sums.at).ptr(scale).ptr(mean).ptr(deviation).ptr(dscale.ptr).ptr(dbias.ptr);
    let args = args.ptr(factors).u32(norm.channels).u32(sums.parts).f64(norm.count());
    let args = args.f64(f64::from(eps.unwrap_or(0.0))).u32(u32::from(eps.is_none()));
    coefficients(cx, "bn_grad_coefficients", norm.channels.div_ceil(8), args);
    let pointers = Args::new().ptr(dy.ptr).ptr(x.ptr).ptr(0).ptr(0).ptr(dx.ptr).ptr(0);
    let flags = if eps.is_none() { "true, 0, false" } else { "false, 0, false" };
    norm.apply(cx, "BN_GRAD_APPLY", flags, pointers, factors)
}

/// [`vdnn_ir::Op::BatchNormReluGrad`].
pub(super) fn relu_grad(cx: &mut Cx<'_>) -> Result<(), CudaError> {
    let (dy, x, dx) = (cx.real(0)?, cx.real(1)?, cx.real_out(0)?);
    let norm = Norm::new(cx, x)?;
    if norm.channels == 0 {
        return Ok(());
    }
    let [scale, bias, mean, invstd] = [cx.f32(2)?, cx.f32(3)?, cx.f32(4)?, cx.f32(5)?].map(|t| t.ptr);
    let (dscale, dbias) = (cx.f32_out(1)?, cx.f32_out(2)?);
    let factors = norm.coefficients(cx)?;
    // The gate is y where it is given, else the output computed again.
    let (gate, y) = if cx.spec.inputs.len() > 6 { (1, cx.real(6)?.ptr) } else { (2, 0) };
    let sent = if cx.spec.outputs.len() > 3 { cx.real_out(3)?.ptr } else { 0 };
    let sources = Sources { x: x.ptr, dy: dy.ptr, gate: y, mean, scale, invstd, bias };
    let sums = norm.sums(cx, sources, true, gate, None)?;
    let args = Args::new().ptr(sums.at).ptr(scale).ptr(mean).ptr(invstd).ptr(dscale.ptr).ptr(dbias.ptr);
    let args = args.ptr(factors).u32(norm.channels).u32(sums.parts).f64(norm.count());
    coefficients(cx, "bn_grad_coefficients", norm.channels.div_ceil(8), args.f64(0.0).u32(1));
    let pointers = Args::new().ptr(dy.ptr).ptr(x.ptr).ptr(y).ptr(bias).ptr(dx.ptr).ptr(sent);
    norm.apply(cx, "BN_GRAD_APPLY", &format!("true, {gate}, {}", sent != 0), pointers, factors)
}

/// [`vdnn_ir::Op::BatchNormReluGradJoined`].
pub(super) fn relu_grad_joined(cx: &mut Cx<'_>, added: bool) -> Result<(), CudaError> {
    let (dy, first) = (cx.real(0)?, if added { 6 } else { 5 });
    let norm = Norm::new(cx, dy)?;
    if norm.channels == 0 {
        return Ok(());
    }
    let [scale, bias, mean, invstd] = [cx.f32(1)?, cx.f32(2)?, cx.f32(3)?, cx.f32(4)?].map(|t| t.ptr);
    let (dscale, dbias) = (cx.f32_out(1)?, cx.f32_out(2)?);
    let added = if added { Some(cx.real(5)?) } else { None };
    let channels = Channels::of(&cx.spec.inputs[first..], cx)?;
    let sources = Sources { dy: dy.ptr, mean, scale, invstd, bias, ..Sources::default() };
    let sums = norm.sums(cx, sources, true, 2, Some(&channels))?;
    let factors = norm.coefficients(cx)?;
    let args = Args::new().ptr(sums.at).ptr(scale).ptr(mean).ptr(invstd).ptr(dscale.ptr).ptr(dbias.ptr);
    let args = args.ptr(factors).u32(norm.channels).u32(sums.parts).f64(norm.count());
    coefficients(cx, "bn_grad_coefficients", norm.channels.div_ceil(8), args.f64(0.0).u32(1));
    grad_joined(cx, first, added, bias, factors)
}

/// The bias, summand and ReLU behind a convolution: a normalisation with mean 0 and factor 1.
pub(super) fn epilogue(cx: &mut Cx<'_>, relu: bool) -> Result<(), CudaError> {
    let (bias, y) = (cx.real(2)?, cx.real_out(0)?);
    let added = if cx.spec.inputs.len() > 3 { cx.real(3)?.ptr } else { 0 };
    let norm = Norm::new(cx, y)?;
    if norm.image.elements() == 0 {
        return Ok(());
    }
    let factors = norm.coefficients(cx)?;
    let args = Args::new().ptr(bias.ptr).ptr(factors).u32(norm.channels);
    let kernel = Kernel::instance(Source::BatchNormCoefficients, "BIAS_COEFFICIENTS", cx.element(bias)?.name);
    cx.push(Step::new(kernel, norm.channels.div_ceil(THREADS), args));
    let pointers = Args::new().ptr(y.ptr).ptr(added).ptr(y.ptr);
    norm.apply(cx, "BN_APPLY", &format!("{relu}, {}", added != 0), pointers, factors)
}
