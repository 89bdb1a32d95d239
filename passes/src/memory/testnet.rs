//! Networks and the pipeline for unit tests of offloading, scheduling and layout.

use crate::autodiff::Autodiff;
use crate::fuse::FuseEpilogues;
use crate::inplace::Inplace;
use crate::join_batch_norms::JoinBatchNorms;
use crate::lower::{ExpectedTerms, LowerOptions, expected_terms, lower};
use crate::memory::{Layout, LayoutOptions, layout};
use crate::nest_concats::NestConcats;
use crate::offload::InsertOffload;
use crate::pass::{Pass, PassCtx, Stats, run_pass};
use crate::recompute::Recompute;
use crate::schedule::Schedule;
use crate::{Policy, SyncMode};
use vdnn_cost::{CostModel, Precision};
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::{BinaryKind, ConvAttrs, PoolAttrs, ReduceKind, UnaryKind};
use vdnn_ir::{Graph, Mode, Op, Output, ParamRole, Phase, Real, TensorType, ValueId};
use vdnn_plan::{Header, Plan};

/// Builds forward graphs layer by layer.
pub(crate) struct Net {
    pub(crate) graph: Graph,
    count: u32,
}

impl Net {
    pub(crate) fn new(name: &str) -> Self {
        let mut graph = Graph::new(name);
        graph.phase = Phase::Simplified;
        Self { graph, count: 0 }
    }
    pub(crate) fn input(&mut self, dims: [u64; 4]) -> ValueId {
        self.graph.add_input("x", TensorType::f32(dims))
    }
    fn name(&mut self, what: &str) -> String {
        self.count += 1;
        format!("{what}{}", self.count)
    }
    fn param(&mut self, name: String, dims: &[u64], role: ParamRole) -> ValueId {
        self.graph.add_param(name, TensorType::f32(dims.iter().copied()), role)
    }
    fn add(&mut self, name: String, op: Op, inputs: &[ValueId]) -> ValueId {
        self.graph.add1(op, inputs, NodeSpec::forward(name)).expect("well-typed test net")
    }
    fn channels(&self, x: ValueId) -> u64 {
        self.graph.ty(x).dims[1]
    }
    pub(crate) fn conv(&mut self, x: ValueId, m: u64, k: u64, stride: u64, pad: u64) -> ValueId {
        let name = self.name("conv");
        let c = self.channels(x);
        let w = self.param(format!("{name}.w"), &[m, c, k, k], ParamRole::Trainable);
        let op = Op::Conv(ConvAttrs::square(k, stride, pad, 1));
        self.add(name, op, &[x, w])
    }
    pub(crate) fn relu(&mut self, x: ValueId) -> ValueId {
        let name = self.name("relu");
        self.add(name, Op::Unary(UnaryKind::Relu), &[x])
    }
    pub(crate) fn norm(&mut self, x: ValueId) -> ValueId {
        let name = self.name("bn");
        let c = self.channels(x);
        let mut inputs = vec![x];
        for (part, role) in [
            ("scale", ParamRole::Trainable),
            ("bias", ParamRole::Trainable),
            ("mean", ParamRole::Statistic),
            ("var", ParamRole::Statistic),
        ] {
            inputs.push(self.param(format!("{name}.{part}"), &[c], role));
        }
        let op = Op::BatchNormInfer { eps: Real(1e-5), momentum: Real(0.9) };
        self.add(name, op, &inputs)
    }
    fn pool_attrs(k: u64, stride: u64, pad: u64) -> PoolAttrs {
        let two = |n: u64| [n, n].as_slice().into();
        PoolAttrs {
            kernel: two(k),
            strides: two(stride),
            before: two(pad),
            after: two(pad),
            dilations: two(1),
            ceil_mode: false,
        }
    }
    pub(crate) fn max_pool(&mut self, x: ValueId, k: u64, stride: u64, pad: u64) -> ValueId {
        let name = self.name("pool");
        self.add(name, Op::MaxPool(Self::pool_attrs(k, stride, pad)), &[x])
    }
    pub(crate) fn avg_pool(&mut self, x: ValueId, k: u64, stride: u64) -> ValueId {
        let name = self.name("avgpool");
        let op = Op::AvgPool { pool: Self::pool_attrs(k, stride, 0), count_include_pad: false };
        self.add(name, op, &[x])
    }
    pub(crate) fn global_pool(&mut self, x: ValueId) -> ValueId {
        let name = self.name("gap");
        let op = Op::Reduce { kind: ReduceKind::Mean, axes: [2, 3].as_slice().into(), keepdims: false };
        self.add(name, op, &[x])
    }
    pub(crate) fn sum(&mut self, a: ValueId, b: ValueId) -> ValueId {
        let name = self.name("add");
        self.add(name, Op::Binary(BinaryKind::Add), &[a, b])
    }
    pub(crate) fn concat(&mut self, parts: &[ValueId]) -> ValueId {
        let name = self.name("concat");
        self.add(name, Op::Concat { axis: 1 }, parts)
    }
    pub(crate) fn flatten(&mut self, x: ValueId) -> ValueId {
        let name = self.name("flatten");
        let dims = &self.graph.ty(x).dims;
        let (n, rest) = (dims[0], dims[1..].iter().product());
        self.add(name, Op::Reshape { dims: [n, rest].as_slice().into() }, &[x])
    }
    pub(crate) fn reshape(&mut self, x: ValueId, dims: [u64; 4]) -> ValueId {
        let name = self.name("reshape");
        self.add(name, Op::Reshape { dims: dims.as_slice().into() }, &[x])
    }
    pub(crate) fn dense(&mut self, x: ValueId, m: u64) -> ValueId {
        let name = self.name("fc");
        let k = self.graph.ty(x).dims[1];
        let w = self.param(format!("{name}.w"), &[m, k], ParamRole::Trainable);
        let b = self.param(format!("{name}.b"), &[m], ParamRole::Trainable);
        let op = Op::Gemm { trans_a: false, trans_b: true, alpha: Real(1.0), beta: Real(1.0) };
        self.add(name, op, &[x, w, b])
    }
    pub(crate) fn finish(mut self, y: ValueId) -> Graph {
        self.graph.outputs.push(Output { name: "logits".into(), value: y });
        self.graph
    }
}

/// Convolutions and pools, three fully connected layers; `blocks` as (channels, convs).
pub(crate) fn vgg(batch: u64, size: u64, blocks: &[(u64, usize)]) -> Graph {
    let mut n = Net::new("vgg");
    let mut x = n.input([batch, 3, size, size]);
    for &(channels, convs) in blocks {
        for _ in 0..convs {
            x = n.conv(x, channels, 3, 1, 1);
            x = n.relu(x);
        }
        x = n.max_pool(x, 2, 2, 0);
    }
    x = n.flatten(x);
    for width in [256, 256] {
        x = n.dense(x, width);
        x = n.relu(x);
    }
    x = n.dense(x, 10);
    n.finish(x)
}

/// Bottleneck residual network.
pub(crate) fn resnet(batch: u64, size: u64, depths: &[usize]) -> Graph {
    let mut n = Net::new("resnet");
    let mut x = n.input([batch, 3, size, size]);
    x = n.conv(x, 64, 7, 2, 3);
    x = n.norm(x);
    x = n.relu(x);
    x = n.max_pool(x, 3, 2, 1);
    for (stage, &depth) in depths.iter().enumerate() {
        let width = 64 << stage;
        for block in 0..depth {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let mut y = n.conv(x, width, 1, 1, 0);
            y = n.norm(y);
            y = n.relu(y);
            y = n.conv(y, width, 3, stride, 1);
            y = n.norm(y);
            y = n.relu(y);
            y = n.conv(y, 4 * width, 1, 1, 0);
            y = n.norm(y);
            if block == 0 {
                x = n.conv(x, 4 * width, 1, stride, 0);
                x = n.norm(x);
            }
            x = n.sum(y, x);
            x = n.relu(x);
        }
    }
    x = n.global_pool(x);
    x = n.dense(x, 1000);
    n.finish(x)
}

/// Densely connected network, concatenating all features of a block before each layer.
pub(crate) fn densenet(batch: u64, size: u64, depths: &[usize]) -> Graph {
    let mut n = Net::new("densenet");
    let mut x = n.input([batch, 3, size, size]);
    x = n.conv(x, 64, 7, 2, 3);
    x = n.norm(x);
    x = n.relu(x);
    x = n.max_pool(x, 3, 2, 1);
    for (stage, &depth) in depths.iter().enumerate() {
        let mut features = vec![x];
        for _ in 0..depth {
            let mut y = if features.len() == 1 { features[0] } else { n.concat(&features) };
            y = n.norm(y);
            y = n.relu(y);
            y = n.conv(y, 128, 1, 1, 0);
            y = n.norm(y);
            y = n.relu(y);
            y = n.conv(y, 32, 3, 1, 1);
            features.push(y);
        }
        x = n.concat(&features);
        x = n.norm(x);
        x = n.relu(x);
        if stage + 1 < depths.len() {
            let half = n.channels(x) / 2;
            x = n.conv(x, half, 1, 1, 0);
            x = n.avg_pool(x, 2, 2);
        }
    }
    x = n.global_pool(x);
    x = n.dense(x, 1000);
    n.finish(x)
}

/// Blocks of four parallel branches joined by concatenation.
pub(crate) fn inception(batch: u64, size: u64, blocks: usize) -> Graph {
    let mut n = Net::new("inception");
    let mut x = n.input([batch, 3, size, size]);
    x = n.conv(x, 64, 7, 2, 3);
    x = n.relu(x);
    for block in 0..blocks {
        if block % 3 == 0 {
            x = n.max_pool(x, 3, 2, 1);
        }
        let mut parts = Vec::new();
        for (reduce, out, k) in [(0, 64, 1), (96, 128, 3), (16, 32, 5)] {
            let mut y = x;
            if reduce > 0 {
                y = n.conv(y, reduce, 1, 1, 0);
                y = n.relu(y);
            }
            y = n.conv(y, out, k, 1, k / 2);
            parts.push(n.relu(y));
        }
        let pooled = n.max_pool(x, 3, 1, 1);
        let y = n.conv(pooled, 32, 1, 1, 0);
        parts.push(n.relu(y));
        x = n.concat(&parts);
    }
    x = n.global_pool(x);
    x = n.dense(x, 10);
    n.finish(x)
}

/// Runs autodiff and gives every convolution an algorithm: the fastest, or the one without
/// workspace.
pub(crate) fn selected(graph: Graph, train: bool, fastest: bool) -> Graph {
    let autodiff: [&dyn Pass; 1] = [&Autodiff::default()];
    selected_after(&autodiff[..usize::from(train)], graph, fastest)
}

/// A training step whose batch norms read what concats would join.
pub(crate) fn joined(graph: Graph) -> Graph {
    let passes: [&dyn Pass; 4] = [&NestConcats, &Autodiff::default(), &FuseEpilogues, &JoinBatchNorms];
    selected_after(&passes, graph, true)
}

/// The same, what is cheap made again in backward.
pub(crate) fn recomputed(graph: Graph) -> Graph {
    let cheap = Recompute { within: None };
    let passes: [&dyn Pass; 5] =
        [&NestConcats, &Autodiff::default(), &FuseEpilogues, &JoinBatchNorms, &cheap];
    selected_after(&passes, graph, true)
}

fn selected_after(passes: &[&dyn Pass], mut graph: Graph, fastest: bool) -> Graph {
    let cost = cost();
    let cx = PassCtx { cost: &cost };
    for &pass in passes {
        run_pass(pass, &mut graph, &cx).expect("a legal net");
    }
    for id in graph.order().to_vec() {
        let node = graph.node(id);
        if node.op.is_conv() {
            let ins: Vec<&TensorType> = node.inputs.iter().map(|&v| graph.ty(v)).collect();
            let outs: Vec<&TensorType> = node.outputs.iter().map(|&v| graph.ty(v)).collect();
            let all = cost.conv_options(&node.op, &ins, &outs);
            let pick = if fastest {
                all[0]
            } else {
                *all.iter().find(|o| o.workspace.0 == 0).expect("one without workspace")
            };
            let notes = graph.annotate(id);
            *notes.algo = Some(pick.algo.into());
            *notes.workspace = pick.workspace;
        }
    }
    graph.phase = Phase::Selected;
    graph
}

pub(crate) fn cost() -> CostModel {
    CostModel::named("h200", Precision::F32).expect("shipped profile")
}

/// A scheduled graph with what the passes said on the way.
pub(crate) struct Scheduled {
    pub(crate) graph: Graph,
    pub(crate) expected: ExpectedTerms,
    pub(crate) offload: Stats,
}

/// From a selected graph to a scheduled one.
pub(crate) fn scheduled(mut graph: Graph, policy: Policy, sync: SyncMode) -> Scheduled {
    let cost = cost();
    let cx = PassCtx { cost: &cost };
    let expected = expected_terms(&graph);
    let offload = run_pass(&InsertOffload::new(policy, sync), &mut graph, &cx).expect("insert").stats;
    run_pass(&Schedule, &mut graph, &cx).expect("schedule");
    run_pass(&Inplace, &mut graph, &cx).expect("inplace");
    Scheduled { graph, expected, offload }
}

impl Scheduled {
    pub(crate) fn layout(&self, policy: Policy) -> Layout {
        let options = LayoutOptions { baseline: policy == Policy::Baseline, thorough: false };
        layout(&self.graph, &options).expect("layout")
    }
    pub(crate) fn plan(&self, layout: &Layout) -> Plan {
        let header = Header {
            model_name: self.graph.name.clone(),
            mode: Mode::Train,
            batch: 1,
            policy: "test".into(),
            algo: "memory".into(),
            device: "h200".into(),
            precision: vdnn_ir::Precision::F32,
            engines: None,
            model: None,
            options: Vec::new(),
        };
        let options = LowerOptions { header, device_budget: None, host_budget: None };
        lower(&self.graph, layout, &self.expected, &options).expect("lower")
    }
}
