//! The element type that kernels of real numbers read and write.

use bytemuck::Pod;
use vdnn_ir::kernel::{TensorMut, TensorRef};
use vdnn_ir::{DType, TensorType};

/// A floating-point element. Arithmetic is f64 for every one of them: a kernel widens what it
/// reads and rounds each result once.
pub(crate) trait Element: Pod {
    /// Its type.
    const DTYPE: DType;
    /// The same number.
    fn wide(self) -> f64;
    /// The nearest element.
    fn round(x: f64) -> Self;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    fn wide(self) -> f64 {
        f64::from(self)
    }
    fn round(x: f64) -> Self {
        x as f32
    }
}

impl Element for f64 {
    const DTYPE: DType = DType::F64;
    fn wide(self) -> f64 {
        self
    }
    fn round(x: f64) -> Self {
        x
    }
}

/// The elements of a tensor.
pub(super) fn get<'a, E: Element>(x: TensorRef<'a>) -> &'a [E] {
    bytemuck::cast_slice(x.bytes)
}

/// The elements of a tensor, to write.
pub(super) fn put<'a, E: Element>(y: &'a mut TensorMut<'_>) -> &'a mut [E] {
    bytemuck::cast_slice_mut(y.bytes)
}

/// How kernels of `E` store a tensor of a graph: with `E` for f32; f64 stands for bf16, too.
pub(crate) fn storage<E: Element>(ty: &TensorType) -> TensorType {
    let dtype = match ty.dtype {
        DType::F32 => E::DTYPE,
        DType::BF16 if E::DTYPE == DType::F64 => DType::F64,
        other => other,
    };
    TensorType { dtype, ..ty.clone() }
}

/// The type that shape inference knows a stored tensor by.
pub(crate) fn in_graph<E: Element>(ty: &TensorType) -> TensorType {
    let dtype = if ty.dtype == E::DTYPE { DType::F32 } else { ty.dtype };
    TensorType { dtype, ..ty.clone() }
}
