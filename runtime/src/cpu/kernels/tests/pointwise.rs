//! Elementwise ops, dropout and the update.

use super::*;
use vdnn_ir::op::{BinaryKind, SavedOperand, UnaryKind};

/// A function, its definition and the range it is tested on.
type UnaryCase = (UnaryKind, fn(f64) -> f64, f32, f32);

/// Every unary function with its definition in f64 and the range it is tested on.
fn unary_kinds() -> Vec<UnaryCase> {
    fn clamp01(x: f64) -> f64 {
        x.clamp(0.0, 1.0)
    }
    vec![
        (UnaryKind::Relu, |x| x.max(0.0), -2.0, 2.0),
        (UnaryKind::LeakyRelu { alpha: 0.25.into() }, |x| if x < 0.0 { 0.25 * x } else { x }, -2.0, 2.0),
        (UnaryKind::Clip { lo: (-0.5).into(), hi: 0.75.into() }, |x| x.clamp(-0.5, 0.75), -2.0, 2.0),
        (UnaryKind::Clip { lo: f32::NEG_INFINITY.into(), hi: 1.0.into() }, |x| x.min(1.0), -2.0, 2.0),
        (UnaryKind::Sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -9.0, 9.0),
        (
            UnaryKind::HardSigmoid { alpha: 0.25.into(), beta: 0.5.into() },
            |x| clamp01(0.25 * x + 0.5),
            -4.0,
            4.0,
        ),
        (UnaryKind::HardSwish, |x| x * clamp01(x / 6.0 + 0.5), -5.0, 5.0),
        (UnaryKind::Tanh, f64::tanh, -4.0, 4.0),
        (UnaryKind::Elu { alpha: 1.5.into() }, |x| if x < 0.0 { 1.5 * x.exp_m1() } else { x }, -4.0, 2.0),
        (UnaryKind::Exp, f64::exp, -4.0, 4.0),
        (UnaryKind::Log, f64::ln, 0.1, 9.0),
        (UnaryKind::Sqrt, f64::sqrt, 0.1, 9.0),
        (UnaryKind::Neg, |x| -x, -2.0, 2.0),
        (UnaryKind::Abs, f64::abs, -2.0, 2.0),
        (UnaryKind::Reciprocal, |x| 1.0 / x, 0.2, 3.0),
        (UnaryKind::Affine { scale: 3.0.into(), shift: (-1.0).into() }, |x| 3.0 * x - 1.0, -2.0, 2.0),
        (UnaryKind::PowConst { exponent: 2.0.into() }, |x| x * x, -2.0, 2.0),
        (UnaryKind::PowConst { exponent: 3.0.into() }, |x| x * x * x, -2.0, 2.0),
        (UnaryKind::PowConst { exponent: 1.0.into() }, |x| x, -2.0, 2.0),
        (UnaryKind::PowConst { exponent: (-0.75).into() }, |x| x.powf(-0.75), 0.5, 4.0),
    ]
}

#[test]
fn unary_and_its_gradient() {
    let mut rng = Rng(1);
    for (kind, f, lo, hi) in unary_kinds() {
        for dims in [vec![3u64, 5, 7], vec![40_003], vec![]] {
            let x = rng.tensor_in(&dims, lo, hi);
            let y = run(&Op::Unary(kind), from_ref(&x));
            let xs = wide(&x);
            close(&y, &xs.iter().map(|&x| f(x)).collect::<Vec<_>>(), 5e-7, &format!("{kind:?}"));
            let dy = rng.tensor(&dims);
            let saved = if kind.saves() == SavedOperand::X { &x } else { &y };
            let dx = run(&Op::UnaryGrad(kind), &[dy.clone(), saved.clone()]);
            // Elementwise, so one difference quotient per element will do.
            let h = 1e-6;
            let want: Vec<f64> =
                xs.iter().zip(wide(&dy)).map(|(&x, d)| d * (f(x + h) - f(x - h)) / (2.0 * h)).collect();
            // A step across a kink has neither slope.
            let smooth = xs.iter().map(|&x| {
                let (left, right) = (f(x) - f(x - h), f(x + h) - f(x));
                (left - right).abs() < 1e-3 * h
            });
            let got: Vec<f32> = dx
                .f32()
                .iter()
                .zip(&want)
                .zip(smooth)
                .map(|((&g, &w), ok)| if ok { g } else { w as f32 })
                .collect();
            close(&Tensor::from_f32(dims, &got), &want, 2e-6, &format!("gradient of {kind:?}"));
        }
    }
}

#[test]
fn kinks_and_nan() {
    let grad = |kind: UnaryKind, s: f32| {
        run(&Op::UnaryGrad(kind), &[Tensor::from_f32([1], &[3.0]), Tensor::from_f32([1], &[s])]).f32()[0]
    };
    let clip = UnaryKind::Clip { lo: 0.0.into(), hi: 6.0.into() };
    assert_eq!(
        (grad(UnaryKind::Relu, 0.0), grad(clip, 0.0), grad(clip, 6.0), grad(clip, 6.5)),
        (0.0, 3.0, 3.0, 0.0)
    );
    assert_eq!(grad(UnaryKind::LeakyRelu { alpha: 0.5.into() }, 0.0), 1.5);
    assert_eq!(grad(UnaryKind::Abs, 0.0), 0.0);
    for kind in [UnaryKind::Relu, clip, UnaryKind::Sigmoid, UnaryKind::Tanh, UnaryKind::HardSwish] {
        assert!(run(&Op::Unary(kind), &[Tensor::from_f32([1], &[f32::NAN])]).f32()[0].is_nan(), "{kind:?}");
    }
    for kind in [BinaryKind::Max, BinaryKind::Min] {
        for pair in [[f32::NAN, 1.0], [1.0, f32::NAN]] {
            let [a, b] = pair.map(|x| Tensor::from_f32([1], &[x]));
            assert!(run(&Op::Binary(kind), &[a, b]).f32()[0].is_nan(), "{kind:?} of {pair:?}");
        }
    }
}

#[test]
fn binary_broadcasts() {
    type Case = (BinaryKind, fn(f64, f64) -> f64);
    let kinds: [Case; 9] = [
        (BinaryKind::Add, |a, b| a + b),
        (BinaryKind::Sub, |a, b| a - b),
        (BinaryKind::Mul, |a, b| a * b),
        (BinaryKind::Div, |a, b| a / b),
        (BinaryKind::Pow, f64::powf),
        (BinaryKind::Max, f64::max),
        (BinaryKind::Min, f64::min),
        (BinaryKind::PRelu, |a, b| if a < 0.0 { a * b } else { a }),
        (BinaryKind::Gate, |a, b| if b > 0.0 { a } else { 0.0 }),
    ];
    let shapes: [(&[u64], &[u64]); 12] = [
        (&[2, 3, 4, 5], &[2, 3, 4, 5]),
        (&[3, 70, 200], &[3, 70, 200]),
        (&[2, 3, 100, 99], &[3, 1, 1]),
        (&[2, 3, 4, 5], &[2, 3, 1, 1]),
        (&[2, 3, 4, 5], &[]),
        (&[1], &[7, 5]),
        (&[4, 10], &[10]),
        (&[4, 1], &[1, 6]),
        (&[2, 1, 4], &[3, 1]),
        (&[1, 3, 1, 5], &[2, 1, 4, 1]),
        (&[], &[]),
        (&[0, 3], &[3]),
    ];
    let mut rng = Rng(2);
    for (kind, f) in kinds {
        for (da, db) in shapes {
            let lo = if kind == BinaryKind::Pow || kind == BinaryKind::Div { 0.5 } else { -1.0 };
            let (a, b) = (rng.tensor_in(da, lo, 2.0), rng.tensor_in(db, lo, 2.0));
            let y = run(&Op::Binary(kind), &[a.clone(), b.clone()]);
            let out = sizes(&y.ty().dims);
            let get = |t: &Tensor, at: &[usize]| {
                let d = sizes(&t.ty().dims);
                let at: Vec<usize> = at[at.len() - d.len()..]
                    .iter()
                    .zip(&d)
                    .map(|(&i, &n)| if n == 1 { 0 } else { i })
                    .collect();
                f64::from(t.f32()[flat(&d, &at)])
            };
            let want: Vec<f64> = indices(&out).map(|at| f(get(&a, &at), get(&b, &at))).collect();
            close(&y, &want, 3e-7, &format!("{kind:?} of {} and {}", a.ty(), b.ty()));
        }
    }
}

#[test]
fn one_value_as_both_operands_in_place() {
    let ty = TensorType::f32([4]);
    let mut words = [[1.0f32, -2.0], [0.5, 3.0]];
    let mut out = [TensorMut { ty: &ty, bytes: bytemuck::cast_slice_mut(&mut words) }];
    let operands = [Operand::InPlace(0), Operand::InPlace(0)];
    CpuKernels::new(1).launch(&Op::Binary(BinaryKind::Mul), &operands, &mut out).unwrap();
    assert_eq!(words, [[1.0, 4.0], [0.25, 9.0]]);
}

#[test]
fn dropout_follows_its_formula() {
    fn mix(seed: u64, i: u64) -> u64 {
        Rng(seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15))).next()
    }
    let x = Rng(4).tensor(&[50, 1001]);
    let step = Tensor::from_i64([], &[12]);
    for ratio in [0.0f32, 0.25, 0.5, 0.9] {
        let op = Op::Dropout { ratio: ratio.into(), seed: 77, first: 5 };
        let y = run(&op, &[x.clone(), step.clone()]);
        let stream = mix(77, 12);
        let want: Vec<f64> = (0..x.f32().len())
            .map(|i| {
                let u = (mix(stream, 5 + i as u64) >> 40) as f64 / f64::from(1 << 24);
                let kept = u >= f64::from(ratio);
                if kept { f64::from(x.f32()[i]) / (1.0 - f64::from(ratio)) } else { 0.0 }
            })
            .collect();
        close(&y, &want, 1e-7, &format!("ratio {ratio}"));
        let kept = y.f32().iter().filter(|&&y| y != 0.0).count() as f32 / y.f32().len() as f32;
        assert!((kept - (1.0 - ratio)).abs() < 0.01, "{kept} kept at ratio {ratio}");
    }
}

#[test]
fn sgd() {
    let mut rng = Rng(5);
    for n in [1u64, 1000, 50_001] {
        let [w, v, g] = [0; 3].map(|_: i32| rng.tensor(&[n]));
        let hyper = Tensor::from_f32([3], &[0.1, 0.9, 0.01]);
        let out = run_n(&Op::SgdUpdate, &[w.clone(), v.clone(), g.clone(), hyper], 2);
        let (mut want_w, mut want_v) = (wide(&w), wide(&v));
        for (i, g) in wide(&g).into_iter().enumerate() {
            want_v[i] = 0.9 * want_v[i] + g + 0.01 * want_w[i];
            want_w[i] -= 0.1 * want_v[i];
        }
        close(&out[0], &want_w, 5e-7, "weights");
        close(&out[1], &want_v, 5e-7, "momentum");
    }
}
