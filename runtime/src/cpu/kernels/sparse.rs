//! Convolutions and products with packed weights ([`vdnn_ir::sparse`]).
//!
//! The direct sparse convolution of Park et al. (ICLR 2017) and Chen, *Escort* (arXiv
//! 1802.10280): every weight that is not zero is multiplied with a run of outputs that stay in
//! registers. A tile is some rows of the output with the inputs that it reads, padding included,
//! in a panel; a tap is an offset into the panel, and strides are phases of it (every `stride`th
//! column of a row lies in a row of its own), so every run is contiguous. Channels are taken in
//! blocks whose panel stays in the first-level cache.
//!
//! Blocks ([`vdnn_ir::sparse::blocks`]) and weights of two of four ([`vdnn_ir::sparse::two_four`]) are
//! read out into rows first.
//!
//! Each output is the bias, then its products in the order of the packed columns: neither tiles
//! nor blocks nor threads change a bit.

use super::args::{Call, Shape, shape};
use super::conv::{self, Filter};
use super::gemm::MACS_PER_VISIT;
use super::geometry::{Conv, Dim};
use super::par::{Disjoint, Par, simd_fn};
use super::scratch;
#[cfg(target_arch = "x86_64")]
use super::sparse_rows;
use std::ops::Range;
use vdnn_ir::DType;
use vdnn_ir::kernel::{KernelError, TensorMut};
use vdnn_ir::op::ConvAttrs;
use vdnn_ir::sparse::blocks::{BlockShape, Blocks};
use vdnn_ir::sparse::two_four::TwoFour;
use vdnn_ir::sparse::{self, SparseForm};

/// Outputs of a vector: those of the widest.
pub(super) const LANES: usize = 16;

/// Vectors of a tile.
pub(super) const VECTORS: usize = 8;

/// Elements of a block of the panel: most of a first-level cache of 48 KiB.
const BLOCK: usize = 9 << 10;

/// Weights of a row and a block that make up for reading and writing the row's sums.
const LEAST_ENTRIES: usize = 12;

/// Tasks aimed at, so that a few threads are evenly loaded.
const TASKS: usize = 16;

/// Rows of a task at least: each fills a panel of its own.
const LEAST_ROWS: usize = 64;

/// Multiply-adds that make up for starting a task.
const MIN_TASK_MACS: usize = 1 << 18;

/// Images up to which a fully connected layer runs as one dot product after the other.
const DOTS: usize = 2;

/// [`vdnn_ir::Op::PackSparse`].
pub(super) fn pack(
    call: &Call<'_>,
    form: SparseForm,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let w = call.f32(0)?;
    let packed = call.one(outputs)?;
    form.pack(w, &call.input(0)?.ty.dims, call.cast_out(packed, DType::I32)?)
}

/// [`vdnn_ir::Op::SparseConv`].
pub(super) fn conv(
    call: &Call<'_>,
    a: &ConvAttrs,
    w_dims: &[u64],
    (form, relu): (SparseForm, bool),
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let out = call.one(outputs)?;
    let (x_shape, y_shape) = (shape(call.input(0)?.ty), shape(out.ty));
    let packed_ref = call.input(1)?;
    let packed: &[i32] = call.cast(1, packed_ref, DType::I32)?;
    let (x, bias) = (call.f32(0)?, call.f32_if_present(2)?);
    let rows = w_dims.first().map_or(0, |&m| m as usize);
    let columns = w_dims.iter().skip(1).product::<u64>() as usize;
    let added = call.f32_if_present(3)?;
    let y = call.f32_out(out)?;
    if y.is_empty() {
        return Ok(());
    }
    let mut rows_of = |packed: &[i32]| {
        let weights = Weights::new(packed, rows, columns)
            .ok_or_else(|| KernelError::BadData("packed weights without row starts".into()))?;
        by_rows(call, a, &weights, [&x_shape, &y_shape], (x, bias), y)
    };
    let shape = || BlockShape::of(w_dims).ok_or_else(|| KernelError::BadData("no filters".into()));
    match form {
        SparseForm::Csr => rows_of(packed)?,
        SparseForm::Block | SparseForm::BlockBf16 => {
            let blocks = Blocks::new(shape()?, form, packed)?;
            let columns: usize = (0..shape()?.groups()).map(|g| blocks.columns(g).len()).sum();
            let most = columns * form.weights() as usize;
            unpacked((rows, most), |m, each| blocks.row(m, each), rows_of)?;
        }
        SparseForm::TwoFourBf16 => {
            let pieces = TwoFour::new(shape()?, packed)?;
            unpacked((rows, pieces.most()), |m, each| pieces.row(m, each), rows_of)?;
        }
    }
    if let Some(added) = added {
        y.iter_mut().zip(added).for_each(|(y, &r)| *y += r);
    }
    if relu {
        y.iter_mut().for_each(|y| *y = if *y <= 0.0 { 0.0 } else { *y });
    }
    Ok(())
}

/// Calls `then` with so many rows of at most so many weights, each of which `row` tells.
fn unpacked(
    (rows, most): (usize, usize),
    row: impl Fn(usize, &mut dyn FnMut(usize, f32)),
    then: impl FnOnce(&[i32]) -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    scratch::with(rows + 1 + 2 * most, |buffer| {
        let words: &mut [i32] = bytemuck::cast_slice_mut(buffer);
        let (starts, entries) = words.split_at_mut(rows + 1);
        starts[0] = 0;
        let mut at = 0;
        for (m, end) in starts[1..].iter_mut().enumerate() {
            row(m, &mut |column, value| {
                entries[2 * at..2 * at + 2].copy_from_slice(&[column as i32, value.to_bits() as i32]);
                at += 1;
            });
            *end = at as i32;
        }
        then(&words[..rows + 1 + 2 * at])
    })
}

/// The sums of rows of weights.
fn by_rows(
    call: &Call<'_>,
    a: &ConvAttrs,
    weights: &Weights<'_>,
    [x_shape, y_shape]: [&Shape; 2],
    (x, bias): (&[f32], Option<&[f32]>),
    y: &mut [f32],
) -> Result<(), KernelError> {
    if x_shape.len() == 2 {
        product(call.par, weights, x, x_shape[0], bias, y);
        return Ok(());
    }
    let g = Conv::new(call, a, x_shape, y_shape)?;
    if g.space[0] != UNIT {
        // Volumes are rare: with their zeros.
        let w = sparse::unpack(weights.packed, weights.rows(), weights.columns)?;
        conv::run(call.par, &g, x, Filter::Rows(&w), bias, y);
        return Ok(());
    }
    direct(call.par, &g, weights, x, bias, y);
    Ok(())
}

const UNIT: Dim = Dim { input: 1, output: 1, kernel: 1, stride: 1, dilation: 1, before: 0, after: 0 };

/// Packed weights whose row starts are within bounds.
struct Weights<'a> {
    packed: &'a [i32],
    starts: &'a [i32],
    entries: &'a [i32],
    columns: usize,
}

impl<'a> Weights<'a> {
    fn new(packed: &'a [i32], rows: usize, columns: usize) -> Option<Self> {
        let (starts, entries) = packed.split_at_checked(rows + 1)?;
        Some(Self { packed, starts, entries, columns })
    }

    fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    /// The entries of a row, column and value in turn; none where the starts make no sense.
    fn row(&self, m: usize) -> &'a [i32] {
        let bound = |at: i32| usize::try_from(at).ok().and_then(|n| n.checked_mul(2));
        let range = bound(self.starts[m]).zip(bound(self.starts[m + 1]));
        range.and_then(|(from, to)| self.entries.get(from..to)).unwrap_or_default()
    }
}

/// `y[n, m] = sum over k of x[n, k] w[m, k] + bias[m]`.
fn product(par: &Par, w: &Weights<'_>, x: &[f32], images: usize, bias: Option<&[f32]>, y: &mut [f32]) {
    let (rows, columns) = (w.rows(), w.columns);
    let work = w.entries.len() / 2 * images / MACS_PER_VISIT;
    if images <= DOTS {
        let y = Disjoint::new(y);
        let tasks = rows.div_ceil(LEAST_ROWS);
        par.run(tasks, work, |task| {
            for m in task * LEAST_ROWS..((task + 1) * LEAST_ROWS).min(rows) {
                let entries = w.row(m);
                for n in 0..images {
                    let sum = dot(entries, &x[n * columns..(n + 1) * columns]);
                    // SAFETY: these outputs are this task's.
                    #[expect(unsafe_code, reason = "elements of y")]
                    let y = unsafe { y.get(n * rows + m..n * rows + m + 1) };
                    y[0] = bias.map_or(0.0, |b| b[m]) + sum;
                }
            }
        });
        return;
    }
    // The images as positions of a pointwise convolution: x^T and y^T.
    scratch::with(columns * images + rows * images, |buffer| {
        let (xt, yt) = buffer.split_at_mut(columns * images);
        for (n, row) in x.chunks_exact(columns.max(1)).enumerate() {
            row.iter().zip(xt[n..].iter_mut().step_by(images)).for_each(|(&x, to)| *to = x);
        }
        direct(par, &Conv::product([rows, images, columns]), w, xt, bias, yt);
        for (m, row) in yt.chunks_exact(images).enumerate() {
            row.iter().zip(y[m..].iter_mut().step_by(rows)).for_each(|(&y, to)| *to = y);
        }
    });
}

/// A row times a dense vector: four sums that are added in the end.
fn dot(entries: &[i32], x: &[f32]) -> f32 {
    let mut sums = [0.0f32; 4];
    let at = |column: i32| x.get(column as usize).copied().unwrap_or(0.0);
    let mut quads = entries.chunks_exact(8);
    for quad in &mut quads {
        for (sum, entry) in sums.iter_mut().zip(quad.chunks_exact(2)) {
            *sum += f32::from_bits(entry[1] as u32) * at(entry[0]);
        }
    }
    for (sum, entry) in sums.iter_mut().zip(quads.remainder().chunks_exact(2)) {
        *sum += f32::from_bits(entry[1] as u32) * at(entry[0]);
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3])
}

/// How the outputs of an image and group are cut into tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tiling {
    /// Output rows and columns of a tile.
    rows: usize,
    cols: usize,
    /// Elements between rows of the panel and of the tile's sums.
    pitch: usize,
    /// Rows of a phase of the panel.
    lines: usize,
    /// Vectors of the sums.
    vectors: usize,
}

impl Tiling {
    /// The tiles that waste fewest lanes; of those the largest.
    fn new(h: &Dim, w: &Dim) -> Self {
        let reach = |d: &Dim| (d.kernel - 1) * d.dilation / d.stride;
        let most = VECTORS * LANES;
        let mut best: Option<(usize, Self)> = None;
        for parts in 1..=w.output.div_ceil(LANES) {
            let cols = w.output.div_ceil(parts);
            let pitch = cols + reach(w);
            if cols > most {
                continue;
            }
            let fit = (1 + (most - cols) / pitch).min(h.output);
            for rows in [fit, h.output.div_ceil(h.output.div_ceil(fit))] {
                let vectors = ((rows - 1) * pitch + cols).div_ceil(LANES);
                let tiles = h.output.div_ceil(rows) * w.output.div_ceil(cols);
                let tiling = Self { rows, cols, pitch, lines: rows + reach(h), vectors };
                // Every tile also costs what reading a weight costs: about half a vector.
                let price = tiles * (2 * vectors + 1);
                if best.is_none_or(|(least, _)| price < least) {
                    best = Some((price, tiling));
                }
            }
        }
        best.expect("tiles of one vector are narrow enough").1
    }
}

struct Direct<'a> {
    g: &'a Conv,
    tiling: Tiling,
    /// Row and column phases that taps read.
    phases: [usize; 2],
    /// Elements of the panel per channel.
    stride: usize,
    /// Per column of the weights: where it is in the panel of its block.
    table: &'a [u32],
    /// Channels of a block.
    channels: usize,
    /// Filters of a task.
    filters: usize,
    w: &'a Weights<'a>,
    x: &'a [f32],
    bias: Option<&'a [f32]>,
}

/// A convolution of images with two dimensions.
fn direct(par: &Par, g: &Conv, w: &Weights<'_>, x: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    // One long row has fewer edges.
    let flat;
    let g = if g.is_pointwise() {
        let line = Dim { input: g.inputs(), output: g.outputs(), ..UNIT };
        flat = Conv { space: [UNIT, UNIT, line], ..*g };
        &flat
    } else {
        g
    };
    let [_, h, across] = &g.space;
    let tiling = Tiling::new(h, across);
    let phases = [
        h.stride.min((h.kernel - 1) * h.dilation + 1),
        across.stride.min((across.kernel - 1) * across.dilation + 1),
    ];
    let phase = tiling.lines * tiling.pitch;
    let (taps, depth) = (g.taps(), g.depth());
    let offset = |tap: usize| {
        let (ky, kx) = (tap / across.kernel * h.dilation, tap % across.kernel * across.dilation);
        let plane = ky % h.stride * phases[1] + kx % across.stride;
        plane * phase + ky / h.stride * tiling.pitch + kx / across.stride
    };
    // Behind the last row vectors run on.
    let reach = (0..taps).map(offset).max().unwrap_or(0) + tiling.vectors * LANES;
    let stride = reach.max(phases[0] * phases[1] * phase).next_multiple_of(LANES);
    let entries = w.entries.len() / 2;
    let per_channel = entries as f64 / (g.m * g.c_group()).max(1) as f64;
    let enough = (LEAST_ENTRIES as f64 / per_channel.max(1e-9)).ceil() as usize;
    let channels = (BLOCK / stride).max(enough).clamp(1, g.c_group());
    let macs = entries * g.images * g.outputs();
    let tiles = g.images * h.output.div_ceil(tiling.rows) * across.output.div_ceil(tiling.cols);
    let wanted = TASKS.min(macs / MIN_TASK_MACS).max(1);
    let parts = wanted.div_ceil(tiles * g.groups).min(g.m_group().div_ceil(LEAST_ROWS)).max(1);
    let filters = g.m_group().div_ceil(parts);
    scratch::with(depth, |table| {
        let table: &mut [u32] = bytemuck::cast_slice_mut(table);
        for (column, to) in table.iter_mut().enumerate() {
            *to = (column / taps % channels * stride + offset(column % taps)) as u32;
        }
        let pass = Direct { g, tiling, phases, stride, table, channels, filters, w, x, bias };
        let y = Disjoint::new(y);
        let wide = par.wide();
        par.run(tiles * g.groups * parts, macs / MACS_PER_VISIT, |i| pass.task(i, parts, wide, &y));
    });
}

impl Direct<'_> {
    /// Some filters of a tile.
    fn task(&self, i: usize, parts: usize, wide: bool, y: &Disjoint<'_, f32>) {
        let (g, t) = (self.g, self.tiling);
        let [_, h, w] = &g.space;
        let (i, part) = (i / parts, i % parts);
        let (i, col) = (i / w.output.div_ceil(t.cols), i % w.output.div_ceil(t.cols) * t.cols);
        let (i, row) = (i / h.output.div_ceil(t.rows), i % h.output.div_ceil(t.rows) * t.rows);
        let (image, group) = (i / g.groups, i % g.groups);
        let first = group * g.m_group() + part * self.filters;
        let filters = first..(first + self.filters).min((group + 1) * g.m_group());
        let width = t.vectors * LANES;
        let panel_len = self.channels.min(g.c_group()) * self.stride;
        let sums_len = filters.len() * width;
        scratch::with(panel_len + sums_len + filters.len(), |buffer| {
            let (panel, rest) = buffer.split_at_mut(panel_len);
            let (sums, cursors) = rest.split_at_mut(sums_len);
            let cursors: &mut [u32] = bytemuck::cast_slice_mut(cursors);
            cursors.fill(0);
            for (sums, m) in sums.chunks_exact_mut(width).zip(filters.clone()) {
                sums.fill(self.bias.map_or(0.0, |b| b[m]));
            }
            for start in (0..g.c_group()).step_by(self.channels) {
                let end = (start + self.channels).min(g.c_group());
                self.fill(image, group, start..end, [row, col], panel);
                let limit = end * g.taps();
                for ((sums, m), cursor) in
                    sums.chunks_exact_mut(width).zip(filters.clone()).zip(cursors.iter_mut())
                {
                    let rest = self.w.row(m).get(*cursor as usize..).unwrap_or_default();
                    let done = self.run(rest, limit, panel, sums, wide);
                    *cursor += done as u32;
                }
            }
            let rows = t.rows.min(h.output - row);
            let cols = t.cols.min(w.output - col);
            for (sums, m) in sums.chunks_exact(width).zip(filters) {
                for (r, sums) in sums.chunks(t.pitch).take(rows).enumerate() {
                    let at = ((image * g.m + m) * h.output + row + r) * w.output + col;
                    // SAFETY: this task alone writes these outputs.
                    #[expect(unsafe_code, reason = "a block of the output")]
                    let y = unsafe { y.get(at..at + cols) };
                    y.copy_from_slice(&sums[..cols]);
                }
            }
        });
    }

    /// Adds the products of the first entries whose column is below `limit` to the sums; returns
    /// how many words those entries are.
    fn run(&self, entries: &[i32], limit: usize, panel: &[f32], sums: &mut [f32], wide: bool) -> usize {
        let table = &self.table[..limit.min(self.table.len())];
        #[cfg(target_arch = "x86_64")]
        if wide {
            // Every offset and a run of the sums' length behind it is in the panel.
            return sparse_rows::add(entries, table, panel, sums);
        }
        let _ = wide;
        plain(entries, table, panel, sums)
    }

    /// Writes what a tile reads of some channels: of each the phases of rows and columns.
    fn fill(
        &self,
        image: usize,
        group: usize,
        channels: Range<usize>,
        [row, col]: [usize; 2],
        panel: &mut [f32],
    ) {
        let (g, t) = (self.g, self.tiling);
        let [_, h, w] = &g.space;
        let first = (image * g.groups + group) * g.c_group();
        let planes = &self.x[(first + channels.start) * g.inputs()..(first + channels.end) * g.inputs()];
        for (plane, panel) in planes.chunks_exact(g.inputs()).zip(panel.chunks_exact_mut(self.stride)) {
            let (mut lines, tail) = panel.split_at_mut(self.phases[0] * self.phases[1] * t.lines * t.pitch);
            tail.fill(0.0);
            for ry in 0..self.phases[0] {
                for rx in 0..self.phases[1] {
                    // The first column that is in the image, and the first behind it.
                    let origin = (col * w.stride + rx) as isize - w.before;
                    let stride = w.stride as isize;
                    let from = ((-origin).max(0) + stride - 1) / stride;
                    let room = (w.input as isize - origin).max(0);
                    let to = ((room + stride - 1) / stride).clamp(0, t.pitch as isize) as usize;
                    let from = (from as usize).min(to);
                    let start = (origin + from as isize * stride).max(0) as usize;
                    for l in 0..t.lines {
                        let (line, rest) = std::mem::take(&mut lines).split_at_mut(t.pitch);
                        lines = rest;
                        let iy = ((row + l) * h.stride + ry) as isize - h.before;
                        let source = usize::try_from(iy).ok().filter(|&iy| iy < h.input);
                        let Some(iy) = source.filter(|_| from < to) else {
                            line.fill(0.0);
                            continue;
                        };
                        let source = &plane[iy * w.input + start..(iy + 1) * w.input];
                        line[..from].fill(0.0);
                        line[to..].fill(0.0);
                        if w.stride == 1 {
                            line[from..to].copy_from_slice(&source[..to - from]);
                        } else {
                            let source = source.iter().step_by(w.stride);
                            line[from..to].iter_mut().zip(source).for_each(|(to, &x)| *to = x);
                        }
                    }
                }
            }
        }
    }
}

simd_fn! {
    /// [`Direct::run`] for any processor: a vector of sums at a time.
    fn plain(entries: &[i32], table: &[u32], panel: &[f32], sums: &mut [f32]) -> usize {
        let mut done = 0;
        for (i, sums) in sums.chunks_exact_mut(LANES).enumerate() {
            let mut acc = [0.0f32; LANES];
            acc.copy_from_slice(sums);
            done = 0;
            for entry in entries.chunks_exact(2) {
                let Some(&offset) = table.get(entry[0] as usize) else { break };
                let value = f32::from_bits(entry[1] as u32);
                let x = &panel[offset as usize + i * LANES..][..LANES];
                for (acc, &x) in acc.iter_mut().zip(x) {
                    *acc += value * x;
                }
                done += 2;
            }
            sums.copy_from_slice(&acc);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fit_and_waste_little() {
        for output in 1..300 {
            for kernel in [1, 3, 5, 7] {
                for stride in [1, 2] {
                    let d = Dim { input: output * stride + kernel, output, kernel, stride, ..UNIT };
                    let t = Tiling::new(&d, &d);
                    assert!(t.vectors <= VECTORS && t.rows <= output && t.cols <= output);
                    assert!((t.rows - 1) * t.pitch + t.cols <= t.vectors * LANES, "{t:?}");
                    let lanes = output.div_ceil(t.rows) * output.div_ceil(t.cols) * t.vectors * LANES;
                    if output >= 28 {
                        assert!(output * output * 10 >= lanes * 6, "{output} {kernel}: {t:?}");
                    }
                }
            }
        }
    }
}
