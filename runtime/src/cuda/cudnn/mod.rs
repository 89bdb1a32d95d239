//! Convolutions by cuDNN, through its backend (graph) API; the older algorithm API on demand.
//!
//! A plan names a kernel by engine and knobs ([`ConvAlgo::Engine`]): exactly that one is
//! built, or the launch is refused. A plan that was priced by the roofline names a classic
//! algorithm: the fastest engine, by cuDNN's own heuristics, whose scratch fits is taken.

mod api;
mod desc;
mod engine;
mod graph;
mod legacy;
mod plan;
mod problem;

pub(crate) use engine::{Candidate, Notes, Source};

use super::error::CudaError;
use super::launch::{DeviceRange, LaunchSpec, Prepared};
use api::Session;
use desc::Target;
use engine::BIAS_APART;
use graph::Graph;
use legacy::{LegacyConv, LegacyLaunch};
use plan::{Built, Launch, Plan, Pointers};
use problem::Problem;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use vdnn_cost::Precision;
use vdnn_ir::graph::{ConvAlgo, EngineConfig};
use vdnn_ir::{Bytes, Op, TensorType};

/// Makes the step that runs a convolution's epilogue apart, where no engine fuses it.
pub(crate) type MakeEpilogue<'a> = &'a mut dyn FnMut() -> Result<Box<dyn Prepared>, CudaError>;

/// What to ask of cuDNN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DnnOptions {
    /// No engine whose results differ from run to run.
    pub deterministic: bool,
    /// Ask the slower, learned heuristic as well.
    pub mode_b: bool,
}

/// Candidates of one source.
type List = Rc<Vec<Candidate>>;

/// A cuDNN handle of the context that was current when it was made, and the kernels built
/// with it. Not for use from several threads.
#[derive(Debug)]
pub(crate) struct Dnn {
    target: Target,
    options: DnnOptions,
    graphs: RefCell<HashMap<Problem, Rc<Graph>>>,
    /// What each list holds for a problem; asking takes milliseconds, for every engine there
    /// is half a second.
    lists: RefCell<HashMap<(Problem, Source), List>>,
    built: RefCell<HashMap<(Problem, EngineConfig), Rc<Built>>>,
}

impl Dnn {
    /// Creates the handle.
    ///
    /// # Errors
    /// [`CudaError::MissingLibrary`] without cuDNN; [`CudaError::Cudnn`] if it does not start.
    pub(crate) fn with_options(options: DnnOptions) -> Result<Self, CudaError> {
        Ok(Self::on(Target::new(Session::new()?), options))
    }

    fn on(target: Target, options: DnnOptions) -> Self {
        let (graphs, lists, built) = Default::default();
        Self { target, options, graphs, lists, built }
    }

    /// Version of the library, such as `9.19.0`.
    pub(crate) fn version(&self) -> String {
        let v = self.target.session.version();
        format!("{}.{}.{}", v / 10000, v / 100 % 100, v % 100)
    }

    /// Drops every kernel that no launch uses any more.
    pub(crate) fn forget_unused(&self) {
        self.built.borrow_mut().retain(|_, b| Rc::strong_count(&b.plan) > 1);
    }

    fn graph(&self, problem: &Problem) -> Result<Rc<Graph>, CudaError> {
        if let Some(graph) = self.graphs.borrow().get(problem) {
            return Ok(Rc::clone(graph));
        }
        let graph = Rc::new(graph::build(&self.target, problem)?);
        self.graphs.borrow_mut().insert(problem.clone(), Rc::clone(&graph));
        Ok(graph)
    }

    /// The kernel `config` names, for the problem with its bias fused or apart.
    fn build(&self, problem: &Problem, config: EngineConfig) -> Result<Rc<Plan>, CudaError> {
        let problem = if is_apart(config) { problem.without_epilogue() } else { problem.clone() };
        let key = (problem, config);
        if let Some(built) = self.built.borrow().get(&key) {
            return Ok(Rc::clone(&built.plan));
        }
        let graph = self.graph(&key.0)?;
        let plan = Plan::build(&self.target, engine::rebuild(&self.target, &graph, config)?)?;
        let built = Rc::new(Built::new(plan, graph));
        let plan = Rc::clone(&built.plan);
        self.built.borrow_mut().insert(key, built);
        Ok(plan)
    }

    /// The lists to ask, best first.
    fn sources(&self) -> Vec<Source> {
        let mode_b = self.options.mode_b.then_some(Source::ModeB);
        [Some(Source::ModeA), mode_b, Some(Source::Fallback), Some(Source::Exhaustive)]
            .into_iter()
            .flatten()
            .collect()
    }

    /// What one list offers for a problem.
    fn list(&self, problem: &Problem, source: Source) -> Result<List, CudaError> {
        let key = (problem.clone(), source);
        if let Some(list) = self.lists.borrow().get(&key) {
            return Ok(Rc::clone(list));
        }
        let list = Rc::new(engine::offered(&self.target, &*self.graph(problem)?, source)?);
        self.lists.borrow_mut().insert(key, Rc::clone(&list));
        Ok(list)
    }

    /// What some lists offer for one graph and the precision admits, each engine
    /// configuration once.
    fn offers(
        &self,
        problem: &Problem,
        precision: Precision,
        sources: &[Source],
    ) -> Result<Vec<Candidate>, CudaError> {
        let mut all: Vec<Candidate> = Vec::new();
        let mut refused = None;
        for &source in sources {
            match self.list(problem, source) {
                Ok(list) => all.extend(list.iter()),
                Err(error) => refused = Some(error),
            }
        }
        if let (true, Some(error)) = (all.is_empty(), refused) {
            return Err(error);
        }
        let mut seen = Vec::new();
        all.retain(|c| {
            let fits = c.notes.refusal(precision, self.options.deterministic).is_none();
            let new = fits && !seen.contains(&c.config);
            seen.push(c.config);
            new
        });
        Ok(all)
    }

    fn candidates(
        &self,
        problem: &Problem,
        precision: Precision,
        sources: &[Source],
    ) -> Result<Vec<Candidate>, CudaError> {
        if !problem.has_epilogue() {
            return self.offers(problem, precision, sources);
        }
        // No engine that fuses the epilogue is a reason to run it apart, not to fail.
        let fused = self.offers(problem, precision, sources).unwrap_or_default();
        let apart = self.offers(&problem.without_epilogue(), precision, sources)?;
        let apart = apart.into_iter().filter_map(|c| Some(Candidate { config: apart_of(c.config)?, ..c }));
        Ok(fused.into_iter().chain(apart).collect())
    }
}

/// True if the configuration of a convolution with bias adds the bias in a step of its own.
pub(crate) fn is_apart(config: EngineConfig) -> bool {
    config.knobs().iter().any(|&(kind, _)| kind == BIAS_APART)
}

/// The configuration with the mark that the bias is a step of its own; `None` if it has no
/// room for it.
fn apart_of(config: EngineConfig) -> Option<EngineConfig> {
    let mut knobs = config.knobs().to_vec();
    knobs.push((BIAS_APART, 1));
    EngineConfig::new(config.engine(), &knobs)
}

/// Configurations that cuDNN's heuristics offer for a convolution op that the precision (and
/// [`DnnOptions::deterministic`]) admits: heuristic mode A in its order, then mode B if asked
/// for, the fallbacks, and if `every`, which takes longer to ask, every other engine with its
/// default knobs; for a convolution with an epilogue first those that fuse it, then those that
/// run it in a second step. Each once; whether it builds shows when it is prepared.
///
/// # Errors
/// [`CudaError::Unsupported`] as [`Problem::of`]; [`CudaError::Cudnn`] if cuDNN refuses the
/// convolution altogether.
pub(crate) fn candidates(
    op: &Op,
    inputs: &[&TensorType],
    outputs: &[&TensorType],
    precision: Precision,
    every: bool,
    dnn: &Dnn,
) -> Result<Vec<Candidate>, CudaError> {
    let mut sources = dnn.sources();
    sources.retain(|s| every || *s != Source::Exhaustive);
    let problem = Problem::of(op, inputs, outputs)?;
    match dnn.candidates(&problem, precision, &sources) {
        Ok(found) if every || !found.is_empty() => Ok(found),
        // Better those than none.
        _ => dnn.candidates(&problem, precision, &dnn.sources()),
    }
}

/// The workspace of one engine configuration of a convolution op, which is built for it.
///
/// # Errors
/// As [`candidates`], and if there is no such engine or it does not build.
pub(crate) fn workspace(
    op: &Op,
    inputs: &[&TensorType],
    outputs: &[&TensorType],
    config: EngineConfig,
    dnn: &Dnn,
) -> Result<Bytes, CudaError> {
    Ok(dnn.build(&Problem::of(op, inputs, outputs)?, config)?.workspace)
}

/// Prepares a convolution or one of its gradients.
///
/// An engine runs in the plan's workspace. A classic name of an exact launch is that algorithm, by
/// the older API. Another one, or none, stands for the first of
/// [`candidates`] that builds and whose scratch fits the plan's workspace or, where that is
/// larger, the shared scratch range.
///
/// # Errors
/// [`CudaError::Unsupported`] as [`Problem::of`] or if no engine fits; [`CudaError::BadPlan`]
/// if the engine named does not exist or build here, needs more workspace than the plan gives
/// it, or its arithmetic is not what was asked for; [`CudaError::Cudnn`] if cuDNN refuses an exact
/// algorithm for the shape.
pub(crate) fn prepare(
    spec: &LaunchSpec<'_>,
    dnn: &Dnn,
    epilogue: MakeEpilogue<'_>,
) -> Result<Box<dyn Prepared>, CudaError> {
    let inputs: Vec<&TensorType> = spec.inputs.iter().map(|o| o.ty).collect();
    let outputs: Vec<&TensorType> = spec.outputs.iter().map(|o| o.ty).collect();
    let mut problem = Problem::of(spec.op, &inputs, &outputs)?;
    if spec.accumulate {
        problem = problem.accumulating()?;
    }
    let pointers = Pointers::of(spec, problem.dir)?;
    match spec.algo {
        Some(ConvAlgo::Engine(config)) => exact(spec, dnn, epilogue, &problem, pointers, config),
        Some(algo) if spec.exact => named(spec, dnn, epilogue, &problem, pointers, algo),
        _ => first_that_fits(spec, dnn, epilogue, &problem, pointers),
    }
}

/// The engine a plan names, and no other.
fn exact(
    spec: &LaunchSpec<'_>,
    dnn: &Dnn,
    epilogue: MakeEpilogue<'_>,
    problem: &Problem,
    pointers: Pointers,
    config: EngineConfig,
) -> Result<Box<dyn Prepared>, CudaError> {
    let bad = |why: String| CudaError::BadPlan {
        why: format!(
            "`{}`: {config} of cuDNN {}: {why}; plan again on this device",
            spec.name,
            dnn.version()
        ),
    };
    let plan = dnn.build(problem, config).map_err(|e| bad(e.to_string()))?;
    if let Some(why) = plan.notes.refusal(spec.precision, dnn.options.deterministic) {
        return Err(bad(why.to_owned()));
    }
    let given = spec.workspace.map_or(Bytes::ZERO, |w| w.bytes);
    if plan.workspace > given {
        return Err(bad(format!("it needs a workspace of {}, and the plan gives {given}", plan.workspace)));
    }
    let apart = is_apart(config);
    launch(dnn, epilogue, plan, pointers, spec.workspace, apart)
}

/// The best engine, in the order of the heuristics, that builds and fits.
fn first_that_fits(
    spec: &LaunchSpec<'_>,
    dnn: &Dnn,
    epilogue: MakeEpilogue<'_>,
    problem: &Problem,
    pointers: Pointers,
) -> Result<Box<dyn Prepared>, CudaError> {
    let given = spec.workspace.map_or(Bytes::ZERO, |w| w.bytes);
    let limit = given.max(spec.scratch.bytes);
    let mut why = format!("no engine of cuDNN fits a workspace of {limit}");
    // The first list nearly always has one; the others take time to make.
    for source in dnn.sources() {
        let candidates = match dnn.candidates(problem, spec.precision, &[source]) {
            Ok(candidates) => candidates,
            Err(error) => {
                why = error.to_string();
                continue;
            }
        };
        for candidate in candidates.iter().filter(|c| c.workspace <= limit) {
            let plan = match dnn.build(problem, candidate.config) {
                Ok(plan) if plan.workspace <= limit => plan,
                Ok(_) => continue,
                Err(error) => {
                    why = error.to_string();
                    continue;
                }
            };
            // Notes may be told in full only once the engine is built.
            if let Some(refusal) = plan.notes.refusal(spec.precision, dnn.options.deterministic) {
                why = refusal.to_owned();
                continue;
            }
            let range = if plan.workspace <= given { spec.workspace } else { Some(spec.scratch) };
            return launch(dnn, epilogue, plan, pointers, range, is_apart(candidate.config));
        }
    }
    Err(CudaError::Unsupported { op: spec.op.to_string(), why })
}

/// The classic algorithm itself, by the older API.
fn named(
    spec: &LaunchSpec<'_>,
    dnn: &Dnn,
    epilogue: MakeEpilogue<'_>,
    problem: &Problem,
    pointers: Pointers,
    algo: ConvAlgo,
) -> Result<Box<dyn Prepared>, CudaError> {
    let session = &dnn.target.session;
    let conv = LegacyConv::new(session, problem, algo, spec.precision, dnn.options.deterministic)?;
    let ranges = [spec.workspace, Some(spec.scratch)];
    let workspace = if conv.workspace == Bytes::ZERO {
        None
    } else {
        let fits = |r: &DeviceRange| r.bytes >= conv.workspace;
        let range = ranges.into_iter().flatten().find(fits);
        Some(range.ok_or_else(|| CudaError::BadPlan {
            why: format!(
                "`{}`: {algo} of cuDNN {} needs a workspace of {}, more than the plan gives it",
                spec.name,
                dnn.version(),
                conv.workspace
            ),
        })?)
    };
    let epilogue = if problem.has_epilogue() { Some(epilogue()?) } else { None };
    Ok(Box::new(LegacyLaunch { conv, pointers, workspace, epilogue }))
}

fn launch(
    dnn: &Dnn,
    epilogue: MakeEpilogue<'_>,
    plan: Rc<Plan>,
    pointers: Pointers,
    workspace: Option<DeviceRange>,
    apart: bool,
) -> Result<Box<dyn Prepared>, CudaError> {
    let epilogue = if apart { Some(epilogue()?) } else { None };
    Ok(Box::new(Launch::new(&dnn.target.session, plan, pointers, workspace, epilogue)?))
}

#[cfg(test)]
mod tests;
