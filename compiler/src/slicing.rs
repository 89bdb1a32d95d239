//! In how many slices a plan runs its batch: what the user may say, which numbers a search
//! tries, and which it takes.

use crate::driver::{Compiled, NoPlan, Summary};
use crate::error::Blame;
use crate::options::CompileOptions;
use crate::pipeline::{self, Fusion};
use crate::timing::Timings;
use std::fmt;
use std::str::FromStr;
use vdnn_cost::CostModel;
use vdnn_ir::{Bytes, Graph, Mode, Nanos, Node, Op, Stage, ValueId};
use vdnn_passes::slice_batch::{Regions, SliceBatch, Slicing, regions};
use vdnn_passes::{PassError, Policy, Recompute};

/// Numbers of slices that a search tries for a training step. Between two powers of two the step
/// time can pass the limit of [`Slices::On`].
const COUNTS: [u64; 12] = [2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64];

/// The same in inference, where different regions of the network may have different ones: sizes
/// that are measured, so that regions can be found.
const HALVES: [u64; 6] = [2, 4, 8, 16, 32, 64];

/// How many percent longer than the whole batch a plan of [`Slices::On`] may be expected to take: 5 at most.
const SLOWER: u64 = 4;

/// What a launch takes in a step beside its time by itself, in nanoseconds: so much per launch steps in slices
/// took longer than predicted, compared with steps of whole batches (1,600 to 4,400 on H200s).
const GAP: u64 = 2_000;

/// Of the plans whose layouts have gaps the layouts of so many are searched for longer.
const THOROUGH: usize = 12;

/// By how many percent slices must make the step faster for [`Slices::Auto`] to have them where
/// they are not needed.
const FASTER: u64 = 1;

/// Whether the batch is cut into slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slices {
    /// It is not.
    Off,
    /// The fastest plan within the budget, slices gaining at least one percent over none.
    Auto,
    /// The smallest plan that is at most 5 % slower, with a margin.
    On,
    /// So many slices of everything.
    Count(u64),
}

impl fmt::Display for Slices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Auto => f.write_str("auto"),
            Self::On => f.write_str("on"),
            Self::Count(n) => write!(f, "{n}"),
        }
    }
}

impl FromStr for Slices {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            _ => match text.parse() {
                Ok(n) if n > 0 => Ok(Self::Count(n)),
                _ => Err(format!("`{text}` is not off, on, auto or a number of slices")),
            },
        }
    }
}

/// A way to run the batch in slices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The slices.
    pub slices: SliceBatch,
    /// Whether stages of blocks may run as one kernel.
    pub stages: bool,
    /// Estimated time of the kernels, if somebody has estimated it.
    pub time: Option<Nanos>,
}

/// The batch of a graph: the first extent of its first input that has one.
pub fn batch_of(graph: &Graph) -> u64 {
    graph.inputs().iter().find_map(|&v| graph.ty(v).dims.first().copied()).unwrap_or(1)
}

/// How many images slices of an inference may have, with the whole batch, as far as measuring goes.
pub fn sizes(batch: u64, options: &CompileOptions) -> Vec<u64> {
    let counts: &[u64] = match &options.slices {
        Slices::Off => &[],
        Slices::Count(n) => std::slice::from_ref(n),
        Slices::On | Slices::Auto => &HALVES,
    };
    let mut all = vec![batch];
    for &k in counts.iter().filter(|&&k| k <= batch) {
        // Slices of two sizes if the batch cannot be divided.
        for images in [batch.div_ceil(k), batch / k] {
            if !all.contains(&images) {
                all.push(images);
            }
        }
    }
    all
}

/// The ways to cut the batch that the options ask to consider, besides not at all; with more
/// measurements of the kernels they need there may be others.
///
/// # Errors
/// Those of the passes that make the joint graph.
pub fn candidates(
    imported: &Graph,
    batch: u64,
    options: &CompileOptions,
    cost: &CostModel,
) -> Result<Vec<Way>, PassError> {
    let way = |k, stages| Way { slices: SliceBatch::new(batch, Slicing::Count(k)), stages, time: None };
    Ok(match (options.slices, options.mode) {
        (Slices::Off, _) => Vec::new(),
        (Slices::Count(n), _) => vec![way(n, true)],
        (_, Mode::Train) => COUNTS.into_iter().filter(|&k| k <= batch).map(|k| way(k, false)).collect(),
        (_, Mode::Infer) => {
            let counts = HALVES.into_iter().filter(|&k| k <= batch).map(|k| way(k, true));
            counts.chain(all_regions(imported, batch, options, cost)?).collect()
        }
    })
}

/// Regions with stages as one kernel, whose rings may be more than what they save of a small batch,
/// and without any: of each those that none of the others beats in estimated time and memory.
fn all_regions(
    imported: &Graph,
    batch: u64,
    options: &CompileOptions,
    cost: &CostModel,
) -> Result<Vec<Way>, PassError> {
    let of = |stages| {
        let joint = uncut(imported, options, stages, cost)?;
        let any = joint.nodes().any(|(_, n)| matches!(&n.op, Op::Pyramid(p) if !p.is_chain()));
        Ok::<_, PassError>((regions(&joint, batch, cost), any))
    };
    let (mut with, any) = of(true)?;
    let mut without = if any { of(false)?.0 } else { Vec::new() };
    let beaten = |r: &Regions, by: &[Regions]| by.iter().any(|o| o.time <= r.time && o.peak <= r.peak);
    without.retain(|r| !beaten(r, &with));
    with.retain(|r| !beaten(r, &without));
    let ways = |found: Vec<Regions>, stages| {
        found.into_iter().map(move |r| {
            let time = Some(r.time);
            Way { slices: r.slices(batch), stages, time }
        })
    };
    Ok(ways(with, true).chain(ways(without, false)).collect())
}

/// The joint graph of a model whose batch is to be cut, with or without stages: nodes have the numbers
/// that [`Slicing::Regions`] has in it.
///
/// # Errors
/// Those of the passes.
pub fn uncut(
    imported: &Graph,
    options: &CompileOptions,
    stages: bool,
    cost: &CostModel,
) -> Result<Graph, PassError> {
    joint_by(imported, options, (options.fusion(), stages), None, cost, &mut Timings::default())
}

/// The joint graph of a model with its batch cut in a way, if there is one.
///
/// # Errors
/// Those of the passes.
pub fn joint(
    imported: &Graph,
    options: &CompileOptions,
    way: Option<Way>,
    cost: &CostModel,
    timings: &mut Timings,
) -> Result<Graph, PassError> {
    let (slices, stages) = way.map_or((None, false), |way| (Some(way.slices), way.stages));
    joint_by(imported, options, (options.fusion(), stages), slices, cost, timings)
}

/// The joint graph of a model in which pyramids are looked for: without any, and without chains of
/// elementwise ops, of which a pyramid takes some.
///
/// # Errors
/// Those of the passes.
pub fn layers(imported: &Graph, options: &CompileOptions, cost: &CostModel) -> Result<Graph, PassError> {
    let fuse = Fusion { elementwise: false, ..Fusion::from(options.fuse.without_pyramids()) };
    joint_by(imported, options, (fuse, false), None, cost, &mut Timings::default())
}

fn joint_by(
    imported: &Graph,
    options: &CompileOptions,
    (fuse, stages): (Fusion, bool),
    slices: Option<SliceBatch>,
    cost: &CostModel,
    timings: &mut Timings,
) -> Result<Graph, PassError> {
    let mut graph = imported.clone();
    let &CompileOptions { mode, keep_gradients, ref sparse, .. } = options;
    let recompute = match options.recompute {
        // The network-wide allocation keeps everything.
        _ if options.policy == Policy::Baseline => None,
        Recompute::Off => None,
        Recompute::Cheap => Some(vdnn_passes::recompute::Recompute { within: None }),
        Recompute::Auto => {
            let budget = options.budget(cost.capacity());
            // Packing may leave gaps.
            let within = Some(budget.saturating_sub(Bytes(budget.0 / 64)));
            Some(vdnn_passes::recompute::Recompute { within })
        }
    };
    let joint =
        pipeline::Joint { mode, keep_gradients, fuse, stages, slices, recompute, sparse: sparse.clone() };
    pipeline::to_joint_by(&mut graph, joint, cost, timings)?;
    Ok(graph)
}

/// What plans are chosen by.
#[derive(Clone, Copy)]
enum Goal {
    /// The smallest that is expected to take no longer, of equals the fastest.
    Within(Nanos),
    /// The fastest.
    Fastest,
}

impl Goal {
    /// What is less is better; `None` if it is too slow.
    fn rank(self, step: Nanos, peak: Bytes) -> Option<(u64, u64)> {
        match self {
            Self::Within(limit) => (step <= limit).then_some((peak.0, step.0)),
            Self::Fastest => Some((step.0, peak.0)),
        }
    }

    fn of(self, summary: &Summary) -> Option<(u64, u64)> {
        self.rank(expected(summary), summary.peak)
    }

    /// As if the layout had no gaps; `None` if it has none.
    fn without_gaps(self, summary: &Summary) -> Option<(u64, u64)> {
        let bound = summary.lower_bound;
        self.rank(expected(summary), bound).filter(|_| bound < summary.peak)
    }
}

/// The step time to expect of a plan, beside others of the same network.
fn expected(summary: &Summary) -> Nanos {
    summary.step.saturating_add(Nanos(summary.launches.saturating_mul(GAP)))
}

/// Makes the plan the options ask for; `plan` makes the one for a way of cutting the batch, with a longer
/// search for its layout if so told.
///
/// # Errors
/// Those of `plan`: of the whole batch if no way of cutting it fits either.
pub fn choose(
    imported: &Graph,
    batch: u64,
    options: &CompileOptions,
    cost: &CostModel,
    plan: &dyn Fn(Option<Way>, bool) -> Result<Compiled, NoPlan>,
) -> Result<Compiled, NoPlan> {
    let mut ways = candidates(imported, batch, options, cost)?;
    if let Slices::Count(_) = options.slices {
        return plan(ways.first().cloned(), false);
    }
    // Regions know which sizes were measured; the same number for everything need not.
    let is_regions = |way: &Way| matches!(way.slices.slicing, Slicing::Regions(_) | Slicing::Layers(_));
    if ways.iter().any(is_regions) {
        ways.retain(is_regions);
    }
    let whole = plan(None, false);
    let goal = match (options.slices, &whole) {
        (Slices::Off, _) | (_, Err(NoPlan::Failed(_))) => return whole,
        (Slices::On, Ok(Compiled { summary, .. })) => Goal::Within(percent(expected(summary), SLOWER)),
        (Slices::On, Err(NoPlan::TooLarge { summary, .. })) => {
            Goal::Within(percent(expected(summary), SLOWER))
        }
        _ => Goal::Fastest,
    };
    // Beside measurements nothing is guessed.
    let whole_measured = measured(imported, options, None, cost)?;
    let mut best: Option<Compiled> = None;
    // By what they would be without gaps in their layouts.
    let mut gaps: Vec<((u64, u64), Way)> = Vec::new();
    for way in ways {
        // Kernels alone take too long.
        if way.time.is_some_and(|time| goal.rank(time, Bytes::ZERO).is_none()) {
            continue;
        }
        if whole_measured && !measured(imported, options, Some(way.clone()), cost).unwrap_or(true) {
            continue;
        }
        let found = plan(Some(way.clone()), false);
        match found {
            Ok(found) => {
                gaps.extend(goal.without_gaps(&found.summary).map(|rank| (rank, way)));
                better(&mut best, found, goal);
            }
            Err(NoPlan::TooLarge { summary, .. }) => {
                let fits = summary.lower_bound <= summary.budget;
                gaps.extend(goal.without_gaps(&summary).filter(|_| fits).map(|rank| (rank, way)));
            }
            Err(NoPlan::Failed(f)) if f.blame == Blame::Internal => return Err(NoPlan::Failed(f)),
            // A barrier: no other number of slices will do either.
            Err(NoPlan::Failed(_)) => break,
        }
    }
    gaps.sort_by_key(|(rank, _)| *rank);
    for (rank, way) in gaps.into_iter().take(THOROUGH) {
        if best.as_ref().and_then(|b| goal.of(&b.summary)).is_some_and(|best| best <= rank) {
            break;
        }
        match plan(Some(way), true) {
            Ok(found) => better(&mut best, found, goal),
            Err(NoPlan::TooLarge { .. }) => {}
            Err(failed) => return Err(failed),
        }
    }
    let gains = |sliced: &Summary, whole: &Summary| match goal {
        Goal::Within(_) => sliced.peak < whole.peak,
        Goal::Fastest => percent(expected(sliced), FASTER) <= expected(whole),
    };
    match (best, whole) {
        (Some(sliced), Ok(whole)) if !gains(&sliced.summary, &whole.summary) => Ok(whole),
        (Some(sliced), _) => Ok(sliced),
        (None, whole) => whole,
    }
}

/// Keeps the better of two plans, of equals the first.
fn better(best: &mut Option<Compiled>, found: Compiled, goal: Goal) {
    let old = best.as_ref().and_then(|best| goal.of(&best.summary));
    if goal.of(&found.summary).is_some_and(|new| old.is_none_or(|old| new < old)) {
        *best = Some(found);
    }
}

/// True if every convolution of the joint graph was measured.
fn measured(
    imported: &Graph,
    options: &CompileOptions,
    way: Option<Way>,
    cost: &CostModel,
) -> Result<bool, PassError> {
    let joint = joint(imported, options, way, cost, &mut Timings::default())?;
    let types = |list: &[ValueId]| list.iter().map(|&v| joint.ty(v)).collect::<Vec<_>>();
    let known = |n: &Node| {
        let (inputs, outputs) = (types(&n.inputs), types(&n.outputs));
        cost.is_measured(&n.op, &inputs, &outputs)
    };
    Ok(joint.nodes().all(|(_, n)| !n.op.is_conv() || n.stage == Stage::Setup || known(n)))
}

fn percent(time: Nanos, more: u64) -> Nanos {
    Nanos(time.0 + time.0 / 100 * more)
}
