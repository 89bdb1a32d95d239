//! Gradients of convolutions with respect to the input and to the weights.

use super::args::{Call, shape};
use super::conv::{self, Filter, PANEL};
use super::depthwise;
use super::gemm::{MACS_PER_VISIT, Mat, product_into};
use super::geometry::Conv;
use super::im2col::{col2im, im2col};
#[cfg(target_arch = "x86_64")]
use super::implicit;
use super::par::{Disjoint, Par};
#[cfg(target_arch = "x86_64")]
use super::phase_grad;
use super::scratch;
use std::ops::Range;
use vdnn_ir::kernel::{KernelError, TensorMut};
use vdnn_ir::op::ConvAttrs;

/// [`vdnn_ir::Op::ConvDgrad`].
pub(super) fn dgrad(
    call: &Call<'_>,
    a: &ConvAttrs,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let out = call.one(outputs)?;
    let g = Conv::new(call, a, &shape(out.ty), &shape(call.input(0)?.ty))?;
    let (dy, w) = (call.f32(0)?, call.f32(1)?);
    let dx = call.f32_out(out)?;
    if dx.is_empty() {
        return Ok(());
    }
    if g.groups > 1 && g.c_group() == 1 {
        depthwise::dgrad(call.par, &g, dy, w, dx);
        return Ok(());
    }
    #[cfg(target_arch = "x86_64")]
    if phase_grad::applies(call.par, &g) {
        phase_grad::input_grad(call.par, &g, dy, w, dx);
        return Ok(());
    }
    if let (Some(t), true) = (g.transposed(), g.is_pointwise()) {
        // The weights serve as they are.
        conv::run(call.par, &t, dy, Filter::Columns(w), None, dx);
        return Ok(());
    }
    // Unfolding dy moves m * inputs elements per tap; folding dx back moves c * outputs,
    // twice.
    let unfold = 2 * g.c * g.outputs() >= g.m * g.inputs();
    scratch::with(w.len(), |wt| match g.transposed().filter(|_| unfold) {
        Some(t) => {
            transpose_weights(call.par, &g, w, wt, true);
            conv::run(call.par, &t, dy, Filter::Rows(wt), None, dx);
        }
        None => {
            transpose_weights(call.par, &g, w, wt, false);
            fold_back(call.par, &g, dy, wt, dx);
        }
    });
    Ok(())
}

/// Weights `[M, C/g, taps]` as `[C, taps, M/g]`, or with `flip` as `[C, M/g, taps]` with the
/// taps reversed: the weights of the convolution that maps dy to dx.
fn transpose_weights(par: &Par, g: &Conv, w: &[f32], wt: &mut [f32], flip: bool) {
    /// Input channels per task: what is read of each output channel is contiguous.
    const BLOCK: usize = 16;
    let (taps, mg, cg) = (g.taps(), g.m_group(), g.c_group());
    let row = mg * taps;
    for (group, wt) in wt.chunks_exact_mut(cg * row).enumerate() {
        let w = &w[group * cg * row..][..cg * row];
        par.chunks(wt, BLOCK * row, 2, |block, wt| {
            let count = wt.len() / row;
            for m in 0..mg {
                let w = &w[(m * cg + block * BLOCK) * taps..][..count * taps];
                for (w, wt) in w.chunks_exact(taps).zip(wt.chunks_exact_mut(row)) {
                    if flip {
                        let wt = &mut wt[m * taps..][..taps];
                        wt.iter_mut().rev().zip(w).for_each(|(t, &w)| *t = w);
                    } else {
                        wt[m..].iter_mut().step_by(mg).zip(w).for_each(|(t, &w)| *t = w);
                    }
                }
            }
        });
    }
}

/// Strided dx: the unfolded gradient `W^T dy` of some channels, folded back (col2im).
fn fold_back(par: &Par, g: &Conv, dy: &[f32], wt: &[f32], dx: &mut [f32]) {
    let (plane, taps, mg) = (g.outputs(), g.taps(), g.m_group());
    let channels = (PANEL / (taps * plane).max(1)).clamp(1, g.c_group());
    let blocks = g.c_group().div_ceil(channels);
    let dx = Disjoint::new(dx);
    par.run(g.images * g.groups * blocks, g.macs() / MACS_PER_VISIT, |i| {
        let (i, block) = (i / blocks, i % blocks);
        let (n, group) = (i / g.groups, i % g.groups);
        let first = group * g.c_group() + block * channels;
        let count = channels.min(g.c_group() - block * channels);
        let range = (n * g.c + first) * g.inputs()..(n * g.c + first + count) * g.inputs();
        // SAFETY: this task alone writes these channels of this image.
        #[expect(unsafe_code, reason = "blocks of channels need not divide the channels")]
        let dx = unsafe { dx.get(range) };
        dx.fill(0.0);
        let dy = &dy[(n * g.m + group * mg) * plane..][..mg * plane];
        scratch::with(count * taps * plane, |col| {
            let w = Mat::new(&wt[first * taps * mg..][..count * taps * mg], count * taps, mg, mg);
            product_into(w, Mat::new(dy, mg, plane, plane), false, col, plane);
            col2im(&g.space, count, col, dx);
        });
    });
}

/// [`vdnn_ir::Op::ConvWgrad`].
pub(super) fn wgrad(
    call: &Call<'_>,
    a: &ConvAttrs,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let (dx, ddy) = (shape(call.input(0)?.ty), shape(call.input(1)?.ty));
    let g = Conv::new(call, a, &dx, &ddy)?;
    let (x, dy) = (call.f32(0)?, call.f32(1)?);
    let dw = call.f32_out(call.one(outputs)?)?;
    if x.is_empty() || dy.is_empty() {
        dw.fill(0.0);
        return Ok(());
    }
    if g.groups > 1 && g.c_group() == 1 {
        depthwise::wgrad(call.par, &g, x, dy, dw);
        return Ok(());
    }
    #[cfg(target_arch = "x86_64")]
    if implicit::applies(call.par, &g) {
        implicit::weight_grad(call.par, &g, x, dy, dw);
        return Ok(());
    }
    WeightGrad::new(&g, x, dy).run(call.par, dw);
    Ok(())
}

/// `dW = sum over images of dy unfold(x)^T`.
///
/// Tasks own blocks of the unfolding's rows, so no row is unfolded twice and no two tasks
/// share a result. If dW is small the images are cut first, and the parts of dW are added
/// pairwise afterwards.
struct WeightGrad<'a> {
    g: &'a Conv,
    x: &'a [f32],
    dy: &'a [f32],
    /// Rows of the unfolding per task.
    rows: usize,
    /// Parts the images are cut into.
    parts: usize,
    /// Columns per product.
    cols: usize,
    /// Images per product; more than one only for whole planes.
    images: usize,
}

impl<'a> WeightGrad<'a> {
    fn new(g: &'a Conv, x: &'a [f32], dy: &'a [f32]) -> Self {
        let plane = g.outputs();
        let wanted = 16.min(g.macs() >> 20).max(1);
        // Parts of dW that fit a cache are cheap to add up.
        let parts = if g.m * g.depth() <= 1 << 16 { wanted.min(g.images) } else { 1 };
        let row_blocks = wanted.div_ceil(g.groups * parts).min(g.depth().div_ceil(48));
        let rows = g.depth().div_ceil(row_blocks).next_multiple_of(16).min(g.depth());
        // A long inner dimension amortises the reading and writing of dW.
        let images = (384 / plane).clamp(1, g.images.div_ceil(parts));
        let cols = if images > 1 { plane } else { plane.div_ceil(plane.div_ceil(2048)) };
        Self { g, x, dy, rows, parts, cols, images }
    }

    fn run(&self, par: &Par, dw: &mut [f32]) {
        let g = self.g;
        let blocks = g.depth().div_ceil(self.rows);
        let tasks = blocks * g.groups * self.parts;
        let size = dw.len();
        let work = g.macs() / MACS_PER_VISIT;
        if self.parts == 1 {
            let dw = Disjoint::new(dw);
            par.run(tasks, work, |i| self.task(i / blocks, i % blocks, 0..g.images, &dw, 0));
            return;
        }
        scratch::with(size * self.parts, |sums| {
            let shared = Disjoint::new(sums);
            par.run(tasks, work, |i| {
                let (part, i) = (i % self.parts, i / self.parts);
                let from = |p: usize| p * g.images / self.parts;
                self.task(i / blocks, i % blocks, from(part)..from(part + 1), &shared, part * size);
            });
            // Pairwise: part p takes part p + half, until one is left.
            let mut count = self.parts;
            while count > 1 {
                let half = count.div_ceil(2);
                let (low, high) = sums.split_at_mut(half * size);
                let high = &high[..(count - half) * size];
                low.iter_mut().zip(high).for_each(|(a, &b)| *a += b);
                count = half;
            }
            dw.copy_from_slice(&sums[..size]);
        });
    }

    /// Rows of block `block` of a group, over some images, into dW at `at`.
    fn task(&self, group: usize, block: usize, images: Range<usize>, dw: &Disjoint<'_, f32>, at: usize) {
        let g = self.g;
        let rows = block * self.rows..((block + 1) * self.rows).min(g.depth());
        let size = g.m_group() * rows.len();
        // The product stays contiguous and in cache until it is complete.
        scratch::with(size, |sum| {
            let mut first = true;
            let mut n = images.start;
            while n < images.end {
                let some = n..(n + self.images).min(images.end);
                for from in (0..g.outputs()).step_by(self.cols) {
                    let cols = from..(from + self.cols).min(g.outputs());
                    self.add(group, some.clone(), rows.clone(), cols, !first, sum);
                    first = false;
                }
                n = some.end;
            }
            for (m, sum) in sum.chunks_exact(rows.len()).enumerate() {
                let start = at + (group * g.m_group() + m) * g.depth();
                // SAFETY: this task alone writes these columns of dW (of its part).
                #[expect(unsafe_code, reason = "a block of dW")]
                unsafe { dw.get(start + rows.start..start + rows.end) }.copy_from_slice(sum);
            }
        });
    }

    /// Adds the product over some columns of some images to `sum`, `[M/g, rows]`.
    fn add(
        &self,
        group: usize,
        images: Range<usize>,
        rows: Range<usize>,
        cols: Range<usize>,
        add: bool,
        sum: &mut [f32],
    ) {
        let (g, plane, mg) = (self.g, self.g.outputs(), self.g.m_group());
        let planes = |n: usize| {
            let size = g.c_group() * g.inputs();
            &self.x[(n * g.groups + group) * size..][..size]
        };
        let grads = |n: usize| &self.dy[(n * g.m + group * mg) * plane..][..mg * plane];
        let width = images.len() * cols.len();
        let ld = rows.len();
        let gather = images.len() > 1;
        let unfold = gather || !g.is_pointwise();
        let panel = if unfold { rows.len() * width } else { 0 };
        scratch::with(panel + if gather { mg * width } else { 0 }, |buffer| {
            let (panel, copy) = buffer.split_at_mut(panel);
            let first = images.start;
            let b = if unfold {
                for (i, n) in images.clone().enumerate() {
                    let panel = &mut panel[i * cols.len()..];
                    im2col(&g.space, planes(n), rows.clone(), cols.clone(), panel, width);
                }
                Mat::new(panel, rows.len(), width, width)
            } else {
                Mat::new(&planes(first)[rows.start * plane + cols.start..], rows.len(), width, plane)
            };
            let a = if gather {
                for (i, n) in images.clone().enumerate() {
                    for (m, dy) in grads(n).chunks_exact(plane).enumerate() {
                        copy[m * width + i * plane..][..plane].copy_from_slice(dy);
                    }
                }
                Mat::new(copy, mg, width, width)
            } else {
                Mat::new(&grads(first)[cols.start..], mg, width, plane)
            };
            product_into(a, b.t(), add, sum, ld);
        });
    }
}
