//! One op each with operands at which it is differentiable: every combination of its options,
//! several random shapes of each.

mod layers;
mod operands;
mod programs;
mod pyramids;
mod sparse;
mod zeros;

pub use layers::layers;
pub use operands::Operand;
pub use pyramids::is_plain;

use crate::arbitrary::Rng;
use operands::MARGIN;
use vdnn_ir::op::{
    BinaryKind, ConvAttrs, LossReduction, LrnAttrs, Op, PoolAttrs, ReduceKind, SliceAttrs, UnaryKind,
};
use vdnn_ir::{DType, Dims, Real, Tensor, TensorType};

/// An op, its operands, how many outputs it has, and those that are differentiated.
#[derive(Debug)]
pub struct Case {
    /// The op.
    pub op: Op,
    /// Its operands.
    pub operands: Vec<Operand>,
    /// How many outputs it has.
    pub outputs: usize,
    /// Outputs that are differentiated.
    pub sources: Vec<usize>,
}

/// The cases with so many random shapes per combination of options, the same ones each time.
pub fn all(repeats: usize) -> Vec<Case> {
    let mut g = Generator { rng: Rng::new(0x6772_6164), repeats, cases: Vec::new() };
    g.convolutions();
    g.pools();
    g.normalisations();
    g.matrices();
    g.unary();
    g.binary();
    g.reductions();
    g.movement();
    g.dropout();
    g.losses();
    g.cases
}

struct Generator {
    rng: Rng,
    repeats: usize,
    cases: Vec<Case>,
}

impl Generator {
    fn add(&mut self, op: Op, operands: Vec<Operand>) {
        self.cases.push(Case { op, operands, outputs: 1, sources: vec![0] });
    }

    fn convolutions(&mut self) {
        for spatial in 1..=3 {
            for groups in [1, 2, 3] {
                for bias in [false, true] {
                    for _ in 0..self.repeats {
                        self.convolution(spatial, groups, bias);
                    }
                }
            }
        }
    }

    fn convolution(&mut self, spatial: u64, groups: u64, bias: bool) {
        let (per_group, filters) = (self.rng.range(1, 2), groups * self.rng.range(1, 2));
        let mut x = vec![self.rng.range(1, 2), groups * per_group];
        let mut conv = ConvAttrs {
            kernel: self.dims(spatial, 3).into(),
            strides: self.dims(spatial, 3).into(),
            before: Dims::new(),
            after: Dims::new(),
            dilations: self.dims(spatial, 2).into(),
            groups,
        };
        for i in 0..spatial as usize {
            let (before, after) = (self.rng.range(0, 2), self.rng.range(0, 2));
            let span = (conv.kernel[i] - 1) * conv.dilations[i] + 1;
            x.push(span.saturating_sub(before + after).max(1) + self.rng.range(0, 2));
            conv.before.push(before);
            conv.after.push(after);
        }
        let mut w = vec![filters, per_group];
        w.extend(&conv.kernel);
        let mut operands = vec![self.any(&x), self.any(&w)];
        if bias {
            operands.push(self.any(&[filters]));
        }
        self.add(Op::Conv(conv), operands);
    }

    fn pools(&mut self) {
        for spatial in 1..=3 {
            for ceil_mode in [false, true] {
                for _ in 0..self.repeats {
                    let (pool, x) = self.pool(spatial, ceil_mode);
                    let operand = self.distinct(&x);
                    self.add(Op::MaxPool(pool), vec![operand]);
                    for count_include_pad in [false, true] {
                        let (pool, x) = self.pool(spatial, ceil_mode);
                        let operand = self.any(&x);
                        self.add(Op::AvgPool { pool, count_include_pad }, vec![operand]);
                    }
                }
            }
        }
        // So large a window that its positions need i32.
        let (mut pool, _) = self.pool(2, false);
        pool.kernel = Dims::from_slice(&[17, 16]);
        let operand = self.distinct(&[1, 1, 35, 34]);
        self.add(Op::MaxPool(pool), vec![operand]);
    }

    /// A window and the shape of an x that it fits.
    fn pool(&mut self, spatial: u64, ceil_mode: bool) -> (PoolAttrs, Vec<u64>) {
        let mut x = self.dims(2, 2);
        let mut pool = PoolAttrs {
            kernel: self.dims(spatial, 3).into(),
            strides: self.dims(spatial, 3).into(),
            before: Dims::new(),
            after: Dims::new(),
            dilations: self.dims(spatial, 2).into(),
            ceil_mode,
        };
        for i in 0..spatial as usize {
            let span = (pool.kernel[i] - 1) * pool.dilations[i] + 1;
            let most = (span - 1).min(2);
            let (before, after) = (self.rng.range(0, most), self.rng.range(0, most));
            // No window may step over x.
            let least = span.saturating_sub(before + after).max(pool.dilations[i]);
            x.push(least + self.rng.range(0, 2));
            pool.before.push(before);
            pool.after.push(after);
        }
        (pool, x)
    }

    fn normalisations(&mut self) {
        for rank in 2..=5 {
            for _ in 0..self.repeats {
                let x = self.dims(rank, 3);
                let (eps, momentum) = (Real(self.rng.pick(&[1e-3, 0.1])), Real(0.9));
                let c = [x[1]];
                let (scale, bias) = (self.any(&c), self.any(&c));
                let operands = vec![self.any(&x), scale, bias, self.any(&c), self.positive(&c)];
                self.add(Op::BatchNormInfer { eps, momentum }, operands);

                let (scale, bias) = (self.any(&c), self.any(&c));
                // The running statistics enter only their next values, which have no gradient.
                let operands = vec![self.distinct(&x), scale, bias, self.any(&c), self.positive(&c)];
                let op = Op::BatchNormTrain { eps, momentum };
                self.cases.push(Case { op, operands, outputs: 5, sources: vec![0] });

                for size in 1..=5 {
                    let mut x = self.dims(rank, 2);
                    x[1] = self.rng.range(1, 6);
                    let lrn = LrnAttrs {
                        size,
                        alpha: Real(self.rng.pick(&[0.1, 1.0])),
                        beta: Real(self.rng.pick(&[0.5, 0.75, 1.0])),
                        bias: Real(self.rng.pick(&[1.0, 2.0])),
                    };
                    let operand = self.any(&x);
                    self.add(Op::Lrn(lrn), vec![operand]);
                }
            }
        }
    }

    fn matrices(&mut self) {
        for (trans_a, trans_b) in [(false, false), (false, true), (true, false), (true, true)] {
            let turned = |rows, columns, swap| if swap { [columns, rows] } else { [rows, columns] };
            for _ in 0..self.repeats {
                let [m, k, n] = [(); 3].map(|()| self.rng.range(1, 4));
                let (a, b) = (turned(m, k, trans_a), turned(k, n, trans_b));
                let addends: [Option<&[u64]>; 7] =
                    [None, Some(&[]), Some(&[n]), Some(&[1]), Some(&[m, 1]), Some(&[1, n]), Some(&[m, n])];
                for c in addends {
                    let alpha = Real(self.rng.pick(&[1.0, 0.5, -2.0]));
                    let beta = Real(self.rng.pick(&[1.0, 0.5, -2.0, 0.0]));
                    let mut operands = vec![self.any(&a), self.any(&b)];
                    operands.extend(c.map(|c| self.any(c)));
                    self.add(Op::Gemm { trans_a, trans_b, alpha, beta }, operands);
                }
                for rank in 0..=2 {
                    let batch = self.dims(rank, 3);
                    let (mut batch_a, mut batch_b) = (batch.clone(), self.narrower(&batch));
                    if self.flag() {
                        std::mem::swap(&mut batch_a, &mut batch_b);
                    }
                    let (a, b) = ([batch_a, a.into()].concat(), [batch_b, b.into()].concat());
                    let operands = vec![self.any(&a), self.any(&b)];
                    self.add(Op::MatMul { trans_a, trans_b }, operands);
                }
            }
        }
    }

    fn unary(&mut self) {
        for _ in 0..self.repeats {
            let mut real = |least: f32| Real(least + self.rng.unit().abs());
            let kinds = [
                UnaryKind::Relu,
                UnaryKind::LeakyRelu { alpha: real(0.0) },
                UnaryKind::Clip { lo: real(-2.0), hi: real(0.0) },
                UnaryKind::Clip { lo: Real(f32::NEG_INFINITY), hi: real(0.0) },
                UnaryKind::Clip { lo: real(-1.0), hi: Real(f32::INFINITY) },
                UnaryKind::Sigmoid,
                UnaryKind::HardSigmoid { alpha: real(0.4), beta: real(0.0) },
                UnaryKind::HardSwish,
                UnaryKind::Tanh,
                UnaryKind::Elu { alpha: real(0.3) },
                UnaryKind::Exp,
                UnaryKind::Log,
                UnaryKind::Sqrt,
                UnaryKind::Neg,
                UnaryKind::Abs,
                UnaryKind::Reciprocal,
                UnaryKind::Affine { scale: real(-1.5), shift: real(-1.0) },
                UnaryKind::PowConst { exponent: real(-2.0) },
                UnaryKind::PowConst { exponent: real(1.0) },
                UnaryKind::PowConst { exponent: Real(0.0) },
                UnaryKind::PowConst { exponent: Real(2.0) },
                UnaryKind::PowConst { exponent: Real(-3.0) },
            ];
            for kind in kinds {
                let rank = self.rng.range(0, 4);
                let dims = self.dims(rank, 3);
                let operand = self.domain(kind, &dims);
                self.add(Op::Unary(kind), vec![operand]);
            }
        }
    }

    /// Operands at which the function is smooth.
    fn domain(&mut self, kind: UnaryKind, dims: &[u64]) -> Operand {
        match kind {
            UnaryKind::Relu
            | UnaryKind::LeakyRelu { .. }
            | UnaryKind::Elu { .. }
            | UnaryKind::Abs
            | UnaryKind::Reciprocal => self.away(dims, &[0.0]),
            UnaryKind::Clip { lo, hi } => self.away(dims, &[lo, hi].map(|r| f64::from(r.0))),
            UnaryKind::HardSigmoid { alpha, beta } => {
                self.away(dims, &[0.0, 1.0].map(|y| (y - f64::from(beta.0)) / f64::from(alpha.0)))
            }
            // Its kinks are at -3 and 3: scaled out, so that both sides are met.
            UnaryKind::HardSwish => self.with(dims, |rng| {
                let inside = f64::from(rng.unit()) * (3.0 - MARGIN);
                if rng.one_in(2) { inside } else { inside.signum() * (6.0 - inside.abs()) }
            }),
            UnaryKind::Log | UnaryKind::Sqrt => self.positive(dims),
            UnaryKind::PowConst { exponent } if exponent.0.fract() == 0.0 => self.away(dims, &[0.0]),
            UnaryKind::PowConst { .. } => self.positive(dims),
            UnaryKind::Sigmoid
            | UnaryKind::Tanh
            | UnaryKind::Exp
            | UnaryKind::Neg
            | UnaryKind::Affine { .. } => self.any(dims),
        }
    }

    fn binary(&mut self) {
        for _ in 0..3 * self.repeats {
            for kind in BinaryKind::ALL {
                let rank = self.rng.range(0, 4);
                let dims = self.dims(rank, 3);
                let (a, b) = (self.narrower(&dims), self.narrower(&dims));
                let operands = match kind {
                    BinaryKind::Add | BinaryKind::Sub | BinaryKind::Mul => vec![self.any(&a), self.any(&b)],
                    BinaryKind::Div => vec![self.any(&a), self.away(&b, &[0.0])],
                    BinaryKind::Pow => vec![self.positive(&a), self.any(&b)],
                    BinaryKind::Max | BinaryKind::Min => vec![self.lattice(&a, 0.0), self.lattice(&b, 0.2)],
                    BinaryKind::PRelu => vec![self.away(&a, &[0.0]), self.any(&b)],
                    BinaryKind::Gate => vec![self.any(&a), self.away(&b, &[0.0])],
                };
                self.add(Op::Binary(kind), operands);
            }
        }
    }

    fn reductions(&mut self) {
        for kind in [ReduceKind::Sum, ReduceKind::Mean, ReduceKind::Max] {
            for keepdims in [false, true] {
                for rank in 0..=4 {
                    for _ in 0..self.repeats {
                        let dims = self.dims(rank, 3);
                        let axes = (0..rank).filter(|_| self.flag()).collect();
                        let operand = self.distinct(&dims);
                        self.add(Op::Reduce { kind, axes, keepdims }, vec![operand]);
                    }
                }
            }
        }
        for rank in 1..=4 {
            for axis in 0..rank {
                let dims = self.dims(rank, 4);
                let (x, y) = (self.any(&dims), self.any(&dims));
                self.add(Op::Softmax { axis }, vec![x]);
                self.add(Op::LogSoftmax { axis }, vec![y]);
            }
        }
    }

    fn movement(&mut self) {
        for rank in 1..=4 {
            for _ in 0..2 * self.repeats {
                let dims = self.dims(rank, 4);
                let axis = self.rng.range(0, rank - 1);
                self.concat(&dims, axis);
                self.split(&dims, axis);
                self.slice(&dims);
                self.pad(&dims);
                let narrow = self.narrower(&dims);
                let operand = self.any(&narrow);
                self.add(Op::Expand { dims: dims.as_slice().into() }, vec![operand]);
                let mut perm: Dims = (0..rank).collect();
                for i in (1..perm.len()).rev() {
                    perm.swap(i, self.rng.range(0, i as u64) as usize);
                }
                let operand = self.any(&dims);
                self.add(Op::Transpose { perm }, vec![operand]);
                let other = if self.flag() {
                    dims.iter().rev().copied().collect()
                } else {
                    Dims::from_slice(&[1, dims.iter().product()])
                };
                let operand = self.any(&dims);
                self.add(Op::Reshape { dims: other }, vec![operand]);
            }
        }
    }

    fn concat(&mut self, dims: &[u64], axis: u64) {
        let operands = (0..self.rng.range(1, 4))
            .map(|_| {
                let mut dims = dims.to_vec();
                dims[axis as usize] = self.rng.range(1, 3);
                self.any(&dims)
            })
            .collect();
        self.add(Op::Concat { axis }, operands);
    }

    fn split(&mut self, dims: &[u64], axis: u64) {
        let outputs = self.rng.range(1, 4) as usize;
        let sizes: Dims = (0..outputs).map(|_| self.rng.range(0, 3)).collect();
        let mut dims = dims.to_vec();
        dims[axis as usize] = sizes.iter().sum();
        let mut sources: Vec<usize> = (0..outputs).filter(|_| self.flag()).collect();
        if sources.is_empty() {
            sources.push(self.rng.range(0, outputs as u64 - 1) as usize);
        }
        let operands = vec![self.any(&dims)];
        self.cases.push(Case { op: Op::Split { axis, sizes }, operands, outputs, sources });
    }

    fn slice(&mut self, dims: &[u64]) {
        let mut slice = SliceAttrs { starts: Dims::new(), steps: Default::default(), lens: Dims::new() };
        for &d in dims {
            let (start, step) = (self.rng.range(0, d - 1), self.rng.range(1, 3));
            let backwards = self.flag();
            let room = if backwards { start } else { d - 1 - start };
            slice.starts.push(start);
            slice.steps.push(if backwards { -(step as i64) } else { step as i64 });
            let least = u64::from(!self.rng.one_in(8));
            slice.lens.push(self.rng.range(least, room / step + 1));
        }
        let operand = self.any(dims);
        self.add(Op::Slice(slice), vec![operand]);
    }

    fn pad(&mut self, dims: &[u64]) {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for &d in dims {
            // Crops less than the extent, all ends together.
            let b = self.rng.range(0, 2 + d / 2) as i64 - (d / 2) as i64;
            let least = b.min(0).unsigned_abs();
            let a = self.rng.range(0, 2 + (d - least) / 2) as i64 - ((d - least) / 2) as i64;
            before.push(b);
            after.push(a);
        }
        let value = Real(self.rng.pick(&[0.0, 3.0]));
        let operand = self.any(dims);
        self.add(Op::Pad { before: before.into(), after: after.into(), value }, vec![operand]);
    }

    fn dropout(&mut self) {
        for ratio in [0.0, 0.25, 0.5, 0.9] {
            for _ in 0..self.repeats {
                let dims = self.dims(3, 4);
                let step = Operand::Integer(Tensor::from_i64([], &[self.rng.range(0, 100) as i64]));
                let operands = vec![self.any(&dims), step];
                let op = Op::Dropout { ratio: Real(ratio), seed: self.rng.next_u64(), first: 3 };
                self.add(op, operands);
            }
        }
    }

    fn losses(&mut self) {
        for reduction in [LossReduction::Mean, LossReduction::Sum, LossReduction::None] {
            for weighted in [false, true] {
                for ignore_index in [None, Some(-100), Some(0)] {
                    for rank in 2..=4 {
                        for sources in [vec![0], vec![1], vec![0, 1]] {
                            let operands = self.loss_operands(rank, weighted, ignore_index);
                            let op = Op::SoftmaxCrossEntropy { reduction, ignore_index };
                            self.cases.push(Case { op, operands, outputs: 2, sources });
                            let operands = self.loss_operands(rank, weighted, ignore_index);
                            self.add(Op::NegativeLogLikelihood { reduction, ignore_index }, operands);
                        }
                    }
                }
            }
        }
    }

    /// Scores, labels of which the first is not ignored, and weights.
    fn loss_operands(&mut self, rank: u64, weighted: bool, ignore_index: Option<i64>) -> Vec<Operand> {
        let mut x = self.dims(rank, 3);
        x[1] = self.rng.range(2, 5);
        let labels: Vec<u64> = x[..1].iter().chain(&x[2..]).copied().collect();
        let classes: Vec<i64> = (0..labels.iter().product())
            .map(|i| match ignore_index {
                Some(ignored) if i > 0 && self.rng.one_in(3) => ignored,
                _ => self.rng.range(1, x[1] - 1) as i64,
            })
            .collect();
        let tensor = if self.flag() {
            Tensor::from_i64(labels, &classes)
        } else {
            let classes: Vec<i32> = classes.iter().map(|&c| c as i32).collect();
            let ty = TensorType::new(DType::I32, labels);
            Tensor::from_bytes(ty, bytemuck::cast_slice(&classes)).expect("an element per place")
        };
        let mut operands = vec![self.any(&x), Operand::Integer(tensor)];
        if weighted {
            operands.push(self.constant(&x[1..2]));
        }
        operands
    }
}
