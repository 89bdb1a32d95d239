//! Models written back with other weights.

mod support;

use prost::Message;
use std::collections::BTreeMap;
use std::path::Path;
use support::build::{Dim, floats, graph, model, node};
use vdnn_frontends::onnx::proto::tensor_proto::{DataLocation, DataType};
use vdnn_frontends::onnx::proto::{ModelProto, TensorProto};
use vdnn_frontends::onnx::{ExportError, ImportOptions, Imported, import_file, write_with_weights};
use vdnn_ir::{Tensor, TensorType};

fn read(path: &Path) -> ModelProto {
    ModelProto::decode(&std::fs::read(path).unwrap()[..]).unwrap()
}

fn import(path: &Path) -> Imported {
    import_file(path, &ImportOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// Every weight plus one.
fn moved(imported: &Imported) -> BTreeMap<String, Tensor> {
    imported
        .weights
        .tensors
        .iter()
        .map(|(name, w)| {
            let data: Vec<f32> = w.to_f32().unwrap().iter().map(|x| x + 1.0).collect();
            (name.clone(), Tensor::from_f32(w.ty.dims.iter().copied(), &data))
        })
        .collect()
}

#[test]
fn a_network_keeps_everything_but_its_weights() {
    let Some(data) = support::data() else { return };
    let dir = tempfile::tempdir().unwrap();
    let original = data.join("golden/train/resnet_small.onnx");
    let out = dir.path().join("out.onnx");
    let before = import(&original);
    let new = moved(&before);
    assert_eq!(write_with_weights(&original, &new, &out).unwrap(), Vec::<String>::new());
    let after = import(&out);
    assert_eq!(after.weights.tensors.keys().collect::<Vec<_>>(), new.keys().collect::<Vec<_>>());
    for (name, tensor) in &new {
        assert_eq!(&after.weights.tensors[name].data[..], tensor.bytes(), "{name}");
    }
    let strip = |path: &Path| {
        let mut m = read(path);
        m.graph.as_mut().unwrap().initializer.iter_mut().for_each(|t| {
            t.raw_data = None;
            t.float_data.clear();
        });
        m
    };
    assert_eq!(strip(&original), strip(&out));
    // Over itself, and back to where it was.
    let old = before
        .weights
        .tensors
        .iter()
        .map(|(n, w)| (n.clone(), Tensor::from_bytes(w.ty.clone(), &w.data).unwrap()))
        .collect();
    write_with_weights(&out, &old, &out).unwrap();
    for (name, w) in &before.weights.tensors {
        assert_eq!(import(&out).weights.tensors[name].data, w.data, "{name}");
    }
}

#[test]
fn external_data_moves_into_the_file() {
    let Some(data) = support::data() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = support::with_weights(&data.join("onnx/skel/squeezenet1_1.ts17.onnx"), dir.path());
    let out = dir.path().join("sub.onnx");
    let before = import(&path);
    let (first, weight) = before.weights.tensors.iter().next().unwrap();
    let zeros = Tensor::zeros(weight.ty.clone());
    write_with_weights(&path, &BTreeMap::from([(first.clone(), zeros)]), &out).unwrap();
    std::fs::remove_file(path.with_extension("weights.bin")).unwrap();
    let after = import(&out);
    assert_eq!(after.files, [out]);
    for (name, w) in &before.weights.tensors {
        let same = after.weights.tensors[name].data == w.data;
        assert_eq!(same, name != first, "{name}");
    }
}

#[test]
fn weights_keep_their_stored_type_and_names_that_are_not_there_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("m.onnx"), dir.path().join("o.onnx"));
    let half = TensorProto {
        data_type: Some(DataType::Float16.into()),
        int32_data: vec![0; 8],
        raw_data: None,
        ..floats("h", &[8], &[])
    };
    let nodes = vec![node("Add", &["x", "h"], &["y"])];
    std::fs::write(&path, model(17, graph(&[Dim::N(1), Dim::N(8)], vec![half], nodes, "y")).encode_to_vec())
        .unwrap();
    let ones = || Tensor::from_f32([8], &[1.0; 8]);
    let new = BTreeMap::from([("h".to_owned(), ones()), ("other".to_owned(), ones())]);
    assert_eq!(write_with_weights(&path, &new, &out).unwrap(), ["other"]);
    let stored = &read(&out).graph.unwrap().initializer[0];
    assert_eq!(stored.data_type(), DataType::Float16 as i32);
    assert_eq!(stored.raw_data(), [0x00, 0x3c].repeat(8));
    assert!(stored.int32_data.is_empty());
    assert_eq!(stored.data_location(), DataLocation::Default);

    let wrong = BTreeMap::from([("h".to_owned(), Tensor::from_f32([4], &[1.0; 4]))]);
    let error = write_with_weights(&path, &wrong, &out).unwrap_err();
    assert_eq!(error.to_string(), "the new weight `h` is f32[4], the model has FLOAT16[8]");
    let labels = BTreeMap::from([("h".to_owned(), Tensor::zeros(TensorType::new(vdnn_ir::DType::I64, [8])))]);
    assert!(matches!(write_with_weights(&path, &labels, &out), Err(ExportError::Mismatch { .. })));
    assert!(matches!(
        write_with_weights(&dir.path().join("none"), &new, &out),
        Err(ExportError::Read { .. })
    ));
}

#[test]
fn a_merged_initializer_is_separated_when_training_made_it_two() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("m.onnx"), dir.path().join("o.onnx"));
    let nodes = vec![
        node("Identity", &["one"], &["mean"]),
        node("Identity", &["one"], &["var"]),
        node("BatchNormalization", &["x", "one", "one", "mean", "var"], &["y"]),
    ];
    let x = [Dim::N(1), Dim::N(3), Dim::N(2), Dim::N(2)];
    let m = model(17, graph(&x, vec![floats("one", &[3], &[1.0; 3])], nodes, "y"));
    std::fs::write(&path, m.encode_to_vec()).unwrap();
    let new: BTreeMap<String, Tensor> = [("one", 2.0), ("mean", 3.0), ("var", 4.0)]
        .map(|(n, x)| (n.to_owned(), Tensor::from_f32([3], &[x; 3])))
        .into();
    assert_eq!(write_with_weights(&path, &new, &out).unwrap(), Vec::<String>::new());
    let after = import(&out);
    for (name, tensor) in &new {
        assert_eq!(&after.weights.tensors[name].data[..], tensor.bytes(), "{name}");
    }
    assert_eq!(read(&out).graph.unwrap().node.len(), 1);
}
