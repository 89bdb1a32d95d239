//! Cases of the sizes that networks have.

use super::{Case, Generator, Operand};
use crate::arbitrary::Rng;
use vdnn_ir::op::{
    BinaryKind, ConvAttrs, LossReduction, LrnAttrs, Op, PoolAttrs, ReduceKind, SliceAttrs, UnaryKind,
};
use vdnn_ir::{Dims, Real, Tensor, TensorType};

/// Layers as networks have them: large enough for vectors, tiles and more than one block.
pub fn layers() -> Vec<Case> {
    let mut g = Generator { rng: Rng::new(0x6c61_7965), repeats: 1, cases: Vec::new() };
    let square = |kernel: u64, stride: u64, pad: u64, groups: u64| ConvAttrs {
        groups,
        ..ConvAttrs::square(kernel, stride, pad, 1)
    };
    let convolutions: [([u64; 4], u64, ConvAttrs); 7] = [
        ([2, 3, 35, 35], 64, square(7, 2, 3, 1)),
        ([2, 64, 28, 28], 64, square(3, 1, 1, 1)),
        ([3, 64, 14, 14], 128, square(1, 2, 0, 1)),
        ([2, 48, 13, 13], 64, square(5, 1, 2, 1)),
        ([2, 32, 17, 17], 32, square(3, 1, 1, 32)),
        ([2, 64, 9, 9], 96, square(3, 2, 1, 4)),
        ([1, 256, 7, 7], 256, square(1, 1, 0, 1)),
    ];
    for (x, k, conv) in convolutions {
        for bias in [false, true] {
            let w = [k, x[1] / conv.groups, conv.kernel[0], conv.kernel[1]];
            let mut operands = vec![g.any(&x), g.any(&w)];
            if bias {
                operands.push(g.any(&[k]));
            }
            g.add(Op::Conv(conv.clone()), operands);
        }
    }
    for (kernel, stride, pad, ceil_mode) in
        [(3, 2, 1, false), (2, 2, 0, false), (3, 2, 0, true), (3, 1, 1, false)]
    {
        let pair = |n: u64| Dims::from_slice(&[n, n]);
        let pool = PoolAttrs {
            kernel: pair(kernel),
            strides: pair(stride),
            before: pair(pad),
            after: pair(pad),
            dilations: pair(1),
            ceil_mode,
        };
        // Rows of whole accesses of 8, 4, 2 and 1 elements; groups of 8, 4 and 1 channels.
        for x in [[2, 64, 28, 28], [3, 13, 29, 29], [2, 24, 17, 32], [2, 12, 15, 30]] {
            for operand in [g.distinct(&x), g.ties(&x)] {
                g.add(Op::MaxPool(pool.clone()), vec![operand]);
            }
            let operand = g.any(&x);
            g.add(Op::AvgPool { pool: pool.clone(), count_include_pad: false }, vec![operand]);
        }
    }
    for x in [[8, 64, 28, 28], [3, 30, 9, 11], [2, 512, 7, 7]] {
        let c = [x[1]];
        let (eps, momentum) = (Real(1e-5), Real(0.9));
        let operands = vec![g.any(&x), g.any(&c), g.any(&c), g.any(&c), g.positive(&c)];
        g.cases.push(Case {
            op: Op::BatchNormTrain { eps, momentum },
            operands,
            outputs: 5,
            sources: vec![0],
        });
        let operands = vec![g.any(&x), g.any(&c), g.any(&c), g.any(&c), g.positive(&c)];
        g.add(Op::BatchNormInfer { eps, momentum }, operands);
        // Not differentiable: a model of inference has it.
        for parts in [vec![x[1]], vec![20, x[1] - 20], vec![4, x[1] - 8, 4]] {
            let mut operands = vec![g.any(&c), g.any(&c), g.any(&c), g.positive(&c)];
            operands.extend(parts.iter().map(|&part| g.any(&[x[0], part, x[2], x[3]])));
            g.cases.push(Case { op: Op::BatchNormInferRelu { eps }, operands, outputs: 1, sources: vec![] });
            g.joined_batch_norms(&x, &parts, eps);
        }
        let lrn = LrnAttrs { size: 5, alpha: Real(1e-2), beta: Real(0.75), bias: Real(1.0) };
        let operand = g.any(&x);
        g.add(Op::Lrn(lrn), vec![operand]);
        for axes in [[2, 3].as_slice(), &[0, 2, 3]] {
            let operand = g.positive(&x);
            let axes = Dims::from_slice(axes);
            g.add(Op::Reduce { kind: ReduceKind::Sum, axes, keepdims: false }, vec![operand]);
        }
        let operand = g.away(&x, &[0.0]);
        g.add(Op::Unary(UnaryKind::Relu), vec![operand]);
        let operands = vec![g.any(&x), g.any(&x)];
        g.add(Op::Binary(BinaryKind::Add), operands);
        let narrow = [x[0], 20, x[2], x[3]];
        let operands = vec![g.any(&x), g.any(&narrow), g.any(&x)];
        g.add(Op::Concat { axis: 1 }, operands);
        let half = x[1] / 2;
        for (start, dims) in [(0, [x[0], half, x[2], x[3]]), (half, [x[0], 2, x[2], x[3]])] {
            let (starts, lens) = (Dims::from_slice(&[0, start, 0, 0]), Dims::from_slice(&dims));
            let slice = SliceAttrs { starts, steps: [1, 1, 1, 1].into_iter().collect(), lens };
            let operands = vec![g.any(&dims), g.any(&x)];
            g.cases.push(Case { op: Op::AddSlice(slice), operands, outputs: 1, sources: vec![] });
        }
        let operands = vec![g.any(&x)];
        let sizes = Dims::from_slice(&[half, x[1] - half]);
        g.cases.push(Case { op: Op::Split { axis: 1, sizes }, operands, outputs: 2, sources: vec![0, 1] });
    }
    for (m, k, n) in [(64, 512, 1000), (3, 4096, 17), (100, 33, 257)] {
        let (alpha, beta) = (Real(1.0), Real(1.0));
        for trans_b in [false, true] {
            let b = if trans_b { [n, k] } else { [k, n] };
            let operands = vec![g.any(&[m, k]), g.any(&b), g.any(&[n])];
            g.add(Op::Gemm { trans_a: false, trans_b, alpha, beta }, operands);
        }
    }
    for (n, c) in [(64, 1000), (7, 10)] {
        let labels: Vec<i64> = (0..n).map(|i| (i * 7 % c) as i64).collect();
        let operands = vec![g.any(&[n, c]), Operand::Integer(Tensor::from_i64([n], &labels))];
        let op = Op::SoftmaxCrossEntropy { reduction: LossReduction::Mean, ignore_index: None };
        g.cases.push(Case { op, operands, outputs: 2, sources: vec![0] });
        let operand = g.any(&[n, c]);
        g.add(Op::Softmax { axis: 1 }, vec![operand]);
    }
    g.programs();
    g.pyramids();
    g.packed_weights();
    g.inputs_with_zeros();
    g.cases
}

impl Generator {
    /// Batch norms in training, and their gradients, of x whose channels lie in tensors of so many.
    fn joined_batch_norms(&mut self, x: &[u64], parts: &[u64], eps: Real) {
        let c = [x[1]];
        let pieces: Vec<Operand> = parts.iter().map(|&c| self.any(&[x[0], c, x[2], x[3]])).collect();
        let (mut mean, mut invstd) = (Vec::new(), Vec::new());
        for piece in &pieces {
            let Operand::Real { ty, data, .. } = piece else { continue };
            let plane = (ty.dims[2] * ty.dims[3]) as usize;
            for channel in 0..ty.dims[1] as usize {
                let planes = data.chunks_exact(plane).skip(channel).step_by(ty.dims[1] as usize);
                let (mut n, mut sum, mut squares) = (0.0, 0.0, 0.0);
                for x in planes.flatten() {
                    (n, sum, squares) = (n + 1.0, sum + x, squares + x * x);
                }
                mean.push(sum / n);
                invstd.push((squares / n - (sum / n).powi(2) + f64::from(eps.0)).sqrt().recip());
            }
        }
        let [mut mean, mut invstd] = [mean, invstd].map(Vec::into_iter);
        let mut operands = vec![self.any(&c), self.any(&c)];
        operands.push(self.with(&c, |_| mean.next().unwrap_or_default()));
        operands.push(self.with(&c, |_| invstd.next().unwrap_or_default()));
        operands.extend(pieces);
        let mut case = |op: Op, operands: Vec<Operand>, outputs: usize| {
            self.cases.push(Case { op, operands, outputs, sources: vec![] });
        };
        case(Op::BatchNormApplyRelu { eps }, operands.clone(), 1);
        let op = |known| Op::BatchNormTrainReluJoined { eps, momentum: Real(0.9), known };
        case(op(false), operands.clone(), 5);
        for n in 1..=parts.len() {
            let count = parts[..n].iter().sum::<u64>();
            let front = |x: &Operand| match x {
                Operand::Real { data, constant, .. } => {
                    let data = data[..count as usize].to_vec();
                    Operand::Real { ty: TensorType::f32([count]), data, constant: *constant }
                }
                Operand::Integer(_) => x.clone(),
            };
            let mut given = operands.clone();
            // The running statistics may be any.
            given.splice(4..4, [front(&operands[2]), front(&operands[3])]);
            case(op(true), given, 5);
        }
        // Gradients jump where y is zero: channels that are positive, or negative, throughout.
        operands[1] = self.with(&c, |rng| if rng.one_in(2) { 8.0 } else { -8.0 });
        for more in [None, Some(0), Some(3), Some(32)] {
            let mut operands = operands.clone();
            operands.insert(0, self.any(x));
            if let Some(more) = more {
                operands.insert(5, self.any(&[x[0], x[1] + more, x[2], x[3]]));
            }
            let op = Op::BatchNormReluGradJoined { eps, added: more.is_some() };
            self.cases.push(Case { op, operands, outputs: 3, sources: vec![] });
        }
    }
}
