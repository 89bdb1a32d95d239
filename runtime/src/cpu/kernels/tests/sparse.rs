//! Packed weights: against the same convolution with its zeros, at every density.

use super::*;
use vdnn_ir::op::ConvAttrs;
use vdnn_ir::sparse::SparseForm;
use vdnn_ir::sparse::blocks::{BLOCK, BlockShape};
use vdnn_ir::{Dims, sparse};

const ZEROS: [u64; 8] = [0, 30, 50, 80, 90, 95, 98, 100];

/// Weights of which about so many percent are zero.
fn pruned(rng: &mut Rng, dims: &[u64], percent: u64) -> Tensor {
    let dense = rng.tensor(dims);
    let data: Vec<f32> =
        dense.f32().iter().map(|&w| if rng.pick(0, 99) < percent { 0.0 } else { w }).collect();
    Tensor::from_f32(dims.iter().copied(), &data)
}

fn packed(w: &Tensor, spare: u64) -> Tensor {
    let nonzeros = w.f32().iter().filter(|v| **v != 0.0).count() as u64;
    let nonzeros = (nonzeros + spare).min(w.ty().elements());
    let op = Op::PackSparse { nonzeros, form: SparseForm::Csr };
    run_n(&op, from_ref(w), 1).remove(0)
}

/// The product of the weights' and the inputs' magnitudes per output: what errors are judged by.
fn compare(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, conv: Option<&ConvAttrs>) {
    let dense = match conv {
        Some(conv) => Op::Conv(conv.clone()),
        None => Op::Gemm { trans_a: false, trans_b: true, alpha: 1.0.into(), beta: 1.0.into() },
    };
    let conv = conv.cloned().unwrap_or_else(ConvAttrs::without_axes);
    let op = Op::SparseConv { conv, w_dims: w.ty().dims.clone(), form: SparseForm::Csr, relu: false };
    let with = |w: &Tensor, x: &Tensor, b: Option<Tensor>| -> Vec<Tensor> {
        [x.clone(), w.clone()].into_iter().chain(b).collect()
    };
    let got = run_n(&op, &with(&packed(w, 3), x, bias.cloned()), 1).remove(0);
    let expected =
        launch(&NaiveKernels, &dense, &with(w, x, bias.cloned()), &[], 1, 0).expect("dense").remove(0);
    let abs = |t: &Tensor| {
        Tensor::from_f32(t.ty().dims.iter().copied(), &t.f32().iter().map(|v| v.abs()).collect::<Vec<_>>())
    };
    let size = launch(&NaiveKernels, &dense, &with(&abs(w), &abs(x), bias.map(abs)), &[], 1, 0)
        .expect("magnitudes")
        .remove(0);
    for ((&a, &b), &s) in got.f32().iter().zip(expected.f32()).zip(size.f32()) {
        assert!((a - b).abs() <= 1e-6 * s, "{op}: {a}, dense {b} of magnitude {s}");
    }
}

fn attrs(kernel: [u64; 2], stride: [u64; 2], dilation: u64, pads: [u64; 4], groups: u64) -> ConvAttrs {
    ConvAttrs {
        kernel: Dims::from_slice(&kernel),
        strides: Dims::from_slice(&stride),
        dilations: Dims::from_slice(&[dilation, dilation]),
        before: Dims::from_slice(&pads[..2]),
        after: Dims::from_slice(&pads[2..]),
        groups,
    }
}

#[test]
fn shapes_of_networks_at_every_density() {
    let mut rng = Rng(7);
    // n, c, m, input, kernel, stride, padding: layers of ResNet, VGG, DenseNet with fewer channels.
    for (n, c, m, size, k, s, p) in [
        (1, 3, 8, 32, 7, 2, 3),
        (1, 16, 24, 56, 1, 1, 0),
        (2, 24, 16, 28, 1, 2, 0),
        (1, 16, 16, 14, 3, 1, 1),
        (3, 40, 72, 7, 3, 1, 1),
        (1, 12, 20, 28, 3, 2, 1),
        (1, 4, 6, 112, 3, 1, 1),
        (1, 3, 4, 224, 3, 1, 1),
    ] {
        let conv = attrs([k, k], [s, s], 1, [p; 4], 1);
        for zeros in ZEROS {
            let x = rng.tensor(&[n, c, size, size]);
            let w = pruned(&mut rng, &[m, c, k, k], zeros);
            let bias = zeros.is_multiple_of(20).then(|| rng.tensor(&[m]));
            compare(&x, &w, bias.as_ref(), Some(&conv));
        }
    }
}

#[test]
fn odd_windows_borders_and_groups() {
    let mut rng = Rng(11);
    for round in 0..160 {
        let groups = rng.pick(1, 3);
        let (c, m) = (groups * rng.pick(1, 5), groups * rng.pick(1, 5));
        let kernel = [rng.pick(1, 5), rng.pick(1, 5)];
        let stride = [rng.pick(1, 3), rng.pick(1, 3)];
        let dilation = rng.pick(1, 2);
        let pads = [0; 4].map(|_| rng.pick(0, 4));
        let span = |i: usize| (kernel[i] - 1) * dilation + 1;
        let least = |i: usize| span(i).saturating_sub(pads[i] + pads[i + 2]).max(1);
        let dims = [rng.pick(1, 3), c, least(0) + rng.pick(0, 9), least(1) + rng.pick(0, 40)];
        let x = rng.tensor(&dims);
        let w = pruned(&mut rng, &[m, c / groups, kernel[0], kernel[1]], ZEROS[round % 8]);
        let bias = (round % 3 == 0).then(|| rng.tensor(&[m]));
        compare(&x, &w, bias.as_ref(), Some(&attrs(kernel, stride, dilation, pads, groups)));
    }
}

#[test]
fn lines_and_volumes() {
    let mut rng = Rng(13);
    for (x, w, rank) in [(vec![2, 3, 50], vec![4, 3, 5], 1), (vec![1, 2, 4, 6, 5], vec![3, 2, 2, 3, 3], 3)] {
        let ones = |v: u64| Dims::from_elem(v, rank);
        let conv = ConvAttrs {
            kernel: Dims::from_slice(&w[2..]),
            strides: ones(1),
            dilations: ones(1),
            before: ones(1),
            after: ones(1),
            groups: 1,
        };
        for zeros in ZEROS {
            let (x, w) = (rng.tensor(&x), pruned(&mut rng, &w, zeros));
            compare(&x, &w, None, Some(&conv));
        }
    }
}

#[test]
fn fully_connected_layers_of_any_batch() {
    let mut rng = Rng(17);
    for (n, k, m) in [(1, 300, 70), (2, 5, 130), (3, 128, 10), (40, 64, 65), (200, 33, 9)] {
        for zeros in ZEROS {
            let (x, w) = (rng.tensor(&[n, k]), pruned(&mut rng, &[m, k], zeros));
            let bias = zeros.is_multiple_of(20).then(|| rng.tensor(&[m]));
            compare(&x, &w, bias.as_ref(), None);
        }
    }
}

#[test]
fn gather_takes_and_repeats() {
    let mut rng = Rng(19);
    let x = rng.tensor(&[2, 5, 3, 4]);
    for (axis, extent) in [(0, 2), (1, 5), (2, 3), (3, 4)] {
        let indices: Vec<i32> = (0..7).map(|_| rng.pick(0, extent - 1) as i32).collect();
        let bytes: Vec<u8> = indices.iter().flat_map(|i| i.to_le_bytes()).collect();
        let index = Tensor::from_bytes(TensorType::new(DType::I32, [7]), &bytes).expect("seven");
        run_n(&Op::Gather { axis }, &[x.clone(), index], 1);
    }
    let index = Tensor::from_bytes(TensorType::new(DType::I32, [1]), &9i32.to_le_bytes()).expect("one");
    let refused = launch(&CpuKernels::new(1), &Op::Gather { axis: 1 }, &[x, index], &[], 1, 0);
    assert!(refused.is_err_and(|e| e.to_string().contains("index 9")));
}

#[test]
fn broken_packed_weights_are_no_undefined_behaviour() {
    let mut rng = Rng(23);
    let conv = attrs([3, 3], [1, 1], 1, [1; 4], 1);
    let x = rng.tensor(&[1, 2, 9, 9]);
    let w_dims = Dims::from_slice(&[2, 2, 3, 3]);
    for _ in 0..200 {
        let len = sparse::packed_len(2, 20) as usize;
        let words: Vec<i32> = (0..len)
            .map(|_| match rng.pick(0, 3) {
                0 => rng.next() as i32,
                _ => rng.pick(0, 40) as i32,
            })
            .collect();
        let bytes: Vec<u8> = words.iter().flat_map(|i| i.to_le_bytes()).collect();
        let packed = Tensor::from_bytes(TensorType::new(DType::I32, [len as u64]), &bytes).expect("words");
        let (conv, w_dims) = (conv.clone(), w_dims.clone());
        let op = Op::SparseConv { conv, w_dims, form: SparseForm::Csr, relu: false };
        for kernels in [CpuKernels::new(1), CpuKernels { par: Par::narrow(1) }] {
            // Any result or an error will do.
            let _ = launch(&kernels, &op, &[x.clone(), packed.clone()], &[], 1, 0);
        }
    }
}

/// Weights of which about so many percent of the blocks are zero.
fn pruned_blocks(rng: &mut Rng, dims: &[u64], percent: u64) -> Tensor {
    let dense = rng.tensor(dims);
    let (c, taps) = (dims[1] as usize, dims[2..].iter().product::<u64>() as usize);
    let across = c.div_ceil(BLOCK) * taps;
    let gone: Vec<bool> =
        (0..(dims[0] as usize).div_ceil(BLOCK) * across).map(|_| rng.pick(0, 99) < percent).collect();
    let block = |i: usize| i / taps / c / BLOCK * across + i / taps % c / BLOCK * taps + i % taps;
    let data = dense.f32().iter().enumerate().map(|(i, &w)| if gone[block(i)] { 0.0 } else { w });
    Tensor::from_f32(dims.iter().copied(), &data.collect::<Vec<_>>())
}

/// Weights of which at most two of every four channels are kept.
fn two_of_four(rng: &mut Rng, dims: &[u64]) -> Tensor {
    let (c, taps) = (dims[1] as usize, dims[2..].iter().product::<u64>() as usize);
    let mut w = rng.tensor(dims).f32().to_vec();
    for row in w.chunks_exact_mut(c * taps) {
        for (first, tap) in (0..c).step_by(4).flat_map(|first| (0..taps).map(move |tap| (first, tap))) {
            let kept = [rng.pick(0, 3), rng.pick(0, 4)];
            for place in (0..4.min(c - first)).filter(|&p| !kept.contains(&(p as u64))) {
                row[(first + place) * taps + tap] = 0.0;
            }
        }
    }
    Tensor::from_f32(dims.iter().copied(), &w)
}

/// Packed weights with everything that may follow them, against the dense convolution and what follows it.
fn compare_packed(rng: &mut Rng, x: &Tensor, w: &Tensor, conv: Option<&ConvAttrs>, form: SparseForm) {
    let exact = |t: &Tensor| {
        let narrow = t.to_dtype(DType::BF16).expect("f32");
        if form.is_bf16() { narrow.to_dtype(DType::F32).expect("bf16") } else { t.clone() }
    };
    let (w, w_dims) = (exact(w), w.ty().dims.clone());
    let (most, blocks) =
        (form.most(&w_dims).expect("weights"), BlockShape::of(&w_dims).expect("filters").count(w.f32()));
    let nonzeros = if form.is_block() { (blocks + rng.pick(0, 2)).min(most) } else { most };
    let packed = run_n(&Op::PackSparse { nonzeros, form }, from_ref(&w), 1).remove(0);
    let Some(conv) = conv else {
        let (conv, bias) = (ConvAttrs::without_axes(), rng.tensor(&w_dims[..1]));
        let op = Op::SparseConv { conv, w_dims, form, relu: false };
        let dense = Op::Gemm { trans_a: false, trans_b: true, alpha: 1.0.into(), beta: 1.0.into() };
        let got = run_n(&op, &[x.clone(), packed, bias.clone()], 1).remove(0);
        let inputs = [x.clone(), w, bias];
        let wanted = launch(&NaiveKernels, &dense, &inputs, &[], 1, 0).expect("dense").remove(0);
        return near(&op, &got, &wanted);
    };
    let plain = launch(&NaiveKernels, &Op::Conv(conv.clone()), &[x.clone(), w.clone()], &[], 1, 0);
    let plain = plain.expect("dense").remove(0);
    for operands in 2..=4 {
        let relu = operands > 2 && rng.pick(0, 1) == 0;
        let rest = [rng.tensor(&w_dims[..1]), rng.tensor(&plain.ty().dims)];
        let with =
            |w: &Tensor| -> Vec<Tensor> { [x, w].into_iter().chain(&rest).take(operands).cloned().collect() };
        let op = Op::SparseConv { conv: conv.clone(), w_dims: w_dims.clone(), form, relu };
        let got = run_n(&op, &with(&packed), 1).remove(0);
        let wanted = if operands == 2 {
            plain.clone()
        } else {
            let dense = Op::ConvEpilogue { conv: conv.clone(), relu };
            launch(&NaiveKernels, &dense, &with(&w), &[], 1, 0).expect("dense").remove(0)
        };
        near(&op, &got, &wanted);
    }
}

fn near(op: &Op, got: &Tensor, wanted: &Tensor) {
    let scale = wanted.f32().iter().fold(1.0f32, |m, v| m.max(v.abs()));
    for (&a, &b) in got.f32().iter().zip(wanted.f32()) {
        assert!((a - b).abs() <= 2e-6 * scale, "{op}: {a}, dense {b}");
    }
}

#[test]
fn blocks_and_two_of_four_are_the_dense_convolution() {
    let mut rng = Rng(29);
    for (round, zeros) in ZEROS.into_iter().cycle().take(144).enumerate() {
        let form = [SparseForm::BlockBf16, SparseForm::TwoFourBf16, SparseForm::Block][round % 3];
        let pruned = |rng: &mut Rng, dims: &[u64]| {
            if form.is_block() { pruned_blocks(rng, dims, zeros) } else { two_of_four(rng, dims) }
        };
        let (c, m) = (rng.pick(1, 70), rng.pick(1, 70));
        let (n, k) = (rng.pick(1, 3), [rng.pick(1, 4), rng.pick(1, 4)]);
        if round % 8 == 7 {
            let (x, w) = (rng.tensor(&[n, c]), pruned(&mut rng, &[m, c]));
            compare_packed(&mut rng, &x, &w, None, form);
            continue;
        }
        let (stride, dilation) = ([rng.pick(1, 3), rng.pick(1, 3)], rng.pick(1, 2));
        let pads = [0; 4].map(|_| rng.pick(0, 3));
        let least = |i: usize| ((k[i] - 1) * dilation + 1).saturating_sub(pads[i] + pads[i + 2]).max(1);
        let dims = [n, c, least(0) + rng.pick(0, 9), least(1) + rng.pick(0, 20)];
        let x = rng.tensor(&dims);
        let w = pruned(&mut rng, &[m, c, k[0], k[1]]);
        compare_packed(&mut rng, &x, &w, Some(&attrs(k, stride, dilation, pads, 1)), form);
    }
}

#[test]
fn broken_blocks_are_an_error() {
    let mut rng = Rng(31);
    let (conv, x) = (attrs([3, 3], [1, 1], 1, [1; 4], 1), rng.tensor(&[1, 20, 9, 9]));
    let w = pruned_blocks(&mut rng, &[40, 20, 3, 3], 50);
    let (form, w_dims) = (SparseForm::Block, w.ty().dims.clone());
    let packed = run_n(&Op::PackSparse { nonzeros: 40, form }, from_ref(&w), 1).remove(0);
    let op = Op::SparseConv { conv, w_dims, form, relu: false };
    for word in 0..40 {
        let mut bytes = packed.bytes().to_vec();
        bytes[4 * word..4 * word + 4].copy_from_slice(&(rng.next() as i32 | 0x4000).to_le_bytes());
        let broken = Tensor::from_bytes(packed.ty().clone(), &bytes).expect("words");
        // What is behind the last block is not looked at.
        let done = launch(&CpuKernels::new(1), &op, &[x.clone(), broken], &[], 1, 0);
        assert!(done.is_err() || word > 20, "word {word}");
    }
}

#[test]
fn broken_weights_of_two_of_four_are_an_error() {
    let mut rng = Rng(37);
    let (conv, x) = (attrs([3, 3], [1, 1], 1, [1; 4], 1), rng.tensor(&[1, 20, 9, 9]));
    let w = two_of_four(&mut rng, &[40, 20, 3, 3]);
    let (form, w_dims) = (SparseForm::TwoFourBf16, w.ty().dims.clone());
    let nonzeros = form.most(&w_dims).expect("weights");
    let packed = run_n(&Op::PackSparse { nonzeros, form }, from_ref(&w), 1).remove(0);
    let op = Op::SparseConv { conv, w_dims, form, relu: false };
    // The words that say which are kept: places of 3 and 3.
    for word in 128..144 {
        let mut bytes = packed.bytes().to_vec();
        bytes[4 * word + rng.pick(0, 3) as usize] = 0xff;
        let broken = Tensor::from_bytes(packed.ty().clone(), &bytes).expect("words");
        assert!(launch(&CpuKernels::new(1), &op, &[x.clone(), broken], &[], 1, 0).is_err(), "word {word}");
    }
    let piece = TensorType::new(DType::I32, [144]);
    assert!(vdnn_ir::op::infer::infer(&op, &[x.ty(), &piece], 1).is_err(), "another size");
}

#[test]
fn leaving_out_zeros_of_the_input_changes_nothing() {
    let mut rng = Rng(11);
    for percent in ZEROS {
        for ([n, c, h, w], m, k, stride, pad) in
            [([1, 6, 9, 7], 5, 3, 1, 1), ([3, 4, 8, 8], 33, 3, 2, 1), ([2, 9, 5, 6], 7, 1, 1, 0)]
        {
            let conv = attrs([k, k], [stride, stride], 1, [pad; 4], 1);
            let (x, weights) = (pruned(&mut rng, &[n, c, h, w], percent), rng.tensor(&[m, c, k, k]));
            let bias = rng.tensor(&[m]);
            let mut last = vec![0.0; weights.f32().len()];
            let (c, taps, m) = (c as usize, (k * k) as usize, m as usize);
            for (i, &v) in weights.f32().iter().enumerate() {
                let (filter, rest) = (i / (c * taps), i % (c * taps));
                last[rest * m + filter] = v;
            }
            let last = Tensor::from_f32([c as u64, taps as u64, m as u64], &last);
            for relu in [false, true] {
                let dense = Op::ConvEpilogue { conv: conv.clone(), relu };
                let op = Op::SparseInputConv { conv: conv.clone(), relu };
                let want = run_n(&dense, &[x.clone(), weights.clone(), bias.clone()], 1);
                let got = run_n(&op, &[x.clone(), last.clone(), bias.clone()], 1);
                assert_eq!(got[0], want[0], "{percent} % zeros, {op}");
            }
        }
    }
}
