//! Elementwise functions of one, two or many operands.

use super::super::constant::{Constant, Elem, Scalar, resolve_axis};
use super::super::error::{Fail, invalid, unsupported};
use super::super::import::{Importer, Item};
use super::super::node::Node;
use super::movement::reshape_item;
use super::{Entry, foldable, known_bool, known_float, one};
use crate::onnx::fold;
use vdnn_ir::op::infer::broadcast_dims;
use vdnn_ir::op::{BinaryKind, UnaryKind};
use vdnn_ir::{Op, Real};

pub(super) const OPERATORS: &[Entry] = &[
    ("Relu", 1, |cx, n| unary(cx, n, UnaryKind::Relu)),
    ("Sigmoid", 1, |cx, n| unary(cx, n, UnaryKind::Sigmoid)),
    ("Tanh", 1, |cx, n| unary(cx, n, UnaryKind::Tanh)),
    ("HardSwish", 14, |cx, n| unary(cx, n, UnaryKind::HardSwish)),
    ("Exp", 1, |cx, n| unary(cx, n, UnaryKind::Exp)),
    ("Log", 1, |cx, n| unary(cx, n, UnaryKind::Log)),
    ("Sqrt", 1, |cx, n| unary(cx, n, UnaryKind::Sqrt)),
    ("Neg", 1, |cx, n| unary(cx, n, UnaryKind::Neg)),
    ("Abs", 1, |cx, n| unary(cx, n, UnaryKind::Abs)),
    ("Reciprocal", 1, |cx, n| unary(cx, n, UnaryKind::Reciprocal)),
    ("LeakyRelu", 1, |cx, n| {
        let alpha = n.float_or("alpha", 0.01)?.into();
        unary(cx, n, UnaryKind::LeakyRelu { alpha })
    }),
    ("Elu", 1, |cx, n| {
        let alpha = n.float_or("alpha", 1.0)?.into();
        unary(cx, n, UnaryKind::Elu { alpha })
    }),
    ("HardSigmoid", 1, |cx, n| {
        let (alpha, beta) = (n.float_or("alpha", 0.2)?.into(), n.float_or("beta", 0.5)?.into());
        unary(cx, n, UnaryKind::HardSigmoid { alpha, beta })
    }),
    ("Swish", 24, swish),
    ("Clip", 1, clip),
    ("PRelu", 6, p_relu),
    ("Add", 6, |cx, n| binary(cx, n, BinaryKind::Add)),
    ("Sub", 6, |cx, n| binary(cx, n, BinaryKind::Sub)),
    ("Mul", 6, |cx, n| binary(cx, n, BinaryKind::Mul)),
    ("Div", 6, |cx, n| binary(cx, n, BinaryKind::Div)),
    ("Pow", 6, |cx, n| binary(cx, n, BinaryKind::Pow)),
    ("Sum", 6, |cx, n| variadic(cx, n, BinaryKind::Add)),
    ("Max", 6, |cx, n| variadic(cx, n, BinaryKind::Max)),
    ("Min", 6, |cx, n| variadic(cx, n, BinaryKind::Min)),
    ("Mean", 6, mean),
    ("Floor", 1, |cx, n| float_only_known(cx, n, f32::floor)),
    ("Ceil", 1, |cx, n| float_only_known(cx, n, f32::ceil)),
    ("Mod", 10, |cx, n| {
        let fmod = n.flag("fmod", false)?;
        known_binary(cx, n, move |a, b| fold::modulo(a, b, fmod))
    }),
    ("Equal", 7, |cx, n| known_binary(cx, n, |a, b| fold::compare(a, b, |o| o.is_eq()))),
    ("Less", 7, |cx, n| known_binary(cx, n, |a, b| fold::compare(a, b, |o| o.is_lt()))),
    ("LessOrEqual", 12, |cx, n| known_binary(cx, n, |a, b| fold::compare(a, b, |o| o.is_le()))),
    ("Greater", 7, |cx, n| known_binary(cx, n, |a, b| fold::compare(a, b, |o| o.is_gt()))),
    ("GreaterOrEqual", 12, |cx, n| known_binary(cx, n, |a, b| fold::compare(a, b, |o| o.is_ge()))),
    ("And", 7, |cx, n| known_binary(cx, n, |a, b| fold::logic(a, b, |x, y| x && y))),
    ("Or", 7, |cx, n| known_binary(cx, n, |a, b| fold::logic(a, b, |x, y| x || y))),
    ("Xor", 7, |cx, n| known_binary(cx, n, |a, b| fold::logic(a, b, |x, y| x != y))),
    ("Not", 1, not),
    ("Where", 9, select),
];

fn unary(cx: &mut Importer<'_>, node: &Node<'_>, kind: UnaryKind) -> Result<Vec<Item>, Fail> {
    node.arity(1, 1)?;
    if let Some(c) = foldable(node.input(0)?)
        && let Some(f) = fold::unary(kind)
    {
        return one(Item::Const(c.map(&mut cx.budget, f)?));
    }
    let x = cx.value(node.input(0)?)?;
    one(cx.emit(node, Op::Unary(kind), &[x])?)
}

/// `x * sigmoid(alpha * x)`.
fn swish(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(1, 1)?;
    let alpha = node.float_or("alpha", 1.0)?;
    let x = cx.value(node.input(0)?)?;
    let mut gate = x;
    if alpha != 1.0 {
        let scale = UnaryKind::Affine { scale: Real(alpha), shift: Real(0.0) };
        gate = cx.emit_part(node, "scale", Op::Unary(scale), &[gate])?;
    }
    let gate = cx.emit_part(node, "gate", Op::Unary(UnaryKind::Sigmoid), &[gate])?;
    one(cx.emit(node, Op::Binary(BinaryKind::Mul), &[x, gate])?)
}

fn clip(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    let (lo, hi) = if node.opset < 11 {
        node.arity(1, 1)?;
        (node.float("min")?, node.float("max")?)
    } else {
        node.arity(1, 3)?;
        let bound = |i: usize, what: &str| node.optional(i).map(|b| known_float(b, what)).transpose();
        (bound(1, "the lower bound")?, bound(2, "the upper bound")?)
    };
    // Older exporters write the largest finite number for an open end.
    let lo = lo.filter(|&x| x > f32::MIN).unwrap_or(f32::NEG_INFINITY);
    let hi = hi.filter(|&x| x < f32::MAX).unwrap_or(f32::INFINITY);
    if lo.is_nan() || hi.is_nan() {
        return invalid("a bound is not a number");
    }
    // The upper bound wins over a larger lower one (ONNX: min(max(x, lo), hi)).
    let lo = lo.min(hi);
    if let Some(c) = foldable(node.input(0)?) {
        let clipped = c.map(&mut cx.budget, |x| {
            Ok(match x {
                Scalar::F32(x) => Scalar::F32(x.max(lo).min(hi)),
                Scalar::I64(x) => Scalar::I64((x as f32).max(lo).min(hi) as i64),
                Scalar::Bool(_) => return invalid("its operand is a boolean"),
            })
        });
        return one(Item::Const(clipped?));
    }
    if lo == f32::NEG_INFINITY && hi == f32::INFINITY {
        return one(node.input(0)?.clone());
    }
    let x = cx.value(node.input(0)?)?;
    one(cx.emit(node, Op::Unary(UnaryKind::Clip { lo: Real(lo), hi: Real(hi) }), &[x])?)
}

fn binary(cx: &mut Importer<'_>, node: &Node<'_>, kind: BinaryKind) -> Result<Vec<Item>, Fail> {
    node.arity(2, 2)?;
    let (a, mut b) = (node.input(0)?.clone(), node.input(1)?.clone());
    if node.opset < 7 {
        b = align(cx, node, &a, b)?;
    }
    one(combine(cx, node, kind, &a, &b, None)?)
}

/// The second operand as numpy broadcasting wants it: before opset 7 its dimensions stood for
/// those of the first from attribute axis on, if attribute broadcast was set.
fn align(cx: &mut Importer<'_>, node: &Node<'_>, a: &Item, b: Item) -> Result<Item, Fail> {
    let (broadcast, axis) = (node.flag("broadcast", false)?, node.int("axis")?);
    let (to, mut from) = (cx.dims(a)?, cx.dims(&b)?);
    if !broadcast {
        return if to == from {
            Ok(b)
        } else {
            invalid(format!("its operands have shapes {to:?} and {from:?}"))
        };
    }
    let first = match axis {
        Some(axis) => resolve_axis(axis, to.len())?,
        None => to.len().saturating_sub(from.len()),
    };
    let Some(trailing) = to.len().checked_sub(first + from.len()) else {
        return invalid(format!("an operand of shape {from:?} from axis {first} on does not fit {to:?}"));
    };
    from.extend(std::iter::repeat_n(1, trailing));
    reshape_item(cx, node, &b, from)
}

/// Before opset 7 the slope had one dimension: one value, or one for each channel (axis 1).
fn p_relu(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(2, 2)?;
    let (x, mut slope) = (node.input(0)?.clone(), node.input(1)?.clone());
    let (x_dims, mut dims) = (cx.dims(&x)?, cx.dims(&slope)?);
    if node.opset < 7 && dims.len() == 1 && dims[0] != 1 {
        dims.extend(std::iter::repeat_n(1, x_dims.len().saturating_sub(2)));
        slope = reshape_item(cx, node, &slope, dims)?;
    }
    one(combine(cx, node, BinaryKind::PRelu, &x, &slope, None)?)
}

/// One binary op; with `part`, as a helper of the node.
pub(super) fn combine(
    cx: &mut Importer<'_>,
    node: &Node<'_>,
    kind: BinaryKind,
    a: &Item,
    b: &Item,
    part: Option<&str>,
) -> Result<Item, Fail> {
    if let (Some(x), Some(y)) = (foldable(a), foldable(b)) {
        return Ok(Item::Const(x.zip(y, &mut cx.budget, |x, y| fold::binary(kind, x, y))?));
    }
    let emit = |cx: &mut Importer<'_>, op: Op, inputs: &[vdnn_ir::ValueId]| match part {
        Some(part) => cx.emit_part(node, part, op, inputs).map(Item::Value),
        None => cx.emit(node, op, inputs),
    };
    if let Some((kind, x)) = with_scalar(cx, kind, a, b)? {
        let x = cx.value(x)?;
        return emit(cx, Op::Unary(kind), &[x]);
    }
    // ONNX lets the exponent have a type of its own.
    let cast = match b {
        Item::Const(c) if kind == BinaryKind::Pow && c.elem() == Elem::I64 => {
            Some(Item::Const(c.map(&mut cx.budget, |x| Ok(x.cast(Elem::F32)))?))
        }
        _ => None,
    };
    let inputs = [cx.value(a)?, cx.value(cast.as_ref().unwrap_or(b))?];
    emit(cx, Op::Binary(kind), &inputs)
}

/// The function of one argument that a binary one with a known scalar is, and its argument.
fn with_scalar<'a>(
    cx: &Importer<'_>,
    kind: BinaryKind,
    a: &'a Item,
    b: &'a Item,
) -> Result<Option<(UnaryKind, &'a Item)>, Fail> {
    let scalar = |item: &Item| foldable(item).and_then(Constant::single).map(Scalar::as_f32);
    let (x, c, second) = match (scalar(a), scalar(b)) {
        (_, Some(c)) => (a, c, true),
        (Some(c), None) => (b, c, false),
        (None, None) => return Ok(None),
    };
    let (x_dims, other_dims) = (cx.dims(x)?, cx.dims(if second { b } else { a })?);
    if cx.elem(x)? != Elem::F32 || broadcast_dims(&x_dims, &other_dims)? != x_dims {
        return Ok(None);
    }
    let affine = |scale: f32, shift: f32| UnaryKind::Affine { scale: Real(scale), shift: Real(shift) };
    // A reciprocal factor gives the same bits as a division only if it is exact.
    let exact = |c: f32| c.is_normal() && c.to_bits() << 9 == 0 && (1.0 / c).is_normal();
    Ok(Some((
        match (kind, second) {
            (BinaryKind::Add, _) => affine(1.0, c),
            (BinaryKind::Sub, true) => affine(1.0, -c),
            (BinaryKind::Sub, false) => affine(-1.0, c),
            (BinaryKind::Mul, _) => affine(c, 0.0),
            (BinaryKind::Div, true) if exact(c) => affine(1.0 / c, 0.0),
            (BinaryKind::Div, false) if c == 1.0 => UnaryKind::Reciprocal,
            (BinaryKind::Pow, true) => UnaryKind::PowConst { exponent: Real(c) },
            (BinaryKind::Max, _) => UnaryKind::Clip { lo: Real(c), hi: Real(f32::INFINITY) },
            (BinaryKind::Min, _) => UnaryKind::Clip { lo: Real(f32::NEG_INFINITY), hi: Real(c) },
            _ => return Ok(None),
        },
        x,
    )))
}

/// Left to right, as ONNX's reference implementation adds.
fn reduce_operands(cx: &mut Importer<'_>, node: &Node<'_>, kind: BinaryKind) -> Result<Item, Fail> {
    let n = node.inputs.len();
    let mut sum = node.input(0)?.clone();
    for i in 1..n {
        let part = format!("{i}");
        sum = combine(cx, node, kind, &sum, node.input(i)?, (i + 1 < n).then_some(part.as_str()))?;
    }
    Ok(sum)
}

fn variadic(cx: &mut Importer<'_>, node: &Node<'_>, kind: BinaryKind) -> Result<Vec<Item>, Fail> {
    one(reduce_operands(cx, node, kind)?)
}

fn mean(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    let sum = reduce_operands(cx, node, BinaryKind::Add)?;
    let count = Item::Const(Constant::scalar(Scalar::F32(node.inputs.len() as f32)));
    one(combine(cx, node, BinaryKind::Div, &sum, &count, Some("mean"))?)
}

fn need_known<'a>(node: &'a Node<'_>, i: usize) -> Result<&'a Constant, Fail> {
    match foldable(node.input(i)?) {
        Some(c) => Ok(c),
        None => unsupported(format!("it is computed at import only, but input {i} is not a known constant")),
    }
}

fn known_binary(
    cx: &mut Importer<'_>,
    node: &Node<'_>,
    f: impl Fn(Scalar, Scalar) -> Result<Scalar, Fail>,
) -> Result<Vec<Item>, Fail> {
    node.arity(2, 2)?;
    let (a, b) = (need_known(node, 0)?, need_known(node, 1)?);
    one(Item::Const(a.zip(b, &mut cx.budget, f)?))
}

fn float_only_known(cx: &mut Importer<'_>, node: &Node<'_>, f: fn(f32) -> f32) -> Result<Vec<Item>, Fail> {
    node.arity(1, 1)?;
    let c = need_known(node, 0)?;
    one(Item::Const(c.map(&mut cx.budget, |x| match x {
        Scalar::F32(x) => Ok(Scalar::F32(f(x))),
        _ => invalid("its operand is not a float tensor"),
    })?))
}

fn not(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(1, 1)?;
    let c = need_known(node, 0)?;
    one(Item::Const(c.map(&mut cx.budget, |x| match x {
        Scalar::Bool(x) => Ok(Scalar::Bool(!x)),
        _ => invalid("its operand is not boolean"),
    })?))
}

/// Where: on constants, or between whole operands if one known condition decides.
fn select(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(3, 3)?;
    if let (Some(c), Some(a), Some(b)) =
        (foldable(node.input(0)?), foldable(node.input(1)?), foldable(node.input(2)?))
    {
        let elem = a.elem();
        if b.elem() != elem || c.elem() != Elem::Bool {
            return invalid("its operands have the wrong element types");
        }
        let dims = broadcast_dims(&broadcast_dims(&c.dims, &a.dims)?, &b.dims)?;
        let chosen = |cx: &mut Importer<'_>, x: &Constant| {
            let strides = super::super::constant::broadcast_strides(&x.dims, &dims);
            x.gather_strided(dims.clone(), &strides, 0, &mut cx.budget)
        };
        let (c, a, b) = (chosen(cx, c)?, chosen(cx, a)?, chosen(cx, b)?);
        let count = cx.budget.charge(&dims).map(|()| c.len() as usize)?;
        let items = (0..count).map(|i| Ok(if c.get(i) == Scalar::Bool(true) { a.get(i) } else { b.get(i) }));
        return one(Item::Const(Constant::collect(dims.clone(), elem, items)?));
    }
    let chosen = node.input(if known_bool(node.input(0)?, "the condition")? { 1 } else { 2 })?;
    let dims = broadcast_dims(&cx.dims(node.input(1)?)?, &cx.dims(node.input(2)?)?)?;
    if cx.dims(chosen)? == dims {
        return one(chosen.clone());
    }
    let x = cx.value(chosen)?;
    one(cx.emit(node, Op::Expand { dims }, &[x])?)
}
