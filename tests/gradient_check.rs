//! The gradient of every differentiable op, with each of its options, agrees with central
//! differences of the interpreter, whose sums run in f64.

use std::collections::BTreeMap;
use vdnn_interp::{NaiveKernels, interpret};
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::BinaryKind;
use vdnn_ir::{DType, Graph, Op, Output, Tensor, TensorType, ValueId};
use vdnn_passes::autodiff::gradients;
use vdnn_tests::data::{fnv1a64, uniform};

/// Step of the difference quotient: its error is about `STEP^2` and `1e-7 / STEP`.
const STEP: f64 = 4e-3;
/// Relative disagreement allowed; a wrong formula is off by far more.
const TOLERANCE: f64 = 2e-3;

/// Op, shapes of its operands, and the range (centre, half width) their elements come from.
type Case = (&'static str, &'static [&'static [u64]], (f64, f64));

const CASES: &[Case] = &[
    ("unary(relu)", &[&[3, 4]], (0.0, 2.0)),
    ("unary(leaky_relu(alpha:0.2))", &[&[3, 4]], (0.0, 2.0)),
    ("unary(clip(lo:-0.5,hi:0.9))", &[&[3, 4]], (0.0, 2.0)),
    ("unary(clip(lo:-inf,hi:0.9))", &[&[3, 4]], (0.0, 2.0)),
    ("unary(sigmoid)", &[&[3, 4]], (0.0, 2.0)),
    ("unary(hard_sigmoid(alpha:0.2,beta:0.5))", &[&[3, 4]], (0.0, 4.0)),
    ("unary(hard_swish)", &[&[3, 4]], (0.0, 4.0)),
    ("unary(tanh)", &[&[3, 4]], (0.0, 2.0)),
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
    ("split(axis:1,sizes:[2,3])", &[&[2, 5]], (0.0, 1.0)),
    ("reshape(dims:[4,3])", &[&[2, 6]], (0.0, 1.0)),
    ("binary(add)", &[&[2, 3, 4], &[3, 1]], (0.0, 1.0)),
    ("binary(mul)", &[&[3, 1], &[2, 1, 4]], (0.0, 1.0)),
    ("unary(pow_const(exponent:2.0))", &[&[3, 4]], (0.0, 1.0)),
    ("unary(pow_const(exponent:-1.0))", &[&[3, 4]], (2.0, 0.5)),
    ("reduce(kind:mean,axes:[0,2],keepdims:false)", &[&[2, 3, 4]], (0.0, 1.0)),
    ("reduce(kind:sum,axes:[1],keepdims:false)", &[&[2, 3, 4]], (0.0, 1.0)),
    ("softmax(axis:1)", &[&[2, 3, 4]], (0.0, 1.0)),
    ("batch_norm_train(eps:1e-3,momentum:0.9)", &[&[3, 2, 4], &[2], &[2], &[2], &[2]], (1.5, 0.8)),
    ("lrn(size:3,alpha:0.5,beta:0.75,bias:1.0)", &[&[2, 5, 3]], (0.0, 1.0)),
    ("lrn(size:4,alpha:0.3,beta:0.5,bias:2.0)", &[&[1, 6, 2]], (0.0, 1.0)),
    // Windows: strides, uneven padding, dilation, groups, depthwise, one and three dimensions.
    (
        "conv(kernel:[3,3],strides:[1,1],before:[1,1],after:[1,1],dilations:[1,1],groups:1)",
        &[&[2, 2, 4, 5], &[3, 2, 3, 3], &[3]],
        (0.0, 1.0),
    ),
    (
        "conv(kernel:[3,2],strides:[2,1],before:[1,0],after:[0,1],dilations:[1,2],groups:2)",
        &[&[2, 4, 6, 5], &[2, 2, 3, 2], &[2]],
        (0.0, 1.0),
    ),
    (
        "conv(kernel:[3,3],strides:[2,2],before:[1,1],after:[1,1],dilations:[1,1],groups:3)",
        &[&[2, 3, 5, 5], &[3, 1, 3, 3]],
        (0.0, 1.0),
    ),
    (
        "conv(kernel:[3],strides:[2],before:[0],after:[1],dilations:[1],groups:1)",
        &[&[2, 2, 7], &[3, 2, 3]],
        (0.0, 1.0),
    ),
    (
        "conv(kernel:[1,2,2],strides:[1,1,2],before:[0,0,0],after:[0,0,0],dilations:[1,1,1],groups:1)",
        &[&[1, 2, 2, 3, 4], &[2, 2, 1, 2, 2]],
        (0.0, 1.0),
    ),
    (
        "max_pool((kernel:[3,2],strides:[2,1],before:[1,0],after:[0,1],dilations:[1,1],ceil_mode:false))",
        &[&[2, 2, 5, 4]],
        (0.0, 5.0),
    ),
    (
        "max_pool((kernel:[2,2],strides:[2,2],before:[0,0],after:[0,0],dilations:[2,1],ceil_mode:true))",
        &[&[1, 2, 5, 5]],
        (0.0, 5.0),
    ),
    (
        "avg_pool(pool:(kernel:[3,3],strides:[2,2],before:[1,1],after:[1,1],dilations:[1,1],ceil_mode:false),count_include_pad:true)",
        &[&[2, 2, 5, 5]],
        (0.0, 1.0),
    ),
    (
        "avg_pool(pool:(kernel:[3,2],strides:[2,2],before:[1,0],after:[0,1],dilations:[1,1],ceil_mode:true),count_include_pad:false)",
        &[&[2, 2, 6, 5]],
        (0.0, 1.0),
    ),
    // Losses: every reduction, with and without an ignored label and class weights.
    ("softmax_cross_entropy(reduction:mean,ignore_index:None)", &[&[4, 3], &[4]], (1.0, 0.8)),
    ("softmax_cross_entropy(reduction:sum,ignore_index:Some(1))", &[&[2, 3, 4], &[2, 4]], (1.0, 0.8)),
    ("softmax_cross_entropy(reduction:none,ignore_index:Some(0))", &[&[2, 3, 4], &[2, 4], &[3]], (1.0, 0.8)),
    ("softmax_cross_entropy(reduction:mean,ignore_index:Some(2))", &[&[4, 3], &[4], &[3]], (1.0, 0.8)),
    ("negative_log_likelihood(reduction:mean,ignore_index:Some(2))", &[&[4, 3], &[4], &[3]], (1.0, 0.8)),
    ("negative_log_likelihood(reduction:sum,ignore_index:None)", &[&[2, 3, 4], &[2, 4]], (1.0, 0.8)),
    (
        "negative_log_likelihood(reduction:none,ignore_index:Some(1))",
        &[&[2, 3, 4], &[2, 4], &[3]],
        (1.0, 0.8),
    ),
];

/// The operands of an op that are data, not variables.
fn constants(op: &Op) -> &'static [usize] {
    match op {
        Op::Binary(BinaryKind::Gate) | Op::Dropout { .. } => &[1],
        Op::SoftmaxCrossEntropy { .. } | Op::NegativeLogLikelihood { .. } => &[1, 2],
        Op::BatchNormTrain { .. } => &[3, 4],
        _ => &[],
    }
}

/// Class indices for the losses, where the operand is integer; else random numbers.
fn operand(text: &str, ty: &TensorType, i: usize, range: (f64, f64)) -> Tensor {
    match ty.dtype {
        DType::F32 => {
            Tensor::from_f32(ty.dims.iter().copied(), &random(&format!("{text}{i}"), &ty.dims, range))
        }
        _ => {
            let labels: Vec<i64> = (0..ty.elements() as i64).map(|i| i * 5 % 3).collect();
            Tensor::from_i64(ty.dims.iter().copied(), &labels)
        }
    }
}

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
        .map(|(i, dims)| {
            let labels =
                i == 1 && matches!(op, Op::SoftmaxCrossEntropy { .. } | Op::NegativeLogLikelihood { .. });
            let dtype = if labels { DType::I64 } else { DType::F32 };
            graph.add_input(format!("x{i}"), TensorType::new(dtype, dims.iter().copied()))
        })
        .collect();
    let outputs = match op {
        Op::BatchNormTrain { .. } => 5,
        Op::SoftmaxCrossEntropy { .. } | Op::MaxPool(_) | Op::Split { .. } => 2,
        _ => 1,
    };
    let node = graph.add(op.clone(), &inputs, NodeSpec::forward("op").outputs(outputs)).expect("a legal op");
    let y = graph.node(node).outputs[0];
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
    let constants = constants(&op);
    for (i, g) in found.iter().enumerate() {
        match g {
            Some(value) => graph.outputs.push(Output { name: format!("g{i}"), value: *value }),
            None if constants.contains(&i) => {}
            None => return Err(format!("no gradient of operand {i}")),
        }
    }
    let cotangent = random("dy", &y_ty.dims, (0.0, 1.0));
    let mut tensors: BTreeMap<String, Tensor> = inputs
        .iter()
        .enumerate()
        .map(|(i, &v)| (format!("x{i}"), operand(text, plain.ty(v), i, range)))
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
