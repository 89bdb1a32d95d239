//! `vdnnc bench MODEL…`: how fast plans run, beside what was predicted.

mod delays;
pub(super) mod report;

use super::backend::{Choice, cuda};
use super::equivalence;
use super::load::{self, FromWeights};
use super::synthetic;
use super::target::{Runner, Target};
use crate::cli::{BenchArgs, ComputeBackend};
use crate::error::Failure;
use crate::options::CompileOptions;
use delays::Repeated;
use report::{Gpu, Measured, Report};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vdnn_frontends::onnx::{self, ImportOptions};
use vdnn_frontends::safe_file::write_atomic;
use vdnn_frontends::zoo::{self, ZooOptions};
use vdnn_ir::{Bytes, Mode, Nanos, Tensor, TensorType};
use vdnn_plan::Plan;
use vdnn_runtime::backend::Backend;
use vdnn_runtime::cuda::{CudaBackend, Energy};
use vdnn_runtime::executor::Executor;
use vdnn_runtime::program::Span;

/// Optimizer settings of measured steps: small enough that random data stays finite.
const HYPER: [f32; 3] = [1e-4, 0.9, 0.0];

/// Runs the command.
///
/// # Errors
/// What the user should read; the other targets are measured all the same.
pub fn run(args: &BenchArgs) -> Result<(), Failure> {
    if args.trace.is_some() && (args.targets.len() > 1 || args.backend == ComputeBackend::Cpu) {
        return Err(Failure::user("--trace writes the timeline of one target on --backend cuda"));
    }
    if args.delay_seeds.is_some() && (args.backend == ComputeBackend::Cpu || args.mode == Mode::Infer) {
        return Err(Failure::user(
            "--delay-seeds compares the parameters of training steps on --backend cuda",
        ));
    }
    if args.energy && args.backend == ComputeBackend::Cpu {
        return Err(Failure::user("--energy reads the counter of a GPU").hint("use --backend cuda"));
    }
    choice(args).probe()?;
    let mut failed = Vec::new();
    for target in &args.targets {
        if let Err(failure) = bench(args, target) {
            if args.json {
                super::print(
                    &json!({"kind": "error", "model": target, "message": failure.message}).to_string(),
                );
            }
            failed.push((target, failure));
        }
    }
    let Some((_, first)) = failed.first() else { return Ok(()) };
    if let [_] = args.targets.as_slice() {
        return Err(first.clone());
    }
    let text: Vec<String> = failed.iter().map(|(t, f)| format!("{t}: {}", f.message)).collect();
    Err(Failure { message: text.join("\n"), ..first.clone() })
}

fn choice(args: &BenchArgs) -> Choice<'_> {
    Choice {
        backend: args.backend,
        threads: args.threads,
        poison: false,
        cuda: &args.cuda,
        shared: &args.shared,
    }
}

/// A file, or a network of the zoo with random weights in memory.
///
/// # Errors
/// If it is neither, or cannot be imported.
pub(super) fn open(
    target: &str,
    mode: Mode,
    seed: u64,
    options: &CompileOptions,
) -> Result<load::Model, Failure> {
    let training = mode == Mode::Train;
    let path = Path::new(target);
    if path.exists() || !zoo::names().contains(&target) {
        if !path.exists() && path.extension().is_none() {
            return Err(Failure::user(format!("`{target}` is neither a file nor a network of the zoo"))
                .hint(format!("the zoo has {}", zoo::names().join(", "))));
        }
        return load::model(path, options.batch, &options.dims, training);
    }
    let network =
        zoo::build(target, &ZooOptions { batch: None, classes: None, seed }).map_err(Failure::internal)?;
    let import = ImportOptions { batch: options.batch, dims: options.dims.clone(), training };
    let imported = onnx::import_model(network, None, &import).map_err(Failure::user)?;
    Ok(load::Model { imported, path: PathBuf::from(target) })
}

fn bench(args: &BenchArgs, target: &str) -> Result<(), Failure> {
    let mut options = match args.backend {
        ComputeBackend::Cuda => args.shared.options_on_gpu(args.mode),
        ComputeBackend::Cpu => args.shared.options_on_cpu(args.mode),
    };
    let runner = if args.backend == ComputeBackend::Cpu { Runner::Host } else { Runner::Device };
    let mut made_for = Target::open(&mut options, &args.shared, runner)?;
    let model = open(target, args.mode, args.seed, &options)?;
    model.note_zeros(&mut options);
    let cost = made_for.cost(&model.imported.graph, &options)?;
    // Measuring holds memory of the device.
    drop(made_for);
    let compiled = model.compile(None, &options, &cost).map_err(load::over_budget)?;
    let report = Report {
        args,
        target,
        policy: compiled.summary.chosen_policy.name(),
        device: compiled.summary.device.clone(),
        batch: compiled.plan.header.batch,
        precision: compiled.plan.header.precision.to_string(),
        budget: options.memory,
        predicted: compiled.plan.predicted.step,
        stats: vdnn_plan::stats::stats(&compiled.plan),
    };
    if let Some(path) = &args.output {
        super::compile::write_plan(&compiled.plan, path)?;
    }
    // Fixed before anything runs.
    if args.json {
        super::print(&report.prediction().to_string());
    }
    if args.shared.micro.verify_equivalence {
        equivalence::verify(&compiled.plan, &choice(args))?;
    }
    let inputs = inputs(&compiled.plan)?;
    let source = FromWeights(&model.imported.weights);
    let measured = match args.backend {
        ComputeBackend::Cpu => on_host(args, compiled.plan, &source, choice(args).open()?, &inputs)?,
        ComputeBackend::Cuda => on_gpu(args, compiled.plan, &source, &inputs)?,
    };
    if let (Some(file), Some(gpu)) = (&args.trace, &measured.gpu) {
        write_atomic(file, |w| w.write_all(gpu.profile.to_chrome_json().as_bytes()))
            .map_err(|e| Failure::user(format!("{}: {e}", file.display())))?;
    }
    super::print(&if args.json { report.result(&measured).to_string() } else { report.table(&measured) });
    Ok(())
}

/// Inputs for a step of a plan: random data, and settings that keep it finite.
///
/// # Errors
/// If the host has no memory for one.
pub(super) fn inputs(plan: &Plan) -> Result<BTreeMap<String, Tensor>, Failure> {
    let wanted: Vec<(String, TensorType)> =
        plan.inputs.iter().map(|i| (i.name.clone(), plan.buffers[i.buf].ty.clone())).collect();
    let mut inputs = synthetic::inputs(&wanted)?;
    for (name, _) in wanted {
        match name.as_str() {
            "vdnnc.hyper" => inputs.insert(name, Tensor::from_f32([3], &HYPER)),
            "vdnnc.step" => inputs.insert(name, Tensor::from_i64([], &[0])),
            _ => None,
        };
    }
    Ok(inputs)
}

/// Runs the steps before the measured ones; the last loss, if the plan has one.
fn warm_up<B: Backend>(
    args: &BenchArgs,
    executor: &mut Executor<B>,
    inputs: &BTreeMap<String, Tensor>,
) -> Result<Option<f32>, Failure> {
    let mut loss = None;
    for step in 0..args.warmup {
        loss = finite(&executor.step(inputs).map_err(Failure::user)?, step)?;
    }
    Ok(loss)
}

/// The loss among a step's outputs, if there is one.
///
/// # Errors
/// If it is not finite: what follows would be the time of computing with NaN.
fn finite(outputs: &BTreeMap<String, Tensor>, step: u32) -> Result<Option<f32>, Failure> {
    match outputs.get("loss").and_then(|t| t.f32().first().copied()) {
        Some(loss) if !loss.is_finite() => Err(Failure::user(format!("the loss is {loss} at step {step}"))
            .hint("look at the model's weights for NaN and for values that overflow")),
        loss => Ok(loss),
    }
}

fn on_host(
    args: &BenchArgs,
    plan: Plan,
    source: &FromWeights<'_>,
    backend: Box<dyn Backend>,
    inputs: &BTreeMap<String, Tensor>,
) -> Result<Measured, Failure> {
    let mut executor = Executor::load(plan, source, backend).map_err(Failure::user)?;
    let loss = warm_up(args, &mut executor, inputs)?;
    let mut steps = Vec::new();
    for step in 0..args.steps {
        let start = Instant::now();
        let outputs = executor.step(inputs).map_err(Failure::user)?;
        steps.push(Nanos(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)));
        finite(&outputs, args.warmup + step)?;
    }
    let checksum = args.checksum.then(|| checksum(&executor)).transpose()?;
    let packed = executor.packed().map_err(Failure::user)?;
    Ok(Measured { steps, loss, checksum, packed, gpu: None })
}

fn on_gpu(
    args: &BenchArgs,
    plan: Plan,
    source: &FromWeights<'_>,
    inputs: &BTreeMap<String, Tensor>,
) -> Result<Measured, Failure> {
    let mut settings = args.cuda.clone();
    if let Some(seeds) = &args.delay_seeds {
        settings.delay_seed = Some(seeds.start);
    }
    let mut executor =
        Executor::load(plan, source, cuda(&settings, &args.shared, false)?).map_err(Failure::user)?;
    // What is taken and in use; it grows as code is loaded, and building kernels may have
    // needed more for a while.
    let (mut taken, mut used) = (Bytes::ZERO, Bytes::ZERO);
    let mut look = |backend: &CudaBackend| -> Result<(), Failure> {
        let (free, total) = backend.device().memory().map_err(Failure::user)?;
        taken = taken.max(backend.device().taken().map_err(Failure::user)?);
        used = used.max(total.saturating_sub(free));
        Ok(())
    };
    look(executor.backend())?;
    let repeated = args.delay_seeds.clone().map(|seeds| Repeated::new(&mut executor, seeds)).transpose()?;
    let loss = warm_up(args, &mut executor, inputs)?;
    look(executor.backend())?;
    if let Some(repeated) = &repeated {
        repeated.restore(&mut executor)?;
    }
    let (backend, bound) = executor.bind(inputs).map_err(Failure::user)?;
    let steps = backend.time_steps(&bound, args.steps as usize).map_err(Failure::user)?;
    look(backend)?;
    let checksum = args.checksum.then(|| checksum(&executor)).transpose()?;
    let delayed = repeated.map(|r| r.compare(&mut executor, inputs, args)).transpose()?;
    let packed = executor.packed().map_err(Failure::user)?;
    let (backend, bound) = executor.bind(inputs).map_err(Failure::user)?;
    let energy = args.energy.then(|| energy(backend, &bound, &steps));
    let profile = backend.profile_step(&bound).map_err(Failure::user)?;
    let gpu = Gpu {
        name: backend.device().facts().name.clone(),
        taken,
        used,
        scratch: backend.scratch_bytes(),
        captured: backend.is_captured(),
        profile,
        delayed,
        energy,
    };
    Ok(Measured { steps, loss, checksum, packed, gpu: Some(gpu) })
}

/// How long steps are repeated for their energy: the counter's ticks are then 5 % of it at most.
pub(super) const ENERGY_TIME: Duration = Duration::from_secs(2);

/// The energy of steps that took so long; why there is none is for the report.
pub(super) fn energy(
    backend: &mut CudaBackend,
    bound: &[(Span, &[u8])],
    steps: &[Nanos],
) -> Result<Energy, String> {
    let mut sorted = steps.to_vec();
    sorted.sort();
    backend.measure_energy(bound, report::median(&sorted), ENERGY_TIME).map_err(|e| e.to_string())
}

/// Every parameter, in the order of their names: plans of other policies may list them in
/// another.
fn checksum<B: Backend>(executor: &Executor<B>) -> Result<String, Failure> {
    use sha2::{Digest, Sha256};
    let mut names: Vec<&str> = executor.params().iter().map(|p| p.name.as_str()).collect();
    names.sort_unstable();
    let mut hash = Sha256::new();
    for name in names {
        hash.update(executor.read_param(name).map_err(Failure::internal)?.bytes());
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}
