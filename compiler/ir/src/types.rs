//! Element types, shapes, memory spaces and the exact float attribute type.

use crate::units::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

/// A list of extents, strides or axes; four fit without allocating.
pub type Dims = SmallVec<[u64; 4]>;

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE binary32, the type all arithmetic runs in.
    F32,
    /// IEEE binary64.
    F64,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    BF16,
    /// 32-bit signed integer.
    I32,
    /// 64-bit signed integer (labels, indices, shapes).
    I64,
    /// Byte (pool indices).
    U8,
    /// One byte per element, 0 or 1.
    Bool,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::U8 | Self::Bool => 1,
        }
    }
    /// True for the floating-point types.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::F16 | Self::BF16)
    }
    /// Name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::U8 => "u8",
            Self::Bool => "bool",
        }
    }
    /// Every element type.
    pub const ALL: [Self; 8] =
        [Self::F32, Self::F64, Self::F16, Self::BF16, Self::I32, Self::I64, Self::U8, Self::Bool];
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|d| d.name() == s).ok_or_else(|| format!("`{s}` is not an element type"))
    }
}

/// Where a value lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Space {
    /// The device arena.
    #[default]
    Device,
    /// The pinned host arena.
    Host,
}

/// Order of a tensor's elements in memory. Extents are always logical.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Last dimension fastest: NCHW for images, KCRS for their filters.
    #[default]
    RowMajor,
    /// Rank 4 only: dimension 1 fastest. NHWC for images, KRSC for their filters.
    ChannelsLast,
}

/// Element type, shape and layout of a value, without padding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Logical extents, outermost first (N, C, H, W for images); empty for a scalar.
    pub dims: Dims,
    /// Order in memory.
    #[serde(default)]
    pub layout: Layout,
}

impl TensorType {
    /// A row-major type from parts.
    pub fn new(dtype: DType, dims: impl IntoIterator<Item = u64>) -> Self {
        Self { dtype, dims: dims.into_iter().collect(), layout: Layout::RowMajor }
    }
    /// A row-major f32 tensor type.
    pub fn f32(dims: impl IntoIterator<Item = u64>) -> Self {
        Self::new(DType::F32, dims)
    }
    /// The same tensor in another layout. Only rank 4 has more than one.
    #[must_use]
    pub fn in_layout(&self, layout: Layout) -> Self {
        let layout = if self.rank() == 4 { layout } else { Layout::RowMajor };
        Self { layout, ..self.clone() }
    }
    /// True if the layout changes no byte's place: one channel, or one pixel.
    pub fn layout_is_moot(&self) -> bool {
        self.rank() != 4 || self.dims[1] == 1 || self.dims[2] == 1 && self.dims[3] == 1
    }
    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }
    /// Number of elements, or `None` on overflow.
    pub fn checked_elements(&self) -> Option<u64> {
        self.dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d))
    }
    /// Number of elements. Types inside a verified graph never overflow; saturates otherwise.
    pub fn elements(&self) -> u64 {
        self.checked_elements().unwrap_or(u64::MAX)
    }
    /// Size in memory, saturating.
    pub fn bytes(&self) -> Bytes {
        Bytes(self.elements().saturating_mul(self.dtype.bytes()))
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.dims.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str(match self.layout {
            Layout::RowMajor => "]",
            Layout::ChannelsLast => "]nhwc",
        })
    }
}

impl FromStr for TensorType {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let error = || format!("`{s}` is not a tensor type such as f32[8,3,224,224] or f32[8,3,224,224]nhwc");
        let (dtype, rest) = s.split_once('[').ok_or_else(error)?;
        let (rest, layout) = match rest.strip_suffix("nhwc") {
            Some(rest) => (rest, Layout::ChannelsLast),
            None => (rest, Layout::RowMajor),
        };
        let inside = rest.strip_suffix(']').ok_or_else(error)?;
        let dims: Dims = if inside.is_empty() {
            Dims::new()
        } else {
            inside.split(',').map(|d| d.trim().parse().map_err(|_| error())).collect::<Result<_, _>>()?
        };
        if layout == Layout::ChannelsLast && dims.len() != 4 {
            return Err(format!("`{s}`: only tensors of rank 4 can be nhwc"));
        }
        Ok(Self { dtype: dtype.parse()?, dims, layout })
    }
}

/// An f32 attribute compared and hashed by its bits, so ops can be map keys.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Real(pub f32);

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}
impl Eq for Real {}
impl Hash for Real {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}
impl PartialOrd for Real {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Real {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}
impl From<f32> for Real {
    fn from(x: f32) -> Self {
        Self(x)
    }
}
impl fmt::Display for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Arithmetic the device's matrix units use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Precision {
    /// Strict f32.
    F32,
    /// TF32 products, f32 sums.
    Tf32,
    /// bf16 products, f32 sums.
    Bf16,
}

impl Precision {
    /// Every precision.
    pub const ALL: [Self; 3] = [Self::F32, Self::Tf32, Self::Bf16];
    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|p| p.name() == s).ok_or_else(|| {
            format!("`{s}` is not a precision; choose one of {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}
