//! `vdnnc run MODEL|PLAN`: inference or training steps on given tensors.

use super::backend::Choice;
use super::equivalence;
use super::load::{self, FromWeights};
use super::replan;
use super::target::{self, Runner, Target};
use crate::cli::{BackendName, ComputeBackend, DeviceName, RunArgs};
use crate::error::Failure;
use crate::options::CompileOptions;
use crate::pipeline;
use crate::timing::Timings;
use std::collections::BTreeMap;
use std::path::Path;
use vdnn_frontends::tensors::{npy, npz, safetensors};
use vdnn_interp::{NaiveKernels, interpret};
use vdnn_ir::{DType, Graph, Mode, ParamRole, Tensor, TensorType, Weights};
use vdnn_plan::Plan;
use vdnn_runtime::executor::Executor;
use vdnn_runtime::sim::{SimResult, simulate};

/// Tensors given on the command line: by name, and at most one without.
#[derive(Debug, Default)]
struct Tensors {
    named: BTreeMap<String, Tensor>,
    single: Option<Tensor>,
}

/// What the inputs are to be.
#[derive(Debug)]
enum Given {
    Tensors(Tensors),
    Synthetic,
}

/// What one run produced.
#[derive(Debug, Default)]
struct Produced {
    losses: Vec<f32>,
    outputs: BTreeMap<String, Tensor>,
    params: BTreeMap<String, Tensor>,
    gradients: BTreeMap<String, Tensor>,
}

/// Runs the command.
///
/// # Errors
/// What the user should read.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    if !args.plain
        && let Some(choice) = choice(args)
    {
        choice.probe()?;
    }
    let given = if args.synthetic { Given::Synthetic } else { Given::Tensors(read_inputs(&args.input)?) };
    let labels = args.labels.as_deref().map(read_labels).transpose()?;
    if load::looks_like_plan(&args.target) {
        if args.plain {
            return Err(Failure::user("--plain interprets a model, not a plan"));
        }
        let plan = load::plan(&args.target)?;
        vdnn_plan::check::check(&plan)
            .map_err(|e| Failure::user(format!("{} is not a valid plan:\n{e}", args.target.display())))?;
        let (plan, weights) = if args.backend() == BackendName::Cuda {
            replan::for_gpu(plan, &args.target, args.replan, (&args.shared, &args.cuda))?
        } else {
            let weights = load::model_of_plan(&plan, &args.target)?;
            (plan, weights)
        };
        return execute(args, plan, &weights, given, labels);
    }
    let mut options = match args.backend() {
        BackendName::Cuda => args.shared.options_on_gpu(args.mode),
        BackendName::Cpu => args.shared.options_on_cpu(args.mode),
        BackendName::Sim => args.shared.options(args.mode),
    };
    options.keep_gradients |= args.save_gradients.is_some();
    if options.batch.is_none() {
        options.batch = batch_of(&args.target, &given, &options);
    }
    let runner = if args.backend() == BackendName::Cpu { Runner::Host } else { Runner::Device };
    let mut target = Target::open(&mut options, &args.shared, runner)?;
    let model = load::model(&args.target, options.batch, &options.dims, args.mode == Mode::Train)?;
    if args.plain {
        let mut graph = model.imported.graph.clone();
        if args.mode == Mode::Train {
            pipeline::to_joint(
                &mut graph,
                Mode::Train,
                options.keep_gradients,
                options.fuse,
                target.base(),
                &mut Timings::default(),
            )?;
        }
        let produced = interpret_steps(args, &graph, &model.imported.weights, given, labels)?;
        return deliver(args, &produced);
    }
    model.note_zeros(&mut options);
    let cost = target.cost(&model.imported.graph, &options)?;
    // Measuring holds memory of the device.
    drop(target);
    let compiled = model.compile(None, &options, &cost).map_err(load::over_budget)?;
    execute(args, compiled.plan, &model.imported.weights, given, labels)
}

/// The batch the given inputs imply, for a model whose batch is symbolic: the first extent of
/// the first model input that is given. A model of fixed batch is left alone.
fn batch_of(path: &Path, given: &Given, options: &CompileOptions) -> Option<u64> {
    let Given::Tensors(tensors) = given else { return None };
    let model = load::model(path, None, &options.dims, false).ok()?;
    let graph = &model.imported.graph;
    let names = graph.inputs().iter().map(|&v| graph.value(v).name.as_str());
    let first =
        names.filter_map(|n| tensors.named.get(n)).chain(&tensors.single).find(|t| t.ty().rank() >= 2)?;
    let batch = first.ty().dims[0];
    // A fixed-batch file refuses another batch; it then runs at its own, in slices.
    load::model(path, Some(batch), &options.dims, false).is_ok().then_some(batch)
}

fn read_inputs(specs: &[String]) -> Result<Tensors, Failure> {
    let mut given = Tensors::default();
    for spec in specs {
        let (name, path) = match spec.split_once('=') {
            Some((n, p)) if !Path::new(spec).exists() => (Some(n), Path::new(p)),
            _ => (None, Path::new(spec.as_str())),
        };
        let fail = |e: &dyn std::fmt::Display| Failure::user(format!("{}: {e}", path.display()));
        if path.extension().is_some_and(|e| e == "npz") {
            given.named.extend(npz::read(path).map_err(|e| fail(&e))?);
            continue;
        }
        let tensor = npy::read(path).map_err(|e| fail(&e))?;
        match name {
            Some(n) => {
                given.named.insert(n.to_owned(), tensor);
            }
            None if given.single.is_none() => given.single = Some(tensor),
            None => return Err(Failure::user("more than one input without a name; write NAME=x.npy")),
        }
    }
    Ok(given)
}

fn read_labels(path: &Path) -> Result<Tensor, Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::user(format!("{}: {e}", path.display()));
    let t = npy::read(path).map_err(|e| fail(&e))?;
    let values = super::dataset::integers(&t).ok_or_else(|| fail(&"labels must be integers"))?;
    Ok(Tensor::from_i64(t.ty().dims.iter().copied(), &values))
}

/// Picks and converts the tensors a graph asks for; `wanted` are its inputs' names and types.
///
/// Only in training are the labels given apart.
fn bind(
    given: Tensors,
    wanted: &[(String, TensorType)],
    mode: Mode,
) -> Result<BTreeMap<String, Tensor>, Failure> {
    let Tensors { mut named, single } = given;
    let free: Vec<_> = wanted
        .iter()
        .filter(|w| !(w.0.starts_with("vdnnc.") || mode == Mode::Train && w.0 == "labels"))
        .collect();
    if let (Some(tensor), [only]) = (single, free.as_slice()) {
        named.entry(only.0.clone()).or_insert(tensor);
    }
    let mut bound = BTreeMap::new();
    for (name, ty) in free {
        let t = named.remove(name).ok_or_else(|| {
            let names: Vec<_> = named.keys().map(String::as_str).collect();
            Failure::user(format!("no tensor for input `{name}` : {ty} (given: {})", names.join(", ")))
                .hint(format!("pass --input {name}=x.npy"))
        })?;
        bound.insert(name.clone(), to_type(t, ty.dtype));
    }
    Ok(bound)
}

fn to_type(t: Tensor, dtype: DType) -> Tensor {
    let dims = t.ty().dims.clone();
    match (t.ty().dtype, dtype) {
        (DType::F64, DType::F32) => {
            let data: Vec<f32> = t
                .bytes()
                .chunks_exact(8)
                .map(|c| f64::from_le_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]) as f32)
                .collect();
            Tensor::from_f32(dims, &data)
        }
        (DType::U8, DType::F32) => {
            let data: Vec<f32> = t.bytes().iter().map(|&b| f32::from(b)).collect();
            Tensor::from_f32(dims, &data)
        }
        (_, DType::I64) => match super::dataset::integers(&t) {
            Some(v) => Tensor::from_i64(dims, &v),
            None => t,
        },
        _ => t,
    }
}

/// Rows `[start, start + n)` along the first dimension.
fn rows(t: &Tensor, start: u64, n: u64) -> Tensor {
    let ty = t.ty();
    let row = t.bytes().len() / ty.dims[0] as usize;
    let mut out = ty.clone();
    out.dims[0] = n;
    let range = start as usize * row..(start + n) as usize * row;
    Tensor::from_bytes(out, &t.bytes()[range]).expect("whole rows")
}

/// How many whole batches the bound inputs hold; every input must hold the same number.
fn slices(bound: &BTreeMap<String, Tensor>, wanted: &[(String, TensorType)]) -> Result<u64, Failure> {
    let mut count = 1;
    for (name, ty) in wanted {
        let Some(t) = bound.get(name) else { continue };
        let (have, want) = (&t.ty().dims, &ty.dims);
        let error = || {
            Failure::user(format!("input `{name}` is {}, the plan wants {ty}", t.ty()))
                .hint("the first dimension may be a multiple of the batch; all others must be equal")
        };
        if t.ty().dtype != ty.dtype || have.len() != want.len() || have.is_empty() && !want.is_empty() {
            return Err(error());
        }
        if have == want {
            continue;
        }
        if have[1..] != want[1..] || want[0] == 0 || have[0] == 0 || !have[0].is_multiple_of(want[0]) {
            return Err(error());
        }
        count = have[0] / want[0];
    }
    for (name, ty) in wanted {
        if let Some(t) = bound.get(name)
            && !ty.dims.is_empty()
            && t.ty().dims[0] != ty.dims[0] * count
        {
            return Err(Failure::user(format!(
                "input `{name}` holds another number of batches than the others"
            )));
        }
    }
    Ok(count)
}

/// Inputs of step `i`: a slice of the data, the optimizer's settings and the step number.
fn step_inputs(
    args: &RunArgs,
    bound: &BTreeMap<String, Tensor>,
    wanted: &[(String, TensorType)],
    count: u64,
    step: u64,
) -> BTreeMap<String, Tensor> {
    let mut inputs = BTreeMap::new();
    for (name, ty) in wanted {
        let tensor = match name.as_str() {
            "vdnnc.hyper" => Tensor::from_f32([3], &[args.sgd.lr, args.sgd.momentum, args.sgd.weight_decay]),
            "vdnnc.step" => Tensor::from_i64([], &[step as i64]),
            _ if count == 1 => bound[name].clone(),
            _ => rows(&bound[name], (step % count) * ty.dims[0], ty.dims[0]),
        };
        inputs.insert(name.clone(), tensor);
    }
    inputs
}

fn bind_all(
    mode: Mode,
    given: Given,
    labels: Option<Tensor>,
    wanted: &[(String, TensorType)],
) -> Result<(BTreeMap<String, Tensor>, u64), Failure> {
    let mut bound = match given {
        Given::Synthetic => return Ok((super::synthetic::inputs(wanted)?, 1)),
        Given::Tensors(tensors) => bind(tensors, wanted, mode)?,
    };
    if mode == Mode::Train {
        let labels = labels.ok_or_else(|| Failure::user("training steps need --labels y.npy"))?;
        bound.insert("labels".to_owned(), labels);
    }
    let count = slices(&bound, wanted)?;
    Ok((bound, count))
}

/// What `--backend sim` prints.
fn predicted(sim: &SimResult, device: &str, json: bool) -> String {
    if json {
        let object = serde_json::json!({
            "device": device, "step_ns": sim.step.0, "compute_ns": sim.compute.0, "stall_ns": sim.stall.0,
            "peak_live_bytes": sim.peak_live.0, "average_live_bytes": sim.average_live.0,
        });
        return object.to_string();
    }
    format!(
        "on {device}: predicted step {}, kernels {}, stall {}\n  live device memory: at most {}, {} on average\n",
        sim.step, sim.compute, sim.stall, sim.peak_live, sim.average_live
    )
}

fn execute(
    args: &RunArgs,
    plan: Plan,
    weights: &Weights,
    given: Given,
    labels: Option<Tensor>,
) -> Result<(), Failure> {
    let mode = plan.header.mode;
    if args.backend() == BackendName::Sim {
        let shared = &args.shared;
        let cost = match (&shared.gpu.device_profile, &shared.device) {
            (None, DeviceName::Profile(_) | DeviceName::Gpu(_)) => {
                load::cost_model(&plan.header.device, plan.header.precision)?
            }
            _ => target::profile(shared, plan.header.precision)?,
        };
        let sim = simulate(&plan, &cost).map_err(Failure::internal)?;
        super::print(&predicted(&sim, cost.device_name(), args.json));
        return Ok(());
    }
    if args.save_gradients.is_some() && !plan.outputs.iter().any(|o| o.name.starts_with("grad:")) {
        return Err(
            Failure::user("this plan does not keep gradients").hint("compile it with --keep-gradients")
        );
    }
    let wanted: Vec<(String, TensorType)> =
        plan.inputs.iter().map(|i| (i.name.clone(), plan.buffers[i.buf].ty.clone())).collect();
    let (bound, count) = bind_all(mode, given, labels, &wanted)?;
    let backend = match choice(args) {
        Some(choice) => {
            if args.shared.micro.verify_equivalence {
                equivalence::verify(&plan, &choice)?;
            }
            choice.open()?
        }
        None => return Err(Failure::internal("the simulator computes nothing")),
    };
    let params: Vec<(String, ParamRole)> = plan.params.iter().map(|p| (p.name.clone(), p.role)).collect();
    let mut executor = Executor::load(plan, &FromWeights(weights), backend).map_err(Failure::user)?;
    let mut produced = Produced::default();
    let steps = if mode == Mode::Train { args.steps } else { count };
    let progress = crate::progress::Progress::new(steps, "step");
    for step in 0..steps {
        let outputs =
            executor.step(&step_inputs(args, &bound, &wanted, count, step)).map_err(Failure::user)?;
        collect(&mut produced, mode, step, outputs)?;
        progress.tick(produced.losses.last().map(|l| format!("loss {l:.4}")).unwrap_or_default());
    }
    progress.finish();
    if args.save_weights.is_some() {
        for (name, role) in params {
            if matches!(role, ParamRole::Trainable | ParamRole::Statistic) {
                let t = executor.read_param(&name).map_err(Failure::internal)?;
                produced.params.insert(name, t);
            }
        }
    }
    deliver(args, &produced)
}

/// The executor asked for, if it is one that computes.
fn choice(args: &RunArgs) -> Option<Choice<'_>> {
    let backend = match args.backend() {
        BackendName::Cpu => ComputeBackend::Cpu,
        BackendName::Cuda => ComputeBackend::Cuda,
        BackendName::Sim => return None,
    };
    Some(Choice {
        backend,
        threads: args.threads,
        poison: args.poison,
        cuda: &args.cuda,
        shared: &args.shared,
    })
}

/// Number of kernel threads unless the user says: one per core.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn collect(
    produced: &mut Produced,
    mode: Mode,
    step: u64,
    outputs: BTreeMap<String, Tensor>,
) -> Result<(), Failure> {
    if mode == Mode::Infer {
        for (name, t) in outputs {
            match produced.outputs.entry(name) {
                std::collections::btree_map::Entry::Vacant(e) => {
                    e.insert(t);
                }
                std::collections::btree_map::Entry::Occupied(mut e) => {
                    // A scalar output has no rows; the last one stands.
                    let joined = super::dataset::append(e.get(), &t).unwrap_or(t);
                    e.insert(joined);
                }
            }
        }
        return Ok(());
    }
    for (name, t) in outputs {
        if name == "loss" {
            let loss = t.f32()[0];
            if !loss.is_finite() {
                return Err(Failure::user(format!("the loss is {loss} at step {step}"))
                    .hint("lower --lr, or look at the input for NaN"));
            }
            produced.losses.push(loss);
        } else if let Some(param) = name.strip_prefix("grad:") {
            produced.gradients.insert(param.to_owned(), t);
        }
    }
    Ok(())
}

fn interpret_steps(
    args: &RunArgs,
    graph: &Graph,
    weights: &Weights,
    given: Given,
    labels: Option<Tensor>,
) -> Result<Produced, Failure> {
    let wanted: Vec<(String, TensorType)> =
        graph.inputs().iter().map(|&v| (graph.value(v).name.clone(), graph.ty(v).clone())).collect();
    let (bound, count) = bind_all(graph.mode, given, labels, &wanted)?;
    let mut params = load::tensors(weights);
    let mut produced = Produced::default();
    let steps = if graph.mode == Mode::Train { args.steps } else { count };
    for step in 0..steps {
        let inputs = step_inputs(args, &bound, &wanted, count, step);
        let evaluation = interpret(graph, &inputs, &params, &NaiveKernels).map_err(Failure::user)?;
        collect(&mut produced, graph.mode, step, evaluation.outputs)?;
        params.extend(evaluation.params);
    }
    params.retain(|name, _| !name.starts_with("momentum:"));
    produced.params = params;
    Ok(produced)
}

fn deliver(args: &RunArgs, produced: &Produced) -> Result<(), Failure> {
    let fail = |p: &Path, e: &dyn std::fmt::Display| Failure::user(format!("{}: {e}", p.display()));
    if let Some(path) = &args.output {
        npz::write(path, &produced.outputs, npz::Compression::Stored).map_err(|e| fail(path, &e))?;
    }
    if let Some(path) = &args.save_weights {
        safetensors::write(path, &produced.params).map_err(|e| fail(path, &e))?;
    }
    if let Some(path) = &args.save_gradients {
        safetensors::write(path, &produced.gradients).map_err(|e| fail(path, &e))?;
    }
    let top: BTreeMap<&String, Vec<usize>> =
        produced.outputs.iter().filter_map(|(n, t)| Some((n, top1(t)?))).collect();
    if args.json {
        let shapes: BTreeMap<&String, String> =
            produced.outputs.iter().map(|(n, t)| (n, t.ty().to_string())).collect();
        super::print(
            &serde_json::json!({"loss": produced.losses, "outputs": shapes, "top1": top}).to_string(),
        );
    } else {
        let mut text = String::new();
        for (i, loss) in produced.losses.iter().enumerate() {
            text.push_str(&format!("step {i} loss {loss:.6}\n"));
        }
        for (name, t) in &produced.outputs {
            text.push_str(&format!("{name} : {}", t.ty()));
            if let Some(top) = top.get(name) {
                text.push_str(&format!(" top-1 {top:?}"));
            }
            text.push('\n');
        }
        super::print(&text);
    }
    Ok(())
}

/// Index of the largest value per row of an f32 matrix.
fn top1(t: &Tensor) -> Option<Vec<usize>> {
    if t.ty().dtype != DType::F32 || t.ty().rank() < 2 || t.ty().elements() == 0 {
        return None;
    }
    let row = (t.ty().elements() / t.ty().dims[0]) as usize;
    Some(
        t.f32()
            .chunks_exact(row)
            .map(|r| r.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |m| m.0))
            .collect(),
    )
}
