//! Functions of single elements. f32 functions are evaluated in f64 and rounded once.

use super::element::{Element, get, put};
use super::walk::{broadcast, rows};
use super::{dims, unsupported};
use vdnn_ir::DType;
use vdnn_ir::kernel::{KernelError, TensorMut, TensorRef};
use vdnn_ir::op::{BinaryKind, Op, UnaryKind};

/// Limits x; keeps NaN.
fn clip(x: f64, lo: f64, hi: f64) -> f64 {
    if x < lo {
        lo
    } else if x > hi {
        hi
    } else {
        x
    }
}

fn function(kind: UnaryKind, x: f64) -> f64 {
    match kind {
        UnaryKind::Relu => {
            if x <= 0.0 {
                0.0
            } else {
                x
            }
        }
        UnaryKind::LeakyRelu { alpha } => {
            if x < 0.0 {
                f64::from(alpha.0) * x
            } else {
                x
            }
        }
        UnaryKind::Clip { lo, hi } => clip(x, f64::from(lo.0), f64::from(hi.0)),
        UnaryKind::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        UnaryKind::HardSigmoid { alpha, beta } => clip(f64::from(alpha.0) * x + f64::from(beta.0), 0.0, 1.0),
        UnaryKind::HardSwish => x * clip(x / 6.0 + 0.5, 0.0, 1.0),
        UnaryKind::Tanh => x.tanh(),
        UnaryKind::Elu { alpha } => {
            if x < 0.0 {
                f64::from(alpha.0) * x.exp_m1()
            } else {
                x
            }
        }
        UnaryKind::Exp => x.exp(),
        UnaryKind::Log => x.ln(),
        UnaryKind::Sqrt => x.sqrt(),
        UnaryKind::Neg => -x,
        UnaryKind::Abs => x.abs(),
        UnaryKind::Reciprocal => 1.0 / x,
        UnaryKind::Affine { scale, shift } => f64::from(scale.0) * x + f64::from(shift.0),
        UnaryKind::PowConst { exponent } => x.powf(f64::from(exponent.0)),
    }
}

/// The derivative, from the operand [`UnaryKind::saves`] names. Where the function has a
/// kink it is PyTorch's: 0 at 0 for ReLU and Abs, the left slope for LeakyRelu and ELU,
/// the inner slope on both bounds of the clipping functions.
fn derivative(kind: UnaryKind, s: f64) -> f64 {
    let within = |t: f64, lo: f64, hi: f64| if (lo..=hi).contains(&t) { 1.0 } else { 0.0 };
    match kind {
        UnaryKind::Relu => f64::from(u8::from(s > 0.0)),
        UnaryKind::LeakyRelu { alpha } => {
            if s > 0.0 {
                1.0
            } else {
                f64::from(alpha.0)
            }
        }
        UnaryKind::Clip { lo, hi } => within(s, f64::from(lo.0), f64::from(hi.0)),
        UnaryKind::Sigmoid => s * (1.0 - s),
        UnaryKind::HardSigmoid { alpha, beta } => {
            let alpha = f64::from(alpha.0);
            alpha * within(alpha * s + f64::from(beta.0), 0.0, 1.0)
        }
        UnaryKind::HardSwish => {
            let t = s / 6.0 + 0.5;
            clip(t, 0.0, 1.0) + s / 6.0 * within(t, 0.0, 1.0)
        }
        UnaryKind::Tanh => 1.0 - s * s,
        UnaryKind::Elu { alpha } => {
            if s > 0.0 {
                1.0
            } else {
                f64::from(alpha.0) * s.exp()
            }
        }
        UnaryKind::Exp => s,
        UnaryKind::Log => 1.0 / s,
        UnaryKind::Sqrt => 0.5 / s,
        UnaryKind::Neg => -1.0,
        UnaryKind::Abs => {
            if s == 0.0 {
                0.0
            } else {
                s.signum()
            }
        }
        UnaryKind::Reciprocal => -s * s,
        UnaryKind::Affine { scale, .. } => f64::from(scale.0),
        UnaryKind::PowConst { exponent } => {
            let e = f64::from(exponent.0);
            if e == 0.0 { 0.0 } else { e * s.powf(e - 1.0) }
        }
    }
}

fn map<T: bytemuck::Pod>(x: TensorRef<'_>, y: &mut TensorMut<'_>, f: impl Fn(T) -> T) {
    let x: &[T] = bytemuck::cast_slice(x.bytes);
    let y: &mut [T] = bytemuck::cast_slice_mut(y.bytes);
    for (y, &x) in y.iter_mut().zip(x) {
        *y = f(x);
    }
}

pub(super) fn unary(
    op: &Op,
    kind: UnaryKind,
    x: TensorRef<'_>,
    y: &mut TensorMut<'_>,
) -> Result<(), KernelError> {
    let negate = kind == UnaryKind::Neg;
    match x.ty.dtype {
        DType::F32 => map(x, y, |x: f32| function(kind, f64::from(x)) as f32),
        DType::F64 => map(x, y, |x: f64| function(kind, x)),
        DType::I32 if negate => map(x, y, i32::wrapping_neg),
        DType::I32 => map(x, y, i32::wrapping_abs),
        DType::I64 if negate => map(x, y, i64::wrapping_neg),
        DType::I64 => map(x, y, i64::wrapping_abs),
        other => return Err(unsupported(op, other)),
    }
    Ok(())
}

pub(super) fn unary_grad<E: Element>(kind: UnaryKind, operands: &[TensorRef<'_>], dx: &mut TensorMut<'_>) {
    let operand = get::<E>(operands[0]).iter().zip(get::<E>(operands[1]));
    for (dx, (&dy, &s)) in put::<E>(dx).iter_mut().zip(operand) {
        let slope = derivative(kind, s.wide());
        // A closed gate stops infinities too.
        *dx = E::round(if slope == 0.0 { 0.0 } else { dy.wide() * slope });
    }
}

fn real(kind: BinaryKind, a: f64, b: f64) -> f64 {
    match kind {
        BinaryKind::Add => a + b,
        BinaryKind::Sub => a - b,
        BinaryKind::Mul => a * b,
        BinaryKind::Div => a / b,
        BinaryKind::Pow => a.powf(b),
        // NaN in either operand gives NaN, unlike `f64::max`.
        BinaryKind::Max => {
            if a > b || a.is_nan() {
                a
            } else {
                b
            }
        }
        BinaryKind::Min => {
            if a < b || a.is_nan() {
                a
            } else {
                b
            }
        }
        BinaryKind::PRelu => {
            if a < 0.0 {
                a * b
            } else {
                a
            }
        }
        BinaryKind::Gate => {
            if b > 0.0 {
                a
            } else {
                0.0
            }
        }
    }
}

/// Integer arithmetic wraps; `None` for a division by zero or a negative exponent.
fn integer(kind: BinaryKind, a: i64, b: i64) -> Option<i64> {
    Some(match kind {
        BinaryKind::Add => a.wrapping_add(b),
        BinaryKind::Sub => a.wrapping_sub(b),
        BinaryKind::Mul => a.wrapping_mul(b),
        BinaryKind::Div if b == 0 => return None,
        BinaryKind::Div => a.wrapping_div(b),
        BinaryKind::Pow => a.wrapping_pow(u32::try_from(b).ok()?),
        BinaryKind::Max => a.max(b),
        BinaryKind::Min => a.min(b),
        BinaryKind::PRelu if a < 0 => a.wrapping_mul(b),
        BinaryKind::PRelu => a,
        BinaryKind::Gate if b > 0 => a,
        BinaryKind::Gate => 0,
    })
}

fn map2<T: bytemuck::Pod>(
    op: &Op,
    operands: &[TensorRef<'_>],
    y: &mut TensorMut<'_>,
    f: impl Fn(T, T) -> Option<T>,
) -> Result<(), KernelError> {
    let out = dims(y.ty);
    let strides = [0, 1].map(|i| broadcast(&dims(operands[i].ty), out.len()));
    let [a, b] = [0, 1].map(|i| bytemuck::cast_slice::<u8, T>(operands[i].bytes));
    let mut y = bytemuck::cast_slice_mut::<u8, T>(y.bytes).iter_mut();
    let mut bad = false;
    rows(&out, [&strides[0], &strides[1]], [0, 0], |at, n, steps| {
        for (k, y) in (0..n as isize).zip(&mut y) {
            let [i, j] = [0, 1].map(|i| (at[i] + k * steps[i]) as usize);
            match f(a[i], b[j]) {
                Some(value) => *y = value,
                None => bad = true,
            }
        }
    });
    if bad {
        let why = "an integer division by zero or a negative integer exponent";
        return Err(KernelError::BadData(format!("{op}: {why}")));
    }
    Ok(())
}

pub(super) fn binary(
    op: &Op,
    kind: BinaryKind,
    operands: &[TensorRef<'_>],
    y: &mut TensorMut<'_>,
) -> Result<(), KernelError> {
    match y.ty.dtype {
        DType::F32 => {
            map2(op, operands, y, |a: f32, b: f32| Some(real(kind, f64::from(a), f64::from(b)) as f32))
        }
        DType::F64 => map2(op, operands, y, |a: f64, b: f64| Some(real(kind, a, b))),
        DType::I32 => map2(op, operands, y, |a: i32, b: i32| {
            integer(kind, i64::from(a), i64::from(b)).map(|v| v as i32)
        }),
        DType::I64 => map2(op, operands, y, |a: i64, b: i64| integer(kind, a, b)),
        other => Err(unsupported(op, other)),
    }
}

/// Output `i` of the splitmix64 generator started at `seed` (Steele, Lea and Flood, OOPSLA 2014).
fn mix(seed: u64, i: u64) -> u64 {
    let z = seed.wrapping_add(i.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// `x / (1 - ratio)` where `U(mix(seed, step), first + i) >= ratio`, else 0.
pub(super) fn dropout<E: Element>(
    ratio: f32,
    [seed, first]: [u64; 2],
    operands: &[TensorRef<'_>],
    y: &mut TensorMut<'_>,
) {
    let stream = mix(seed, operands[1].i64()[0] as u64);
    let ratio = f64::from(ratio);
    for (i, (y, &x)) in put::<E>(y).iter_mut().zip(get::<E>(operands[0])).enumerate() {
        let u = (mix(stream, first.wrapping_add(i as u64)) >> 40) as f64 / f64::from(1 << 24);
        *y = E::round(if u >= ratio { x.wide() / (1.0 - ratio) } else { 0.0 });
    }
}

/// Stochastic gradient descent with momentum; the update uses the rounded velocity.
pub(super) fn sgd<E: Element>(operands: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    let hyper = get::<E>(operands[operands.len() - 1]);
    let [lr, momentum, decay] = [0, 1, 2].map(|i| hyper[i].wide());
    for (operands, outputs) in Op::updates(operands).zip(outputs.chunks_exact_mut(2)) {
        let [w, v, g] = operands.map(|x| get::<E>(x));
        for i in 0..w.len() {
            let step = g[i].wide() + decay * w[i].wide();
            let velocity = E::round(momentum * v[i].wide() + step);
            put::<E>(&mut outputs[0])[i] = E::round(w[i].wide() - lr * velocity.wide());
            put::<E>(&mut outputs[1])[i] = velocity;
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn mix_is_splitmix64() {
        assert_eq!(super::mix(0, 0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(super::mix(0, 2), 0x06c4_5d18_8009_454f);
    }
}
