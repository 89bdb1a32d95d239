//! Reductions and softmax.

use super::element::{Element, get, put};
use super::walk::{row_major, rows};
use super::{around, dims, unsupported};
use vdnn_ir::DType;
use vdnn_ir::kernel::{KernelError, TensorMut, TensorRef};
use vdnn_ir::op::{Op, ReduceKind};

/// Folds every element of x into the accumulator of its output.
fn fold<T: Copy + bytemuck::Pod, A: Copy>(
    axes: &[u64],
    x: TensorRef<'_>,
    count: usize,
    start: A,
    f: impl Fn(A, T) -> A,
) -> Vec<A> {
    let own = dims(x.ty);
    let reduced = |i: usize| axes.contains(&(i as u64));
    // Walking the output with stride 0 along reduced axes.
    let kept: Vec<usize> = own.iter().enumerate().map(|(i, &d)| if reduced(i) { 1 } else { d }).collect();
    let mut target = row_major(&kept);
    for (i, s) in target.iter_mut().enumerate() {
        if reduced(i) {
            *s = 0;
        }
    }
    let mut acc = vec![start; count];
    let x: &[T] = bytemuck::cast_slice(x.bytes);
    rows(&own, [&row_major(&own), &target], [0, 0], |at, n, steps| {
        for k in 0..n as isize {
            let a = &mut acc[(at[1] + k * steps[1]) as usize];
            *a = f(*a, x[(at[0] + k * steps[0]) as usize]);
        }
    });
    acc
}

fn finish<T: bytemuck::Pod, A: Copy>(y: &mut TensorMut<'_>, acc: &[A], f: impl Fn(A) -> T) {
    for (y, &a) in bytemuck::cast_slice_mut::<u8, T>(y.bytes).iter_mut().zip(acc) {
        *y = f(a);
    }
}

fn real_fold(kind: ReduceKind) -> (f64, fn(f64, f64) -> f64) {
    match kind {
        ReduceKind::Sum | ReduceKind::Mean => (0.0, |a, x| a + x),
        // NaN stays.
        ReduceKind::Max => (f64::NEG_INFINITY, |a, x| if a > x || a.is_nan() { a } else { x }),
    }
}

pub(super) fn reduce(
    op: &Op,
    kind: ReduceKind,
    axes: &[u64],
    x: TensorRef<'_>,
    y: &mut TensorMut<'_>,
) -> Result<(), KernelError> {
    let outputs = y.ty.elements() as usize;
    let per_output: u64 = axes.iter().map(|&a| x.ty.dims[a as usize]).product();
    let divisor = if kind == ReduceKind::Mean { per_output } else { 1 };
    let (start, step) = real_fold(kind);
    match x.ty.dtype {
        DType::F32 => {
            let acc = fold(axes, x, outputs, start, |a, x: f32| step(a, f64::from(x)));
            finish(y, &acc, |a| (a / divisor as f64) as f32);
        }
        DType::F64 => {
            let acc = fold(axes, x, outputs, start, |a, x: f64| step(a, x));
            finish(y, &acc, |a| a / divisor as f64);
        }
        DType::I32 | DType::I64 => {
            if per_output == 0 && kind != ReduceKind::Sum && outputs > 0 {
                return Err(KernelError::BadData(format!("{op}: no integer to take from nothing")));
            }
            let step = |a: i64, x: i64| if kind == ReduceKind::Max { a.max(x) } else { a.wrapping_add(x) };
            let start = if kind == ReduceKind::Max { i64::MIN } else { 0 };
            let divisor = divisor.max(1) as i64;
            if x.ty.dtype == DType::I32 {
                let acc = fold(axes, x, outputs, start, |a, x: i32| step(a, i64::from(x)));
                finish(y, &acc, |a| (a / divisor) as i32);
            } else {
                let acc = fold(axes, x, outputs, start, step);
                finish(y, &acc, |a| a / divisor);
            }
        }
        other => return Err(unsupported(op, other)),
    }
    Ok(())
}

/// Calls `f` with the indices of each line along an axis.
fn lines([outer, n, inner]: [usize; 3], mut f: impl FnMut(&dyn Fn(usize) -> usize, usize)) {
    for o in 0..outer {
        for i in 0..inner {
            f(&|k| (o * n + k) * inner + i, n);
        }
    }
}

/// `exp(x) / sum of exp(x)`, or its logarithm, shifted by the maximum against overflow.
pub(super) fn softmax<E: Element>(axis: u64, x: TensorRef<'_>, y: &mut TensorMut<'_>, log: bool) {
    let shape = around(x.ty, axis as usize);
    let (x, y) = (get::<E>(x), put::<E>(y));
    lines(shape, |at, n| {
        let top = (0..n).map(|k| x[at(k)].wide()).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = (0..n).map(|k| (x[at(k)].wide() - top).exp()).sum();
        for k in 0..n {
            let shifted = x[at(k)].wide() - top;
            y[at(k)] = E::round(if log { shifted - sum.ln() } else { shifted.exp() / sum });
        }
    });
}

/// `dx = y * (dy - sum of dy*y)`.
pub(super) fn softmax_grad<E: Element>(axis: u64, operands: &[TensorRef<'_>], dx: &mut TensorMut<'_>) {
    let (dy, y) = (get::<E>(operands[0]), get::<E>(operands[1]));
    let dx = put::<E>(dx);
    lines(around(operands[0].ty, axis as usize), |at, n| {
        let sum: f64 = (0..n).map(|k| dy[at(k)].wide() * y[at(k)].wide()).sum();
        for k in 0..n {
            dx[at(k)] = E::round(y[at(k)].wide() * (dy[at(k)].wide() - sum));
        }
    });
}

/// `dx = dy - exp(y) * sum of dy`.
pub(super) fn log_softmax_grad<E: Element>(axis: u64, operands: &[TensorRef<'_>], dx: &mut TensorMut<'_>) {
    let (dy, y) = (get::<E>(operands[0]), get::<E>(operands[1]));
    let dx = put::<E>(dx);
    lines(around(operands[0].ty, axis as usize), |at, n| {
        let sum: f64 = (0..n).map(|k| dy[at(k)].wide()).sum();
        for k in 0..n {
            dx[at(k)] = E::round(dy[at(k)].wide() - y[at(k)].wide().exp() * sum);
        }
    });
}
