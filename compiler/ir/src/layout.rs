//! Moving tensors between layouts in host memory.

use crate::kernel::{KernelError, Kernels, Operand, TensorMut};
use crate::op::Op;
use crate::tensor::Tensor;
use crate::types::{Layout, TensorType};
use smallvec::SmallVec;

impl Tensor {
    /// The same tensor in another layout; ranks other than 4 have one only.
    #[must_use]
    pub fn to_layout(&self, layout: Layout) -> Self {
        let mut out = Self::zeros(self.ty().in_layout(layout));
        let (from, to) = (self.ty().clone(), out.ty().clone());
        copy_elements(&from, self.bytes(), &to, out.bytes_mut());
        out
    }
}

/// Copies a tensor's elements into bytes of another layout.
fn copy_elements(from: &TensorType, bytes: &[u8], to: &TensorType, into: &mut [u8]) {
    if from.layout == to.layout || from.layout_is_moot() {
        into.copy_from_slice(bytes);
        return;
    }
    let size = from.dtype.bytes() as usize;
    let [n, c, h, w] = [0, 1, 2, 3].map(|i| from.dims[i] as usize);
    let pixels = h * w;
    // Both directions transpose a matrix per image: channels by pixels, or the reverse.
    let (rows, columns) = if to.layout == Layout::ChannelsLast { (c, pixels) } else { (pixels, c) };
    let image = rows * columns * size;
    for i in 0..n {
        let (source, target) = (&bytes[i * image..][..image], &mut into[i * image..][..image]);
        for row in 0..rows {
            for column in 0..columns {
                let (s, t) = ((row * columns + column) * size, (column * rows + row) * size);
                target[t..t + size].copy_from_slice(&source[s..s + size]);
            }
        }
    }
}

/// Executes an op that has channels-last operands with kernels that know row-major only: on
/// copies. For oracles and for running plans made for another device; slow.
///
/// Returns `None` if all operands are row-major, which is left to the kernels.
pub fn through_row_major(
    kernels: &dyn Kernels,
    op: &Op,
    inputs: &[Operand<'_>],
    outputs: &mut [TensorMut<'_>],
) -> Option<Result<(), KernelError>> {
    let is_last = |ty: &TensorType| ty.layout == Layout::ChannelsLast;
    let reads = inputs.iter().any(|i| matches!(i, Operand::Ref(t) if is_last(t.ty)));
    if !reads && !outputs.iter().any(|o| is_last(o.ty)) {
        return None;
    }
    let own = |ty: &TensorType, bytes: &[u8]| {
        Tensor::from_bytes(ty.clone(), bytes).expect("operands have their type's size")
    };
    if let (Op::Relayout { .. }, [Operand::Ref(x)]) = (op, inputs) {
        copy_elements(x.ty, x.bytes, outputs[0].ty, outputs[0].bytes);
        return Some(Ok(()));
    }
    let copies: SmallVec<[Tensor; 4]> = inputs
        .iter()
        .map(|operand| match operand {
            Operand::Ref(t) => own(t.ty, t.bytes),
            Operand::InPlace(o) => own(outputs[*o].ty, outputs[*o].bytes),
        })
        .map(|t| t.to_layout(Layout::RowMajor))
        .collect();
    let operands: SmallVec<[Operand<'_>; 4]> = copies.iter().map(|t| Operand::Ref(t.view())).collect();
    let types: SmallVec<[TensorType; 2]> = outputs.iter().map(|o| o.ty.in_layout(Layout::RowMajor)).collect();
    let mut made: SmallVec<[Tensor; 2]> = types.iter().cloned().map(Tensor::zeros).collect();
    let mut results: SmallVec<[TensorMut<'_>; 2]> =
        made.iter_mut().zip(&types).map(|(t, ty)| TensorMut { ty, bytes: t.bytes_mut() }).collect();
    let done = kernels.launch(op, &operands, &mut results);
    drop(results);
    if done.is_ok() {
        for ((output, t), ty) in outputs.iter_mut().zip(&made).zip(&types) {
            copy_elements(ty, t.bytes(), output.ty, output.bytes);
        }
    }
    Some(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_differ_as_their_names_say_and_convert_back() {
        let data: Vec<f32> = (0..24u8).map(f32::from).collect();
        let x = Tensor::from_f32([2, 3, 2, 2], &data);
        let last = x.to_layout(Layout::ChannelsLast);
        assert_eq!(last.ty().to_string(), "f32[2,3,2,2]nhwc");
        assert_eq!(last.f32()[..6], [0.0, 4.0, 8.0, 1.0, 5.0, 9.0]);
        assert_eq!(last.f32()[12..15], [12.0, 16.0, 20.0]);
        assert_eq!(last.to_layout(Layout::RowMajor), x);
        let flat = Tensor::from_f32([24], &data);
        assert_eq!(flat.to_layout(Layout::ChannelsLast), flat);
    }
}
