//! Small well-formed inputs that edits start from.

use crate::arbitrary::random_cnn;
use crate::build::{Attr, Dim, attr, floats, graph, ints, model, node};
use crate::harness;
use std::sync::OnceLock;
use vdnn_cost::Precision;
use vdnn_frontends::onnx::proto::{ModelProto, SparseTensorProto};
use vdnn_ir::{Mode, Phase};
use vdnn_passes::{AlgoMode, Fuse, Policy};
use vdnn_plan::Plan;
use vdnnc::options::CompileOptions;

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i % 7) as f32 * 0.25 - 0.5).collect()
}

/// Convolution, batch norm, pooling, a branch, LRN and a classifier.
fn classifier() -> ModelProto {
    let image = [Dim::Name("N"), Dim::N(3), Dim::N(8), Dim::N(8)];
    let weights = vec![
        floats("w", &[4, 3, 3, 3], &ramp(108)),
        floats("b", &[4], &ramp(4)),
        floats("scale", &[4], &[1.0; 4]),
        floats("shift", &[4], &ramp(4)),
        floats("mean", &[4], &ramp(4)),
        floats("var", &[4], &[1.5; 4]),
        floats("w2", &[4, 2, 3, 3], &ramp(72)),
        floats("fc", &[5, 128], &ramp(640)),
        floats("fcb", &[5], &ramp(5)),
    ];
    let pads = |n| attr(n, "pads", Attr::Ints(&[1, 1, 1, 1]));
    let nodes = vec![
        attr(pads(node("Conv", &["x", "w", "b"], &["c"])), "kernel_shape", Attr::Ints(&[3, 3])),
        attr(
            node("BatchNormalization", &["c", "scale", "shift", "mean", "var"], &["n"]),
            "epsilon",
            Attr::Float(1e-3),
        ),
        node("Relu", &["n"], &["r"]),
        attr(pads(node("Conv", &["r", "w2"], &["c2"])), "group", Attr::Int(2)),
        attr(node("LRN", &["c2"], &["l"]), "size", Attr::Int(3)),
        attr(node("Concat", &["r", "l"], &["cat"]), "axis", Attr::Int(1)),
        attr(
            attr(node("MaxPool", &["cat"], &["p"]), "kernel_shape", Attr::Ints(&[2, 2])),
            "strides",
            Attr::Ints(&[2, 2]),
        ),
        attr(node("Flatten", &["p"], &["f"]), "axis", Attr::Int(1)),
        node("Dropout", &["f"], &["d"]),
        attr(node("Gemm", &["d", "fc", "fcb"], &["g"]), "transB", Attr::Int(1)),
        attr(node("Softmax", &["g"], &["y"]), "axis", Attr::Int(1)),
    ];
    model(17, graph(&image, weights, nodes, "y"))
}

/// Shape arithmetic, movement and reductions, as exporters write them.
fn movement() -> ModelProto {
    let image = [Dim::N(2), Dim::N(4), Dim::N(6), Dim::N(5)];
    let constants = vec![
        ints("zero", &[1], &[0]),
        ints("minus", &[1], &[-1]),
        ints("starts", &[2], &[1, 0]),
        ints("ends", &[2], &[4, 9223372036854775807]),
        ints("axes", &[2], &[2, -1]),
        ints("steps", &[2], &[1, 2]),
        ints("pads", &[8], &[0, 0, 1, 0, 0, 0, 0, 2]),
        ints("split", &[2], &[1, 3]),
        ints("last", &[1], &[3]),
        floats("k", &[4, 1, 1], &ramp(4)),
    ];
    let nodes = vec![
        node("Slice", &["x", "starts", "ends", "axes", "steps"], &["s"]),
        node("Pad", &["s", "pads"], &["p"]),
        attr(node("Split", &["p", "split"], &["a", "b"]), "axis", Attr::Int(1)),
        attr(node("Concat", &["b", "a"], &["c"]), "axis", Attr::Int(1)),
        node("Mul", &["c", "k"], &["m"]),
        attr(node("Transpose", &["m"], &["t"]), "perm", Attr::Ints(&[0, 2, 1, 3])),
        node("Shape", &["t"], &["shape"]),
        attr(node("Gather", &["shape", "zero"], &["n"]), "axis", Attr::Int(0)),
        attr(node("Concat", &["n", "minus"], &["to"]), "axis", Attr::Int(0)),
        node("Reshape", &["t", "to"], &["flat"]),
        node("Unsqueeze", &["flat", "minus"], &["u"]),
        node("Expand", &["u", "last"], &["e"]),
        node("ReduceMean", &["e", "minus"], &["mean"]),
        node("Squeeze", &["mean", "minus"], &["q"]),
        node("Sub", &["flat", "q"], &["y"]),
    ];
    model(18, graph(&image, constants, nodes, "y"))
}

/// Activations, matrix products and an `If` whose condition folds.
fn activations() -> ModelProto {
    let dims = [Dim::N(3), Dim::N(4)];
    let branch = |op: &str| {
        let mut g = graph(&dims, vec![], vec![node(op, &["x"], &["out"])], "out");
        g.input.clear();
        g
    };
    let weights = vec![
        floats("w", &[4, 4], &ramp(16)),
        floats("slope", &[4], &ramp(4)),
        floats("half", &[], &[0.5]),
        ints("n", &[], &[3]),
        ints("m", &[], &[4]),
    ];
    let nodes = vec![
        node("Less", &["n", "m"], &["cond"]),
        attr(
            attr(node("If", &["cond"], &["i"]), "then_branch", Attr::Graph(branch("Tanh"))),
            "else_branch",
            Attr::Graph(branch("Sigmoid")),
        ),
        node("MatMul", &["i", "w"], &["mm"]),
        node("PRelu", &["mm", "slope"], &["p"]),
        attr(node("Elu", &["p"], &["e"]), "alpha", Attr::Float(0.3)),
        node("Pow", &["e", "half"], &["pow"]),
        node("Clip", &["pow", "half"], &["clip"]),
        attr(node("Constant", &[], &["k"]), "value", Attr::Tensor(floats("", &[2, 1, 4], &ramp(8)))),
        node("Div", &["clip", "k"], &["d"]),
        attr(node("LogSoftmax", &["d"], &["y"]), "axis", Attr::Int(-1)),
    ];
    model(13, graph(&dims, weights, nodes, "y"))
}

/// A one-dimensional network with implicit padding and every pooling option.
fn one_dimensional() -> ModelProto {
    let dims = [Dim::N(1), Dim::N(2), Dim::N(11)];
    let nodes = vec![
        attr(node("Conv", &["x", "w"], &["c"]), "auto_pad", Attr::Text("SAME_UPPER")),
        attr(
            attr(
                attr(node("AveragePool", &["c"], &["a"]), "kernel_shape", Attr::Ints(&[3])),
                "ceil_mode",
                Attr::Int(1),
            ),
            "count_include_pad",
            Attr::Int(1),
        ),
        node("GlobalMaxPool", &["a"], &["g"]),
        attr(node("HardSigmoid", &["g"], &["h"]), "alpha", Attr::Float(0.2)),
        node("Mul", &["a", "h"], &["y"]),
    ];
    model(14, graph(&dims, vec![floats("w", &[2, 2, 3], &ramp(12))], nodes, "y"))
}

/// A product and a sum with sparse weights, by offsets and by coordinates.
fn sparse_weights() -> ModelProto {
    let sparse = |dims: &[i64], values, indices| SparseTensorProto {
        values: Some(values),
        indices: Some(indices),
        dims: dims.to_vec(),
    };
    let nodes = vec![node("MatMul", &["x", "w"], &["m"]), node("Add", &["m", "v"], &["y"])];
    let mut g = graph(&[Dim::Name("N"), Dim::N(4)], vec![], nodes, "y");
    g.sparse_initializer = vec![
        sparse(&[4, 3], floats("w", &[3], &ramp(3)), ints("", &[3], &[1, 4, 11])),
        sparse(&[1, 3], floats("v", &[2], &ramp(2)), ints("", &[2, 2], &[0, 0, 0, 2])),
    ];
    model(17, g)
}

/// Small models with most of the supported operators.
pub fn models() -> &'static [ModelProto] {
    static SEEDS: OnceLock<Vec<ModelProto>> = OnceLock::new();
    SEEDS.get_or_init(|| vec![classifier(), movement(), activations(), one_dimensional(), sparse_weights()])
}

/// Texts of graphs in every phase.
pub fn graphs() -> &'static [String] {
    static SEEDS: OnceLock<Vec<String>> = OnceLock::new();
    SEEDS.get_or_init(|| {
        let mut texts = Vec::new();
        for (seed, phase) in (2..).zip([Phase::Imported, Phase::Joint, Phase::Placed, Phase::Scheduled]) {
            for mode in [Mode::Train, Mode::Infer] {
                let options = harness::options(mode, Policy::All, AlgoMode::Memory);
                let cost = harness::cost(&options);
                let graph = vdnnc::driver::stop_after(random_cnn(seed), phase, &options, &cost);
                texts.push(graph.expect("a random network compiles").to_string());
            }
        }
        texts
    })
}

/// Plans of small networks: every policy that moves something, inference, and one with
/// channels-last tensors and fused ops.
pub fn plans() -> &'static [Plan] {
    static SEEDS: OnceLock<Vec<Plan>> = OnceLock::new();
    SEEDS.get_or_init(|| {
        let infer = (Mode::Infer, Policy::None);
        let train = [Policy::All, Policy::Conv, Policy::Baseline].map(|p| (Mode::Train, p));
        let mut options: Vec<CompileOptions> = (train.into_iter().chain([infer]))
            .map(|(mode, policy)| harness::options(mode, policy, AlgoMode::Memory))
            .collect();
        let mut fused = harness::options(Mode::Train, Policy::All, AlgoMode::Memory);
        (fused.precision, fused.fuse) = (Precision::Tf32, Fuse::Epilogue);
        options.push(fused);
        (7..)
            .zip(options)
            .map(|(seed, options)| {
                let graph = random_cnn(seed);
                let batch = graph.ty(graph.inputs()[0]).dims[0];
                harness::compile(&graph, batch, &options).plan
            })
            .collect()
    })
}
