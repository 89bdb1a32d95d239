//! Forward results and gradients of single operators match the f64 references of
//! `golden/opgrad`, by autodiff and the naive interpreter, and as plans of every policy on
//! the CPU executor.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;
use vdnn_frontends::onnx::{ImportOptions, import_file};
use vdnn_interp::{NaiveKernels, interpret};
use vdnn_ir::{DType, Graph, Mode, Output, Phase, Tensor, ValueId};
use vdnn_passes::autodiff::gradients;
use vdnn_passes::{AlgoMode, Policy};
use vdnn_runtime::cpu::CpuOptions;
use vdnn_tests::{data, harness};
use vdnnc::driver;
use vdnnc::timing::Timings;

/// Largest difference, as a share of the reference's largest magnitude.
const TOLERANCE: f64 = 1e-4;

type Golden = BTreeMap<String, (Vec<u64>, Vec<f64>)>;

#[test]
fn every_operator_matches_its_reference() {
    let Some(folder) = data::shared("golden/opgrad") else { return };
    let golden = data::golden(&folder.join("opgrad.safetensors"));
    let mut cases: Vec<&str> =
        golden.keys().filter_map(|k| k.split_once('/')).map(|(case, _)| case).collect();
    cases.dedup();
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| run(&folder, case, &golden).err().map(|e| format!("{case}: {e}")))
        .collect();
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
    assert_eq!(cases.len(), 59);
}

fn run(folder: &Path, case: &str, golden: &Golden) -> Result<(), String> {
    let path = folder.join(format!("{case}.onnx"));
    let options = ImportOptions { batch: None, dims: BTreeMap::new(), training: true };
    let imported = import_file(&path, &options).map_err(|e| e.to_string())?;
    let mut graph = imported.graph;
    let key = |name: &str| golden.get(&format!("{case}/{name}"));

    // y, y1, .. are the outputs in order; dy, dy1, .. their cotangents, where there is one.
    let suffix = |i: usize| if i == 0 { String::new() } else { i.to_string() };
    let mut inputs = BTreeMap::new();
    for &v in graph.inputs() {
        let name = graph.value(v).name.clone();
        let (_, values) = key(&name).ok_or_else(|| format!("no reference input `{name}`"))?;
        inputs.insert(name, tensor(&graph, v, values));
    }
    let results: Vec<ValueId> = graph.outputs.iter().map(|o| o.value).collect();
    let mut cotangents = Vec::new();
    for (i, &y) in results.iter().enumerate() {
        let name = format!("dy{}", suffix(i));
        if let Some((_, values)) = key(&name) {
            let ty = graph.ty(y).clone();
            let dy = graph.add_input(name.clone(), ty);
            inputs.insert(name, tensor(&graph, dy, values));
            cotangents.push((y, dy));
        }
    }
    let wrt: Vec<(String, ValueId)> = graph
        .inputs()
        .iter()
        .map(|&v| (graph.value(v).name.clone(), v))
        .filter(|(name, _)| key(&format!("grad_{name}")).is_some())
        .collect();
    let values: Vec<ValueId> = wrt.iter().map(|(_, v)| *v).collect();
    let found = gradients(&mut graph, &cotangents, &values).map_err(|e| e.to_string())?;
    for (i, output) in graph.outputs.iter_mut().enumerate() {
        output.name = format!("y{}", suffix(i));
    }
    for ((name, _), gradient) in wrt.iter().zip(found) {
        let value = gradient.ok_or_else(|| format!("no gradient of `{name}`"))?;
        graph.outputs.push(Output { name: format!("grad_{name}"), value });
    }
    let evaluation =
        interpret(&graph, &inputs, &BTreeMap::new(), &NaiveKernels).map_err(|e| e.to_string())?;
    compare(case, golden, &evaluation.outputs)?;
    let mut first: Option<BTreeMap<String, Tensor>> = None;
    for policy in harness::POLICIES {
        let outputs = run_plan(&graph, policy, &inputs)?;
        compare(case, golden, &outputs).map_err(|e| format!("policy {policy}: {e}"))?;
        if first.as_ref().is_some_and(|f| f != &outputs) {
            return Err(format!("policy {policy}: not the bytes of the first policy"));
        }
        first = Some(outputs);
    }
    Ok(())
}

/// The same graph planned, checked and run on the CPU executor with poisoned memory.
fn run_plan(
    graph: &Graph,
    policy: Policy,
    inputs: &BTreeMap<String, Tensor>,
) -> Result<BTreeMap<String, Tensor>, String> {
    let mut joint = graph.clone();
    joint.phase = Phase::Joint;
    joint.mode = Mode::Train;
    let options = harness::options(Mode::Train, policy, AlgoMode::Dynamic);
    let cost = harness::cost(&options);
    let compiled = driver::plan_joint(&joint, 1, None, &options, &cost, Instant::now(), Timings::default())
        .map_err(|e| format!("{e:?}"))?;
    let cpu = CpuOptions { poison: true, ..CpuOptions::default() };
    harness::executor(compiled.plan, &BTreeMap::new(), cpu).step(inputs).map_err(|e| e.to_string())
}

fn compare(case: &str, golden: &Golden, outputs: &BTreeMap<String, Tensor>) -> Result<(), String> {
    let mut compared = 0;
    for (name, got) in outputs {
        let Some((_, want)) = golden.get(&format!("{case}/{name}")) else { continue };
        let error = data::difference(got.f32(), want) / data::magnitude(want).max(f64::MIN_POSITIVE);
        if error.is_nan() || error > TOLERANCE {
            return Err(format!("{name} is off by {error:.2e} of its largest magnitude"));
        }
        compared += 1;
    }
    let expected = golden.keys().filter(|k| is_result(k, case)).count();
    if compared == expected { Ok(()) } else { Err(format!("compared {compared} of {expected} results")) }
}

fn is_result(key: &str, case: &str) -> bool {
    key.split_once('/').is_some_and(|(c, name)| {
        let is_output = name.strip_prefix('y').is_some_and(|n| n.is_empty() || n.parse::<u32>().is_ok());
        c == case && (is_output || name.starts_with("grad_"))
    })
}

fn tensor(graph: &Graph, v: ValueId, values: &[f64]) -> Tensor {
    let ty = graph.ty(v);
    let dims = ty.dims.iter().copied();
    match ty.dtype {
        DType::I64 => Tensor::from_i64(dims, &values.iter().map(|&x| x as i64).collect::<Vec<_>>()),
        _ => Tensor::from_f32(dims, &values.iter().map(|&x| x as f32).collect::<Vec<_>>()),
    }
}
