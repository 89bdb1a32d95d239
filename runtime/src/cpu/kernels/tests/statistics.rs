//! Normalisations, softmax, losses and reductions.

use super::*;
use vdnn_ir::op::{LossReduction, LrnAttrs, ReduceKind};

const EPS: f32 = 1e-3;

/// `[images, channels, plane]` of a shape.
fn view(dims: &[u64]) -> [usize; 3] {
    [dims[0] as usize, dims[1] as usize, dims[2..].iter().product::<u64>() as usize]
}

fn channel(dims: [usize; 3], c: usize, x: &[f64]) -> Vec<f64> {
    indices(&[dims[0], dims[2]]).map(|at| x[(at[0] * dims[1] + c) * dims[2] + at[1]]).collect()
}

fn mean_var(x: &[f64]) -> (f64, f64) {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    (mean, x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / x.len() as f64)
}

/// Batch normalisation of x with the given or the batch's statistics.
fn normalise(
    dims: [usize; 3],
    x: &[f64],
    scale: &[f64],
    bias: &[f64],
    stats: Option<(&[f64], &[f64])>,
) -> Vec<f64> {
    let stats: Vec<(f64, f64)> = (0..dims[1])
        .map(|c| stats.map_or_else(|| mean_var(&channel(dims, c, x)), |(m, v)| (m[c], v[c])))
        .collect();
    indices(&dims)
        .enumerate()
        .map(|(i, at)| {
            let (m, v) = stats[at[1]];
            (x[i] - m) / (v + f64::from(EPS)).sqrt() * scale[at[1]] + bias[at[1]]
        })
        .collect()
}

#[test]
fn batch_norm() {
    let mut rng = Rng(1);
    for dims in [vec![3u64, 5, 4, 7], vec![2, 3, 9], vec![6, 4], vec![1, 2, 3, 2, 2]] {
        let (v, c) = (view(&dims), dims[1]);
        // A mean far from zero, which naive sums of squares get wrong.
        let x = rng.tensor_in(&dims, 9.0, 11.0);
        let [scale, bias, mean] = [0; 3].map(|_: i32| rng.tensor(&[c]));
        let var = rng.tensor_in(&[c], 0.5, 2.0);
        let all = [x.clone(), scale.clone(), bias.clone(), mean.clone(), var.clone()];
        let [xs, ss, bs, ms, vs] = all.each_ref().map(wide);

        let infer_op = Op::BatchNormInfer { eps: EPS.into(), momentum: 0.9.into() };
        let want = normalise(v, &xs, &ss, &bs, Some((&ms, &vs)));
        close(&run(&infer_op, &all), &want, 1e-6, "inference");

        let out = run_n(&Op::BatchNormTrain { eps: EPS.into(), momentum: 0.75.into() }, &all, 5);
        close(&out[0], &normalise(v, &xs, &ss, &bs, None), 3e-6, "training");
        let stats: Vec<_> = (0..v[1]).map(|i| mean_var(&channel(v, i, &xs))).collect();
        let blend = |old: &[f64], new: fn(&(f64, f64)) -> f64| -> Vec<f64> {
            old.iter().zip(&stats).map(|(o, s)| 0.75 * o + 0.25 * new(s)).collect()
        };
        close(&out[1], &blend(&ms, |s| s.0), 1e-6, "running mean");
        close(&out[2], &blend(&vs, |s| s.1), 1e-6, "running variance");
        close(&out[3], &stats.iter().map(|s| s.0).collect::<Vec<_>>(), 1e-7, "batch mean");
        let invstd: Vec<f64> = stats.iter().map(|s| 1.0 / (s.1 + f64::from(EPS)).sqrt()).collect();
        close(&out[4], &invstd, 1e-6, "batch invstd");

        let dy = rng.tensor(&dims);
        let dys = wide(&dy);
        let grads = run_n(
            &Op::BatchNormGrad,
            &[dy.clone(), x.clone(), scale.clone(), out[3].clone(), out[4].clone()],
            3,
        );
        let sides = |stats: Option<(&[f64], &[f64])>| {
            [
                numeric_grad(|x| normalise(v, x, &ss, &bs, stats), &xs, &dys),
                numeric_grad(|s| normalise(v, &xs, s, &bs, stats), &ss, &dys),
                numeric_grad(|b| normalise(v, &xs, &ss, b, stats), &bs, &dys),
            ]
        };
        for (got, want) in grads.iter().zip(sides(None)) {
            close(got, &want, 1e-5, &format!("gradient of training, {dims:?}"));
        }
        let op = Op::BatchNormInferGrad { eps: EPS.into() };
        let grads = run_n(&op, &[dy, x, scale, mean, var], 3);
        for (got, want) in grads.iter().zip(sides(Some((&ms, &vs)))) {
            close(got, &want, 1e-6, &format!("gradient of inference, {dims:?}"));
        }
    }
}

#[test]
fn batch_statistics_of_many_elements() {
    let dims = [8u64, 2, 100, 101];
    let x = Rng(9).tensor_in(&dims, 99.0, 101.0);
    let c = |v: f32| Tensor::from_f32([2], &[v; 2]);
    let out = run_n(
        &Op::BatchNormTrain { eps: 0.0.into(), momentum: 0.0.into() },
        &[x.clone(), c(1.0), c(0.0), c(0.0), c(1.0)],
        5,
    );
    let stats: Vec<_> = (0..2).map(|i| mean_var(&channel(view(&dims), i, &wide(&x)))).collect();
    close(&out[1], &stats.iter().map(|s| s.0).collect::<Vec<_>>(), 1e-7, "mean");
    close(&out[2], &stats.iter().map(|s| s.1).collect::<Vec<_>>(), 1e-6, "variance");
}

fn lrn(dims: [usize; 3], a: &LrnAttrs, x: &[f64]) -> Vec<f64> {
    let size = a.size as usize;
    indices(&dims)
        .map(|at| {
            let (c, get) = (at[1], |c: usize| x[(at[0] * dims[1] + c) * dims[2] + at[2]]);
            let window = c.saturating_sub((size - 1) / 2)..(c + (size - 1).div_ceil(2) + 1).min(dims[1]);
            let sum: f64 = window.map(|j| get(j) * get(j)).sum();
            let base = f64::from(a.bias.0) + f64::from(a.alpha.0) / size as f64 * sum;
            get(c) / base.powf(f64::from(a.beta.0))
        })
        .collect()
}

#[test]
fn local_response() {
    let mut rng = Rng(2);
    for (size, beta) in [(5, 0.75), (3, 0.5), (4, 1.0), (1, 0.6), (2, 0.75), (9, 0.75)] {
        for dims in [vec![2u64, 6, 3, 5], vec![1, 3, 300]] {
            let a = LrnAttrs { size, alpha: 0.3.into(), beta: beta.into(), bias: 1.5.into() };
            let x = rng.tensor_in(&dims, -2.0, 2.0);
            let y = run(&Op::Lrn(a.clone()), from_ref(&x));
            close(&y, &lrn(view(&dims), &a, &wide(&x)), 1e-6, &format!("{a:?}"));
            if dims.len() == 4 {
                let dy = rng.tensor(&dims);
                let want = numeric_grad(|x| lrn(view(&dims), &a, x), &wide(&x), &wide(&dy));
                close(&run(&Op::LrnGrad(a.clone()), &[dy, x, y]), &want, 2e-6, &format!("gradient of {a:?}"));
            }
        }
    }
}

/// (Log-)softmax along the middle of `[outer, axis, inner]`.
fn softmax([outer, axis, inner]: [usize; 3], log: bool, x: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; x.len()];
    for at in indices(&[outer, inner]) {
        let index = |a: usize| (at[0] * axis + a) * inner + at[1];
        let max = (0..axis).map(|a| x[index(a)]).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = (0..axis).map(|a| (x[index(a)] - max).exp()).sum();
        for a in 0..axis {
            let l = x[index(a)] - max - sum.ln();
            y[index(a)] = if log { l } else { l.exp() };
        }
    }
    y
}

#[test]
fn softmax_and_log_softmax() {
    let mut rng = Rng(3);
    let cases: [(&[u64], usize); 6] =
        [(&[3, 10], 1), (&[2, 1000], 1), (&[2, 5, 3, 4], 1), (&[4, 3], 0), (&[2, 3, 200], 1), (&[7], 0)];
    for (dims, axis) in cases {
        let size = |r: std::ops::Range<usize>| sizes(&dims[r]).iter().product();
        let view = [size(0..axis), dims[axis] as usize, size(axis + 1..dims.len())];
        let x = rng.tensor_in(dims, -4.0, 4.0);
        let dy = rng.tensor(dims);
        let axis = axis as u64;
        for (log, op, grad) in [
            (false, Op::Softmax { axis }, Op::SoftmaxGrad { axis }),
            (true, Op::LogSoftmax { axis }, Op::LogSoftmaxGrad { axis }),
        ] {
            let y = run(&op, from_ref(&x));
            close(&y, &softmax(view, log, &wide(&x)), 1e-6, &format!("{op} of {dims:?}"));
            if wide(&x).len() < 700 {
                let want = numeric_grad(|x| softmax(view, log, x), &wide(&x), &wide(&dy));
                close(&run(&grad, &[dy.clone(), y]), &want, 2e-6, &format!("{grad} of {dims:?}"));
            }
        }
    }
}

#[test]
fn cross_entropy() {
    let mut rng = Rng(4);
    for dims in [vec![5u64, 10], vec![2, 4, 3], vec![2, 3, 2, 5]] {
        let v = view(&dims);
        let (n, c, inner) = (v[0], v[1], v[2]);
        let label_dims: Vec<u64> = dims[..1].iter().chain(&dims[2..]).copied().collect();
        let logits = rng.tensor_in(&dims, -5.0, 5.0);
        for (weighted, ignore) in [(false, None), (true, None), (false, Some(-1)), (true, Some(1))] {
            let labels: Vec<i64> = (0..n * inner)
                .map(|i| if i % 3 == 1 { ignore.unwrap_or(0) } else { rng.pick(0, c as u64 - 1) as i64 })
                .collect();
            let weights = rng.tensor_in(&[c as u64], 0.5, 2.0);
            let mut inputs = vec![logits.clone(), Tensor::from_i64(label_dims.clone(), &labels)];
            if weighted {
                inputs.push(weights.clone());
            }
            for reduction in [LossReduction::Mean, LossReduction::Sum, LossReduction::None] {
                let weight = |l: i64| if weighted { f64::from(weights.f32()[l as usize]) } else { 1.0 };
                let loss = |x: &[f64]| -> Vec<f64> {
                    let lp = softmax(v, true, x);
                    let counts = |i: &usize| Some(labels[*i]) != ignore;
                    let terms: Vec<f64> = (0..labels.len())
                        .map(|i| {
                            if !counts(&i) {
                                return 0.0;
                            }
                            let (image, at) = (i / inner, i % inner);
                            -weight(labels[i]) * lp[(image * c + labels[i] as usize) * inner + at]
                        })
                        .collect();
                    let total: f64 = (0..labels.len()).filter(counts).map(|i| weight(labels[i])).sum();
                    match reduction {
                        LossReduction::Mean => vec![terms.iter().sum::<f64>() / total],
                        LossReduction::Sum => vec![terms.iter().sum()],
                        LossReduction::None => terms,
                    }
                };
                let op = Op::SoftmaxCrossEntropy { reduction, ignore_index: ignore };
                let out = run_n(&op, &inputs, 2);
                close(&out[0], &loss(&wide(&logits)), 1e-6, &format!("{op}"));
                close(&out[1], &softmax(v, true, &wide(&logits)), 1e-6, "log-probabilities");
                let dloss = rng.tensor(&out[0].ty().dims);
                let mut inputs2 = vec![dloss.clone(), out[1].clone(), inputs[1].clone()];
                inputs2.extend(inputs.get(2).cloned());
                let want = numeric_grad(loss, &wide(&logits), &wide(&dloss));
                let op = Op::SoftmaxCrossEntropyGrad { reduction, ignore_index: ignore };
                close(&run(&op, &inputs2), &want, 3e-6, &format!("{op} weighted {weighted}"));
            }
        }
    }
}

#[test]
fn labels_outside_the_classes_are_reported() {
    let op = Op::SoftmaxCrossEntropy { reduction: LossReduction::Mean, ignore_index: Some(-100) };
    for label in [3, -1, i64::MIN, i64::MAX] {
        let labels = Tensor::from_i64([3], &[0, -100, label]);
        let error = run_err(&op, &[Tensor::zeros(TensorType::f32([3, 3])), labels]);
        assert!(error.to_string().starts_with(&format!("label {label} at index 2 is outside")), "{error}");
    }
}

#[test]
fn reductions() {
    let mut rng = Rng(5);
    let cases: [(&[u64], &[u64]); 12] = [
        (&[2, 3, 4, 5], &[2, 3]),
        (&[2, 3, 4, 5], &[0, 2, 3]),
        (&[2, 3, 4, 5], &[0, 1, 2, 3]),
        (&[2, 3, 4, 5], &[1]),
        (&[2, 3, 4, 5], &[0]),
        (&[2, 3, 4, 5], &[0, 2]),
        (&[2, 3, 4, 5], &[1, 3]),
        (&[2, 3, 4, 5], &[]),
        (&[100, 700], &[0]),
        (&[300, 1000], &[1]),
        (&[3, 1, 5], &[1]),
        (&[], &[]),
    ];
    for (dims, axes) in cases {
        let x = rng.tensor_in(dims, 0.0, 1.0);
        for keepdims in [false, true] {
            for kind in [ReduceKind::Sum, ReduceKind::Mean, ReduceKind::Max] {
                let op = Op::Reduce { kind, axes: list(axes), keepdims };
                let y = run(&op, from_ref(&x));
                let d = sizes(dims);
                let kept: Vec<usize> =
                    (0..d.len()).map(|i| if axes.contains(&(i as u64)) { 1 } else { d[i] }).collect();
                let mut groups = vec![Vec::new(); kept.iter().product()];
                for (i, at) in indices(&d).enumerate() {
                    let at: Vec<usize> = at.iter().zip(&kept).map(|(&i, &k)| i.min(k - 1)).collect();
                    groups[flat(&kept, &at)].push(f64::from(x.f32()[i]));
                }
                let want: Vec<f64> = groups
                    .iter()
                    .map(|g| match kind {
                        ReduceKind::Sum => g.iter().sum(),
                        ReduceKind::Mean => g.iter().sum::<f64>() / g.len() as f64,
                        ReduceKind::Max => g.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                    })
                    .collect();
                close(&y, &want, 1e-7, &format!("{op} of {dims:?}"));
            }
        }
    }
}

#[test]
fn empty_reductions_and_nan() {
    let reduce = |kind, x: Tensor, axis: u64| {
        run(&Op::Reduce { kind, axes: list(&[axis]), keepdims: false }, &[x]).f32().to_vec()
    };
    let empty = || Tensor::zeros(TensorType::f32([2, 0]));
    assert_eq!(reduce(ReduceKind::Sum, empty(), 1), [0.0, 0.0]);
    let x = || Tensor::from_f32([2, 2], &[1.0, f32::NAN, 3.0, 2.0]);
    let max = reduce(ReduceKind::Max, x(), 1);
    assert!(max[0].is_nan() && max[1] == 3.0);
    let max = reduce(ReduceKind::Max, x(), 0);
    assert!(max[0] == 3.0 && max[1].is_nan());
}
