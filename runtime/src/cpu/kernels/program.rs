//! Elementwise programs, block by block: what lies between two steps stays in the first-level cache.

use super::args::{Call, shape};
use super::binary::with_binary;
use super::elementwise::{Map, Map2, with_unary, with_unary_grad};
use super::layout::{Axes, Axis, broadcast_strides, collapse, offsets, strides};
use super::loops;
use super::par::CHUNK;
use vdnn_ir::kernel::{KernelError, Operand, TensorMut};
use vdnn_ir::op::{ElementwiseAttrs, ElementwiseStep, StepOperand};
use vdnn_ir::{DType, Layout, TensorType};

/// Elements of a block. With the results of 16 steps and 6 operands it fills 22 KiB.
const BLOCK: usize = 256;

/// True for operands this kernel runs on: row-major f32.
pub(super) fn takes(inputs: &[Operand<'_>], outputs: &[TensorMut<'_>]) -> bool {
    let plain = |ty: &TensorType| ty.dtype == DType::F32 && ty.layout == Layout::RowMajor;
    outputs.iter().all(|y| plain(y.ty))
        && inputs.iter().all(|x| !matches!(x, Operand::Ref(t) if !plain(t.ty)))
}

/// How an operand is read.
enum Read<'a> {
    /// It lies in the result's bytes.
    InPlace,
    /// It has the result's shape.
    Along(&'a [f32]),
    /// By a walk over the result's positions.
    Walk(&'a [f32], Axes<1>),
}

/// [`vdnn_ir::Op::Elementwise`].
pub(super) fn run(
    call: &Call<'_>,
    program: &ElementwiseAttrs,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let out = call.one(outputs)?;
    let dims = shape(out.ty);
    let own = strides(&dims);
    let mut reads = Vec::with_capacity(call.arity());
    for i in 0..call.arity() {
        let read = match (call.operand(i)?, call.f32_or_in_place(i)?) {
            (Some(t), Some(x)) => {
                let steps = broadcast_strides(&shape(t.ty), &dims);
                if x.len() == out.ty.elements() as usize && steps == own {
                    Read::Along(x)
                } else {
                    let axis = |d: usize| Axis { extent: dims[d], steps: [steps[d] as isize] };
                    Read::Walk(x, collapse((0..dims.len()).map(axis)))
                }
            }
            _ => Read::InPlace,
        };
        reads.push(read);
    }
    for (n, step) in program.steps.iter().enumerate() {
        let known = |o: &StepOperand| match *o {
            StepOperand::X(i) => usize::from(i) < reads.len(),
            StepOperand::T(i) => usize::from(i) < n,
        };
        if !step.operands().iter().all(known) {
            return Err(call.unsupported(format!("step {n} reads what is not there")));
        }
    }
    let y = call.f32_out(out)?;
    let mut weight = 0;
    for step in &program.steps {
        apply(step, Weight(&mut weight));
    }
    let weight = weight + reads.len();
    call.par.chunks(y, CHUNK, weight, |chunk, y| {
        let mut block = Block {
            operands: vec![[0.0; BLOCK]; reads.len()],
            made: vec![[0.0; BLOCK]; program.steps.len().saturating_sub(1)],
        };
        for (i, y) in y.chunks_mut(BLOCK).enumerate() {
            block.run(program, &reads, chunk * CHUNK + i * BLOCK, y);
        }
    });
    Ok(())
}

/// Operands and results of steps of one block of positions.
struct Block {
    operands: Vec<[f32; BLOCK]>,
    made: Vec<[f32; BLOCK]>,
}

impl Block {
    /// Computes the elements of `y`, the first of which is number `at` of the result.
    fn run(&mut self, program: &ElementwiseAttrs, reads: &[Read<'_>], at: usize, y: &mut [f32]) {
        let n = y.len();
        for (buffer, read) in self.operands.iter_mut().zip(reads) {
            match read {
                Read::Along(_) => {}
                Read::InPlace => buffer[..n].copy_from_slice(y),
                Read::Walk(x, axes) => gather(x, axes, at, &mut buffer[..n]),
            }
        }
        for (i, step) in program.steps.iter().enumerate() {
            let stored = i.min(self.made.len());
            let (before, rest) = self.made.split_at_mut(stored);
            let of = |operand: StepOperand| match operand {
                StepOperand::X(i) => match reads[usize::from(i)] {
                    Read::Along(x) => &x[at..][..n],
                    _ => &self.operands[usize::from(i)][..n],
                },
                StepOperand::T(i) => &before[usize::from(i)][..n],
            };
            // The last step has no buffer of its own.
            let to = match rest.first_mut() {
                Some(buffer) => &mut buffer[..n],
                None => &mut *y,
            };
            let operands = step.operands();
            match *operands.as_slice() {
                [x] => apply(step, Slices { a: of(x), b: &[], y: to }),
                [a, b] => apply(step, Slices { a: of(a), b: of(b), y: to }),
                _ => {}
            }
        }
    }
}

/// The elements of a broadcast operand at the positions from `at` on.
fn gather(x: &[f32], axes: &Axes<1>, at: usize, to: &mut [f32]) {
    let whole = Axis { extent: 1, steps: [0] };
    let (last, outer) = axes.split_last().unwrap_or((&whole, &[]));
    let (mut row, mut col) = (at / last.extent, at % last.extent);
    let mut rest = to;
    while !rest.is_empty() {
        // Without axes there is one element only.
        let n = rest.len().min(last.extent - col);
        let (run, tail) = std::mem::take(&mut rest).split_at_mut(n);
        let from = offsets(outer, row)[0] as usize;
        match last.steps[0] {
            0 => run.fill(x[from]),
            // After collapsing, a step along the last axis is 0 or 1.
            _ => run.copy_from_slice(&x[from + col..][..n]),
        }
        rest = tail;
        (row, col) = (row + 1, 0);
    }
}

/// Hands a step's function to a loop.
fn apply<M: Map + Map2>(step: &ElementwiseStep, m: M) {
    match *step {
        ElementwiseStep::Unary(kind, _) => with_unary(kind, m),
        ElementwiseStep::UnaryGrad(kind, ..) => with_unary_grad(kind, m),
        ElementwiseStep::Binary(kind, ..) => with_binary(kind, m),
    }
}

/// Adds up the work of an element.
struct Weight<'a>(&'a mut usize);

impl Map for Weight<'_> {
    fn by<F: Fn(f32) -> f32 + Copy + Send + Sync>(self, weight: usize, _: F) {
        *self.0 += weight;
    }
}

impl Map2 for Weight<'_> {
    fn by<F: Fn(f32, f32) -> f32 + Copy + Send + Sync>(self, weight: usize, _: F) {
        *self.0 += weight;
    }
}

/// `y[i] = f(a[i])` or `f(a[i], b[i])`.
struct Slices<'a> {
    a: &'a [f32],
    b: &'a [f32],
    y: &'a mut [f32],
}

impl Map for Slices<'_> {
    fn by<F: Fn(f32) -> f32 + Copy + Send + Sync>(self, _: usize, f: F) {
        loops::map(self.a, self.y, f);
    }
}

impl Map2 for Slices<'_> {
    fn by<F: Fn(f32, f32) -> f32 + Copy + Send + Sync>(self, _: usize, f: F) {
        loops::map2(self.a, self.b, self.y, f);
    }
}
