//! Convolutions and products with packed weights, and convolutions of inputs with zeros.

use super::super::naive;
use super::{Case, Rng, list};
use vdnn_ir::op::ConvAttrs;
use vdnn_ir::sparse::SparseForm;
use vdnn_ir::sparse::blocks::{BLOCK, BlockShape};
use vdnn_ir::{DType, Op, Tensor};

/// Weights of which so many percent are zero, packed, with room for three more.
fn packed(rng: &mut Rng, dims: &[u64], zeros: u64) -> Tensor {
    let w = rng.tensor(dims, -1.0, 1.0);
    let kept: Vec<f32> = w.f32().iter().map(|&v| if rng.next() % 100 < zeros { 0.0 } else { v }).collect();
    let nonzeros = kept.iter().filter(|v| **v != 0.0).count() as u64;
    let w = Tensor::from_f32(dims.iter().copied(), &kept);
    let nonzeros = (nonzeros + 3).min(w.ty().elements());
    let op = Op::PackSparse { nonzeros, form: SparseForm::Csr };
    naive(&op, &[w], 1).remove(0)
}

/// Every width of tiles, run of outputs and number of filters, windows that reach over the borders.
pub(super) fn packed_weights(rng: &mut Rng, out: &mut Vec<Case>) {
    // Images, channels, filters, height, width; window, stride, dilation, padding; percent of zeros.
    let convs: [[u64; 11]; 18] = [
        [1, 3, 5, 9, 40, 3, 3, 1, 1, 1, 50],
        [2, 40, 20, 7, 7, 3, 3, 1, 1, 1, 80],
        [1, 65, 33, 14, 14, 3, 3, 1, 1, 1, 95],
        [3, 8, 130, 12, 33, 3, 3, 1, 1, 1, 90],
        [40, 4, 64, 28, 6, 3, 3, 1, 1, 1, 70],
        [2, 12, 16, 13, 17, 3, 3, 2, 1, 1, 60],
        [1, 6, 9, 15, 15, 5, 3, 1, 2, 4, 75],
        [1, 3, 64, 20, 20, 7, 7, 2, 1, 3, 0],
        [2, 36, 24, 9, 11, 1, 1, 1, 1, 0, 90],
        [9, 70, 48, 30, 30, 1, 1, 1, 1, 0, 98],
        [2, 16, 8, 9, 9, 1, 1, 2, 1, 0, 50],
        [1, 8, 8, 5, 5, 1, 1, 1, 1, 1, 50],
        [1, 2, 3, 4, 4, 3, 3, 1, 1, 2, 100],
        [1, 9, 7, 1, 1, 3, 3, 1, 1, 1, 30],
        [2, 300, 40, 10, 11, 3, 3, 1, 1, 1, 90],
        [1, 600, 70, 8, 9, 1, 1, 1, 1, 0, 80],
        [1, 130, 300, 9, 40, 3, 3, 1, 1, 1, 97],
        [2, 200, 34, 12, 12, 1, 1, 1, 1, 0, 60],
    ];
    let all = convs.len() - 1;
    for (at, [n, c, m, h, w, ky, kx, stride, dilation, pad, zeros]) in convs.into_iter().enumerate() {
        let conv = ConvAttrs { kernel: list(&[ky, kx]), ..ConvAttrs::square(ky, stride, pad, dilation) };
        let w_dims = [m, c, ky, kx];
        let mut inputs = vec![rng.tensor(&[n, c, h, w], -1.0, 1.0), packed(rng, &w_dims, zeros)];
        if at % 2 == 0 || at == all {
            inputs.push(rng.tensor(&[m], -1.0, 1.0));
        }
        if at % 4 == 0 || at == all {
            let extent = |size: u64, k: u64| (size + 2 * pad - dilation * (k - 1) - 1) / stride + 1;
            inputs.push(rng.tensor(&[n, m, extent(h, ky), extent(w, kx)], -1.0, 1.0));
        }
        let relu = at % 6 == 0 || at == all;
        let op = Op::SparseConv { conv, w_dims: list(&w_dims), form: SparseForm::Csr, relu };
        out.push(Case::new(op, inputs, 2e-6));
    }
    let flat = ConvAttrs::without_axes();
    for (images, columns, rows, zeros) in [
        (1, 300, 70, 90),
        (2, 33, 8, 50),
        (3, 5, 1, 0),
        (11, 129, 40, 95),
        (8, 64, 9, 100),
        (1, 900, 30, 50),
        (5, 300, 43, 50),
    ] {
        let w_dims = [rows, columns];
        let mut inputs = vec![rng.tensor(&[images, columns], -1.0, 1.0), packed(rng, &w_dims, zeros)];
        if images % 2 == 1 {
            inputs.push(rng.tensor(&[rows], -1.0, 1.0));
        }
        let (conv, w_dims) = (flat.clone(), list(&w_dims));
        let op = Op::SparseConv { conv, w_dims, form: SparseForm::Csr, relu: false };
        out.push(Case::new(op, inputs, 2e-6));
    }
}

/// Weights of which so many percent of the blocks are zero, packed, with room for one more.
fn packed_blocks(rng: &mut Rng, dims: &[u64], zeros: u64, form: SparseForm) -> Tensor {
    let shape = BlockShape::of(dims).expect("filters");
    let gone: Vec<bool> = (0..shape.groups() * shape.columns()).map(|_| rng.next() % 100 < zeros).collect();
    let block = |i: usize| {
        let (m, c, tap) = (i / shape.taps / shape.channels, i / shape.taps % shape.channels, i % shape.taps);
        gone[m / BLOCK * shape.columns() + c / BLOCK * shape.taps + tap]
    };
    let w = rng.tensor(dims, -1.0, 1.0);
    let kept = w.f32().iter().enumerate().map(|(i, &v)| if block(i) { 0.0 } else { v });
    let w = Tensor::from_f32(dims.iter().copied(), &kept.collect::<Vec<_>>());
    let nonzeros = (shape.count(w.f32()) + 1).min(form.most(dims).expect("weights"));
    naive(&Op::PackSparse { nonzeros, form }, &[w], 1).remove(0)
}

/// Blocks on tensor cores: windows that reach over the borders, filters and channels that are no
/// whole blocks, everything that may follow the sum.
pub(super) fn blocks(rng: &mut Rng, out: &mut Vec<Case>) {
    // Images, channels, filters, height, width; window, stride, dilation, padding; percent of zero
    // blocks, operands.
    let convs: [[u64; 12]; 13] = [
        [1, 16, 16, 9, 20, 3, 3, 1, 1, 1, 0, 2],
        [2, 40, 36, 7, 7, 3, 3, 1, 1, 1, 50, 3],
        [1, 72, 130, 14, 14, 3, 3, 1, 1, 1, 90, 4],
        [3, 64, 32, 6, 17, 3, 3, 1, 1, 1, 80, 3],
        [2, 24, 17, 13, 17, 3, 3, 2, 1, 1, 30, 4],
        [1, 20, 24, 15, 15, 5, 3, 1, 2, 4, 50, 2],
        [1, 8, 20, 20, 20, 7, 7, 2, 1, 3, 0, 3],
        [2, 136, 96, 9, 11, 1, 1, 1, 1, 0, 95, 4],
        [5, 32, 64, 12, 12, 1, 1, 1, 1, 0, 30, 3],
        [2, 48, 16, 9, 9, 1, 1, 2, 1, 0, 50, 2],
        [1, 16, 16, 5, 5, 1, 1, 1, 1, 1, 0, 3],
        [1, 19, 21, 8, 8, 3, 3, 1, 1, 1, 50, 4],
        [1, 32, 35, 4, 4, 3, 3, 1, 1, 2, 100, 3],
    ];
    for form in [SparseForm::Block, SparseForm::BlockBf16] {
        let (element, tolerance) =
            if form == SparseForm::Block { (DType::F32, 2e-3) } else { (DType::BF16, 1.0 / 128.0) };
        let real = |t: Tensor| t.to_dtype(element).expect("f32");
        for (at, [n, c, m, h, w, ky, kx, stride, dilation, pad, zeros, operands]) in
            convs.into_iter().enumerate()
        {
            let conv = ConvAttrs { kernel: list(&[ky, kx]), ..ConvAttrs::square(ky, stride, pad, dilation) };
            let w_dims = [m, c, ky, kx];
            let y = |i: usize, k: u64| ([h, w][i] + 2 * pad - (k - 1) * dilation - 1) / stride + 1;
            let rest = [rng.tensor(&[m], -1.0, 1.0), rng.tensor(&[n, m, y(0, ky), y(1, kx)], -1.0, 1.0)];
            let mut inputs =
                vec![real(rng.tensor(&[n, c, h, w], -1.0, 1.0)), packed_blocks(rng, &w_dims, zeros, form)];
            inputs.extend(rest.into_iter().take(operands as usize - 2).map(real));
            let relu = operands > 2 && at % 2 == 0;
            let op = Op::SparseConv { conv, w_dims: list(&w_dims), form, relu };
            out.push(Case::new(op, inputs, tolerance));
        }
        for (images, columns, rows, zeros) in [(1, 300, 70, 80), (9, 32, 16, 0), (70, 72, 100, 50)] {
            let w_dims = [rows, columns];
            let mut inputs = vec![
                real(rng.tensor(&[images, columns], -1.0, 1.0)),
                packed_blocks(rng, &w_dims, zeros, form),
            ];
            if images % 2 == 1 {
                inputs.push(rng.tensor(&[rows], -1.0, 1.0));
            }
            let conv = ConvAttrs::without_axes();
            let op = Op::SparseConv { conv, w_dims: list(&w_dims), form, relu: false };
            out.push(Case::new(op, inputs, tolerance));
        }
    }
}

/// Weights of which of every four channels two random ones, one or none are kept, packed.
fn packed_two_four(rng: &mut Rng, dims: &[u64]) -> Tensor {
    let (c, taps) = (dims[1] as usize, dims[2..].iter().product::<u64>() as usize);
    let mut w = rng.tensor(dims, -1.0, 1.0).f32().to_vec();
    for row in w.chunks_exact_mut(c * taps) {
        for first in (0..c).step_by(4) {
            for tap in 0..taps {
                let kept = [rng.next() % 4, rng.next() % 5];
                for place in (0..4.min(c - first)).filter(|&p| !kept.contains(&(p as u64))) {
                    row[(first + place) * taps + tap] = 0.0;
                }
            }
        }
    }
    let form = SparseForm::TwoFourBf16;
    let nonzeros = form.most(dims).expect("weights");
    naive(&Op::PackSparse { nonzeros, form }, &[Tensor::from_f32(dims.iter().copied(), &w)], 1).remove(0)
}

/// Two of four on tensor cores: windows that reach over the borders, filters and channels that are no
/// whole pieces, several slabs, everything that may follow the sum.
pub(super) fn two_of_four(rng: &mut Rng, out: &mut Vec<Case>) {
    // Images, channels, filters, height, width; window, stride, dilation, padding; operands.
    let convs: [[u64; 11]; 14] = [
        [1, 32, 16, 9, 20, 3, 3, 1, 1, 1, 2],
        [2, 64, 36, 7, 7, 3, 3, 1, 1, 1, 3],
        [1, 72, 130, 14, 14, 3, 3, 1, 1, 1, 4],
        [3, 160, 32, 6, 17, 3, 3, 1, 1, 1, 3],
        [2, 24, 17, 13, 17, 3, 3, 2, 1, 1, 4],
        [1, 20, 24, 15, 15, 5, 3, 1, 2, 4, 2],
        [1, 8, 20, 20, 20, 7, 7, 2, 1, 3, 3],
        [2, 264, 96, 9, 11, 1, 1, 1, 1, 0, 4],
        [5, 32, 64, 12, 12, 1, 1, 1, 1, 0, 3],
        [2, 48, 16, 9, 9, 1, 1, 2, 1, 0, 2],
        [1, 16, 16, 5, 5, 1, 1, 1, 1, 1, 3],
        [1, 19, 21, 8, 8, 3, 3, 1, 1, 1, 4],
        [1, 128, 256, 16, 16, 3, 3, 1, 1, 1, 4],
        [1, 64, 128, 24, 24, 1, 1, 1, 1, 0, 3],
    ];
    let real = |t: Tensor| t.to_dtype(DType::BF16).expect("f32");
    let (form, tolerance) = (SparseForm::TwoFourBf16, 1.0 / 128.0);
    for (at, [n, c, m, h, w, ky, kx, stride, dilation, pad, operands]) in convs.into_iter().enumerate() {
        let conv = ConvAttrs { kernel: list(&[ky, kx]), ..ConvAttrs::square(ky, stride, pad, dilation) };
        let w_dims = [m, c, ky, kx];
        let y = |i: usize, k: u64| ([h, w][i] + 2 * pad - (k - 1) * dilation - 1) / stride + 1;
        let rest = [rng.tensor(&[m], -1.0, 1.0), rng.tensor(&[n, m, y(0, ky), y(1, kx)], -1.0, 1.0)];
        let mut inputs = vec![real(rng.tensor(&[n, c, h, w], -1.0, 1.0)), packed_two_four(rng, &w_dims)];
        inputs.extend(rest.into_iter().take(operands as usize - 2).map(real));
        let relu = operands > 2 && at % 2 == 0;
        let op = Op::SparseConv { conv, w_dims: list(&w_dims), form, relu };
        out.push(Case::new(op, inputs, tolerance));
    }
    for (images, columns, rows) in [(1, 300, 70), (9, 32, 16), (70, 72, 100)] {
        let w_dims = [rows, columns];
        let mut inputs = vec![real(rng.tensor(&[images, columns], -1.0, 1.0)), packed_two_four(rng, &w_dims)];
        if images % 2 == 1 {
            inputs.push(rng.tensor(&[rows], -1.0, 1.0));
        }
        let conv = ConvAttrs::without_axes();
        let op = Op::SparseConv { conv, w_dims: list(&w_dims), form, relu: false };
        out.push(Case::new(op, inputs, tolerance));
    }
}

/// Every kind of tile and number of filters, windows that reach over the borders, lists and whole
/// channels, channels that are no multiple of four, with and without what is added.
pub(super) fn inputs_with_zeros(rng: &mut Rng, out: &mut Vec<Case>) {
    // Images, channels, filters, height, width; window, stride, dilation, padding; percent of zeros.
    let convs: [[u64; 11]; 27] = [
        [1, 70, 5, 7, 7, 3, 3, 1, 1, 1, 40],
        [1, 64, 32, 7, 7, 3, 3, 1, 1, 1, 90],
        [1, 128, 32, 14, 14, 3, 3, 1, 1, 1, 80],
        [2, 33, 40, 13, 17, 3, 3, 1, 1, 1, 50],
        [1, 70, 130, 28, 28, 3, 3, 1, 1, 1, 95],
        [5, 8, 64, 21, 30, 3, 3, 1, 1, 1, 60],
        [30, 4, 32, 14, 21, 3, 3, 1, 1, 1, 50],
        [2, 8, 256, 14, 14, 3, 3, 1, 1, 1, 30],
        [1, 6, 5, 8, 8, 3, 3, 1, 1, 1, 0],
        [1, 9, 33, 4, 5, 3, 3, 1, 1, 1, 98],
        [2, 4, 8, 6, 6, 3, 3, 1, 1, 1, 100],
        [1, 1, 1, 1, 1, 3, 3, 1, 1, 1, 0],
        [2, 12, 48, 15, 15, 3, 3, 2, 1, 1, 70],
        [1, 20, 100, 9, 12, 3, 3, 1, 2, 2, 50],
        [1, 5, 12, 19, 11, 5, 5, 1, 1, 2, 80],
        [1, 6, 16, 12, 9, 1, 7, 1, 1, 3, 50],
        [1, 3, 10, 23, 23, 7, 7, 2, 1, 3, 30],
        [1, 128, 64, 14, 14, 1, 1, 1, 1, 0, 50],
        [1, 32, 256, 20, 14, 1, 1, 1, 1, 0, 80],
        [5, 30, 300, 7, 7, 1, 1, 1, 1, 0, 95],
        [2, 24, 40, 15, 13, 1, 1, 2, 1, 0, 60],
        [1, 7, 9, 6, 5, 1, 1, 1, 1, 1, 0],
        [1, 32, 40, 30, 9, 3, 3, 1, 1, 0, 85],
        [40, 4, 128, 8, 8, 3, 3, 1, 1, 1, 50],
        [64, 4, 64, 7, 14, 1, 1, 1, 1, 0, 30],
        [33, 8, 64, 14, 14, 1, 1, 1, 1, 0, 0],
        [20, 4, 32, 14, 14, 3, 3, 1, 1, 1, 0],
    ];
    for (at, [n, c, m, h, w, ky, kx, stride, dilation, pad, zeros]) in convs.into_iter().enumerate() {
        // A window of one row reaches over the sides only.
        let pads = list(&[if ky == 1 && kx > 1 { 0 } else { pad }, pad]);
        let conv = ConvAttrs {
            kernel: list(&[ky, kx]),
            before: pads.clone(),
            after: pads,
            ..ConvAttrs::square(ky, stride, pad, dilation)
        };
        let dense = rng.tensor(&[n, c, h, w], -1.0, 1.0);
        let kept = dense.f32().iter().map(|&v| if rng.next() % 100 < zeros { 0.0 } else { v });
        let x = Tensor::from_f32([n, c, h, w], &kept.collect::<Vec<_>>());
        let mut inputs = vec![x, rng.tensor(&[c, ky * kx, m], -1.0, 1.0)];
        if at % 3 > 0 {
            inputs.push(rng.tensor(&[m], -1.0, 1.0));
        }
        let relu = at % 4 > 1;
        if at % 3 == 2 {
            let span = |k: u64| (k - 1) * dilation + 1;
            let extent = |x: u64, k: u64, p: u64| (x + 2 * p - span(k)) / stride + 1;
            let r = [n, m, extent(h, ky, conv.before[0]), extent(w, kx, pad)];
            inputs.push(rng.tensor(&r, -1.0, 1.0));
        }
        out.push(Case::new(Op::SparseInputConv { conv, relu }, inputs, 2e-6));
    }
}
