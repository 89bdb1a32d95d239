//! Sparse tensors of a model are read as dense ones, written where they are smaller, and
//! refused where they do not add up.

mod support;

use prost::Message;
use std::collections::BTreeMap;
use std::path::Path;
use support::build::{Dim, attr, floats, graph, import_graph, ints, model, node};
use vdnn_frontends::onnx::proto::attribute_proto::AttributeType;
use vdnn_frontends::onnx::proto::tensor_proto::{DataLocation, DataType};
use vdnn_frontends::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, SparseTensorProto, StringStringEntryProto, TensorProto,
};
use vdnn_frontends::onnx::{
    ImportOptions, Imported, import_bytes, import_file, write_with_sparse_weights, write_with_weights,
};
use vdnn_ir::Tensor;

const X: [Dim<'static>; 2] = [Dim::N(3), Dim::N(4)];

fn sparse(dims: &[i64], values: TensorProto, indices: TensorProto) -> SparseTensorProto {
    SparseTensorProto { values: Some(values), indices: Some(indices), dims: dims.to_vec() }
}

/// `x + w` with `w` sparse.
fn add(w: SparseTensorProto) -> GraphProto {
    let g = graph(&X, vec![], vec![node("Add", &["x", "w"], &["y"])], "y");
    GraphProto { sparse_initializer: vec![w], ..g }
}

fn weight(imported: &Imported, name: &str) -> Vec<f32> {
    imported.weights.tensors[name].to_f32().expect("floats")
}

fn refused(w: SparseTensorProto) -> String {
    import_graph(17, add(w)).expect_err("must be refused").to_string()
}

fn two(indices: TensorProto) -> SparseTensorProto {
    sparse(&[3, 4], floats("w", &[2], &[5.0, -7.0]), indices)
}

#[test]
fn offsets_and_coordinates_in_any_order_are_read() {
    let mut want = [0.0; 12];
    (want[1], want[11]) = (5.0, -7.0);
    let at = |indices| weight(&import_graph(17, add(two(indices))).unwrap_or_else(|e| panic!("{e}")), "w");
    assert_eq!(at(ints("", &[2], &[1, 11])), want);
    assert_eq!(at(ints("", &[2, 2], &[0, 1, 2, 3])), want);
    (want[1], want[11]) = (-7.0, 5.0);
    assert_eq!(at(ints("", &[2], &[11, 1])), want);
    // Nothing but zeros, and 16-bit floats in a typed field.
    let nothing =
        SparseTensorProto { indices: None, ..sparse(&[3, 4], floats("w", &[0], &[]), ints("", &[0], &[])) };
    assert_eq!(weight(&import_graph(17, add(nothing)).expect("zeros"), "w"), [0.0; 12]);
    let half = TensorProto {
        data_type: Some(DataType::Float16.into()),
        raw_data: None,
        int32_data: vec![0x3c00],
        ..floats("w", &[1], &[])
    };
    let imported = import_graph(17, add(sparse(&[3, 4], half, ints("", &[1], &[2])))).expect("half");
    assert_eq!(weight(&imported, "w")[..4], [0.0, 0.0, 1.0, 0.0]);
}

#[test]
fn a_constant_may_be_sparse() {
    let mut n = node("Constant", &[], &["shape"]);
    n.attribute.push(AttributeProto {
        name: Some("sparse_value".into()),
        r#type: Some(AttributeType::SparseTensor.into()),
        sparse_tensor: Some(sparse(&[2], ints("", &[1], &[-1]), ints("", &[1], &[1]))),
        ..Default::default()
    });
    // The zero keeps the first extent, -1 is what is left.
    let x = [Dim::N(3), Dim::N(2), Dim::N(2)];
    let g = graph(&x, vec![], vec![n, node("Reshape", &["x", "shape"], &["y"])], "y");
    let imported = import_graph(17, g).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(imported.graph.ty(imported.graph.outputs[0].value).dims[..], [3, 4]);
    let wrong = attr(node("Constant", &[], &["y"]), "sparse_value", support::build::Attr::Int(3));
    let text = import_graph(17, graph(&X, vec![], vec![wrong], "y")).unwrap_err().to_string();
    assert!(text.contains("not SPARSE_TENSOR"), "{text}");
}

#[test]
fn sparse_tensors_must_add_up() {
    let i = |dims: &[i64], data: &[i64]| ints("", dims, data);
    let one = || floats("w", &[1], &[1.0]);
    for (w, want) in [
        (two(i(&[2], &[1, 12])), "index 12 of a sparse tensor is outside"),
        (two(i(&[2], &[-1, 3])), "index -1 of a sparse tensor is outside"),
        (two(i(&[2, 2], &[0, 1, 1, 4])), "index [1, 4] of a sparse tensor is outside"),
        (two(i(&[2, 2], &[0, 1, -1, 1])), "index [-1, 1]"),
        (two(i(&[2], &[3, 3])), "two values at offset 3"),
        (two(i(&[2, 2], &[1, 1, 1, 1])), "two values at offset 5"),
        (two(i(&[3], &[1, 2, 3])), "have shape [3], not [2] or [2, 2]"),
        (two(i(&[2, 3], &[0; 6])), "have shape [2, 3]"),
        (two(i(&[2], &[1])), "has 8 bytes of data"),
        (two(i(&[1 << 40], &[1])), "have shape"),
        (two(floats("", &[2], &[0.0, 1.0])), "not of type INT64"),
        (sparse(&[3, 4], floats("w", &[1, 1], &[1.0]), i(&[1], &[0])), "have shape [1, 1], not [n]"),
        (sparse(&[3, 4], floats("w", &[2], &[1.0]), i(&[2], &[0, 1])), "has 4 bytes of data"),
        (sparse(&[], one(), i(&[1], &[0])), "rank 1 or more"),
        (sparse(&[3, -4], one(), i(&[1], &[0])), "negative"),
        (sparse(&[i64::MAX, 3], one(), i(&[1], &[0])), "too large"),
        (sparse(&[1 << 22, 1 << 22], one(), i(&[1], &[0])), "more than is plausible"),
        (sparse(&[0, 4], one(), i(&[1], &[0])), "outside its shape"),
        (SparseTensorProto { indices: None, ..two(i(&[2], &[0, 1])) }, "without indices"),
        (
            sparse(&[3, 4], TensorProto { data_type: Some(DataType::String.into()), ..one() }, i(&[1], &[0])),
            "STRING is not supported",
        ),
        (SparseTensorProto { values: None, ..two(i(&[2], &[0, 1])) }, "an initializer has no name"),
    ] {
        let text = refused(w);
        assert!(text.contains(want), "{want}: {text}");
    }
}

#[test]
fn all_sparse_tensors_of_a_model_share_what_they_may_take() {
    // 160 MiB each, of one value.
    let w = |name: &str| sparse(&[40, 1 << 20], floats(name, &[1], &[1.0]), ints("", &[1], &[0]));
    let sum = |names: &[&str]| {
        let nodes = names.iter().enumerate().map(|(i, n)| {
            let before = if i == 0 { "x".to_owned() } else { format!("y{i}") };
            node("Add", &[&before, n], &[&format!("y{}", i + 1)])
        });
        let x = [Dim::N(40), Dim::N(1 << 20)];
        let g = graph(&x, vec![], nodes.collect(), &format!("y{}", names.len()));
        import_graph(17, GraphProto { sparse_initializer: names.iter().map(|n| w(n)).collect(), ..g })
    };
    assert!(sum(&["a"]).is_ok());
    let text = sum(&["a", "b"]).unwrap_err().to_string();
    assert!(text.contains("initializer `b`") && text.contains("plausible"), "{text}");
}

#[test]
fn names_are_defined_once_whatever_the_form() {
    let w = || two(ints("", &[2], &[0, 1]));
    let mut g = add(w());
    g.sparse_initializer.push(w());
    assert!(import_graph(17, g).unwrap_err().to_string().contains("two initializers are named `w`"));
    let mut g = add(w());
    g.initializer.push(floats("w", &[1], &[1.0]));
    assert!(import_graph(17, g).unwrap_err().to_string().contains("two initializers are named `w`"));
    let mut g = add(w());
    g.node[0].input[1] = "vdnnc.w".into();
    g.sparse_initializer[0].values.as_mut().unwrap().name = Some("vdnnc.w".into());
    assert!(import_graph(17, g).unwrap_err().to_string().contains("reserved"));
}

fn read(path: &Path) -> ModelProto {
    ModelProto::decode(&std::fs::read(path).unwrap()[..]).unwrap()
}

fn imported(path: &Path) -> Imported {
    import_file(path, &ImportOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn weights_with_many_zeros_are_written_sparse_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    // A third of `full` is not zero: as large as dense. `bias` has one dimension.
    let full: Vec<f32> = (0..48).map(|i| if i % 3 == 0 { i as f32 + 1.0 } else { 0.0 }).collect();
    let weights = vec![
        floats("few", &[4, 12], &[1.0; 48]),
        floats("full", &[4, 12], &[1.0; 48]),
        floats("bias", &[12], &[1.0; 12]),
    ];
    let nodes = vec![
        node("MatMul", &["x", "few"], &["a"]),
        node("MatMul", &["x", "full"], &["b"]),
        node("Add", &["a", "b"], &["c"]),
        node("Add", &["c", "bias"], &["y"]),
    ];
    let mut m = model(17, graph(&X, weights, nodes, "y"));
    m.ir_version = Some(4);
    std::fs::write(path("m.onnx"), m.encode_to_vec()).unwrap();
    let mut few = [0.0f32; 48];
    (few[3], few[20], few[47]) = (1.5, -0.0, f32::MIN_POSITIVE);
    let new = BTreeMap::from([
        ("few".to_owned(), Tensor::from_f32([4, 12], &few)),
        ("full".to_owned(), Tensor::from_f32([4, 12], &full)),
        ("bias".to_owned(), Tensor::from_f32([12], &[0.0; 12])),
    ]);
    let same = |file: &Path| {
        let after = imported(file);
        for (name, tensor) in &new {
            assert_eq!(&after.weights.tensors[name].data[..], tensor.bytes(), "{name}");
        }
    };
    assert_eq!(
        write_with_sparse_weights(&path("m.onnx"), &new, &path("s.onnx")).unwrap(),
        Vec::<String>::new()
    );
    same(&path("s.onnx"));
    let written = read(&path("s.onnx"));
    assert_eq!(written.ir_version(), 6, "the first version with sparse initializers");
    let g = written.graph.unwrap();
    let [s] = &g.sparse_initializer[..] else { panic!("one is sparse: {}", g.sparse_initializer.len()) };
    assert_eq!((s.values.as_ref().unwrap().name(), &s.dims[..]), ("few", &[4, 12][..]));
    assert_eq!(s.values.as_ref().unwrap().dims, [3], "a negative zero is kept");
    assert_eq!(g.initializer.iter().map(TensorProto::name).collect::<Vec<_>>(), ["full", "bias"]);

    // What was sparse stays sparse while that is smaller; what was not does not become it.
    write_with_weights(&path("s.onnx"), &new, &path("t.onnx")).unwrap();
    same(&path("t.onnx"));
    assert_eq!(read(&path("t.onnx")).graph.unwrap().sparse_initializer.len(), 1);
    write_with_weights(&path("m.onnx"), &new, &path("d.onnx")).unwrap();
    same(&path("d.onnx"));
    assert!(read(&path("d.onnx")).graph.unwrap().sparse_initializer.is_empty());
    let filled = BTreeMap::from([("few".to_owned(), Tensor::from_f32([4, 12], &[2.0; 48]))]);
    write_with_weights(&path("s.onnx"), &filled, &path("f.onnx")).unwrap();
    assert_eq!(weight(&imported(&path("f.onnx")), "few"), [2.0; 48]);
    assert!(read(&path("f.onnx")).graph.unwrap().sparse_initializer.is_empty());
}

#[test]
fn parts_may_be_external_and_stay_in_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    let data: Vec<u8> = [5.0f32, -7.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    std::fs::write(dir.path().join("w"), data).unwrap();
    let attempt = |location: &str| {
        let values = TensorProto {
            raw_data: None,
            data_location: Some(DataLocation::External.into()),
            external_data: vec![StringStringEntryProto {
                key: Some("location".into()),
                value: Some(location.into()),
            }],
            ..floats("w", &[2], &[])
        };
        let g = add(sparse(&[3, 4], values, ints("", &[2], &[0, 5])));
        std::fs::write(&path, model(17, g).encode_to_vec()).unwrap();
        import_file(&path, &ImportOptions::default()).map_err(|e| e.to_string())
    };
    let found = attempt("w").unwrap();
    assert_eq!(weight(&found, "w")[..6], [5.0, 0.0, 0.0, 0.0, 0.0, -7.0]);
    assert_eq!(found.files.len(), 2);
    assert!(attempt("../w").unwrap_err().contains("outside the model's folder"));
    // Written elsewhere, it needs the file no more.
    attempt("w").unwrap();
    let out = dir.path().join("out.onnx");
    write_with_weights(&path, &BTreeMap::new(), &out).unwrap();
    std::fs::remove_file(dir.path().join("w")).unwrap();
    assert_eq!(weight(&imported(&out), "w")[5], -7.0);
}

#[test]
fn every_single_byte_change_is_survived() {
    let mut g = add(two(ints("", &[2], &[1, 11])));
    g.node.push(node("Add", &["y", "v"], &["z"]));
    g.sparse_initializer.push(sparse(&[3, 4], floats("v", &[1], &[2.0]), ints("", &[1, 2], &[2, 2])));
    g.output[0].name = Some("z".into());
    let bytes = model(17, g).encode_to_vec();
    let options = ImportOptions::default();
    assert!(import_bytes(bytes.clone().into(), None, &options).is_ok());
    let mut refused = 0;
    for i in 0..bytes.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff, bytes[i] ^ 1, bytes[i] ^ 8] {
            let mut changed = bytes.clone();
            changed[i] = value;
            refused += usize::from(import_bytes(changed.into(), None, &options).is_err());
        }
    }
    assert!(refused > bytes.len(), "{refused} changes of {} bytes refused", bytes.len());
}
