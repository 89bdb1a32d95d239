//! `vdnnc inspect --sparsity --input` and `vdnnc prune`.

use assert_cmd::Command;
use prost::Message;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use vdnn_frontends::onnx::{self, ImportOptions};
use vdnn_frontends::tensors::npy;
use vdnn_frontends::tensors::npz::{self, Compression};
use vdnn_ir::Tensor;
use vdnn_tests::build::{Attr, Dim, attr, floats, graph, model, node};
use vdnn_tests::data;

fn vdnnc() -> Command {
    Command::new(data::vdnnc_binary())
}

fn zoo(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(format!("{name}.onnx"));
    vdnnc().args(["zoo", name, "-o"]).arg(&path).assert().success();
    path
}

fn inspect(model: &Path, input: &Path) -> Result<Value, String> {
    let mut c = vdnnc();
    c.arg("inspect").arg(model).args(["--sparsity", "--json", "--input"]).arg(input);
    let out = c.output().expect("the command runs");
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned());
    }
    Ok(serde_json::from_slice(&out.stdout).expect("JSON"))
}

fn count(row: &Value, key: &str) -> u64 {
    row[key].as_u64().unwrap_or_else(|| panic!("no {key} in {row}"))
}

#[test]
fn zeros_behind_relus_are_counted_on_given_images() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = zoo(dir.path(), "lenet");
    let image = |n: u64, f: fn(usize) -> f32| {
        let values: Vec<f32> = (0..n as usize * 28 * 28).map(f).collect();
        Tensor::from_f32([n, 1, 28, 28], &values)
    };
    let wave = |i: usize| (i as f32 * 0.37).sin();
    let one = dir.path().join("one.npy");
    npy::write(&one, &image(1, wave)).expect("a file");
    let v = inspect(&model, &one).expect("it runs");
    let relus = v["activations"]["relus"].as_array().expect("a list").clone();
    let all = v["activations"]["all"].clone();
    assert_eq!(relus.len(), 4, "{relus:?}");
    assert_eq!(relus.iter().map(|r| count(r, "zeros")).sum::<u64>(), count(&all, "zeros"));
    assert_eq!(relus.iter().map(|r| count(r, "elements")).sum::<u64>(), count(&all, "elements"));
    let share = count(&all, "zeros") as f64 / count(&all, "elements") as f64;
    assert!((0.2..0.8).contains(&share), "random weights make some zero: {share}");

    // Two images in an archive: twice the elements; images of zeros have other zeros.
    let two = dir.path().join("two.npz");
    let arrays = BTreeMap::from([
        ("input".to_owned(), image(2, wave)),
        ("label".to_owned(), Tensor::from_f32([2], &[0.0, 1.0])),
    ]);
    npz::write(&two, &arrays, Compression::Stored).expect("a file");
    let v = inspect(&model, &two).expect("it runs");
    assert_eq!(count(&v["activations"]["all"], "elements"), 2 * count(&all, "elements"));
    npy::write(&one, &image(1, |_| 0.0)).expect("a file");
    let v = inspect(&model, &one).expect("it runs");
    assert_ne!(count(&v["activations"]["all"], "zeros"), count(&all, "zeros"));

    // As many elements in another shape are not what the model takes.
    let wrong = Tensor::from_f32([1, 28, 28, 1], &[0.5; 28 * 28]);
    npy::write(&one, &wrong).expect("a file");
    let message = inspect(&model, &one).expect_err("another shape");
    assert!(
        message.contains("the input is f32[1, 28, 28, 1]") || message.contains("the input is f32[1,28,28,1]"),
        "{message}"
    );
    npz::write(
        &two,
        &BTreeMap::from([("a".to_owned(), wrong.clone()), ("b".to_owned(), wrong)]),
        Compression::Stored,
    )
    .expect("a file");
    assert!(inspect(&model, &two).expect_err("no input").contains("no array `input`"));
}

#[test]
fn a_trained_densenet_has_half_its_feature_maps_zero() {
    let Some(model) = data::shared("pretrained/densenet169.onnx") else { return };
    let Some(images) = data::shared("pretrained/densenet169.reference.npz") else { return };
    let v = inspect(&model, &images).expect("it runs");
    let a = &v["activations"];
    assert_eq!(a["relus"].as_array().map(Vec::len), Some(RELUS), "{a}");
    assert_eq!(count(&a["all"], "elements"), 76_091_904, "four images");
    let share = count(&a["all"], "zeros") as f64 / count(&a["all"], "elements") as f64;
    assert!((0.51..0.52).contains(&share), "{share}");
    let ratio = a["all"]["ratio"].as_f64().expect("a number");
    assert!((1.9..2.0).contains(&ratio), "{ratio}");
}

/// Two in each of 82 dense layers, one in each of three transitions, the stem's and the last.
const RELUS: usize = 2 * 82 + 3 + 2;

#[test]
fn a_pruned_model_may_hold_its_weights_sparse() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = zoo(dir.path(), "resnet18");
    let prune = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let mut c = vdnnc();
        c.arg("prune").arg(&model).args(["--sparsity", "0.9"]).args(more).arg("-o").arg(&out);
        c.assert().success();
        out
    };
    let (dense, sparse) = (prune("dense.onnx", &[]), prune("sparse.onnx", &["--sparse-initializers"]));
    let size = |p: &Path| std::fs::metadata(p).expect("a file").len();
    assert!(size(&sparse) * 3 < size(&dense), "{} and {}", size(&sparse), size(&dense));
    let run = |model: &Path| {
        let out = dir.path().join("y.npz");
        let mut c = vdnnc();
        c.arg("run")
            .arg(model)
            .args(["--mode", "infer", "--batch", "1", "--synthetic", "--output"])
            .arg(&out);
        c.assert().success();
        npz::read(&out).expect("outputs")
    };
    assert_eq!(run(&dense), run(&sparse));
    // A tool that writes the model anew keeps the form.
    let again = dir.path().join("again.onnx");
    vdnnc().arg("prune").arg(&sparse).args(["--sparsity", "0.95", "-o"]).arg(&again).assert().success();
    assert!(size(&again) < size(&sparse));
}

/// A model of three convolutions with these biases, of which `scale` is also the factor of the
/// batch norm behind the second.
fn three(dir: &Path, biases: [&str; 3], scale: &str) -> PathBuf {
    let wave = |n: usize| (0..n).map(|i| (i as f32 * 0.71).sin()).collect::<Vec<f32>>();
    let filters = |name: &str, m: i64, c: i64| {
        let data = wave((m * c * 9) as usize);
        floats(name, &[m, c, 3, 3], &data)
    };
    let mut weights = vec![filters("w0", 4, 2), filters("w1", 4, 4), filters("w2", 4, 4)];
    let vectors: std::collections::BTreeSet<&str> =
        biases.into_iter().chain([scale, "shift", "mean", "var"]).collect();
    weights.extend(vectors.into_iter().map(|name| floats(name, &[4], &[0.5, 1.0, 1.5, 2.0])));
    let conv = |x: &str, i: usize, y: &str| {
        attr(node("Conv", &[x, &format!("w{i}"), biases[i]], &[y]), "pads", Attr::Ints(&[1, 1, 1, 1]))
    };
    let nodes = vec![
        conv("x", 0, "c0"),
        node("Relu", &["c0"], &["r0"]),
        conv("r0", 1, "c1"),
        node("BatchNormalization", &["c1", scale, "shift", "mean", "var"], &["n1"]),
        node("Relu", &["n1"], &["r1"]),
        conv("r1", 2, "y"),
    ];
    let path = dir.join("three.onnx");
    let shape = [Dim::N(1), Dim::N(2), Dim::N(5), Dim::N(5)];
    std::fs::write(&path, model(15, graph(&shape, weights, nodes, "y")).encode_to_vec()).expect("a file");
    path
}

#[test]
fn pruned_filters_leave_vectors_that_others_use() {
    let dir = tempfile::tempdir().expect("a folder");
    let pruned = |biases, scale| {
        let model = three(dir.path(), biases, scale);
        let out = dir.path().join("pruned.onnx");
        let mut c = vdnnc();
        c.arg("prune").arg(&model).args(["--method", "channel", "--sparsity", "0.5", "--keep", "w2", "-o"]);
        let done = c.arg(&out).output().expect("the command runs");
        let says = String::from_utf8(done.stderr).expect("text");
        assert!(done.status.success(), "{says}");
        let weights = onnx::import_file(&out, &ImportOptions::default()).expect("a model").weights;
        let zeros = move |name: &str| {
            let values = weights.tensors[name].to_f32().expect("floats");
            values.iter().filter(|v| **v == 0.0).count()
        };
        (zeros, says)
    };
    let (zeros, says) = pruned(["b0", "b1", "b2"], "scale");
    assert_eq!(["b0", "b1", "b2", "scale", "shift"].map(zeros), [2, 2, 0, 2, 2]);
    assert_eq!(says, "");
    // One bias for all: pruning two layers must not change the third.
    let (zeros, says) = pruned(["b0", "b0", "b0"], "scale");
    assert_eq!(["w0", "w1", "b0", "scale", "shift"].map(zeros), [36, 72, 0, 2, 2]);
    assert!(says.contains("`b0` is left as it is") && !says.contains("scale"), "{says}");
    // A factor that is a bias elsewhere.
    let (zeros, says) = pruned(["b0", "b1", "b2"], "b2");
    assert_eq!(["b0", "b1", "b2", "shift"].map(zeros), [2, 2, 0, 2]);
    assert!(says.contains("`b2` is left as it is"), "{says}");
}
