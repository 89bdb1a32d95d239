//! The kernel interface: one call executes one [`Op`] on byte ranges.
//!
//! Implemented by the naive kernels of `vdnn-interp` and the fast ones of `vdnn-runtime`;
//! either can be injected into the interpreter, which is how executors are compared bit
//! for bit.

use crate::bf16::through_f32;
use crate::layout::through_row_major;
use crate::op::Op;
use crate::parts::through_parts;
use crate::types::TensorType;

/// A tensor to read. Bytes are aligned to the element size, little-endian, row-major.
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'a> {
    /// Type of the tensor.
    pub ty: &'a TensorType,
    /// Exactly `ty.bytes()` bytes.
    pub bytes: &'a [u8],
}

/// A tensor to write. For an in-place output the bytes hold the input's values on entry.
#[derive(Debug)]
pub struct TensorMut<'a> {
    /// Type of the tensor.
    pub ty: &'a TensorType,
    /// Exactly `ty.bytes()` bytes.
    pub bytes: &'a mut [u8],
}

/// An input operand: its own memory, or the memory of an output (in place).
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// Memory that no output overlaps.
    Ref(TensorRef<'a>),
    /// The input's values are in output `n`'s bytes on entry; legal only for the pairs of
    /// [`Op::inplace`], so the shape and type equal the output's.
    InPlace(usize),
}

/// Why a kernel could not run. A plan that passed the checker never triggers one for
/// shapes; data can (a label outside the classes).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// No kernel for this op or element type.
    #[error("no kernel for {op}: {why}")]
    Unsupported {
        /// The op, in text form.
        op: String,
        /// What is missing.
        why: String,
    },
    /// The data breaks the op's contract.
    #[error("{0}")]
    BadData(String),
}

/// A set of kernels. Results must not depend on thread count, addresses or whether an
/// operand is in place: the same inputs give the same bits.
pub trait Kernels {
    /// Executes `op`. Operand types are those shape inference accepts for `op`.
    fn launch(
        &self,
        op: &Op,
        inputs: &[Operand<'_>],
        outputs: &mut [TensorMut<'_>],
    ) -> Result<(), KernelError>;
}

/// Executes what a kernel set needs no kernel of its own for: ops with channels-last operands
/// on row-major copies, ops with bf16 operands on f32 copies, casts, and fused ops as their
/// parts. The parts of a pyramid are its layers, each of which rounds to bf16; other fused ops
/// round once. `None` for all others.
pub fn through_plainer(
    kernels: &dyn Kernels,
    op: &Op,
    inputs: &[Operand<'_>],
    outputs: &mut [TensorMut<'_>],
) -> Option<Result<(), KernelError>> {
    let layers = matches!(op, Op::Pyramid(_));
    through_row_major(kernels, op, inputs, outputs)
        .or_else(|| if layers { through_parts(kernels, op, inputs, outputs) } else { None })
        .or_else(|| through_f32(kernels, op, inputs, outputs))
        .or_else(|| through_parts(kernels, op, inputs, outputs))
}

impl<'a> TensorRef<'a> {
    /// The elements as f32. Panics if the type is not f32 or the bytes are unaligned.
    pub fn f32(&self) -> &'a [f32] {
        debug_assert_eq!(self.ty.dtype, crate::DType::F32);
        bytemuck::cast_slice(self.bytes)
    }
    /// The elements as i64. Panics if unaligned.
    pub fn i64(&self) -> &'a [i64] {
        debug_assert_eq!(self.ty.dtype, crate::DType::I64);
        bytemuck::cast_slice(self.bytes)
    }
}

impl TensorMut<'_> {
    /// The elements as f32, to write. Panics if the type is not f32 or the bytes are unaligned.
    pub fn f32(&mut self) -> &mut [f32] {
        debug_assert_eq!(self.ty.dtype, crate::DType::F32);
        bytemuck::cast_slice_mut(self.bytes)
    }
}
