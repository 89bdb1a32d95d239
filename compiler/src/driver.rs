//! Graph in, checked plan out.

use crate::alternatives::{self, Alternative};
use crate::error::Failure;
use crate::options::CompileOptions;
use crate::pipeline;
use crate::recorded;
use crate::search::{Candidate, Search, lay_out};
use crate::slicing::{self, Slices};
use crate::streams::{self, Made, Making};
use crate::timing::Timings;
use std::rc::Rc;
use std::time::Instant;
use vdnn_cost::{CopyDir, CostModel};
use vdnn_ir::{Bytes, Graph, Mode, Nanos, Phase};
use vdnn_passes::fuse_pyramids::{Rule, footprints};
use vdnn_passes::lower::expected_terms;
use vdnn_passes::memory::LayoutOptions;
use vdnn_passes::micro_batch::Menu;
use vdnn_passes::streams::Lanes;
use vdnn_passes::{AlgoMode, PassError, Policy, Recompute, Stats};
use vdnn_plan::plan::{EngineOrigin, Header, ModelRef};
use vdnn_plan::{Command, Plan, check::CheckStats};
use vdnn_runtime::sim::SimResult;

/// A compilation that produced a plan within the budget.
#[derive(Debug)]
pub struct Compiled {
    /// The scheduled graph.
    pub graph: Graph,
    /// The checked plan.
    pub plan: Plan,
    /// What the checker counted.
    pub checked: CheckStats,
    /// The predicted timeline.
    pub sim: SimResult,
    /// Sizes and times for reports.
    pub summary: Summary,
}

/// The figures every compilation reports, fitting or not.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Device profile.
    pub device: String,
    /// Batch the shapes are bound to.
    pub batch: u64,
    /// Policy that was used (`dyn` resolved).
    pub chosen_policy: Policy,
    /// Limit of the device arena.
    pub budget: Bytes,
    /// Limit of all the process takes on the device.
    pub limit: Bytes,
    /// What of it is not the arena's.
    pub overhead: Bytes,
    /// True if the arena is within the budget.
    pub fits: bool,
    /// Whole device arena.
    pub peak: Bytes,
    /// Time-weighted mean of live device bytes; zero if nothing was simulated.
    pub average: Bytes,
    /// Largest sum of aligned live bytes at one point of the compute stream.
    pub lower_bound: Bytes,
    /// Arena of the same graph and algorithms under `baseline`.
    pub baseline_peak: Bytes,
    /// Parameters other than optimizer state.
    pub weights: Bytes,
    /// Largest workspace.
    pub workspace: Bytes,
    /// Pinned host arena.
    pub host: Bytes,
    /// Its limit, if there is one.
    pub host_limit: Option<Bytes>,
    /// Bytes of tensors copied to the host in one step.
    pub offload: Bytes,
    /// Of these, the bytes of those that go packed.
    pub offload_packed: Bytes,
    /// Bytes copied back in one step.
    pub prefetch: Bytes,
    /// Predicted step time.
    pub step: Nanos,
    /// Predicted time of the kernels alone.
    pub compute: Nanos,
    /// Kernels of a step, but those that take no time, such as slices that lie in place.
    pub launches: u64,
    /// Predicted idle time of the compute stream.
    pub stall: Nanos,
    /// No schedule of these kernels and copies can be faster: the busiest engine's time.
    pub step_lower_bound: Nanos,
    /// Decoded model to checked plan.
    pub compile: Nanos,
    /// Rows per pass.
    pub timings: Timings,
}

/// Why there is no plan.
#[derive(Debug)]
pub enum NoPlan {
    /// An arena would be larger than its budget; figures are those of the best attempt.
    TooLarge {
        /// The attempt.
        summary: Box<Summary>,
        /// Smallest arena of any policy, its policy, with the leanest algorithms.
        smallest: (Bytes, Policy),
    },
    /// Anything else.
    Failed(Failure),
}

impl From<PassError> for NoPlan {
    fn from(e: PassError) -> Self {
        Self::Failed(e.into())
    }
}

/// The graph at the end of a phase, for `--emit graph --stop-after`.
///
/// # Errors
/// Those of the passes.
pub fn stop_after(
    mut graph: Graph,
    phase: Phase,
    options: &CompileOptions,
    cost: &CostModel,
) -> Result<Graph, PassError> {
    let mut timings = Timings::default();
    // Of several plans the finished one tells which it is.
    let tried = (phase > Phase::Simplified && alternatives::may_differ(options, cost)).then_some(());
    let settled = tried.and_then(|_| settle(&graph, slicing::batch_of(&graph), None, options, cost).ok());
    let (options, cost) = settled.as_ref().map_or((options, cost), |(_, options, cost)| (options, cost));
    if phase >= Phase::Simplified {
        let cx = vdnn_passes::PassCtx { cost };
        if phase == Phase::Simplified {
            timings.pass(&vdnn_passes::simplify::Simplify, &mut graph, &cx)?;
            return Ok(graph);
        }
        let batch = slicing::batch_of(&graph);
        // A search has not been made yet; a number needs none.
        let way = match options.slices {
            Slices::Count(_) => slicing::candidates(&graph, batch, options, cost)?.pop(),
            _ => None,
        };
        graph = slicing::joint(&graph, options, way, cost, &mut timings)?;
    }
    if phase <= Phase::Joint {
        return Ok(graph);
    }
    let search = Search {
        joint: &graph,
        cost,
        budget: options.budget(cost.capacity()),
        host_budget: options.host_memory,
        sync: options.sync,
        packing: options.packing,
        kernels: &options.kernels,
        workspace: options.workspace,
        menu: Rc::new(Menu::new(options.micro_batch)),
        thorough_layout: options.thorough_layout,
    };
    let candidate = choose(&search, options, &mut timings)?;
    if phase == Phase::Scheduled {
        return Ok(candidate.graph);
    }
    let attempt = pipeline::Attempt {
        policy: candidate.policy,
        algo: rule_for_fixed(candidate.algo),
        overrides: candidate
            .graph
            .nodes()
            .filter_map(|(id, n)| graph.get_node(id).and(n.algo.clone()).map(|a| (id, a)))
            .collect(),
        workspace: options.workspace,
        menu: Rc::clone(&search.menu),
        sync: options.sync,
        packing: options.packing,
        lag: 1,
    };
    pipeline::to_phase(&mut graph, phase, &attempt, cost, &mut timings)?;
    Ok(graph)
}

/// The rule for a graph whose algorithms are those of a candidate: it prices them.
fn rule_for_fixed(algo: AlgoMode) -> AlgoMode {
    if matches!(algo, AlgoMode::Only(_)) { algo } else { AlgoMode::Performance }
}

fn choose(
    search: &Search<'_>,
    options: &CompileOptions,
    timings: &mut Timings,
) -> Result<Candidate, PassError> {
    match (options.mode, options.policy) {
        // Nothing moves in inference; only the algorithms are left to choose.
        (Mode::Infer, Policy::Dyn | Policy::All | Policy::Conv) => {
            search.with_policy(Policy::None, options.algo, timings)
        }
        (_, Policy::Dyn) => search.dynamic(options.algo, timings),
        (_, policy) => search.with_policy(policy, options.algo, timings),
    }
}

/// Compiles an imported graph to a checked plan. Where no plan is within the budget and the
/// options allow predicted pyramids, more and more of them are fused for their footprint, however
/// slow, until one is.
///
/// # Errors
/// [`NoPlan`]: over budget with figures, or a failure.
pub fn compile(
    graph: Graph,
    batch: u64,
    model: Option<ModelRef>,
    options: &CompileOptions,
    cost: &CostModel,
) -> Result<Compiled, NoPlan> {
    settle(&graph, batch, model, options, cost).map(|(compiled, ..)| compiled)
}

/// What [`compile`] gives, and the options and the cost model that the plan was made with: of the plans of
/// [`alternatives`] the fastest.
fn settle(
    graph: &Graph,
    batch: u64,
    model: Option<ModelRef>,
    options: &CompileOptions,
    cost: &CostModel,
) -> Result<(Compiled, CompileOptions, CostModel), NoPlan> {
    let start = Instant::now();
    let found = compile_in(graph, batch, model.clone(), options, cost, start);
    // Where nothing was done about zeros the first plan is what the others would be.
    let differ = found.as_ref().map_or(true, |found| alternatives::is_sparse(&found.summary.timings));
    let mut best = found.map(|compiled| (compiled, options.clone(), cost.clone()));
    if !differ && alternatives::row_major(options, cost).is_none() {
        return best;
    }
    for Alternative { options: tried, cost, pays } in
        alternatives::of(graph, options, cost).unwrap_or_default()
    {
        let Ok(mut other) = compile_in(graph, batch, model.clone(), &tried, &cost, start) else { continue };
        other.plan.header.options = recorded::of(options);
        let step = |c: &Compiled| u128::from(c.summary.step.0);
        // Also where engines of another plan, of another layout, do not run in the first.
        let better =
            best.as_ref().map_or(true, |(best, ..)| step(&other) * 100 < step(best) * u128::from(pays));
        if better {
            best = Ok((other, tried, cost));
        }
    }
    best
}

/// The plan for these options and this cost model alone.
fn compile_in(
    graph: &Graph,
    batch: u64,
    model: Option<ModelRef>,
    options: &CompileOptions,
    cost: &CostModel,
    start: Instant,
) -> Result<Compiled, NoPlan> {
    let plan = |tried: &CompileOptions, way| {
        let mut timings = Timings::default();
        let joint = slicing::joint(graph, tried, way, cost, &mut timings)?;
        let mut found = plan_joint(&joint, batch, model.clone(), tried, cost, start, timings)?;
        // What was asked for: of what was tried there may be more to try elsewhere.
        found.plan.header.options = recorded::of(options);
        Ok(found)
    };
    let attempt = |options: &CompileOptions| {
        slicing::choose(graph, batch, options, cost, &|way, thorough_layout| {
            let options = &CompileOptions { thorough_layout, ..options.clone() };
            let first = plan(options, way.clone());
            let settled = match &first {
                Ok(c) => options.policy != Policy::Dyn || c.summary.chosen_policy == Policy::None,
                Err(NoPlan::TooLarge { .. }) => false,
                Err(NoPlan::Failed(_)) => true,
            };
            if options.recompute != Recompute::Auto || settled {
                return first;
            }
            // What was to fit does not: gaps, or it would have to offload.
            let second = plan(&CompileOptions { recompute: Recompute::Cheap, ..options.clone() }, way);
            match (&first, &second) {
                (Ok(a), Ok(b)) if b.summary.step < a.summary.step => second,
                (Err(_), Ok(_)) => second,
                _ => first,
            }
        })
    };
    let mut found = attempt(options);
    if options.mode != Mode::Infer || options.fuse.pyramids() != Some(Rule::Predicted) {
        return found;
    }
    let Err(NoPlan::TooLarge { smallest, .. }) = &found else { return found };
    let mut least = smallest.0;
    let layers = slicing::layers(graph, options, cost)?;
    for footprint in footprints(&layers, cost) {
        match attempt(&CompileOptions { fuse_footprint: Some(footprint), ..options.clone() }) {
            Err(NoPlan::TooLarge { summary, smallest }) => {
                if smallest.0 < least {
                    least = smallest.0;
                    found = Err(NoPlan::TooLarge { summary, smallest });
                }
            }
            other => return other,
        }
    }
    found
}

/// The second half of [`compile`]: from the joint graph (any graph in that phase) to the
/// checked plan. `start` and `timings` are the first half's.
///
/// # Errors
/// [`NoPlan`]: over budget with figures, or a failure.
pub fn plan_joint(
    graph: &Graph,
    batch: u64,
    model: Option<ModelRef>,
    options: &CompileOptions,
    cost: &CostModel,
    start: Instant,
    mut timings: Timings,
) -> Result<Compiled, NoPlan> {
    refuse_empty(graph)?;
    streams::refuse(options).map_err(NoPlan::Failed)?;
    // Before any placement decision, so that the checker's goal does not depend on one.
    let terms = expected_terms(graph);
    let budget = options.budget(cost.capacity());
    let search = Search {
        joint: graph,
        cost,
        budget,
        host_budget: options.host_memory,
        sync: options.sync,
        packing: options.packing,
        kernels: &options.kernels,
        workspace: options.workspace,
        menu: Rc::new(Menu::new(options.micro_batch)),
        thorough_layout: options.thorough_layout,
    };
    let mut chosen = choose(&search, options, &mut timings)?;
    let baseline_peak = if chosen.policy == Policy::Baseline {
        chosen.layout.device_bytes
    } else {
        timings.step(
            "baseline",
            || baseline_peak(graph, &chosen, &search, &mut Timings::default()),
            |b| Stats::from([("device_bytes", b.0)]),
        )?
    };
    let header = Header {
        model_name: graph.name.clone(),
        mode: options.mode,
        batch,
        policy: options.policy.name().to_owned(),
        algo: options.algo.to_string(),
        device: cost.device_name().to_owned(),
        precision: cost.precision(),
        engines: None,
        model,
        options: recorded::of(options),
    };
    let fits = search.fits(&chosen);
    let making = Making { terms: &terms, header: &header, options, cost };
    let arena = options.memory.map(|_| budget);
    let mut made = making.plan(&chosen.graph, &chosen.layout, &Lanes::single(), arena, &mut timings)?;
    if fits {
        made = making.on_streams(&mut chosen, made, budget, &mut timings)?;
    }
    let Made { mut plan, sim } = made;
    plan.predicted.step = sim.step;
    plan.predicted.compute = sim.compute;
    plan.predicted.stall = sim.stall;
    let stats = vdnn_plan::stats::stats(&plan);
    let on_link = |all: Bytes, packed: Bytes| all.saturating_sub(packed) + CostModel::as_plain(packed);
    let mut summary = Summary {
        device: cost.device_name().to_owned(),
        batch,
        chosen_policy: chosen.policy,
        budget,
        limit: options.memory.unwrap_or(cost.capacity()),
        overhead: options.overhead,
        fits,
        peak: chosen.layout.device_bytes,
        average: sim.average_live,
        lower_bound: chosen.layout.lower_bound,
        baseline_peak,
        weights: stats.weights_bytes,
        workspace: stats.workspace_bytes,
        host: chosen.layout.host_bytes,
        host_limit: options.host_memory,
        offload: stats.offload_bytes,
        offload_packed: stats.offload_packed,
        prefetch: stats.prefetch_bytes,
        step: sim.step,
        compute: sim.compute,
        launches: sim.launches(),
        stall: sim.stall,
        step_lower_bound: sim
            .device_time
            .max(cost.copy(CopyDir::D2h, on_link(stats.offload_bytes, stats.offload_packed)))
            .max(cost.copy(CopyDir::H2d, on_link(stats.prefetch_bytes, stats.prefetch_packed))),
        compile: Nanos::ZERO,
        timings: Timings::default(),
    };
    let elapsed = |s: Instant| Nanos(u64::try_from(s.elapsed().as_nanos()).unwrap_or(u64::MAX));
    if !fits {
        let smallest = search.smallest(options.algo, &mut timings)?;
        summary.compile = elapsed(start);
        summary.timings = timings;
        return Err(NoPlan::TooLarge {
            summary: Box::new(summary),
            smallest: (smallest.layout.device_bytes, smallest.policy),
        });
    }
    let internal = |e: &dyn std::fmt::Display| NoPlan::Failed(Failure::internal(e));
    // Never trust the planner: the proof is independent of everything above.
    let checked = timings
        .step("check", || vdnn_plan::check::check(&plan), |_| Stats::new())
        .map_err(|errors| internal(&format!("the checker rejects the plan:\n{errors}")))?;
    summary.compile = elapsed(start);
    summary.timings = timings;
    Ok(Compiled { graph: chosen.graph, plan, checked, sim, summary })
}

/// Where the engines of a plan were chosen: where the times were measured, and where the plan
/// was made that some were taken from, which must be the same.
pub(crate) fn engine_origin(
    plan: &Plan,
    options: &CompileOptions,
    cost: &CostModel,
) -> Result<Option<EngineOrigin>, Failure> {
    let on = &cost.measured().on;
    let measured = (!on.device.is_empty() && !on.cudnn.is_empty())
        .then(|| EngineOrigin { device: on.device.clone(), cudnn: on.cudnn.clone() });
    let mut origin = None;
    for command in &plan.commands {
        let Command::Launch { node, algo: Some(algo), .. } = command else { continue };
        if !command.uses_engines() {
            continue;
        }
        let taken = options.kernels.get(node) == Some(algo);
        let Some(own) = (if taken { &options.kernels_made_for } else { &measured }) else { continue };
        match &origin {
            Some(other) if other != own => {
                return Err(Failure::user(format!(
                    "some convolution engines would be of {other}, others of {own}, and no library has both"
                ))
                .hint("use --kernels-from with a plan and times of the same GPU and cuDNN"));
            }
            _ => origin = Some(own.clone()),
        }
    }
    Ok(origin)
}

/// Tensors without elements have no address, so a plan cannot hold them.
fn refuse_empty(graph: &Graph) -> Result<(), PassError> {
    let leaves = graph.inputs().iter().chain(graph.params()).copied();
    let mut values =
        leaves.chain(graph.nodes().flat_map(|(_, n)| n.inputs.iter().chain(&n.outputs).copied()));
    let Some(v) = values.find(|&v| graph.ty(v).elements() == 0) else { return Ok(()) };
    let node = graph.def_node(v).map(|id| graph.node(id).name.as_str()).unwrap_or_default();
    let name = if graph.value(v).name.is_empty() { node } else { &graph.value(v).name };
    Err(PassError::Unsupported(format!(
        "tensor `{name}` : {} has no elements; change the shapes so that nothing is empty",
        graph.ty(v)
    )))
}

fn baseline_peak(
    joint: &Graph,
    chosen: &Candidate,
    search: &Search<'_>,
    timings: &mut Timings,
) -> Result<Bytes, PassError> {
    let overrides = chosen
        .graph
        .nodes()
        .filter_map(|(id, n)| n.algo.clone().map(|a| (id, a)))
        .filter(|(id, _)| joint.get_node(*id).is_some())
        .collect();
    let mut graph = joint.clone();
    let attempt = pipeline::Attempt {
        policy: Policy::Baseline,
        algo: rule_for_fixed(chosen.algo),
        overrides,
        workspace: search.workspace,
        menu: Rc::clone(&search.menu),
        sync: vdnn_passes::SyncMode::Event,
        packing: vdnn_passes::Packing::Off,
        lag: 0,
    };
    pipeline::to_phase(&mut graph, Phase::Scheduled, &attempt, search.cost, timings)?;
    let options = LayoutOptions { baseline: true, thorough: false };
    Ok(lay_out(&graph, options, timings)?.device_bytes)
}
