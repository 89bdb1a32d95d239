//! Weights without their zeros.
//!
//! Packed weights are one i32 tensor: `M + 1` row starts, then `room` entries of two words, the
//! column and the bits of the f32 value. Row `m` of the matrix `[M, C/g * k..]` has the entries
//! `starts[m]..starts[m + 1]`, columns ascending. The room is a type, so that a plan knows the
//! bytes; entries behind the last row are zero. Only +0 and -0 count as zero.
//!
//! The direct sparse convolution that reads this is that of Chen, *Escort* (arXiv 1802.10280), and
//! Park et al. (ICLR 2017): no zero is multiplied, and nothing is unfolded.
//!
//! That is the form `csr`; [`blocks`] and [`two_four`] have those that tensor cores multiply.

pub mod blocks;
pub mod two_four;

use crate::kernel::{KernelError, Kernels, Operand, TensorMut, TensorRef};
use crate::op::Op;
use crate::tensor::Tensor;
use crate::types::{DType, TensorType};
use blocks::BlockShape;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// How packed weights lie in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SparseForm {
    /// Row by row column and value of each weight that is not zero.
    #[default]
    Csr,
    /// [`blocks`] of f32.
    Block,
    /// [`blocks`] of bf16.
    BlockBf16,
    /// [`two_four`], in bf16.
    TwoFourBf16,
}

impl SparseForm {
    /// True for [`Self::Csr`].
    pub fn is_csr(&self) -> bool {
        *self == Self::Csr
    }

    /// True for [`blocks`].
    pub fn is_block(self) -> bool {
        matches!(self, Self::Block | Self::BlockBf16)
    }

    /// True for values in bf16, which belong to feature maps in bf16.
    pub fn is_bf16(self) -> bool {
        matches!(self, Self::BlockBf16 | Self::TwoFourBf16)
    }

    /// Words of packed weights of so many rows with room for so many entries, which are weights,
    /// blocks or pieces of [`two_four`]; saturating.
    pub fn packed_len(self, rows: u64, room: u64) -> u64 {
        match self {
            Self::Csr => packed_len(rows, room),
            Self::Block | Self::BlockBf16 => blocks::packed_len(self, rows, room),
            Self::TwoFourBf16 => room.saturating_mul(two_four::WORDS as u64),
        }
    }

    /// The room of packed weights of so many rows and words; `None` if there is no such room.
    pub fn room(self, rows: u64, len: u64) -> Option<u64> {
        match self {
            Self::Csr => room(rows, len),
            Self::Block | Self::BlockBf16 => blocks::room(self, rows, len),
            Self::TwoFourBf16 => {
                len.is_multiple_of(two_four::WORDS as u64).then_some(len / two_four::WORDS as u64)
            }
        }
    }

    /// Entries of weights of this shape without any zeros, or of two of four all that there are;
    /// `None` for no weights at all.
    pub fn most(self, w_dims: &[u64]) -> Option<u64> {
        if self.is_csr() {
            return w_dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        }
        let shape = BlockShape::of(w_dims)?;
        if self == Self::TwoFourBf16 {
            return Some(two_four::count(shape));
        }
        Some((shape.groups() as u64).saturating_mul(shape.columns() as u64))
    }

    /// True if weights of this shape may have room for so many entries. Two of four have all.
    pub fn may_have(self, entries: u64, w_dims: &[u64]) -> bool {
        let all = self == Self::TwoFourBf16;
        self.most(w_dims).is_some_and(|most| entries == most || !all && entries < most)
    }

    /// Weights of an entry that are multiplied.
    pub fn weights(self) -> u64 {
        match self {
            Self::Csr => 1,
            Self::Block | Self::BlockBf16 => (blocks::BLOCK * blocks::BLOCK) as u64,
            Self::TwoFourBf16 => two_four::KEPT,
        }
    }

    /// Writes weights of this shape into `packed`.
    ///
    /// # Errors
    /// As [`pack`].
    pub fn pack(self, w: &[f32], w_dims: &[u64], packed: &mut [i32]) -> Result<(), KernelError> {
        if self.is_csr() {
            return pack(w, w_dims.first().copied().unwrap_or(0) as usize, packed);
        }
        let shape = BlockShape::of(w_dims).ok_or_else(|| misfit("no filters and channels"))?;
        if self == Self::TwoFourBf16 {
            return two_four::pack(shape, w, packed);
        }
        blocks::pack(shape, self, w, packed)
    }

    /// The weights, row by row.
    ///
    /// # Errors
    /// As [`unpack`].
    pub fn unpack(self, packed: &[i32], w_dims: &[u64]) -> Result<Vec<f32>, KernelError> {
        if self.is_csr() {
            let rows = w_dims.first().copied().unwrap_or(0) as usize;
            return unpack(packed, rows, w_dims.iter().skip(1).product::<u64>() as usize);
        }
        let shape = BlockShape::of(w_dims).ok_or_else(|| misfit("no filters and channels"))?;
        if self == Self::TwoFourBf16 {
            return two_four::unpack(shape, packed);
        }
        blocks::unpack(shape, self, packed)
    }
}

/// Words of packed weights of so many rows with room for so many entries, saturating.
pub fn packed_len(rows: u64, room: u64) -> u64 {
    rows.saturating_add(1).saturating_add(room.saturating_mul(2))
}

/// The room of packed weights of so many rows and words; `None` if there is no such room.
pub fn room(rows: u64, len: u64) -> Option<u64> {
    let words = len.checked_sub(rows.checked_add(1)?)?;
    (words % 2 == 0).then_some(words / 2)
}

/// Writes the matrix `[rows, w.len() / rows]` into `packed`.
///
/// # Errors
/// If there are more entries than room, or the sizes do not belong together.
pub fn pack(w: &[f32], rows: usize, packed: &mut [i32]) -> Result<(), KernelError> {
    let bad = |why: String| KernelError::BadData(format!("pack_sparse: {why}"));
    if rows == 0 || !w.len().is_multiple_of(rows) || packed.len() <= rows {
        return Err(bad(format!("{} weights in {rows} rows", w.len())));
    }
    let (starts, entries) = packed.split_at_mut(rows + 1);
    entries.fill(0);
    starts.fill(0);
    let mut free = entries.chunks_exact_mut(2);
    let mut at = 0i32;
    for (row, start) in w.chunks_exact((w.len() / rows).max(1)).zip(&mut starts[1..]) {
        for (column, &value) in row.iter().enumerate().filter(|(_, v)| **v != 0.0) {
            let entry = free.next().ok_or_else(|| {
                bad("the weights have fewer zeros than when the plan was made; compile it again".into())
            })?;
            entry[0] = i32::try_from(column).map_err(|e| bad(e.to_string()))?;
            entry[1] = value.to_bits() as i32;
            at += 1;
        }
        *start = at;
    }
    Ok(())
}

/// The matrix `[rows, columns]` that was packed.
///
/// # Errors
/// If the packed weights are not of such a matrix.
pub fn unpack(packed: &[i32], rows: usize, columns: usize) -> Result<Vec<f32>, KernelError> {
    let bad = || KernelError::BadData(format!("packed weights that are no matrix of {rows} by {columns}"));
    let (starts, entries) = packed.split_at_checked(rows + 1).ok_or_else(bad)?;
    let size = rows.checked_mul(columns).ok_or_else(bad)?;
    let mut w = vec![0.0; size];
    for m in 0..rows {
        let range = usize::try_from(starts[m]).ok().zip(usize::try_from(starts[m + 1]).ok());
        let (from, to) = range.filter(|(from, to)| from <= to).ok_or_else(bad)?;
        for entry in entries.get(2 * from..2 * to).ok_or_else(bad)?.chunks_exact(2) {
            let column = usize::try_from(entry[0]).ok().filter(|&c| c < columns).ok_or_else(bad)?;
            w[m * columns + column] = f32::from_bits(entry[1] as u32);
        }
    }
    Ok(w)
}

/// Executes [`Op::PackSparse`] and, with the dense kernels, [`Op::SparseConv`]: the oracle.
/// Returns `None` for other ops.
pub fn through_dense(
    kernels: &dyn Kernels,
    op: &Op,
    inputs: &[TensorRef<'_>],
    outputs: &mut [TensorMut<'_>],
) -> Option<Result<(), KernelError>> {
    match op {
        Op::PackSparse { form, .. } => Some(run_pack(*form, inputs, outputs)),
        Op::SparseConv { .. } => Some(run_conv(kernels, op, inputs, outputs)),
        _ => None,
    }
}

fn misfit(what: &str) -> KernelError {
    KernelError::BadData(format!("sparse weights: {what}"))
}

fn run_pack(
    form: SparseForm,
    inputs: &[TensorRef<'_>],
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let ([w], [packed]) = (inputs, outputs) else { return Err(misfit("one operand and one result")) };
    let narrow;
    let values: &[f32] = match w.ty.dtype {
        DType::F64 => {
            let wide: &[f64] = bytemuck::try_cast_slice(w.bytes).map_err(|_| misfit("unaligned"))?;
            narrow = wide.iter().map(|&x| x as f32).collect::<Vec<_>>();
            &narrow
        }
        _ => bytemuck::try_cast_slice(w.bytes).map_err(|_| misfit("unaligned"))?,
    };
    let packed = bytemuck::try_cast_slice_mut(packed.bytes).map_err(|_| misfit("unaligned"))?;
    form.pack(values, &w.ty.dims, packed)
}

fn run_conv(
    kernels: &dyn Kernels,
    op: &Op,
    inputs: &[TensorRef<'_>],
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let Op::SparseConv { conv, w_dims, form, relu } = op else { return Err(misfit("another op")) };
    let [x, packed, rest @ ..] = inputs else { return Err(misfit("operands are missing")) };
    let packed = bytemuck::try_cast_slice(packed.bytes).map_err(|_| misfit("unaligned"))?;
    let values = form.unpack(packed, w_dims)?;
    let w = match x.ty.dtype {
        DType::F64 => {
            let bytes: Vec<u8> = values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect();
            Tensor::from_bytes(TensorType::new(DType::F64, w_dims.iter().copied()), &bytes)
        }
        _ => Some(Tensor::from_f32(w_dims.iter().copied(), &values)),
    };
    let w = w.ok_or_else(|| misfit("another size"))?;
    let dense = if conv.kernel.is_empty() {
        Op::Gemm { trans_a: false, trans_b: true, alpha: 1.0.into(), beta: 1.0.into() }
    } else if *relu || rest.len() > 1 {
        Op::ConvEpilogue { conv: conv.clone(), relu: *relu }
    } else {
        Op::Conv(conv.clone())
    };
    let operands: SmallVec<[Operand<'_>; 4]> =
        [*x, w.view()].iter().chain(rest).map(|&t| Operand::Ref(t)).collect();
    kernels.launch(&dense, &operands, outputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back() {
        let w = [0.0, 1.5, -0.0, 0.0, 0.0, 0.0, -2.0, f32::MIN_POSITIVE, 3.0];
        let len = packed_len(3, 5) as usize;
        let mut packed = vec![7; len];
        pack(&w, 3, &mut packed).expect("it fits");
        assert_eq!(packed[..4], [0, 1, 1, 4]);
        assert_eq!(packed[4], 1, "the column of 1.5");
        assert_eq!(packed[len - 2..], [0, 0], "room that is left");
        let back = unpack(&packed, 3, 3).expect("a matrix");
        assert_eq!(back, w);
        assert_eq!(room(3, len as u64), Some(5));
        assert_eq!(room(3, 5), None);
    }

    #[test]
    fn too_little_room_and_broken_columns_are_named() {
        let mut packed = vec![0; packed_len(1, 1) as usize];
        let error = pack(&[1.0, 2.0], 1, &mut packed).unwrap_err().to_string();
        assert!(error.contains("compile it again"), "{error}");
        pack(&[1.0, 0.0], 1, &mut packed).expect("it fits");
        for (at, word) in [(0, -1), (1, 9), (2, 2), (2, -1)] {
            let mut broken = packed.clone();
            broken[at] = word;
            assert!(unpack(&broken, 1, 2).is_err(), "word {at} is {word}");
        }
    }
}
