//! Gradient rules without a reference agree with central differences of the interpreter.

use std::collections::BTreeMap;
use vdnn_interp::{NaiveKernels, interpret};
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::{Graph, Op, Output, Tensor, TensorType, ValueId};
use vdnn_passes::autodiff::gradients;
use vdnn_tests::data::{fnv1a64, uniform};

/// Step of the difference quotient: its error is about `STEP^2` and `1e-7 / STEP`.
const STEP: f64 = 4e-3;
/// Relative disagreement allowed; a wrong formula is off by far more.
const TOLERANCE: f64 = 2e-3;

/// Op, shapes of its operands, and the range (centre, half width) their elements come from.
type Case = (&'static str, &'static [&'static [u64]], (f64, f64));

const CASES: &[Case] = &[
    ("unary(elu(alpha:0.7))", &[&[3, 4]], (0.0, 2.0)),
    ("unary(exp)", &[&[3, 4]], (0.0, 1.0)),
    ("unary(log)", &[&[3, 4]], (1.5, 1.0)),
    ("unary(sqrt)", &[&[3, 4]], (1.5, 1.0)),
    ("unary(neg)", &[&[3, 4]], (0.0, 1.0)),
    ("unary(abs)", &[&[3, 4]], (0.0, 2.0)),
    ("unary(reciprocal)", &[&[3, 4]], (2.0, 1.0)),
    ("unary(affine(scale:-1.5,shift:2.0))", &[&[3, 4]], (0.0, 1.0)),
    ("unary(pow_const(exponent:2.5))", &[&[3, 4]], (1.5, 1.0)),
    ("binary(pow)", &[&[3, 4], &[4]], (1.5, 0.8)),
    ("binary(max)", &[&[3, 4], &[3, 1]], (0.0, 2.0)),
    ("binary(min)", &[&[3, 4], &[4]], (0.0, 2.0)),
    ("binary(p_relu)", &[&[2, 3, 4], &[3, 1]], (0.0, 2.0)),
    ("binary(gate)", &[&[3, 4], &[3, 4]], (0.0, 2.0)),
    ("binary(sub)", &[&[4], &[3, 4]], (0.0, 1.0)),
    ("binary(div)", &[&[3, 1], &[2, 1, 4]], (2.0, 0.8)),
    ("reduce(kind:sum,axes:[0,2],keepdims:true)", &[&[2, 3, 4]], (0.0, 1.0)),
    ("reduce(kind:max,axes:[1],keepdims:false)", &[&[2, 5]], (0.0, 5.0)),
    ("expand(dims:[2,3,4])", &[&[3, 1]], (0.0, 1.0)),
    ("softmax(axis:0)", &[&[4, 3]], (0.0, 1.0)),
    ("log_softmax(axis:2)", &[&[2, 3, 4]], (0.0, 1.0)),
    ("gemm(trans_a:false,trans_b:false,alpha:0.5,beta:2.0)", &[&[3, 4], &[4, 5], &[]], (0.0, 1.0)),
    ("gemm(trans_a:true,trans_b:false,alpha:1.0,beta:1.0)", &[&[4, 3], &[4, 5]], (0.0, 1.0)),
    ("gemm(trans_a:false,trans_b:true,alpha:1.0,beta:1.0)", &[&[3, 4], &[5, 4], &[3, 1]], (0.0, 1.0)),
    ("gemm(trans_a:true,trans_b:true,alpha:2.0,beta:0.5)", &[&[4, 3], &[5, 4], &[3, 5]], (0.0, 1.0)),
    ("mat_mul(trans_a:false,trans_b:false)", &[&[2, 3, 4], &[4, 5]], (0.0, 1.0)),
    ("mat_mul(trans_a:false,trans_b:true)", &[&[2, 3, 4], &[5, 4]], (0.0, 1.0)),
    ("mat_mul(trans_a:true,trans_b:false)", &[&[2, 4, 3], &[4, 5]], (0.0, 1.0)),
    ("mat_mul(trans_a:true,trans_b:true)", &[&[2, 1, 4, 3], &[3, 5, 4]], (0.0, 1.0)),
    ("mat_mul(trans_a:false,trans_b:false)", &[&[3, 4], &[2, 4, 5]], (0.0, 1.0)),
    ("batch_norm_infer(eps:1e-3,momentum:0.9)", &[&[2, 3, 4], &[3], &[3], &[3], &[3]], (1.5, 0.8)),
    ("pad(before:[1,-1],after:[-1,2],value:3.0)", &[&[3, 4]], (0.0, 1.0)),
    ("slice(starts:[2,0],steps:[-1,2],lens:[2,2])", &[&[3, 4]], (0.0, 1.0)),
    ("transpose(perm:[2,0,1])", &[&[2, 3, 4]], (0.0, 1.0)),
    ("concat(axis:1)", &[&[2, 3], &[2, 1]], (0.0, 1.0)),
];

#[test]
fn gradients_are_the_slopes() {
    let failures: Vec<String> =
        CASES.iter().filter_map(|c| check(c).err().map(|e| format!("{}: {e}", c.0))).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn random(key: &str, dims: &[u64], (centre, half): (f64, f64)) -> Vec<f32> {
    let seed = fnv1a64(key.as_bytes());
    (0..dims.iter().product()).map(|i| uniform(seed, i, half, centre) as f32).collect()
}

/// The graph of one op with every operand an input, and its result.
fn forward(op: &Op, shapes: &[&[u64]]) -> (Graph, Vec<ValueId>, ValueId) {
    let mut graph = Graph::new("check");
    let inputs: Vec<ValueId> = shapes
        .iter()
        .enumerate()
        .map(|(i, dims)| graph.add_input(format!("x{i}"), TensorType::f32(dims.iter().copied())))
        .collect();
    let y = graph.add1(op.clone(), &inputs, NodeSpec::forward("op")).expect("a legal op");
    graph.outputs.push(Output { name: "y".into(), value: y });
    (graph, inputs, y)
}

fn check(&(text, shapes, range): &Case) -> Result<(), String> {
    let op: Op = text.parse()?;
    let (mut graph, inputs, y) = forward(&op, shapes);
    let plain = graph.clone();
    let y_ty = graph.ty(y).clone();
    let dy = graph.add_input("dy", y_ty.clone());
    let found = gradients(&mut graph, &[(y, dy)], &inputs).map_err(|e| e.to_string())?;
    let is_gate = text.contains("gate");
    for (i, g) in found.iter().enumerate() {
        match g {
            Some(value) => graph.outputs.push(Output { name: format!("g{i}"), value: *value }),
            None if is_gate && i == 1 => {}
            None => return Err(format!("no gradient of operand {i}")),
        }
    }
    let cotangent = random("dy", &y_ty.dims, (0.0, 1.0));
    let mut tensors: BTreeMap<String, Tensor> = shapes
        .iter()
        .enumerate()
        .map(|(i, dims)| {
            let values = random(&format!("{text}{i}"), dims, range);
            (format!("x{i}"), Tensor::from_f32(dims.iter().copied(), &values))
        })
        .collect();
    tensors.insert("dy".into(), Tensor::from_f32(y_ty.dims.iter().copied(), &cotangent));
    let run = |graph: &Graph, tensors: &BTreeMap<String, Tensor>| {
        interpret(graph, tensors, &BTreeMap::new(), &NaiveKernels).map_err(|e| e.to_string())
    };
    let result = run(&graph, &tensors)?;

    // The slope along one random direction per operand.
    for (i, dims) in shapes.iter().enumerate() {
        let Some(gradient) = result.outputs.get(&format!("g{i}")) else { continue };
        let direction = random(&format!("v{text}{i}"), dims, (0.0, 1.0));
        let name = format!("x{i}");
        let loss = |sign: f64| -> Result<f64, String> {
            let mut moved = tensors.clone();
            moved.remove("dy");
            let x: Vec<f32> = tensors[&name]
                .f32()
                .iter()
                .zip(&direction)
                .map(|(x, v)| (f64::from(*x) + sign * STEP * f64::from(*v)) as f32)
                .collect();
            moved.insert(name.clone(), Tensor::from_f32(dims.iter().copied(), &x));
            let y = &run(&plain, &moved)?.outputs["y"];
            Ok(y.f32().iter().zip(&cotangent).map(|(y, d)| f64::from(*y) * f64::from(*d)).sum())
        };
        let slope = (loss(1.0)? - loss(-1.0)?) / (2.0 * STEP);
        let terms = gradient.f32().iter().zip(&direction).map(|(g, v)| f64::from(*g) * f64::from(*v));
        let (dot, size) = terms.fold((0.0, 0.0), |(s, m): (f64, f64), t| (s + t, m + t.abs()));
        if (slope - dot).abs() > TOLERANCE * size.max(0.1) {
            return Err(format!("operand {i}: slope {slope:.6}, gradient says {dot:.6}"));
        }
    }
    Ok(())
}
