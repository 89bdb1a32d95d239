//! The arithmetic of convolutions and pools on rows of buffers.

use super::{At, Machine, Region};
use crate::chain::Window;
use crate::interval::Interval;
use crate::program::{PoolKind, Step};
use crate::rounding::factor;
use vdnn_ir::Precision;

/// A convolution without its operands.
pub(super) struct Conv<'a> {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) window: &'a Window,
    pub(super) groups: u64,
}

impl Machine<'_> {
    /// The rectangle that the windows of a region cover, checked to be readable.
    fn input_of(&mut self, from: u32, window: &Window, region: Region) -> Result<Region, At> {
        let input = Region { y: window.input_of(0, region.y), x: window.input_of(1, region.x) };
        self.check_read(from, input)?;
        Ok(input)
    }

    /// Computes a region and returns the multiply-adds it took. A row of sums goes through
    /// channels and taps together: each sum's order is the same.
    pub(super) fn convolve(
        &mut self,
        conv: &Conv<'_>,
        region: Region,
        operands: (usize, Option<usize>),
        then: &[Step],
    ) -> Result<u64, At> {
        let window = conv.window;
        let input = self.input_of(conv.from, window, region)?;
        let (from, to) = (self.buffer(conv.from), self.buffer(conv.to));
        let (per_group, out_per_group) = (from.channels / conv.groups, to.channels / conv.groups);
        let precision = self.program.precision;
        let stride = window.strides[1] as usize;
        let mut sums = vec![0.0; region.x.len() as usize];
        let mut rounded = Vec::new();
        let mut macs = 0;
        for m in 0..to.channels {
            let mut w = (m * per_group * window.taps()) as usize;
            let first = w;
            for y in region.y.positions() {
                w = first;
                sums.fill(operands.1.map_or(0.0, |b| self.operands[b][m as usize]));
                for c in 0..per_group {
                    let channel = m / out_per_group * per_group + c;
                    for ky in 0..window.kernel[0] {
                        let at = y * window.strides[0] as i64 - window.before[0] as i64
                            + (ky * window.dilations[0]) as i64;
                        let row = self.memory.row(from, &self.part(channel, at, input.x));
                        let row = if precision == Precision::Tf32 {
                            rounded.clear();
                            rounded.extend(row.iter().map(|&v| factor(precision, v)));
                            &rounded[..]
                        } else {
                            row
                        };
                        for kx in 0..window.kernel[1] {
                            let weight = self.operands[operands.0][w];
                            w += 1;
                            let taps = row[(kx * window.dilations[1]) as usize..].iter().step_by(stride);
                            let mut done = 0;
                            for (sum, &v) in sums.iter_mut().zip(taps) {
                                *sum += weight * v;
                                done += 1;
                            }
                            macs += done;
                        }
                    }
                }
                self.then(then, m, y, region.x, &mut sums)?;
                self.write_row(conv.to, m, y, region.x, &sums)?;
            }
        }
        Ok(macs)
    }

    pub(super) fn pool(
        &mut self,
        from: u32,
        to: u32,
        window: &Window,
        kind: PoolKind,
        region: Region,
        then: &[Step],
    ) -> Result<(), At> {
        let input = self.input_of(from, window, region)?;
        let source = self.buffer(from);
        let start = match kind {
            PoolKind::Max => f32::NEG_INFINITY,
            PoolKind::Mean { .. } => 0.0,
        };
        let mut row = vec![0.0; region.x.len() as usize];
        let stride = window.strides[1] as usize;
        for c in 0..source.channels {
            for y in region.y.positions() {
                row.fill(start);
                for ky in 0..window.kernel[0] {
                    let at = y * window.strides[0] as i64 - window.before[0] as i64
                        + (ky * window.dilations[0]) as i64;
                    let taps = self.memory.row(source, &self.part(c, at, input.x));
                    for kx in 0..window.kernel[1] {
                        let taps = taps[(kx * window.dilations[1]) as usize..].iter().step_by(stride);
                        for (r, &v) in row.iter_mut().zip(taps) {
                            *r = match kind {
                                PoolKind::Max if v > *r => v,
                                PoolKind::Max => *r,
                                PoolKind::Mean { .. } => *r + v,
                            };
                        }
                    }
                }
                if let PoolKind::Mean { count_include_pad, image } = kind {
                    let rows = divisor(window, 0, y, image[0], count_include_pad);
                    for (x, r) in region.x.positions().zip(&mut row) {
                        *r /= (rows * divisor(window, 1, x, image[1], count_include_pad)) as f32;
                    }
                }
                self.then(then, c, y, region.x, &mut row)?;
                self.write_row(to, c, y, region.x, &row)?;
            }
        }
        Ok(())
    }
}

/// Taps of a window along an axis that count in a mean.
fn divisor(window: &Window, axis: usize, output: i64, image: u64, count_include_pad: bool) -> u64 {
    let counted = if count_include_pad {
        Interval::new(-(window.before[axis] as i64), (image + window.after[axis]) as i64)
    } else {
        Interval::of_extent(image)
    };
    let first = output * window.strides[axis] as i64 - window.before[axis] as i64;
    (0..window.kernel[axis]).filter(|k| counted.has(first + (k * window.dilations[axis]) as i64)).count()
        as u64
}
