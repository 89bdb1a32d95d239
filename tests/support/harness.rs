//! Compiling and running in one call, the way the command does it.

use std::collections::BTreeMap;
use std::path::Path;
use vdnn_cost::{CostModel, Precision};
use vdnn_frontends::onnx::{self, ImportOptions, Imported};
use vdnn_ir::{Bytes, Graph, Mode, Tensor};
use vdnn_passes::fuse_pyramids::DEPTH;
use vdnn_passes::{AlgoMode, BatchSizes, Fuse, Packing, Policy, Recompute, SyncMode, Workspace};
use vdnn_plan::Plan;
use vdnn_runtime::cpu::{CpuBackend, CpuOptions};
use vdnn_runtime::executor::Executor;
use vdnnc::commands::load::FromTensors;
use vdnnc::driver::{self, Compiled, NoPlan};
use vdnnc::options::CompileOptions;
use vdnnc::slicing::Slices;

/// The policies, `dyn` last.
pub const POLICIES: [Policy; 5] = [Policy::None, Policy::Baseline, Policy::All, Policy::Conv, Policy::Dyn];

/// Options with everything else at the command's defaults.
pub fn options(mode: Mode, policy: Policy, algo: AlgoMode) -> CompileOptions {
    CompileOptions {
        mode,
        policy,
        algo,
        batch: None,
        dims: BTreeMap::new(),
        device: "h200".to_owned(),
        memory: None,
        overhead: Bytes::ZERO,
        host_memory: None,
        deterministic: false,
        kernels: BTreeMap::new(),
        kernels_made_for: None,
        micro_batch: BatchSizes::Undivided,
        workspace: Workspace::Planned,
        sync: SyncMode::Event,
        packing: Packing::Off,
        precision: Precision::F32,
        keep_gradients: false,
        elide_waits: true,
        elide_copies: true,
        sparse: vdnn_passes::sparsify::Sparse::default(),
        fuse: Fuse::Off,
        recompute: Recompute::Off,
        fuse_depth: DEPTH,
        fuse_footprint: None,
        thorough_layout: false,
        slices: Slices::Off,
        streams: vdnn_passes::streams::Streams::Count(1),
    }
}

/// The default device's cost model.
pub fn cost(options: &CompileOptions) -> CostModel {
    CostModel::named(&options.device, options.precision).expect("a shipped profile")
}

/// Imports a model file at a batch size.
pub fn import(path: &Path, batch: Option<u64>, training: bool) -> Imported {
    let options = ImportOptions { batch, dims: BTreeMap::new(), training };
    onnx::import_file(path, &options).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Compiles an imported graph; panics with the reason if there is no plan.
pub fn compile(graph: &Graph, batch: u64, options: &CompileOptions) -> Compiled {
    match driver::compile(graph.clone(), batch, None, options, &cost(options)) {
        Ok(compiled) => compiled,
        Err(NoPlan::Failed(f)) => panic!("{}: {f}", graph.name),
        Err(NoPlan::TooLarge { summary, .. }) => {
            panic!("{}: {} is over {}", graph.name, summary.peak, summary.budget)
        }
    }
}

/// An executor of the CPU backend over parameters in memory.
pub fn executor(plan: Plan, params: &BTreeMap<String, Tensor>, cpu: CpuOptions) -> Executor<CpuBackend> {
    Executor::load(plan, &FromTensors(params), CpuBackend::new(cpu)).expect("the plan loads")
}

/// The weights of an imported model.
pub fn params(imported: &Imported) -> BTreeMap<String, Tensor> {
    vdnnc::commands::load::tensors(&imported.weights)
}

/// The optimizer's settings as the training graph's input.
pub fn hyper(lr: f32, momentum: f32, weight_decay: f32) -> Tensor {
    Tensor::from_f32([3], &[lr, momentum, weight_decay])
}

/// A budget that is `percent` of another size.
pub fn share(of: Bytes, percent: u64) -> Bytes {
    Bytes(of.0 / 100 * percent)
}

/// The inputs of a step: those given, and in training labels of two classes, the optimizer's
/// settings and a step number.
pub fn step_inputs(plan: &Plan, mut given: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    for binding in &plan.inputs {
        let ty = &plan.buffers[binding.buf].ty;
        let tensor = match binding.name.as_str() {
            "labels" => {
                let labels: Vec<i64> = (0..ty.elements()).map(|i| (i % 2) as i64).collect();
                Tensor::from_i64(ty.dims.iter().copied(), &labels)
            }
            "vdnnc.hyper" => hyper(0.05, 0.9, 1e-3),
            "vdnnc.step" => Tensor::from_i64([], &[3]),
            _ => continue,
        };
        given.insert(binding.name.clone(), tensor);
    }
    given
}
