//! What operators become, across the versions of ONNX.

mod support;

use support::build::{
    Attr, Dim, attr, floats, graph, import, import_graph, info, ints, lowered, model, node,
};
use vdnn_frontends::onnx::ImportOptions;
use vdnn_frontends::onnx::proto::tensor_proto::DataType;
use vdnn_frontends::onnx::proto::{GraphProto, NodeProto};
use vdnn_ir::{Def, ParamRole};

const X: [Dim<'static>; 4] = [Dim::N(2), Dim::N(3), Dim::N(7), Dim::N(8)];

fn single(opset: i64, n: NodeProto) -> (Vec<String>, Vec<u64>) {
    lowered(opset, graph(&X, vec![], vec![n], "y"))
}

#[test]
fn automatic_padding_puts_the_odd_element_where_the_mode_says() {
    let conv = |mode: &str| {
        let n = attr(node("Conv", &["x", "w"], &["y"]), "auto_pad", Attr::Text(mode));
        let n = attr(n, "strides", Attr::Ints(&[2, 2]));
        lowered(17, graph(&X, vec![floats("w", &[1, 3, 2, 3], &[0.0; 18])], vec![n], "y"))
    };
    let (ops, dims) = conv("SAME_UPPER");
    assert!(ops[0].contains("before:[0,0],after:[1,1]"), "{ops:?}");
    assert_eq!(dims, [2, 1, 4, 4]);
    let (ops, dims) = conv("SAME_LOWER");
    assert!(ops[0].contains("before:[1,1],after:[0,0]"), "{ops:?}");
    assert_eq!(dims, [2, 1, 4, 4]);
    assert_eq!(conv("VALID").1, [2, 1, 3, 3]);
    assert_eq!(conv("NOTSET").1, [2, 1, 3, 3]);
}

#[test]
fn ceil_mode_drops_windows_that_start_in_the_padding() {
    let n = attr(node("AveragePool", &["x"], &["y"]), "kernel_shape", Attr::Ints(&[2, 2]));
    let n = attr(attr(n, "strides", Attr::Ints(&[3, 3])), "pads", Attr::Ints(&[1, 1, 1, 1]));
    let (_, dims) = single(17, attr(n, "ceil_mode", Attr::Int(1)));
    assert_eq!(dims, [2, 3, 3, 3]);
}

#[test]
fn softmax_before_opset_13_normalises_rows_of_a_matrix() {
    let (ops, dims) = single(12, node("Softmax", &["x"], &["y"]));
    assert_eq!(ops, ["reshape(dims:[2,168])", "softmax(axis:1)", "reshape(dims:[2,3,7,8])"]);
    assert_eq!(dims, [2, 3, 7, 8]);
    assert_eq!(single(13, node("Softmax", &["x"], &["y"])).0, ["softmax(axis:3)"]);
    assert_eq!(
        single(12, attr(node("Softmax", &["x"], &["y"]), "axis", Attr::Int(-1))).0,
        ["softmax(axis:3)"]
    );
}

#[test]
fn clip_bounds_moved_from_attributes_to_inputs() {
    let old = attr(attr(node("Clip", &["x"], &["y"]), "min", Attr::Float(0.0)), "max", Attr::Float(6.0));
    assert_eq!(single(9, old).0, ["unary(clip(lo:0.0,hi:6.0))"]);
    let bounds = vec![floats("six", &[], &[6.0])];
    let new = lowered(13, graph(&X, bounds, vec![node("Clip", &["x", "", "six"], &["y"])], "y"));
    assert_eq!(new.0, ["unary(clip(lo:-inf,hi:6.0))"]);
}

#[test]
fn axes_moved_from_attributes_to_inputs() {
    let old = attr(node("Unsqueeze", &["x"], &["y"]), "axes", Attr::Ints(&[0, -1]));
    assert_eq!(single(11, old).1, [1, 2, 3, 7, 8, 1]);
    let axes = || vec![ints("a", &[2], &[0, -1])];
    let new = graph(&X, axes(), vec![node("Unsqueeze", &["x", "a"], &["y"])], "y");
    assert_eq!(lowered(13, new).1, [1, 2, 3, 7, 8, 1]);
    let mean = attr(node("ReduceMean", &["x"], &["y"]), "axes", Attr::Ints(&[2, 3]));
    assert_eq!(single(17, mean).0, ["reduce(kind:mean,axes:[2,3],keepdims:true)"]);
    let mean = attr(node("ReduceMean", &["x", "a"], &["y"]), "keepdims", Attr::Int(0));
    assert_eq!(lowered(18, graph(&X, axes(), vec![mean], "y")).1, [3, 7]);
}

#[test]
fn slices_count_from_both_ends() {
    let old =
        attr(attr(node("Slice", &["x"], &["y"]), "starts", Attr::Ints(&[1])), "ends", Attr::Ints(&[-1]));
    assert_eq!(single(9, attr(old, "axes", Attr::Ints(&[3]))).1, [2, 3, 7, 6]);
    let lists = vec![
        ints("s", &[2], &[-1, 0]),
        ints("e", &[2], &[i64::MIN, i64::MAX]),
        ints("a", &[2], &[2, 3]),
        ints("k", &[2], &[-2, 3]),
    ];
    let (ops, dims) =
        lowered(13, graph(&X, lists, vec![node("Slice", &["x", "s", "e", "a", "k"], &["y"])], "y"));
    assert_eq!(ops, ["slice(starts:[0,0,6,0],steps:[1,1,-2,3],lens:[2,3,4,3])"]);
    assert_eq!(dims, [2, 3, 4, 3]);
}

#[test]
fn split_sizes_come_from_four_places() {
    let parts = |opset: i64, n: NodeProto, weights| {
        let mut g = graph(&X, weights, vec![n], "a");
        g.output.push(info("b", DataType::Float, &[]));
        lowered(opset, g).0[0].clone()
    };
    let n = || attr(node("Split", &["x"], &["a", "b"]), "axis", Attr::Int(3));
    assert_eq!(parts(11, attr(n(), "split", Attr::Ints(&[3, 5])), vec![]), "split(axis:3,sizes:[3,5])");
    assert_eq!(parts(13, n(), vec![]), "split(axis:3,sizes:[4,4])");
    let input = attr(node("Split", &["x", "s"], &["a", "b"]), "axis", Attr::Int(3));
    assert_eq!(parts(13, input, vec![ints("s", &[2], &[1, 7])]), "split(axis:3,sizes:[1,7])");
    let uneven =
        attr(attr(node("Split", &["x"], &["a", "b"]), "axis", Attr::Int(2)), "num_outputs", Attr::Int(2));
    assert_eq!(parts(18, uneven, vec![]), "split(axis:2,sizes:[4,3])");
}

#[test]
fn arithmetic_with_scalars_has_one_operand() {
    let with = |op: &str, c: f32, first: bool| {
        let inputs = if first { ["c", "x"] } else { ["x", "c"] };
        let (ops, _) =
            lowered(17, graph(&X, vec![floats("c", &[], &[c])], vec![node(op, &inputs, &["y"])], "y"));
        ops.join(";")
    };
    assert_eq!(with("Add", 2.0, true), "unary(affine(scale:1.0,shift:2.0))");
    assert_eq!(with("Sub", 2.0, true), "unary(affine(scale:-1.0,shift:2.0))");
    assert_eq!(with("Sub", 2.0, false), "unary(affine(scale:1.0,shift:-2.0))");
    assert_eq!(with("Div", 4.0, false), "unary(affine(scale:0.25,shift:0.0))");
    assert_eq!(with("Div", 3.0, false), "binary(div)");
    assert_eq!(with("Div", 1.0, true), "unary(reciprocal)");
    assert_eq!(with("Pow", 0.75, false), "unary(pow_const(exponent:0.75))");
    assert_eq!(with("Max", 0.5, false), "unary(clip(lo:0.5,hi:inf))");
    // A trainable vector of one element is no scalar.
    let w = vec![floats("c", &[1], &[2.0])];
    assert_eq!(lowered(17, graph(&X, w, vec![node("Mul", &["x", "c"], &["y"])], "y")).0, ["binary(mul)"]);
}

#[test]
fn shape_arithmetic_disappears() {
    // y = reshape(x, [shape(x)[0], 3*7*8]), as exporters write x.view(x.size(0), -1).
    let weights = vec![ints("zero", &[], &[0]), ints("ax", &[1], &[0]), ints("rest", &[1], &[-1])];
    let nodes = vec![
        node("Shape", &["x"], &["s"]),
        node("Gather", &["s", "zero"], &["n"]),
        node("Unsqueeze", &["n", "ax"], &["n1"]),
        attr(node("Concat", &["n1", "rest"], &["to"]), "axis", Attr::Int(0)),
        node("Reshape", &["x", "to"], &["y"]),
    ];
    let (ops, dims) = lowered(17, graph(&X, weights, nodes, "y"));
    assert_eq!(ops, ["reshape(dims:[2,168])"]);
    assert_eq!(dims, [2, 168]);
}

fn branch(op: &str) -> GraphProto {
    GraphProto { input: vec![], ..graph(&[], vec![], vec![node(op, &["x"], &["b"])], "b") }
}

#[test]
fn a_known_condition_takes_its_branch() {
    let weights = vec![ints("four", &[], &[4])];
    let choose = attr(node("If", &["same"], &["y"]), "then_branch", Attr::Graph(branch("Relu")));
    let nodes = vec![
        node("Shape", &["x"], &["s"]),
        node("Size", &["s"], &["rank"]),
        node("Equal", &["rank", "four"], &["same"]),
        attr(choose, "else_branch", Attr::Graph(branch("Sigmoid"))),
    ];
    assert_eq!(lowered(17, graph(&X, weights, nodes, "y")).0, ["unary(relu)"]);
}

#[test]
fn sequences_of_known_length_dissolve() {
    let weights = vec![ints("sizes", &[2], &[3, 5]), ints("last", &[], &[-1])];
    let nodes = vec![
        attr(node("SplitToSequence", &["x", "sizes"], &["q"]), "axis", Attr::Int(3)),
        node("SequenceAt", &["q", "last"], &["y"]),
    ];
    let (ops, dims) = lowered(17, graph(&X, weights, nodes, "y"));
    assert_eq!(ops, ["split(axis:3,sizes:[3,5])"]);
    assert_eq!(dims, [2, 3, 7, 5]);
}

#[test]
fn vectors_multiply_as_rows_and_columns() {
    let dims = |x: &[Dim<'_>], w: &[i64]| {
        let n = w.iter().product::<i64>() as usize;
        lowered(
            17,
            graph(x, vec![floats("w", w, &vec![0.0; n])], vec![node("MatMul", &["x", "w"], &["y"])], "y"),
        )
        .1
    };
    assert_eq!(dims(&X, &[8]), [2, 3, 7]);
    assert_eq!(dims(&[Dim::N(8)], &[8]), [0u64; 0]);
    assert_eq!(dims(&[Dim::N(8)], &[5, 8, 4]), [5, 4]);
    assert_eq!(dims(&X, &[8, 4]), [2, 3, 7, 4]);
}

#[test]
fn an_initializer_shared_through_identities_is_one_weight_but_separate_statistics() {
    let one = floats("one", &[3], &[1.0; 3]);
    let nodes = vec![
        node("Identity", &["one"], &["b"]),
        node("Identity", &["one"], &["m"]),
        node("Identity", &["one"], &["v"]),
        node("BatchNormalization", &["x", "one", "b", "m", "v"], &["y"]),
    ];
    let imported = import_graph(17, graph(&X, vec![one], nodes, "y")).unwrap();
    let graph = &imported.graph;
    let params: Vec<_> =
        graph.params().iter().map(|&p| (graph.value(p).name.as_str(), graph.value(p).def.clone())).collect();
    assert_eq!(
        params,
        [
            ("one", Def::Param(ParamRole::Trainable)),
            ("m", Def::Param(ParamRole::Statistic)),
            ("v", Def::Param(ParamRole::Statistic))
        ]
    );
    assert_eq!(imported.weights.tensors.len(), 3);
}

#[test]
fn batch_norm_trains_by_attribute_or_by_its_outputs() {
    let weights = || ["s", "b", "m", "v"].map(|n| floats(n, &[3], &[1.0; 3])).to_vec();
    let bn = |outputs: &[&str]| node("BatchNormalization", &["x", "s", "b", "m", "v"], outputs);
    let op = |opset: i64, n| lowered(opset, graph(&X, weights(), vec![n], "y")).0[0].clone();
    let infer = "batch_norm_infer(eps:1e-5,momentum:0.9)";
    let train = "batch_norm_train(eps:1e-5,momentum:0.9)";
    assert_eq!(op(9, bn(&["y"])), infer);
    assert_eq!(op(9, bn(&["y", "m1", "v1", "sm", "sv"])), train);
    assert_eq!(op(15, attr(bn(&["y", "m1", "v1"]), "training_mode", Attr::Int(1))), train);
    assert_eq!(op(15, bn(&["y"])), infer);
}

#[test]
fn dropout_is_active_only_when_importing_for_training() {
    let g = |ratio: f32| {
        let n = node("Dropout", &["x", "r"], &["y"]);
        model(17, graph(&X, vec![floats("r", &[], &[ratio])], vec![n], "y"))
    };
    let count = |ratio: f32, training: bool| {
        let imported = import(&g(ratio), &ImportOptions { training, ..Default::default() }).unwrap();
        (imported.graph.order().len(), imported.graph.inputs().len())
    };
    assert_eq!(count(0.5, false), (0, 1));
    assert_eq!(count(0.0, true), (0, 1));
    assert_eq!(count(0.5, true), (1, 2));
}

#[test]
fn initializers_listed_as_inputs_are_not_inputs() {
    let mut g =
        graph(&X, vec![floats("w", &[3, 1, 1], &[0.0; 3])], vec![node("Add", &["x", "w"], &["y"])], "y");
    g.input.insert(0, info("w", DataType::Float, &[Dim::N(3), Dim::N(1), Dim::N(1)]));
    let mut m = model(9, g);
    m.ir_version = Some(3);
    let imported = import(&m, &ImportOptions { batch: Some(2), ..Default::default() }).unwrap();
    assert_eq!(imported.graph.inputs().len(), 1);
    assert_eq!(imported.graph.params().len(), 1);
}

#[test]
fn losses_take_integer_labels() {
    let mut g = graph(
        &[Dim::Name("N"), Dim::N(10)],
        vec![],
        vec![node("SoftmaxCrossEntropyLoss", &["x", "t"], &["y"])],
        "y",
    );
    g.input.push(info("t", DataType::Int64, &[Dim::Name("N")]));
    let (ops, dims) = lowered(13, g);
    assert_eq!(ops, ["softmax_cross_entropy(reduction:mean,ignore_index:None)"]);
    assert_eq!(dims, [0u64; 0]);
}

#[test]
fn constants_of_nodes_are_literals_or_frozen_but_never_trained() {
    let constant = |n: i64| {
        let t = floats("", &[1, n], &vec![1.5; n as usize]);
        attr(node("Constant", &[], &["c"]), "value", Attr::Tensor(t))
    };
    let run = |n: i64| {
        let nodes = vec![constant(n), node("Add", &["x", "c"], &["a"]), node("Mul", &["a", "c"], &["y"])];
        import_graph(17, graph(&[Dim::N(2), Dim::N(n)], vec![], nodes, "y")).unwrap()
    };
    let small = run(1 << 14);
    assert!(small.graph.params().is_empty() && small.weights.tensors.is_empty());
    let large = run((1 << 14) + 1);
    let [param] = large.graph.params() else { panic!("{}", large.graph) };
    assert_eq!(large.graph.value(*param).def, Def::Param(ParamRole::Frozen));
    assert_eq!(large.weights.tensors.len(), 1);
}

#[test]
fn large_uniform_tensors_are_filled_not_stored() {
    let weights = vec![ints("shape", &[4], &[64, 3, 64, 64])];
    let nodes = vec![
        node("ConstantOfShape", &["shape"], &["c"]),
        node("Relu", &["c"], &["r"]),
        attr(node("Conv", &["c", "c"], &["y"]), "group", Attr::Int(1)),
    ];
    let (ops, dims) = lowered(17, graph(&X, weights, nodes, "y"));
    assert_eq!(ops[0], "fill(value:0.0,dims:[64,3,64,64])");
    assert_eq!(dims, [64, 64, 1, 1]);
}
