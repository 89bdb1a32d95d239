//! The gradients that autodiff makes are the slopes of the forward ops: for random shapes
//! and options of every differentiable op, everything in f64.
//!
//! With `L` the sum of `y * dy` for a random `dy`, the derivative of `L` along a random
//! direction `v` is `(L(x + h v) - L(x - h v)) / 2h`, and also the sum of `gradient * v`.

use std::collections::{BTreeMap, BTreeSet};
use vdnn_interp::interpret_f64;
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::{BinaryKind, LossReduction, Op, ReduceKind, UnaryKind};
use vdnn_ir::{DType, Graph, Output, Tensor, TensorType, ValueId};
use vdnn_passes::autodiff::gradients;
use vdnn_tests::arbitrary::Rng;
use vdnn_tests::op_cases::{self, Case, Operand};

/// Step of the difference quotient: its error is about `STEP^2` and `1e-16 / STEP`.
const STEP: f64 = 1e-5;
/// Disagreement allowed, as a share of the sum of `|gradient * v|`; more than the rounding of
/// a constant that a rule adds to the graph, which is f32.
const TOLERANCE: f64 = 1e-6;
/// And as it is: for slopes of zero.
const NOISE: f64 = 1e-8;
/// Directions per operand.
const DIRECTIONS: usize = 2;
/// Random shapes per combination of options of an op.
const REPEATS: usize = 20;

#[test]
fn gradients_are_the_slopes() {
    let cases = op_cases::all(REPEATS);
    let failures: Vec<String> = cases
        .iter()
        .enumerate()
        .filter_map(|(i, case)| {
            let error = check(case, &mut Rng::new(i as u64)).err()?;
            let types: Vec<String> = case.operands.iter().map(|x| x.ty().to_string()).collect();
            Some(format!("{} of {}: {error}", case.op, types.join(", ")))
        })
        .collect();
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// A function from a value of an enum to the name of its variant, and the list of the names
/// given. An enum with another variant does not compile until it is listed.
macro_rules! variants {
    ($ty:ident, $name:ident, $all:ident: [$($covered:ident)*], others: [$($other:ident)*]) => {
        const $all: &[&str] = &[$(stringify!($covered)),*];
        fn $name(x: &$ty) -> Option<&'static str> {
            match x {
                $($ty::$covered { .. } => Some(stringify!($covered)),)*
                $($ty::$other { .. } => None,)*
            }
        }
    };
}

variants!(Op, op_name, OPS: [
    Conv MaxPool AvgPool BatchNormInfer BatchNormTrain Lrn Gemm MatMul Unary Binary Reduce Softmax LogSoftmax
    Concat Split Slice Pad Reshape Transpose Expand Dropout SoftmaxCrossEntropy NegativeLogLikelihood
], others: [
    Fill ConvDgrad ConvWgrad MaxPoolGrad AvgPoolGrad BatchNormGrad BatchNormInferGrad LrnGrad UnaryGrad
    SoftmaxGrad LogSoftmaxGrad SliceGrad SoftmaxCrossEntropyGrad NegativeLogLikelihoodGrad SgdUpdate
    Gather PackSparse SparseConv SparseInputConv AddSlice BatchNormInferRelu BatchNormApplyRelu BatchNormTrainRelu BatchNormReluGrad
    BatchNormTrainReluJoined BatchNormReluGradJoined ConvEpilogue Pyramid Elementwise Relayout Cast OffloadStart OffloadDone PrefetchStart PrefetchDone
]);
variants!(UnaryKind, unary_name, UNARY: [
    Relu LeakyRelu Clip Sigmoid HardSigmoid HardSwish Tanh Elu Exp Log Sqrt Neg Abs Reciprocal Affine PowConst
], others: []);
variants!(BinaryKind, binary_name, BINARY: [Add Sub Mul Div Pow Max Min PRelu Gate], others: []);
variants!(ReduceKind, reduce_name, REDUCE: [Sum Mean Max], others: []);
variants!(LossReduction, loss_name, LOSS: [Mean Sum None], others: []);

#[test]
fn every_differentiable_op_has_cases() {
    let cases = op_cases::all(1);
    let of = |name: &dyn Fn(&Op) -> Option<&'static str>| -> BTreeSet<&'static str> {
        cases.iter().filter_map(|c| name(&c.op)).collect()
    };
    let all = |names: &[&'static str]| names.iter().copied().collect::<BTreeSet<_>>();
    assert_eq!(of(&op_name), all(OPS));
    assert_eq!(of(&|op| if let Op::Unary(k) = op { unary_name(k) } else { None }), all(UNARY));
    assert_eq!(of(&|op| if let Op::Binary(k) = op { binary_name(k) } else { None }), all(BINARY));
    let reduce = |op: &Op| if let Op::Reduce { kind, .. } = op { reduce_name(kind) } else { None };
    assert_eq!(of(&reduce), all(REDUCE));
    let entropy = |op: &Op| {
        if let Op::SoftmaxCrossEntropy { reduction, .. } = op { loss_name(reduction) } else { None }
    };
    assert_eq!(of(&entropy), all(LOSS));
    let likelihood = |op: &Op| {
        if let Op::NegativeLogLikelihood { reduction, .. } = op { loss_name(reduction) } else { None }
    };
    assert_eq!(of(&likelihood), all(LOSS));
}

fn tensor(ty: &TensorType, data: &[f64]) -> Tensor {
    let ty = TensorType { dtype: DType::F64, ..ty.clone() };
    Tensor::from_bytes(ty, bytemuck::cast_slice(data)).expect("an element per place")
}

fn elements(t: &Tensor) -> &[f64] {
    assert_eq!(t.ty().dtype, DType::F64);
    bytemuck::cast_slice(t.bytes())
}

fn random(rng: &mut Rng, ty: &TensorType) -> Vec<f64> {
    (0..ty.elements()).map(|_| f64::from(rng.unit())).collect()
}

/// The graph of one op, every operand an input; its operands and results.
fn forward(case: &Case) -> Result<(Graph, Vec<ValueId>, Vec<ValueId>), String> {
    let mut graph = Graph::new("check");
    let inputs: Vec<ValueId> =
        case.operands.iter().enumerate().map(|(i, x)| graph.add_input(format!("x{i}"), x.ty())).collect();
    let spec = NodeSpec { n_outputs: case.outputs, ..NodeSpec::forward("op") };
    let node = graph.add(case.op.clone(), &inputs, spec).map_err(|e| e.to_string())?;
    let results = graph.node(node).outputs.to_vec();
    for &i in &case.sources {
        graph.outputs.push(Output { name: format!("y{i}"), value: results[i] });
    }
    Ok((graph, inputs, results))
}

/// Compares the gradient of each operand with the slope along some directions.
fn check(case: &Case, rng: &mut Rng) -> Result<(), String> {
    let (plain, inputs, results) = forward(case)?;
    let mut joint = plain.clone();
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    for (i, operand) in case.operands.iter().enumerate() {
        let tensor = match operand {
            Operand::Real { ty, data, .. } => tensor(ty, data),
            Operand::Integer(t) => t.clone(),
        };
        tensors.insert(format!("x{i}"), tensor);
    }
    let mut cotangents = BTreeMap::new();
    let mut seeds = Vec::new();
    for &i in &case.sources {
        let ty = plain.ty(results[i]).clone();
        let dy = random(rng, &ty);
        tensors.insert(format!("dy{i}"), tensor(&ty, &dy));
        seeds.push((results[i], joint.add_input(format!("dy{i}"), ty)));
        cotangents.insert(format!("y{i}"), dy);
    }
    let found = gradients(&mut joint, &seeds, &inputs).map_err(|e| e.to_string())?;
    for (i, gradient) in found.iter().enumerate() {
        joint.outputs.extend(gradient.map(|value| Output { name: format!("g{i}"), value }));
    }
    let run = |graph: &Graph, tensors: &BTreeMap<String, Tensor>| {
        interpret_f64(graph, tensors, &BTreeMap::new()).map(|e| e.outputs).map_err(|e| e.to_string())
    };
    let outputs = run(&joint, &tensors)?;

    for (i, operand) in case.operands.iter().enumerate() {
        let Operand::Real { ty, data, constant: false } = operand else { continue };
        let zeros = vec![0.0; data.len()];
        let gradient = outputs.get(&format!("g{i}")).map_or(&zeros[..], elements);
        for _ in 0..DIRECTIONS {
            let direction = random(rng, ty);
            let objective = |step: f64| -> Result<f64, String> {
                let moved: Vec<f64> = data.iter().zip(&direction).map(|(x, v)| x + step * v).collect();
                let mut tensors = tensors.clone();
                tensors.insert(format!("x{i}"), tensor(ty, &moved));
                let y = run(&plain, &tensors)?;
                let products = |(name, dy): (&String, &Vec<f64>)| -> f64 {
                    elements(&y[name]).iter().zip(dy).map(|(y, dy)| y * dy).sum()
                };
                Ok(cotangents.iter().map(products).sum())
            };
            let slope = (objective(STEP)? - objective(-STEP)?) / (2.0 * STEP);
            let terms = gradient.iter().zip(&direction).map(|(g, v)| g * v);
            let (dot, size) = terms.fold((0.0, 0.0), |(s, m): (f64, f64), t| (s + t, m + t.abs()));
            // Written so that NaN fails.
            let agrees = (slope - dot).abs() <= TOLERANCE * size + NOISE;
            if !agrees {
                return Err(format!("operand {i}: the slope is {slope:.9}, the gradient says {dot:.9}"));
            }
        }
    }
    Ok(())
}
