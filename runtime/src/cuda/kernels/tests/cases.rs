//! Ops with operands that reach every kernel and its edges.

use super::naive;
use vdnn_ir::op::{
    BinaryKind, LossReduction, LrnAttrs, Op, PoolAttrs, ReduceKind, SavedOperand, SliceAttrs, UnaryKind,
};
use vdnn_ir::{DType, Dims, Layout, Real, Tensor, TensorType};

/// A launch, and how far its f32 results may be from the naive ones relative to the largest.
#[derive(Clone)]
pub(super) struct Case {
    pub(super) op: Op,
    pub(super) inputs: Vec<Tensor>,
    pub(super) outputs: usize,
    pub(super) tolerance: f32,
}

impl Case {
    fn new(op: Op, inputs: Vec<Tensor>, tolerance: f32) -> Self {
        Self { op, inputs, outputs: 1, tolerance }
    }

    /// The input types, for messages.
    pub(super) fn types(&self) -> String {
        let types: Vec<String> = self.inputs.iter().map(|t| t.ty().to_string()).collect();
        types.join(", ")
    }
}

/// A fixed sequence of numbers that look random (splitmix64).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn tensor(&mut self, dims: &[u64], lo: f32, hi: f32) -> Tensor {
        let n = dims.iter().product::<u64>();
        let data: Vec<f32> =
            (0..n).map(|_| lo + (hi - lo) * ((self.next() >> 40) as f32 / 16_777_216.0)).collect();
        Tensor::from_f32(dims.iter().copied(), &data)
    }
    /// With values where functions have kinks, and those that are no numbers.
    fn special(&mut self, dims: &[u64]) -> Tensor {
        let mut x = self.tensor(dims, -4.0, 4.0);
        let odd =
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 0.5, -0.5, 0.75];
        let mut data = x.f32().to_vec();
        data.iter_mut().skip(3).step_by(5).zip(odd).for_each(|(x, o)| *x = o);
        x = Tensor::from_f32(dims.iter().copied(), &data);
        x
    }
}

/// A tensor whose elements differ, as far as their size allows.
fn numbered(dtype: DType, dims: &[u64]) -> Tensor {
    let ty = TensorType::new(dtype, dims.iter().copied());
    let size = dtype.bytes() as usize;
    let bytes: Vec<u8> =
        (0..ty.elements()).flat_map(|i| (i + 1).to_le_bytes().into_iter().take(size)).collect();
    Tensor::from_bytes(ty, &bytes).expect("a size that fits")
}

/// Small integers of a type, some negative.
fn whole(dtype: DType, dims: &[u64]) -> Tensor {
    let ty = TensorType::new(dtype, dims.iter().copied());
    let bytes: Vec<u8> = (0..ty.elements())
        .flat_map(|i| {
            let v = (i * 7 % 13) as i64 - 6;
            match dtype {
                DType::F64 => (v as f64).to_le_bytes().to_vec(),
                DType::I32 => (v as i32).to_le_bytes().to_vec(),
                _ => v.to_le_bytes().to_vec(),
            }
        })
        .collect();
    Tensor::from_bytes(ty, &bytes).expect("a size that fits")
}

fn list(dims: &[u64]) -> Dims {
    dims.iter().copied().collect()
}

/// Everything.
pub(super) fn all() -> Vec<Case> {
    let mut out = Vec::new();
    let mut rng = Rng(1);
    pointwise(&mut rng, &mut out);
    movement(&mut rng, &mut out);
    reductions(&mut rng, &mut out);
    softmax_and_losses(&mut rng, &mut out);
    pools(&mut rng, &mut out);
    batch_norm(&mut rng, &mut out);
    local_response(&mut rng, &mut out);
    out
}

fn unary_kinds() -> Vec<UnaryKind> {
    let [a, b] = [Real(0.25), Real(0.75)];
    vec![
        UnaryKind::Relu,
        UnaryKind::LeakyRelu { alpha: a },
        UnaryKind::LeakyRelu { alpha: Real(0.0) },
        UnaryKind::Clip { lo: Real(-0.5), hi: b },
        UnaryKind::Clip { lo: Real(f32::NEG_INFINITY), hi: b },
        UnaryKind::Sigmoid,
        UnaryKind::HardSigmoid { alpha: a, beta: Real(0.5) },
        UnaryKind::HardSwish,
        UnaryKind::Tanh,
        UnaryKind::Elu { alpha: b },
        UnaryKind::Exp,
        UnaryKind::Log,
        UnaryKind::Sqrt,
        UnaryKind::Neg,
        UnaryKind::Abs,
        UnaryKind::Reciprocal,
        UnaryKind::Affine { scale: a, shift: b },
        UnaryKind::PowConst { exponent: Real(2.0) },
        UnaryKind::PowConst { exponent: Real(3.0) },
        UnaryKind::PowConst { exponent: Real(0.0) },
        UnaryKind::PowConst { exponent: Real(-1.5) },
    ]
}

fn pointwise(rng: &mut Rng, out: &mut Vec<Case>) {
    for kind in unary_kinds() {
        for dims in [&[4099][..], &[2, 3, 5, 7], &[], &[0]] {
            // The naive slope of this one multiplies infinity by zero.
            let finite = kind == UnaryKind::HardSwish;
            let x = if finite { rng.tensor(dims, -4.0, 4.0) } else { rng.special(dims) };
            let op = Op::Unary(kind);
            let y = naive(&op, std::slice::from_ref(&x), 1).remove(0);
            let s = if kind.saves() == SavedOperand::Y { y } else { x.clone() };
            out.push(Case::new(op, vec![x], 1e-6));
            out.push(Case::new(Op::UnaryGrad(kind), vec![rng.special(dims), s], 1e-6));
        }
    }
    for dtype in [DType::F64, DType::I32, DType::I64] {
        for kind in [UnaryKind::Neg, UnaryKind::Abs] {
            out.push(Case::new(Op::Unary(kind), vec![whole(dtype, &[301])], 0.0));
        }
    }
    let kinds = [
        BinaryKind::Add,
        BinaryKind::Sub,
        BinaryKind::Mul,
        BinaryKind::Div,
        BinaryKind::Pow,
        BinaryKind::Max,
        BinaryKind::Min,
        BinaryKind::PRelu,
        BinaryKind::Gate,
    ];
    let shapes: [[&[u64]; 2]; 14] = [
        [&[4101], &[4101]],
        [&[2, 3, 5, 7], &[2, 3, 5, 7]],
        [&[2, 3, 5, 7], &[]],
        [&[1], &[2, 3, 5, 7]],
        [&[2, 4, 5, 8], &[1, 4, 1, 1]],
        [&[2, 3, 5, 7], &[3, 1, 1]],
        [&[2, 4, 5, 8], &[2, 4, 1, 1]],
        [&[2, 4, 6, 8], &[8]],
        [&[2, 4, 6, 8], &[4, 6, 1]],
        [&[3, 1], &[1, 4]],
        [&[2, 1, 3, 1], &[4, 1, 5]],
        [&[], &[]],
        [&[0, 3], &[3]],
        [&[1, 1, 1, 1], &[1, 1, 1, 1]],
    ];
    for kind in kinds {
        for [a, b] in shapes {
            out.push(Case::new(Op::Binary(kind), vec![rng.special(a), rng.special(b)], 1e-6));
        }
        for dtype in [DType::F64, DType::I32, DType::I64] {
            // No zeros to divide by and no negative exponents.
            let y = naive(&Op::Unary(UnaryKind::Abs), &[whole(dtype, &[3, 1])], 1).remove(0);
            out.push(Case::new(Op::Binary(kind), vec![whole(dtype, &[2, 3, 40]), y], 1e-6));
        }
    }
    for (dims, step) in [(&[4099][..], 0), (&[2, 3, 5, 7], 41), (&[3], -1)] {
        let step = Tensor::from_i64([], &[step]);
        let op = Op::Dropout { ratio: Real(0.3), seed: 7 };
        let x = rng.tensor(dims, 1.0, 2.0);
        // Channels-last tensors keep the row-major mask, which no kernel does yet.
        out.push(Case::new(op, vec![x, step], 1e-7));
    }
    for n in [5, 4096, 4099] {
        let t = |rng: &mut Rng| rng.tensor(&[n], -1.0, 1.0);
        let hyper = Tensor::from_f32([3], &[0.1, 0.9, 0.01]);
        let inputs = vec![t(rng), t(rng), t(rng), hyper];
        out.push(Case { op: Op::SgdUpdate, inputs, outputs: 2, tolerance: 2e-7 });
    }
    for dims in [&[3, 5][..], &[4099], &[0]] {
        out.push(Case::new(Op::Fill { value: Real(-1.5), dims: list(dims) }, vec![], 0.0));
    }
}

const TYPES: [DType; 5] = [DType::U8, DType::F16, DType::F32, DType::I64, DType::Bool];

fn movement(rng: &mut Rng, out: &mut Vec<Case>) {
    for dtype in TYPES {
        let mut push = |op: Op, inputs: Vec<Tensor>| out.push(Case::new(op, inputs, 0.0));
        push(Op::Reshape { dims: list(&[21, 1]) }, vec![numbered(dtype, &[7, 3])]);
        let perms: [(&[u64], &[u64]); 9] = [
            (&[2, 3, 4, 5], &[0, 2, 3, 1]),
            (&[2, 30, 40], &[0, 2, 1]),
            (&[37, 53], &[1, 0]),
            (&[3, 20, 4, 50], &[3, 0, 2, 1]),
            (&[2, 3, 4, 8], &[0, 2, 1, 3]),
            (&[2, 3, 4, 5], &[1, 3, 0, 2]),
            (&[64, 32], &[1, 0]),
            (&[2, 1, 3], &[2, 1, 0]),
            (&[], &[]),
        ];
        for (dims, perm) in perms {
            push(Op::Transpose { perm: list(perm) }, vec![numbered(dtype, dims)]);
        }
        for (dims, to) in [
            (&[3, 1][..], &[2, 3, 4][..]),
            (&[], &[5, 2]),
            (&[1, 4, 1, 3], &[2, 4, 6, 3]),
            (&[7], &[7]),
            (&[1], &[5000]),
            (&[4, 8], &[3, 4, 8]),
        ] {
            push(Op::Expand { dims: list(to) }, vec![numbered(dtype, dims)]);
        }
        for to in [Layout::ChannelsLast, Layout::RowMajor] {
            for dims in
                [[2, 3, 5, 7], [2, 40, 8, 9], [1, 64, 32, 32], [2, 1, 4, 4], [3, 5, 1, 1], [2, 16, 4, 4]]
            {
                for from in [Layout::ChannelsLast, Layout::RowMajor] {
                    push(Op::Relayout { to }, vec![numbered(dtype, &dims).to_layout(from)]);
                }
            }
        }
    }
    for dtype in [DType::U8, DType::F32, DType::I64] {
        for shape in [[2u64, 3, 5, 7], [2, 8, 4, 4], [1, 4, 3, 3]] {
            for axis in 0..4usize {
                let mut dims = shape;
                let parts: Vec<Tensor> = [1, 4, 8]
                    .iter()
                    .map(|&n| {
                        dims[axis] = n;
                        numbered(dtype, &dims)
                    })
                    .collect();
                let op = Op::Concat { axis: axis as u64 };
                let y = naive(&op, &parts, 1).remove(0);
                out.push(Case::new(op, parts, 0.0));
                let op = Op::Split { axis: axis as u64, sizes: list(&[1, 4, 8]) };
                out.push(Case { op, inputs: vec![y], outputs: 3, tolerance: 0.0 });
            }
        }
    }
    type Range<'a> = (&'a [u64], &'a [u64], &'a [i64], &'a [u64]);
    let ranges: [Range<'_>; 6] = [
        (&[4, 6, 5], &[1, 0, 2], &[1, 1, 1], &[2, 6, 3]),
        (&[4, 6, 5], &[3, 5, 4], &[-1, -2, -3], &[4, 3, 2]),
        (&[2, 4, 6, 8], &[0, 1, 0, 4], &[1, 1, 2, 1], &[2, 2, 3, 4]),
        (&[2, 4, 6, 8], &[1, 3, 5, 7], &[-1, -1, -1, -1], &[2, 4, 6, 8]),
        (&[4, 6], &[0, 2], &[1, 1], &[4, 0]),
        (&[5000], &[4999], &[-1], &[5000]),
    ];
    for (dims, starts, steps, lens) in ranges {
        let slice = SliceAttrs { starts: list(starts), steps: steps.into(), lens: list(lens) };
        out.push(Case::new(Op::Slice(slice.clone()), vec![numbered(DType::F32, dims)], 0.0));
        out.push(Case::new(Op::Slice(slice.clone()), vec![numbered(DType::U8, dims)], 0.0));
        let op = Op::SliceGrad { slice, x_dims: list(dims) };
        out.push(Case::new(op, vec![rng.tensor(lens, -1.0, 1.0)], 0.0));
    }
    let pads: [(&[u64], &[i64], &[i64]); 6] = [
        (&[3, 4, 5], &[1, 0, 2], &[0, 2, 1]),
        (&[3, 4, 5], &[-1, 2, 0], &[1, -3, 0]),
        (&[2, 4, 6, 8], &[0, 0, 1, 2], &[0, 0, 3, 2]),
        (&[3, 4], &[0, -4], &[0, 2]),
        (&[2, 3], &[-2, 0], &[4, 0]),
        (&[7], &[3], &[-6]),
    ];
    for (dims, before, after) in pads {
        for dtype in [DType::F32, DType::I64, DType::U8, DType::I32] {
            let op = Op::Pad { before: before.into(), after: after.into(), value: Real(2.0) };
            out.push(Case::new(op, vec![numbered(dtype, dims)], 0.0));
        }
        let op = Op::Pad { before: before.into(), after: after.into(), value: Real(0.0) };
        out.push(Case::new(op, vec![numbered(DType::F16, dims)], 0.0));
    }
}

fn reductions(rng: &mut Rng, out: &mut Vec<Case>) {
    let mut shapes: Vec<(Vec<u64>, Vec<u64>)> = Vec::new();
    for dims in [[2u64, 3, 4, 5], [3, 8, 2, 6], [2, 1, 4, 3], [5, 4, 1, 1]] {
        for mask in 0..16u64 {
            shapes.push((dims.to_vec(), (0..4).filter(|a| mask >> a & 1 == 1).collect()));
        }
    }
    for (dims, axes) in [
        (&[100, 300][..], &[0][..]),
        (&[9, 5000], &[1]),
        (&[20_000], &[0]),
        (&[20_001], &[0]),
        (&[6, 3, 50, 50], &[0, 2, 3]),
        (&[6, 12, 31, 33], &[0, 2, 3]),
        (&[3000, 12], &[0]),
        (&[2000, 5], &[0]),
        (&[2, 600, 9], &[1]),
        (&[3, 7, 7, 64], &[1, 2]),
        (&[], &[]),
        (&[2, 0], &[1]),
        (&[0, 2], &[1]),
        (&[2, 2, 2, 2, 2, 2], &[0, 2, 4]),
    ] {
        shapes.push((dims.to_vec(), axes.to_vec()));
    }
    for (dims, axes) in shapes {
        let x = rng.tensor(&dims, -0.5, 1.0);
        for keepdims in [false, true] {
            for kind in [ReduceKind::Sum, ReduceKind::Mean, ReduceKind::Max] {
                let op = Op::Reduce { kind, axes: list(&axes), keepdims };
                out.push(Case::new(op, vec![x.clone()], 1e-6));
            }
        }
    }
    for dtype in [DType::F64, DType::I32, DType::I64] {
        for kind in [ReduceKind::Sum, ReduceKind::Mean, ReduceKind::Max] {
            let op = Op::Reduce { kind, axes: list(&[1]), keepdims: false };
            out.push(Case::new(op, vec![whole(dtype, &[3, 4, 5])], 0.0));
        }
    }
    for kind in [ReduceKind::Sum, ReduceKind::Max] {
        for axes in [&[0][..], &[1], &[0, 1]] {
            let op = Op::Reduce { kind, axes: list(axes), keepdims: false };
            out.push(Case::new(op, vec![rng.special(&[20, 40])], 1e-6));
        }
    }
}

fn softmax_and_losses(rng: &mut Rng, out: &mut Vec<Case>) {
    let shapes: [(&[u64], u64); 9] = [
        (&[3, 10], 1),
        (&[2, 1000], 1),
        (&[2, 5, 3, 4], 1),
        (&[2, 5, 3, 4], 3),
        (&[4, 3], 0),
        (&[2, 3, 200], 1),
        (&[7], 0),
        (&[17, 1], 1),
        (&[9, 33], 1),
    ];
    for (dims, axis) in shapes {
        let x = rng.tensor(dims, -9.0, 9.0);
        let dy = rng.tensor(dims, -1.0, 1.0);
        for (op, grad) in [
            (Op::Softmax { axis }, Op::SoftmaxGrad { axis }),
            (Op::LogSoftmax { axis }, Op::LogSoftmaxGrad { axis }),
        ] {
            let y = naive(&op, std::slice::from_ref(&x), 1).remove(0);
            out.push(Case::new(op, vec![x.clone()], 1e-6));
            out.push(Case::new(grad, vec![dy.clone(), y], 1e-6));
        }
    }
    for dims in [&[5, 10][..], &[2, 4, 3], &[2, 3, 2, 5], &[3000, 3], &[1, 1], &[1, 2, 2000]] {
        let labels: Vec<u64> = dims[..1].iter().chain(&dims[2..]).copied().collect();
        let n = labels.iter().product::<u64>();
        for (weighted, ignore, narrow) in
            [(false, None, false), (true, None, true), (false, Some(-1), false), (true, Some(0), true)]
        {
            let values: Vec<i64> = (0..n)
                .map(|i| if i % 3 == 1 { ignore.unwrap_or(0) } else { (rng.next() % dims[1]) as i64 })
                .collect();
            let labels = if narrow {
                let bytes: Vec<u8> = values.iter().flat_map(|&v| (v as i32).to_le_bytes()).collect();
                Tensor::from_bytes(TensorType::new(DType::I32, labels.clone()), &bytes)
                    .expect("a size that fits")
            } else {
                Tensor::from_i64(labels.clone(), &values)
            };
            let weight = weighted.then(|| rng.tensor(&dims[1..2], 0.5, 2.0));
            let with_labels = |mut inputs: Vec<Tensor>| {
                inputs.push(labels.clone());
                inputs.extend(weight.clone());
                inputs
            };
            for reduction in [LossReduction::Mean, LossReduction::Sum, LossReduction::None] {
                let inputs = with_labels(vec![rng.tensor(dims, -5.0, 5.0)]);
                let op = Op::SoftmaxCrossEntropy { reduction, ignore_index: ignore };
                let made = naive(&op, &inputs, 2);
                out.push(Case { op, inputs, outputs: 2, tolerance: 1e-6 });
                let dloss = rng.tensor(&made[0].ty().dims, -1.0, 1.0);
                let op = Op::SoftmaxCrossEntropyGrad { reduction, ignore_index: ignore };
                out.push(Case::new(op, with_labels(vec![dloss.clone(), made[1].clone()]), 1e-6));
                let op = Op::NegativeLogLikelihood { reduction, ignore_index: ignore };
                out.push(Case::new(op, with_labels(vec![made[1].clone()]), 1e-6));
                let op =
                    Op::NegativeLogLikelihoodGrad { reduction, ignore_index: ignore, x_dims: list(dims) };
                out.push(Case::new(op, with_labels(vec![dloss]), 1e-6));
            }
        }
    }
}

/// Losses with a label outside the classes.
pub(super) fn bad_labels() -> Vec<Case> {
    let mut out = Vec::new();
    for label in [3, -1, i64::MIN, i64::MAX] {
        for reduction in [LossReduction::Mean, LossReduction::Sum, LossReduction::None] {
            let x = Tensor::zeros(TensorType::f32([3, 3]));
            let labels = Tensor::from_i64([3], &[0, -100, label]);
            let ignore_index = Some(-100);
            let op = Op::SoftmaxCrossEntropy { reduction, ignore_index };
            let inputs = vec![x.clone(), labels.clone()];
            out.push(Case { op, inputs, outputs: 2, tolerance: 0.0 });
            let dims: &[u64] = if reduction == LossReduction::None { &[3] } else { &[] };
            let dloss = Rng(1).tensor(dims, 0.5, 1.0);
            let op = Op::SoftmaxCrossEntropyGrad { reduction, ignore_index };
            out.push(Case::new(op, vec![dloss.clone(), x, labels.clone()], 0.0));
            let op = Op::NegativeLogLikelihoodGrad { reduction, ignore_index, x_dims: list(&[3, 3]) };
            out.push(Case::new(op, vec![dloss, labels], 0.0));
        }
    }
    out
}

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

fn pools(rng: &mut Rng, out: &mut Vec<Case>) {
    let geometries: [(&[[u64; 6]], bool); 21] = [
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

fn batch_norm(rng: &mut Rng, out: &mut Vec<Case>) {
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
        let tolerance = if dims.iter().product::<u64>() == 2 { 1e-5 } else { 2e-6 };
        // A mean far from zero, which sums of squares in f32 get wrong.
        let x = rng.tensor(dims, 9.0, 11.0);
        let [scale, bias, mean] = [0; 3].map(|_: i32| rng.tensor(&c, -1.0, 1.0));
        let var = rng.tensor(&c, 0.5, 2.0);
        let all = vec![x.clone(), scale.clone(), bias, mean.clone(), var.clone()];
        let op = Op::BatchNormInfer { eps, momentum: Real(0.9) };
        out.push(Case::new(op, all.clone(), 1e-6));
        let dy = rng.tensor(dims, -1.0, 1.0);
        let added = rng.tensor(dims, -1.0, 1.0);
        for sum in [false, true] {
            let op = Op::BatchNormTrainRelu { eps, momentum: Real(0.75) };
            let inputs: Vec<Tensor> = all.iter().chain(sum.then_some(&added)).cloned().collect();
            let made = naive(&op, &inputs, 5);
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

fn local_response(rng: &mut Rng, out: &mut Vec<Case>) {
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
