//! An owned host tensor with aligned storage.

use crate::kernel::TensorRef;
use crate::types::{DType, TensorType};

/// An owned tensor: little-endian, row-major, 8-byte aligned.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    ty: TensorType,
    words: Vec<u64>,
}

impl Tensor {
    /// A tensor of zeros.
    pub fn zeros(ty: TensorType) -> Self {
        let words = usize::try_from(ty.bytes().0.div_ceil(8)).expect("tensor fits the address space");
        Self { ty, words: vec![0; words] }
    }
    /// A tensor of zeros, or `None` if the system has no memory for it: for types that come
    /// from a file and are bounded by nothing else.
    pub fn try_zeros(ty: TensorType) -> Option<Self> {
        let words = usize::try_from(ty.bytes().0.div_ceil(8)).ok()?;
        // Asked first and given back: zeroed memory is cheaper than filling a reserved vector.
        Vec::<u64>::new().try_reserve_exact(words).ok()?;
        Some(Self::zeros(ty))
    }
    /// A tensor with these bytes; `None` if the length is not the type's size.
    pub fn from_bytes(ty: TensorType, bytes: &[u8]) -> Option<Self> {
        if ty.checked_elements()?.checked_mul(ty.dtype.bytes())? != bytes.len() as u64 {
            return None;
        }
        let mut t = Self::zeros(ty);
        t.bytes_mut().copy_from_slice(bytes);
        Some(t)
    }
    /// An f32 tensor. Panics if the length is not the product of `dims`.
    pub fn from_f32(dims: impl IntoIterator<Item = u64>, data: &[f32]) -> Self {
        Self::from_bytes(TensorType::f32(dims), bytemuck::cast_slice(data)).expect("length matches the shape")
    }
    /// An i64 tensor. Panics if the length is not the product of `dims`.
    pub fn from_i64(dims: impl IntoIterator<Item = u64>, data: &[i64]) -> Self {
        Self::from_bytes(TensorType::new(DType::I64, dims), bytemuck::cast_slice(data))
            .expect("length matches the shape")
    }
    /// Its type.
    pub fn ty(&self) -> &TensorType {
        &self.ty
    }
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.ty.bytes().0 as usize]
    }
    /// Its bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let n = self.ty.bytes().0 as usize;
        &mut bytemuck::cast_slice_mut(&mut self.words)[..n]
    }
    /// The elements of an f32 tensor. Panics for other types.
    pub fn f32(&self) -> &[f32] {
        assert_eq!(self.ty.dtype, DType::F32, "an f32 tensor");
        bytemuck::cast_slice(self.bytes())
    }
    /// The elements of an i64 tensor. Panics for other types.
    pub fn i64(&self) -> &[i64] {
        assert_eq!(self.ty.dtype, DType::I64, "an i64 tensor");
        bytemuck::cast_slice(self.bytes())
    }
    /// A borrowed view for kernels.
    pub fn view(&self) -> TensorRef<'_> {
        TensorRef { ty: &self.ty, bytes: self.bytes() }
    }
}
