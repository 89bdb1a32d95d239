//! Arithmetic on known elements.

use super::constant::Scalar;
use super::error::{Fail, invalid};
use std::cmp::Ordering;
use vdnn_ir::op::{BinaryKind, UnaryKind};

/// A function of one element, for the kinds that occur in shape arithmetic and in small
/// constant expressions.
pub(super) fn unary(kind: UnaryKind) -> Option<impl Fn(Scalar) -> Result<Scalar, Fail>> {
    let float: fn(f32) -> f32 = match kind {
        UnaryKind::Neg => |x| -x,
        UnaryKind::Abs => f32::abs,
        UnaryKind::Exp => f32::exp,
        UnaryKind::Log => f32::ln,
        UnaryKind::Sqrt => f32::sqrt,
        UnaryKind::Reciprocal => |x| 1.0 / x,
        UnaryKind::Relu => |x| x.max(0.0),
        _ => return None,
    };
    Some(move |x| match (x, kind) {
        (Scalar::F32(x), _) => Ok(Scalar::F32(float(x))),
        (Scalar::I64(x), UnaryKind::Neg) => int(x.checked_neg()),
        (Scalar::I64(x), UnaryKind::Abs) => int(x.checked_abs()),
        (Scalar::I64(x), UnaryKind::Relu) => Ok(Scalar::I64(x.max(0))),
        _ => invalid("its operand has the wrong element type"),
    })
}

fn int(x: Option<i64>) -> Result<Scalar, Fail> {
    match x {
        Some(x) => Ok(Scalar::I64(x)),
        None => invalid("integer arithmetic on constants overflows or divides by zero"),
    }
}

/// Two elements combined; integer division truncates towards zero (ONNX Div).
pub(super) fn binary(kind: BinaryKind, a: Scalar, b: Scalar) -> Result<Scalar, Fail> {
    match (a, b) {
        (Scalar::F32(x), Scalar::F32(y)) => Ok(Scalar::F32(float_binary(kind, x, y))),
        (Scalar::F32(x), y @ Scalar::I64(_)) if kind == BinaryKind::Pow => {
            Ok(Scalar::F32(x.powf(y.as_f32())))
        }
        // The result has the type of the base.
        (Scalar::I64(x), Scalar::F32(y)) if kind == BinaryKind::Pow => {
            Ok(Scalar::I64((x as f32).powf(y) as i64))
        }
        (Scalar::Bool(x), Scalar::Bool(y)) if kind == BinaryKind::Max => Ok(Scalar::Bool(x || y)),
        (Scalar::Bool(x), Scalar::Bool(y)) if kind == BinaryKind::Min => Ok(Scalar::Bool(x && y)),
        (Scalar::I64(x), Scalar::I64(y)) => int(match kind {
            BinaryKind::Add => x.checked_add(y),
            BinaryKind::Sub => x.checked_sub(y),
            BinaryKind::Mul => x.checked_mul(y),
            BinaryKind::Div => x.checked_div(y),
            BinaryKind::Pow => u32::try_from(y).ok().and_then(|y| x.checked_pow(y)),
            BinaryKind::Max => Some(x.max(y)),
            BinaryKind::Min => Some(x.min(y)),
            BinaryKind::PRelu => {
                if x < 0 {
                    x.checked_mul(y)
                } else {
                    Some(x)
                }
            }
            BinaryKind::Gate => Some(if y > 0 { x } else { 0 }),
        }),
        _ => invalid("its operands have different element types"),
    }
}

fn float_binary(kind: BinaryKind, x: f32, y: f32) -> f32 {
    match kind {
        BinaryKind::Add => x + y,
        BinaryKind::Sub => x - y,
        BinaryKind::Mul => x * y,
        BinaryKind::Div => x / y,
        BinaryKind::Pow => x.powf(y),
        BinaryKind::Max => x.max(y),
        BinaryKind::Min => x.min(y),
        BinaryKind::PRelu => {
            if x < 0.0 {
                x * y
            } else {
                x
            }
        }
        BinaryKind::Gate => {
            if y > 0.0 {
                x
            } else {
                0.0
            }
        }
    }
}

/// ONNX Mod: the sign of the divisor, or with `fmod` of the dividend.
pub(super) fn modulo(a: Scalar, b: Scalar, fmod: bool) -> Result<Scalar, Fail> {
    match (a, b) {
        (Scalar::F32(x), Scalar::F32(y)) if fmod => Ok(Scalar::F32(x % y)),
        (Scalar::I64(x), Scalar::I64(y)) => {
            int(x.checked_rem(y).map(|r| if !fmod && r != 0 && (r < 0) != (y < 0) { r + y } else { r }))
        }
        _ => invalid("its operands have the wrong element types"),
    }
}

/// A comparison; anything compared with NaN is false.
pub(super) fn compare(a: Scalar, b: Scalar, f: fn(Ordering) -> bool) -> Result<Scalar, Fail> {
    let order = match (a, b) {
        (Scalar::F32(x), Scalar::F32(y)) => x.partial_cmp(&y),
        (Scalar::I64(x), Scalar::I64(y)) => Some(x.cmp(&y)),
        (Scalar::Bool(x), Scalar::Bool(y)) => Some(x.cmp(&y)),
        _ => return invalid("its operands have different element types"),
    };
    Ok(Scalar::Bool(order.is_some_and(f)))
}

/// A logical connective.
pub(super) fn logic(a: Scalar, b: Scalar, f: fn(bool, bool) -> bool) -> Result<Scalar, Fail> {
    match (a, b) {
        (Scalar::Bool(x), Scalar::Bool(y)) => Ok(Scalar::Bool(f(x, y))),
        _ => invalid("its operands are not boolean"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integer_rules_of_onnx() {
        let i = Scalar::I64;
        assert_eq!(binary(BinaryKind::Div, i(-7), i(2)).unwrap(), i(-3));
        assert_eq!(modulo(i(-7), i(3), false).unwrap(), i(2));
        assert_eq!(modulo(i(-7), i(3), true).unwrap(), i(-1));
        assert!(binary(BinaryKind::Div, i(1), i(0)).is_err());
        assert!(binary(BinaryKind::Mul, i(i64::MAX), i(2)).is_err());
        assert!(modulo(i(i64::MIN), i(-1), false).is_err());
        assert!(binary(BinaryKind::Add, i(1), Scalar::F32(1.0)).is_err());
    }

    #[test]
    fn nan_compares_false() {
        let nan = Scalar::F32(f32::NAN);
        assert_eq!(compare(nan, nan, Ordering::is_eq).unwrap(), Scalar::Bool(false));
    }
}
