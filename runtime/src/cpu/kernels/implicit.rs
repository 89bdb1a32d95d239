//! Convolution and its weight gradient as implicit matrix products with 512-bit vectors.
//!
//! The unfolded input is gathered panel by panel ([`super::window`]) right before the
//! product reads it ([`super::tile`]); no buffer grows with the image. The forward product
//! of a group is `Y[M, P] = W[M, CT] U[CT, P]`, the weight gradient `dW[M, CT] =
//! sum over images of dY[M, P] U[CT, P]^T`, where U is the unfolding with a row per channel
//! and tap and a column per output position.

#![cfg(target_arch = "x86_64")]

use super::gemm::MACS_PER_VISIT;
use super::geometry::Conv;
use super::par::{Disjoint, Par};
use super::scratch;
use super::tile::{self, Block, COLS, ROWS, Start, VECTORS, Widths};
use super::window::{self, Window};
use std::ops::Range;

/// Inner extent of a product: a panel of this many rows and [`COLS`] columns shares a
/// first-level cache of 48 KiB with the rows of A that pass.
const DEPTH: usize = 160;

/// Elements of A (or of a block of C that is read again) that stay in a second-level cache.
const RESIDENT: usize = 1 << 17;

/// Rows of A per task at least; each task packs its own panels.
const MIN_ROWS: usize = 64;

/// Tasks aimed at, so that a few threads are evenly loaded.
const TASKS: usize = 24;

/// Multiply-adds that make up for starting a task.
const MIN_TASK_MACS: usize = 1 << 18;

/// Output planes smaller than this are multiplied several images at a time.
const SMALL_PLANE: usize = 200;

/// Positions aimed at then.
const FOLDED: usize = 400;

/// True if this processor and this convolution are for these kernels.
pub(super) fn applies(par: &Par, g: &Conv) -> bool {
    par.wide() && window::fits(g, 1)
}

/// `n` in `parts` parts that are multiples of `unit`, the last perhaps smaller.
fn part(n: usize, parts: usize, unit: usize) -> usize {
    n.div_ceil(parts.max(1)).next_multiple_of(unit).min(n.max(1))
}

/// `y = conv(x, w) + bias` with weights `[M, C/g, taps]`.
pub(super) fn forward(par: &Par, g: &Conv, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    let cut = Cut::new(g);
    scratch::with(window::scratch_len(g, cut.images), |tables| {
        let window = Window::new(g, cut.images, tables);
        let pass = Forward { g, cut, window, x, w, bias };
        let y = Disjoint::new(y);
        par.run(cut.tasks(g), g.macs() / MACS_PER_VISIT, |i| pass.task(i, &y));
    });
}

/// How the outputs are cut into tasks.
#[derive(Clone, Copy, Debug)]
struct Cut {
    /// Images whose positions are one run of columns.
    images: usize,
    /// Output channels of a group per task.
    rows: usize,
    /// Blocks of columns per task.
    blocks: usize,
}

impl Cut {
    fn new(g: &Conv) -> Self {
        let (plane, m) = (g.outputs(), g.m_group());
        let fold = if plane < SMALL_PLANE { FOLDED.div_ceil(plane.max(1)).min(g.images) } else { 1 };
        let images = if fold > 1 && window::fits(g, fold) { fold } else { 1 };
        let runs = g.images.div_ceil(images) * g.groups;
        let all = Widths::new(images * plane).blocks();
        let wanted = TASKS.min(g.macs() / MIN_TASK_MACS).max(1);
        let mut row_parts = (m * DEPTH).div_ceil(RESIDENT);
        let rows = part(m, row_parts, ROWS);
        let deep =
            if rows * g.depth() > 2 * RESIDENT { (rows * COLS * all).div_ceil(2 * RESIDENT) } else { 1 };
        let mut col_parts = deep.clamp(1, all);
        // Blocks that share parts of A stay together.
        let most_cols = if rows * g.depth() > 2 * RESIDENT { (all / 3).max(col_parts) } else { all };
        let most_rows = m.div_ceil(MIN_ROWS).max(row_parts);
        let missing = |r: usize, c: usize| wanted.div_ceil(runs * r * c);
        if all > 8 {
            col_parts = (col_parts * missing(row_parts, col_parts)).min(most_cols);
        }
        row_parts = (row_parts * missing(row_parts, col_parts)).min(most_rows);
        col_parts = (col_parts * missing(row_parts, col_parts)).min(most_cols);
        Self { images, rows: part(m, row_parts, ROWS), blocks: part(all, col_parts, 1) }
    }

    /// Numbers of row parts, column parts and runs of images.
    fn counts(self, g: &Conv) -> [usize; 3] {
        let all = Widths::new(self.images * g.outputs()).blocks();
        [g.m_group().div_ceil(self.rows), all.div_ceil(self.blocks), g.images.div_ceil(self.images)]
    }

    fn tasks(self, g: &Conv) -> usize {
        self.counts(g).iter().product::<usize>() * g.groups
    }
}

struct Forward<'a> {
    g: &'a Conv,
    cut: Cut,
    window: Window<'a>,
    x: &'a [f32],
    w: &'a [f32],
    bias: Option<&'a [f32]>,
}

impl Forward<'_> {
    /// One block of the outputs: rows of a group, columns of one or more images.
    fn task(&self, i: usize, y: &Disjoint<'_, f32>) {
        let (g, cut) = (self.g, self.cut);
        let [rows, cols, runs] = cut.counts(g);
        let (i, c) = (i / cols, i % cols * cut.blocks);
        let (i, r) = (i / rows, i % rows * cut.rows);
        let (group, first) = (i / runs, i % runs * cut.images);
        let rows = group * g.m_group() + r..group * g.m_group() + (r + cut.rows).min(g.m_group());
        let images = first..(first + cut.images).min(g.images);
        let widths = Widths::new(images.len() * g.outputs());
        let blocks = c.min(widths.blocks())..(c + cut.blocks).min(widths.blocks());
        let plane = g.outputs();
        if images.len() == 1 {
            let at = (first * g.m + rows.start) * plane;
            let c = y.at(at, (rows.len() - 1) * plane + plane);
            self.product(group, first, rows, widths, blocks, c, plane);
            return;
        }
        let (from, to) = (widths.first(blocks.start), widths.first(blocks.end));
        let width = to - from;
        scratch::with(rows.len() * width, |result| {
            let c = result.as_mut_ptr().wrapping_sub(from);
            self.product(group, first, rows.clone(), widths, blocks, c, width);
            for (line, row) in result.chunks_exact(width.max(1)).zip(rows) {
                // Positions `from..to` of the images together, image by image.
                for n in images.clone() {
                    let base = (n - first) * plane;
                    let (lo, hi) = (from.max(base), to.min(base + plane));
                    if lo < hi {
                        let start = (n * g.m + row) * plane;
                        // SAFETY: this task alone writes these columns of these rows.
                        #[expect(unsafe_code, reason = "a block of the output")]
                        let y = unsafe { y.get(start + lo - base..start + hi - base) };
                        y.copy_from_slice(&line[lo - from..hi - from]);
                    }
                }
            }
        });
    }

    /// The product for some rows and blocks of columns into C, whose element for the first
    /// row and position 0 is at `c` and whose rows are `ldc` apart.
    #[expect(clippy::too_many_arguments, reason = "the coordinates of a block")]
    fn product(
        &self,
        group: usize,
        image: usize,
        rows: Range<usize>,
        widths: Widths,
        blocks: Range<usize>,
        c: *mut f32,
        ldc: usize,
    ) {
        let (g, depth) = (self.g, self.g.depth());
        let x = &self.x[(image * g.groups + group) * g.c_group() * g.inputs()..];
        let w = &self.w[rows.start * depth..rows.end * depth];
        let bias = self.bias.map(|b| &b[rows.clone()]);
        let parts = depth.div_ceil(DEPTH).max(1);
        // If all of A stays in the second-level cache, a block of C can be finished at once;
        // else each part of A serves all blocks before it leaves.
        let far = rows.len() * depth > 2 * RESIDENT;
        let together = if far { blocks.len() } else { 1 };
        scratch::with(depth.div_ceil(parts) * COLS, |panel| {
            for first in blocks.clone().step_by(together.max(1)) {
                let some = first..(first + together).min(blocks.end);
                for (p, block) in (0..parts).flat_map(|p| some.clone().map(move |b| (p, b))) {
                    let inner = p * depth / parts..(p + 1) * depth / parts;
                    let (from, to) = (widths.first(block), widths.first(block + 1));
                    let vectors = (to - from).div_ceil(tile::LANES);
                    // SAFETY: `applies` has found the extensions; x starts at the window's
                    // first image, and the blocks count the window's positions.
                    #[expect(unsafe_code, reason = "gathers with vector instructions")]
                    unsafe {
                        self.window.pack(x, inner.clone(), from, vectors, panel);
                    }
                    for r in (0..rows.len()).step_by(ROWS) {
                        let start = match (p, bias) {
                            (0, None) => Start::Zero,
                            (0, Some(b)) => Start::Bias(b[r..].as_ptr()),
                            _ => Start::Add,
                        };
                        // SAFETY: A is rows of w from `inner.start` on, B the panel just
                        // written; C belongs to this task.
                        #[expect(unsafe_code, reason = "multiplies with vector instructions")]
                        unsafe {
                            tile::multiply(&Block {
                                a: w[r * depth + inner.start..].as_ptr(),
                                rs: depth,
                                b: panel.as_ptr(),
                                depth: inner.len(),
                                c: c.wrapping_add(r * ldc + from),
                                ldc,
                                rows: ROWS.min(rows.len() - r),
                                vectors,
                                cols: to - from,
                                start,
                            });
                        }
                    }
                }
            }
        });
    }
}

/// The gradient of a convolution with respect to its weights `[M, C/g, taps]`.
///
/// Tasks own columns of dW, so each column of U^T is packed once per image. If there are too
/// few of those the images are cut too, and the parts of dW are added pairwise afterwards.
pub(super) fn weight_grad(par: &Par, g: &Conv, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    scratch::with(window::scratch_len(g, 1), |tables| {
        let window = Window::new(g, 1, tables);
        let pass = WeightGrad::new(g, window, x, dy);
        let tasks = pass.col_parts() * g.groups * pass.parts;
        let work = g.macs() / MACS_PER_VISIT;
        let size = dw.len();
        if pass.parts == 1 {
            let dw = Disjoint::new(dw);
            par.run(tasks, work, |i| pass.task(i, 0..g.images, dw.at(0, size)));
            return;
        }
        scratch::with(size * pass.parts, |sums| {
            let shared = Disjoint::new(sums);
            par.run(tasks, work, |i| {
                let (part, i) = (i % pass.parts, i / pass.parts);
                let from = |p: usize| p * g.images / pass.parts;
                pass.task(i, from(part)..from(part + 1), shared.at(part * size, size));
            });
            // Pairwise: part p takes part p + half, until one is left.
            let mut count = pass.parts;
            while count > 1 {
                let half = count.div_ceil(2);
                let (low, high) = sums.split_at_mut(half * size);
                let high = &high[..(count - half) * size];
                low.iter_mut().zip(high).for_each(|(a, &b)| *a += b);
                count = half;
            }
            dw.copy_from_slice(&sums[..size]);
        });
    });
}

struct WeightGrad<'a> {
    g: &'a Conv,
    window: Window<'a>,
    x: &'a [f32],
    dy: &'a [f32],
    /// The blocks of columns of dW.
    widths: Widths,
    /// Blocks per task.
    blocks: usize,
    /// Parts the images are cut into.
    parts: usize,
}

impl<'a> WeightGrad<'a> {
    fn new(g: &'a Conv, window: Window<'a>, x: &'a [f32], dy: &'a [f32]) -> Self {
        let widths = Widths::new(g.depth());
        let wanted = TASKS.min(g.macs() / MIN_TASK_MACS).max(1);
        let all = widths.blocks();
        // Parts of dW that fit a cache are cheap to add up.
        let parts = match g.m * g.depth() {
            n if n <= RESIDENT => wanted.div_ceil((all / 4).max(1) * g.groups).min(g.images),
            _ => 1,
        };
        let blocks = part(all, wanted.div_ceil(parts * g.groups), 1);
        Self { g, window, x, dy, widths, blocks, parts }
    }

    fn col_parts(&self) -> usize {
        self.widths.blocks().div_ceil(self.blocks)
    }

    /// Blocks of columns of a group's dW over some images. `dw` is the whole of it.
    fn task(&self, i: usize, images: Range<usize>, dw: *mut f32) {
        let (depth, mg) = (self.g.depth(), self.g.m_group());
        let (group, first) = (i / self.col_parts(), i % self.col_parts() * self.blocks);
        let end = (first + self.blocks).min(self.widths.blocks());
        let dw = dw.wrapping_add(group * mg * depth);
        // So many columns of dW stay in the second-level cache while all images pass.
        let together = (RESIDENT / (mg * COLS)).max(1);
        for first in (first..end).step_by(together) {
            let blocks = first..(first + together).min(end);
            for n in images.clone() {
                self.image(group, n, blocks.clone(), n == images.start, dw);
            }
        }
    }

    /// Adds what one image gives, or stores it if it is the first.
    fn image(&self, group: usize, n: usize, blocks: Range<usize>, first: bool, dw: *mut f32) {
        let (g, plane, mg) = (self.g, self.g.outputs(), self.g.m_group());
        let x = &self.x[(n * g.groups + group) * g.c_group() * g.inputs()..];
        let dy = &self.dy[(n * g.m + group * mg) * plane..][..mg * plane];
        let parts = plane.div_ceil(DEPTH + DEPTH / 4);
        // Parts begin at whole vectors.
        let cut = |p: usize| (p * plane / parts).next_multiple_of(tile::LANES).min(plane);
        let longest = (0..parts).map(|p| cut(p + 1) - cut(p)).max().unwrap_or(0);
        scratch::with(longest * VECTORS * tile::LANES, |panel| {
            for p in 0..parts {
                let inner = cut(p)..cut(p + 1);
                for block in blocks.clone() {
                    let cols = self.widths.first(block)..self.widths.first(block + 1);
                    let vectors = cols.len().div_ceil(tile::LANES);
                    // SAFETY: `applies` has found the extensions; x starts at the image.
                    #[expect(unsafe_code, reason = "gathers with vector instructions")]
                    unsafe {
                        self.window.pack_transposed(x, cols.clone(), inner.clone(), vectors, panel);
                    }
                    for r in (0..mg).step_by(ROWS) {
                        // SAFETY: A is rows of dy from `inner.start` on, B the panel just
                        // written; these columns of dw belong to this task.
                        #[expect(unsafe_code, reason = "multiplies with vector instructions")]
                        unsafe {
                            tile::multiply(&Block {
                                a: dy[r * plane + inner.start..].as_ptr(),
                                rs: plane,
                                b: panel.as_ptr(),
                                depth: inner.len(),
                                c: dw.wrapping_add(r * g.depth() + cols.start),
                                ldc: g.depth(),
                                rows: ROWS.min(mg - r),
                                vectors,
                                cols: cols.len(),
                                start: if first && p == 0 { Start::Zero } else { Start::Add },
                            });
                        }
                    }
                }
            }
        });
    }
}
