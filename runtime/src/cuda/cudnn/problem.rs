//! A convolution in cuDNN's terms: extents and strides of x, w and y, whatever the direction.

use crate::cuda::error::CudaError;
use vdnn_ir::op::ConvAttrs;
use vdnn_ir::{DType, Layout, Op, TensorType};

/// What is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Direction {
    /// y from x and w.
    Fprop,
    /// dx from dy and w.
    Dgrad,
    /// dw from x and dy.
    Wgrad,
}

/// Extents and strides in elements, outermost logical dimension first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub dims: Vec<i64>,
    pub strides: Vec<i64>,
}

/// One convolution. Two equal problems have the same engines.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Problem {
    pub dir: Direction,
    pub x: Shape,
    pub w: Shape,
    pub y: Shape,
    /// Every tensor is bf16; else every one is f32.
    pub narrow: bool,
    /// A bias per channel is added to y.
    pub bias: bool,
    /// Then a tensor of y's shape.
    pub residual: bool,
    /// Then negative elements become zero.
    pub relu: bool,
    /// The result is added to what dw holds (beta is 1); for weight gradients only.
    pub accumulate: bool,
    pub channels_last: bool,
    pub groups: i64,
    pub before: Vec<i64>,
    pub after: Vec<i64>,
    pub strides: Vec<i64>,
    pub dilations: Vec<i64>,
}

impl Problem {
    /// The problem of a convolution op with these operand types.
    ///
    /// # Errors
    /// [`CudaError::Unsupported`] for another op, element types other than f32 and bf16, an empty
    /// tensor, more than three spatial dimensions or operands in different layouts.
    pub(super) fn of(op: &Op, inputs: &[&TensorType], outputs: &[&TensorType]) -> Result<Self, CudaError> {
        let unsupported = |why: String| CudaError::Unsupported { op: op.to_string(), why };
        let few = || unsupported("it has too few operands".to_owned());
        let at = |types: &[&TensorType], i: usize| -> Result<TensorType, CudaError> {
            types.get(i).map(|&t| t.clone()).ok_or_else(few)
        };
        let (dir, attrs, x, w, y) = match op {
            Op::Conv(attrs) | Op::ConvEpilogue { conv: attrs, .. } => {
                (Direction::Fprop, attrs, at(inputs, 0)?, at(inputs, 1)?, at(outputs, 0)?)
            }
            Op::ConvDgrad { conv, .. } => {
                (Direction::Dgrad, conv, at(outputs, 0)?, at(inputs, 1)?, at(inputs, 0)?)
            }
            Op::ConvWgrad { conv, .. } => {
                (Direction::Wgrad, conv, at(inputs, 0)?, at(outputs, 0)?, at(inputs, 1)?)
            }
            _ => return Err(unsupported("it is no convolution".to_owned())),
        };
        let all = inputs.iter().chain(outputs);
        if let Some(t) = all.clone().find(|t| !matches!(t.dtype, DType::F32 | DType::BF16)) {
            return Err(unsupported(format!("cuDNN is given f32 and bf16 tensors only, and one is {t}")));
        }
        let narrow = x.dtype == DType::BF16;
        if let Some(t) = all.clone().find(|t| t.dtype != x.dtype) {
            return Err(unsupported(format!("its operands are of types {} and {}", x.dtype, t.dtype)));
        }
        if let Some(t) = all.clone().find(|t| t.elements() == 0) {
            return Err(unsupported(format!("{t} is empty")));
        }
        let spatial = attrs.kernel.len();
        if !(1..=3).contains(&spatial) || [&x, &w, &y].iter().any(|t| t.rank() != spatial + 2) {
            return Err(unsupported(format!("{spatial} spatial dimensions")));
        }
        if narrow && spatial > 2 {
            // Some engines return NaN for uneven padding (cuDNN 9.19).
            return Err(unsupported("bf16 with three spatial dimensions".to_owned()));
        }
        if [&w, &y].iter().any(|t| t.layout != x.layout) {
            return Err(unsupported("its operands are in different layouts".to_owned()));
        }
        let channels_last = x.layout == Layout::ChannelsLast;
        if channels_last && spatial != 2 {
            return Err(unsupported("channels-last operands that are not of rank 4".to_owned()));
        }
        let shape = |t: &TensorType| {
            Shape::of(t, channels_last).ok_or_else(|| unsupported(format!("{t} is too large")))
        };
        let mut problem = Self {
            dir,
            x: shape(&x)?,
            w: shape(&w)?,
            y: shape(&y)?,
            narrow,
            bias: dir == Direction::Fprop && inputs.len() > 2,
            residual: dir == Direction::Fprop && inputs.len() > 3,
            relu: matches!(op, Op::ConvEpilogue { relu: true, .. }),
            accumulate: false,
            channels_last,
            groups: attrs.groups as i64,
            before: flat(&attrs.before, 0),
            after: flat(&attrs.after, 0),
            strides: flat(&attrs.strides, 1),
            dilations: flat(&attrs.dilations, 1),
        };
        problem.make_symmetric(attrs);
        Ok(problem)
    }

    /// Padding behind that no output reads is free to choose: most engines want it to equal
    /// the padding in front, so it is set to that wherever the extent of y stays the same.
    fn make_symmetric(&mut self, attrs: &ConvAttrs) {
        for i in 0..self.before.len() {
            // A line has a leading dimension of extent 1 in front of its own.
            let kernel = self.w.dims[i + 2];
            debug_assert!(kernel == 1 || attrs.kernel.iter().any(|&k| k as i64 == kernel));
            let reach = self.dilations[i] * (kernel - 1) + 1;
            let padded = self.x.dims[i + 2] + 2 * self.before[i];
            if padded >= reach && (padded - reach) / self.strides[i] + 1 == self.y.dims[i + 2] {
                self.after[i] = self.before[i];
            }
        }
    }

    /// True if padding in front and behind are equal, as the legacy API needs.
    pub(super) fn is_symmetric(&self) -> bool {
        self.before == self.after
    }

    /// Extents and strides of the bias as a tensor that broadcasts to y.
    pub(super) fn bias_shape(&self) -> Shape {
        let rank = self.y.dims.len();
        let k = self.y.dims[1];
        let mut dims = vec![1; rank];
        dims[1] = k;
        let mut strides = if self.channels_last { vec![k; rank] } else { vec![1; rank] };
        strides[0] = k;
        strides[1] = 1;
        Shape { dims, strides }
    }

    /// True if something is done to the products before they are stored.
    pub(super) fn has_epilogue(&self) -> bool {
        self.bias || self.residual || self.relu
    }

    /// The problem of which the result is added to what dw holds.
    ///
    /// # Errors
    /// [`CudaError::Unsupported`] if it is no weight gradient.
    pub(super) fn accumulating(self) -> Result<Self, CudaError> {
        if self.dir != Direction::Wgrad {
            let why = "only weight gradients are added up over micro-batches".to_owned();
            return Err(CudaError::Unsupported { op: format!("{:?}", self.dir), why });
        }
        Ok(Self { accumulate: true, ..self })
    }

    /// The same convolution without its epilogue.
    pub(super) fn without_epilogue(&self) -> Self {
        Self { bias: false, residual: false, relu: false, ..self.clone() }
    }
}

/// A list per spatial dimension, with a leading `fill` for lines, which are images of height 1.
fn flat(list: &[u64], fill: i64) -> Vec<i64> {
    let own = list.iter().map(|&v| v as i64);
    if list.len() == 1 { std::iter::once(fill).chain(own).collect() } else { own.collect() }
}

impl Shape {
    /// `None` if an extent or stride does not fit 63 bits.
    fn of(ty: &TensorType, channels_last: bool) -> Option<Self> {
        let mut dims = ty.dims.iter().map(|&d| i64::try_from(d).ok()).collect::<Option<Vec<i64>>>()?;
        if dims.len() == 3 {
            dims.insert(2, 1);
        }
        i64::try_from(ty.checked_elements()?).ok()?;
        let rank = dims.len();
        // From the dimension that moves fastest to the one that moves slowest.
        let order: Vec<usize> = if channels_last {
            std::iter::once(1).chain((2..rank).rev()).chain(std::iter::once(0)).collect()
        } else {
            (0..rank).rev().collect()
        };
        let mut strides = vec![0; rank];
        let mut step = 1;
        for d in order {
            strides[d] = step;
            step *= dims[d];
        }
        Some(Self { dims, strides })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs(kernel: &[u64], strides: &[u64], before: &[u64], after: &[u64]) -> ConvAttrs {
        ConvAttrs {
            kernel: kernel.into(),
            strides: strides.into(),
            before: before.into(),
            after: after.into(),
            dilations: vec![1; kernel.len()].into(),
            groups: 1,
        }
    }

    fn channels_last(dims: [u64; 4]) -> TensorType {
        TensorType { layout: Layout::ChannelsLast, ..TensorType::f32(dims) }
    }

    #[test]
    fn strides_follow_the_layout() {
        let op = Op::Conv(attrs(&[3, 3], &[1, 1], &[1, 1], &[1, 1]));
        let (x, w, b) = (TensorType::f32([2, 3, 5, 7]), TensorType::f32([4, 3, 3, 3]), TensorType::f32([4]));
        let y = TensorType::f32([2, 4, 5, 7]);
        let p = Problem::of(&op, &[&x, &w, &b], &[&y]).unwrap();
        assert_eq!(p.x.strides, [105, 35, 7, 1]);
        assert_eq!(p.w.strides, [27, 9, 3, 1]);
        assert!(p.bias && p.is_symmetric());
        assert_eq!(p.bias_shape(), Shape { dims: vec![1, 4, 1, 1], strides: vec![4, 1, 1, 1] });

        let (x, w, y) =
            (channels_last([2, 3, 5, 7]), channels_last([4, 3, 3, 3]), channels_last([2, 4, 5, 7]));
        let p = Problem::of(&op, &[&x, &w], &[&y]).unwrap();
        assert_eq!(p.x.strides, [105, 1, 21, 3]);
        assert_eq!(p.w.strides, [27, 1, 9, 3]);
        assert_eq!(p.bias_shape().strides, [4, 1, 4, 4]);
        assert!(!p.bias);
        let mixed = Problem::of(&op, &[&x, &TensorType::f32([4, 3, 3, 3])], &[&y]);
        assert!(matches!(mixed, Err(CudaError::Unsupported { .. })), "{mixed:?}");
    }

    #[test]
    fn lines_are_images_of_height_one() {
        let op = Op::ConvDgrad { conv: attrs(&[5], &[2], &[2], &[2]), x_dims: [2, 3, 16].as_slice().into() };
        let (dy, w, dx) =
            (TensorType::f32([2, 4, 8]), TensorType::f32([4, 3, 5]), TensorType::f32([2, 3, 16]));
        let p = Problem::of(&op, &[&dy, &w], &[&dx]).unwrap();
        assert_eq!((p.dir, p.x.dims.as_slice()), (Direction::Dgrad, [2, 3, 1, 16].as_slice()));
        assert_eq!(p.x.strides, [48, 16, 16, 1]);
        assert_eq!((p.before, p.strides, p.dilations), (vec![0, 2], vec![1, 2], vec![1, 1]));
        assert_eq!(p.w.dims, [4, 3, 1, 5]);
    }

    #[test]
    fn padding_behind_becomes_that_in_front_only_where_nothing_reads_it() {
        // 7x7 stride 2 on 224: one row less behind gives the same 112 outputs.
        let (x, w, y) = (
            TensorType::f32([1, 3, 224, 224]),
            TensorType::f32([8, 3, 7, 7]),
            TensorType::f32([1, 8, 112, 112]),
        );
        let op = Op::Conv(attrs(&[7, 7], &[2, 2], &[3, 3], &[2, 2]));
        assert!(Problem::of(&op, &[&x, &w], &[&y]).unwrap().is_symmetric());
        // 3x3 stride 2 with all padding behind: there, dropping it would lose an output.
        let w = TensorType::f32([8, 3, 3, 3]);
        let op = Op::Conv(attrs(&[3, 3], &[2, 2], &[0, 0], &[1, 1]));
        let p = Problem::of(&op, &[&x, &w], &[&y]).unwrap();
        assert_eq!((p.before, p.after), (vec![0, 0], vec![1, 1]));
    }

    #[test]
    fn what_cudnn_cannot_take_is_refused() {
        let op = Op::Conv(attrs(&[1, 1], &[1, 1], &[0, 0], &[0, 0]));
        let (x, w, y) =
            (TensorType::f32([0, 3, 5, 7]), TensorType::f32([4, 3, 1, 1]), TensorType::f32([0, 4, 5, 7]));
        let error = Problem::of(&op, &[&x, &w], &[&y]).unwrap_err().to_string();
        assert!(error.contains("empty"), "{error}");
        let x = TensorType::new(DType::F64, [1, 3, 5, 7]);
        let y = TensorType::new(DType::F64, [1, 4, 5, 7]);
        let error = Problem::of(&op, &[&x, &w], &[&y]).unwrap_err().to_string();
        assert!(error.contains("f64"), "{error}");
    }
}
