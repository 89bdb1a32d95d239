//! The closed set of operations, with everything the passes must know about each:
//! operands, in-place rights, phase legality. Shape rules are in [`infer`], work and
//! traffic in [`work`].
//!
//! Images are N, C, then one or more spatial dimensions, whatever their order in memory (see
//! [`infer::takes_channels_last`]). All arithmetic is f32 unless stated. The text form of an op is RON (`Display`/`FromStr`).
//!
//! Feature maps, their gradients, and operands of convolutions and products may be bf16, all of
//! one op alike; arithmetic is f32 then, too, and results are rounded once ([`crate::bf16`]).
//! Parameters and statistics of batch norms, losses, softmax and updates are f32 always, and so
//! are the third operand and the results of [`Op::Gemm`] and [`Op::MatMul`] and the result of
//! [`Op::Reduce`].

pub mod attrs;
pub mod elementwise;
pub mod infer;
pub mod pyramid;
pub mod work;

pub use attrs::{
    BinaryKind, ConvAttrs, LossReduction, LrnAttrs, PoolAttrs, ReduceKind, SavedOperand, SliceAttrs,
    UnaryKind,
};
pub use elementwise::{ElementwiseAttrs, ElementwiseStep, StepOperand};
pub use pyramid::{PyramidAttrs, PyramidKind, PyramidLayer, PyramidStep, PyramidUse};

use crate::phase::Phase;
use crate::sparse::SparseForm;
use crate::types::{DType, Dims, Layout, Real};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// One operation. Comments give `inputs -> outputs`; brackets mark optional operands,
/// which are always trailing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    // ---- forward -------------------------------------------------------------------
    /// `x[N,C,..], w[M,C/g,k..], [b[M]] -> y`: cross-correlation (ONNX Conv), any spatial rank.
    Conv(ConvAttrs),
    /// `x -> y, [idx]`: idx is the row-major offset of the first maximum inside its window
    /// (u8 if the window has at most 256 positions, else i32), for [`Op::MaxPoolGrad`].
    MaxPool(PoolAttrs),
    /// `x -> y`.
    AvgPool {
        /// Window geometry.
        pool: PoolAttrs,
        /// Padded positions count in the divisor (the ceil extension never does).
        count_include_pad: bool,
    },
    /// `x, scale[C], bias[C], mean[C], var[C] -> y`: inference with running statistics.
    BatchNormInfer {
        /// Added to the variance.
        eps: Real,
        /// Weight of the old running statistic, should autodiff make this a
        /// [`Op::BatchNormTrain`]; no part of the inference arithmetic.
        momentum: Real,
    },
    /// `x, scale, bias, mean, var -> y, new_mean, new_var, batch_mean, batch_invstd`: batch
    /// statistics, biased variance; `new = old * momentum + batch * (1 - momentum)` (ONNX).
    BatchNormTrain {
        /// Added to the variance.
        eps: Real,
        /// Weight of the old running statistic.
        momentum: Real,
    },
    /// `x, scale, bias, mean, var, [r] -> y, new_mean, new_var, batch_mean, batch_invstd`:
    /// [`Op::BatchNormTrain`], then `y = max(y + r, 0)`, in the same pass over x.
    BatchNormTrainRelu {
        /// Added to the variance.
        eps: Real,
        /// Weight of the old running statistic.
        momentum: Real,
    },
    /// `scale[C], bias[C], mean[C], var[C], x0, [x1, ..] -> y`: [`Op::Concat`] of the x along the
    /// channels, [`Op::BatchNormInfer`], then `max(y, 0)`, in one pass over the x.
    BatchNormInferRelu {
        /// Added to the variance.
        eps: Real,
    },
    /// `scale[C], bias[C], batch_mean[C], batch_invstd[C], x0, [x1, ..] -> y`: the y of
    /// [`Op::BatchNormTrainRelu`] without r again, from the statistics it has left, of
    /// [`Op::Concat`] of the x along the channels. To the bit.
    BatchNormApplyRelu {
        /// Added to the variance in the forward pass.
        eps: Real,
    },
    /// `scale, bias, mean, var, [known_mean, known_invstd], x0, [x1, ..] -> y, new_mean, new_var,
    /// batch_mean, batch_invstd`: [`Op::BatchNormTrainRelu`] of [`Op::Concat`] of the x along the
    /// channels, which is not stored. At most [`MAX_JOINED`] x.
    BatchNormTrainReluJoined {
        /// Added to the variance.
        eps: Real,
        /// Weight of the old running statistic.
        momentum: Real,
        /// The first results for the channels of the first few x are given, as another batch norm
        /// with this eps found them, and need not be found again.
        known: bool,
    },
    /// `x, w, b, [r] -> y`: [`Op::Conv`], then `y + r`, then `max(y, 0)` if `relu`, before the
    /// result is stored.
    ConvEpilogue {
        /// The convolution.
        conv: ConvAttrs,
        /// Ends with a ReLU.
        relu: bool,
    },
    /// `x[N,C,H,W], (w, [b], [r..]).. -> y`: convolutions and pools one after the other, each with
    /// its operands, in one kernel that stores nothing in between ([`pyramid`]).
    Pyramid(PyramidAttrs),
    /// `x[N,C,..] -> y`: across-channel local response normalisation (ONNX LRN).
    Lrn(LrnAttrs),
    /// `a[.,.], b[.,.], [c] -> y[M,N]`: `alpha * op(a) op(b) + beta * c`; c broadcasts to y.
    Gemm {
        /// Use a transposed.
        trans_a: bool,
        /// Use b transposed.
        trans_b: bool,
        /// Factor of the product.
        alpha: Real,
        /// Factor of c.
        beta: Real,
    },
    /// `a, b -> y`: numpy matmul with broadcast batch dimensions; both of rank >= 2.
    MatMul {
        /// Swap the last two dimensions of a.
        trans_a: bool,
        /// Swap the last two dimensions of b.
        trans_b: bool,
    },
    /// `x -> y`, elementwise.
    Unary(UnaryKind),
    /// `a, b -> y`, elementwise with numpy broadcasting.
    Binary(BinaryKind),
    /// `x0, [x1, ..] -> y`: several elementwise ops in one pass over memory ([`elementwise`]).
    Elementwise(ElementwiseAttrs),
    /// `x -> y`.
    Reduce {
        /// What is computed.
        kind: ReduceKind,
        /// Axes, ascending, in `0..rank`.
        axes: Dims,
        /// Keep reduced axes with extent 1.
        keepdims: bool,
    },
    /// `x -> y` along one axis.
    Softmax {
        /// Axis in `0..rank`.
        axis: u64,
    },
    /// `x -> y` along one axis.
    LogSoftmax {
        /// Axis in `0..rank`.
        axis: u64,
    },
    /// `x0, x1, .. -> y`.
    Concat {
        /// Axis in `0..rank`.
        axis: u64,
    },
    /// `x -> y0, y1, ..`.
    Split {
        /// Axis in `0..rank`.
        axis: u64,
        /// Extent of each output along the axis; they add up to the input's.
        sizes: Dims,
    },
    /// `x -> y`: strided range per dimension.
    Slice(SliceAttrs),
    /// `x -> y`: constant padding; negative amounts crop. One entry per dimension.
    Pad {
        /// Elements added in front.
        before: smallvec::SmallVec<[i64; 4]>,
        /// Elements added behind.
        after: smallvec::SmallVec<[i64; 4]>,
        /// The padding value.
        value: Real,
    },
    /// `x -> y`: same bytes, other shape. Never moves data: y always shares x's bytes.
    Reshape {
        /// The new shape.
        dims: Dims,
    },
    /// `x -> y`: the same tensor of rank 4 in another memory layout.
    Relayout {
        /// Layout of y.
        to: Layout,
    },
    /// `x -> y`: the same tensor with f32 or bf16 elements, rounded to nearest, ties to even.
    Cast {
        /// Element type of y.
        to: DType,
    },
    /// `x -> y`: `y.dims[i] = x.dims[perm[i]]`.
    Transpose {
        /// The permutation.
        perm: Dims,
    },
    /// `x -> y`: numpy broadcast to `dims` (x's rank may be smaller).
    Expand {
        /// The resulting shape.
        dims: Dims,
    },
    /// `x, step:i64[] -> y`: `y[i] = x[i]/(1-ratio)` if `U(mix(seed, step), first + i) >= ratio`
    /// else 0. The mask depends only on (seed, step, i), so the gradient is the same op on dy.
    Dropout {
        /// Probability of zero.
        ratio: Real,
        /// Stream of this layer.
        seed: u64,
        /// Elements of the stream before the first: those of the batch's earlier slices.
        #[serde(default, skip_serializing_if = "is_zero")]
        first: u64,
    },
    /// `logits[N,C,..], labels:i64[N,..], [weight[C]] -> loss, log_prob`. Loss is `[]` for
    /// mean and sum, the labels' shape for none. Mean divides by the sum of label weights.
    SoftmaxCrossEntropy {
        /// How per-element losses combine.
        reduction: LossReduction,
        /// Labels with this value contribute nothing.
        ignore_index: Option<i64>,
    },
    /// `log_prob[N,C,..], labels:i64[N,..], [weight[C]] -> loss`: the second half of
    /// [`Op::SoftmaxCrossEntropy`], of log-probabilities that need not add up to one.
    NegativeLogLikelihood {
        /// How per-element losses combine.
        reduction: LossReduction,
        /// Labels with this value contribute nothing.
        ignore_index: Option<i64>,
    },
    /// `-> y`: a constant tensor of one value.
    Fill {
        /// The value.
        value: Real,
        /// The shape.
        dims: Dims,
    },
    // ---- sparsity, inference only ----------------------------------------------------
    /// `x, indices:i32[K] -> y`: `y[.., j, ..] = x[.., indices[j], ..]` along one axis.
    Gather {
        /// Axis in `0..rank`.
        axis: u64,
    },
    /// `w[M,..] -> p:i32[L]`: the elements or blocks of w that are not zero, row by row, or two of every
    /// four channels, in the format of [`crate::sparse`].
    PackSparse {
        /// How many there is room for; of two of four the pieces, which are always all.
        nonzeros: u64,
        /// The format.
        #[serde(default, skip_serializing_if = "SparseForm::is_csr")]
        form: SparseForm,
    },
    /// `x[N,C,..], p:i32[L], [b[M]], [r[N,M,..]] -> y`: [`Op::Conv`] with the weights that were
    /// packed into p; without spatial dimensions, `y[N,M] = x w^T + b`, with them it may be
    /// [`Op::ConvEpilogue`]. Only weights row by row know groups.
    SparseConv {
        /// The convolution; empty lists without spatial dimensions.
        conv: ConvAttrs,
        /// Shape of the weights, `[M,C/g,k..]`.
        w_dims: Dims,
        /// How they are packed.
        #[serde(default, skip_serializing_if = "SparseForm::is_csr")]
        form: SparseForm,
        /// Ends with a ReLU.
        #[serde(default, skip_serializing_if = "is_false")]
        relu: bool,
    },
    /// `x[N,C,H,W], w[C,k*k,M], [b[M]], [r] -> y`: [`Op::ConvEpilogue`] on the weights
    /// `[M,C,k,k]` with the filters last, for kernels that leave out products with zeros of x. The
    /// weights must be finite. One group.
    SparseInputConv {
        /// The convolution.
        conv: ConvAttrs,
        /// Ends with a ReLU.
        relu: bool,
    },
    // ---- backward ------------------------------------------------------------------
    /// `dy, w -> dx`.
    ConvDgrad {
        /// The forward convolution.
        conv: ConvAttrs,
        /// Shape of x.
        x_dims: Dims,
    },
    /// `x, dy -> dw`.
    ConvWgrad {
        /// The forward convolution.
        conv: ConvAttrs,
        /// Shape of w.
        w_dims: Dims,
    },
    /// `dy, idx -> dx`.
    MaxPoolGrad {
        /// The forward pool.
        pool: PoolAttrs,
        /// Shape of x.
        x_dims: Dims,
    },
    /// `dy -> dx`.
    AvgPoolGrad {
        /// The forward pool.
        pool: PoolAttrs,
        /// As in the forward pool.
        count_include_pad: bool,
        /// Shape of x.
        x_dims: Dims,
    },
    /// `dy, x, scale, batch_mean, batch_invstd -> dx, dscale, dbias`.
    BatchNormGrad,
    /// `dy, x, scale, bias, batch_mean, batch_invstd, [y] -> dx, dscale, dbias, [dr]`: gradient
    /// of [`Op::BatchNormTrainRelu`]. Where y is given it gates dy, and dr is dy gated; else
    /// the normalised x is computed again for that.
    BatchNormReluGrad {
        /// Added to the variance in the forward pass.
        eps: Real,
    },
    /// `dy, scale, bias, batch_mean, batch_invstd, [g], x0, [x1, ..] -> dx, dscale, dbias`: gradient
    /// of [`Op::BatchNormTrainReluJoined`]; dx is that of the concat, and the first channels of g
    /// are added to it. At most [`MAX_JOINED`] x.
    BatchNormReluGradJoined {
        /// Added to the variance in the forward pass.
        eps: Real,
        /// There is a g: as dy, perhaps with more channels.
        added: bool,
    },
    /// `dy, x, scale, mean, var -> dx, dscale, dbias`: statistics are constants.
    BatchNormInferGrad {
        /// Added to the variance.
        eps: Real,
    },
    /// `a, x -> y`: [`Op::Slice`] of x, added to a. What a concat sends back to an operand that
    /// others read, too.
    AddSlice(SliceAttrs),
    /// `dy, x, y -> dx`.
    LrnGrad(LrnAttrs),
    /// `dy, s -> dx`: s is x or y of the forward op, as [`UnaryKind::saves`] says.
    UnaryGrad(UnaryKind),
    /// `dy, y -> dx`.
    SoftmaxGrad {
        /// Axis in `0..rank`.
        axis: u64,
    },
    /// `dy, y -> dx`.
    LogSoftmaxGrad {
        /// Axis in `0..rank`.
        axis: u64,
    },
    /// `dy -> dx`: dy scattered into zeros.
    SliceGrad {
        /// The forward slice.
        slice: SliceAttrs,
        /// Shape of x.
        x_dims: Dims,
    },
    /// `dloss, log_prob, labels, [weight] -> dlogits`.
    SoftmaxCrossEntropyGrad {
        /// As forward.
        reduction: LossReduction,
        /// As forward.
        ignore_index: Option<i64>,
    },
    /// `dloss, labels, [weight] -> dlog_prob`.
    NegativeLogLikelihoodGrad {
        /// As forward.
        reduction: LossReduction,
        /// As forward.
        ignore_index: Option<i64>,
        /// Shape of log_prob.
        x_dims: Dims,
    },
    // ---- update --------------------------------------------------------------------
    /// `w, v, g, hyper[3] -> w', v'` with hyper = (lr, momentum, weight decay):
    /// `v' = momentum*v + (g + decay*w); w' = w - lr*v'`. Always in place. Up to
    /// [`MAX_UPDATES`] weights at once: `w0, v0, g0, w1, v1, g1, .., hyper -> w0', v0', w1', v1', ..`.
    SgdUpdate,
    // ---- transfers: start/done pairs -------------------------------------------------
    /// `x -> h`: starts the copy of x to host value h on the device-to-host stream.
    OffloadStart,
    /// `h, x -> h'`: compute waits for the copy; x may be released after this. h' is h.
    OffloadDone,
    /// `h -> x1`: starts the copy back into new device bytes on the host-to-device stream.
    PrefetchStart,
    /// `x1, h -> x2`: compute waits for the copy; x2 is x1; h may be released after this.
    PrefetchDone,
}

/// Most tensors that a batch norm joins in training.
pub const MAX_JOINED: usize = 64;

/// Most weights of one [`Op::SgdUpdate`].
pub const MAX_UPDATES: usize = 64;

/// In-place pairs of an optimizer step of so many weights; of fewer, the first ones.
const UPDATES: [(usize, usize); 2 * MAX_UPDATES] = {
    let mut pairs = [(0, 0); 2 * MAX_UPDATES];
    let mut i = 0;
    while i < pairs.len() {
        pairs[i] = (i, i / 2 * 3 + i % 2);
        i += 1;
    }
    pairs
};

impl Op {
    /// The weights, momenta and gradients of an optimizer step, in turn.
    ///
    /// ```
    /// # use vdnn_ir::Op;
    /// let operands = ["w0", "v0", "g0", "w1", "v1", "g1", "hyper"];
    /// assert_eq!(Op::updates(&operands).collect::<Vec<_>>(), [["w0", "v0", "g0"], ["w1", "v1", "g1"]]);
    /// ```
    pub fn updates<T: Copy>(inputs: &[T]) -> impl Iterator<Item = [T; 3]> {
        inputs.chunks_exact(3).map(|x| [x[0], x[1], x[2]])
    }

    /// Pairs (output, input) where the output may take the input's bytes if the input is
    /// dead afterwards and both have the same type. An input not listed is read until the
    /// op ends ("late") and may overlap no output. Slices and concats of rows, which may share
    /// bytes with their operands without overwriting them, are in [`crate::rows`].
    pub fn inplace(&self) -> &'static [(usize, usize)] {
        match self {
            Self::Unary(_)
            | Self::UnaryGrad(_)
            | Self::Dropout { .. }
            | Self::BatchNormInfer { .. }
            | Self::BatchNormGrad
            | Self::BatchNormReluGrad { .. }
            | Self::BatchNormReluGradJoined { .. }
            | Self::BatchNormInferGrad { .. }
            | Self::AddSlice(_) => &[(0, 0)],
            // Only a lone x has the result's type.
            Self::BatchNormInferRelu { .. } | Self::BatchNormApplyRelu { .. } => &[(0, 4)],
            Self::Binary(_) => &[(0, 0), (0, 1)],
            Self::Elementwise(_) => &[(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5)],
            Self::BatchNormTrain { .. } | Self::BatchNormTrainRelu { .. } => &[(1, 3), (2, 4)],
            Self::BatchNormTrainReluJoined { .. } => &[(1, 2), (2, 3)],
            Self::SgdUpdate => &UPDATES,
            _ => &[],
        }
    }

    /// Pairs (output, input) that always share bytes because the op moves no data.
    pub fn views(&self) -> &'static [(usize, usize)] {
        match self {
            Self::Reshape { .. } | Self::OffloadDone | Self::PrefetchDone => &[(0, 0)],
            _ => &[],
        }
    }

    /// The number of the operand from which on a batch norm joins all along their channels.
    pub fn first_joined(&self) -> Option<usize> {
        match self {
            Self::BatchNormInferRelu { .. } | Self::BatchNormApplyRelu { .. } => Some(4),
            Self::BatchNormTrainReluJoined { known, .. } => Some(if *known { 6 } else { 4 }),
            Self::BatchNormReluGradJoined { added, .. } => Some(if *added { 6 } else { 5 }),
            _ => None,
        }
    }

    /// True for the four halves of the offload and prefetch pairs.
    pub fn is_transfer(&self) -> bool {
        matches!(self, Self::OffloadStart | Self::OffloadDone | Self::PrefetchStart | Self::PrefetchDone)
    }

    /// True for the three convolution directions, which need an algorithm from
    /// [`Phase::Selected`] on.
    pub fn is_conv(&self) -> bool {
        matches!(
            self,
            Self::Conv(_) | Self::ConvEpilogue { .. } | Self::ConvDgrad { .. } | Self::ConvWgrad { .. }
        )
    }

    /// The first phase whose graphs may contain this op.
    pub fn earliest_phase(&self) -> Phase {
        match self {
            Self::ConvDgrad { .. }
            | Self::ConvWgrad { .. }
            | Self::MaxPoolGrad { .. }
            | Self::AvgPoolGrad { .. }
            | Self::BatchNormGrad
            | Self::BatchNormTrainRelu { .. }
            | Self::BatchNormReluGrad { .. }
            | Self::BatchNormInferRelu { .. }
            | Self::BatchNormApplyRelu { .. }
            | Self::BatchNormTrainReluJoined { .. }
            | Self::BatchNormReluGradJoined { .. }
            | Self::AddSlice(_)
            | Self::ConvEpilogue { .. }
            | Self::Pyramid(_)
            | Self::Elementwise(_)
            | Self::BatchNormInferGrad { .. }
            | Self::LrnGrad(_)
            | Self::UnaryGrad(_)
            | Self::SoftmaxGrad { .. }
            | Self::LogSoftmaxGrad { .. }
            | Self::SliceGrad { .. }
            | Self::SoftmaxCrossEntropyGrad { .. }
            | Self::NegativeLogLikelihoodGrad { .. }
            | Self::SgdUpdate
            | Self::Cast { .. }
            | Self::Gather { .. }
            | Self::PackSparse { .. }
            | Self::SparseConv { .. }
            | Self::SparseInputConv { .. }
            | Self::Relayout { .. } => Phase::Joint,
            Self::OffloadStart | Self::OffloadDone | Self::PrefetchStart | Self::PrefetchDone => {
                Phase::Placed
            }
            _ => Phase::Imported,
        }
    }

    /// Lower-case name without attributes, as in the text form.
    pub fn name(&self) -> String {
        let text = self.to_string();
        text.split(['(', ' ']).next().unwrap_or_default().to_owned()
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_false(b: &bool) -> bool {
    !b
}

fn ron_options() -> ron::Options {
    ron::Options::default()
        .with_default_extension(ron::extensions::Extensions::UNWRAP_VARIANT_NEWTYPES)
        .with_recursion_limit(32)
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&ron_options().to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for Op {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        ron_options().from_str(text).map_err(|e| format!("not an op: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn op_text_is_compact_and_parses_back() {
        let conv = Op::Conv(ConvAttrs {
            kernel: [3, 3].as_slice().into(),
            strides: [1, 1].as_slice().into(),
            before: [1, 1].as_slice().into(),
            after: [1, 1].as_slice().into(),
            dilations: [1, 1].as_slice().into(),
            groups: 1,
        });
        assert_eq!(
            conv.to_string(),
            "conv(kernel:[3,3],strides:[1,1],before:[1,1],after:[1,1],dilations:[1,1],groups:1)"
        );
        let clip = Op::Unary(UnaryKind::Clip { lo: Real(f32::NEG_INFINITY), hi: Real(6.0) });
        assert_eq!(clip.to_string(), "unary(clip(lo:-inf,hi:6.0))");
        for op in [conv, clip, Op::BatchNormGrad, Op::Unary(UnaryKind::Relu)] {
            assert_eq!(op.to_string().parse::<Op>().as_ref(), Ok(&op));
        }
    }
}
