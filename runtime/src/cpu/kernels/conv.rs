//! Forward convolution: unfold a panel of the input, multiply by the weights.
//!
//! A panel is small enough to stay in the second-level cache between its writing and its
//! reading. Pointwise convolutions multiply the input itself; depthwise ones have loops of
//! their own.

use super::args::{Call, shape};
use super::depthwise;
use super::gemm::{MACS_PER_VISIT, Mat, Target, product, product_into};
use super::geometry::Conv;
use super::im2col::im2col;
#[cfg(target_arch = "x86_64")]
use super::implicit;
use super::par::{Disjoint, Par};
use super::scratch;
use std::ops::Range;
use vdnn_ir::kernel::{KernelError, TensorMut};
use vdnn_ir::op::ConvAttrs;

/// Elements of a panel: half of a one-megabyte second-level cache.
pub(super) const PANEL: usize = 1 << 17;

/// Columns the GEMM handles at once with the widest vectors; panels are whole multiples.
const COLUMNS: usize = 48;

/// Output planes smaller than this share a panel with those of other images.
const SMALL_PLANE: usize = 192;

/// Multiply-adds that make up for starting a task.
const MIN_TASK_MACS: usize = 1 << 20;

/// Tasks aimed at, so that a few threads are evenly loaded.
const TASKS: usize = 16;

/// [`vdnn_ir::Op::Conv`].
pub(super) fn forward(
    call: &Call<'_>,
    a: &ConvAttrs,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let out = call.one(outputs)?;
    let g = Conv::new(call, a, &shape(call.input(0)?.ty), &shape(out.ty))?;
    let (x, w, bias) = (call.f32(0)?, call.f32(1)?, call.f32_if_present(2)?);
    run(call.par, &g, x, Filter::Rows(w), bias, call.f32_out(out)?);
    Ok(())
}

/// The weights as a matrix per group.
#[derive(Clone, Copy)]
pub(super) enum Filter<'a> {
    /// `[M/g, C/g * taps]`.
    Rows(&'a [f32]),
    /// `[C/g * taps, M/g]`.
    Columns(&'a [f32]),
}

/// `y = conv(x, w) + bias` for the geometry `g`.
pub(super) fn run(par: &Par, g: &Conv, x: &[f32], w: Filter<'_>, bias: Option<&[f32]>, y: &mut [f32]) {
    if y.is_empty() {
        return;
    }
    if let (Filter::Rows(w), true) = (w, g.groups > 1 && g.c_group() == 1) {
        return depthwise::forward(par, g, x, w, bias, y);
    }
    #[cfg(target_arch = "x86_64")]
    if let (Filter::Rows(w), true) = (w, implicit::applies(par, g)) {
        return implicit::forward(par, g, x, w, bias, y);
    }
    let cut = Cut::new(g);
    let pass = Pass { g, cut, x, w, bias };
    let y = Disjoint::new(y);
    par.run(cut.tasks(g), g.macs() / MACS_PER_VISIT, |i| pass.task(i, &y));
}

/// How the outputs are cut into tasks.
#[derive(Clone, Copy, Debug)]
struct Cut {
    /// Images per panel; more than one only for whole planes.
    images: usize,
    /// Columns of an image per panel.
    cols: usize,
    /// Output channels of a group per task.
    rows: usize,
}

impl Cut {
    fn new(g: &Conv) -> Self {
        let plane = g.outputs();
        let wanted = TASKS.min(g.macs() / MIN_TASK_MACS).max(1);
        if plane < SMALL_PLANE && g.images > 1 {
            let fit = (PANEL / (g.depth() * plane).max(1)).max(SMALL_PLANE.div_ceil(plane));
            let spread = (g.images * g.groups / wanted).max(1);
            let images = fit.min(spread.max(SMALL_PLANE.div_ceil(plane))).min(g.images);
            let panels = g.images.div_ceil(images);
            let images = g.images.div_ceil(panels);
            return Self { images, cols: plane, rows: Self::rows(g, wanted, panels) };
        }
        let whole = plane.next_multiple_of(COLUMNS);
        let fit = (PANEL / g.depth().max(1) / COLUMNS * COLUMNS).clamp(2 * COLUMNS, whole.max(2 * COLUMNS));
        let spread = wanted.div_ceil(g.images * g.groups);
        let panels = plane.div_ceil(fit).max(spread.min(plane.div_ceil(4 * COLUMNS)));
        let cols = plane.div_ceil(panels).next_multiple_of(COLUMNS);
        let panels = plane.div_ceil(cols) * g.images;
        Self { images: 1, cols: cols.min(plane), rows: Self::rows(g, wanted, panels) }
    }

    /// Splits the output channels too if there are too few panels. Each part unfolds the
    /// panel again, so the parts stay few.
    fn rows(g: &Conv, wanted: usize, panels: usize) -> usize {
        let m = g.m_group();
        let parts = wanted.div_ceil(panels * g.groups).min(4).min(m.div_ceil(32));
        m.div_ceil(parts.max(1)).next_multiple_of(8).min(m)
    }

    /// Numbers of row blocks, column blocks and image blocks.
    fn counts(self, g: &Conv) -> [usize; 3] {
        [g.m_group().div_ceil(self.rows), g.outputs().div_ceil(self.cols), g.images.div_ceil(self.images)]
    }

    fn tasks(self, g: &Conv) -> usize {
        self.counts(g).iter().product::<usize>() * g.groups
    }
}

struct Pass<'a> {
    g: &'a Conv,
    cut: Cut,
    x: &'a [f32],
    w: Filter<'a>,
    bias: Option<&'a [f32]>,
}

impl Pass<'_> {
    /// One block of the outputs: rows of a group, columns of one or more images.
    fn task(&self, i: usize, y: &Disjoint<'_, f32>) {
        let (g, cut) = (self.g, self.cut);
        let [rows, cols, images] = cut.counts(g);
        let (i, r) = (i / rows, i % rows * cut.rows);
        let (i, c) = (i / cols, i % cols * cut.cols);
        let (group, n) = (i / images, i % images * cut.images);
        let rows = group * g.m_group() + r..group * g.m_group() + (r + cut.rows).min(g.m_group());
        if cut.images == 1 {
            self.panel(group, n, rows, c..(c + cut.cols).min(g.outputs()), y);
        } else {
            self.folded(group, n..(n + cut.images).min(g.images), rows, y);
        }
    }

    fn weights(&self, rows: &Range<usize>) -> Mat<'_> {
        let (depth, mg) = (self.g.depth(), self.g.m_group());
        match self.w {
            Filter::Rows(w) => Mat::new(&w[rows.start * depth..rows.end * depth], rows.len(), depth, depth),
            Filter::Columns(w) => {
                let (group, first) = (rows.start / mg, rows.start % mg);
                Mat::new(&w[group * depth * mg + first..], depth, rows.len(), mg).t()
            }
        }
    }

    /// The planes of a group of one image.
    fn planes(&self, group: usize, n: usize) -> &[f32] {
        let size = self.g.c_group() * self.g.inputs();
        &self.x[(n * self.g.groups + group) * size..][..size]
    }

    /// Columns `cols` of image `n`, straight into the output.
    fn panel(&self, group: usize, n: usize, rows: Range<usize>, cols: Range<usize>, y: &Disjoint<'_, f32>) {
        let (g, plane) = (self.g, self.g.outputs());
        let start = |row: usize| (n * g.m + row) * plane + cols.start;
        if let Some(bias) = self.bias {
            for row in rows.clone() {
                // SAFETY: this task alone writes these columns of these rows.
                #[expect(unsafe_code, reason = "a block of the output")]
                unsafe { y.get(start(row)..start(row) + cols.len()) }.fill(bias[row]);
            }
        }
        let x = self.planes(group, n);
        let to = Target { at: start(rows.start), ld: plane };
        let multiply = |b: Mat<'_>| {
            // SAFETY: as above; no part of the output is borrowed here.
            #[expect(unsafe_code, reason = "a block of the output")]
            unsafe {
                product(self.weights(&rows), b, 1.0, self.bias.is_some(), y, to);
            }
        };
        if g.is_pointwise() {
            multiply(Mat::new(&x[cols.start..], g.c_group(), cols.len(), plane));
        } else {
            scratch::with(g.depth() * cols.len(), |panel| {
                im2col(&g.space, x, 0..g.depth(), cols.clone(), panel, cols.len());
                multiply(Mat::new(panel, g.depth(), cols.len(), cols.len()));
            });
        }
    }

    /// All columns of several images in one panel, then each plane to its place.
    fn folded(&self, group: usize, images: Range<usize>, rows: Range<usize>, y: &Disjoint<'_, f32>) {
        let (g, plane) = (self.g, self.g.outputs());
        let width = images.len() * plane;
        scratch::with((g.depth() + rows.len()) * width, |buffer| {
            let (panel, result) = buffer.split_at_mut(g.depth() * width);
            for (at, n) in images.clone().enumerate() {
                let panel = &mut panel[at * plane..];
                im2col(&g.space, self.planes(group, n), 0..g.depth(), 0..plane, panel, width);
            }
            product_into(self.weights(&rows), Mat::new(panel, g.depth(), width, width), false, result, width);
            for (from, row) in result.chunks_exact(width).zip(rows.clone()) {
                let bias = self.bias.map_or(0.0, |b| b[row]);
                for (from, n) in from.chunks_exact(plane).zip(images.clone()) {
                    let start = (n * g.m + row) * plane;
                    // SAFETY: this task alone writes these rows of these images.
                    #[expect(unsafe_code, reason = "a block of the output")]
                    let y = unsafe { y.get(start..start + plane) };
                    y.iter_mut().zip(from).for_each(|(y, &x)| *y = x + bias);
                }
            }
        });
    }
}
