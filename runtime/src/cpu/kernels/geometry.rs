//! Window geometry of convolutions and pools, normalised to three spatial dimensions.

use super::args::{Call, Shape};
use std::ops::Range;
use vdnn_ir::kernel::KernelError;
use vdnn_ir::op::{ConvAttrs, PoolAttrs};

/// One spatial dimension of a window operation. Output `o` reads, at tap `k`, input
/// `o * stride + k * dilation - before` if that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dim {
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) dilation: usize,
    /// Padding in front; negative when a gradient crops.
    pub(super) before: isize,
    /// Padding behind.
    pub(super) after: isize,
}

impl Dim {
    const UNIT: Self = Self { input: 1, output: 1, kernel: 1, stride: 1, dilation: 1, before: 0, after: 0 };

    /// Input index of output 0 at tap `k`; may be negative.
    pub(super) fn origin(&self, k: usize) -> isize {
        (k * self.dilation) as isize - self.before
    }

    /// The input index, or `None` in the padding.
    pub(super) fn at(&self, o: usize, k: usize) -> Option<usize> {
        let i = (o * self.stride) as isize + self.origin(k);
        usize::try_from(i).ok().filter(|&i| i < self.input)
    }

    /// The outputs that read an existing input at tap `k`.
    pub(super) fn valid(&self, k: usize) -> Range<usize> {
        let (origin, stride) = (self.origin(k), self.stride as isize);
        let first = if origin < 0 { (-origin + stride - 1) / stride } else { 0 };
        let room = self.input as isize - origin;
        let end = if room <= 0 { 0 } else { (room + stride - 1) / stride };
        let end = (end as usize).min(self.output);
        (first as usize).min(end)..end
    }

    /// The taps that read an existing input for output `o`.
    pub(super) fn taps(&self, o: usize) -> Range<usize> {
        let start = (o * self.stride) as isize - self.before;
        let dilation = self.dilation as isize;
        let first = if start < 0 { (-start + dilation - 1) / dilation } else { 0 };
        let room = self.input as isize - start;
        let end = if room <= 0 { 0 } else { (room + dilation - 1) / dilation };
        let end = (end as usize).min(self.kernel);
        (first as usize).min(end)..end
    }

    /// The number of taps of output `o` that lie in the input or its padding.
    pub(super) fn padded_taps(&self, o: usize) -> usize {
        let start = (o * self.stride) as isize - self.before;
        let room = self.input as isize + self.after - start;
        let dilation = self.dilation as isize;
        if room <= 0 { 0 } else { (((room + dilation - 1) / dilation) as usize).min(self.kernel) }
    }
}

/// Depth, height and width; absent leading dimensions have extent 1.
pub(super) type Space = [Dim; 3];

/// A convolution over `n` images: `c` input and `m` output channels in `groups`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conv {
    pub(super) images: usize,
    pub(super) c: usize,
    pub(super) m: usize,
    pub(super) groups: usize,
    pub(super) space: Space,
}

impl Conv {
    /// Geometry of the forward convolution with input shape `x` and output shape `y`.
    pub(super) fn new(call: &Call<'_>, a: &ConvAttrs, x: &Shape, y: &Shape) -> Result<Self, KernelError> {
        let space = space(
            call,
            &x[2..],
            &y[2..],
            [&a.kernel, &a.strides, &a.dilations, &a.before, &a.after].map(|d| d.as_slice()),
        )?;
        Ok(Self { images: x[0], c: x[1], m: y[1], groups: a.groups as usize, space })
    }

    /// The pointwise convolution `Y[m, positions] = W[m, c] X[c, positions]` of one image.
    pub(super) fn product([m, positions, c]: [usize; 3]) -> Self {
        let line = Dim { input: positions, output: positions, ..Dim::UNIT };
        Self { images: 1, c, m, groups: 1, space: [Dim::UNIT, Dim::UNIT, line] }
    }

    /// Input channels per group.
    pub(super) fn c_group(&self) -> usize {
        self.c / self.groups
    }

    /// Output channels per group.
    pub(super) fn m_group(&self) -> usize {
        self.m / self.groups
    }

    /// Rows of the unfolded input: input channels of a group times taps.
    pub(super) fn depth(&self) -> usize {
        self.c_group() * self.taps()
    }

    pub(super) fn taps(&self) -> usize {
        taps(&self.space)
    }

    pub(super) fn inputs(&self) -> usize {
        inputs(&self.space)
    }

    pub(super) fn outputs(&self) -> usize {
        outputs(&self.space)
    }

    /// Multiply-adds of the whole operation.
    pub(super) fn macs(&self) -> usize {
        self.images * self.m * self.depth() * self.outputs()
    }

    /// True if the unfolded input is the input itself.
    pub(super) fn is_pointwise(&self) -> bool {
        self.space.iter().all(|d| d.kernel == 1 && d.stride == 1 && d.before == 0 && d.input == d.output)
    }

    /// True if the outputs of every image can be counted in 31 bits, as can the inputs.
    pub(super) fn transposed_fits(&self) -> bool {
        let most = self.inputs().max(self.outputs());
        i32::try_from(most.saturating_mul(self.c.max(self.m))).is_ok()
    }

    /// The convolution that computes dx from dy with flipped weights; exists if every
    /// stride is 1.
    pub(super) fn transposed(&self) -> Option<Self> {
        if self.space.iter().any(|d| d.stride != 1) {
            return None;
        }
        let space = self.space.map(|d| {
            let reach = ((d.kernel - 1) * d.dilation) as isize;
            Dim { input: d.output, output: d.input, before: reach - d.before, after: reach - d.after, ..d }
        });
        Some(Self { c: self.m, m: self.c, space, ..*self })
    }
}

/// Geometry of a pool with input shape `x` and output shape `y`.
pub(super) fn pool(call: &Call<'_>, a: &PoolAttrs, x: &Shape, y: &Shape) -> Result<Space, KernelError> {
    space(
        call,
        &x[2..],
        &y[2..],
        [&a.kernel, &a.strides, &a.dilations, &a.before, &a.after].map(|d| d.as_slice()),
    )
}

fn space(
    call: &Call<'_>,
    input: &[usize],
    output: &[usize],
    [kernel, strides, dilations, before, after]: [&[u64]; 5],
) -> Result<Space, KernelError> {
    let rank = input.len();
    if rank > 3 {
        return Err(call.unsupported(format!("{rank} spatial dimensions; at most 3")));
    }
    let mut space = [Dim::UNIT; 3];
    for i in 0..rank {
        space[3 - rank + i] = Dim {
            input: input[i],
            output: output[i],
            kernel: kernel[i] as usize,
            stride: strides[i] as usize,
            dilation: dilations[i] as usize,
            before: before[i] as isize,
            after: after[i] as isize,
        };
    }
    Ok(space)
}

/// Taps of a window.
pub(super) fn taps(s: &Space) -> usize {
    s.iter().map(|d| d.kernel).product()
}

/// Elements of an input plane.
pub(super) fn inputs(s: &Space) -> usize {
    s.iter().map(|d| d.input).product()
}

/// Elements of an output plane.
pub(super) fn outputs(s: &Space) -> usize {
    s.iter().map(|d| d.output).product()
}

/// A tap's position along each dimension.
pub(super) fn tap_at(s: &Space, tap: usize) -> [usize; 3] {
    let (rest, w) = (tap / s[2].kernel, tap % s[2].kernel);
    [rest / s[1].kernel, rest % s[1].kernel, w]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_agree_with_the_definition() {
        for kernel in 1..4 {
            for stride in 1..4 {
                for dilation in 1..3 {
                    for before in -1isize..4 {
                        let d = Dim { input: 5, output: 4, kernel, stride, dilation, before, after: 1 };
                        for k in 0..kernel {
                            let hits: Vec<_> = (0..4).filter(|&o| d.at(o, k).is_some()).collect();
                            assert_eq!(d.valid(k).collect::<Vec<_>>(), hits, "{d:?} tap {k}");
                        }
                        for o in 0..4 {
                            let hits: Vec<_> = (0..kernel).filter(|&k| d.at(o, k).is_some()).collect();
                            assert_eq!(d.taps(o).collect::<Vec<_>>(), hits, "{d:?} output {o}");
                        }
                    }
                }
            }
        }
    }
}
