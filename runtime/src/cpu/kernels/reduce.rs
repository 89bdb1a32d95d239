//! Sums, means and maxima over axes.

use super::args::{Call, shape};
use super::layout::{Axes, Axis, collapse, offsets, strides};
use super::loops;
use vdnn_ir::kernel::{KernelError, TensorMut};
use vdnn_ir::op::ReduceKind;

/// Output elements per task when the innermost axis is kept.
const BLOCK: usize = 256;

/// [`vdnn_ir::Op::Reduce`]; sums and means accumulate in f64.
pub(super) fn reduce(
    call: &Call<'_>,
    kind: ReduceKind,
    axes: &[u64],
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let dims = shape(call.input(0)?.ty);
    let x = call.f32(0)?;
    let y = call.f32_out(call.one(outputs)?)?;
    let own = strides(&dims);
    let is_reduced = |i: usize| axes.contains(&(i as u64));
    let pick = |reduced: bool| {
        collapse(
            (0..dims.len())
                .filter(|&i| is_reduced(i) == reduced)
                .map(|i| Axis { extent: dims[i], steps: [own[i] as isize] }),
        )
    };
    let plan = Plan { x, kept: pick(false), reduced: pick(true) };
    match kind {
        ReduceKind::Sum => plan.sum(call, y, 1.0),
        ReduceKind::Mean => plan.sum(call, y, plan.count() as f64),
        ReduceKind::Max => plan.max(call, y),
    }
    Ok(())
}

/// The walk over the outputs and, for each, the walk over what it reduces.
struct Plan<'a> {
    x: &'a [f32],
    kept: Axes<1>,
    reduced: Axes<1>,
}

impl Plan<'_> {
    /// Elements behind each output.
    fn count(&self) -> usize {
        self.reduced.iter().map(|a| a.extent).product()
    }

    /// The extent of the innermost reduced axis if its elements are contiguous, else 1, and
    /// the axes outside it.
    fn rows(&self) -> (usize, &[Axis<1>]) {
        match self.reduced.split_last() {
            Some((last, outer)) if last.steps == [1] => (last.extent, outer),
            _ => (1, &self.reduced),
        }
    }

    fn sum(&self, call: &Call<'_>, y: &mut [f32], divisor: f64) {
        let count = self.count();
        let (row, outer) = self.rows();
        let rows = if count == 0 { 0 } else { count / row };
        if row > 1 || self.kept.last().is_none_or(|a| a.steps != [1]) {
            let block = (4096 / count.max(1)).max(1);
            call.par.chunks(y, block, count, |i, y| {
                for (j, y) in y.iter_mut().enumerate() {
                    let base = offsets(&self.kept, i * block + j)[0];
                    let mut sum = 0f64;
                    for r in 0..rows {
                        let at = (base + offsets(outer, r)[0]) as usize;
                        sum += loops::sum_by(&self.x[at..at + row], f64::from);
                    }
                    *y = (sum / divisor) as f32;
                }
            });
        } else {
            // Neighbouring outputs lie side by side: add whole runs of them.
            self.kept_runs(call, y, |at, y| {
                let mut sums = [0f64; BLOCK];
                let sums = &mut sums[..y.len()];
                for r in 0..count {
                    let at = (at + offsets(&self.reduced, r)[0]) as usize;
                    let x = &self.x[at..at + y.len()];
                    loops::accumulate(sums, x);
                }
                y.iter_mut().zip(sums).for_each(|(y, s)| *y = (*s / divisor) as f32);
            });
        }
    }

    fn max(&self, call: &Call<'_>, y: &mut [f32]) {
        let count = self.count();
        let (row, outer) = self.rows();
        let rows = if count == 0 { 0 } else { count / row };
        if row > 1 || self.kept.last().is_none_or(|a| a.steps != [1]) {
            let block = (4096 / count.max(1)).max(1);
            call.par.chunks(y, block, count, |i, y| {
                for (j, y) in y.iter_mut().enumerate() {
                    let base = offsets(&self.kept, i * block + j)[0];
                    let mut max = f32::NEG_INFINITY;
                    for r in 0..rows {
                        let at = (base + offsets(outer, r)[0]) as usize;
                        max = self.x[at..at + row].iter().fold(max, |m, &x| larger(m, x));
                    }
                    *y = max;
                }
            });
        } else {
            self.kept_runs(call, y, |at, y| {
                y.fill(f32::NEG_INFINITY);
                for r in 0..count {
                    let at = (at + offsets(&self.reduced, r)[0]) as usize;
                    let x = &self.x[at..at + y.len()];
                    loops::map2_in_place(x, y, larger);
                }
            });
        }
    }

    /// Calls `f` with the input offset of, and the space for, runs of at most [`BLOCK`]
    /// outputs that are neighbours in the input too.
    fn kept_runs(&self, call: &Call<'_>, y: &mut [f32], f: impl Fn(isize, &mut [f32]) + Send + Sync) {
        let Some((last, outer)) = self.kept.split_last() else { return };
        let n = last.extent;
        call.par.chunks(y, BLOCK, self.count(), |i, y| {
            let (mut row, mut col) = (i * BLOCK / n, i * BLOCK % n);
            let mut rest = y;
            while !rest.is_empty() {
                let take = rest.len().min(n - col);
                let (run, tail) = std::mem::take(&mut rest).split_at_mut(take);
                f(offsets(outer, row)[0] + col as isize, run);
                rest = tail;
                (row, col) = (row + 1, 0);
            }
        });
    }
}

/// The larger of two; NaN wins.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}
