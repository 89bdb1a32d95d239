//! Stages of bottleneck blocks as one pyramid: its layers one after the other.

use std::collections::BTreeMap;
use std::time::Instant;
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::{BinaryKind, PyramidKind, PyramidStep, UnaryKind};
use vdnn_ir::{Graph, Mode, Op, Output, Phase, Tensor, TensorType, ValueId};
use vdnn_passes::{AlgoMode, Policy};
use vdnn_runtime::cpu::CpuOptions;
use vdnn_tests::arbitrary::random_inputs;
use vdnn_tests::{harness, op_cases};
use vdnnc::driver;
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
        let pyramid = op_cases::stage(blocks, side);
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
