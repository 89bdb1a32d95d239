//! Chains of layers: what is computed, without a word on how.

use crate::interval::Interval;
use serde::{Deserialize, Serialize};
use vdnn_ir::Bytes;
use vdnn_ir::types::Real;

/// The largest extent, channel count, kernel, stride, padding or dilation of a chain.
pub const MAX_EXTENT: u64 = 1 << 20;

/// Most elements of one tensor of a chain, and most multiply-adds of one layer.
const MAX_WORK: u128 = 1 << 50;

/// A sliding window over an image: kernel and pooling geometry, `[y, x]` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Window {
    /// Taps.
    pub kernel: [u64; 2],
    /// Distance between windows, at least 1.
    pub strides: [u64; 2],
    /// Padding in front.
    pub before: [u64; 2],
    /// Padding behind.
    pub after: [u64; 2],
    /// Distance between taps, at least 1.
    pub dilations: [u64; 2],
    /// Round the output extent up, as ONNX does: windows that would start in the padding behind
    /// are dropped. Pools only.
    pub ceil: bool,
}

impl Window {
    /// A square window: kernel, stride and padding on every side.
    pub const fn square(kernel: u64, stride: u64, padding: u64) -> Self {
        Self {
            kernel: [kernel; 2],
            strides: [stride; 2],
            before: [padding; 2],
            after: [padding; 2],
            dilations: [1; 2],
            ceil: false,
        }
    }

    /// Positions from the first tap to the last along an axis (0: y, 1: x).
    pub fn span(&self, axis: usize) -> i64 {
        ((self.kernel[axis] - 1) * self.dilations[axis] + 1) as i64
    }

    /// The positions of the input that the windows of some positions of the output cover, padding
    /// included.
    pub fn input_of(&self, axis: usize, output: Interval) -> Interval {
        if output.is_empty() {
            return Interval::EMPTY;
        }
        let at = |o: i64| o * self.strides[axis] as i64 - self.before[axis] as i64;
        Interval::new(at(output.lo), at(output.hi - 1) + self.span(axis))
    }

    /// Output extent over an input extent, or `None` if no window fits.
    pub fn output_extent(&self, axis: usize, input: u64) -> Option<u64> {
        let padded = input + self.before[axis] + self.after[axis];
        let room = padded.checked_sub(self.span(axis) as u64)?;
        let stride = self.strides[axis];
        if !self.ceil {
            return Some(room / stride + 1);
        }
        let n = room.div_ceil(stride) + 1;
        Some(if (n - 1) * stride >= input + self.before[axis] { n - 1 } else { n })
    }

    /// Number of taps.
    pub fn taps(&self) -> u64 {
        self.kernel[0] * self.kernel[1]
    }
}

/// A function of each element, its channel and, for the last one, another tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pointwise {
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, lo), hi)`.
    Clip {
        /// Lower bound.
        lo: Real,
        /// Upper bound.
        hi: Real,
    },
    /// `x * scale[c] + shift[c]`: a batch norm with running statistics.
    Scale,
    /// `x + r`, r of the shape of the layer's result: a residual. Only in the last layer.
    Add,
}

/// What a layer slides over the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Cross-correlation with `w[M,C/groups,ky,kx]`.
    Conv {
        /// Geometry.
        window: Window,
        /// Groups; divides both channel counts.
        groups: u64,
        /// Output channels M.
        out: u64,
        /// Adds `b[M]`.
        bias: bool,
    },
    /// Maximum.
    MaxPool {
        /// Geometry.
        window: Window,
    },
    /// Mean.
    AvgPool {
        /// Geometry.
        window: Window,
        /// Padded positions count in the divisor (the extension of `ceil` never does).
        count_include_pad: bool,
    },
}

impl Kind {
    /// The geometry.
    pub fn window(&self) -> &Window {
        match self {
            Self::Conv { window, .. } | Self::MaxPool { window } | Self::AvgPool { window, .. } => window,
        }
    }
}

/// A convolution or pool with the pointwise functions behind it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Layer {
    /// The window.
    pub kind: Kind,
    /// Applied to its result, in order.
    pub then: Vec<Pointwise>,
}

/// Extents of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shape {
    /// Channels.
    pub channels: u64,
    /// Rows.
    pub height: u64,
    /// Columns.
    pub width: u64,
}

impl Shape {
    /// Rows (axis 0) or columns (axis 1).
    pub fn extent(&self, axis: usize) -> u64 {
        if axis == 0 { self.height } else { self.width }
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.channels * self.height * self.width
    }

    /// Size with elements of so many bytes.
    pub fn bytes(&self, element: Bytes) -> Bytes {
        Bytes(self.elements() * element.0)
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}x{}", self.channels, self.height, self.width)
    }
}

/// Why layers do not make a chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Nothing to do.
    #[error("a chain needs at least one layer")]
    Empty,
    /// A number outside its range.
    #[error("layer {layer}: {what} is {value}, which must be between {least} and {MAX_EXTENT}")]
    Range {
        /// The layer; of the input, 0.
        layer: usize,
        /// Which number.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The least it may be.
        least: u64,
    },
    /// No window fits the image.
    #[error("layer {layer}: a window of {span} positions does not fit the padded extent {padded}")]
    DoesNotFit {
        /// The layer.
        layer: usize,
        /// Positions of the window.
        span: i64,
        /// Extent with padding.
        padded: u64,
    },
    /// Groups that divide nothing.
    #[error("layer {layer}: {groups} groups do not divide {input} input and {out} output channels")]
    Groups {
        /// The layer.
        layer: usize,
        /// Groups.
        groups: u64,
        /// Input channels.
        input: u64,
        /// Output channels.
        out: u64,
    },
    /// A pool with windows that could lie in the padding altogether.
    #[error("layer {layer}: padding and dilation of a pool must leave an element in every window")]
    EmptyWindow {
        /// The layer.
        layer: usize,
    },
    /// Rounding up is for pools.
    #[error("layer {layer}: a convolution rounds its extents down")]
    CeilConv {
        /// The layer.
        layer: usize,
    },
    /// A residual inside.
    #[error("layer {layer}: another tensor can only be added in the last layer; end the chain there")]
    InnerAdd {
        /// The layer.
        layer: usize,
    },
    /// More work than counters hold.
    #[error("layer {layer}: a tensor or its work is too large for one chain")]
    TooLarge {
        /// The layer.
        layer: usize,
    },
}

/// What a tensor that a chain reads is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperandUse {
    /// The image `[C,H,W]`.
    Input,
    /// `w[M,C/groups,ky,kx]`.
    Weight,
    /// `b[M]`.
    Bias,
    /// `scale[C]`.
    Scale,
    /// `shift[C]`.
    Shift,
    /// A residual of the result's shape.
    Residual,
}

/// A tensor that a chain reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    /// What it is for.
    pub of: OperandUse,
    /// The layer that reads it; `None` for the input and what is applied to it.
    pub layer: Option<usize>,
    /// Number of elements.
    pub elements: u64,
}

/// A chain of layers, each read by the next one only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chain {
    prologue: Vec<Pointwise>,
    layers: Vec<Layer>,
    shapes: Vec<Shape>,
}

impl Chain {
    /// A chain over an image of shape `input`, to which `prologue` is applied first.
    ///
    /// # Errors
    /// If there is no layer, a number is out of range, a window does not fit, or a residual is
    /// added before the last layer.
    pub fn new(input: Shape, prologue: Vec<Pointwise>, layers: Vec<Layer>) -> Result<Self, ChainError> {
        if layers.is_empty() {
            return Err(ChainError::Empty);
        }
        for (what, value) in [("channels", input.channels), ("height", input.height), ("width", input.width)]
        {
            in_range(0, what, value, 1)?;
        }
        if prologue.contains(&Pointwise::Add) {
            return Err(ChainError::InnerAdd { layer: 0 });
        }
        let mut shapes = vec![input];
        for (i, layer) in layers.iter().enumerate() {
            if i + 1 < layers.len() && layer.then.contains(&Pointwise::Add) {
                return Err(ChainError::InnerAdd { layer: i });
            }
            shapes.push(output_shape(i, shapes[i], &layer.kind)?);
        }
        let chain = Self { prologue, layers, shapes };
        for (i, shape) in chain.shapes.iter().enumerate() {
            let elements = u128::from(shape.channels) * u128::from(shape.height) * u128::from(shape.width);
            let per_element = match i.checked_sub(1) {
                Some(l) => u128::from(chain.macs_per_element(l)).max(1),
                None => 1,
            };
            if elements * per_element > MAX_WORK {
                return Err(ChainError::TooLarge { layer: i.saturating_sub(1) });
            }
        }
        Ok(chain)
    }

    /// Pointwise functions on the input.
    pub fn prologue(&self) -> &[Pointwise] {
        &self.prologue
    }

    /// The layers.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Shapes of the input and of every layer's result: one more than layers.
    pub fn shapes(&self) -> &[Shape] {
        &self.shapes
    }

    /// Shape of the input.
    pub fn input(&self) -> Shape {
        self.shapes[0]
    }

    /// Shape of the last result.
    pub fn output(&self) -> Shape {
        self.shapes[self.layers.len()]
    }

    /// Multiply-adds per element of a layer's result; zero for pools.
    pub fn macs_per_element(&self, layer: usize) -> u64 {
        match &self.layers[layer].kind {
            Kind::Conv { window, groups, .. } => {
                (self.shapes[layer].channels / groups).saturating_mul(window.taps())
            }
            _ => 0,
        }
    }

    /// Multiply-adds of a layer, every position once.
    pub fn macs(&self, layer: usize) -> u64 {
        self.shapes[layer + 1].elements() * self.macs_per_element(layer)
    }

    /// Elements of a layer's weight; zero for pools.
    pub fn weight_elements(&self, layer: usize) -> u64 {
        match &self.layers[layer].kind {
            Kind::Conv { out, .. } => out * self.macs_per_element(layer),
            _ => 0,
        }
    }

    /// The tensors that are read, in the order in which programs number them: the input, what the
    /// prologue needs, then per layer weight, bias, and what its pointwise functions need (scale
    /// before shift).
    pub fn operands(&self) -> Vec<Operand> {
        let mut all = vec![Operand { of: OperandUse::Input, layer: None, elements: self.input().elements() }];
        let pointwise = |all: &mut Vec<Operand>, list: &[Pointwise], layer, shape: Shape| {
            for p in list {
                match p {
                    Pointwise::Scale => {
                        all.push(Operand { of: OperandUse::Scale, layer, elements: shape.channels });
                        all.push(Operand { of: OperandUse::Shift, layer, elements: shape.channels });
                    }
                    Pointwise::Add => {
                        all.push(Operand { of: OperandUse::Residual, layer, elements: shape.elements() });
                    }
                    Pointwise::Relu | Pointwise::Clip { .. } => {}
                }
            }
        };
        pointwise(&mut all, &self.prologue, None, self.shapes[0]);
        for (i, layer) in self.layers.iter().enumerate() {
            if let Kind::Conv { out, bias, .. } = layer.kind {
                let elements = self.weight_elements(i);
                all.push(Operand { of: OperandUse::Weight, layer: Some(i), elements });
                if bias {
                    all.push(Operand { of: OperandUse::Bias, layer: Some(i), elements: out });
                }
            }
            pointwise(&mut all, &layer.then, Some(i), self.shapes[i + 1]);
        }
        all
    }

    /// The chain of some of the layers, or `None` if there are none in the range or a residual
    /// would be inside.
    pub fn part(&self, layers: std::ops::Range<usize>) -> Option<Self> {
        let prologue = if layers.start == 0 { self.prologue.clone() } else { Vec::new() };
        let input = *self.shapes.get(layers.start)?;
        Self::new(input, prologue, self.layers.get(layers)?.to_vec()).ok()
    }
}

fn in_range(layer: usize, what: &'static str, value: u64, least: u64) -> Result<(), ChainError> {
    if (least..=MAX_EXTENT).contains(&value) {
        Ok(())
    } else {
        Err(ChainError::Range { layer, what, value, least })
    }
}

fn output_shape(layer: usize, input: Shape, kind: &Kind) -> Result<Shape, ChainError> {
    let window = kind.window();
    let mut extents = [0; 2];
    for (axis, out) in extents.iter_mut().enumerate() {
        for (what, value, least) in [
            ("a kernel extent", window.kernel[axis], 1),
            ("a stride", window.strides[axis], 1),
            ("a dilation", window.dilations[axis], 1),
            ("padding", window.before[axis], 0),
            ("padding", window.after[axis], 0),
        ] {
            in_range(layer, what, value, least)?;
        }
        let extent = input.extent(axis);
        let span = window.span(axis);
        let padded = extent + window.before[axis] + window.after[axis];
        let windows = window.output_extent(axis, extent);
        *out = windows.ok_or(ChainError::DoesNotFit { layer, span, padded })?;
        in_range(layer, "an output extent", *out, 1)?;
        let is_pool = !matches!(kind, Kind::Conv { .. });
        let outside = window.before[axis] as i64 >= span || window.after[axis] as i64 >= span;
        let steps_over = window.dilations[axis] > extent && window.before[axis] > 0;
        if is_pool && (outside || steps_over) {
            return Err(ChainError::EmptyWindow { layer });
        }
    }
    let channels = match *kind {
        Kind::Conv { groups, out, window, .. } => {
            in_range(layer, "output channels", out, 1)?;
            let divides = groups > 0 && input.channels.is_multiple_of(groups) && out.is_multiple_of(groups);
            if !divides {
                return Err(ChainError::Groups { layer, groups, input: input.channels, out });
            }
            if window.ceil {
                return Err(ChainError::CeilConv { layer });
            }
            out
        }
        Kind::MaxPool { .. } | Kind::AvgPool { .. } => input.channels,
    };
    Ok(Shape { channels, height: extents[0], width: extents[1] })
}
