//! Convolution algorithms: which can run, how much workspace each needs, and how much work
//! and memory traffic it is.
//!
//! The vocabulary, the stride, dilation and extent limits are those of the algorithm tables
//! in NVIDIA's cuDNN API reference (`cudnnConvolutionFwdAlgo_t` and its two backward
//! siblings). The workspace formulas are ours, from the definition of each algorithm:
//!
//! | algorithm | workspace | reference |
//! |---|---|---|
//! | implicit GEMM | 0 | Chetlur et al., *cuDNN*, arXiv 1410.0759 |
//! | implicit precomputed GEMM | one 4-byte offset per reduction step and output pixel; weight gradients also one partial sum of the result | same |
//! | GEMM | the im2col matrix of one image | Chellapilla et al., 2006 |
//! | FFT | f32 half spectra of x, w and y, extents padded to powers of two | Mathieu et al., arXiv 1312.5851 |
//! | FFT tiling | the same for 32x32 tiles with overlap kernel - 1, of at most two tiles at a time | Vasilache et al., arXiv 1412.7580 |
//! | Winograd | the filters, transformed for F(2x2, 3x3) | Lavin and Gray, arXiv 1509.09308 |
//! | Winograd, not fused | data, filters and products, transformed for F(4x4, 3x3) or F(5x5, 5x5) | same |
//!
//! Two of them meet what cuDNN 9.19 asks for to the byte: 192 to 384 channels, 3x3, 13x13,
//! batch 256 not-fused Winograd 334 MiB; 64 to 192 channels, 5x5, 27x27, batch 256 tiled FFT
//! 323 MiB. Where an image takes more than one tile, its tiled FFT asks for the spectra of two
//! (six shapes measured, forward and backward data): 64 to 64 channels, 3x3, batch 64 take
//! 85 MiB at 56x56 as well as at 224x224.

use vdnn_ir::graph::ConvAlgo;
use vdnn_ir::op::ConvAttrs;
use vdnn_ir::{Bytes, Op, TensorType};

/// Direction of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConvDir {
    /// `y` from `x` and `w`.
    Fprop,
    /// `dx` from `dy` and `w`.
    Dgrad,
    /// `dw` from `x` and `dy`.
    Wgrad,
}

/// Every algorithm, in the order that breaks ties.
pub(crate) const ALGOS: [ConvAlgo; 7] = ConvAlgo::CLASSIC;

/// Edge of a tile of the tiled FFT.
const FFT_TILE: u64 = 32;
/// Complex values of a tile's half spectrum.
const FFT_TILE_VALUES: u64 = FFT_TILE * (FFT_TILE / 2 + 1);
/// Tiles of an image whose spectra the tiled FFT holds at once, as cuDNN 9.19 does.
const FFT_TILES_HELD: u64 = 2;
/// Largest padded extent of the whole-image FFT.
const FFT_MAX: u64 = 256;

/// Shape of one convolution, whatever its direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConvShape<'a> {
    pub dir: ConvDir,
    pub attrs: &'a ConvAttrs,
    /// Batch.
    pub n: u64,
    /// Input channels.
    pub c: u64,
    /// Output channels.
    pub k: u64,
    /// Spatial extents of x.
    pub x: &'a [u64],
    /// Spatial extents of y.
    pub y: &'a [u64],
}

/// Product that sticks at the largest value.
fn mul(factors: impl IntoIterator<Item = u64>) -> u64 {
    factors.into_iter().fold(1, u64::saturating_mul)
}

impl<'a> ConvShape<'a> {
    /// The shape of a convolution node; `None` for other ops and for operands that are none
    /// of a convolution's.
    pub(crate) fn of(op: &'a Op, inputs: &[&'a TensorType], outputs: &[&'a TensorType]) -> Option<Self> {
        let (dir, attrs, x, y): (_, _, &[u64], &[u64]) = match op {
            Op::Conv(attrs) | Op::ConvEpilogue { conv: attrs, .. } => {
                (ConvDir::Fprop, attrs, &inputs.first()?.dims, &outputs.first()?.dims)
            }
            Op::ConvDgrad { conv, x_dims } => (ConvDir::Dgrad, conv, x_dims, &inputs.first()?.dims),
            Op::ConvWgrad { conv, .. } => (ConvDir::Wgrad, conv, &inputs.first()?.dims, &inputs.get(1)?.dims),
            _ => return None,
        };
        let rank = attrs.kernel.len();
        let lists = [&attrs.strides, &attrs.before, &attrs.after, &attrs.dilations];
        if x.len() != rank + 2
            || y.len() != rank + 2
            || attrs.groups == 0
            || lists.iter().any(|l| l.len() != rank)
        {
            return None;
        }
        Some(Self { dir, attrs, n: x[0], c: x[1], k: y[1], x: &x[2..], y: &y[2..] })
    }

    /// Input channels of one group.
    fn group_c(&self) -> u64 {
        self.c / self.attrs.groups
    }
    /// Output channels of one group.
    fn group_k(&self) -> u64 {
        self.k / self.attrs.groups
    }
    /// Kernel taps.
    fn taps(&self) -> u64 {
        mul(self.attrs.kernel.iter().copied())
    }
    /// One input and one output channel per group.
    pub(crate) fn is_depthwise(&self) -> bool {
        self.attrs.groups > 1 && self.group_c() == 1
    }

    /// Whether `algo` can run this convolution.
    pub(crate) fn legal(&self, algo: ConvAlgo) -> bool {
        let a = self.attrs;
        // What all transform algorithms ask for.
        let plain = a.kernel.len() == 2
            && a.groups == 1
            && a.strides.iter().all(|&s| s == 1)
            && a.dilations.iter().all(|&d| d == 1);
        let padding_below_kernel =
            a.kernel.iter().zip(a.before.iter().zip(&a.after)).all(|(&r, (&b, &e))| r > b && r > e);
        match algo {
            ConvAlgo::ImplicitGemm | ConvAlgo::ImplicitPrecompGemm => true,
            // Known by measurement only.
            ConvAlgo::Engine(_) => false,
            ConvAlgo::Gemm => self.dir == ConvDir::Fprop,
            ConvAlgo::Fft => plain && padding_below_kernel && (0..2).all(|i| self.padded(i) <= FFT_MAX),
            ConvAlgo::FftTiling => {
                plain && padding_below_kernel && a.kernel.iter().all(|&r| r > 1 && r <= FFT_TILE)
            }
            ConvAlgo::Winograd => plain && a.kernel[..] == [3, 3] && self.dir != ConvDir::Wgrad,
            ConvAlgo::WinogradNonfused => plain && matches!(a.kernel[..], [3, 3] | [5, 5]),
        }
    }

    /// Extent of x with its padding.
    fn padded(&self, i: usize) -> u64 {
        self.x[i].saturating_add(self.attrs.before[i]).saturating_add(self.attrs.after[i])
    }

    /// Edge of the outputs and of the inputs of a not-fused Winograd tile.
    fn winograd_tile(&self) -> (u64, u64) {
        if self.attrs.kernel[..] == [5, 5] { (5, 9) } else { (4, 6) }
    }

    /// Tiles of edge `out` that cover what is tiled.
    fn tiles(&self, out: u64) -> u64 {
        mul(self.tiled().iter().map(|&extent| extent.div_ceil(out)))
    }

    /// Tiles of the tiled FFT, which overlap by the kernel's extent less one.
    fn fft_tiles(&self) -> u64 {
        let tiles = self.tiled().iter().zip(&self.attrs.kernel);
        mul(tiles.map(|(&extent, &r)| extent.div_ceil((FFT_TILE + 1).saturating_sub(r).max(1))))
    }

    /// Complex values of the half spectrum of a whole padded image.
    fn fft_values(&self) -> u64 {
        let (h, w) = (self.padded(0).next_power_of_two(), self.padded(1).next_power_of_two());
        mul([h, w / 2 + 1])
    }

    /// What is tiled: the result, or for weight gradients the image that plays the filter.
    fn tiled(&self) -> &[u64] {
        if self.dir == ConvDir::Dgrad { self.x } else { self.y }
    }

    /// Bytes of transformed data, products and filters at `values` bytes per tile and channel.
    fn transformed(&self, tile_bytes: u64, tiles: u64) -> u64 {
        let data = mul([tile_bytes, tiles, self.n, self.c.saturating_add(self.k)]);
        data.saturating_add(mul([tile_bytes, self.c, self.k]))
    }

    /// Workspace of a legal `algo`.
    pub(crate) fn workspace(&self, algo: ConvAlgo) -> Bytes {
        Bytes(match algo {
            ConvAlgo::ImplicitGemm | ConvAlgo::Engine(_) => 0,
            ConvAlgo::ImplicitPrecompGemm => {
                let (channels, pixels) = match self.dir {
                    ConvDir::Fprop => (self.group_c(), self.y),
                    ConvDir::Dgrad => (self.group_k(), self.x),
                    ConvDir::Wgrad => (self.group_c(), self.y),
                };
                let offsets = mul([channels, self.taps()]).saturating_add(mul(pixels.iter().copied()));
                let partial = match self.dir {
                    ConvDir::Wgrad => mul([self.k, self.group_c(), self.taps()]),
                    _ => 0,
                };
                mul([4, offsets.saturating_add(partial)])
            }
            ConvAlgo::Gemm => self.im2col_image(),
            ConvAlgo::Fft => self.transformed(mul([8, self.fft_values()]), 1),
            ConvAlgo::FftTiling => {
                self.transformed(8 * FFT_TILE_VALUES, self.fft_tiles().min(FFT_TILES_HELD))
            }
            ConvAlgo::Winograd => mul([4 * 16, self.c, self.k]),
            ConvAlgo::WinogradNonfused => {
                let (out, edge) = self.winograd_tile();
                self.transformed(4 * edge * edge, self.tiles(out))
            }
        })
    }

    /// Bytes an FFT `algo` reads and writes in its `passes` over the half spectra of x, w and
    /// y, all of them, held at once or not. An image of at most the tiles' extent is transformed
    /// inside a multiprocessor; a larger one is written after its rows and read before its
    /// columns.
    pub(crate) fn fft_traffic(&self, algo: ConvAlgo, passes: f64) -> f64 {
        if algo == ConvAlgo::FftTiling {
            return passes * self.transformed(8 * FFT_TILE_VALUES, self.fft_tiles()) as f64;
        }
        let values = self.fft_values();
        let between = if values > FFT_TILE_VALUES { 2.0 } else { 0.0 };
        (passes + between) * self.transformed(mul([8, values]), 1) as f64
    }

    /// Bytes of the im2col matrix of one image.
    fn im2col_image(&self) -> u64 {
        mul([4, self.c, self.taps(), mul(self.y.iter().copied())])
    }

    /// Bytes written to and read back from the workspace in all.
    pub(crate) fn workspace_traffic(&self, algo: ConvAlgo) -> Bytes {
        Bytes(match algo {
            ConvAlgo::Gemm => mul([2, self.n, self.im2col_image()]),
            _ => mul([2, self.workspace(algo).0]),
        })
    }

    /// Multiplications and additions of the algorithm: of its products, the transforms being
    /// memory traffic. Tiles count whole, so small images waste part of them.
    pub(crate) fn arithmetic(&self, algo: ConvAlgo) -> f64 {
        let product = |values: u64, tiles: u64, flops: u64| {
            mul([flops, values, tiles]) as f64 * mul([self.n, self.c, self.k]) as f64
        };
        match algo {
            ConvAlgo::ImplicitGemm | ConvAlgo::ImplicitPrecompGemm | ConvAlgo::Gemm | ConvAlgo::Engine(_) => {
                mul([2, self.group_c(), self.taps()]) as f64
                    * mul([self.n, self.k, mul(self.y.iter().copied())]) as f64
            }
            // A complex multiply-add is eight operations.
            ConvAlgo::Fft => product(self.fft_values(), 1, 8),
            ConvAlgo::FftTiling => product(FFT_TILE_VALUES, self.fft_tiles(), 8),
            // F(2x2, 3x3): 16 products for 4 outputs.
            ConvAlgo::Winograd => product(16, self.tiles(2), 2),
            ConvAlgo::WinogradNonfused => {
                let (out, edge) = self.winograd_tile();
                product(edge * edge, self.tiles(out), 2)
            }
        }
    }

    /// Kernels that one call launches.
    pub(crate) fn launches(&self, algo: ConvAlgo) -> u64 {
        match algo {
            ConvAlgo::ImplicitGemm | ConvAlgo::Engine(_) => 1,
            // The index table, and for weight gradients the reduction of the partial sums.
            ConvAlgo::ImplicitPrecompGemm => 2,
            ConvAlgo::Gemm | ConvAlgo::Winograd => 2,
            // Two operands there, a product, the result back.
            ConvAlgo::Fft | ConvAlgo::FftTiling | ConvAlgo::WinogradNonfused => 4,
        }
    }

    /// Work done over useful work, because channels come in tiles: few channels leave part
    /// of every tile idle. At least 1.
    pub(crate) fn tile_waste(&self, result_tile: u64, reduction_tile: u64) -> f64 {
        let waste = |channels: u64, tile: u64| {
            let channels = channels.max(1);
            channels.div_ceil(tile).saturating_mul(tile) as f64 / channels as f64
        };
        let (c, k) = (self.group_c(), self.group_k());
        let (result, reduction) = if self.dir == ConvDir::Dgrad { (c, k) } else { (k, c) };
        waste(result, result_tile) * waste(reduction, reduction_tile)
    }
}
