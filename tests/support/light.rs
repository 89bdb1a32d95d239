//! The suite's light models: real topologies whose weights are one constant each.
//!
//! A light model computes its weights by ConstantOfShape, so nothing in it can be trained; for
//! training, the weights are made initializers again, as they were in the original files.

use crate::{conformance, harness};
use libtest_mimic::Trial;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use vdnn_frontends::onnx::proto::{ModelProto, TensorProto};
use vdnn_frontends::onnx::{self, ImportOptions};
use vdnn_ir::{Mode, Tensor};
use vdnn_passes::{AlgoMode, Policy};
use vdnn_runtime::cpu::{CpuBackend, CpuOptions};
use vdnn_runtime::executor::Executor;
use vdnnc::commands::load::FromTensors;

const MODELS: usize = 9;

/// Inference and one training step of every light model.
pub fn trials(folder: &Path) -> Vec<Trial> {
    let mut models: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .collect();
    models.sort();
    let found = models.len();
    let mut trials = vec![Trial::test("all_light_models_are_there", move || {
        if found == MODELS { Ok(()) } else { Err(format!("{found} instead of {MODELS}").into()) }
    })];
    for path in models {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let again = path.clone();
        trials.push(Trial::test(format!("{stem}_infers"), move || Ok(infer(&path)?)));
        trials.push(Trial::test(format!("{stem}_trains"), move || Ok(train(&again)?)));
    }
    trials
}

/// The suite's input for these models: 0, 1/n, .. (n-1)/n.
fn ramp(dims: &[u64]) -> Tensor {
    let n: u64 = dims.iter().product();
    let data: Vec<f32> = (0..n).map(|i| (i as f64 / n as f64) as f32).collect();
    Tensor::from_f32(dims.iter().copied(), &data)
}

fn infer(path: &Path) -> Result<(), String> {
    let imported = onnx::import_file(path, &ImportOptions::default()).map_err(|e| e.to_string())?;
    let options = harness::options(Mode::Infer, Policy::Dyn, AlgoMode::Dynamic);
    let plan = harness::compile(&imported.graph, imported.batch, &options).plan;
    let input = &plan.inputs[0];
    let x = BTreeMap::from([(input.name.clone(), ramp(&plan.buffers[input.buf].ty.dims))]);
    let output = plan.outputs[0].name.clone();
    let params = harness::params(&imported);
    let mut executor = Executor::load(plan, &FromTensors(&params), CpuBackend::new(CpuOptions::default()))
        .map_err(|e| e.to_string())?;
    let result = executor.step(&x).map_err(|e| e.to_string())?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let want: TensorProto = conformance::read_message(&path.with_file_name(format!("{stem}_output_0.pb")))?;
    conformance::compare(&result[&output], &want)
}

/// Turns every ConstantOfShape of a known shape back into an initializer.
fn with_initializers(path: &Path) -> Result<ModelProto, String> {
    let mut model: ModelProto = conformance::read_message(path)?;
    let graph = model.graph.as_mut().ok_or("it holds no graph")?;
    let mut made = BTreeSet::new();
    let mut weights = Vec::new();
    for node in graph.node.iter().filter(|n| n.op_type() == "ConstantOfShape") {
        let shape = graph.initializer.iter().find(|t| t.name() == node.input[0]);
        let value = node.attribute.iter().find_map(|a| a.t.as_ref());
        let (Some(shape), Some(value)) = (shape, value) else { continue };
        let dims: Vec<i64> = conformance::elements(shape)?.iter().map(|&d| d as i64).collect();
        let n = dims.iter().product::<i64>() as usize;
        let x = conformance::elements(value)?[0] as f32;
        weights.push(TensorProto {
            name: Some(node.output[0].clone()),
            data_type: Some(1),
            dims,
            raw_data: Some(x.to_le_bytes().repeat(n).into()),
            ..Default::default()
        });
        made.insert(node.output[0].clone());
    }
    graph.node.retain(|n| !n.output.iter().any(|o| made.contains(o)));
    graph.initializer.extend(weights);
    Ok(model)
}

/// One step with the labels all zero. All classes are alike in these models, so the loss is
/// the logarithm of their number.
fn train(path: &Path) -> Result<(), String> {
    let options = ImportOptions { training: true, ..ImportOptions::default() };
    let imported = onnx::import_model(with_initializers(path)?, None, &options).map_err(|e| e.to_string())?;
    let options = harness::options(Mode::Train, Policy::Conv, AlgoMode::Dynamic);
    let plan = harness::compile(&imported.graph, imported.batch, &options).plan;
    let mut inputs = BTreeMap::new();
    for input in &plan.inputs {
        let ty = &plan.buffers[input.buf].ty;
        let tensor = match input.name.as_str() {
            "labels" | "vdnnc.step" => Tensor::zeros(ty.clone()),
            "vdnnc.hyper" => harness::hyper(0.01, 0.9, 0.0),
            _ => ramp(&ty.dims),
        };
        inputs.insert(input.name.clone(), tensor);
    }
    let params = harness::params(&imported);
    if params.is_empty() {
        return Err("it has no weights".to_owned());
    }
    let mut executor = Executor::load(plan, &FromTensors(&params), CpuBackend::new(CpuOptions::default()))
        .map_err(|e| e.to_string())?;
    let loss = executor.step(&inputs).map_err(|e| e.to_string())?["loss"].f32()[0];
    let want = 1000f32.ln();
    if (loss - want).abs() < 1e-3 { Ok(()) } else { Err(format!("the loss is {loss} instead of {want}")) }
}
