//! Parts of a convolution's batch: the op and operands of one micro-batch, and how a kernel
//! set runs a division of the batch.
//!
//! The batch is the outermost dimension in every layout, so a part of a tensor's images is a
//! part of its bytes. `w`, the bias and `dw` have no images; `dw` is a sum over the batch.

use crate::kernel::{KernelError, Kernels, Operand, TensorMut, TensorRef};
use crate::op::Op;
use crate::schedule::ConvSchedule;
use crate::types::{DType, TensorType};
use crate::units::Bytes;
use std::ops::Range;

/// A convolution of some of the images, as an op of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvSlice {
    /// The op.
    pub op: Op,
    /// Types of its operands.
    pub inputs: Vec<TensorType>,
    /// Types of its results.
    pub outputs: Vec<TensorType>,
}

impl ConvSlice {
    /// Operand and result types by reference.
    pub fn types(&self) -> (Vec<&TensorType>, Vec<&TensorType>) {
        (self.inputs.iter().collect(), self.outputs.iter().collect())
    }
}

/// True if input `i` of a convolution has one part per image.
pub fn input_has_images(op: &Op, i: usize) -> bool {
    match op {
        // x and the tensor that an epilogue adds; w and the bias have none.
        Op::Conv(_) | Op::ConvEpilogue { .. } => i == 0 || i == 3,
        Op::ConvDgrad { .. } => i == 0,
        Op::ConvWgrad { .. } => i < 2,
        _ => false,
    }
}

/// True if the result of a convolution has one part per image; the one that has not, `dw`, is
/// a sum over them.
pub fn output_has_images(op: &Op) -> bool {
    op.is_conv() && !matches!(op, Op::ConvWgrad { .. })
}

/// Images of a convolution's batch; `None` for other ops and malformed operands.
pub fn batch(op: &Op, inputs: &[&TensorType]) -> Option<u64> {
    if op.is_conv() { inputs.first()?.dims.first().copied() } else { None }
}

/// The convolution of `images` images; `None` for other ops and malformed operands.
pub fn conv_slice(
    op: &Op,
    inputs: &[&TensorType],
    outputs: &[&TensorType],
    images: u64,
) -> Option<ConvSlice> {
    batch(op, inputs)?;
    let cut = |ty: &TensorType, has: bool| -> Option<TensorType> {
        let mut ty = ty.clone();
        if has {
            *ty.dims.first_mut()? = images;
        }
        Some(ty)
    };
    let mut part = op.clone();
    if let Op::ConvDgrad { x_dims, .. } = &mut part {
        *x_dims.first_mut()? = images;
    }
    Some(ConvSlice {
        inputs: inputs
            .iter()
            .enumerate()
            .map(|(i, ty)| cut(ty, input_has_images(op, i)))
            .collect::<Option<_>>()?,
        outputs: outputs.iter().map(|ty| cut(ty, output_has_images(op))).collect::<Option<_>>()?,
        op: part,
    })
}

/// Bytes of `images` images of a tensor whose outermost dimension they are, saturating.
pub fn image_bytes(ty: &TensorType, images: u64) -> Bytes {
    let elements = ty.dims.iter().skip(1).fold(images, |n, &d| n.saturating_mul(d));
    Bytes(elements.saturating_mul(ty.dtype.bytes()))
}

/// Executes a divided convolution micro-batch by micro-batch, each by `kernels`: images by
/// byte ranges, `dw` by addition in order. `None` for a batch in one piece and for other ops,
/// which are left to the kernels.
pub fn through_slices(
    kernels: &dyn Kernels,
    op: &Op,
    schedule: Option<&ConvSchedule>,
    inputs: &[Operand<'_>],
    outputs: &mut [TensorMut<'_>],
) -> Option<Result<(), KernelError>> {
    let schedule = schedule.filter(|s| s.is_divided() && op.is_conv())?;
    Some(run(kernels, op, schedule, inputs, outputs))
}

fn run(
    kernels: &dyn Kernels,
    op: &Op,
    schedule: &ConvSchedule,
    inputs: &[Operand<'_>],
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let misfit = |why: &str| KernelError::BadData(format!("{op}: {why}"));
    let inputs: Vec<TensorRef<'_>> = inputs
        .iter()
        .map(|operand| match operand {
            Operand::Ref(t) => Ok(*t),
            Operand::InPlace(_) => Err(misfit("convolutions do not run in place")),
        })
        .collect::<Result<_, _>>()?;
    let [output] = outputs else { return Err(misfit("a convolution has one result")) };
    let types: Vec<&TensorType> = inputs.iter().map(|t| t.ty).collect();
    let images = batch(op, &types).ok_or_else(|| misfit("no batch"))?;
    if !schedule.covers(images) {
        return Err(misfit(&format!("{schedule} is no division of {images} images")));
    }
    let mut part_of_sum = Vec::new();
    for (_, range) in schedule.slices(images) {
        let slice = conv_slice(op, &types, &[output.ty], range.end - range.start)
            .ok_or_else(|| misfit("it cannot be divided"))?;
        let operands: Vec<Operand<'_>> = inputs
            .iter()
            .zip(&slice.inputs)
            .enumerate()
            .map(|(i, (t, ty))| {
                let part = if input_has_images(op, i) { bytes_of(t.ty, &range) } else { 0..t.bytes.len() };
                t.bytes.get(part).map(|bytes| Operand::Ref(TensorRef { ty, bytes }))
            })
            .collect::<Option<_>>()
            .ok_or_else(|| misfit("an operand of another size"))?;
        let ty = &slice.outputs[0];
        if output_has_images(op) {
            let part = output.bytes.get_mut(bytes_of(output.ty, &range));
            let bytes = part.ok_or_else(|| misfit("a result of another size"))?;
            kernels.launch(&slice.op, &operands, &mut [TensorMut { ty, bytes }])?;
        } else if range.start == 0 {
            kernels.launch(&slice.op, &operands, &mut [TensorMut { ty, bytes: &mut *output.bytes }])?;
        } else {
            // As f64, so that the bytes are aligned for whatever the elements are.
            part_of_sum.resize(output.bytes.len().div_ceil(8), 0.0f64);
            let bytes = &mut bytemuck::cast_slice_mut::<f64, u8>(&mut part_of_sum)[..output.bytes.len()];
            kernels.launch(&slice.op, &operands, &mut [TensorMut { ty, bytes: &mut *bytes }])?;
            add(ty.dtype, output.bytes, bytes).ok_or_else(|| KernelError::Unsupported {
                op: op.to_string(),
                why: format!("sums of {} over micro-batches", ty.dtype),
            })?;
        }
    }
    Ok(())
}

/// Byte range of some images.
fn bytes_of(ty: &TensorType, images: &Range<u64>) -> Range<usize> {
    let at = |n| usize::try_from(image_bytes(ty, n).0).unwrap_or(usize::MAX);
    at(images.start)..at(images.end)
}

/// `sum += part`; `None` for elements that are not summed so.
fn add(dtype: DType, sum: &mut [u8], part: &[u8]) -> Option<()> {
    match dtype {
        DType::F32 => {
            let (sum, part): (&mut [f32], &[f32]) =
                (bytemuck::cast_slice_mut(sum), bytemuck::cast_slice(part));
            sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
        }
        DType::F64 => {
            let (sum, part): (&mut [f64], &[f64]) =
                (bytemuck::cast_slice_mut(sum), bytemuck::cast_slice(part));
            sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
        }
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::ConvAttrs;

    fn attrs() -> ConvAttrs {
        ConvAttrs::square(1, 1, 0, 1)
    }

    #[test]
    fn a_slice_has_fewer_images_and_nothing_else_less() {
        let (x, w, b, y) = (
            TensorType::f32([7, 3, 5, 5]),
            TensorType::f32([4, 3, 1, 1]),
            TensorType::f32([4]),
            TensorType::f32([7, 4, 5, 5]),
        );
        let op = Op::ConvEpilogue { conv: attrs(), relu: true };
        let s = conv_slice(&op, &[&x, &w, &b, &y], &[&y], 2).expect("a convolution");
        let (x2, y2) = (TensorType::f32([2, 3, 5, 5]), TensorType::f32([2, 4, 5, 5]));
        assert_eq!((s.inputs, s.outputs), (vec![x2.clone(), w.clone(), b, y2.clone()], vec![y2.clone()]));
        let op = Op::ConvDgrad { conv: attrs(), x_dims: x.dims.clone() };
        let s = conv_slice(&op, &[&y, &w], &[&x], 2).expect("a convolution");
        assert!(matches!(&s.op, Op::ConvDgrad { x_dims, .. } if *x_dims == x2.dims), "{}", s.op);
        let op = Op::ConvWgrad { conv: attrs(), w_dims: w.dims.clone() };
        let s = conv_slice(&op, &[&x, &y], &[&w], 2).expect("a convolution");
        assert_eq!((s.inputs, s.outputs), (vec![x2, y2], vec![w]));
        assert_eq!(image_bytes(&x, 2), Bytes(2 * 75 * 4));
        assert_eq!(
            conv_slice(&Op::MatMul { trans_a: false, trans_b: false }, &[&x, &x], &[&x], 1).map(|s| s.op),
            None
        );
    }
}
