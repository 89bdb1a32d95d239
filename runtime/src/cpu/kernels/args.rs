//! Access to the operands of one launch, with the element type checked once.

use super::par::Par;
use smallvec::SmallVec;
use vdnn_ir::DType;
use vdnn_ir::kernel::{KernelError, Operand, TensorMut, TensorRef};
use vdnn_ir::op::Op;
use vdnn_ir::types::TensorType;

/// Extents as machine integers.
pub(super) type Shape = SmallVec<[usize; 6]>;

/// Extents of a type; they fit because the tensor is in memory.
pub(super) fn shape(ty: &TensorType) -> Shape {
    ty.dims.iter().map(|&d| d as usize).collect()
}

/// The op, its inputs and the threads to use.
#[derive(Clone, Copy)]
pub(super) struct Call<'c> {
    pub(super) op: &'c Op,
    pub(super) par: &'c Par,
    inputs: &'c [Operand<'c>],
}

impl<'c> Call<'c> {
    pub(super) fn new(op: &'c Op, par: &'c Par, inputs: &'c [Operand<'c>]) -> Self {
        Self { op, par, inputs }
    }

    /// The error for what this kernel set does not do.
    pub(super) fn unsupported(&self, why: impl Into<String>) -> KernelError {
        KernelError::Unsupported { op: self.op.to_string(), why: why.into() }
    }

    pub(super) fn arity(&self) -> usize {
        self.inputs.len()
    }

    /// Input `i` in memory of its own.
    pub(super) fn input(&self, i: usize) -> Result<TensorRef<'c>, KernelError> {
        match self.operand(i)? {
            Some(t) => Ok(t),
            None => Err(self.unsupported(format!("input {i} in place"))),
        }
    }

    /// Input `i`, or `None` if its values are in the output's bytes.
    pub(super) fn operand(&self, i: usize) -> Result<Option<TensorRef<'c>>, KernelError> {
        match self.inputs.get(i) {
            Some(Operand::Ref(t)) => Ok(Some(*t)),
            Some(Operand::InPlace(_)) => Ok(None),
            None => Err(self.unsupported(format!("input {i} is missing"))),
        }
    }

    /// The f32 elements of input `i`, which is not in place.
    pub(super) fn f32(&self, i: usize) -> Result<&'c [f32], KernelError> {
        let t = self.input(i)?;
        self.cast(i, t, DType::F32)
    }

    /// The f32 elements of input `i`, or `None` if it is in place.
    pub(super) fn f32_or_in_place(&self, i: usize) -> Result<Option<&'c [f32]>, KernelError> {
        self.operand(i)?.map(|t| self.cast(i, t, DType::F32)).transpose()
    }

    /// The f32 elements of optional input `i`.
    pub(super) fn f32_if_present(&self, i: usize) -> Result<Option<&'c [f32]>, KernelError> {
        if i < self.arity() { self.f32(i).map(Some) } else { Ok(None) }
    }

    /// The i64 elements of input `i`.
    pub(super) fn i64(&self, i: usize) -> Result<&'c [i64], KernelError> {
        let t = self.input(i)?;
        self.cast(i, t, DType::I64)
    }

    /// The elements of `t`, if it has this element type.
    pub(super) fn cast<T: bytemuck::AnyBitPattern>(
        &self,
        i: usize,
        t: TensorRef<'c>,
        dtype: DType,
    ) -> Result<&'c [T], KernelError> {
        if t.ty.dtype != dtype {
            return Err(self.unsupported(format!("input {i} of type {}, not {dtype}", t.ty.dtype)));
        }
        bytemuck::try_cast_slice(t.bytes).map_err(|e| self.unsupported(format!("input {i}: {e}")))
    }

    /// The f32 elements of an output.
    pub(super) fn f32_out<'t>(&self, t: &'t mut TensorMut<'_>) -> Result<&'t mut [f32], KernelError> {
        self.cast_out(t, DType::F32)
    }

    /// The elements of an output, if it has this element type.
    pub(super) fn cast_out<'t, T: bytemuck::Pod>(
        &self,
        t: &'t mut TensorMut<'_>,
        dtype: DType,
    ) -> Result<&'t mut [T], KernelError> {
        if t.ty.dtype != dtype {
            return Err(self.unsupported(format!("an output of type {}, not {dtype}", t.ty.dtype)));
        }
        bytemuck::try_cast_slice_mut(t.bytes).map_err(|e| self.unsupported(format!("an output: {e}")))
    }

    /// The single output.
    pub(super) fn one<'t, 'b>(
        &self,
        outputs: &'t mut [TensorMut<'b>],
    ) -> Result<&'t mut TensorMut<'b>, KernelError> {
        match outputs {
            [y] => Ok(y),
            _ => Err(self.unsupported(format!("{} outputs", outputs.len()))),
        }
    }
}
