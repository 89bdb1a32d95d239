//! Seeded random inputs, for trying a model without data.

use crate::error::Failure;
use std::collections::BTreeMap;
use vdnn_ir::random::splitmix64;
use vdnn_ir::{DType, Tensor, TensorType};

/// Labels are drawn below this, small enough for any classifier with two classes.
const LABELS: u64 = 2;

/// A tensor per caller-bound input: floats uniform in -1..1, integers 0 or 1. The
/// optimizer's own inputs (`vdnnc.*`) are left out.
///
/// # Errors
/// If the host has no memory for one.
pub fn inputs(wanted: &[(String, TensorType)]) -> Result<BTreeMap<String, Tensor>, Failure> {
    let mut bound = BTreeMap::new();
    for (seed, (name, ty)) in (0u64..).zip(wanted).filter(|(_, w)| !w.0.starts_with("vdnnc.")) {
        let dims = ty.dims.iter().copied();
        let Some(zeros) = Tensor::try_zeros(ty.clone()) else {
            return Err(Failure::user(format!("cannot allocate {} for input `{name}` : {ty}", ty.bytes()))
                .hint("use a smaller --batch"));
        };
        let tensor = match ty.dtype {
            DType::F32 => {
                let unit = |i| (splitmix64(seed, i) >> 40) as f32 / 8_388_608.0 - 1.0;
                Tensor::from_f32(dims, &(0..ty.elements()).map(unit).collect::<Vec<_>>())
            }
            DType::I64 => {
                let label = |i| (splitmix64(seed, i) % LABELS) as i64;
                Tensor::from_i64(dims, &(0..ty.elements()).map(label).collect::<Vec<_>>())
            }
            _ => zeros,
        };
        bound.insert(name.clone(), tensor);
    }
    Ok(bound)
}
