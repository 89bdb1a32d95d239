//! Tensors known at import. Element types are normalised to the three that the importer
//! distinguishes: floats are f32, integers i64, booleans bool.

use super::error::{Fail, invalid};
use bytes::Bytes as Buf;
use std::sync::Arc;
use vdnn_ir::Dims;
use vdnn_ir::op::infer::broadcast_dims;

/// Most elements a constant made during import may have (uniform ones are not stored).
pub(super) const MAX_FOLDED: u64 = 16 << 20;

/// One element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scalar {
    F32(f32),
    I64(i64),
    Bool(bool),
}

/// Element class of a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Elem {
    F32,
    I64,
    Bool,
}

impl Scalar {
    pub(super) fn elem(self) -> Elem {
        match self {
            Self::F32(_) => Elem::F32,
            Self::I64(_) => Elem::I64,
            Self::Bool(_) => Elem::Bool,
        }
    }
    pub(super) fn as_f32(self) -> f32 {
        match self {
            Self::F32(x) => x,
            Self::I64(x) => x as f32,
            Self::Bool(x) => f32::from(u8::from(x)),
        }
    }
    /// ONNX Cast: floats truncate towards zero.
    pub(super) fn cast(self, to: Elem) -> Self {
        match (to, self) {
            (Elem::F32, x) => Self::F32(x.as_f32()),
            (Elem::I64, Self::F32(x)) => Self::I64(x as i64),
            (Elem::I64, Self::I64(x)) => Self::I64(x),
            (Elem::I64, Self::Bool(x)) => Self::I64(i64::from(x)),
            (Elem::Bool, Self::F32(x)) => Self::Bool(x != 0.0),
            (Elem::Bool, Self::I64(x)) => Self::Bool(x != 0),
            (Elem::Bool, Self::Bool(x)) => Self::Bool(x),
        }
    }
}

/// The elements of a constant, row-major.
#[derive(Clone, Debug)]
pub(super) enum Data {
    /// Little-endian f32, possibly a slice of the model file, in general unaligned.
    F32(Buf),
    I64(Arc<[i64]>),
    Bool(Arc<[bool]>),
    /// Every element is this one; the extents may be huge.
    Uniform(Scalar),
}

/// The float initializer a constant stands for, so that it becomes a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// Name of the initializer.
    pub initializer: String,
    /// The name this use of it goes by: exporters merge equal tensors into one initializer
    /// and give the others their names by Identity nodes.
    pub alias: String,
}

/// A tensor known at import.
#[derive(Clone, Debug)]
pub(super) struct Constant {
    pub dims: Dims,
    pub data: Data,
    /// Set for float initializers of rank 1 and more, which training may change.
    pub origin: Option<Origin>,
}

impl Constant {
    pub(super) fn new(dims: Dims, data: Data) -> Self {
        Self { dims, data, origin: None }
    }
    pub(super) fn uniform(dims: Dims, value: Scalar) -> Self {
        Self::new(dims, Data::Uniform(value))
    }
    pub(super) fn scalar(value: Scalar) -> Self {
        Self::uniform(Dims::new(), value)
    }
    /// A one-dimensional integer tensor.
    pub(super) fn ints(values: Vec<i64>) -> Self {
        Self::new(Dims::from_slice(&[values.len() as u64]), Data::I64(values.into()))
    }
    /// A tensor from its elements, all of class `elem`.
    pub(super) fn collect(
        dims: Dims,
        elem: Elem,
        items: impl Iterator<Item = Result<Scalar, Fail>>,
    ) -> Result<Self, Fail> {
        let data = match elem {
            Elem::F32 => {
                let mut bytes = Vec::new();
                for x in items {
                    bytes.extend_from_slice(&x?.as_f32().to_le_bytes());
                }
                Data::F32(bytes.into())
            }
            Elem::I64 => Data::I64(items.map(|x| x.map(as_i64)).collect::<Result<Vec<_>, _>>()?.into()),
            Elem::Bool => Data::Bool(items.map(|x| x.map(as_bool)).collect::<Result<Vec<_>, _>>()?.into()),
        };
        Ok(Self::new(dims, data))
    }

    pub(super) fn elem(&self) -> Elem {
        match &self.data {
            Data::F32(_) => Elem::F32,
            Data::I64(_) => Elem::I64,
            Data::Bool(_) => Elem::Bool,
            Data::Uniform(x) => x.elem(),
        }
    }
    /// Number of elements; uniform tensors may saturate.
    pub(super) fn len(&self) -> u64 {
        self.dims.iter().fold(1u64, |n, &d| n.saturating_mul(d))
    }
    /// Element `i` in row-major order; `i` must be below [`Self::len`].
    pub(super) fn get(&self, i: usize) -> Scalar {
        match &self.data {
            Data::F32(b) => {
                let at = 4 * i;
                Scalar::F32(f32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]))
            }
            Data::I64(v) => Scalar::I64(v[i]),
            Data::Bool(v) => Scalar::Bool(v[i]),
            Data::Uniform(x) => *x,
        }
    }
    /// The one element of a one-element tensor.
    pub(super) fn single(&self) -> Option<Scalar> {
        (self.len() == 1).then(|| self.get(0))
    }
    /// True if training cannot change it, so that it may be computed with.
    pub(super) fn foldable(&self) -> bool {
        self.origin.is_none()
    }
    /// The same elements in another shape of the same size.
    pub(super) fn reshaped(&self, dims: Dims) -> Self {
        Self::new(dims, self.data.clone())
    }

    /// The elements at the offsets that `dims` and `strides` walk from `start`.
    pub(super) fn gather_strided(
        &self,
        dims: Dims,
        strides: &[i64],
        start: i64,
        budget: &mut Budget,
    ) -> Result<Self, Fail> {
        if let Data::Uniform(x) = self.data {
            check_extents(&dims)?;
            return Ok(Self::uniform(dims, x));
        }
        budget.charge(&dims)?;
        let items = offsets(&dims, strides, start).map(|i| Ok(self.get(i)));
        Self::collect(dims.clone(), self.elem(), items)
    }

    /// `f` of every element.
    pub(super) fn map(
        &self,
        budget: &mut Budget,
        f: impl Fn(Scalar) -> Result<Scalar, Fail>,
    ) -> Result<Self, Fail> {
        if let Data::Uniform(x) = self.data {
            return Ok(Self::uniform(self.dims.clone(), f(x)?));
        }
        if self.len() == 0 {
            // No element tells the result's class; it is used for shapes, which are integers.
            return Ok(self.clone());
        }
        budget.charge(&self.dims)?;
        let elem = f(self.get(0))?.elem();
        Self::collect(self.dims.clone(), elem, (0..self.len() as usize).map(|i| f(self.get(i))))
    }

    /// `f` of pairs of elements, with numpy broadcasting.
    pub(super) fn zip(
        &self,
        other: &Self,
        budget: &mut Budget,
        f: impl Fn(Scalar, Scalar) -> Result<Scalar, Fail>,
    ) -> Result<Self, Fail> {
        let dims = broadcast_dims(&self.dims, &other.dims)?;
        check_extents(&dims)?;
        if let (Data::Uniform(a), Data::Uniform(b)) = (&self.data, &other.data) {
            return Ok(Self::uniform(dims, f(*a, *b)?));
        }
        if dims.contains(&0) {
            return Ok(Self::new(dims, self.data.clone()).emptied());
        }
        budget.charge(&dims)?;
        let (sa, sb) = (broadcast_strides(&self.dims, &dims), broadcast_strides(&other.dims, &dims));
        let elem = f(self.get(0), other.get(0))?.elem();
        let items =
            offsets(&dims, &sa, 0).zip(offsets(&dims, &sb, 0)).map(|(i, j)| f(self.get(i), other.get(j)));
        Self::collect(dims.clone(), elem, items)
    }

    fn emptied(mut self) -> Self {
        self.data = match self.elem() {
            Elem::F32 => Data::F32(Buf::new()),
            Elem::I64 => Data::I64(Arc::new([])),
            Elem::Bool => Data::Bool(Arc::new([])),
        };
        self
    }
}

fn as_i64(x: Scalar) -> i64 {
    match x.cast(Elem::I64) {
        Scalar::I64(x) => x,
        _ => 0,
    }
}

fn as_bool(x: Scalar) -> bool {
    x.cast(Elem::Bool) == Scalar::Bool(true)
}

/// How much import may still compute: a small file must not ask for unbounded memory.
#[derive(Debug)]
pub(super) struct Budget {
    elements: u64,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { elements: 4 * MAX_FOLDED }
    }
    /// Pays for a tensor of shape `dims`.
    pub(super) fn charge(&mut self, dims: &[u64]) -> Result<(), Fail> {
        check_extents(dims)?;
        let n = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        match n {
            Some(n) if n <= MAX_FOLDED && n <= self.elements => {
                self.elements -= n;
                Ok(())
            }
            _ => Err(Fail::Unsupported(format!(
                "its constant result of shape {dims:?} is too large to compute at import"
            ))),
        }
    }
}

/// Refuses shapes whose partial products could overflow: the extents that are not zero must
/// make at most 2^44 elements. Every constant's shape has passed this.
pub(super) fn check_extents(dims: &[u64]) -> Result<(), Fail> {
    match dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d.max(1))) {
        Some(n) if n <= 1 << 44 => Ok(()),
        _ => invalid(format!("the shape {dims:?} is too large for a constant")),
    }
}

/// Row-major strides of a shape, in elements.
pub(super) fn row_major(dims: &[u64]) -> Vec<i64> {
    let mut strides = vec![1i64; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(i64::try_from(dims[i]).unwrap_or(i64::MAX));
    }
    strides
}

/// Strides that read a tensor of shape `from` as if it were broadcast to `to`.
pub(super) fn broadcast_strides(from: &[u64], to: &[u64]) -> Vec<i64> {
    let own = row_major(from);
    let lead = to.len() - from.len();
    (0..to.len())
        .map(|i| match i.checked_sub(lead) {
            Some(j) if from[j] != 1 => own[j],
            _ => 0,
        })
        .collect()
}

/// The offsets visited by walking `dims` in row-major order with `strides` from `start`.
fn offsets(dims: &[u64], strides: &[i64], start: i64) -> impl Iterator<Item = usize> {
    let total = dims.iter().fold(1u64, |n, &d| n.saturating_mul(d));
    let mut index = vec![0u64; dims.len()];
    let mut at = start;
    let (dims, strides) = (dims.to_vec(), strides.to_vec());
    (0..total).map(move |_| {
        let here = at;
        for d in (0..dims.len()).rev() {
            index[d] += 1;
            at += strides[d];
            if index[d] < dims[d] {
                break;
            }
            at -= strides[d] * dims[d] as i64;
            index[d] = 0;
        }
        here as usize
    })
}

/// An axis given as in ONNX (negative counts from the end) in `0..rank`.
pub(super) fn resolve_axis(axis: i64, rank: usize) -> Result<usize, Fail> {
    let r = rank as i64;
    let resolved = if axis < 0 { axis.saturating_add(r) } else { axis };
    if (0..r).contains(&resolved) {
        Ok(resolved as usize)
    } else {
        invalid(format!("axis {axis} is outside a tensor of rank {rank}"))
    }
}

/// Distinct axes in ascending order.
pub(super) fn resolve_axes(axes: &[i64], rank: usize) -> Result<Vec<usize>, Fail> {
    let mut out = axes.iter().map(|&a| resolve_axis(a, rank)).collect::<Result<Vec<_>, _>>()?;
    out.sort_unstable();
    if out.windows(2).any(|w| w[0] == w[1]) {
        return invalid(format!("axes {axes:?} name one twice"));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(c: &Constant) -> Vec<i64> {
        (0..c.len() as usize).map(|i| as_i64(c.get(i))).collect()
    }

    #[test]
    fn zip_broadcasts_like_numpy() {
        let a = Constant::ints(vec![10, 20, 30]).reshaped(Dims::from_slice(&[3, 1]));
        let b = Constant::ints(vec![1, 2]);
        let sum = a.zip(&b, &mut Budget::new(), |x, y| Ok(Scalar::I64(as_i64(x) + as_i64(y)))).unwrap();
        assert_eq!(sum.dims.as_slice(), [3, 2]);
        assert_eq!(list(&sum), [11, 12, 21, 22, 31, 32]);
    }

    #[test]
    fn strided_gather_walks_backwards_and_across() {
        let a = Constant::ints((0..6).collect()).reshaped(Dims::from_slice(&[2, 3]));
        let t = a.gather_strided(Dims::from_slice(&[3, 2]), &[1, 3], 0, &mut Budget::new()).unwrap();
        assert_eq!(list(&t), [0, 3, 1, 4, 2, 5]);
        let r = a.gather_strided(Dims::from_slice(&[2, 3]), &[3, -1], 2, &mut Budget::new()).unwrap();
        assert_eq!(list(&r), [2, 1, 0, 5, 4, 3]);
    }

    #[test]
    fn folding_is_bounded_but_uniform_tensors_are_free() {
        let one = Constant::scalar(Scalar::F32(1.0));
        let mut budget = Budget::new();
        let huge = |n| Dims::from_slice(&[1 << 40, n]);
        assert!(one.gather_strided(huge(2), &[0, 0], 0, &mut budget).is_ok());
        assert!(one.gather_strided(huge(1 << 40), &[0, 0], 0, &mut budget).is_err());
        let two = Constant::ints(vec![1, 2]);
        let dims = Dims::from_slice(&[1 << 30, 2]);
        assert!(two.gather_strided(dims, &[0, 1], 0, &mut budget).is_err());
    }

    #[test]
    fn axes_resolve_from_both_ends() {
        assert_eq!(resolve_axes(&[-1, 0], 3).unwrap(), [0, 2]);
        assert!(resolve_axes(&[0, -3], 3).is_err());
        assert!(resolve_axis(3, 3).is_err());
        assert!(resolve_axis(i64::MIN, 3).is_err());
    }
}
