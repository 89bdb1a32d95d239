//! Imported networks compute what the reference results say, on the naive interpreter.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use vdnn_frontends::onnx::{ImportOptions, Imported, import_file};
use vdnn_frontends::tensors::safetensors;
use vdnn_interp::{NaiveKernels, interpret};
use vdnn_ir::{DType, Tensor};

fn params(imported: &Imported) -> BTreeMap<String, Tensor> {
    let tensor = |w: &vdnn_ir::WeightTensor| Tensor::from_bytes(w.ty.clone(), &w.data).unwrap();
    imported.weights.tensors.iter().map(|(name, w)| (name.clone(), tensor(w))).collect()
}

fn first_output(imported: &Imported, inputs: BTreeMap<String, Tensor>) -> Tensor {
    let result = interpret(&imported.graph, &inputs, &params(imported), &NaiveKernels);
    result.unwrap_or_else(|e| panic!("{e}")).outputs[&imported.graph.outputs[0].name].clone()
}

fn close(what: &str, found: &Tensor, want: &Tensor, tolerance: f64) {
    // The reference stores scalars as one element.
    assert_eq!(found.ty().elements(), want.ty().elements(), "{what}");
    let want: Vec<f64> = match want.ty().dtype {
        DType::F64 => {
            want.bytes().chunks_exact(8).map(|c| f64::from_le_bytes(c.try_into().unwrap())).collect()
        }
        _ => want.f32().iter().map(|&x| x.into()).collect(),
    };
    let largest = want.iter().fold(0f64, |m, x| m.max(x.abs()));
    for (i, (&a, &b)) in found.f32().iter().zip(&want).enumerate() {
        let error = (f64::from(a) - b).abs();
        assert!(error <= tolerance * largest, "{what}[{i}]: {a} instead of {b}, largest {largest}");
    }
}

#[test]
fn single_operators() {
    let Some(data) = support::data() else { return };
    let golden = safetensors::read(&data.join("golden/opgrad/opgrad.safetensors")).unwrap();
    for path in support::models(&data.join("golden/opgrad")) {
        let case = path.file_stem().unwrap().to_string_lossy().into_owned();
        let imported = import_file(&path, &ImportOptions::default()).unwrap_or_else(|e| panic!("{e}"));
        let graph = &imported.graph;
        let inputs = graph
            .inputs()
            .iter()
            .map(|&v| {
                let value = graph.value(v);
                (value.name.clone(), golden[&format!("{case}/{}", value.name)].clone())
            })
            .collect();
        close(&case, &first_output(&imported, inputs), &golden[&format!("{case}/y")], 1e-5);
    }
}

/// `uniform(fnv1a64("input:" + name), i, 1, 0)`.
fn noise(name: &str, dims: &[u64]) -> Tensor {
    let seed = support::fnv1a64(format!("input:{name}").as_bytes());
    let n = dims.iter().product();
    let data: Vec<f32> = (0..n).map(|i| support::uniform(seed, i, 1.0, 0.0)).collect();
    Tensor::from_f32(dims.iter().copied(), &data)
}

/// White noise over coarse noise of 32 x 32 tiles.
fn image(name: &str, dims: [u64; 4]) -> Tensor {
    let fine = support::fnv1a64(format!("input:{name}").as_bytes());
    let coarse = support::fnv1a64(format!("coarse:{name}").as_bytes());
    let [n, c, h, w] = dims;
    let mut data = Vec::new();
    for plane in 0..n * c {
        for y in 0..h {
            for x in 0..w {
                let tile = (plane * h.div_ceil(32) + y / 32) * w.div_ceil(32) + x / 32;
                let i = data.len() as u64;
                // One rounding at the end, as the recipe says.
                let value = 0.5 * support::unit(fine, i) + support::unit(coarse, tile);
                data.push(value as f32);
            }
        }
    }
    Tensor::from_f32(dims, &data)
}

#[test]
fn small_networks_in_inference_mode() {
    let Some(data) = support::data() else { return };
    for path in support::models(&data.join("golden/train")) {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let golden = safetensors::read(&path.with_extension("safetensors")).unwrap();
        let imported = import_file(&path, &ImportOptions { batch: Some(8), ..Default::default() }).unwrap();
        let input = imported.graph.value(imported.graph.inputs()[0]);
        let inputs = BTreeMap::from([(input.name.clone(), noise(&name, &input.ty.dims))]);
        close(&name, &first_output(&imported, inputs), &golden["f64.eval_logits"], 1e-5);
    }
}

fn exported(data: &Path, folder: &str, stems: &[&str]) {
    let golden = safetensors::read(&data.join("golden/infer/logits.safetensors")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for stem in stems {
        let path = support::with_weights(&data.join(folder).join(format!("{stem}.onnx")), dir.path());
        let want = &golden[*stem];
        let batch = want.ty().dims[0];
        let imported =
            import_file(&path, &ImportOptions { batch: Some(batch), ..Default::default() }).unwrap();
        let input = imported.graph.value(imported.graph.inputs()[0]);
        let dims: [u64; 4] = input.ty.dims.as_slice().try_into().unwrap();
        let inputs = BTreeMap::from([(input.name.clone(), image("infer", dims))]);
        let found = first_output(&imported, inputs);
        close(stem, &found, want, if stem.ends_with("train") { 2e-5 } else { 1e-5 });
        std::fs::remove_file(path.with_extension("weights.bin")).unwrap();
    }
}

/// One export of each kind; small networks only, for the interpreter is slow.
#[test]
fn exported_networks() {
    let Some(data) = support::data() else { return };
    exported(&data, "onnx/skel", &["squeezenet1_1.dy18"]);
}

#[test]
#[ignore = "twenty minutes on the naive interpreter"]
fn every_exported_network() {
    let Some(data) = support::data() else { return };
    let golden = safetensors::read(&data.join("golden/infer/logits.safetensors")).unwrap();
    assert!(golden.len() >= 67);
    for stem in golden.keys() {
        let folder = if stem.contains("c2op9") { "onnx/light_seeded" } else { "onnx/skel" };
        exported(&data, folder, &[stem]);
    }
}
