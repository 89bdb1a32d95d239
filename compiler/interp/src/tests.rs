//! Tests of the kernels and the interpreter, and what they share.

mod gradients;
mod graphs;
mod values;

use crate::NaiveKernels;
use vdnn_ir::kernel::{KernelError, Kernels, Operand, TensorMut};
use vdnn_ir::op::Op;
use vdnn_ir::op::infer::infer;
use vdnn_ir::{DType, Tensor, TensorType};

/// An op from its text form.
fn op(text: &str) -> Op {
    text.parse().unwrap()
}

fn f32s(dims: &[u64], data: &[f32]) -> Tensor {
    Tensor::from_f32(dims.iter().copied(), data)
}

fn bytes(ty: &str, data: &[u8]) -> Tensor {
    Tensor::from_bytes(ty.parse().unwrap(), data).unwrap()
}

/// Runs an op, all operands in their own memory.
fn launch(op: &Op, inputs: &[&Tensor], n_outputs: usize) -> Result<Vec<Tensor>, KernelError> {
    let types: Vec<&TensorType> = inputs.iter().map(|t| t.ty()).collect();
    let types = infer(op, &types, n_outputs).unwrap();
    let mut outputs: Vec<Tensor> = types.iter().cloned().map(Tensor::zeros).collect();
    // Kernels write every element, so garbage must not show.
    outputs.iter_mut().for_each(|t| t.bytes_mut().fill(0x5a));
    let operands: Vec<Operand<'_>> = inputs.iter().map(|t| Operand::Ref(t.view())).collect();
    let mut results: Vec<TensorMut<'_>> =
        outputs.iter_mut().zip(&types).map(|(t, ty)| TensorMut { ty, bytes: t.bytes_mut() }).collect();
    NaiveKernels.launch(op, &operands, &mut results)?;
    Ok(outputs)
}

fn run(text: &str, inputs: &[&Tensor], n_outputs: usize) -> Vec<Tensor> {
    launch(&op(text), inputs, n_outputs).unwrap()
}

/// Runs an op with one output of interest.
fn run1(text: &str, inputs: &[&Tensor]) -> Tensor {
    run(text, inputs, 1).swap_remove(0)
}

#[track_caller]
fn close(found: &Tensor, expected: &[f32]) {
    assert_eq!(found.f32().len(), expected.len());
    for (i, (f, e)) in found.f32().iter().zip(expected).enumerate() {
        let both_nan = f.is_nan() && e.is_nan();
        assert!(
            both_nan || f == e || (f - e).abs() <= 1e-6 * e.abs().max(1.0),
            "element {i}: {f}, expected {e} in {:?}",
            found.f32()
        );
    }
}

/// Reproducible numbers in [-1, 1).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / 8_388_608.0 - 1.0
    }
    fn tensor(&mut self, dims: &[u64]) -> Tensor {
        let n: u64 = dims.iter().product();
        let data: Vec<f32> = (0..n).map(|_| self.unit()).collect();
        f32s(dims, &data)
    }
    /// Distinct numbers at least 0.05 apart, in random order, none near zero.
    fn spaced(&mut self, dims: &[u64]) -> Tensor {
        let n: u64 = dims.iter().product();
        let mut data: Vec<f32> = (0..n).map(|i| (i as f32 - n as f32 / 2.0 + 0.5) * 0.05).collect();
        for i in (1..data.len()).rev() {
            data.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
        f32s(dims, &data)
    }
}

#[test]
fn kernels_refuse_what_inference_refuses() {
    let x = f32s(&[2], &[1.0, 2.0]);
    let ty = TensorType::new(DType::F32, [3]);
    let mut y = Tensor::zeros(ty.clone());
    let mut outputs = [TensorMut { ty: &ty, bytes: y.bytes_mut() }];
    let relu = op("unary(relu)");
    let error = NaiveKernels.launch(&relu, &[Operand::Ref(x.view())], &mut outputs).unwrap_err();
    assert!(error.to_string().contains("other types"), "{error}");
    assert!(NaiveKernels.launch(&relu, &[], &mut outputs).is_err());
    assert!(NaiveKernels.launch(&relu, &[Operand::InPlace(3)], &mut outputs).is_err());
}
