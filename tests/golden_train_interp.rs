//! The joint graph of autodiff, run by the naive interpreter, matches the f64 references of
//! `golden/train`: losses, gradients, and weights and statistics after five steps.

use std::collections::{BTreeMap, BTreeSet};
use vdnn_cost::{CostModel, Precision};
use vdnn_frontends::onnx::{ImportOptions, import_file};
use vdnn_interp::{NaiveKernels, interpret};
use vdnn_ir::Tensor;
use vdnn_passes::autodiff::{Autodiff, HYPER, LABELS, LOSS};
use vdnn_passes::pass::{PassCtx, run_pass};
use vdnn_passes::simplify::Simplify;
use vdnn_tests::data;

const BATCH: u64 = 8;
const CLASSES: u64 = 10;
const NETS: [&str; 4] = ["alexnet_small", "densenet_small", "resnet_small", "vgg_small"];

#[test]
fn alexnet_small_trains_like_the_reference() {
    check(NETS[0]);
}

#[test]
fn densenet_small_trains_like_the_reference() {
    check(NETS[1]);
}

#[test]
fn resnet_small_trains_like_the_reference() {
    check(NETS[2]);
}

#[test]
fn vgg_small_trains_like_the_reference() {
    check(NETS[3]);
}

fn check(net: &str) {
    let Some(path) = data::shared(&format!("golden/train/{net}.onnx")) else { return };
    let golden = data::golden(&path.with_extension("safetensors"));
    let options = ImportOptions { batch: Some(BATCH), dims: BTreeMap::new(), training: true };
    let imported = import_file(&path, &options).unwrap_or_else(|e| panic!("{net}: {e}"));
    let mut graph = imported.graph;
    let cost = CostModel::named("h200", Precision::F32).expect("the profile");
    let cx = PassCtx { cost: &cost };
    run_pass(&Simplify, &mut graph, &cx).expect("simplify");
    run_pass(&Autodiff { keep_gradients: true }, &mut graph, &cx).expect("autodiff");

    let image = graph.inputs()[0];
    let mut inputs = BTreeMap::from([
        (graph.value(image).name.clone(), data::model_input(net, &graph.ty(image).dims)),
        (LABELS.to_owned(), data::labels(BATCH, CLASSES, &format!("labels:{net}"))),
        (HYPER.to_owned(), Tensor::from_f32([3], &[0.01, 0.9, 0.0])),
    ]);
    if graph.inputs().iter().any(|&v| graph.value(v).name == vdnn_passes::autodiff::STEP) {
        inputs.insert(vdnn_passes::autodiff::STEP.to_owned(), Tensor::from_i64([], &[0]));
    }
    let mut params: BTreeMap<String, Tensor> = imported
        .weights
        .tensors
        .iter()
        .map(|(name, w)| (name.clone(), Tensor::from_bytes(w.ty.clone(), &w.data).expect("a whole tensor")))
        .collect();

    let mut losses = Vec::new();
    let mut compared = BTreeSet::new();
    for step in 0..6 {
        let result = interpret(&graph, &inputs, &params, &NaiveKernels).expect("the step runs");
        losses.push(result.outputs[LOSS].f32()[0]);
        if step == 0 {
            gradients(net, &golden, &result.outputs, &mut compared);
            state(net, &golden, "step1.", &result.params, &mut compared);
        }
        if step == 4 {
            state(net, &golden, "step5.", &result.params, &mut compared);
        }
        params = result.params;
    }
    for (step, (&got, &want)) in losses.iter().zip(&golden["f64.loss"].1).enumerate() {
        let error = (f64::from(got) - want).abs() / want.abs();
        assert!(error <= 1e-5, "{net}: loss {step} is {got}, the reference {want}");
    }
    let expected: BTreeSet<&str> = golden
        .keys()
        .filter_map(|k| k.strip_prefix("f64."))
        .filter(|k| k.starts_with("grad.") || k.starts_with("step1.") || k.starts_with("step5."))
        .collect();
    let missed: Vec<&&str> = expected.iter().filter(|k| !compared.contains(**k)).collect();
    assert!(missed.is_empty(), "{net}: nothing compared with {missed:?}");
}

type Golden = BTreeMap<String, (Vec<u64>, Vec<f64>)>;

/// `|g - ref| <= 1e-6 * largest gradient of the net + 1e-4 * largest of the tensor`.
fn gradients(
    net: &str,
    golden: &Golden,
    outputs: &BTreeMap<String, Tensor>,
    compared: &mut BTreeSet<String>,
) {
    let all = golden.iter().filter(|(k, _)| k.starts_with("f64.grad."));
    let largest = all.map(|(_, (_, v))| data::magnitude(v)).fold(0.0, f64::max);
    for (name, tensor) in outputs {
        let Some(param) = name.strip_prefix("grad:") else { continue };
        let key = format!("grad.{param}");
        let (_, want) = golden.get(&format!("f64.{key}")).unwrap_or_else(|| panic!("{net}: no {key}"));
        let error = data::difference(tensor.f32(), want);
        let bar = 1e-6 * largest + 1e-4 * data::magnitude(want);
        assert!(error <= bar, "{net}: gradient of {param} is off by {error:.2e}, allowed {bar:.2e}");
        compared.insert(key);
    }
}

/// Weights and statistics within 1e-4 of the tensor's largest magnitude.
fn state(
    net: &str,
    golden: &Golden,
    prefix: &str,
    params: &BTreeMap<String, Tensor>,
    compared: &mut BTreeSet<String>,
) {
    for (name, tensor) in params {
        let key = format!("{prefix}{name}");
        let Some((_, want)) = golden.get(&format!("f64.{key}")) else { continue };
        let error = data::difference(tensor.f32(), want);
        let bar = 1e-4 * data::magnitude(want);
        assert!(error <= bar, "{net}: {key} is off by {error:.2e}, allowed {bar:.2e}");
        compared.insert(key);
    }
}
