//! What training needs of the ONNX operators: the backend suite's losses, batch statistics,
//! dropout and optimizers give the expected values on values of the graph, not only on
//! constants; and the two losses over class indices have the same gradients where they must.

use std::collections::BTreeMap;
use vdnn_interp::{NaiveKernels, interpret};
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::kernel::Kernels;
use vdnn_ir::op::LossReduction;
use vdnn_ir::{DType, Graph, Op, Output, Tensor, TensorType, ValueId};
use vdnn_passes::autodiff::gradients;
use vdnn_runtime::cpu::kernels::CpuKernels;
use vdnn_tests::conformance::{self, Case, Known, Outcome};
use vdnn_tests::data::uniform;

/// Runs the cases of the suite whose names `select` picks; there must be `expected` of them.
#[expect(clippy::print_stderr, reason = "a skipped test must say so")]
fn family(expected: usize, select: impl Fn(&str) -> bool) {
    let Some(suite) = conformance::suite() else {
        eprintln!("skipped: needs target/onnx-backend, which tests/conformance/fetch.sh makes");
        return;
    };
    let folder = suite.join("node");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .expect("the suite")
        .filter_map(|e| Some(e.ok()?.file_name().to_str()?.to_owned()))
        .filter(|n| select(n))
        .collect();
    names.sort();
    assert_eq!(names.len(), expected, "{names:?}");
    let mut failures = Vec::new();
    for name in names {
        let case = Case::read("node", folder.join(&name)).expect("a case");
        match conformance::run(&case) {
            Outcome::Passed(Known::Nothing | Known::Operands) => {}
            other => failures.push(format!("{name}: {other:?}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn softmax_cross_entropy() {
    family(34, |n| n.starts_with("test_sce_") && !n.ends_with("_expanded"));
}

#[test]
fn negative_log_likelihood() {
    family(18, |n| n.starts_with("test_nllloss_") && !n.ends_with("_expanded"));
}

#[test]
fn batch_statistics() {
    family(2, |n| n.starts_with("test_batchnorm_") && n.ends_with("_training_mode"));
}

/// The other training cases want the masks of numpy's generator.
#[test]
fn dropout() {
    family(2, |n| n.starts_with("test_training_dropout_zero_ratio"));
}

/// All but `test_adam_multiple`, whose expected values were computed with an epsilon of 0.01
/// that its node does not carry.
#[test]
fn optimizers() {
    let names = ["test_adagrad", "test_adam", "test_momentum", "test_nesterov_momentum"];
    family(6, |n| n != "test_adam_multiple" && names.contains(&n.strip_suffix("_multiple").unwrap_or(n)));
}

const DIMS: [u64; 3] = [3, 5, 4];

/// Loss and gradient of the logits, by one op or by log-softmax and negative log likelihood.
fn loss_and_gradient(
    split: bool,
    reduction: LossReduction,
    ignore_index: Option<i64>,
    inputs: &BTreeMap<String, Tensor>,
    kernels: &dyn Kernels,
) -> (Tensor, Tensor) {
    let mut graph = Graph::new("loss");
    let x = graph.add_input("x", TensorType::f32(DIMS));
    let labels = graph.add_input("labels", TensorType::new(DType::I64, [DIMS[0], DIMS[2]]));
    let mut operands = vec![x, labels];
    if inputs.contains_key("weight") {
        operands.push(graph.add_input("weight", TensorType::f32([DIMS[1]])));
    }
    let add = |graph: &mut Graph, op: Op, operands: &[ValueId], n: usize| {
        let node = graph.add(op, operands, NodeSpec::forward("op").outputs(n)).expect("a legal op");
        graph.node(node).outputs[0]
    };
    let loss = if split {
        operands[0] = add(&mut graph, Op::LogSoftmax { axis: 1 }, &[x], 1);
        add(&mut graph, Op::NegativeLogLikelihood { reduction, ignore_index }, &operands, 1)
    } else {
        add(&mut graph, Op::SoftmaxCrossEntropy { reduction, ignore_index }, &operands, 2)
    };
    let dy = graph.add_input("dy", graph.ty(loss).clone());
    graph.outputs.push(Output { name: "loss".into(), value: loss });
    let found = gradients(&mut graph, &[(loss, dy)], &[x]).expect("a gradient");
    graph.outputs.push(Output { name: "grad".into(), value: found[0].expect("a gradient of x") });
    let mut inputs = inputs.clone();
    let dy_dims = graph.ty(loss).dims.clone();
    let n: u64 = dy_dims.iter().product();
    let values: Vec<f32> = (0..n).map(|i| uniform(9, i, 1.0, 0.0) as f32).collect();
    inputs.insert("dy".into(), Tensor::from_f32(dy_dims, &values));
    let mut result = interpret(&graph, &inputs, &BTreeMap::new(), kernels).expect("it runs").outputs;
    (result.remove("loss").expect("the loss"), result.remove("grad").expect("the gradient"))
}

#[test]
fn log_likelihood_of_log_softmax_is_cross_entropy() {
    let n: u64 = DIMS.iter().product();
    let x: Vec<f32> = (0..n).map(|i| uniform(1, i, 3.0, 0.0) as f32).collect();
    let weight: Vec<f32> = (0..DIMS[1]).map(|i| uniform(2, i, 0.5, 1.0) as f32).collect();
    let labels: Vec<i64> = (0..DIMS[0] * DIMS[2]).map(|i| (i * 7 % DIMS[1]) as i64).collect();
    let cpu = CpuKernels::new(1);
    for reduction in [LossReduction::Mean, LossReduction::Sum, LossReduction::None] {
        for ignore in [None, Some(2)] {
            for weighted in [false, true] {
                let mut inputs = BTreeMap::from([
                    ("x".to_owned(), Tensor::from_f32(DIMS, &x)),
                    ("labels".to_owned(), Tensor::from_i64([DIMS[0], DIMS[2]], &labels)),
                ]);
                if weighted {
                    inputs.insert("weight".to_owned(), Tensor::from_f32([DIMS[1]], &weight));
                }
                let want = loss_and_gradient(false, reduction, ignore, &inputs, &NaiveKernels);
                for kernels in [&NaiveKernels as &dyn Kernels, &cpu] {
                    let got = loss_and_gradient(true, reduction, ignore, &inputs, kernels);
                    for (got, want) in [(&got.0, &want.0), (&got.1, &want.1)] {
                        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 + 1e-5 * b.abs();
                        assert!(
                            got.f32().iter().zip(want.f32()).all(near),
                            "{reduction:?} ignoring {ignore:?}, weighted {weighted}: {got:?} {want:?}"
                        );
                    }
                }
            }
        }
    }
}
