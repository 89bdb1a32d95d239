//! Every exported file imports, plans at batch 1, 3 and 8 and computes the reference
//! logits; the pretrained nets classify the given images.

use std::collections::BTreeMap;
use vdnn_ir::{Mode, Tensor};
use vdnn_passes::{AlgoMode, Policy};
use vdnn_runtime::cpu::CpuOptions;
use vdnn_tests::data::{self, difference, magnitude};
use vdnn_tests::{golden, harness};

/// Runs one stem at `batch` and returns its first output.
fn logits(imported: &vdnn_frontends::onnx::Imported, batch: u64, policy: Policy) -> Tensor {
    let options = harness::options(Mode::Infer, policy, AlgoMode::Dynamic);
    let plan = harness::compile(&imported.graph, batch, &options).plan;
    let inputs = golden::logits_inputs(&plan);
    let output = plan.outputs[0].name.clone();
    let mut executor = harness::executor(plan, &harness::params(imported), CpuOptions::default());
    executor.step(&inputs).expect("a step").remove(&output).expect("the logits")
}

fn check_folder(folder: &str, part: usize, parts: usize) {
    let (Some(folder), Some(golden)) =
        (data::shared(folder), data::shared("golden/infer/logits.safetensors"))
    else {
        return;
    };
    let references = data::golden(&golden);
    let mut failures = Vec::new();
    for stem in data::stems(&folder).into_iter().skip(part).step_by(parts) {
        let skeleton = data::Skeleton::new(&folder, &stem);
        let path = skeleton.path();
        let import = |batch| {
            let options =
                vdnn_frontends::onnx::ImportOptions { batch, dims: BTreeMap::new(), training: false };
            vdnn_frontends::onnx::import_file(&path, &options)
        };
        let own = import(None).unwrap_or_else(|e| panic!("{stem}: {e}")).batch;
        let symbolic = import(Some(own + 1)).is_ok();
        let batches: &[u64] = if symbolic { &[1, 3, 8] } else { &[own] };
        for &batch in batches {
            let imported = import(Some(batch)).unwrap_or_else(|e| panic!("{stem} at batch {batch}: {e}"));
            for mode in [Mode::Infer, Mode::Train] {
                harness::compile(
                    &imported.graph,
                    batch,
                    &harness::options(mode, Policy::Dyn, AlgoMode::Dynamic),
                );
            }
        }
        let Some((dims, want)) = references.get(&stem) else { continue };
        let imported = import(symbolic.then_some(dims[0])).expect("it imported before");
        let got = logits(&imported, dims[0], Policy::None);
        failures.extend(golden::judge_logits(&stem, &got, want).failures);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

// In parts, so that the test runner can spread them over the cores.
#[test]
fn exported_models_match_the_reference_part_1() {
    check_folder("onnx/skel", 0, 4);
}

#[test]
fn exported_models_match_the_reference_part_2() {
    check_folder("onnx/skel", 1, 4);
}

#[test]
fn exported_models_match_the_reference_part_3() {
    check_folder("onnx/skel", 2, 4);
}

#[test]
fn exported_models_match_the_reference_part_4() {
    check_folder("onnx/skel", 3, 4);
}

#[test]
fn caffe2_era_models_match_the_reference() {
    check_folder("onnx/light_seeded", 0, 1);
}

/// Real trained weights: logits within 1e-5, the expected number of images right, the same
/// bytes whatever the policy, and training plans at batch 32 under every policy.
fn check_pretrained(name: &str, preprocess: fn(u8, usize) -> f32, bgr: bool, right: usize) {
    let (Some(model), Some(reference), Some(images)) = (
        data::shared(&format!("pretrained/{name}.onnx")),
        data::shared(&format!("pretrained/{name}.reference.npz")),
        data::shared("pretrained/images.npz"),
    ) else {
        return;
    };
    let reference = vdnn_frontends::tensors::npz::read(&reference).expect("the reference");
    let images = vdnn_frontends::tensors::npz::read(&images).expect("the images");
    let (rgb, label) =
        (&images["rgb"], vdnnc::commands::dataset::integers(&images["label"]).expect("labels"));
    let [n, h, w, _] = rgb.ty().dims.as_slice().try_into().expect("N,H,W,3");
    let mut x = Vec::with_capacity((n * h * w * 3) as usize);
    for image in rgb.bytes().chunks_exact((h * w * 3) as usize) {
        for c in 0..3 {
            let source = if bgr { 2 - c } else { c };
            x.extend(image.chunks_exact(3).map(|p| preprocess(p[source], c)));
        }
    }
    let first = reference["input"].f32();
    assert!(
        x.iter().zip(first).all(|(a, b)| (a - b).abs() <= 1e-4 * b.abs().max(1.0)),
        "{name}: the preprocessing is not the reference's"
    );
    let imported = harness::import(&model, Some(n), false);
    let mut bytes: Option<Tensor> = None;
    for policy in [Policy::None, Policy::All] {
        let options = harness::options(Mode::Infer, policy, AlgoMode::Dynamic);
        let plan = harness::compile(&imported.graph, n, &options).plan;
        let inputs = BTreeMap::from([(plan.inputs[0].name.clone(), Tensor::from_f32([n, 3, h, w], &x))]);
        let output = plan.outputs.iter().find(|o| o.name == "logits").map_or(0, |_| 0);
        let output = plan.outputs[output].name.clone();
        let mut executor = harness::executor(plan, &harness::params(&imported), CpuOptions::default());
        let outputs = executor.step(&inputs).expect("a step");
        let key = if outputs.contains_key("logits") { "logits".to_owned() } else { output };
        let got = &outputs[&key];
        if let Some(b) = &bytes {
            assert!(b == got, "{name}: policies differ");
        }
        bytes = Some(got.clone());
        let want: Vec<f64> = reference["logits"].f32().iter().map(|&v| f64::from(v)).collect();
        let (d, m) = (difference(got.f32(), &want), magnitude(&want));
        assert!(d <= 1e-5 * m, "{name}: logits off by {d:e} of {m:e}");
        let classes = (got.ty().elements() / n) as usize;
        let correct = got
            .f32()
            .chunks_exact(classes)
            .zip(&label)
            .filter(|(row, l)| {
                let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |m| m.0);
                best as i64 == **l
            })
            .count();
        assert_eq!(correct, right, "{name}: images right");
    }
    let training = harness::import(&model, Some(32), true);
    for policy in harness::POLICIES {
        harness::compile(&training.graph, 32, &harness::options(Mode::Train, policy, AlgoMode::Dynamic));
    }
}

#[test]
fn densenet169_classifies_the_images() {
    fn normalise(byte: u8, c: usize) -> f32 {
        (f32::from(byte) / 255.0 - [0.485, 0.456, 0.406][c]) / [0.229, 0.224, 0.225][c]
    }
    check_pretrained("densenet169", normalise, false, 15);
}

#[test]
fn resnet50_conv4_classifies_the_images() {
    fn subtract(byte: u8, c: usize) -> f32 {
        f32::from(byte) - [103.939, 116.779, 123.68][c]
    }
    check_pretrained("resnet50-conv4", subtract, true, 13);
}
