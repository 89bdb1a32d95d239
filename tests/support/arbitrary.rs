//! Random small convolutional networks, parameters and inputs, reproducible from a seed.

use std::collections::BTreeMap;
use vdnn_ir::graph::{Def, NodeSpec, Output};
use vdnn_ir::op::{BinaryKind, ConvAttrs, LrnAttrs, Op, PoolAttrs, ReduceKind, SliceAttrs, UnaryKind};
use vdnn_ir::{DType, Dims, Graph, ParamRole, Real, Tensor, TensorType, ValueId};

/// Splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator with this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
    /// A generator for the thing called `name`, independent of those of other names.
    pub fn named(seed: u64, name: &str) -> Self {
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        Self(seed ^ hash)
    }
    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// A number in `lo..=hi`.
    pub fn range(&mut self, lo: u64, hi: u64) -> u64 {
        lo + self.next_u64() % (hi - lo + 1)
    }
    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.next_u64().is_multiple_of(n)
    }
    /// One of the items.
    pub fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.range(0, items.len() as u64 - 1) as usize].clone()
    }
    /// A number in [-1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / 8_388_608.0 - 1.0
    }
}

/// A random valid graph in the imported phase: an image input `x`, up to about twenty layers
/// of every kind a CNN has (no dropout), branches that join by addition or concatenation,
/// and one output `logits` of shape `[N, K]`.
pub fn random_cnn(seed: u64) -> Graph {
    random(seed, None)
}

/// The same network with another batch.
pub fn random_cnn_of(seed: u64, batch: u64) -> Graph {
    random(seed, Some(batch))
}

fn random(seed: u64, batch: Option<u64>) -> Graph {
    let mut net = Net { graph: Graph::new(format!("random{seed}")), rng: Rng::new(seed), maps: Vec::new() };
    let mut dims = [net.rng.range(1, 3), net.rng.range(1, 6), net.rng.range(6, 14), net.rng.range(6, 14)];
    dims[0] = batch.unwrap_or(dims[0]);
    let mut x = net.graph.add_input("x", TensorType::f32(dims));
    for _ in 0..net.rng.range(3, 14) {
        x = net.layer(x);
        net.maps.push(x);
    }
    let logits = net.head(x);
    net.graph.outputs.push(Output { name: "logits".into(), value: logits });
    net.graph
}

struct Net {
    graph: Graph,
    rng: Rng,
    /// Feature maps that later layers may join with.
    maps: Vec<ValueId>,
}

impl Net {
    fn dims(&self, v: ValueId) -> Dims {
        self.graph.ty(v).dims.clone()
    }

    fn node(&mut self, kind: &str, op: Op, inputs: &[ValueId]) -> ValueId {
        let name = format!("{kind}{}", self.graph.node_bound());
        self.graph.add1(op, inputs, NodeSpec::forward(name)).expect("the generator keeps the shape rules")
    }

    fn param(&mut self, layer: &str, part: &str, dims: &[u64], role: ParamRole) -> ValueId {
        let name = format!("{layer}{}.{part}", self.graph.node_bound());
        self.graph.add_param(name, TensorType::f32(dims.iter().copied()), role)
    }

    fn layer(&mut self, x: ValueId) -> ValueId {
        match self.rng.range(0, 15) {
            0..=3 => self.conv_block(x),
            4 => self.conv(x),
            5 => self.batch_norm(x),
            6 => self.relu(x),
            7 => self.unary(x),
            8 | 9 => self.pool(x),
            10 => self.lrn(x),
            11 => self.residual(x),
            12 => self.concat(x),
            13 => self.join(x),
            14 => self.branches(x),
            _ => self.movement(x),
        }
    }

    fn conv_to(&mut self, x: ValueId, channels: u64, conv: ConvAttrs) -> ValueId {
        let mut w: Vec<u64> = vec![channels, self.dims(x)[1] / conv.groups];
        w.extend(&conv.kernel);
        let mut operands = vec![x, self.param("conv", "weight", &w, ParamRole::Trainable)];
        if self.rng.one_in(2) {
            operands.push(self.param("conv", "bias", &[channels], ParamRole::Trainable));
        }
        self.node("conv", Op::Conv(conv), &operands)
    }

    fn pointwise(&mut self, x: ValueId, channels: u64) -> ValueId {
        let one = Dims::from_slice(&[1, 1]);
        let zero = Dims::from_slice(&[0, 0]);
        let conv = ConvAttrs {
            kernel: one.clone(),
            strides: one.clone(),
            before: zero.clone(),
            after: zero,
            dilations: one,
            groups: 1,
        };
        self.conv_to(x, channels, conv)
    }

    /// A 3x3 convolution that keeps the extents.
    fn same(&mut self, x: ValueId, channels: u64) -> ValueId {
        let one = Dims::from_slice(&[1, 1]);
        let conv = ConvAttrs {
            kernel: Dims::from_slice(&[3, 3]),
            strides: one.clone(),
            before: one.clone(),
            after: one.clone(),
            dilations: one,
            groups: 1,
        };
        self.conv_to(x, channels, conv)
    }

    /// A convolution with every attribute random.
    fn conv(&mut self, x: ValueId) -> ValueId {
        let dims = self.dims(x);
        let divisors: Vec<u64> = (1..=dims[1]).filter(|g| dims[1].is_multiple_of(*g)).collect();
        let groups = if self.rng.one_in(2) { self.rng.pick(&divisors) } else { 1 };
        let mut conv = ConvAttrs {
            kernel: Dims::new(),
            strides: Dims::new(),
            before: Dims::new(),
            after: Dims::new(),
            dilations: Dims::new(),
            groups,
        };
        for &extent in &dims[2..] {
            let kernel = self.rng.pick(&[1u64, 2, 3, 3, 3, 5]);
            let dilation = if self.rng.one_in(4) { 2 } else { 1 };
            let span = (kernel - 1) * dilation + 1;
            // Mostly what keeps the extent, sometimes anything; always enough to fit.
            let lacking = span.saturating_sub(extent);
            let (before, after) = if self.rng.one_in(4) {
                (self.rng.range(0, 2) + lacking, self.rng.range(0, 2))
            } else {
                ((span - 1) / 2 + lacking, span / 2)
            };
            conv.kernel.push(kernel);
            conv.dilations.push(dilation);
            conv.strides.push(if extent > 4 && self.rng.one_in(4) { 2 } else { 1 });
            conv.before.push(before);
            conv.after.push(after);
        }
        let channels = groups * self.rng.range(1, 8u64.div_ceil(groups));
        self.conv_to(x, channels, conv)
    }

    /// Convolution, batch norm, ReLU, each of the latter two optional.
    fn conv_block(&mut self, x: ValueId) -> ValueId {
        let mut y = self.conv(x);
        if self.rng.one_in(2) {
            y = self.batch_norm(y);
        }
        if self.rng.one_in(3) { y } else { self.relu(y) }
    }

    fn batch_norm(&mut self, x: ValueId) -> ValueId {
        let c = self.dims(x)[1];
        let operands = [
            x,
            self.param("bn", "weight", &[c], ParamRole::Trainable),
            self.param("bn", "bias", &[c], ParamRole::Trainable),
            self.param("bn", "running_mean", &[c], ParamRole::Statistic),
            self.param("bn", "running_var", &[c], ParamRole::Statistic),
        ];
        let op = Op::BatchNormInfer { eps: Real(1e-3), momentum: Real(0.9) };
        self.node("bn", op, &operands)
    }

    fn relu(&mut self, x: ValueId) -> ValueId {
        self.node("relu", Op::Unary(UnaryKind::Relu), &[x])
    }

    fn unary(&mut self, x: ValueId) -> ValueId {
        let kind = self.rng.pick(&[
            UnaryKind::LeakyRelu { alpha: Real(0.1) },
            UnaryKind::Clip { lo: Real(0.0), hi: Real(6.0) },
            UnaryKind::Sigmoid,
            UnaryKind::HardSigmoid { alpha: Real(0.2), beta: Real(0.5) },
            UnaryKind::HardSwish,
            UnaryKind::Tanh,
            UnaryKind::Elu { alpha: Real(1.0) },
            UnaryKind::Neg,
            UnaryKind::Abs,
            UnaryKind::Affine { scale: Real(0.5), shift: Real(0.25) },
        ]);
        self.node("act", Op::Unary(kind), &[x])
    }

    fn pool(&mut self, x: ValueId) -> ValueId {
        let mut pool = PoolAttrs {
            kernel: Dims::new(),
            strides: Dims::new(),
            before: Dims::new(),
            after: Dims::new(),
            dilations: Dims::new(),
            ceil_mode: self.rng.one_in(2),
        };
        for &extent in &self.dims(x)[2..] {
            let kernel = self.rng.range(1, 3.min(extent));
            pool.kernel.push(kernel);
            pool.strides.push(if extent > 4 { self.rng.range(1, 2) } else { 1 });
            pool.before.push(self.rng.range(0, kernel / 2));
            pool.after.push(self.rng.range(0, kernel / 2));
            pool.dilations.push(1);
        }
        if self.rng.one_in(2) {
            self.node("maxpool", Op::MaxPool(pool), &[x])
        } else {
            let count_include_pad = self.rng.one_in(2);
            self.node("avgpool", Op::AvgPool { pool, count_include_pad }, &[x])
        }
    }

    fn lrn(&mut self, x: ValueId) -> ValueId {
        let size = self.rng.range(1, 5);
        let lrn = LrnAttrs { size, alpha: Real(0.1), beta: Real(0.75), bias: Real(1.0) };
        self.node("lrn", Op::Lrn(lrn), &[x])
    }

    /// x plus a few layers of x that keep its shape, maybe followed by a ReLU.
    fn residual(&mut self, x: ValueId) -> ValueId {
        let c = self.dims(x)[1];
        let mut y = self.same(x, c);
        if self.rng.one_in(2) {
            y = self.relu(y);
            y = self.same(y, c);
        }
        let operands = if self.rng.one_in(2) { [x, y] } else { [y, x] };
        let sum = self.node("add", Op::Binary(BinaryKind::Add), &operands);
        if self.rng.one_in(2) { self.relu(sum) } else { sum }
    }

    /// Concatenation with an earlier map of the same extents (DenseNet), else with itself.
    fn concat(&mut self, x: ValueId) -> ValueId {
        let dims = self.dims(x);
        let fits: Vec<ValueId> = self
            .maps
            .iter()
            .copied()
            .filter(|&v| self.dims(v)[2..] == dims[2..] && self.dims(v)[1] + dims[1] <= 24)
            .collect();
        if fits.is_empty() {
            return self.conv_block(x);
        }
        let other = self.rng.pick(&fits);
        self.node("concat", Op::Concat { axis: 1 }, &[x, other])
    }

    /// An elementwise combination with an earlier map of the same shape.
    fn join(&mut self, x: ValueId) -> ValueId {
        let dims = self.dims(x);
        let fits: Vec<ValueId> = self.maps.iter().copied().filter(|&v| self.dims(v) == dims).collect();
        if fits.is_empty() {
            return self.conv_block(x);
        }
        let other = self.rng.pick(&fits);
        let kind = self.rng.pick(&[BinaryKind::Add, BinaryKind::Sub, BinaryKind::Mul]);
        self.node("join", Op::Binary(kind), &[x, other])
    }

    /// Two or three branches of x, each ending in a ReLU or not, concatenated (GoogLeNet).
    fn branches(&mut self, x: ValueId) -> ValueId {
        let mut parts = Vec::new();
        for _ in 0..self.rng.range(2, 3) {
            let channels = self.rng.range(1, 4);
            let y = if self.rng.one_in(2) { self.pointwise(x, channels) } else { self.same(x, channels) };
            parts.push(if self.rng.one_in(4) { y } else { self.relu(y) });
        }
        let y = self.node("concat", Op::Concat { axis: 1 }, &parts);
        self.maps.extend(parts);
        y
    }

    /// A spatial pad or a crop of channels.
    fn movement(&mut self, x: ValueId) -> ValueId {
        let dims = self.dims(x);
        if self.rng.one_in(2) || dims[1] < 2 {
            let mut amount = |least: i64| self.rng.range(0, 2) as i64 + least;
            // Never cut the only row.
            let before = [0, 0, amount(if dims[2] > 1 { -1 } else { 0 }), amount(0)].as_slice().into();
            let after = [0, 0, amount(0), amount(0)].as_slice().into();
            return self.node("pad", Op::Pad { before, after, value: Real(0.5) }, &[x]);
        }
        let keep = self.rng.range(1, dims[1] - 1);
        let slice = SliceAttrs {
            starts: [0, self.rng.range(0, dims[1] - keep), 0, 0].as_slice().into(),
            steps: [1i64; 4].as_slice().into(),
            lens: [dims[0], keep, dims[2], dims[3]].as_slice().into(),
        };
        self.node("slice", Op::Slice(slice), &[x])
    }

    fn head(&mut self, x: ValueId) -> ValueId {
        let classes = self.rng.range(2, 7);
        let dims = self.dims(x);
        let mean = Op::Reduce { kind: ReduceKind::Mean, axes: [2, 3].as_slice().into(), keepdims: false };
        let flat = match self.rng.range(0, 2) {
            0 => {
                let y = self.pointwise(x, classes);
                return self.node("mean", mean, &[y]);
            }
            1 => self.node("mean", mean, &[x]),
            _ => {
                let dims = [dims[0], dims[1] * dims[2] * dims[3]].as_slice().into();
                self.node("flatten", Op::Reshape { dims }, &[x])
            }
        };
        let mut y = flat;
        if self.rng.one_in(2) {
            let hidden = self.rng.range(3, 12);
            y = self.dense(y, hidden);
            y = self.relu(y);
        }
        self.dense(y, classes)
    }

    fn dense(&mut self, x: ValueId, units: u64) -> ValueId {
        let features = self.dims(x)[1];
        let trans_b = self.rng.one_in(2);
        let shape = if trans_b { [units, features] } else { [features, units] };
        let mut operands = vec![x, self.param("fc", "weight", &shape, ParamRole::Trainable)];
        if !self.rng.one_in(4) {
            operands.push(self.param("fc", "bias", &[units], ParamRole::Trainable));
        }
        let op = Op::Gemm { trans_a: false, trans_b, alpha: Real(1.0), beta: Real(1.0) };
        self.node("fc", op, &operands)
    }
}

/// What a parameter is to the op that reads it, which decides its values.
fn amplitude(graph: &Graph, param: ValueId) -> (f32, f32) {
    let dims = &graph.ty(param).dims;
    for &user in graph.value(param).users() {
        let node = graph.node(user);
        let at = node.inputs.iter().position(|&v| v == param);
        let norm = matches!(node.op, Op::BatchNormInfer { .. } | Op::BatchNormTrain { .. });
        match at {
            // Scales and variances.
            Some(1 | 4) if norm => return (0.2, 1.0),
            Some(1) => {
                let fan_in: u64 = match node.op {
                    Op::Gemm { trans_b: false, .. } => dims.first().copied().unwrap_or(1),
                    _ => dims.iter().skip(1).product(),
                };
                // Keeps the variance through a ReLU (He et al., ICCV 2015).
                return ((6.0 / fan_in.max(1) as f32).sqrt(), 0.0);
            }
            _ => {}
        }
    }
    (0.1, 0.0)
}

/// Random tensors for every parameter but the momentum ones, by name: weights scaled by
/// fan-in, batch norm scales and variances around 1, everything else small. A parameter's
/// values depend on the seed and its name, not on the other parameters.
pub fn random_params(graph: &Graph, seed: u64) -> BTreeMap<String, Tensor> {
    let mut out = BTreeMap::new();
    for &v in graph.params() {
        let value = graph.value(v);
        if value.def == Def::Param(ParamRole::Momentum) {
            continue;
        }
        let (amplitude, centre) = amplitude(graph, v);
        let mut rng = Rng::named(seed, &value.name);
        let mut tensor = Tensor::zeros(value.ty.clone());
        if value.ty.dtype == DType::F32 {
            for x in bytes_as_f32(&mut tensor) {
                x.copy_from_slice(&(centre + amplitude * rng.unit()).to_le_bytes());
            }
        }
        out.insert(value.name.clone(), tensor);
    }
    out
}

/// The elements of an f32 tensor as their bytes.
fn bytes_as_f32(tensor: &mut Tensor) -> impl Iterator<Item = &mut [u8]> {
    tensor.bytes_mut().chunks_exact_mut(4)
}

/// Number of classes of the loss that reads `labels`, if one does.
fn classes(graph: &Graph, labels: ValueId) -> Option<u64> {
    graph.value(labels).users().iter().find_map(|&user| {
        let node = graph.node(user);
        let loss = matches!(node.op, Op::SoftmaxCrossEntropy { .. });
        loss.then(|| graph.ty(node.inputs[0]).dims[1])
    })
}

/// Random tensors for every input, by name: f32 in [-1, 1), labels within their classes,
/// fixed hyperparameters `vdnnc.hyper` and step 1 for `vdnnc.step`.
pub fn random_inputs(graph: &Graph, seed: u64) -> BTreeMap<String, Tensor> {
    let mut out = BTreeMap::new();
    for &v in graph.inputs() {
        let value = graph.value(v);
        let mut rng = Rng::named(seed, &value.name);
        let mut tensor = Tensor::zeros(value.ty.clone());
        match (value.name.as_str(), value.ty.dtype) {
            ("vdnnc.hyper", DType::F32) => tensor = Tensor::from_f32([3], &[0.05, 0.9, 0.001]),
            ("vdnnc.step", DType::I64) => tensor = Tensor::from_i64([], &[1]),
            (_, DType::F32) => {
                for x in bytes_as_f32(&mut tensor) {
                    x.copy_from_slice(&rng.unit().to_le_bytes());
                }
            }
            (_, DType::I64) => {
                let classes = classes(graph, v).unwrap_or(1);
                for x in tensor.bytes_mut().chunks_exact_mut(8) {
                    x.copy_from_slice(&(rng.next_u64() % classes).to_le_bytes());
                }
            }
            _ => {}
        }
        out.insert(value.name.clone(), tensor);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use vdnn_interp::{NaiveKernels, interpret};
    use vdnn_ir::parse::parse_graph;
    use vdnn_ir::verify::verify;

    #[test]
    fn random_networks_are_valid_varied_and_reproducible() {
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let graph = random_cnn(seed);
            verify(&graph).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{graph}"));
            let text = graph.to_string();
            assert_eq!(random_cnn(seed).to_string(), text);
            assert_eq!(parse_graph(&text).expect("own text").to_string(), text);
            assert_eq!(graph.outputs[0].name, "logits");
            assert_eq!(graph.ty(graph.outputs[0].value).rank(), 2);
            seen.extend(graph.nodes().map(|(_, n)| n.op.name()));
        }
        let all =
            "avg_pool batch_norm_infer binary concat conv gemm lrn max_pool pad reduce reshape slice unary";
        assert_eq!(seen.into_iter().collect::<Vec<_>>().join(" "), all);
    }

    #[test]
    fn random_networks_run_and_stay_finite() {
        for seed in 0..60 {
            let graph = random_cnn(seed);
            let (inputs, params) = (random_inputs(&graph, seed), random_params(&graph, seed));
            let run = interpret(&graph, &inputs, &params, &NaiveKernels);
            let logits = &run.unwrap_or_else(|e| panic!("seed {seed}: {e}")).outputs["logits"];
            assert!(logits.f32().iter().all(|x| x.is_finite() && x.abs() < 1e4), "seed {seed}: {logits:?}");
        }
    }
}
