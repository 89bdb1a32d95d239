//! Pools and normalisations.

use super::{Case, Rng, list, naive};
use vdnn_ir::op::{LrnAttrs, Op, PoolAttrs};
use vdnn_ir::{DType, Real, Tensor};

/// Per dimension: input, kernel, stride, dilation, padding before, after.
fn attrs(dims: &[[u64; 6]], ceil_mode: bool) -> PoolAttrs {
    let column = |i: usize| dims.iter().map(|d| d[i]).collect();
    PoolAttrs {
        kernel: column(1),
        strides: column(2),
        dilations: column(3),
        before: column(4),
        after: column(5),
        ceil_mode,
    }
}

pub(super) fn pools(rng: &mut Rng, out: &mut Vec<Case>) {
    let geometries: [(&[[u64; 6]], bool); 31] = [
        (&[[8, 2, 2, 1, 0, 0], [8, 2, 2, 1, 0, 0]], false),
        (&[[9, 2, 2, 1, 0, 0], [7, 2, 2, 1, 0, 0]], true),
        (&[[9, 3, 2, 1, 1, 1], [11, 3, 2, 1, 1, 1]], false),
        (&[[8, 3, 2, 1, 0, 0], [8, 3, 2, 1, 0, 0]], true),
        (&[[6, 3, 2, 1, 0, 1], [7, 3, 2, 1, 1, 0]], true),
        (&[[6, 3, 1, 1, 1, 1], [5, 3, 1, 1, 1, 1]], false),
        (&[[7, 2, 1, 1, 0, 0], [6, 2, 1, 1, 1, 0]], false),
        (&[[9, 3, 3, 1, 1, 1], [8, 2, 3, 1, 0, 0]], false),
        (&[[9, 3, 1, 2, 2, 2], [8, 2, 2, 3, 1, 0]], false),
        (&[[8, 3, 2, 2, 1, 1], [9, 3, 2, 2, 1, 2]], true),
        (&[[7, 5, 2, 1, 2, 2], [9, 4, 3, 1, 1, 2]], true),
        (&[[9, 3, 2, 1, 1, 1], [16, 3, 2, 1, 1, 1]], false),
        (&[[6, 3, 2, 1, 0, 0], [16, 3, 2, 1, 0, 0]], true),
        (&[[5, 3, 2, 1, 0, 0], [14, 3, 2, 1, 0, 0]], true),
        (&[[7, 3, 1, 1, 1, 1], [16, 3, 1, 1, 1, 1]], false),
        (&[[5, 2, 2, 1, 0, 0], [24, 2, 2, 1, 0, 0]], false),
        (&[[6, 2, 1, 1, 0, 1], [8, 2, 1, 1, 1, 0]], false),
        (&[[7, 3, 1, 1, 2, 0], [8, 3, 1, 1, 2, 0]], false),
        (&[[8, 3, 2, 1, 2, 1], [8, 3, 2, 1, 2, 0]], false),
        (&[[9, 3, 3, 1, 1, 1], [12, 3, 3, 1, 1, 1]], false),
        (&[[5, 2, 2, 1, 1, 1], [4, 2, 2, 1, 1, 1]], false),
        (&[[5, 5, 1, 1, 0, 0], [7, 7, 1, 1, 0, 0]], false),
        (&[[7, 7, 7, 1, 0, 0], [7, 7, 7, 1, 0, 0]], false),
        (&[[20, 17, 1, 1, 0, 0], [20, 17, 1, 1, 8, 8]], false),
        (&[[1, 2, 1, 1, 1, 1], [1, 2, 1, 1, 1, 1]], false),
        (&[[3, 1, 2, 1, 0, 0], [4, 1, 1, 1, 0, 0]], false),
        (&[[10, 3, 2, 1, 1, 1]], false),
        (&[[11, 4, 2, 2, 1, 2]], true),
        (&[[4, 2, 2, 1, 0, 0], [5, 3, 2, 1, 1, 1], [6, 2, 1, 2, 1, 0]], false),
        (&[[5, 3, 1, 1, 1, 1], [4, 2, 2, 1, 0, 0], [4, 2, 2, 1, 0, 0]], true),
        (&[[3, 3, 1, 1, 0, 0], [4, 4, 1, 1, 0, 0], [2, 2, 1, 1, 0, 0]], false),
    ];
    for (dims, ceil_mode) in geometries {
        for [n, c] in [[2, 3], [1, 4], [2, 8]] {
            let pool = attrs(dims, ceil_mode);
            let x_dims: Vec<u64> = [n, c].into_iter().chain(dims.iter().map(|d| d[0])).collect();
            // Few distinct values, so that maxima tie; some are no numbers.
            let coarse: Vec<f32> =
                rng.special(&x_dims).f32().iter().map(|v| (v * 2.0).round() / 2.0).collect();
            let x = Tensor::from_f32(x_dims.iter().copied(), &coarse);
            let op = Op::MaxPool(pool.clone());
            // Windows of nothing but what is special about comparisons.
            let odd = [f32::NEG_INFINITY, -0.0, 0.0, f32::NEG_INFINITY, f32::NAN, -1.0];
            let rare: Vec<f32> = coarse.iter().map(|v| odd[(v.abs() * 2.0).min(5.0) as usize]).collect();
            let rare = Tensor::from_f32(x_dims.iter().copied(), &rare);
            out.push(Case { op: op.clone(), inputs: vec![rare], outputs: 2, tolerance: 0.0 });
            let made = naive(&op, std::slice::from_ref(&x), 2);
            out.push(Case::new(op.clone(), vec![x.clone()], 0.0));
            out.push(Case { op, inputs: vec![x], outputs: 2, tolerance: 0.0 });
            let dy = rng.tensor(&made[0].ty().dims, -1.0, 1.0);
            let op = Op::MaxPoolGrad { pool: pool.clone(), x_dims: list(&x_dims) };
            out.push(Case::new(op, vec![dy.clone(), made[1].clone()], 1e-6));
            for count_include_pad in [false, true] {
                let op = Op::AvgPool { pool: pool.clone(), count_include_pad };
                out.push(Case::new(op, vec![rng.tensor(&x_dims, -1.0, 1.0)], 1e-6));
                let op = Op::AvgPoolGrad { pool: pool.clone(), count_include_pad, x_dims: list(&x_dims) };
                out.push(Case::new(op, vec![dy.clone()], 1e-6));
            }
        }
    }
}

pub(super) fn batch_norm(rng: &mut Rng, out: &mut Vec<Case>) {
    let eps = Real(1e-3);
    let shapes: [&[u64]; 13] = [
        &[3, 5, 4, 7],
        &[2, 8, 6, 6],
        &[2, 3, 9],
        &[6, 4],
        &[5, 7],
        &[1, 2, 3, 2, 2],
        &[4, 16, 8, 8],
        &[8, 2, 50, 50],
        &[3, 3, 61, 61],
        &[2, 260, 3, 3],
        &[40, 37, 5, 5],
        &[3000, 12],
        &[1, 1, 1, 2],
    ];
    for dims in shapes {
        let c = [dims[1]];
        // Of two nearly equal numbers little is left but how the mean was rounded.
        let tolerance = if dims.iter().product::<u64>() == 2 { 4e-5 } else { 2e-6 };
        // A mean far from zero, which sums of squares in f32 get wrong.
        let x = rng.tensor(dims, 9.0, 11.0);
        // Bf16 numbers, of which the statistics below are in either precision.
        let x = x.to_dtype(DType::BF16).and_then(|x| x.to_dtype(DType::F32)).expect("f32 elements");
        let [scale, bias, mean] = [0; 3].map(|_: i32| rng.tensor(&c, -1.0, 1.0));
        let var = rng.tensor(&c, 0.5, 2.0);
        let all = vec![x.clone(), scale.clone(), bias, mean.clone(), var.clone()];
        let op = Op::BatchNormInfer { eps, momentum: Real(0.9) };
        out.push(Case::new(op, all.clone(), 1e-6));
        let parameters = all[1..].iter().cloned();
        let op = Op::BatchNormInferRelu { eps };
        out.push(Case::new(op, parameters.chain([x.clone()]).collect(), 1e-6));
        let dy = rng.tensor(dims, -1.0, 1.0);
        let added = rng.tensor(dims, -1.0, 1.0);
        for sum in [false, true] {
            let op = Op::BatchNormTrainRelu { eps, momentum: Real(0.75) };
            let inputs: Vec<Tensor> = all.iter().chain(sum.then_some(&added)).cloned().collect();
            let made = naive(&op, &inputs, 5);
            if !sum {
                let statistics = [&scale, &all[2], &made[3], &made[4], &x].into_iter().cloned();
                out.push(Case::new(Op::BatchNormApplyRelu { eps }, statistics.collect(), tolerance));
            }
            out.push(Case { op, inputs, outputs: 5, tolerance });
            let statistics = [&dy, &x, &scale, &all[2], &made[3], &made[4]].into_iter().cloned();
            let inputs = statistics.chain(sum.then(|| made[0].clone())).collect();
            let op = Op::BatchNormReluGrad { eps };
            let outputs = if sum { 4 } else { 3 };
            out.push(Case { op, inputs, outputs, tolerance });
        }
        let op = Op::BatchNormTrain { eps, momentum: Real(0.75) };
        let made = naive(&op, &all, 5);
        // Outputs are about 1; x - mean is exact, but x itself is rounded at 10.
        out.push(Case { op, inputs: all, outputs: 5, tolerance });
        let inputs = vec![dy.clone(), x.clone(), scale.clone(), made[3].clone(), made[4].clone()];
        out.push(Case { op: Op::BatchNormGrad, inputs, outputs: 3, tolerance });
        let inputs = vec![dy, x, scale, mean, var];
        out.push(Case { op: Op::BatchNormInferGrad { eps }, inputs, outputs: 3, tolerance: 1e-6 });
    }
}

/// Batch norms that join what they read.
pub(super) fn joined_batch_norm(rng: &mut Rng, out: &mut Vec<Case>) {
    let many = vec![4; 45];
    let shapes: [(&[u64], &[u64]); 6] = [
        (&[2, 0, 6, 6], &[64, 32, 32, 8]),
        (&[2, 0, 3, 5], &[16, 4, 12]),
        (&[3, 0, 4, 4], &[5, 1, 0, 7]),
        (&[2, 0, 5], &[3, 4]),
        (&[7, 0], &[8, 16]),
        (&[1, 0, 2, 2], &many),
    ];
    for (dims, channels) in shapes {
        let mut dims = dims.to_vec();
        let total = [channels.iter().sum::<u64>()];
        let mut inputs =
            vec![0; 3].into_iter().map(|_: i32| rng.tensor(&total, -1.0, 1.0)).collect::<Vec<_>>();
        inputs.push(rng.tensor(&total, 0.5, 2.0));
        for &c in channels {
            dims[1] = c;
            // Bf16 numbers, of which the statistics below are in either precision.
            let x = rng.tensor(&dims, -2.0, 2.0).to_dtype(DType::BF16);
            inputs.push(x.and_then(|x| x.to_dtype(DType::F32)).expect("f32 elements"));
        }
        let eps = Real(1e-3);
        out.push(Case::new(Op::BatchNormInferRelu { eps }, inputs.clone(), 1e-6));
        let whole = naive(&Op::Concat { axis: 1 }, &inputs[4..], 1).remove(0);
        let train = Op::BatchNormTrain { eps, momentum: Real(0.0) };
        let parameters = [&inputs[0], &inputs[1], &inputs[2], &inputs[3]].into_iter().cloned();
        let made = naive(&train, &std::iter::once(whole).chain(parameters).collect::<Vec<_>>(), 5);
        let op = |known| Op::BatchNormTrainReluJoined { eps, momentum: Real(0.75), known };
        out.push(Case { op: op(false), inputs: inputs.clone(), outputs: 5, tolerance: 4e-6 });
        for n in [1, channels.len() / 2, channels.len()] {
            let count = channels[..n].iter().sum::<u64>();
            let front = |x: &Tensor| Tensor::from_f32([count], &x.f32()[..count as usize]);
            let mut inputs = inputs.clone();
            inputs.splice(4..4, made[3..5].iter().map(front));
            out.push(Case { op: op(true), inputs, outputs: 5, tolerance: 4e-6 });
        }
        inputs.splice(2..4, made[3..5].iter().cloned());
        out.push(Case::new(Op::BatchNormApplyRelu { eps }, inputs.clone(), 4e-6));
        dims[1] = total[0];
        let dy = rng.tensor(&dims, -1.0, 1.0);
        for more in [None, Some(0), Some(1), Some(16)] {
            let mut inputs = inputs.clone();
            inputs.insert(0, dy.clone());
            if let Some(more) = more {
                dims[1] = total[0] + more;
                inputs.insert(5, rng.tensor(&dims, -1.0, 1.0));
            }
            let op = Op::BatchNormReluGradJoined { eps, added: more.is_some() };
            out.push(Case { op, inputs, outputs: 3, tolerance: 4e-6 });
        }
    }
}

pub(super) fn local_response(rng: &mut Rng, out: &mut Vec<Case>) {
    for (size, beta) in [(5, 0.75), (3, 0.5), (4, 1.0), (1, 0.6), (2, 0.75), (9, 0.75), (40, 0.75)] {
        for dims in [&[2, 6, 3, 5][..], &[1, 3, 300], &[3, 17, 2, 2]] {
            let attrs = LrnAttrs { size, alpha: Real(0.3), beta: Real(beta), bias: Real(1.5) };
            let x = rng.tensor(dims, -2.0, 2.0);
            let op = Op::Lrn(attrs.clone());
            let y = naive(&op, std::slice::from_ref(&x), 1).remove(0);
            out.push(Case::new(op, vec![x.clone()], 1e-6));
            out.push(Case::new(Op::LrnGrad(attrs), vec![rng.tensor(dims, -1.0, 1.0), x, y], 1e-6));
        }
    }
}
