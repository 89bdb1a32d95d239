//! Elementwise functions of one and two tensors.

use super::context::Cx;
use super::shape::{Axis, Walk, broadcast_strides, collapse, memory_order, positions};
use super::source::{Kernel, Source};
use super::step::{Args, Step, THREADS};
use crate::cuda::error::CudaError;
use vdnn_ir::DType;
use vdnn_ir::op::{BinaryKind, UnaryKind};

/// Name of the function in the source, and its parameters.
pub(super) fn function(kind: UnaryKind) -> (&'static str, f32, f32) {
    match kind {
        UnaryKind::Relu => ("Relu", 0.0, 0.0),
        UnaryKind::LeakyRelu { alpha } => ("LeakyRelu", alpha.0, 0.0),
        UnaryKind::Clip { lo, hi } => ("Clip", lo.0, hi.0),
        UnaryKind::Sigmoid => ("Sigmoid", 0.0, 0.0),
        UnaryKind::HardSigmoid { alpha, beta } => ("HardSigmoid", alpha.0, beta.0),
        UnaryKind::HardSwish => ("HardSwish", 0.0, 0.0),
        UnaryKind::Tanh => ("Tanh", 0.0, 0.0),
        UnaryKind::Elu { alpha } => ("Elu", alpha.0, 0.0),
        UnaryKind::Exp => ("Exp", 0.0, 0.0),
        UnaryKind::Log => ("Log", 0.0, 0.0),
        UnaryKind::Sqrt => ("Sqrt", 0.0, 0.0),
        UnaryKind::Neg => ("Neg", 0.0, 0.0),
        UnaryKind::Abs => ("Abs", 0.0, 0.0),
        UnaryKind::Reciprocal => ("Reciprocal", 0.0, 0.0),
        UnaryKind::Affine { scale, shift } => ("Affine", scale.0, shift.0),
        UnaryKind::PowConst { exponent } if exponent.0 == 2.0 => ("Square", 0.0, 0.0),
        UnaryKind::PowConst { exponent } => ("PowConst", exponent.0, 0.0),
    }
}

pub(super) fn binary_function(kind: BinaryKind) -> &'static str {
    match kind {
        BinaryKind::Add => "Add",
        BinaryKind::Sub => "Sub",
        BinaryKind::Mul => "Mul",
        BinaryKind::Div => "Div",
        BinaryKind::Pow => "Pow",
        BinaryKind::Max => "Maximum",
        BinaryKind::Min => "Minimum",
        BinaryKind::PRelu => "PRelu",
        BinaryKind::Gate => "Gate",
    }
}

/// Names of an element type and of the type its arithmetic runs in.
fn typed(cx: &Cx<'_>, dtype: DType) -> Result<(&'static str, &'static str), CudaError> {
    match dtype {
        DType::F64 => Ok(("double", "double")),
        DType::I32 => Ok(("i32", "i64")),
        DType::I64 => Ok(("i64", "i64")),
        other => Err(cx.unsupported(format!("elements of type {other}"))),
    }
}

/// [`vdnn_ir::Op::Unary`].
pub(super) fn unary(cx: &mut Cx<'_>, kind: UnaryKind) -> Result<(), CudaError> {
    let (x, y) = (cx.input(0)?, cx.output(0)?);
    let n = y.ty.elements();
    if n == 0 {
        return Ok(());
    }
    let args = Args::new().ptr(x.ptr).ptr(y.ptr).u64(n);
    if matches!(x.ty.dtype, DType::F32 | DType::BF16) {
        let (element, (name, p, q)) = (cx.element(x)?, function(kind));
        let kernel = Kernel::instance(Source::Pointwise, "UNARY", &format!("{}, {name}", element.name));
        return cx.per_items(kernel, n / element.width, args.f32(p).f32(q));
    }
    let name = if kind == UnaryKind::Neg { "Negate" } else { "Magnitude" };
    let (ty, _) = typed(cx, x.ty.dtype)?;
    let kernel = Kernel::instance(Source::Pointwise, "UNARY_TYPED", &format!("{name}, {ty}"));
    let blocks = cx.count(n.div_ceil(u64::from(THREADS)))?;
    cx.push(Step::new(kernel, blocks, args));
    Ok(())
}

/// [`vdnn_ir::Op::UnaryGrad`].
pub(super) fn unary_grad(cx: &mut Cx<'_>, kind: UnaryKind) -> Result<(), CudaError> {
    let (dy, s, dx) = (cx.real(0)?, cx.real(1)?, cx.real_out(0)?);
    let n = dx.ty.elements();
    if n == 0 {
        return Ok(());
    }
    let (name, p, q) = function(kind);
    let element = cx.element(dx)?;
    let arguments = format!("{}, {name}Slope", element.name);
    let kernel = Kernel::instance(Source::Pointwise, "UNARY_GRAD", &arguments);
    let args = Args::new().ptr(dy.ptr).ptr(s.ptr).ptr(dx.ptr).u64(n).f32(p).f32(q);
    cx.per_items(kernel, n / element.width, args)
}

/// [`vdnn_ir::Op::Binary`].
pub(super) fn binary(cx: &mut Cx<'_>, kind: BinaryKind) -> Result<(), CudaError> {
    let (a, b, y) = (cx.input(0)?, cx.input(1)?, cx.output(0)?);
    let n = y.ty.elements();
    if n == 0 {
        return Ok(());
    }
    let (sa, sb) = (broadcast_strides(a.ty, &y.ty.dims), broadcast_strides(b.ty, &y.ty.dims));
    let order = memory_order(y.ty);
    let mut axes = collapse(order.iter().map(|&d| Axis { extent: y.ty.dims[d], step: [sa[d], sb[d]] }));
    let name = binary_function(kind);
    let pointers = Args::new().ptr(a.ptr).ptr(b.ptr).ptr(y.ptr);
    if !matches!(y.ty.dtype, DType::F32 | DType::BF16) {
        let (ty, arithmetic) = typed(cx, y.ty.dtype)?;
        let kernel =
            Kernel::instance(Source::Pointwise, "BINARY_TYPED", &format!("{name}, {ty}, {arithmetic}"));
        let walk = Walk::new(&axes).ok_or_else(|| cx.unsupported("a broadcast of this shape"))?;
        let n = cx.count(n)?;
        cx.per_thread(kernel, n, pointers.u32(n).pod(&walk));
        return Ok(());
    }
    let element = cx.element(y)?;
    // One dimension at most: both operands run along, or one is a single element.
    if axes.len() <= 1 && axes.iter().all(|axis| axis.step.iter().all(|&s| s == 0 || s == 1)) {
        let step = axes.first().map_or([1, 1], |axis| axis.step);
        let args = pointers.u64(n).u32(step[0] as u32).u32(step[1] as u32);
        let kernel = Kernel::instance(Source::Pointwise, "BINARY", &format!("{}, {name}", element.name));
        return cx.per_items(kernel, n / element.width, args);
    }
    let width = if vectorise(&mut axes, element.width) { element.width } else { 1 };
    let arguments = format!("{}, {name}, {width}", element.name);
    let kernel = Kernel::instance(Source::Pointwise, "BINARY_STRIDED", &arguments);
    let single = axes.last().map_or([0, 0], |axis| axis.step.map(|s| u32::from(s == 0)));
    let walk = Walk::new(&axes).ok_or_else(|| cx.unsupported("a broadcast of this shape"))?;
    let groups = positions(&axes).unwrap_or(u64::MAX);
    let args = pointers.u32(cx.count(groups)?).u32(single[0]).u32(single[1]).pod(&walk);
    cx.per_items(kernel, groups, args)
}

/// Turns the innermost axis into one of groups of `width` elements, if both operands then read
/// whole vectors or single elements.
fn vectorise(axes: &mut [Axis], width: u64) -> bool {
    let Some((last, outer)) = axes.split_last_mut() else { return false };
    let fits = |i: usize| match last.step[i] {
        0 => true,
        1 => outer.iter().all(|axis| axis.step[i] % width as i64 == 0),
        _ => false,
    };
    if !last.extent.is_multiple_of(width) || !fits(0) || !fits(1) {
        return false;
    }
    last.extent /= width;
    last.step = last.step.map(|s| width as i64 * s);
    true
}
