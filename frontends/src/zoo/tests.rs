//! Counts and sizes against published ones, by a walk over the ONNX nodes that knows nothing of
//! how they were made.

use super::*;
use crate::onnx::proto::NodeProto;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

const MIB: f64 = 1_048_576.0;

fn zeroed(name: &str) -> ModelProto {
    build_zeroed(name, &ZooOptions::default()).unwrap()
}

/// Elements of the initializers, those of running statistics apart.
fn parameters(model: &ModelProto) -> u64 {
    let tensors = &model.graph.as_ref().unwrap().initializer;
    let trained = tensors.iter().filter(|t| !t.name().contains(".running_"));
    trained.map(|t| t.dims.iter().product::<i64>() as u64).sum()
}

fn ints<const N: usize>(node: &NodeProto, name: &str) -> [i64; N] {
    node.attribute.iter().find(|a| a.name() == name).unwrap().ints.clone().try_into().unwrap()
}

fn int(node: &NodeProto, name: &str) -> i64 {
    node.attribute.iter().find(|a| a.name() == name).map_or(0, |a| a.i())
}

/// Shapes of all values at this batch size.
fn shapes(model: &ModelProto, batch: i64) -> BTreeMap<String, Vec<i64>> {
    use crate::onnx::proto::tensor_shape_proto::dimension::Value;
    use crate::onnx::proto::type_proto::Value::TensorType;
    let graph = model.graph.as_ref().unwrap();
    let mut shapes: BTreeMap<String, Vec<i64>> =
        graph.initializer.iter().map(|t| (t.name().to_owned(), t.dims.clone())).collect();
    let Some(TensorType(ty)) = graph.input[0].r#type.as_ref().unwrap().value.clone() else { panic!() };
    let dims = ty.shape.unwrap().dim.into_iter().map(|d| match d.value.unwrap() {
        Value::DimValue(n) => n,
        Value::DimParam(_) => batch,
    });
    shapes.insert("input".to_owned(), dims.collect());
    for node in &graph.node {
        let x = shapes[&node.input[0]].clone();
        let slid = |channels: i64| {
            let ([k, _], [s, _], [p, q, p2, q2]): ([i64; 2], [i64; 2], [i64; 4]) =
                (ints(node, "kernel_shape"), ints(node, "strides"), ints(node, "pads"));
            assert!(p == p2 && q == q2 && p == q);
            let out = |n: i64| {
                let mut starts = 0;
                while starts * s + k <= n + 2 * p {
                    starts += 1;
                }
                // ceil_mode: one more if it is partial and starts inside the image.
                let partial = (starts - 1) * s + k < n + 2 * p && starts * s < n + p;
                starts + i64::from(int(node, "ceil_mode") == 1 && partial)
            };
            vec![x[0], channels, out(x[2]), out(x[3])]
        };
        let y = match node.op_type() {
            "Conv" => {
                let w = &shapes[&node.input[1]];
                assert_eq!(w[1], x[1], "{}", node.name());
                slid(w[0])
            }
            "MaxPool" | "AveragePool" => slid(x[1]),
            "GlobalAveragePool" => vec![x[0], x[1], 1, 1],
            "Relu" => x,
            "BatchNormalization" => {
                node.input[1..].iter().for_each(|p| assert_eq!(shapes[p], [x[1]]));
                x
            }
            "Add" => {
                assert_eq!(x, shapes[&node.input[1]], "{}", node.name());
                x
            }
            "Concat" => {
                let parts = node.input.iter().map(|p| &shapes[p]);
                parts.clone().for_each(|p| assert_eq!(p[2..], x[2..], "{}", node.name()));
                vec![x[0], parts.map(|p| p[1]).sum(), x[2], x[3]]
            }
            "Flatten" => vec![x[0], x[1..].iter().product()],
            "Gemm" => {
                let w = &shapes[&node.input[1]];
                assert_eq!((w[1], int(node, "transB")), (x[1], 1), "{}", node.name());
                assert_eq!(shapes[&node.input[2]], [w[0]]);
                vec![x[0], w[0]]
            }
            op => panic!("{op}"),
        };
        assert!(y.iter().all(|&d| d > 0), "{}", node.name());
        assert!(shapes.insert(node.output[0].clone(), y).is_none(), "{} defined twice", node.output[0]);
    }
    shapes
}

/// MiB of the inputs of convolutions and pools, and of convolutions alone, each tensor once.
fn inputs_mib(name: &str, batch: i64) -> (f64, f64) {
    let model = zeroed(name);
    let shapes = shapes(&model, batch);
    let sum = |ops: &[&str]| {
        let nodes = model.graph.as_ref().unwrap().node.iter().filter(|n| ops.contains(&n.op_type()));
        let inputs: BTreeSet<_> = nodes.map(|n| &n.input[0]).collect();
        inputs.iter().map(|x| 4.0 * shapes[*x].iter().product::<i64>() as f64).sum::<f64>() / MIB
    };
    (sum(&["Conv", "MaxPool", "AveragePool", "GlobalAveragePool"]), sum(&["Conv"]))
}

#[test]
fn parameter_counts_are_the_published_ones() {
    // torchvision's model table, except where noted.
    for (name, count) in [
        ("alexnet", 61_100_840),
        ("vgg11", 132_863_336),
        ("vgg13", 133_047_848),
        ("vgg16", 138_357_544),
        ("vgg19", 143_667_240),
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("densenet121", 7_978_856),
        ("densenet161", 28_681_000),
        ("densenet169", 14_149_480),
        ("densenet201", 20_013_928),
        // BVLC's Caffe model.
        ("googlenet", 6_998_552),
        // torchvision's 6,624,904 plus 16 more taps in each of the nine 5x5 convolutions,
        // which torchvision made 3x3.
        ("googlenet-bn", 6_624_904 + 16 * 23_808),
        ("lenet", 61_706),
        // Sermanet et al., table 4, in millions: 145 and 144.
        ("overfeat-fast", 145_920_872),
        ("overfeat", 144_656_488),
    ] {
        assert_eq!(parameters(&zeroed(name)), count, "{name}");
    }
}

#[test]
fn feature_map_bytes_are_those_of_vdnn() {
    // Rhu et al., figures 12 and 15: MiB of the inputs of convolutions and pools, and of
    // convolutions alone, ReLU in place.
    for (name, batch, all, conv) in [
        ("alexnet", 128, 349.0, 165.0),
        ("overfeat", 128, 1157.0, 385.0),
        ("googlenet", 128, 2341.0, 1367.0),
        ("vgg19", 64, 4030.0, 2536.0),
        ("vgg19", 256, 16_121.0, 10_143.0),
    ] {
        let (a, c) = inputs_mib(name, batch);
        assert!((a - all).abs() < 1.0 && (c - conv).abs() < 1.0, "{name}: {a} {c}");
    }
    for (name, all) in
        [("vgg116", 16_960.0), ("vgg216", 31_905.0), ("vgg316", 46_850.0), ("vgg416", 61_795.0)]
    {
        let (a, _) = inputs_mib(name, 32);
        assert!((a - all).abs() < 1.0, "{name}: {a}");
    }
}

#[test]
fn every_net_is_well_formed() {
    for name in names() {
        let model = build_zeroed(name, &ZooOptions { classes: Some(7), ..ZooOptions::default() }).unwrap();
        let shapes = shapes(&model, 3);
        assert_eq!(shapes["logits"], [3, 7], "{name}");
        let graph = model.graph.as_ref().unwrap();
        assert_eq!(graph.node.iter().map(NodeProto::name).collect::<BTreeSet<_>>().len(), graph.node.len());
        let read: BTreeSet<_> = graph.node.iter().flat_map(|n| &n.input).cloned().collect();
        for tensor in &graph.initializer {
            assert!(read.contains(tensor.name()), "{name}: {} is not used", tensor.name());
            let elements = tensor.dims.iter().product::<i64>() as usize;
            assert_eq!(tensor.raw_data.as_ref().unwrap().len(), 4 * elements);
        }
        for node in &graph.node {
            assert!(node.output[0] == "logits" || read.contains(&node.output[0]), "{name}: {}", node.name());
        }
    }
}

#[test]
fn parameters_have_torchvision_names() {
    for (net, expected) in [
        ("vgg16", "features.28.weight classifier.6.bias"),
        ("alexnet", "features.10.weight classifier.1.weight classifier.4.weight classifier.6.bias"),
        ("resnet50", "layer4.0.downsample.1.running_var layer1.2.bn3.weight fc.bias"),
        ("densenet201", "features.denseblock3.denselayer48.norm2.running_mean features.norm5.weight"),
        ("googlenet-bn", "conv3.conv.weight inception5b.branch4.1.bn.bias inception4c.branch2.1.conv.weight"),
    ] {
        let model = zeroed(net);
        let tensors = &model.graph.as_ref().unwrap().initializer;
        for name in expected.split(' ') {
            assert!(tensors.iter().any(|t| t.name() == name), "{net}: {name}");
        }
    }
}

#[test]
fn the_seed_decides_the_bytes() {
    let make = |seed| build("lenet", &ZooOptions { seed, ..ZooOptions::default() }).unwrap();
    assert_eq!(make(1), make(1));
    assert_ne!(make(1), make(2));
    let bytes = make(3).encode_to_vec();
    assert_eq!(ModelProto::decode(&bytes[..]).unwrap(), make(3));
}

#[test]
fn generating_is_building_and_writing() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.onnx"), folder.path().join("b.onnx"));
    let options = ZooOptions { batch: Some(2), classes: Some(5), seed: 9 };
    for name in ["lenet", "densenet121"] {
        generate(name, &options, &a).unwrap();
        write(&build(name, &options).unwrap(), &b).unwrap();
        assert!(std::fs::read(&a).unwrap() == std::fs::read(&b).unwrap(), "{name}");
    }
}

#[test]
fn bad_names_and_options_are_refused() {
    let error = |name: &str, batch, classes| {
        build(name, &ZooOptions { batch, classes, seed: 0 }).unwrap_err().to_string()
    };
    let unknown = error("ResNet-50", None, None);
    assert!(unknown.contains("did you mean `resnet50`") && unknown.contains("lenet"), "{unknown}");
    assert!(!error("nonsense", None, None).contains("did you mean"));
    assert!(error("lenet", Some(0), None).contains("batch size"));
    assert!(error("lenet", None, Some(0)).contains("classes"));
    assert!(error("vgg16", None, Some(u64::MAX)).contains("131072"));
    assert!(error("vgg16", Some(u64::MAX), None).contains("batch size"));
}
