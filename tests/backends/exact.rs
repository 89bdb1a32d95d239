//! `--algo only=NAME`: inference by one classic algorithm of cuDNN for all convolutions against the
//! CPU kernels, and its launches timed on their own data, which must leave every result as it is.

use crate::Row;
use crate::device::{Device, PLAIN};
use prost::Message;
use std::collections::BTreeMap;
use vdnn_frontends::onnx::{self, ImportOptions};
use vdnn_frontends::zoo::{self, ZooOptions};
use vdnn_ir::graph::ConvAlgo;
use vdnn_ir::id::EntityId;
use vdnn_ir::{Mode, Tensor, TensorType};
use vdnn_passes::{AlgoMode, Policy};
use vdnn_plan::{CmdId, Command, Plan};
use vdnn_runtime::executor::Executor;
use vdnn_tests::harness;
use vdnnc::commands::load::FromTensors;
use vdnnc::commands::synthetic;

/// Of the largest result: sums in another order, layer behind layer.
const LIMIT: f64 = 1e-4;
const NETS: [&str; 3] = ["lenet", "resnet18", "densenet121"];
const ALGOS: [ConvAlgo; 3] = [ConvAlgo::ImplicitGemm, ConvAlgo::ImplicitPrecompGemm, ConvAlgo::Gemm];

/// Runs every network by every algorithm.
pub fn run(device: Device, wanted: &dyn Fn(&str) -> bool, report: &mut dyn FnMut(Row)) {
    for name in NETS {
        for algo in ALGOS {
            let suite = format!("exact/{algo}/{name}");
            // The CPU has no algorithms: one shows that such plans run there.
            if (device == Device::Cuda || (name, algo) == (NETS[0], ALGOS[0])) && wanted(&suite) {
                let mut row = Row { suite, checks: 0, worst: 0.0, limit: LIMIT, failures: Vec::new() };
                if let Err(why) = judge(device, name, algo, &mut row) {
                    row.failures.push(why);
                }
                report(row);
            }
        }
    }
}

fn judge(device: Device, name: &str, algo: ConvAlgo, row: &mut Row) -> Result<(), String> {
    let model = zoo::build(name, &ZooOptions { batch: None, classes: Some(10), seed: 2 })
        .map_err(|e| e.to_string())?;
    let import = ImportOptions { batch: Some(1), dims: BTreeMap::new(), training: false };
    let imported =
        onnx::import_bytes(model.encode_to_vec().into(), None, &import).map_err(|e| e.to_string())?;
    let params = harness::params(&imported);
    let plan = |algo| {
        let options = harness::options(Mode::Infer, Policy::None, algo);
        harness::compile(&imported.graph, 1, &options).plan
    };
    let exact = plan(AlgoMode::Only(algo));
    let types: Vec<(String, TensorType)> =
        exact.inputs.iter().map(|i| (i.name.clone(), exact.buffers[i.buf].ty.clone())).collect();
    let inputs = synthetic::inputs(&types).map_err(|e| e.to_string())?;
    let steps = vec![inputs.clone(), inputs.clone()];
    let expected = Device::Cpu.run(plan(AlgoMode::Memory), &params, &steps[..1], PLAIN)?;
    // Twice: the second step is replayed from a graph.
    let found = device.run(exact.clone(), &params, &steps, PLAIN)?;
    for outputs in &found.steps {
        for (output, theirs) in &expected.steps[0] {
            let ours = outputs.get(output).ok_or_else(|| format!("no output {output}"))?;
            let scale = theirs.f32().iter().map(|v| f64::from(v.abs())).fold(f64::MIN_POSITIVE, f64::max);
            for (a, b) in ours.f32().iter().zip(theirs.f32()) {
                let error = f64::from((a - b).abs()) / scale;
                row.checks += 1;
                row.worst = row.worst.max(error);
                if error.is_nan() || error > LIMIT {
                    row.failures.push(format!("{output}: {a}, not {b}"));
                }
            }
        }
    }
    if device == Device::Cuda { timed(exact, &params, &inputs, algo, row) } else { Ok(()) }
}

fn timed(
    plan: Plan,
    params: &BTreeMap<String, Tensor>,
    inputs: &BTreeMap<String, Tensor>,
    algo: ConvAlgo,
    row: &mut Row,
) -> Result<(), String> {
    let convs: Vec<CmdId> = plan
        .commands
        .iter()
        .enumerate()
        .filter(|(_, c)| matches!(c, Command::Launch { op, .. } if op.is_conv()))
        .map(|(i, _)| CmdId::from_index(i))
        .collect();
    let backend = Device::cuda()?;
    let mut executor = Executor::load(plan, &FromTensors(params), backend).map_err(|e| e.to_string())?;
    let before = executor.step(inputs).map_err(|e| e.to_string())?;
    let (backend, bound) = executor.bind(inputs).map_err(|e| e.to_string())?;
    let times = backend.time_launches(&bound, &convs, &[algo]).map_err(|e| e.to_string())?;
    for (t, at) in times.iter().zip(&convs) {
        row.checks += 1;
        if t.own.0 == 0 || t.classic[0].is_none() {
            row.failures.push(format!("{at}: {t:?}"));
        }
    }
    row.checks += 1;
    if executor.step(inputs).map_err(|e| e.to_string())? != before {
        row.failures.push("a step gives other results after its launches were timed".to_owned());
    }
    Ok(())
}
