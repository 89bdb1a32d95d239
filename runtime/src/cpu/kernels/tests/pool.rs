//! Pools.

use super::*;
use vdnn_ir::op::PoolAttrs;

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

/// For one output: input positions in the window with their taps, and the number of taps
/// inside input or padding.
fn window(a: &PoolAttrs, xd: &[usize], o: &[usize]) -> (Vec<(usize, usize)>, usize) {
    let kernel = sizes(&a.kernel);
    let (mut hits, mut padded) = (Vec::new(), 0);
    for (tap, k) in indices(&kernel).enumerate() {
        let at: Vec<i64> = (0..kernel.len())
            .map(|d| {
                o[d + 2] as i64 * a.strides[d] as i64 + k[d] as i64 * a.dilations[d] as i64
                    - a.before[d] as i64
            })
            .collect();
        if (0..kernel.len()).all(|d| at[d] < xd[d + 2] as i64 + a.after[d] as i64) {
            padded += 1;
        }
        if (0..kernel.len()).all(|d| (0..xd[d + 2] as i64).contains(&at[d])) {
            let index: Vec<usize> = o[..2].iter().copied().chain(at.iter().map(|&i| i as usize)).collect();
            hits.push((flat(xd, &index), tap));
        }
    }
    (hits, padded)
}

fn check(n: u64, dims: &[[u64; 6]], ceil_mode: bool, seed: u64) {
    let a = attrs(dims, ceil_mode);
    let mut rng = Rng(seed);
    let x_dims: Vec<u64> = [n, 3].into_iter().chain(dims.iter().map(|d| d[0])).collect();
    // Few distinct values, so that maxima tie.
    let x = rng.tensor(&x_dims);
    let coarse: Vec<f32> = x.f32().iter().map(|v| (v * 4.0).round() / 4.0).collect();
    let x = Tensor::from_f32(x_dims.iter().copied(), &coarse);
    let xd = sizes(&x_dims);
    let what = format!("{a:?} of {}", x.ty());

    let out = run_n(&Op::MaxPool(a.clone()), from_ref(&x), 2);
    let alone = run(&Op::MaxPool(a.clone()), from_ref(&x));
    assert_eq!(alone.bytes(), out[0].bytes(), "{what}: with and without indices");
    let yd = sizes(&out[0].ty().dims);
    let dy = rng.tensor(&out[0].ty().dims);
    let mut want_dx = vec![0f64; coarse.len()];
    for (i, o) in indices(&yd).enumerate() {
        let (hits, _) = window(&a, &xd, &o);
        let mut best: Option<(usize, usize)> = None;
        for &(at, tap) in &hits {
            if best.is_none_or(|(b, _)| coarse[at] > coarse[b]) {
                best = Some((at, tap));
            }
        }
        let index = match out[1].ty().dtype {
            DType::U8 => i64::from(out[1].bytes()[i]),
            _ => i64::from(bytemuck::cast_slice::<_, i32>(out[1].bytes())[i]),
        };
        let (value, tap) = best.map_or((f32::NEG_INFINITY, 0), |(at, tap)| (coarse[at], tap));
        assert_eq!((out[0].f32()[i], index), (value, tap as i64), "{what}: output {o:?}");
        if let Some((at, _)) = best {
            want_dx[at] += f64::from(dy.f32()[i]);
        }
    }
    let grad = Op::MaxPoolGrad { pool: a.clone(), x_dims: x.ty().dims.clone() };
    close(&run(&grad, &[dy.clone(), out[1].clone()]), &want_dx, 1e-6, &format!("max grad of {what}"));

    for include in [false, true] {
        let y = run(&Op::AvgPool { pool: a.clone(), count_include_pad: include }, from_ref(&x));
        let (mut want, mut want_dx) = (Vec::new(), vec![0f64; coarse.len()]);
        for (i, o) in indices(&yd).enumerate() {
            let (hits, padded) = window(&a, &xd, &o);
            let divisor = (if include { padded } else { hits.len() }).max(1) as f64;
            want.push(hits.iter().map(|&(at, _)| f64::from(coarse[at])).sum::<f64>() / divisor);
            hits.iter().for_each(|&(at, _)| want_dx[at] += f64::from(dy.f32()[i]) / divisor);
        }
        close(&y, &want, 1e-6, &format!("average of {what}, {include}"));
        let op = Op::AvgPoolGrad { pool: a.clone(), count_include_pad: include, x_dims: x.ty().dims.clone() };
        close(&run(&op, from_ref(&dy)), &want_dx, 1e-6, &format!("average grad of {what}, {include}"));
    }
}

#[test]
fn usual_pools() {
    check(1, &[[28, 2, 2, 1, 0, 0], [28, 2, 2, 1, 0, 0]], false, 1);
    check(3, &[[15, 3, 2, 1, 1, 1], [16, 3, 2, 1, 1, 1]], false, 2);
    check(3, &[[13, 3, 2, 1, 0, 0], [14, 3, 2, 1, 0, 0]], true, 3);
    check(2, &[[9, 3, 1, 1, 1, 1], [35, 3, 1, 1, 1, 1]], false, 4);
    check(2, &[[7, 7, 7, 1, 0, 0], [7, 7, 7, 1, 0, 0]], false, 5);
    check(1, &[[20, 17, 1, 1, 8, 8], [19, 16, 2, 1, 8, 7]], false, 6);
}

#[test]
fn other_ranks_and_dilations() {
    check(3, &[[21, 3, 2, 1, 1, 0]], true, 1);
    check(2, &[[5, 2, 1, 1, 1, 0], [6, 3, 2, 1, 0, 1], [7, 2, 2, 2, 1, 1]], true, 2);
    let mut rng = Rng(3);
    for seed in 0..60 {
        let dims: Vec<[u64; 6]> = (0..rng.pick(1, 3))
            .map(|_| {
                let (k, d) = (rng.pick(1, 4), rng.pick(1, 2));
                let pad = |rng: &mut Rng| rng.pick(0, k - 1);
                let (before, after) = (pad(&mut rng), pad(&mut rng));
                [d * (k - 1) + 1 + rng.pick(0, 8), k, rng.pick(1, 3), d, before, after]
            })
            .collect();
        check([1, 3][seed as usize % 2], &dims, seed % 3 == 0, seed);
    }
}

#[test]
fn nan_and_minus_infinity() {
    let a = attrs(&[[4, 2, 2, 1, 0, 0]], false);
    let x = Tensor::from_f32([1, 1, 4], &[f32::NAN, 1.0, f32::NEG_INFINITY, f32::NEG_INFINITY]);
    let out = run_n(&Op::MaxPool(a), &[x], 2);
    assert!(out[0].f32()[0].is_nan());
    assert_eq!(out[0].f32()[1], f32::NEG_INFINITY);
    assert_eq!(out[1].bytes(), [0, 0]);
    // The padding comes first in the window, but the first maximum is inside the input.
    let a = attrs(&[[2, 3, 1, 1, 1, 0]], false);
    let x = Tensor::from_f32([1, 1, 2], &[f32::NEG_INFINITY; 2]);
    let out = run_n(&Op::MaxPool(a.clone()), &[x], 2);
    assert_eq!(out[1].bytes(), [1]);
    let bad = Tensor::from_bytes(TensorType::new(DType::U8, [1, 1, 1]), &[3]).unwrap();
    let grad = Op::MaxPoolGrad { pool: a, x_dims: list(&[1, 1, 2]) };
    let error = run_err(&grad, &[Tensor::from_f32([1, 1, 1], &[1.0]), bad]);
    assert!(matches!(error, KernelError::BadData(_)), "{error}");
}
