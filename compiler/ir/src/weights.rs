//! Weights: initializer bytes kept apart from the graph, usually borrowed from a mapped file.

use crate::types::{DType, TensorType};
use bytes::Bytes as Buf;
use std::collections::BTreeMap;

/// One initializer. `data` is little-endian, row-major, unaligned in general.
#[derive(Clone, Debug)]
pub struct WeightTensor {
    /// Element type and shape as stored.
    pub ty: TensorType,
    /// The bytes; a cheap handle on the mapped model file where possible.
    pub data: Buf,
}

impl WeightTensor {
    /// The elements as f32 (converted if stored as f64; other types give `None`).
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        match self.ty.dtype {
            DType::F32 => Some(
                self.data.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect(),
            ),
            DType::F64 => Some(
                self.data
                    .chunks_exact(8)
                    .map(|c| f64::from_le_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]) as f32)
                    .collect(),
            ),
            _ => None,
        }
    }
}

/// Initializers by name. Every `Def::Param` of role trainable, frozen or batch statistic
/// has an entry under the parameter's name, with the parameter's type.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    /// Name to tensor.
    pub tensors: BTreeMap<String, WeightTensor>,
}
