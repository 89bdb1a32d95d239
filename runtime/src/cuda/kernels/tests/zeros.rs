//! What the kernels that leave out zeros plan at the ends of grids, indices and shared memory.

use super::*;
use vdnn_ir::op::ConvAttrs;

/// The launches of an op, its operands a terabyte apart.
fn plan(op: &Op, inputs: Vec<TensorType>) -> Result<Vec<Step>, CudaError> {
    let outputs = infer(op, &inputs.iter().collect::<Vec<_>>(), 1).expect("types").into_vec();
    let place = |types: Vec<TensorType>, first: u64| {
        (first..).zip(types).map(|(at, ty)| (ty, at << 40)).collect::<Vec<_>>()
    };
    let (inputs, outputs) = (place(inputs, 1), place(outputs, 16));
    let placed = Placed { inputs, outputs, scratch: 0, scratch_bytes: SCRATCH.0 };
    placed.plan_at(op, 132, Precision::Tf32)
}

/// The launches of a convolution with packed weights, of which few are left.
fn packed(form: SparseForm, conv: ConvAttrs, w_dims: &[u64], x: &[u64]) -> Result<Vec<Step>, CudaError> {
    let most = form.most(w_dims).expect("weights");
    let words = form.packed_len(w_dims[0], if form.may_have(8, w_dims) { 8 } else { most });
    let element = if form.is_bf16() { DType::BF16 } else { DType::F32 };
    let inputs = vec![TensorType::new(element, x.iter().copied()), TensorType::new(DType::I32, [words])];
    plan(&Op::SparseConv { conv, w_dims: w_dims.into(), form, relu: false }, inputs)
}

/// A convolution by each of the kernels.
fn all(conv: &ConvAttrs, filters: u64, x: &[u64]) -> [Result<Vec<Step>, CudaError>; 4] {
    let k = conv.kernel[0];
    let by = |form| packed(form, conv.clone(), &[filters, x[1], k, k], x);
    let types = vec![TensorType::f32(x.iter().copied()), TensorType::f32([x[1], k * k, filters])];
    let inputs = plan(&Op::SparseInputConv { conv: conv.clone(), relu: false }, types);
    [by(SparseForm::Csr), by(SparseForm::Block), by(SparseForm::TwoFourBf16), inputs]
}

#[test]
fn windows_beyond_shared_memory_are_refused() {
    let most = (1 << 31) - 1;
    for conv in [
        ConvAttrs::square(3, most, 1, 1),
        ConvAttrs::square(2, most, most, most),
        ConvAttrs::square(65, 1, 290, 9),
    ] {
        for steps in &all(&conv, 16, &[1, 16, 8, 8])[..3] {
            assert!(matches!(steps, Err(CudaError::Unsupported { .. })), "{conv:?}: {steps:?}");
        }
    }
    // Windows of one leave out what lies between, however much that is.
    for steps in all(&ConvAttrs::square(1, most, 0, most), 16, &[1, 16, 8, 8]) {
        assert_eq!(steps.expect("launches").len(), 1);
    }
}

#[test]
fn more_images_than_a_grid_has_room_for_take_several_launches() {
    for steps in all(&ConvAttrs::square(3, 1, 1, 1), 32, &[70_000, 16, 3, 3]) {
        let steps = steps.expect("launches");
        assert_eq!(steps.iter().map(|s| s.grid[2]).collect::<Vec<_>>(), [65_535, 4_465]);
        let words = |s: &Step| s.args.all().map(|words| words[0]).collect::<Vec<_>>();
        let (first, second) = (words(&steps[0]), words(&steps[1]));
        let moved: Vec<u64> = first.iter().zip(&second).filter(|(a, b)| a != b).map(|(a, b)| b - a).collect();
        let size = if steps[0].kernel.name.starts_with("sparse_two_four") { 2 } else { 4 };
        assert_eq!(moved, [size * 65_535 * 16 * 9, size * 65_535 * 32 * 9], "x and y");
    }
    let flat = ConvAttrs::without_axes();
    let steps = packed(SparseForm::Csr, flat, &[8, 4], &[1 << 20, 4]).expect("launches");
    assert!(steps.iter().all(|s| s.grid[1] <= 65_535), "{steps:?}");
    let images: u64 = steps.iter().map(|s| 8 * u64::from(s.grid[1])).sum();
    assert_eq!(images, 1 << 20);
}

#[test]
fn more_filters_than_a_grid_has_room_for_are_refused() {
    for steps in all(&ConvAttrs::square(1, 1, 0, 1), 1 << 26, &[1, 1, 2, 2]) {
        assert!(matches!(steps, Err(CudaError::Unsupported { .. })), "{steps:?}");
    }
}

#[test]
fn products_of_many_inputs_have_a_tile() {
    for inputs in [30_000, 60_000, 130_000] {
        for filters in [16, 1000] {
            let flat = ConvAttrs::without_axes();
            for form in [SparseForm::Block, SparseForm::TwoFourBf16] {
                let steps = packed(form, flat.clone(), &[filters, inputs], &[8, inputs]);
                assert_eq!(steps.expect("launches").len(), 1);
            }
        }
    }
}
