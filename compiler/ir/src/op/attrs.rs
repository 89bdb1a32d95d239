//! Attribute types of the ops.

use crate::types::{Dims, Real};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// Geometry of a convolution over one or more spatial dimensions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConvAttrs {
    /// Kernel extent per spatial dimension (as in the weight's shape).
    pub kernel: Dims,
    /// Stride per spatial dimension, at least 1.
    pub strides: Dims,
    /// Zero padding in front, per spatial dimension.
    pub before: Dims,
    /// Zero padding behind, per spatial dimension.
    pub after: Dims,
    /// Distance between kernel taps, at least 1.
    pub dilations: Dims,
    /// Number of groups; divides both channel counts.
    pub groups: u64,
}

impl ConvAttrs {
    /// Two spatial dimensions alike, with padding on both sides, and one group of channels.
    pub fn square(kernel: u64, stride: u64, pad: u64, dilation: u64) -> Self {
        let two = |n: u64| Dims::from_slice(&[n, n]);
        Self {
            kernel: two(kernel),
            strides: two(stride),
            before: two(pad),
            after: two(pad),
            dilations: two(dilation),
            groups: 1,
        }
    }

    /// No axes to slide along: what a fully connected layer is among convolutions
    /// ([`Op::SparseConv`](super::Op::SparseConv)).
    pub fn without_axes() -> Self {
        let none = Dims::new;
        Self { kernel: none(), strides: none(), before: none(), after: none(), dilations: none(), groups: 1 }
    }
}

/// Geometry of a pooling window.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PoolAttrs {
    /// Window extent per spatial dimension.
    pub kernel: Dims,
    /// Stride per spatial dimension, at least 1.
    pub strides: Dims,
    /// Padding in front (minus infinity for max, zero for average).
    pub before: Dims,
    /// Padding behind.
    pub after: Dims,
    /// Distance between window taps, at least 1.
    pub dilations: Dims,
    /// Round the output extent up; windows that would start in the end padding are dropped.
    pub ceil_mode: bool,
}

/// ONNX LRN: `y = x / (bias + alpha/size * sum(x^2 over the channel window))^beta`; the
/// window is `floor((size-1)/2)` channels before and `ceil((size-1)/2)` after.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LrnAttrs {
    /// Channels in the window.
    pub size: u64,
    /// Scale of the squares.
    pub alpha: Real,
    /// Exponent.
    pub beta: Real,
    /// Additive constant (ONNX `bias`).
    pub bias: Real,
}

/// One strided range per dimension of the input: `start, start+step, ..`, `len` elements.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SliceAttrs {
    /// First index per dimension.
    pub starts: Dims,
    /// Step per dimension; may be negative, never zero.
    pub steps: SmallVec<[i64; 4]>,
    /// Number of elements per dimension.
    pub lens: Dims,
}

/// Which forward operand a unary gradient reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavedOperand {
    /// The forward input.
    X,
    /// The forward output.
    Y,
}

/// Elementwise functions of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnaryKind {
    /// `max(x, 0)`.
    Relu,
    /// `x < 0 ? alpha*x : x`.
    LeakyRelu {
        /// Slope below zero.
        alpha: Real,
    },
    /// `min(max(x, lo), hi)`; infinities where absent.
    Clip {
        /// Lower bound.
        lo: Real,
        /// Upper bound.
        hi: Real,
    },
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `max(0, min(1, alpha*x + beta))`.
    HardSigmoid {
        /// Slope.
        alpha: Real,
        /// Offset.
        beta: Real,
    },
    /// `x * max(0, min(1, x/6 + 0.5))`.
    HardSwish,
    /// Hyperbolic tangent.
    Tanh,
    /// `x < 0 ? alpha*(exp(x)-1) : x`.
    Elu {
        /// Scale below zero.
        alpha: Real,
    },
    /// `exp(x)`.
    Exp,
    /// `ln(x)`.
    Log,
    /// `sqrt(x)`.
    Sqrt,
    /// `-x`.
    Neg,
    /// `|x|`.
    Abs,
    /// `1/x`.
    Reciprocal,
    /// `scale*x + shift`.
    Affine {
        /// Factor.
        scale: Real,
        /// Offset.
        shift: Real,
    },
    /// `x^exponent`.
    PowConst {
        /// The exponent.
        exponent: Real,
    },
}

impl UnaryKind {
    /// Which forward operand [`crate::Op::UnaryGrad`] reads. ReLU and its kin read the
    /// output, so the forward op can run in place (vDNN, MICRO 2016, section II).
    pub fn saves(self) -> SavedOperand {
        match self {
            Self::Relu | Self::Sigmoid | Self::Tanh | Self::Exp | Self::Sqrt | Self::Reciprocal => {
                SavedOperand::Y
            }
            _ => SavedOperand::X,
        }
    }
}

/// Elementwise functions of two arguments, numpy broadcasting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BinaryKind {
    /// `a + b`.
    Add,
    /// `a - b`.
    Sub,
    /// `a * b`.
    Mul,
    /// `a / b`.
    Div,
    /// `a ^ b`.
    Pow,
    /// `max(a, b)`.
    Max,
    /// `min(a, b)`.
    Min,
    /// `a < 0 ? a*b : a` (ONNX PRelu with slope b).
    PRelu,
    /// `b > 0 ? a : 0`: gates a by the sign of b; the building block of max, min and PRelu
    /// gradients.
    Gate,
}

impl BinaryKind {
    /// Every function, in order.
    pub const ALL: [Self; 9] = [
        Self::Add,
        Self::Sub,
        Self::Mul,
        Self::Div,
        Self::Pow,
        Self::Max,
        Self::Min,
        Self::PRelu,
        Self::Gate,
    ];
}

/// What a reduction computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReduceKind {
    /// Sum of the elements.
    Sum,
    /// Arithmetic mean.
    Mean,
    /// Largest element.
    Max,
}

/// How a loss combines its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossReduction {
    /// Weighted mean.
    Mean,
    /// Sum.
    Sum,
    /// One loss per element.
    None,
}
