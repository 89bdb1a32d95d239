//! bfloat16: conversion, and kernels for bf16 tensors by way of f32 ones.
//!
//! A bf16 is the upper half of an f32. An op on bf16 tensors means the same op on the same numbers
//! in f32, its results rounded once; a fused op rounds nothing between its parts, but a pyramid
//! rounds the result of every layer.

use crate::kernel::{KernelError, Kernels, Operand, TensorMut, TensorRef};
use crate::op::Op;
use crate::tensor::Tensor;
use crate::types::{DType, TensorType};
use smallvec::SmallVec;

/// The nearest bf16, ties to even, as its bits. NaN stays NaN, what is too large becomes infinite.
pub fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        // Quiet, so that dropping low bits cannot make it infinite.
        return (bits >> 16) as u16 | 0x40;
    }
    // Exponents and mantissas are one number: a carry out of the mantissa is right, and so is
    // one into infinity.
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// The same number as an f32.
pub fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

impl Tensor {
    /// The same tensor with elements of type `to`; both types are f32 or bf16, or the same.
    /// `None` for other types.
    #[must_use]
    pub fn to_dtype(&self, to: DType) -> Option<Self> {
        let mut out = Self::zeros(TensorType { dtype: to, ..self.ty().clone() });
        convert(self.ty().dtype, self.bytes(), to, out.bytes_mut()).then_some(out)
    }
}

/// Converts elements; false if there is no conversion between the types.
fn convert(from: DType, bytes: &[u8], to: DType, into: &mut [u8]) -> bool {
    match (from, to) {
        (DType::F32, DType::BF16) => {
            let (x, y): (&[f32], &mut [u16]) = (bytemuck::cast_slice(bytes), bytemuck::cast_slice_mut(into));
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = round(x));
        }
        (DType::BF16, DType::F32) => {
            let (x, y): (&[u16], &mut [f32]) = (bytemuck::cast_slice(bytes), bytemuck::cast_slice_mut(into));
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = widen(x));
        }
        _ if from == to => into.copy_from_slice(bytes),
        _ => return false,
    }
    true
}

/// True for ops that look at no element, which kernels of every type run.
fn moves_only(op: &Op) -> bool {
    op.is_transfer()
        || matches!(
            op,
            Op::Concat { .. }
                | Op::Split { .. }
                | Op::Slice(_)
                | Op::Reshape { .. }
                | Op::Relayout { .. }
                | Op::Transpose { .. }
                | Op::Expand { .. }
                | Op::Gather { .. }
        )
}

/// Executes casts, and ops that have bf16 operands with kernels that know f32 only: on copies.
/// For oracles and for running plans made for another device; slow.
///
/// Returns `None` if no operand is bf16 or the op only moves data, which is left to the kernels.
pub fn through_f32(
    kernels: &dyn Kernels,
    op: &Op,
    inputs: &[Operand<'_>],
    outputs: &mut [TensorMut<'_>],
) -> Option<Result<(), KernelError>> {
    if let (Op::Cast { .. }, [Operand::Ref(x)], [y]) = (op, inputs, &mut *outputs) {
        let sizes = x.ty.elements() == y.ty.elements();
        let done = sizes && convert(x.ty.dtype, x.bytes, y.ty.dtype, y.bytes);
        let error = || KernelError::BadData(format!("{op}: {} cannot become {}", x.ty, y.ty));
        return Some(if done { Ok(()) } else { Err(error()) });
    }
    let is_narrow = |ty: &TensorType| ty.dtype == DType::BF16;
    let reads = inputs.iter().any(|i| matches!(i, Operand::Ref(t) if is_narrow(t.ty)));
    if moves_only(op) || !reads && !outputs.iter().any(|o| is_narrow(o.ty)) {
        return None;
    }
    let wide = |ty: &TensorType| {
        let dtype = if is_narrow(ty) { DType::F32 } else { ty.dtype };
        TensorType { dtype, ..ty.clone() }
    };
    let own = |x: TensorRef<'_>| {
        let mut out = Tensor::zeros(wide(x.ty));
        convert(x.ty.dtype, x.bytes, out.ty().dtype, out.bytes_mut());
        out
    };
    let copies: SmallVec<[Tensor; 4]> = inputs
        .iter()
        .map(|operand| match operand {
            Operand::Ref(t) => own(*t),
            Operand::InPlace(o) => own(TensorRef { ty: outputs[*o].ty, bytes: outputs[*o].bytes }),
        })
        .collect();
    let operands: SmallVec<[Operand<'_>; 4]> = copies.iter().map(|t| Operand::Ref(t.view())).collect();
    let types: SmallVec<[TensorType; 2]> = outputs.iter().map(|o| wide(o.ty)).collect();
    let mut made: SmallVec<[Tensor; 2]> = types.iter().cloned().map(Tensor::zeros).collect();
    let mut results: SmallVec<[TensorMut<'_>; 2]> =
        made.iter_mut().zip(&types).map(|(t, ty)| TensorMut { ty, bytes: t.bytes_mut() }).collect();
    let done = kernels.launch(op, &operands, &mut results);
    drop(results);
    if done.is_ok() {
        for (output, t) in outputs.iter_mut().zip(&made) {
            convert(t.ty().dtype, t.bytes(), output.ty.dtype, output.bytes);
        }
    }
    Some(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_with_ties_to_even() {
        for (x, bits) in [
            (1.0, 0x3f80),
            // 1 + 2^-8 lies in the middle; 1 + 2^-7 is the next bf16.
            (1.0 + 1.0 / 256.0, 0x3f80),
            (1.003_906_4, 0x3f81),
            (1.0 + 3.0 / 256.0, 0x3f82),
            (-1.0 - 1.0 / 256.0, 0xbf80),
            (0.0, 0),
            (-0.0, 0x8000),
            (f32::MAX, 0x7f80),
            (f32::INFINITY, 0x7f80),
            (f32::NEG_INFINITY, 0xff80),
            (f32::from_bits(1), 0),
        ] {
            assert_eq!(round(x), bits, "{x}");
        }
        // A NaN whose payload lies in the low bits.
        assert!(widen(round(f32::from_bits(0x7f80_0001))).is_nan());
        for bits in (0..=u16::MAX).filter(|&b| !widen(b).is_nan()) {
            assert_eq!(round(widen(bits)), bits);
        }
    }

    #[test]
    fn tensors_convert_to_what_there_is() {
        let x = Tensor::from_f32([3], &[1.0, 1.01, -2.0]);
        let narrow = x.to_dtype(DType::BF16).unwrap();
        assert_eq!(narrow.ty().to_string(), "bf16[3]");
        assert_eq!(narrow.to_dtype(DType::F32).unwrap().f32(), [1.0, 1.007_812_5, -2.0]);
        assert_eq!(x.to_dtype(DType::I32), None);
    }
}
