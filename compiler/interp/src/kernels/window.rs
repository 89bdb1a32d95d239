//! Which input elements a sliding window touches: the one geometry of convolutions and pools.

use vdnn_ir::op::{ConvAttrs, PoolAttrs};

/// The positions a kernel element contributes to, as rows along the last dimension: for
/// `(o, i)` in `rows` and `k < n`, output `o + k` meets input `i + k * stride`.
pub(super) struct Tap {
    pub n: usize,
    pub rows: Vec<(usize, usize)>,
}

/// A window sliding over one channel, any number of spatial dimensions.
pub(super) struct Window {
    /// One per kernel element, in row-major order; elements that only ever meet padding
    /// have no rows.
    pub taps: Vec<Tap>,
    /// Input elements per channel.
    pub input: usize,
    /// Output elements per channel.
    pub output: usize,
    /// Stride of the last dimension.
    pub stride: usize,
    axes: Vec<Axis>,
}

#[derive(Clone, Copy)]
struct Axis {
    input: usize,
    output: usize,
    kernel: usize,
    stride: usize,
    before: usize,
    after: usize,
    dilation: usize,
}

impl Axis {
    /// The outputs `lo..hi` at which kernel element `k` meets an input element.
    fn outputs(&self, k: usize) -> (usize, usize) {
        let offset = k * self.dilation;
        // Output o meets input o * stride + offset - before.
        let lo = self.before.saturating_sub(offset).div_ceil(self.stride);
        let end = self.input + self.before;
        let hi = if offset < end { (end - 1 - offset) / self.stride + 1 } else { 0 };
        (lo, hi.min(self.output).max(lo))
    }

    fn input_of(&self, o: usize, k: usize) -> usize {
        o * self.stride + k * self.dilation - self.before
    }
}

impl Window {
    pub fn of_conv(conv: &ConvAttrs, x: &[usize], y: &[usize]) -> Self {
        Self::new(&conv.kernel, &conv.strides, &conv.before, &conv.after, &conv.dilations, &x[2..], &y[2..])
    }

    pub fn of_pool(pool: &PoolAttrs, x: &[usize], y: &[usize]) -> Self {
        Self::new(&pool.kernel, &pool.strides, &pool.before, &pool.after, &pool.dilations, &x[2..], &y[2..])
    }

    fn new(
        kernel: &[u64],
        strides: &[u64],
        before: &[u64],
        after: &[u64],
        dilations: &[u64],
        input: &[usize],
        output: &[usize],
    ) -> Self {
        let axes: Vec<Axis> = (0..input.len())
            .map(|i| Axis {
                input: input[i],
                output: output[i],
                kernel: kernel[i] as usize,
                stride: strides[i] as usize,
                before: before[i] as usize,
                after: after[i] as usize,
                dilation: dilations[i] as usize,
            })
            .collect();
        let count: usize = axes.iter().map(|a| a.kernel).product();
        let taps = (0..count).map(|t| tap(&axes, t)).collect();
        Self {
            taps,
            input: input.iter().product(),
            output: output.iter().product(),
            stride: axes[axes.len() - 1].stride,
            axes,
        }
    }

    /// The divisor of an average for each output of a channel: how many window positions
    /// lie in the input, or with `include_pad` in the input and its padding.
    pub fn divisors(&self, include_pad: bool) -> Vec<f64> {
        let mut out = vec![1.0];
        for axis in &self.axes {
            let count = |o: usize| {
                (0..axis.kernel)
                    .map(|k| o * axis.stride + k * axis.dilation)
                    .filter(|&at| {
                        if include_pad {
                            at < axis.before + axis.input + axis.after
                        } else {
                            (axis.before..axis.before + axis.input).contains(&at)
                        }
                    })
                    .count() as f64
            };
            let counts: Vec<f64> = (0..axis.output).map(count).collect();
            out = out.iter().flat_map(|n| counts.iter().map(move |c| n * c)).collect();
        }
        out
    }
}

fn tap(axes: &[Axis], t: usize) -> Tap {
    // Kernel coordinates from the last dimension on.
    let mut coordinates = vec![0; axes.len()];
    let mut rest = t;
    for (i, axis) in axes.iter().enumerate().rev() {
        coordinates[i] = rest % axis.kernel;
        rest /= axis.kernel;
    }
    let mut rows = vec![(0, 0)];
    let mut n = 0;
    for (i, (axis, &k)) in axes.iter().zip(&coordinates).enumerate() {
        let (lo, hi) = axis.outputs(k);
        // All positions along the outer dimensions, only the first along the last.
        let positions = if i + 1 == axes.len() {
            n = hi - lo;
            lo..hi.min(lo + 1)
        } else {
            lo..hi
        };
        rows = rows
            .iter()
            .flat_map(|&(o, i)| {
                positions.clone().map(move |p| (o * axis.output + p, i * axis.input + axis.input_of(p, k)))
            })
            .collect();
    }
    Tap { n, rows }
}

/// `acc[k] += w * x[k * stride]`.
pub(super) fn gather(acc: &mut [f64], w: f64, x: &[f64], stride: usize) {
    if stride == 1 {
        for (a, x) in acc.iter_mut().zip(x) {
            *a += w * x;
        }
    } else {
        for (a, x) in acc.iter_mut().zip(x.iter().step_by(stride)) {
            *a += w * x;
        }
    }
}

/// `acc[k * stride] += w * y[k]`.
pub(super) fn scatter(acc: &mut [f64], w: f64, y: &[f64], stride: usize) {
    if stride == 1 {
        for (a, y) in acc.iter_mut().zip(y) {
            *a += w * y;
        }
    } else {
        for (a, y) in acc.iter_mut().step_by(stride).zip(y) {
            *a += w * y;
        }
    }
}

/// `sum of y[k] * x[k * stride]`; for stride 1 in four interleaved partial sums, so that
/// additions do not wait for each other.
pub(super) fn dot(y: &[f64], x: &[f64], stride: usize) -> f64 {
    if stride != 1 {
        return y.iter().zip(x.iter().step_by(stride)).map(|(y, x)| y * x).sum();
    }
    let (ys, y_rest) = y.as_chunks::<4>();
    let (xs, x_rest) = x[..y.len()].as_chunks::<4>();
    let mut sums = [0.0; 4];
    for (y, x) in ys.iter().zip(xs) {
        for k in 0..4 {
            sums[k] += y[k] * x[k];
        }
    }
    let rest: f64 = y_rest.iter().zip(x_rest).map(|(y, x)| y * x).sum();
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest
}
