//! Elementwise chains as one op give the bits of the ops one after the other: random graphs of
//! elementwise ops, with broadcast operands and several readers, in f32; in bf16 as close as
//! fewer roundings are.

use std::collections::BTreeMap;
use vdnn_cost::{CostModel, Precision};
use vdnn_interp::{NaiveKernels, interpret};
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::kernel::Kernels;
use vdnn_ir::op::{BinaryKind, Op, UnaryKind};
use vdnn_ir::{DType, Graph, Layout, Mode, Output, Phase, Real, Tensor, TensorType, ValueId};
use vdnn_passes::PassCtx;
use vdnn_passes::fuse_elementwise::FuseElementwise;
use vdnn_passes::pass::run_pass;
use vdnn_runtime::cpu::kernels::CpuKernels;
use vdnn_tests::arbitrary::Rng;

const GRAPHS: u64 = 400;

/// Shapes of results, and the operands that broadcast to them.
const SHAPES: [(&[u64], &[&[u64]]); 5] = [
    (&[2, 3, 4, 5], &[&[], &[1], &[3, 1, 1], &[1, 3, 1, 1], &[2, 3, 1, 1], &[5], &[4, 1]]),
    (&[1, 8, 7, 9], &[&[], &[8, 1, 1], &[1, 8, 1, 1], &[7, 9]]),
    (&[3, 700], &[&[], &[700], &[3, 1], &[1, 1]]),
    (&[9001], &[&[], &[1]]),
    (&[], &[&[]]),
];

fn unary(rng: &mut Rng) -> UnaryKind {
    let (a, b) = (Real(rng.unit()), Real(rng.unit() + 1.0));
    rng.pick(&[
        UnaryKind::Relu,
        UnaryKind::LeakyRelu { alpha: a },
        UnaryKind::Clip { lo: a, hi: b },
        UnaryKind::Sigmoid,
        UnaryKind::HardSigmoid { alpha: b, beta: a },
        UnaryKind::HardSwish,
        UnaryKind::Tanh,
        UnaryKind::Elu { alpha: a },
        UnaryKind::Exp,
        UnaryKind::Log,
        UnaryKind::Sqrt,
        UnaryKind::Neg,
        UnaryKind::Abs,
        UnaryKind::Reciprocal,
        UnaryKind::Affine { scale: a, shift: b },
        UnaryKind::PowConst { exponent: b },
        UnaryKind::PowConst { exponent: Real(2.0) },
    ])
}

fn binary(rng: &mut Rng) -> BinaryKind {
    rng.pick(&BinaryKind::ALL)
}

/// A graph of elementwise ops, mostly in a chain, and its inputs.
fn random_graph(seed: u64) -> (Graph, BTreeMap<String, Tensor>) {
    let mut rng = Rng::new(seed);
    let (dims, smaller) = rng.pick(&SHAPES);
    let layout = if dims.len() == 4 && rng.one_in(3) { Layout::ChannelsLast } else { Layout::RowMajor };
    let mut graph = Graph::new("chain");
    let mut inputs = BTreeMap::new();
    let mut input = |graph: &mut Graph, rng: &mut Rng, dims: &[u64]| {
        let name = format!("x{}", inputs.len());
        let plain = TensorType::f32(dims.iter().copied());
        let ty = if dims.len() == 4 { plain.in_layout(layout) } else { plain };
        let data: Vec<f32> = (0..ty.elements()).map(|_| 4.0 * rng.unit()).collect();
        let tensor = Tensor::from_f32(dims.iter().copied(), &data);
        let tensor = if dims.len() == 4 { tensor.to_layout(layout) } else { tensor };
        inputs.insert(name.clone(), tensor);
        graph.add_input(name, ty)
    };
    let mut full: Vec<ValueId> = (0..rng.range(1, 3)).map(|_| input(&mut graph, &mut rng, dims)).collect();
    let mut small: Vec<ValueId> = Vec::new();
    for _ in 0..rng.range(0, 3) {
        let dims = rng.pick(smaller);
        small.push(input(&mut graph, &mut rng, dims));
    }
    for i in 0..rng.range(2, 30) {
        // The last result most of the time.
        let x = if rng.one_in(3) { rng.pick(&full) } else { full[full.len() - 1] };
        let (op, operands) = match rng.range(0, 4) {
            0 | 1 => (Op::Unary(unary(&mut rng)), vec![x]),
            2 => (Op::UnaryGrad(unary(&mut rng)), vec![x, rng.pick(&full)]),
            _ => {
                let other =
                    if small.is_empty() || rng.one_in(2) { rng.pick(&full) } else { rng.pick(&small) };
                let operands = if rng.one_in(2) { vec![x, other] } else { vec![other, x] };
                (Op::Binary(binary(&mut rng)), operands)
            }
        };
        let node = graph.add(op, &operands, NodeSpec::forward(format!("op{i}"))).expect("a legal op");
        full.push(graph.node(node).outputs[0]);
    }
    let result = full[full.len() - 1];
    graph.outputs.push(Output { name: "y".to_owned(), value: result });
    if rng.one_in(3) {
        let value = rng.pick(&full);
        if graph.def_node(value).is_some() && value != result {
            graph.outputs.push(Output { name: "z".to_owned(), value });
        }
    }
    graph.phase = Phase::Joint;
    graph.mode = Mode::Infer;
    graph.remove_dead_nodes();
    (graph, inputs)
}

fn fused(graph: &Graph) -> (Graph, u64) {
    let cost = CostModel::named("h200", Precision::F32).expect("a shipped profile");
    let mut graph = graph.clone();
    let outcome = run_pass(&FuseElementwise, &mut graph, &PassCtx { cost: &cost }).expect("a legal graph");
    (graph, outcome.stats.get("launches").copied().unwrap_or(0))
}

fn results(
    graph: &Graph,
    inputs: &BTreeMap<String, Tensor>,
    kernels: &dyn Kernels,
) -> BTreeMap<String, Tensor> {
    interpret(graph, inputs, &BTreeMap::new(), kernels).expect("it runs").outputs
}

#[test]
fn programs_have_the_bits_of_their_steps() {
    let cpu = CpuKernels::new(2);
    let (mut saved, mut largest) = (0, 0);
    for seed in 0..GRAPHS {
        let (plain, inputs) = random_graph(seed);
        let (graph, launches) = fused(&plain);
        saved += launches;
        assert_eq!(graph.order().len() as u64 + launches, plain.order().len() as u64, "graph {seed}");
        for (_, node) in graph.nodes() {
            if let Op::Elementwise(program) = &node.op {
                largest = largest.max(program.steps.len());
            }
        }
        let (again, more) = fused(&graph);
        assert_eq!((again.to_string(), more), (graph.to_string(), 0), "graph {seed}");
        for kernels in [&NaiveKernels as &dyn Kernels, &cpu] {
            let (wanted, found) = (results(&plain, &inputs, kernels), results(&graph, &inputs, kernels));
            for (name, wanted) in &wanted {
                let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
                let equal = wanted.f32().iter().zip(found[name].f32()).all(same);
                assert!(
                    equal && wanted.ty() == found[name].ty(),
                    "{name} of graph {seed}:\n{plain}\n{graph}"
                );
            }
        }
    }
    assert!(saved > GRAPHS, "only {saved} launches were saved");
    assert_eq!(largest, 16);
}

#[test]
fn bf16_is_rounded_once() {
    // 1 + 2^-8 is no bf16: the op would round it away, the program does not.
    let mut graph = Graph::new("bf16");
    let ty = TensorType::new(DType::BF16, [1]);
    let x = graph.add_input("x", ty.clone());
    let mut y = x;
    for (scale, shift) in [(1.0, 1.0 / 256.0), (256.0, -256.0)] {
        let op = Op::Unary(UnaryKind::Affine { scale: Real(scale), shift: Real(shift) });
        let node = graph.add(op, &[y], NodeSpec::forward("affine")).expect("a legal op");
        y = graph.node(node).outputs[0];
    }
    graph.outputs.push(Output { name: "y".to_owned(), value: y });
    (graph.phase, graph.mode) = (Phase::Joint, Mode::Infer);
    let one = Tensor::from_f32([1], &[1.0]).to_dtype(DType::BF16).expect("a conversion");
    let inputs = BTreeMap::from([("x".to_owned(), one)]);
    let cpu = CpuKernels::new(1);
    for kernels in [&NaiveKernels as &dyn Kernels, &cpu] {
        let value = |graph: &Graph| {
            let y = results(graph, &inputs, kernels)["y"].to_dtype(DType::F32).expect("a conversion");
            y.f32()[0]
        };
        assert_eq!((value(&graph), value(&fused(&graph).0)), (0.0, 1.0));
    }
}
