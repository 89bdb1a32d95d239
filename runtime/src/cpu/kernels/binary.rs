//! Elementwise functions of two tensors with numpy broadcasting.

use super::args::{Call, shape};
use super::elementwise::Map2;
use super::layout::{Axes, Axis, broadcast_strides, collapse, offsets, strides};
use super::par::{CHUNK, simd_fn};
use vdnn_ir::kernel::{KernelError, TensorMut, TensorRef};
use vdnn_ir::op::BinaryKind;

/// An operand along one contiguous run of the output.
#[derive(Clone, Copy)]
enum Run<'a> {
    /// The output's own bytes.
    InPlace,
    /// As many elements as the run.
    Slice(&'a [f32]),
    /// One element for all.
    Scalar(f32),
}

/// Both operands (`None` in place) and the walk over the output.
struct Walk<'a> {
    a: Option<&'a [f32]>,
    b: Option<&'a [f32]>,
    axes: Axes<2>,
}

/// [`vdnn_ir::Op::Binary`].
pub(super) fn binary(
    call: &Call<'_>,
    kind: BinaryKind,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let out = call.one(outputs)?;
    let dims = shape(out.ty);
    let own = strides(&dims);
    let steps =
        |t: Option<TensorRef<'_>>| t.map_or_else(|| own.clone(), |t| broadcast_strides(&shape(t.ty), &dims));
    let (sa, sb) = (steps(call.operand(0)?), steps(call.operand(1)?));
    let axes =
        collapse((0..dims.len()).map(|i| Axis { extent: dims[i], steps: [sa[i] as isize, sb[i] as isize] }));
    let walk = Walk { a: call.f32_or_in_place(0)?, b: call.f32_or_in_place(1)?, axes };
    let y = call.f32_out(out)?;
    with_binary(kind, Walked(&walk, call, y));
    Ok(())
}

/// The walk with the loop over its runs.
struct Walked<'w, 'a>(&'w Walk<'a>, &'w Call<'w>, &'w mut [f32]);

impl Map2 for Walked<'_, '_> {
    fn by<F: Fn(f32, f32) -> f32 + Copy + Send + Sync>(self, weight: usize, f: F) {
        self.0.apply(self.1, self.2, weight, f);
    }
}

/// Hands a function to a loop.
pub(super) fn with_binary<M: Map2>(kind: BinaryKind, m: M) {
    match kind {
        BinaryKind::Add => m.by(1, |a, b| a + b),
        BinaryKind::Sub => m.by(1, |a, b| a - b),
        BinaryKind::Mul => m.by(1, |a, b| a * b),
        BinaryKind::Div => m.by(1, |a, b| a / b),
        BinaryKind::Pow => m.by(16, f32::powf),
        // NaN in either operand gives NaN, unlike `f32::max`.
        BinaryKind::Max => m.by(1, |a, b| if a > b || a.is_nan() { a } else { b }),
        BinaryKind::Min => m.by(1, |a, b| if a < b || a.is_nan() { a } else { b }),
        BinaryKind::PRelu => m.by(1, |a, b| if a < 0.0 { a * b } else { a }),
        BinaryKind::Gate => m.by(1, |a, b| if b > 0.0 { a } else { 0.0 }),
    }
}

impl Walk<'_> {
    fn apply(
        &self,
        call: &Call<'_>,
        y: &mut [f32],
        weight: usize,
        f: impl Fn(f32, f32) -> f32 + Copy + Send + Sync,
    ) {
        if y.is_empty() {
            return;
        }
        // The last axis is the run; the others pick it. No axis: a single element.
        let whole = Axis { extent: 1, steps: [1, 1] };
        let (last, outer) = self.axes.split_last().unwrap_or((&whole, &[]));
        // A short run costs a walk step each.
        let weight = weight + 16 / last.extent.max(1);
        call.par.chunks(y, CHUNK, weight, |chunk, y| {
            let (mut row, mut col) = (chunk * CHUNK / last.extent, chunk * CHUNK % last.extent);
            let mut rest = y;
            while !rest.is_empty() {
                let n = rest.len().min(last.extent - col);
                let (run, tail) = std::mem::take(&mut rest).split_at_mut(n);
                let at = offsets(outer, row);
                let a = operand(self.a, at[0], last.steps[0], col, n);
                let b = operand(self.b, at[1], last.steps[1], col, n);
                run_of(run, a, b, f);
                rest = tail;
                (row, col) = (row + 1, 0);
            }
        });
    }
}

fn operand(x: Option<&[f32]>, at: isize, step: isize, col: usize, n: usize) -> Run<'_> {
    let at = at as usize;
    match (x, step) {
        (None, _) => Run::InPlace,
        (Some(x), 0) => Run::Scalar(x[at]),
        // After collapsing, a step along the last axis is 0 or 1.
        (Some(x), _) => Run::Slice(&x[at + col..][..n]),
    }
}

simd_fn! {
    /// `y[i] = f(a[i], b[i])`.
    fn run_of<F: Fn(f32, f32) -> f32>(y: &mut [f32], a: Run<'_>, b: Run<'_>, f: F) {
        let y = y.iter_mut();
        match (a, b) {
            (Run::InPlace, Run::InPlace) => y.for_each(|y| *y = f(*y, *y)),
            (Run::InPlace, Run::Slice(b)) => y.zip(b).for_each(|(y, &b)| *y = f(*y, b)),
            (Run::InPlace, Run::Scalar(b)) => y.for_each(|y| *y = f(*y, b)),
            (Run::Slice(a), Run::InPlace) => y.zip(a).for_each(|(y, &a)| *y = f(a, *y)),
            (Run::Slice(a), Run::Slice(b)) => y.zip(a).zip(b).for_each(|((y, &a), &b)| *y = f(a, b)),
            (Run::Slice(a), Run::Scalar(b)) => y.zip(a).for_each(|(y, &a)| *y = f(a, b)),
            (Run::Scalar(a), Run::InPlace) => y.for_each(|y| *y = f(a, *y)),
            (Run::Scalar(a), Run::Slice(b)) => y.zip(b).for_each(|(y, &b)| *y = f(a, b)),
            (Run::Scalar(a), Run::Scalar(b)) => y.for_each(|y| *y = f(a, b)),
        }
    }
}
