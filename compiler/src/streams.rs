//! From a laid-out graph to a plan and its prediction, on one compute stream or several.

use crate::driver::{NoPlan, engine_origin};
use crate::error::Failure;
use crate::options::CompileOptions;
use crate::search::Candidate;
use crate::timing::Timings;
use vdnn_cost::CostModel;
use vdnn_ir::{Bytes, Graph, Mode};
use vdnn_passes::elide::{ElideOptions, elide};
use vdnn_passes::lower::{ExpectedTerms, LowerOptions, lower};
use vdnn_passes::memory::{Layout, LayoutOptions, layout_on};
use vdnn_passes::streams::{Lanes, Streams, assign, spread};
use vdnn_passes::{PassError, Policy, Stats};
use vdnn_plan::Plan;
use vdnn_plan::plan::Header;
use vdnn_runtime::cuda::SCRATCH;
use vdnn_runtime::sim::{SimResult, simulate};

/// With `auto`, more streams must be predicted to take at most this many hundredths of the time.
const PAYS: u64 = 97;

/// Says no to several compute streams where there is no plan with them.
///
/// # Errors
/// In training.
pub fn refuse(options: &CompileOptions) -> Result<(), Failure> {
    match options.streams {
        Streams::Count(n) if n > 1 && options.mode == Mode::Train => {
            Err(Failure::user(format!("a training step runs on one compute stream, not {n}"))
                .hint("use --streams 1 or auto, or --mode infer"))
        }
        _ => Ok(()),
    }
}

/// Device memory that compute streams beyond the first take besides the arena; none where no GPU
/// runs the plan.
pub fn scratch(options: &CompileOptions, streams: u64) -> Bytes {
    let each = if options.overhead == Bytes::ZERO { 0 } else { SCRATCH.0 };
    Bytes(each.saturating_mul(streams.saturating_sub(1)))
}

/// A plan and its prediction.
#[derive(Debug)]
pub struct Made {
    /// The plan, not yet checked.
    pub plan: Plan,
    /// Its predicted step.
    pub sim: SimResult,
}

/// What all plans of a compilation share.
#[derive(Clone, Copy, Debug)]
pub struct Making<'a> {
    /// What the checker is to find.
    pub terms: &'a ExpectedTerms,
    /// Provenance.
    pub header: &'a Header,
    /// Options.
    pub options: &'a CompileOptions,
    /// Prices.
    pub cost: &'a CostModel,
}

impl Making<'_> {
    /// The plan of a laid-out graph on these lanes, within `budget` where there is one.
    ///
    /// # Errors
    /// If graph and layout make no plan, which is a bug, or engines are of several devices.
    pub fn plan(
        &self,
        graph: &Graph,
        layout: &Layout,
        lanes: &Lanes,
        budget: Option<Bytes>,
        timings: &mut Timings,
    ) -> Result<Made, NoPlan> {
        let Self { terms, header, options, cost } = *self;
        let internal = |e: &dyn std::fmt::Display| NoPlan::Failed(Failure::internal(e));
        let lower_options =
            LowerOptions { header: header.clone(), device_budget: budget, host_budget: options.host_memory };
        let mut plan = timings
            .step(
                "lower",
                || lower(graph, layout, terms, &lower_options),
                |p| Stats::from([("commands", p.commands.len() as u64), ("buffers", p.buffers.len() as u64)]),
            )
            .map_err(|e| internal(&e))?;
        plan.header.engines = engine_origin(&plan, options, cost).map_err(NoPlan::Failed)?;
        if lanes.count() > 1 {
            timings.step(
                "spread",
                || Ok::<_, NoPlan>(spread(&mut plan, lanes)),
                |s| Stats::from([("moved", s.moved), ("waits", s.waits)]),
            )?;
        }
        // After the launches have their streams, whose events it thins out.
        let elide_options = ElideOptions { waits: options.elide_waits, copies: options.elide_copies };
        timings.step(
            "elide",
            || Ok::<_, NoPlan>(elide(&mut plan, &elide_options)),
            |e| Stats::from([("waits", e.waits), ("records", e.records), ("copies", e.copies)]),
        )?;
        let sim = timings
            .step("simulate", || simulate(&plan, cost), |_| Stats::new())
            .map_err(|e| internal(&format!("the plan does not simulate: {e}")))?;
        Ok(Made { plan, sim })
    }

    /// The plan of an inference on several compute streams, if the options want one, it is within
    /// `budget` and, with `auto`, predicted to be faster than `single`, the plan on one; else that.
    /// The candidate gets the layout of the plan. On a GPU every further stream takes a scratch
    /// range of its own, which comes off the arena's budget.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn on_streams(
        &self,
        candidate: &mut Candidate,
        single: Made,
        budget: Bytes,
        timings: &mut Timings,
    ) -> Result<Made, NoPlan> {
        let Self { options, cost, .. } = *self;
        let mut best = single;
        if options.mode != Mode::Infer || candidate.policy == Policy::Baseline {
            return Ok(best);
        }
        let mut most = 1;
        for limit in options.streams.candidates() {
            let lanes = assign(&candidate.graph, cost, limit);
            // As before, if there are not so many branches.
            if lanes.count() <= most {
                continue;
            }
            most = lanes.count();
            let scratch = scratch(options, u64::from(lanes.count()));
            let Some(budget) = budget.0.checked_sub(scratch.0).map(Bytes) else { continue };
            let layout = layout_on(&candidate.graph, &LayoutOptions::default(), &lanes)
                .map_err(|e| PassError::Unsupported(e.to_string()))?;
            if layout.device_bytes > budget {
                continue;
            }
            let arena = options.memory.map(|_| budget);
            let made = self.plan(&candidate.graph, &layout, &lanes, arena, timings)?;
            let pays = u128::from(made.sim.step.0) * 100 <= u128::from(best.sim.step.0) * u128::from(PAYS);
            if pays || options.streams != Streams::Auto {
                best = made;
                candidate.layout = layout;
            }
        }
        Ok(best)
    }
}
