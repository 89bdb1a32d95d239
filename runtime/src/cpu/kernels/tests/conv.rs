//! Convolutions and matrix products.

use super::*;
use vdnn_ir::op::ConvAttrs;

struct Case {
    attrs: ConvAttrs,
    x: Vec<u64>,
    m: u64,
    bias: bool,
}

/// A convolution; per dimension: input, kernel, stride, dilation, padding before, after.
fn case(n: u64, c: u64, m: u64, groups: u64, dims: &[[u64; 6]]) -> Case {
    let column = |i: usize| dims.iter().map(|d| d[i]).collect();
    Case {
        attrs: ConvAttrs {
            kernel: column(1),
            strides: column(2),
            dilations: column(3),
            before: column(4),
            after: column(5),
            groups,
        },
        x: [n, c].into_iter().chain(dims.iter().map(|d| d[0])).collect(),
        m,
        bias: (n + c + m).is_multiple_of(2),
    }
}

/// y, dx and dw from the definition.
fn reference(
    a: &ConvAttrs,
    [xd, wd, yd]: [&[usize]; 3],
    x: &[f64],
    w: &[f64],
    bias: Option<&[f64]>,
    dy: &[f64],
) -> [Vec<f64>; 3] {
    let groups = a.groups as usize;
    let mut y = vec![0.0; dy.len()];
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
    for (oi, o) in indices(yd).enumerate() {
        y[oi] = bias.map_or(0.0, |b| b[o[1]]);
        let group = o[1] / (wd[0] / groups);
        for (tap, k) in indices(&wd[2..]).enumerate() {
            let place: Option<Vec<usize>> = (0..k.len())
                .map(|d| {
                    let i = (o[d + 2] as u64 * a.strides[d] + k[d] as u64 * a.dilations[d])
                        .wrapping_sub(a.before[d]) as usize;
                    Some(i).filter(|&i| i < xd[d + 2])
                })
                .collect();
            let Some(place) = place else { continue };
            let (plane, taps) = (xd[2..].iter().product::<usize>(), wd[2..].iter().product::<usize>());
            for c in 0..wd[1] {
                let i = (o[0] * xd[1] + group * wd[1] + c) * plane + flat(&xd[2..], &place);
                let j = (o[1] * wd[1] + c) * taps + tap;
                y[oi] += x[i] * w[j];
                dx[i] += dy[oi] * w[j];
                dw[j] += dy[oi] * x[i];
            }
        }
    }
    [y, dx, dw]
}

fn check(case: &Case, seed: u64) {
    let mut rng = Rng(seed);
    let a = &case.attrs;
    let mut wd = vec![case.m, case.x[1] / a.groups];
    wd.extend(&a.kernel);
    let (x, w) = (rng.tensor(&case.x), rng.tensor(&wd));
    let mut inputs = vec![x.clone(), w.clone()];
    if case.bias {
        inputs.push(rng.tensor(&[case.m]));
    }
    let y = run(&Op::Conv(a.clone()), &inputs);
    let dy = rng.tensor(&y.ty().dims);
    let bias = inputs.get(2).map(wide);
    let dims = [x.ty(), w.ty(), y.ty()].map(|t| sizes(&t.dims));
    let [want_y, want_dx, want_dw] =
        reference(a, [&dims[0], &dims[1], &dims[2]], &wide(&x), &wide(&w), bias.as_deref(), &wide(&dy));
    let what = format!("{a:?} of {}", x.ty());
    close(&y, &want_y, 1e-6, &what);
    let dgrad = Op::ConvDgrad { conv: a.clone(), x_dims: x.ty().dims.clone() };
    close(&run(&dgrad, &[dy.clone(), w.clone()]), &want_dx, 1e-6, &format!("dx of {what}"));
    let wgrad = Op::ConvWgrad { conv: a.clone(), w_dims: w.ty().dims.clone() };
    close(&run(&wgrad, &[x, dy]), &want_dw, 1e-6, &format!("dw of {what}"));
}

#[test]
fn pointwise() {
    check(&case(1, 5, 7, 1, &[[9, 1, 1, 1, 0, 0], [11, 1, 1, 1, 0, 0]]), 1);
    check(&case(3, 16, 8, 1, &[[15, 1, 1, 1, 0, 0], [17, 1, 1, 1, 0, 0]]), 2);
    check(&case(3, 9, 4, 1, &[[8, 1, 2, 1, 0, 0], [7, 1, 2, 1, 0, 0]]), 3);
    check(&case(2, 6, 4, 2, &[[20, 1, 1, 1, 0, 0], [20, 1, 1, 1, 0, 0]]), 4);
    check(&case(2, 3, 4, 1, &[[5, 1, 1, 1, 1, 2], [5, 1, 1, 1, 0, 1]]), 5);
}

#[test]
fn windows() {
    check(&case(1, 1, 6, 1, &[[28, 5, 1, 1, 2, 2], [28, 5, 1, 1, 2, 2]]), 1);
    check(&case(3, 6, 16, 1, &[[14, 5, 1, 1, 0, 0], [14, 5, 1, 1, 0, 0]]), 2);
    check(&case(3, 3, 8, 1, &[[23, 7, 2, 1, 3, 3], [24, 7, 2, 1, 3, 3]]), 3);
    check(&case(2, 4, 5, 1, &[[17, 11, 4, 1, 2, 2], [19, 11, 4, 1, 2, 2]]), 4);
    check(&case(3, 8, 8, 1, &[[7, 3, 1, 1, 1, 1], [7, 3, 1, 1, 1, 1]]), 5);
    check(&case(1, 3, 4, 1, &[[12, 1, 1, 1, 0, 0], [12, 7, 1, 1, 3, 3]]), 6);
}

#[test]
fn asymmetric_padding_dilation_groups() {
    check(&case(3, 4, 6, 2, &[[9, 3, 2, 2, 0, 3], [10, 2, 3, 1, 1, 0]]), 1);
    check(&case(1, 6, 9, 3, &[[8, 3, 1, 2, 2, 1], [9, 3, 1, 3, 3, 2]]), 2);
    // Padding beyond the kernel's reach: the transposed convolution crops.
    check(&case(2, 3, 4, 1, &[[5, 2, 1, 1, 3, 2], [4, 1, 1, 1, 2, 2]]), 3);
}

#[test]
fn depthwise() {
    check(&case(3, 5, 5, 5, &[[13, 3, 1, 1, 1, 1], [12, 3, 1, 1, 1, 1]]), 1);
    check(&case(1, 4, 8, 4, &[[13, 3, 2, 1, 0, 1], [14, 5, 2, 1, 2, 2]]), 2);
    check(&case(2, 3, 3, 3, &[[9, 3, 3, 2, 2, 2], [8, 2, 1, 3, 1, 2]]), 3);
}

#[test]
fn one_and_three_dimensions() {
    check(&case(3, 4, 6, 2, &[[33, 5, 2, 1, 2, 1]]), 1);
    check(&case(2, 3, 3, 3, &[[20, 3, 1, 2, 1, 1]]), 2);
    check(&case(2, 3, 5, 1, &[[5, 3, 1, 1, 1, 1], [6, 2, 2, 1, 0, 1], [7, 3, 1, 2, 2, 2]]), 3);
    check(&case(1, 4, 4, 4, &[[5, 3, 2, 1, 1, 1], [6, 3, 1, 1, 1, 1], [7, 3, 1, 1, 1, 0]]), 4);
}

/// Large enough that every level of blocking is used.
#[test]
fn many_blocks() {
    check(&case(3, 64, 96, 1, &[[14, 3, 1, 1, 1, 1], [14, 3, 1, 1, 1, 1]]), 1);
    check(&case(1, 48, 80, 1, &[[30, 3, 1, 1, 1, 1], [31, 3, 1, 1, 1, 1]]), 2);
    check(&case(9, 64, 72, 1, &[[14, 3, 2, 1, 1, 1], [13, 3, 2, 1, 1, 1]]), 3);
    check(&case(17, 3, 32, 1, &[[32, 5, 1, 1, 2, 2], [32, 5, 1, 1, 2, 2]]), 4);
    check(&case(1, 128, 256, 1, &[[7, 3, 1, 1, 1, 1], [7, 3, 1, 1, 1, 1]]), 5);
    check(&case(4, 128, 128, 32, &[[15, 3, 1, 1, 1, 1], [15, 3, 1, 1, 1, 1]]), 6);
}

#[test]
fn random_convolutions() {
    let mut rng = Rng(99);
    for seed in 0..60 {
        let rank = rng.pick(1, 3) as usize;
        let groups = rng.pick(1, 3);
        let dims: Vec<[u64; 6]> = (0..rank)
            .map(|_| {
                let (k, d) = (rng.pick(1, 4), rng.pick(1, 2));
                let reach = d * (k - 1) + 1;
                [reach + rng.pick(0, 7), k, rng.pick(1, 3), d, rng.pick(0, 2), rng.pick(0, 2)]
            })
            .collect();
        let (c, m) = (groups * rng.pick(1, 4), groups * rng.pick(1, 5));
        check(&case([1, 3][seed as usize % 2], c, m, groups, &dims), seed);
    }
}

#[test]
fn more_than_three_spatial_dimensions_are_refused() {
    let c = case(1, 1, 1, 1, &[[2, 1, 1, 1, 0, 0]; 4]);
    let w = Tensor::zeros(TensorType::f32([1, 1, 1, 1, 1, 1]));
    let error = run_err(&Op::Conv(c.attrs), &[Tensor::zeros(TensorType::f32(c.x)), w]);
    assert!(error.to_string().ends_with("4 spatial dimensions; at most 3"), "{error}");
}

fn matrix(t: &Tensor, trans: bool) -> (usize, usize, impl Fn(usize, usize) -> f64) {
    let d = sizes(&t.ty().dims);
    let (rows, cols) = (d[d.len() - 2], d[d.len() - 1]);
    let data = wide(t);
    let at = move |i: usize, j: usize| if trans { data[j * cols + i] } else { data[i * cols + j] };
    if trans { (cols, rows, at) } else { (rows, cols, at) }
}

#[test]
fn gemm() {
    let mut rng = Rng(5);
    for (m, n, k) in
        [(1, 1, 1), (1, 120, 400), (3, 10, 84), (64, 84, 120), (5, 7, 2), (130, 200, 300), (257, 96, 1000)]
    {
        for flags in 0..4 {
            let (ta, tb) = (flags & 1 == 1, flags & 2 == 2);
            let a = rng.tensor(&if ta { [k, m] } else { [m, k] });
            let b = rng.tensor(&if tb { [n, k] } else { [k, n] });
            for c in [None, Some(vec![n]), Some(vec![m, 1]), Some(vec![m, n]), Some(vec![])] {
                let (alpha, beta) = (0.5f32, if flags == 0 { 1.0 } else { -2.0f32 });
                let mut inputs = vec![a.clone(), b.clone()];
                inputs.extend(c.as_ref().map(|d| rng.tensor(d)));
                let op = Op::Gemm { trans_a: ta, trans_b: tb, alpha: alpha.into(), beta: beta.into() };
                let y = run(&op, &inputs);
                let ((_, _, fa), (_, _, fb)) = (matrix(&a, ta), matrix(&b, tb));
                let add = |i: usize, j: usize| match c.as_deref() {
                    None => 0.0,
                    Some([]) => wide(&inputs[2])[0],
                    Some([_]) => f64::from(inputs[2].f32()[j]),
                    Some([_, 1]) => f64::from(inputs[2].f32()[i]),
                    Some(_) => f64::from(inputs[2].f32()[i * n as usize + j]),
                };
                let want: Vec<f64> = indices(&[m as usize, n as usize])
                    .map(|at| {
                        let (i, j) = (at[0], at[1]);
                        let dot: f64 = (0..k as usize).map(|l| fa(i, l) * fb(l, j)).sum();
                        0.5 * dot + f64::from(beta) * add(i, j)
                    })
                    .collect();
                close(&y, &want, 1e-6, &format!("{op} {m}x{n}x{k} + {c:?}"));
            }
        }
    }
}

#[test]
fn matmul_broadcasts_its_batch() {
    let mut rng = Rng(6);
    let cases: [(&[u64], &[u64]); 6] =
        [(&[], &[]), (&[3], &[]), (&[], &[2]), (&[2, 3], &[3]), (&[4, 1], &[3]), (&[12], &[12])];
    for (batch_a, batch_b) in cases {
        for flags in 0..4 {
            let (ta, tb) = (flags & 1 == 1, flags & 2 == 2);
            let (m, n, k) = (17u64, 20, 33);
            let join = |batch: &[u64], d: [u64; 2]| batch.iter().copied().chain(d).collect::<Vec<_>>();
            let a = rng.tensor(&join(batch_a, if ta { [k, m] } else { [m, k] }));
            let b = rng.tensor(&join(batch_b, if tb { [n, k] } else { [k, n] }));
            let y = run(&Op::MatMul { trans_a: ta, trans_b: tb }, &[a.clone(), b.clone()]);
            let out = sizes(&y.ty().dims);
            let batch = &out[..out.len() - 2];
            let start = |t: &Tensor, at: &[usize]| {
                let d = sizes(&t.ty().dims);
                let own = &d[..d.len() - 2];
                let at: Vec<usize> = at[at.len() - own.len()..]
                    .iter()
                    .zip(own)
                    .map(|(&i, &d)| if d == 1 { 0 } else { i })
                    .collect();
                flat(own, &at) * d[d.len() - 2] * d[d.len() - 1]
            };
            let mut want = Vec::new();
            for at in indices(batch) {
                let (sa, sb) = (start(&a, &at), start(&b, &at));
                for ij in indices(&[m as usize, n as usize]) {
                    let (i, j) = (ij[0], ij[1]);
                    let get_a =
                        |l: usize| a.f32()[sa + if ta { l * m as usize + i } else { i * k as usize + l }];
                    let get_b =
                        |l: usize| b.f32()[sb + if tb { j * k as usize + l } else { l * n as usize + j }];
                    want.push((0..k as usize).map(|l| f64::from(get_a(l)) * f64::from(get_b(l))).sum());
                }
            }
            close(&y, &want, 1e-6, &format!("{} x {} ({ta}, {tb})", a.ty(), b.ty()));
        }
    }
}
