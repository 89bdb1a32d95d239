//! Device memory of measured kernels, and what is written to it and read from it.

use crate::cuda::arena::DeviceArena;
use crate::cuda::error::CudaError;
use crate::cuda::launch::DeviceRange;
use cudarc::driver::{result, sys};
use vdnn_ir::random::splitmix64;
use vdnn_ir::sparse::SparseForm;
use vdnn_ir::sparse::blocks::BlockShape;
use vdnn_ir::{Bytes, Op, TensorType};

/// Results compared to see whether products are f32.
pub(super) const LOOK: usize = 4096;

/// Device memory that is only given back for more.
#[derive(Debug)]
pub(super) struct Memory {
    what: &'static str,
    arena: DeviceArena,
}

impl Memory {
    pub(super) fn new(what: &'static str) -> Result<Self, CudaError> {
        Ok(Self { what, arena: DeviceArena::new(Bytes::ZERO, what)? })
    }

    /// At least `bytes`, content undefined.
    pub(super) fn take(&mut self, bytes: Bytes) -> Result<DeviceRange, CudaError> {
        if self.arena.range().bytes < bytes {
            // First give back, then take: both may not fit.
            self.arena = DeviceArena::new(Bytes::ZERO, self.what)?;
            self.arena = DeviceArena::new(bytes, self.what)?;
        }
        Ok(DeviceRange { bytes, ..self.arena.range() })
    }
}

pub(super) fn size(bytes: Bytes) -> Result<usize, CudaError> {
    usize::try_from(bytes.0).map_err(|_| CudaError::OutOfMemory {
        what: "an operand of a measured kernel".to_owned(),
        bytes,
        free: None,
    })
}

/// Sets every f32 of a range, an operand's own.
#[expect(unsafe_code, reason = "fills device memory")]
pub(super) fn fill_words(ptr: sys::CUdeviceptr, bytes: Bytes, value: f32) -> Result<(), CudaError> {
    // SAFETY: the range is an operand's.
    CudaError::check("cuMemsetD32", unsafe {
        sys::cuMemsetD32_v2(ptr, value.to_bits(), size(bytes)? / size_of::<f32>())
    })
}

/// Sets every byte of a range, an operand's own.
#[expect(unsafe_code, reason = "fills device memory")]
pub(super) fn fill_bytes(ptr: sys::CUdeviceptr, bytes: Bytes, value: u8) -> Result<(), CudaError> {
    // SAFETY: the range is an operand's.
    CudaError::check("cuMemsetD8", unsafe { sys::cuMemsetD8_v2(ptr, value, size(bytes)?) })
}

/// Writes an operand's first words.
#[expect(unsafe_code, reason = "copies to the device")]
pub(super) fn write_words(ptr: sys::CUdeviceptr, words: &[i32]) -> Result<(), CudaError> {
    // SAFETY: the words are as many as the operand has.
    unsafe { result::memcpy_htod_sync(ptr, words) }.map_err(CudaError::of("cuMemcpyHtoD"))
}

/// Packed weights ([`vdnn_ir::sparse`]) of the op's shape that fill this type, at random places.
pub(super) fn packed_at_random(op: &Op, ty: &TensorType) -> Vec<i32> {
    let Op::SparseConv { w_dims, form, .. } = op else { return Vec::new() };
    if *form == SparseForm::TwoFourBf16 {
        return two_of_four(w_dims, ty);
    }
    let rows = w_dims.first().copied().unwrap_or(0);
    let room = form.room(rows, ty.elements()).unwrap_or(0);
    // Of blocks a matrix of blocks.
    let (rows, columns) = match BlockShape::of(w_dims) {
        Some(shape) if !form.is_csr() => (shape.groups() as u64, shape.columns() as u64),
        _ => (rows, w_dims.iter().skip(1).product()),
    };
    let mut left = (rows * columns, room);
    let mut starts = vec![0i32];
    let mut entries = Vec::new();
    for row in 0..rows {
        for column in 0..columns {
            // Of what is left each is as likely.
            let (places, wanted) = left;
            let z = splitmix64(row, column);
            let taken = (u128::from(z) * u128::from(places)) >> 64 < u128::from(wanted);
            left = (places - 1, wanted - u64::from(taken));
            if taken && form.is_csr() {
                let value = 0.5 + (z >> 40) as f32 / (1 << 24) as f32;
                entries.extend([column as i32, value.to_bits() as i32]);
            } else if taken {
                entries.push(column as i32);
            }
        }
        starts.push((entries.len() / if form.is_csr() { 2 } else { 1 }) as i32);
    }
    starts.extend(entries);
    let words = ty.elements() as usize;
    if !form.is_csr() {
        // 0.5 and something, in bf16 twice; the first of them are the head's filling.
        starts.extend(
            (starts.len()..words).map(|i| 0x3f00_3f00 | (splitmix64(1, i as u64) & 0x7f_007f) as i32),
        );
    }
    starts.truncate(words);
    starts
}

/// Weights of this shape of which every four have two, at random places.
fn two_of_four(w_dims: &[u64], ty: &TensorType) -> Vec<i32> {
    const PAIRS: [[u64; 2]; 6] = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]];
    let Some(shape) = BlockShape::of(w_dims) else { return Vec::new() };
    let value = |i: usize| {
        let (row, c, tap) =
            (i / shape.taps / shape.channels, i / shape.taps % shape.channels, i % shape.taps);
        let z = splitmix64(row as u64, (c / 4 * shape.taps + tap) as u64);
        let kept = PAIRS[(z % 6) as usize].contains(&(c as u64 % 4));
        // Exact in bf16.
        if kept { 0.5 + (z >> (8 * (c % 4)) & 127) as f32 / 256.0 } else { 0.0 }
    };
    let w: Vec<f32> = (0..shape.filters * shape.channels * shape.taps).map(value).collect();
    let mut words = vec![0; ty.elements() as usize];
    // Operands of other sizes are none of a plan's.
    let _ = SparseForm::TwoFourBf16.pack(&w, w_dims, &mut words);
    words
}

/// The first [`LOOK`] values of an operand.
#[expect(unsafe_code, reason = "copies from the device")]
pub(super) fn read(ptr: sys::CUdeviceptr, bytes: Bytes) -> Result<Vec<f32>, CudaError> {
    let mut values = vec![0.0f32; LOOK.min(size(bytes)? / size_of::<f32>())];
    // SAFETY: the range is part of an operand's.
    unsafe { result::memcpy_dtoh_sync(&mut values, ptr) }.map_err(CudaError::of("cuMemcpyDtoH"))?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vdnn_ir::op::ConvAttrs;
    use vdnn_ir::{DType, Dims};

    #[test]
    fn random_packed_weights_fill_their_type() {
        for (form, dims) in
            [(SparseForm::Csr, [7, 50]), (SparseForm::Block, [48, 80]), (SparseForm::BlockBf16, [48, 80])]
        {
            let (conv, w_dims) = (ConvAttrs::without_axes(), Dims::from_slice(&dims));
            let most = form.most(&w_dims).expect("weights");
            let op = Op::SparseConv { conv, w_dims, form, relu: false };
            for entries in [0, 1, most / 10, most - 1, most] {
                let ty = TensorType::new(DType::I32, [form.packed_len(dims[0], entries)]);
                let packed = packed_at_random(&op, &ty);
                assert_eq!(packed.len() as u64, ty.elements());
                let w = form.unpack(&packed, &dims).expect("packed weights");
                let nonzeros = w.iter().filter(|v| **v != 0.0).count() as u64;
                assert_eq!(nonzeros, entries * form.weights(), "{form:?}");
            }
        }
        let (conv, w_dims, form) =
            (ConvAttrs::without_axes(), Dims::from_slice(&[48, 96]), SparseForm::TwoFourBf16);
        let words = form.packed_len(48, form.most(&w_dims).expect("weights"));
        let op = Op::SparseConv { conv, w_dims, form, relu: false };
        let packed = packed_at_random(&op, &TensorType::new(DType::I32, [words]));
        let w = form.unpack(&packed, &[48, 96]).expect("packed weights");
        assert_eq!(w.iter().filter(|v| **v != 0.0).count(), 48 * 96 / 2);
        assert_eq!(form.weights() * (words / 144), 48 * 96 / 2);
    }
}
