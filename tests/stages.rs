//! Stages of bottleneck blocks as one pyramid: its layers one after the other, in plans whose batch is
//! cut, with the workspace that its kernel needs.

use std::collections::BTreeMap;
use std::time::Instant;
use vdnn_cost::{CostModel, Measured, MeasuredRow, Precision, rings};
use vdnn_ir::graph::{NodeSpec, ParamRole};
use vdnn_ir::op::{
    BinaryKind, ConvAttrs, PoolAttrs, PyramidAttrs, PyramidKind, PyramidStep, ReduceKind, UnaryKind,
};
use vdnn_ir::{Bytes, Dims, Graph, Mode, Nanos, Op, Output, Phase, Tensor, TensorType, ValueId};
use vdnn_passes::fuse_stages::candidates;
use vdnn_passes::slice_batch::regions;
use vdnn_passes::{AlgoMode, Fuse, Policy};
use vdnn_plan::{Command, Plan};
use vdnn_runtime::cpu::CpuOptions;
use vdnn_tests::arbitrary::{random_inputs, random_params};
use vdnn_tests::harness;
use vdnnc::driver::{self, NoPlan};
use vdnnc::measuring::pyramids_of;
use vdnnc::options::CompileOptions;
use vdnnc::slicing::{self, Slices};
use vdnnc::timing::Timings;

/// A joint graph of one image operand and what `nodes` adds, with its result.
fn graph(x: &[u64], operands: &[TensorType], nodes: impl FnOnce(&mut Graph, &[ValueId]) -> ValueId) -> Graph {
    let mut graph = Graph::new("stage");
    let mut values = vec![graph.add_input("x", TensorType::f32(x.iter().copied()))];
    for (i, ty) in operands.iter().enumerate() {
        values.push(graph.add_input(format!("p{i}"), ty.clone()));
    }
    let value = nodes(&mut graph, &values);
    graph.outputs.push(Output { name: "y".to_owned(), value });
    (graph.phase, graph.mode) = (Phase::Joint, Mode::Infer);
    graph
}

fn step(graph: &Graph) -> BTreeMap<String, Tensor> {
    let options = harness::options(Mode::Infer, Policy::None, AlgoMode::Memory);
    let cost = harness::cost(&options);
    let found = driver::plan_joint(graph, 2, None, &options, &cost, Instant::now(), Timings::default());
    let plan = found.expect("it fits").plan;
    let cpu = CpuOptions { poison: true, ..CpuOptions::default() };
    let inputs = harness::step_inputs(&plan, random_inputs(graph, 3));
    harness::executor(plan, &BTreeMap::new(), cpu).step(&inputs).expect("the plan runs")
}

#[test]
fn a_pyramid_of_blocks_gives_the_bytes_of_its_layers_one_by_one() {
    for (blocks, side) in [(1, true), (2, true), (2, false)] {
        let pyramid = PyramidAttrs::stage(blocks, side);
        let (narrow, wide) = (4, 8);
        let x = [2, if side { narrow } else { wide }, 5, 6];
        let mut channels = vec![x[1]];
        let mut operands = Vec::new();
        for (i, layer) in pyramid.layers.iter().enumerate() {
            let PyramidKind::Conv { conv, .. } = &layer.kind else { panic!("a convolution") };
            let out = if layer.then.len() == 1 { narrow } else { wide };
            let read = channels[layer.reads(i)];
            operands.push(TensorType::f32([out, read, conv.kernel[0], conv.kernel[1]]));
            operands.push(TensorType::f32([out]));
            channels.push(out);
        }
        let fused = graph(&x, &operands, |g, values| {
            let node = g.add(Op::Pyramid(pyramid.clone()), values, NodeSpec::forward("stage"));
            g.node(node.expect("a legal pyramid")).outputs[0]
        });
        let apart = graph(&x, &operands, |g, operands| {
            let mut values = vec![operands[0]];
            let mut weights = operands[1..].chunks(2);
            for (i, layer) in pyramid.layers.iter().enumerate() {
                let mut add = |op: Op, inputs: &[ValueId]| {
                    let node = g.add(op, inputs, NodeSpec::forward("layer")).expect("a legal op");
                    g.node(node).outputs[0]
                };
                let PyramidKind::Conv { conv, .. } = &layer.kind else { panic!("a convolution") };
                let from = layer.from.map_or(values[i], |of| values[of as usize]);
                let wb = weights.next().expect("a weight and a bias");
                let mut y = add(Op::Conv(conv.clone()), &[from, wb[0], wb[1]]);
                for step in &layer.then {
                    y = match *step {
                        PyramidStep::Relu => add(Op::Unary(UnaryKind::Relu), &[y]),
                        PyramidStep::AddLayer { of } => {
                            add(Op::Binary(BinaryKind::Add), &[y, values[of as usize]])
                        }
                        _ => panic!("{step:?}"),
                    };
                }
                values.push(y);
            }
            values[pyramid.layers.len()]
        });
        let (fused, apart) = (step(&fused), step(&apart));
        assert!(fused["y"].f32().iter().any(|&y| y > 0.0), "something is left by the ReLUs");
        assert_eq!(fused, apart, "{blocks} blocks, side {side}");
    }
}

/// A residual network as importers give it: a stem with a pool, a stage of blocks whose first has
/// a convolution as its residual, a convolution with stride and a mean.
fn network(batch: u64, [height, width]: [u64; 2], blocks: usize, side_first: bool) -> Graph {
    let mut g = Graph::new("network");
    let mut count = 0;
    let mut conv = |g: &mut Graph, x: ValueId, (kernel, stride): (u64, u64), out: u64, relu: bool| {
        count += 1;
        let name = format!("conv{count}");
        let w = TensorType::f32([out, g.ty(x).dims[1], kernel, kernel]);
        let w = g.add_param(format!("{name}.w"), w, ParamRole::Trainable);
        let b = g.add_param(format!("{name}.b"), TensorType::f32([out]), ParamRole::Trainable);
        let op = Op::Conv(ConvAttrs::square(kernel, stride, kernel / 2, 1));
        let y = one(g, op, &[x, w, b], &name);
        if relu { one(g, Op::Unary(UnaryKind::Relu), &[y], &format!("{name}.relu")) } else { y }
    };
    let x = g.add_input("x", TensorType::f32([batch, 3, 4 * height, 4 * width]));
    let stem = conv(&mut g, x, (7, 2), 64, true);
    let two = |n: u64| Dims::from_slice(&[n, n]);
    let pool = PoolAttrs {
        kernel: two(3),
        strides: two(2),
        before: two(1),
        after: two(1),
        dilations: two(1),
        ceil_mode: false,
    };
    let mut y = one(&mut g, Op::MaxPool(pool), &[stem], "pool");
    for block in 0..blocks {
        let first = conv(&mut g, y, (1, 1), 64, true);
        let second = conv(&mut g, first, (3, 1), 64, true);
        // The first of two convolutions gets the sum.
        let ends = match (block, side_first) {
            (0, false) => [second, y].map(|x| conv(&mut g, x, (1, 1), 256, false)),
            (0, true) => [y, second].map(|x| conv(&mut g, x, (1, 1), 256, false)),
            _ => [conv(&mut g, second, (1, 1), 256, false), y],
        };
        let sum = one(&mut g, Op::Binary(BinaryKind::Add), &ends, &format!("sum{block}"));
        y = one(&mut g, Op::Unary(UnaryKind::Relu), &[sum], &format!("relu{block}"));
    }
    let behind = conv(&mut g, y, (1, 2), 128, true);
    let mean = Op::Reduce { kind: ReduceKind::Mean, axes: Dims::from_slice(&[2, 3]), keepdims: false };
    let y = one(&mut g, mean, &[behind], "mean");
    g.outputs.push(Output { name: "y".to_owned(), value: y });
    (g.phase, g.mode) = (Phase::Imported, Mode::Infer);
    g
}

fn one(g: &mut Graph, op: Op, inputs: &[ValueId], name: &str) -> ValueId {
    let node = g.add(op, inputs, NodeSpec::forward(name)).expect("a legal op");
    g.node(node).outputs[0]
}

fn options(fuse: Fuse, slices: Slices) -> CompileOptions {
    let precision = Precision::Tf32;
    CompileOptions {
        precision,
        fuse,
        slices,
        ..harness::options(Mode::Infer, Policy::None, AlgoMode::Dynamic)
    }
}

/// A cost model that takes stages of these sizes for measured, and for nearly free.
fn measured(graph: &Graph, sizes: &[u64]) -> CostModel {
    let options = options(Fuse::Auto, Slices::On);
    let cost = harness::cost(&options);
    let joint = slicing::layers(graph, &options, &cost).expect("a joint graph");
    let mut table = Measured::default();
    for c in candidates(&joint, &cost, sizes) {
        let inputs: Vec<&TensorType> = c.inputs.iter().collect();
        for option in cost.predicted_pyramid(&c.pyramid, &inputs) {
            let op = Op::Pyramid(c.pyramid.with_config(option.config));
            let row = MeasuredRow { algo: None, workspace: Bytes::ZERO, time: Some(Nanos(1)), flags: vec![] };
            table.insert(&op, &inputs, &[&c.output], cost.precision(), row);
        }
    }
    assert!(!table.is_empty());
    cost.with_measured(table)
}

/// The images and the workspace of every stage of a plan.
fn stages(plan: &Plan) -> Vec<(u64, Bytes)> {
    let of = |command: &Command| {
        let Command::Launch { op: op @ Op::Pyramid(pyramid), inputs, workspace, .. } = command else {
            return None;
        };
        if pyramid.is_chain() {
            return None;
        }
        let types: Vec<&TensorType> = inputs.iter().map(|&b| &plan.buffers[b].ty).collect();
        let bytes = plan.buffers[workspace.expect("a stage has rings")].ty.bytes();
        assert_eq!(bytes, rings(op, &types));
        Some((types[0].dims[0], bytes))
    };
    plan.commands.iter().filter_map(of).collect()
}

#[test]
fn plans_with_stages_give_the_bytes_of_those_without() {
    for side_first in [false, true] {
        give_the_bytes(&network(8, [8, 16], 2, side_first));
    }
}

fn give_the_bytes(graph: &Graph) {
    let cost = measured(graph, &[8, 4, 3, 2, 1]);
    let run = |fuse, slices| {
        let options = options(fuse, slices);
        let plan = driver::compile(graph.clone(), 8, None, &options, &cost).expect("a plan").plan;
        let reread = vdnn_plan::parse::parse_plan(&plan.to_string()).expect("its text parses");
        assert_eq!(reread, plan);
        let found = stages(&plan);
        let inputs = harness::step_inputs(&plan, random_inputs(graph, 1));
        let cpu = CpuOptions { poison: true, ..CpuOptions::default() };
        let y = harness::executor(plan, &random_params(graph, 1), cpu).step(&inputs).expect("the plan runs");
        (found, y)
    };
    let (none, whole) = run(Fuse::Auto, Slices::Off);
    assert!(none.is_empty(), "the whole batch is what regions are compared with");
    assert!(whole["y"].f32().iter().any(|&y| y > 0.0));
    for fuse in [Fuse::Off, Fuse::Epilogue] {
        let (found, y) = run(fuse, Slices::Count(2));
        assert!(found.is_empty() && y == whole, "pyramids are not allowed: {fuse}");
    }
    for (slices, images) in [(1, vec![8]), (2, vec![4; 2]), (3, vec![3, 3, 2]), (8, vec![1; 8])] {
        let (found, y) = run(Fuse::Auto, Slices::Count(slices));
        let mut each: Vec<u64> = found.iter().map(|(images, _)| *images).collect();
        each.sort_unstable_by(|a, b| b.cmp(a));
        assert_eq!(each, images, "{slices} slices");
        assert_eq!(y, whole, "{slices} slices");
    }
    let (found, y) = run(Fuse::Auto, Slices::Auto);
    assert!(!found.is_empty(), "it is in the fastest");
    assert_eq!(y, whole);
    assert_eq!(run(Fuse::Auto, Slices::On).1, whole);
}

#[test]
fn regions_with_a_stage_are_predicted_to_be_smaller() {
    const BATCH: u64 = 64;
    let graph = network(BATCH, [56, 56], 3, false);
    let plan = |fuse, slices| {
        let options = options(fuse, slices);
        let found = driver::compile(graph.clone(), BATCH, None, &options, &harness::cost(&options));
        let found = found.expect("a plan");
        (stages(&found.plan), found.summary)
    };
    let (none, whole) = plan(Fuse::Auto, Slices::Off);
    let (without, layers) = plan(Fuse::Epilogue, Slices::On);
    let (with, regions) = plan(Fuse::Auto, Slices::On);
    assert!(none.is_empty() && without.is_empty() && !with.is_empty());
    assert_eq!(with.iter().map(|(images, _)| images).sum::<u64>(), BATCH);
    assert!(regions.peak.0 * 10 < layers.peak.0 * 9, "{} of {}", regions.peak, layers.peak);
    assert!(layers.peak < whole.peak && regions.step.0 <= whole.step.0 / 100 * 105);
}

/// Its rings would hold as many images as the batch has.
#[test]
fn a_small_batch_is_cut_without_a_stage() {
    let graph = network(8, [56, 56], 3, false);
    let plan = |slices| {
        let options = options(Fuse::Auto, slices);
        let found = driver::compile(graph.clone(), 8, None, &options, &harness::cost(&options));
        let found = found.expect("a plan");
        (stages(&found.plan), found.summary.peak)
    };
    let (whole, (found, regions)) = (plan(Slices::Off).1, plan(Slices::On));
    assert!(found.is_empty() && regions < whole, "{regions} of {whole}");
}

#[test]
fn rings_count_where_memory_does_and_are_not_taken_back() {
    let graph = network(8, [8, 16], 2, false);
    let cost = measured(&graph, &[8, 4, 2, 1]);
    let options = options(Fuse::Auto, Slices::Count(1));
    let joint = slicing::uncut(&graph, &options, true, &cost).expect("a joint graph");
    let (id, node) =
        joint.nodes().find(|(_, n)| matches!(&n.op, Op::Pyramid(p) if !p.is_chain())).expect("a stage");
    let types: Vec<&TensorType> = node.inputs.iter().map(|&v| joint.ty(v)).collect();
    let whole = rings(&node.op, &types);
    assert!(whole > Bytes::ZERO);
    // In regions: of the whole batch it reads x, makes y and has its rings.
    let used = types[0].bytes() + joint.ty(node.outputs[0]).bytes() + whole;
    assert!(
        regions(&joint, 8, &cost)
            .iter()
            .all(|r| r.counts[vdnn_ir::id::EntityId::index(id)] > 1 || r.peak >= used)
    );
    // In plans, also with limits for convolutions, with the leanest algorithms, and with too little
    // memory, where what has a workspace is asked to do with less.
    let x = [8, 64, 8, 16];
    let pyramid = PyramidAttrs::stage(2, true).with_config("stage rings 3 3 4 3 3 blocks 132");
    let mut channels = vec![64];
    let mut operands = Vec::new();
    for (i, layer) in pyramid.layers.iter().enumerate() {
        let PyramidKind::Conv { conv, .. } = &layer.kind else { panic!("a convolution") };
        let out = if layer.then.len() == 1 { 64 } else { 256 };
        operands.push(TensorType::f32([out, channels[layer.reads(i)], conv.kernel[0], conv.kernel[1]]));
        operands.push(TensorType::f32([out]));
        channels.push(out);
    }
    let alone = self::graph(&x, &operands, |g, values| one(g, Op::Pyramid(pyramid), values, "stage"));
    let plan = |algo, workspace, memory| {
        let options = CompileOptions { algo, workspace, memory, ..options.clone() };
        driver::plan_joint(&alone, 8, None, &options, &cost, Instant::now(), Timings::default())
    };
    let planned = vdnn_passes::Workspace::Planned;
    let free = plan(AlgoMode::Dynamic, planned, None).expect("it fits").summary.peak;
    for algo in [AlgoMode::Memory, AlgoMode::Performance, AlgoMode::Dynamic] {
        for workspace in
            [planned, vdnn_passes::Workspace::Limit(Bytes(1)), vdnn_passes::Workspace::Total(Bytes(1))]
        {
            let found = plan(algo, workspace, Some(free)).expect("it fits");
            assert_eq!((stages(&found.plan).len(), found.summary.peak), (1, free));
            let less = plan(algo, workspace, Some(Bytes(free.0 - 1)));
            let Err(NoPlan::TooLarge { smallest, .. }) = less else {
                panic!("{algo}: it fits in less: {less:?}")
            };
            assert_eq!(smallest.0, free);
        }
    }
}

#[test]
fn stages_are_measured_at_the_sizes_of_slices() {
    let graph = network(8, [8, 16], 2, false);
    let images = |fuse, slices| -> Vec<u64> {
        let options = options(fuse, slices);
        let cost = harness::cost(&options);
        let found = pyramids_of(&graph, &options, &cost).expect("pyramids");
        found.iter().filter(|c| !c.pyramid.is_chain()).map(|c| c.inputs[0].dims[0]).collect()
    };
    assert_eq!(images(Fuse::Auto, Slices::On), [8, 4, 2, 1]);
    assert_eq!(images(Fuse::All, Slices::Count(3)), [8, 3, 2]);
    assert!(images(Fuse::Auto, Slices::Off).is_empty());
    assert!(images(Fuse::Epilogue, Slices::On).is_empty());
}
