//! Plans whose convolution engines are those of another GPU or cuDNN: refused, or made anew.

use super::backend;
use super::load;
use super::target::{Runner, Target};
use crate::cli::{CudaArgs, DeviceName, SharedArgs};
use crate::error::Failure;
use crate::options::CompileOptions;
use crate::recorded;
use std::path::Path;
use vdnn_ir::Weights;
use vdnn_passes::{AlgoMode, Packing, Policy};
use vdnn_plan::{Command, CopyForm, EngineOrigin, Plan};

/// The plan as the GPU at hand can run it: itself, or one made anew if `anew` permits that.
///
/// # Errors
/// If its engines are another GPU's or cuDNN's and it must not or cannot be planned anew.
pub fn for_gpu(
    plan: Plan,
    path: &Path,
    anew: bool,
    (shared, cuda): (&SharedArgs, &CudaArgs),
) -> Result<(Plan, Weights), Failure> {
    let selector = backend::selector(cuda, shared);
    if plan.uses_engines() {
        let (_, on) = backend::identify(shared, &selector, "unknown")?;
        let here = EngineOrigin { device: on.device, cudnn: on.cudnn };
        if must_replan(&plan, path, &here, anew)? {
            let shared =
                SharedArgs { device: DeviceName::Gpu(selector), kernels_from: None, ..shared.clone() };
            let mut options = options(&plan, &shared)?;
            let mut target = Target::open(&mut options, &shared, Runner::Device)?;
            return again(&plan, path, options, &mut target);
        }
    }
    let weights = load::model_of_plan(&plan, path)?;
    Ok((plan, weights))
}

/// Whether a plan must be made anew to run here.
///
/// # Errors
/// If it must, and that was not asked for.
pub fn must_replan(plan: &Plan, path: &Path, here: &EngineOrigin, anew: bool) -> Result<bool, Failure> {
    match plan.engines_differ(here) {
        None => Ok(false),
        Some(_) if anew => Ok(true),
        Some(why) => Err(Failure::user(format!("{}: {why}", path.display())).hint(
            "run it with --replan to plan its model anew for this GPU, or compile it with --device cuda:N",
        )),
    }
}

/// Options that a plan was made with, as far as it tells; the command line's otherwise.
///
/// # Errors
/// If the plan names a policy, mode or other option there is none of.
pub fn options(plan: &Plan, shared: &SharedArgs) -> Result<CompileOptions, Failure> {
    let header = &plan.header;
    let policy: Policy = header.policy.parse().map_err(Failure::user)?;
    let algo: AlgoMode = header.algo.parse().map_err(Failure::user)?;
    let mut options = CompileOptions {
        policy,
        algo,
        batch: Some(header.batch),
        precision: header.precision,
        host_memory: shared.host_memory.or(plan.host.budget),
        ..shared.options_on_gpu(header.mode)
    };
    // Plans of before there was such a record show these.
    let packs = plan.commands.iter().any(|c| matches!(c, Command::Copy { form: CopyForm::Pack, .. }));
    if packs {
        options.packing = Packing::Auto;
    }
    recorded::restore(&header.options, &mut options)?;
    options.deterministic |= shared.deterministic;
    options.keep_gradients |=
        shared.keep_gradients || plan.outputs.iter().any(|o| o.name.starts_with("grad:"));
    Ok(options)
}

/// Plans the model of a plan anew, within the arena the plan had.
///
/// # Errors
/// If the plan names no model, or there is no plan for it here.
pub fn again(
    plan: &Plan,
    path: &Path,
    mut options: CompileOptions,
    target: &mut Target,
) -> Result<(Plan, Weights), Failure> {
    let Some(reference) = &plan.header.model else {
        return Err(Failure::user(format!("{}: the plan names no model to plan anew", path.display()))
            .hint("compile the model again with --device cuda:N"));
    };
    let training = options.mode == vdnn_ir::Mode::Train;
    let model = load::referenced(plan, reference, path, &options.dims, training)?;
    // The plan states its arena's limit, the options that of the whole process.
    let scratch = crate::streams::scratch(&options, plan.compute_streams());
    let whole =
        plan.device.budget.map(|arena| arena.saturating_add(options.overhead).saturating_add(scratch));
    options.memory = options.memory.or(whole);
    model.note_zeros(&mut options);
    let cost = target.cost(&model.imported.graph, &options)?;
    let compiled = model.compile(Some(reference.clone()), &options, &cost).map_err(load::over_budget)?;
    super::note(&format!("{}: planned anew for {}", path.display(), cost.device_name()));
    Ok((compiled.plan, model.imported.weights))
}
