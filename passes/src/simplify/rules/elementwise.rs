//! Rules of elementwise ops. Equality is of numbers: the sign of a zero and the payload of a
//! NaN may differ.

use super::{Rhs, View, none, same_if};
use egg::Id;
use smallvec::{SmallVec, smallvec};
use vdnn_ir::op::{BinaryKind, UnaryKind};
use vdnn_ir::{Op, Real};

type Found = SmallVec<[Rhs; 1]>;

fn clip(lo: f32, hi: f32) -> Op {
    Op::Unary(UnaryKind::Clip { lo: Real(lo), hi: Real(hi) })
}

fn is_relu(op: &Op) -> bool {
    matches!(op, Op::Unary(UnaryKind::Relu))
}

/// The bounds of every clip that computes a class, with its operand.
fn clips<'v>(v: &'v View<'_>, id: Id) -> impl Iterator<Item = (f32, f32, Id)> + 'v {
    v.ops(id).filter_map(|(op, x)| match op {
        Op::Unary(UnaryKind::Clip { lo, hi }) => Some((lo.0, hi.0, x[0])),
        _ => None,
    })
}

/// `relu(relu(x)) = relu(x)`.
pub fn relu_of_relu(v: &View<'_>, op: &Op, x: &[Id]) -> Found {
    same_if(is_relu(op) && v.ops(x[0]).any(|(op, _)| is_relu(op)), x.first().copied().unwrap_or_default())
}

/// `relu(clip(x, lo, hi)) = clip(x, max(lo, 0), hi)` if `hi >= 0`.
pub fn relu_of_clip(v: &View<'_>, op: &Op, x: &[Id]) -> Found {
    if !is_relu(op) {
        return none();
    }
    let inner = clips(v, x[0]).filter(|&(_, hi, _)| hi >= 0.0);
    inner.map(|(lo, hi, y)| Rhs::Node(clip(lo.max(0.0), hi), smallvec![y])).collect()
}

/// `clip(relu(x), lo, hi) = clip(x, max(lo, 0), hi)`.
pub fn clip_of_relu(v: &View<'_>, op: &Op, x: &[Id]) -> Found {
    let Op::Unary(UnaryKind::Clip { lo, hi }) = op else { return none() };
    let inner = v.ops(x[0]).filter(|(op, _)| is_relu(op));
    inner.map(|(_, y)| Rhs::Node(clip(lo.0.max(0.0), hi.0), smallvec![y[0]])).collect()
}

/// `clip(clip(x, l, h), lo, hi) = clip(x, max(l, lo), min(h, hi))` if `lo <= h`.
pub fn clip_of_clip(v: &View<'_>, op: &Op, x: &[Id]) -> Found {
    let Op::Unary(UnaryKind::Clip { lo, hi }) = op else { return none() };
    let inner = clips(v, x[0]).filter(|&(_, h, _)| lo.0 <= h);
    inner.map(|(l, h, y)| Rhs::Node(clip(lo.0.max(l), hi.0.min(h)), smallvec![y])).collect()
}

/// `clip(x, 0, inf) = relu(x)`, whose gradient reads its output.
pub fn clip_to_relu(_: &View<'_>, op: &Op, x: &[Id]) -> Found {
    let Op::Unary(UnaryKind::Clip { lo, hi }) = op else { return none() };
    if lo.0 == 0.0 && hi.0 == f32::INFINITY {
        return smallvec![Rhs::Node(Op::Unary(UnaryKind::Relu), smallvec![x[0]])];
    }
    none()
}

/// `clip(x, -inf, inf) = x`.
pub fn clip_to_anything(_: &View<'_>, op: &Op, x: &[Id]) -> Found {
    let Op::Unary(UnaryKind::Clip { lo, hi }) = op else { return none() };
    same_if(lo.0 == f32::NEG_INFINITY && hi.0 == f32::INFINITY, x[0])
}

/// The other operand of a binary op whose operand `i` is a uniform `value` and does not
/// broadcast the result to another shape.
fn neutral(v: &View<'_>, x: &[Id], i: usize, value: f32) -> Found {
    let (constant, other) = (x[i], x[1 - i]);
    let keeps_shape = v.dims(constant).len() <= v.dims(other).len()
        && v.dims(constant).iter().rev().zip(v.dims(other).iter().rev()).all(|(c, o)| *c == 1 || c == o);
    same_if(v.uniform(constant).is_some_and(|u| u.0 == value) && keeps_shape, other)
}

/// `x + 0`, `0 + x` and `x - 0`.
pub fn add_zero(v: &View<'_>, op: &Op, x: &[Id]) -> Found {
    match op {
        Op::Binary(BinaryKind::Add) => {
            neutral(v, x, 0, 0.0).into_iter().chain(neutral(v, x, 1, 0.0)).collect()
        }
        Op::Binary(BinaryKind::Sub) => neutral(v, x, 1, 0.0),
        _ => none(),
    }
}

/// `x * 1`, `1 * x` and `x / 1`.
pub fn mul_one(v: &View<'_>, op: &Op, x: &[Id]) -> Found {
    match op {
        Op::Binary(BinaryKind::Mul) => {
            neutral(v, x, 0, 1.0).into_iter().chain(neutral(v, x, 1, 1.0)).collect()
        }
        Op::Binary(BinaryKind::Div) => neutral(v, x, 1, 1.0),
        _ => none(),
    }
}

/// `s*(t*x + b) + c = (s*t)*x + (s*b + c)`, the constants computed in f64 and rounded once.
pub fn affine_of_affine(v: &View<'_>, op: &Op, x: &[Id]) -> Found {
    let Op::Unary(UnaryKind::Affine { scale, shift }) = op else { return none() };
    let (s, c) = (f64::from(scale.0), f64::from(shift.0));
    let composed = |(op, y): (&Op, &[Id])| {
        let Op::Unary(UnaryKind::Affine { scale: t, shift: b }) = op else { return None };
        let scale = Real((s * f64::from(t.0)) as f32);
        let shift = Real((s * f64::from(b.0) + c) as f32);
        // Rounding to infinity or to zero would change more than the last bits.
        let ordinary = scale.0.is_normal() && (shift.0 == 0.0 || shift.0.is_normal());
        ordinary.then(|| Rhs::Node(Op::Unary(UnaryKind::Affine { scale, shift }), smallvec![y[0]]))
    };
    v.ops(x[0]).filter_map(composed).collect()
}

/// `1*x + 0 = x`.
pub fn affine_of_nothing(_: &View<'_>, op: &Op, x: &[Id]) -> Found {
    let Op::Unary(UnaryKind::Affine { scale, shift }) = op else { return none() };
    same_if(scale.0 == 1.0 && shift.0 == 0.0, x[0])
}

/// A binary op broadcasts by itself: `f(x, expand(c)) = f(x, c)` if x alone has the result's shape.
pub fn binary_of_expand(v: &View<'_>, op: &Op, x: &[Id]) -> Found {
    if !matches!(op, Op::Binary(_)) {
        return none();
    }
    let mut found = none();
    for i in [0, 1] {
        // The other operand must not be smaller than the expanded one.
        let (expanded, other) = (v.dims(x[i]), v.dims(x[1 - i]));
        let covers = expanded.len() <= other.len()
            && expanded.iter().rev().zip(other.iter().rev()).all(|(e, o)| *e == 1 || e == o);
        if !covers {
            continue;
        }
        for (inner, y) in v.ops(x[i]) {
            if matches!(inner, Op::Expand { .. }) {
                let mut operands: SmallVec<[Id; 4]> = x.into();
                operands[i] = y[0];
                found.push(Rhs::Node(op.clone(), operands));
            }
        }
    }
    found
}

/// Dropping out nothing.
pub fn dropout_of_nothing(_: &View<'_>, op: &Op, x: &[Id]) -> Found {
    let Op::Dropout { ratio, .. } = op else { return none() };
    same_if(ratio.0 == 0.0, x[0])
}
