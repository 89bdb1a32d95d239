//! `vdnnc reproduce cusnn` without a GPU, `--algo only=NAME`, and what `bench --energy` refuses.

use assert_cmd::Command;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use vdnn_frontends::tensors::npz::{self, Compression};
use vdnn_ir::{DType, Tensor, TensorType};
use vdnn_tests::data;

fn vdnnc(args: &[&str]) -> Command {
    let mut c = Command::new(data::vdnnc_binary());
    c.args(args);
    c
}

fn path(p: &Path) -> &str {
    p.to_str().expect("UTF-8")
}

/// The models of the report, of a run that counts zeros only.
fn cusnn(args: &[&str]) -> Vec<Value> {
    let mut c = vdnnc(&["reproduce", "cusnn", "--json", "--backend", "cpu"]);
    let out = c.args(args).assert().success();
    let v: Value = serde_json::from_slice(&out.get_output().stdout).expect("JSON");
    v["models"].as_array().expect("a list").clone()
}

fn stderr(mut c: Command) -> String {
    String::from_utf8(c.assert().code(1).get_output().stderr.clone()).expect("UTF-8")
}

fn archive(file: &Path, name: &str, tensor: Tensor) {
    npz::write(file, &BTreeMap::from([(name.to_owned(), tensor)]), Compression::Stored).expect("a file");
}

fn number(v: &Value, key: &str) -> f64 {
    v[key].as_f64().unwrap_or_else(|| panic!("no {key} in {v}"))
}

#[test]
fn zeros_in_front_of_3x3_convolutions_are_counted_on_given_images() {
    let dir = tempfile::tempdir().expect("a folder");
    let images = dir.path().join("images.npz");
    let pixels: Vec<u8> =
        (0..2 * 224 * 224 * 3u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let ty = |n| TensorType::new(DType::U8, [n, 224, 224, 3]);
    archive(&images, "rgb", Tensor::from_bytes(ty(2), &pixels).expect("as many bytes"));
    let model = dir.path().join("resnet18.onnx");
    vdnnc(&["zoo", "resnet18", "-o", path(&model)]).assert().success();
    let svg = dir.path().join("figures");
    let found = cusnn(&[path(&model), "--images", path(&images), "--svg", path(&svg)]);
    let [v] = found.as_slice() else { panic!("one model: {found:?}") };
    assert_eq!((v["images"].as_u64(), v["preprocess"].as_str()), (Some(2), Some("torch")), "{v}");
    assert_eq!(v["skipped"], "--backend cpu");
    // All but the stem's and the first of the stages that halve the image.
    let layers = v["layers"].as_array().expect("a list");
    let sizes: Vec<u64> = layers.iter().map(|l| l["size"].as_u64().expect("a size")).collect();
    assert_eq!(sizes, [56, 56, 56, 56, 28, 28, 28, 14, 14, 14, 7, 7, 7]);
    assert_eq!(layers[0]["elements"].as_u64(), Some(2 * 64 * 56 * 56));
    // The first reads what a pool found largest.
    assert!(number(&layers[0], "zero_share") < 0.1, "{layers:?}");
    assert!(layers[1..].iter().filter(|l| number(l, "zero_share") > 0.4).count() >= 10, "{layers:?}");
    let of_first: f64 = layers[..4].iter().map(|l| number(l, "zero_share")).sum::<f64>() / 4.0;
    let by_size = v["zero_share_by_size"].as_array().expect("a list");
    assert_eq!((by_size.len(), by_size[0]["layers"].as_u64()), (4, Some(4)));
    assert!((number(&by_size[0], "mean") - of_first).abs() < 1e-12);
    let picture = std::fs::read_to_string(svg.join("cusnn-resnet18.svg")).expect("a picture");
    assert_eq!(picture.matches("<rect").count(), layers.len());

    // What the others read is a ReLU's result, as `inspect` counts it.
    let relus = v["relus"]["relus"].as_array().expect("a list");
    let zeros = |l: &Value| (l["zeros"].as_u64(), l["elements"].as_u64());
    assert!(layers[1..].iter().all(|l| relus.iter().any(|r| zeros(r) == zeros(l))), "{v}");

    // Less of them, and fed as cuSNN's program does.
    let raw = cusnn(&[path(&model), "--images", path(&images), "--limit", "1", "--preprocess", "raw"]);
    assert_eq!((raw[0]["images"].as_u64(), raw[0]["preprocess"].as_str()), (Some(1), Some("raw")));
    assert_eq!(raw[0]["layers"][0]["elements"].as_u64(), Some(64 * 56 * 56));
    assert_ne!(raw[0]["layers"][0]["zero_share"], layers[0]["zero_share"]);

    // As text, with a GPU wished for: this part is done whether there is one or not.
    let out =
        vdnnc(&["reproduce", "cusnn", path(&model), "--images", path(&images), "--backend", "cpu"]).assert();
    let text = String::from_utf8(out.success().get_output().stdout.clone()).expect("UTF-8");
    assert!(
        text.contains("inputs of  4 3x3 convolutions at  56:") && text.contains("skipped: --backend cpu"),
        "{text}"
    );

    // Images of another size, or none.
    archive(&images, "rgb", Tensor::from_bytes(ty(1), &pixels[..224 * 224 * 3]).expect("as many bytes"));
    let lenet = vdnnc(&["reproduce", "cusnn", "lenet", "--images", path(&images), "--backend", "cpu"]);
    assert!(stderr(lenet).contains("the model's input is f32[1,1,28,28]"));
    archive(&images, "pixels", Tensor::from_f32([1], &[0.0]));
    let none = vdnnc(&["reproduce", "cusnn", "lenet", "--images", path(&images), "--backend", "cpu"]);
    assert!(stderr(none).contains("no u8 array `rgb`"));
    assert!(stderr(vdnnc(&["reproduce", "cusnn", "--backend", "cpu"])).contains("--data"));
    assert!(stderr(vdnnc(&["reproduce", "vdnn", "lenet"])).contains("takes neither models nor images"));
}

#[test]
fn a_network_without_such_layers_is_no_error() {
    let found = cusnn(&["lenet"]);
    assert_eq!(found[0]["layers"].as_array().map(Vec::len), Some(0));
    assert_eq!(found[0]["images"].as_u64(), Some(1), "random pixels");
}

/// Means over the layers of a stage that were counted on 40 photos of the same set; 16 of them
/// differ by less than 0.01.
const STAGES: [(&str, &[(u64, f64)]); 2] = [
    ("densenet169", &[(56, 0.500), (28, 0.678), (14, 0.739), (7, 0.863)]),
    ("resnet50-conv4", &[(56, 0.465), (28, 0.629), (14, 0.727)]),
];

#[test]
fn trained_networks_have_the_zeros_they_are_known_to_have() {
    let Some(images) = data::shared("pretrained/images.npz") else { return };
    let folder = images.parent().expect("a folder");
    let all = cusnn(&["--data", path(folder)]);
    assert_eq!(all.len(), STAGES.len());
    for (v, (name, stages)) in all.iter().zip(STAGES) {
        assert_eq!((v["model"].as_str(), v["images"].as_u64()), (Some(name), Some(16)));
        let found = v["zero_share_by_size"].as_array().expect("a list");
        assert_eq!(found.len(), stages.len());
        for (row, (size, share)) in found.iter().zip(stages) {
            assert_eq!(row["size"].as_u64(), Some(*size));
            assert!((number(row, "mean") - share).abs() < 0.01, "{name}: {row}, not {share}");
        }
    }
}

#[test]
fn our_preprocessing_is_the_references() {
    let Some(images) = data::shared("pretrained/images.npz") else { return };
    let folder = images.parent().expect("a folder");
    for (name, _) in STAGES {
        let reference = folder.join(format!("{name}.reference.npz"));
        let data = ["--data", path(folder)];
        let theirs = &cusnn(&[&[name, "--images", path(&reference)], &data[..]].concat())[0];
        let ours = &cusnn(&[&[name, "--limit", "4"], &data[..]].concat())[0];
        assert_eq!((theirs["preprocess"].as_str(), theirs["images"].as_u64()), (Some("as given"), Some(4)));
        let of = |v: &Value| number(&v["relus"]["all"], "zeros") / number(&v["relus"]["all"], "elements");
        assert!((of(theirs) - of(ours)).abs() < 1e-6, "{name}: {} and {}", of(theirs), of(ours));
    }
    let raw = &cusnn(&["densenet169", "--limit", "1", "--preprocess", "raw", "--data", path(folder)])[0];
    let right = &cusnn(&["densenet169", "--limit", "1", "--data", path(folder)])[0];
    let first = |v: &Value| number(&v["zero_share_by_size"][0], "mean");
    assert!(first(raw) > first(right) + 0.1, "{} and {}", first(raw), first(right));
}

#[test]
fn one_algorithm_for_every_convolution() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, plan) = (dir.path().join("m.onnx"), dir.path().join("m.vplan"));
    vdnnc(&["zoo", "resnet18", "-o", path(&model)]).assert().success();
    let compile = |algo: &str, mode: &str| {
        vdnnc(&[path(&model), "--mode", mode, "--algo", algo, "--batch", "2", "-o", path(&plan)])
    };
    compile("only=implicit_precomp_gemm", "infer").assert().success();
    let text = std::fs::read_to_string(&plan).expect("a plan");
    assert!(text.contains("algo \"only=implicit_precomp_gemm\""));
    let convs: Vec<&str> = text.lines().filter(|l| l.contains(" conv(")).collect();
    assert_eq!(convs.len(), 20);
    // The table of measured times that comes with the profile names engines only.
    assert!(convs.iter().all(|l| l.contains("algo=implicit_precomp_gemm")), "{convs:?}");
    vdnnc(&["run", path(&plan), "--synthetic"]).assert().success();
    vdnnc(&["check", path(&plan)]).assert().success();
    compile("only=implicit_gemm", "train").assert().success();

    let refused = stderr(compile("only=gemm", "train"));
    assert!(refused.contains("--algo only=gemm cannot run this convolution"), "{refused}");
    assert!(refused.contains("node n") && refused.contains('`'), "it names the convolution: {refused}");
    let unknown =
        String::from_utf8(compile("only=magic", "infer").assert().failure().get_output().stderr.clone());
    assert!(unknown.expect("UTF-8").contains("winograd_nonfused"), "it lists what there is");
}

#[test]
fn energy_is_a_gpus() {
    let text = stderr(vdnnc(&["bench", "lenet", "--mode", "infer", "--backend", "cpu", "--energy"]));
    assert!(
        text.contains("--energy reads the counter of a GPU") && text.contains("--backend cuda"),
        "{text}"
    );
}
