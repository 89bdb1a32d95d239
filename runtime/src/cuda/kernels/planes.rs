//! Convolutions over two axes as the kernels that leave out zeros see them.

use super::context::Cx;
use crate::cuda::error::CudaError;
use bytemuck::{Pod, Zeroable};
use vdnn_ir::Dims;
use vdnn_ir::op::ConvAttrs;

/// `Convolution` of planes.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct Extents {
    channels: u32,
    height: u32,
    width: u32,
    filters: u32,
    out_height: u32,
    out_width: u32,
    top: i32,
    left: i32,
}

/// A convolution of one group with two spatial axes. Lists are of rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Planes {
    pub(super) images: u64,
    pub(super) channels: u64,
    pub(super) filters: u64,
    /// Of x and of y.
    pub(super) from: [u64; 2],
    pub(super) to: [u64; 2],
    pub(super) kernel: [u64; 2],
    pub(super) strides: [u64; 2],
    pub(super) dilations: [u64; 2],
    /// Padding in front.
    pub(super) before: [u64; 2],
}

impl Planes {
    /// A convolution of `x[N,C,H,W]` to `y[N,M,..]`; where it has no neighbours, a plane is one long row.
    pub(super) fn new(conv: &ConvAttrs, x: &Dims, y: &Dims) -> Self {
        let pair = |of: &Dims, at: usize| [of[at], of[at + 1]];
        let kernel = pair(&conv.kernel, 0);
        let (images, channels, filters) = (x[0], x[1], y[1]);
        let apart = kernel.iter().chain(&conv.strides).any(|&n| n != 1)
            || conv.before.iter().chain(&conv.after).any(|&p| p != 0);
        if !apart {
            return Self::line(images, channels, filters, x[2] * x[3]);
        }
        let dilations = pair(&conv.dilations, 0);
        Self {
            images,
            channels,
            filters,
            from: pair(x, 2),
            to: pair(y, 2),
            kernel,
            strides: pair(&conv.strides, 0),
            // That of a single tap is nothing, and would be another kernel.
            dilations: [0, 1].map(|i| if kernel[i] == 1 { 1 } else { dilations[i] }),
            before: pair(&conv.before, 0),
        }
    }

    /// Products at so many positions of each image.
    pub(super) fn line(images: u64, channels: u64, filters: u64, positions: u64) -> Self {
        let [from, to] = [[1, positions]; 2];
        let [kernel, strides, dilations] = [[1; 2]; 3];
        Self { images, channels, filters, from, to, kernel, strides, dilations, before: [0; 2] }
    }

    /// True if no output has an input beside its own.
    pub(super) fn is_line(&self) -> bool {
        *self == Self::line(self.images, self.channels, self.filters, self.to[1])
    }

    /// Taps of the window.
    pub(super) fn taps(&self) -> u64 {
        self.kernel[0].saturating_mul(self.kernel[1])
    }

    /// Rows and columns of input that a tile of outputs reads, but for those that the strides of a
    /// window of one leave out; saturating, since strides and dilations may be any below 2^31.
    pub(super) fn reach(&self, tile: [u64; 2]) -> [u64; 2] {
        [0, 1].map(|i| {
            let leap = if self.kernel[i] == 1 { 1 } else { self.strides[i] };
            let window = (self.kernel[i] - 1).saturating_mul(self.dilations[i]);
            (tile[i] - 1).saturating_mul(leap).saturating_add(window).saturating_add(1)
        })
    }

    /// What kernels take of it.
    ///
    /// # Errors
    /// If an image of x or y has more elements than 31-bit indices reach, or padding is beyond that.
    pub(super) fn extents(&self, cx: &Cx<'_>) -> Result<Extents, CudaError> {
        for (channels, [height, width]) in [(self.channels, self.from), (self.filters, self.to)] {
            cx.count(channels.saturating_mul(height).saturating_mul(width))?;
        }
        Ok(Extents {
            channels: cx.count(self.channels)?,
            height: cx.count(self.from[0])?,
            width: cx.count(self.from[1])?,
            filters: cx.count(self.filters)?,
            out_height: cx.count(self.to[0])?,
            out_width: cx.count(self.to[1])?,
            top: cx.count(self.before[0])? as i32,
            left: cx.count(self.before[1])? as i32,
        })
    }

    /// What the macros of the sources begin with: window, strides and dilations.
    pub(super) fn arguments(&self) -> String {
        let [[ky, kx], [sy, sx], [dy, dx]] = [self.kernel, self.strides, self.dilations];
        format!("{ky}, {kx}, {sy}, {sx}, {dy}, {dx}")
    }

    /// Bytes of so many images of x and of y, elements of `size` bytes.
    pub(super) fn bytes(&self, images: u64, size: [u64; 2]) -> [u64; 2] {
        let [from, to] = [self.from, self.to].map(|plane| images * plane[0] * plane[1]);
        [from * self.channels * size[0], to * self.filters * size[1]]
    }
}
