//! Ops with operands that reach every kernel and its edges.

mod layers;
mod loss;
mod movement;
mod program;
mod sparse;

use super::naive;
pub(super) use loss::bad_labels;
use vdnn_ir::op::{BinaryKind, Op, SavedOperand, UnaryKind};
use vdnn_ir::{DType, Dims, Real, Tensor, TensorType};

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
    program::programs(&mut rng, &mut out);
    movement::movement(&mut rng, &mut out);
    movement::reductions(&mut rng, &mut out);
    loss::softmax_and_losses(&mut rng, &mut out);
    layers::pools(&mut rng, &mut out);
    layers::batch_norm(&mut rng, &mut out);
    layers::joined_batch_norm(&mut rng, &mut out);
    layers::local_response(&mut rng, &mut out);
    sparse::packed_weights(&mut rng, &mut out);
    sparse::blocks(&mut rng, &mut out);
    sparse::two_of_four(&mut rng, &mut out);
    sparse::inputs_with_zeros(&mut rng, &mut out);
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
    let kinds = BinaryKind::ALL;
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
        let op = Op::Dropout { ratio: Real(0.3), seed: 7, first: dims.len() as u64 - 1 };
        let x = rng.tensor(dims, 1.0, 2.0);
        // Channels-last tensors keep the row-major mask, which no kernel does yet.
        out.push(Case::new(op, vec![x, step], 1e-7));
    }
    for dims in [&[5][..], &[8192], &[4099], &[2, 3, 5, 7]] {
        for to in [DType::F32, DType::BF16] {
            out.push(Case::new(Op::Cast { to }, vec![rng.special(dims)], 0.0));
        }
    }
    for n in [5, 4096, 4099] {
        let t = |rng: &mut Rng| rng.tensor(&[n], -1.0, 1.0);
        let hyper = Tensor::from_f32([3], &[0.1, 0.9, 0.01]);
        let inputs = vec![t(rng), t(rng), t(rng), hyper];
        out.push(Case { op: Op::SgdUpdate, inputs, outputs: 2, tolerance: 2e-7 });
    }
    // Several weights at once; an empty one, and one of several blocks.
    for sizes in [&[5, 4096, 9001, 1][..], &[0, 7, 0], &[3; 64]] {
        let mut inputs = Vec::new();
        for &n in sizes {
            inputs.extend([0; 3].map(|_: i32| rng.tensor(&[n], -1.0, 1.0)));
        }
        inputs.push(Tensor::from_f32([3], &[0.1, 0.9, 0.01]));
        out.push(Case { op: Op::SgdUpdate, inputs, outputs: 2 * sizes.len(), tolerance: 2e-7 });
    }
    for dims in [&[3, 5][..], &[4099], &[0]] {
        out.push(Case::new(Op::Fill { value: Real(-1.5), dims: list(dims) }, vec![], 0.0));
    }
}
