//! `vdnnc bench MODEL…`: how fast plans run, beside what was predicted.

use super::backend::{Choice, cuda};
use super::load::{self, FromWeights};
use super::synthetic;
use super::target::{Runner, Target};
use crate::cli::{BenchArgs, ComputeBackend};
use crate::driver;
use crate::error::Failure;
use crate::options::CompileOptions;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;
use vdnn_frontends::onnx::{self, ImportOptions};
use vdnn_frontends::safe_file::write_atomic;
use vdnn_frontends::zoo::{self, ZooOptions};
use vdnn_ir::{Bytes, Mode, Nanos, Tensor, TensorType};
use vdnn_plan::{Plan, PlanStats};
use vdnn_runtime::backend::Backend;
use vdnn_runtime::cuda::CudaBackend;
use vdnn_runtime::executor::Executor;
use vdnn_runtime::trace::{Overlap, Trace};

/// Optimizer settings of measured steps: small enough that random data stays finite.
const HYPER: [f32; 3] = [1e-4, 0.9, 0.0];

/// What one target's steps were like.
#[derive(Debug, Default)]
struct Measured {
    /// Of each measured step.
    steps: Vec<Nanos>,
    /// Of the last warm-up step, in training.
    loss: Option<f32>,
    /// SHA-256 over the parameters after the last step, if asked for.
    checksum: Option<String>,
    gpu: Option<Gpu>,
}

/// What only a GPU tells.
#[derive(Debug)]
struct Gpu {
    name: String,
    /// Most that was taken on the device since the context was made, of a few looks; the
    /// context itself is not counted.
    taken: Bytes,
    /// Most that was in use on the whole device, by all processes, of the same looks.
    used: Bytes,
    scratch: Bytes,
    captured: bool,
    profile: Trace,
}

/// Runs the command.
///
/// # Errors
/// What the user should read; the other targets are measured all the same.
pub fn run(args: &BenchArgs) -> Result<(), Failure> {
    if args.trace.is_some() && (args.targets.len() > 1 || args.backend == ComputeBackend::Cpu) {
        return Err(Failure::user("--trace writes the timeline of one target on --backend cuda"));
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
    let cost = made_for.cost(&model.imported.graph, &options)?;
    // Measuring holds memory of the device.
    drop(made_for);
    let compiled = driver::compile(model.imported.graph.clone(), model.imported.batch, None, &options, &cost)
        .map_err(load::over_budget)?;
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

fn inputs(plan: &Plan) -> Result<BTreeMap<String, Tensor>, Failure> {
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
        let outputs = executor.step(inputs).map_err(Failure::user)?;
        loss = outputs.get("loss").and_then(|t| t.f32().first().copied());
        if loss.is_some_and(|l| !l.is_finite()) {
            return Err(Failure::user(format!("the loss is not finite at step {step}")));
        }
    }
    Ok(loss)
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
    for _ in 0..args.steps {
        let start = Instant::now();
        executor.step(inputs).map_err(Failure::user)?;
        steps.push(Nanos(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)));
    }
    let checksum = args.checksum.then(|| checksum(&executor)).transpose()?;
    Ok(Measured { steps, loss, checksum, gpu: None })
}

fn on_gpu(
    args: &BenchArgs,
    plan: Plan,
    source: &FromWeights<'_>,
    inputs: &BTreeMap<String, Tensor>,
) -> Result<Measured, Failure> {
    let mut executor =
        Executor::load(plan, source, cuda(&args.cuda, &args.shared, false)?).map_err(Failure::user)?;
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
    let loss = warm_up(args, &mut executor, inputs)?;
    look(executor.backend())?;
    let (backend, bound) = executor.bind(inputs).map_err(Failure::user)?;
    let steps = backend.time_steps(&bound, args.steps as usize).map_err(Failure::user)?;
    look(backend)?;
    let profile = backend.profile_step(&bound).map_err(Failure::user)?;
    let gpu = Gpu {
        name: backend.device().facts().name.clone(),
        taken,
        used,
        scratch: backend.scratch_bytes(),
        captured: backend.is_captured(),
        profile,
    };
    let checksum = args.checksum.then(|| checksum(&executor)).transpose()?;
    Ok(Measured { steps, loss, checksum, gpu: Some(gpu) })
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

/// What is known of a target before it runs.
struct Report<'a> {
    args: &'a BenchArgs,
    target: &'a str,
    policy: &'static str,
    device: String,
    batch: u64,
    precision: String,
    budget: Option<Bytes>,
    predicted: Nanos,
    stats: PlanStats,
}

/// The middle of the sorted times; of an even number, the mean of the two middle ones.
fn median(sorted: &[Nanos]) -> Nanos {
    match sorted.len() {
        0 => Nanos::ZERO,
        n if n % 2 == 1 => sorted[n / 2],
        n => Nanos((sorted[n / 2 - 1].0 + sorted[n / 2].0) / 2),
    }
}

fn ms(t: Nanos) -> f64 {
    t.as_f64() / 1e6
}

impl Report<'_> {
    fn mode(&self) -> &'static str {
        match self.args.mode {
            Mode::Train => "train",
            Mode::Infer => "infer",
        }
    }

    fn prediction(&self) -> Value {
        json!({
            "kind": "prediction", "model": self.target, "mode": self.mode(), "batch": self.batch,
            "policy": self.policy, "precision": self.precision, "profile": self.device,
            "memory_limit_bytes": self.budget.map(|b| b.0), "step_ns": self.predicted.0,
            "device_arena_bytes": self.stats.device_bytes.0, "host_arena_bytes": self.stats.host_bytes.0,
            "offload_bytes": self.stats.offload_bytes.0, "prefetch_bytes": self.stats.prefetch_bytes.0,
        })
    }

    fn result(&self, m: &Measured) -> Value {
        let mut sorted = m.steps.clone();
        sorted.sort();
        let middle = median(&sorted);
        let mut v = self.prediction();
        let mut set = |key: &str, value: Value| {
            v[key] = value;
        };
        set("kind", json!("result"));
        set("backend", json!(self.args.backend.name()));
        set("predicted_step_ns", json!(self.predicted.0));
        set("step_ns", json!(middle.0));
        set(
            "step_ms",
            json!({
                "median": ms(middle),
                "min": sorted.first().map(|t| ms(*t)),
                "max": sorted.last().map(|t| ms(*t)),
            }),
        );
        set("steps", json!(m.steps.len()));
        set("images_per_s", json!(self.batch as f64 / (middle.as_f64() / 1e9)));
        set("predicted_error", json!(self.predicted.as_f64() / middle.as_f64().max(1.0) - 1.0));
        set("loss", json!(m.loss));
        set("checksum", json!(m.checksum));
        if let Some(gpu) = &m.gpu {
            let overlap = gpu.profile.overlap();
            set("device", json!(gpu.name));
            set("graph", json!(gpu.captured));
            set("scratch_bytes", json!(gpu.scratch.0));
            set("process_device_bytes", json!(gpu.taken.0));
            set("used_device_bytes", json!(gpu.used.0));
            set("profiled_step_ns", json!(gpu.profile.makespan().0));
            set("copy_busy_ns", json!(overlap.copying.0));
            set("copy_hidden_ns", json!(overlap.hidden.0));
            set("copy_hidden_share", json!(hidden_share(overlap)));
        }
        v
    }

    fn table(&self, m: &Measured) -> String {
        let mut sorted = m.steps.clone();
        sorted.sort();
        let middle = median(&sorted);
        let ends = |t: Option<&Nanos>| t.map_or(0.0, |t| ms(*t));
        let mut rows: Vec<(&str, String)> = vec![
            (
                "step",
                format!(
                    "{:.3} ms (min {:.3}, max {:.3}, {} steps)",
                    ms(middle),
                    ends(sorted.first()),
                    ends(sorted.last()),
                    sorted.len()
                ),
            ),
            ("images", format!("{:.1} per second", self.batch as f64 / (middle.as_f64() / 1e9))),
            (
                "predicted",
                format!(
                    "{:.3} ms ({:+.1} %) for {}",
                    ms(self.predicted),
                    100.0 * (self.predicted.as_f64() / middle.as_f64().max(1.0) - 1.0),
                    self.device
                ),
            ),
            ("arenas", format!("device {}, pinned host {}", self.stats.device_bytes, self.stats.host_bytes)),
            (
                "transfers",
                format!("{} out, {} in per step", self.stats.offload_bytes, self.stats.prefetch_bytes),
            ),
        ];
        if let Some(gpu) = &m.gpu {
            let overlap = gpu.profile.overlap();
            rows.push((
                "memory",
                format!(
                    "{} taken by this process without its context (arena, {} scratch, libraries); {} in use on the \
                     device",
                    gpu.taken, gpu.scratch, gpu.used
                ),
            ));
            if let Some(share) = hidden_share(overlap) {
                let busy = ms(overlap.copying);
                rows.push(("copies", format!("{busy:.3} ms, {:.1} % behind kernels", 100.0 * share)));
            }
        }
        if let Some(loss) = m.loss {
            rows.push(("loss", format!("{loss:.4}")));
        }
        let on = m.gpu.as_ref().map_or("cpu", |g| g.name.as_str());
        let graph = if m.gpu.as_ref().is_some_and(|g| !g.captured) { ", no graph" } else { "" };
        let mut text = format!(
            "{} {} batch {} policy {} {} on {on}{graph}\n",
            self.target,
            self.mode(),
            self.batch,
            self.policy,
            self.precision
        );
        for (name, value) in rows {
            text.push_str(&format!("  {name:<10} {value}\n"));
        }
        text
    }
}

/// Share of copy time that kernels hide; `None` without copies.
fn hidden_share(overlap: Overlap) -> Option<f64> {
    (overlap.copying > Nanos::ZERO).then(|| overlap.hidden.as_f64() / overlap.copying.as_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        let of = |t: &[u64]| median(&t.iter().map(|&n| Nanos(n)).collect::<Vec<_>>());
        assert_eq!(of(&[]), Nanos(0));
        assert_eq!(of(&[7]), Nanos(7));
        assert_eq!(of(&[1, 3]), Nanos(2));
        assert_eq!(of(&[1, 2, 9]), Nanos(2));
    }

    #[test]
    fn copies_that_nothing_hides_and_no_copies_differ() {
        let share =
            |copying, hidden| hidden_share(Overlap { copying: Nanos(copying), hidden: Nanos(hidden) });
        assert_eq!(share(0, 0), None);
        assert_eq!(share(10, 0), Some(0.0));
        assert_eq!(share(10, 5), Some(0.5));
    }
}
