//! The searches that repeat the second half of the pipeline: the profiling procedure of
//! policy `dyn` (vDNN, MICRO 2016, section III-C) and the workspace fitting of algorithm
//! mode `dynamic`.

use crate::pipeline::{Attempt, to_phase};
use crate::timing::Timings;
use std::collections::BTreeMap;
use std::rc::Rc;
use vdnn_cost::CostModel;
use vdnn_ir::{Bytes, ConvSchedule, Graph, NodeId, Phase};
use vdnn_passes::memory::{Layout, LayoutOptions, layout};
use vdnn_passes::micro_batch::Menu;
use vdnn_passes::{AlgoMode, Packing, PassError, Policy, Stats, SyncMode, Workspace};
use vdnn_plan::plan::ALIGNMENT;

/// How often workspaces are refitted when packing leaves gaps the live sum does not show.
const REFITS: u32 = 6;

/// One way through the second half.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The scheduled graph.
    pub graph: Graph,
    /// Its layout.
    pub layout: Layout,
    /// Policy used.
    pub policy: Policy,
    /// Algorithm mode used.
    pub algo: AlgoMode,
}

impl Candidate {
    /// True if the device arena is within `budget`.
    pub fn fits(&self, budget: Bytes) -> bool {
        self.layout.device_bytes <= budget
    }
}

/// Lays out a scheduled graph, on the clock.
///
/// # Errors
/// If the sizes overflow.
pub fn lay_out(graph: &Graph, options: LayoutOptions, timings: &mut Timings) -> Result<Layout, PassError> {
    let stats = |l: &Layout| {
        Stats::from([
            ("device_bytes", l.device_bytes.0),
            ("lower_bound_bytes", l.lower_bound.0),
            ("host_bytes", l.host_bytes.0),
            ("storages", l.storages.len() as u64),
        ])
    };
    timings
        .step("memory-layout", || layout(graph, &options), stats)
        .map_err(|e| PassError::Unsupported(e.to_string()))
}

/// What the searches share.
#[derive(Debug)]
pub struct Search<'a> {
    /// The joint graph.
    pub joint: &'a Graph,
    /// Prices.
    pub cost: &'a CostModel,
    /// Limit of the device arena.
    pub budget: Bytes,
    /// Limit of the pinned host arena, if there is one.
    pub host_budget: Option<Bytes>,
    /// When compute waits for copies.
    pub sync: SyncMode,
    /// Which offloaded tensors are packed.
    pub packing: Packing,
    /// Convolution algorithms that are not to be chosen anew.
    pub kernels: &'a BTreeMap<NodeId, ConvSchedule>,
    /// Bound of the workspaces; the plan's memory bounds them too.
    pub workspace: Workspace,
    /// The ways to run convolutions under `cost`.
    pub menu: Rc<Menu>,
    /// See [`LayoutOptions::thorough`].
    pub thorough_layout: bool,
}

impl Search<'_> {
    /// True if both arenas are within their limits.
    pub fn fits(&self, c: &Candidate) -> bool {
        c.fits(self.budget) && self.host_budget.is_none_or(|limit| c.layout.host_bytes <= limit)
    }

    fn attempt(
        &self,
        policy: Policy,
        algo: AlgoMode,
        lag: u32,
        timings: &mut Timings,
    ) -> Result<Candidate, PassError> {
        let mut graph = self.joint.clone();
        let attempt = Attempt {
            policy,
            algo,
            overrides: self.kernels.clone(),
            workspace: self.workspace,
            menu: Rc::clone(&self.menu),
            sync: self.sync,
            packing: self.packing,
            lag,
        };
        to_phase(&mut graph, Phase::Scheduled, &attempt, self.cost, timings)?;
        let layout = self.layout(&graph, policy, timings)?;
        Ok(Candidate { graph, layout, policy, algo })
    }

    fn layout(&self, graph: &Graph, policy: Policy, timings: &mut Timings) -> Result<Layout, PassError> {
        let options = LayoutOptions { baseline: policy == Policy::Baseline, thorough: self.thorough_layout };
        lay_out(graph, options, timings)
    }

    /// One policy and algorithm mode: event waits come late if that fits, else early.
    fn fixed(&self, policy: Policy, algo: AlgoMode, timings: &mut Timings) -> Result<Candidate, PassError> {
        let late = self.attempt(policy, algo, 1, timings)?;
        let moves = matches!(policy, Policy::All | Policy::Conv) && self.sync == SyncMode::Event;
        if late.fits(self.budget) || !moves {
            return Ok(late);
        }
        let early = self.attempt(policy, algo, 0, timings)?;
        Ok(if early.layout.device_bytes < late.layout.device_bytes { early } else { late })
    }

    /// Gives each convolution the fastest algorithm whose workspace fits beside what is live
    /// when it runs; repeats with a smaller limit while packing gaps push the arena over.
    fn fit_workspaces(&self, mut c: Candidate, timings: &mut Timings) -> Result<Candidate, PassError> {
        let mut limit = self.budget;
        for _ in 0..REFITS {
            if c.fits(self.budget) {
                break;
            }
            let mut changed = false;
            let order = c.graph.order().to_vec();
            for (position, &id) in order.iter().enumerate() {
                let node = c.graph.node(id);
                // Only convolutions can do with less.
                if !node.op.is_conv() || node.workspace == Bytes::ZERO || self.kernels.contains_key(&id) {
                    continue;
                }
                let others =
                    c.layout.live_profile[position].saturating_sub(node.workspace.align_up(ALIGNMENT));
                let room = limit.saturating_sub(others);
                // Divisions are options like others: slower, with less workspace.
                let options = self.menu.choices(&c.graph, self.cost, node);
                let best = options.iter().find(|o| o.workspace.align_up(ALIGNMENT) <= room).or_else(|| {
                    // Nothing fits; the smallest keeps the overrun honest.
                    options.iter().min_by_key(|o| o.workspace)
                });
                if let Some(o) = best
                    && Some(&o.schedule) != node.algo.as_ref()
                    && o.workspace < node.workspace
                {
                    let notes = c.graph.annotate(id);
                    *notes.algo = Some(o.schedule.clone());
                    *notes.workspace = o.workspace;
                    changed = true;
                }
            }
            c.layout = self.layout(&c.graph, c.policy, timings)?;
            if !changed && limit < c.layout.device_bytes.saturating_sub(self.budget) {
                break;
            }
            let over = c.layout.device_bytes.saturating_sub(self.budget);
            limit = limit.saturating_sub(over);
        }
        c.algo = AlgoMode::Dynamic;
        Ok(c)
    }

    /// A policy other than `dyn` under an algorithm mode.
    ///
    /// # Errors
    /// Those of the passes.
    pub fn with_policy(
        &self,
        policy: Policy,
        algo: AlgoMode,
        timings: &mut Timings,
    ) -> Result<Candidate, PassError> {
        if algo != AlgoMode::Dynamic {
            return self.fixed(policy, algo, timings);
        }
        let fast = self.fixed(policy, AlgoMode::Performance, timings)?;
        if fast.fits(self.budget) {
            return Ok(Candidate { algo, ..fast });
        }
        let fitted = self.fit_workspaces(fast, timings)?;
        if fitted.fits(self.budget) {
            return Ok(fitted);
        }
        let lean = self.fixed(policy, AlgoMode::Memory, timings)?;
        let best = if lean.layout.device_bytes < fitted.layout.device_bytes { lean } else { fitted };
        Ok(Candidate { algo, ..best })
    }

    /// The paper's procedure, restricted to the algorithms `algo` permits: is it trainable
    /// at all (all, leanest algorithms)? Then the first that fits of no offload, conv, all
    /// with the fastest algorithms; then conv and all with per-layer downgrades; then all
    /// with the leanest. If nothing fits, the smallest candidate is returned.
    ///
    /// # Errors
    /// Those of the passes.
    pub fn dynamic(&self, algo: AlgoMode, timings: &mut Timings) -> Result<Candidate, PassError> {
        let (fastest, leanest) = match algo {
            AlgoMode::Dynamic => (AlgoMode::Performance, AlgoMode::Memory),
            one => (one, one),
        };
        let none = self.fixed(Policy::None, fastest, timings)?;
        if none.fits(self.budget) {
            return Ok(Candidate { algo, ..none });
        }
        let trainable = self.fixed(Policy::All, leanest, timings)?;
        if !trainable.fits(self.budget) {
            return Ok(Candidate { algo, ..trainable });
        }
        for policy in [Policy::Conv, Policy::All] {
            let c = self.fixed(policy, fastest, timings)?;
            if self.fits(&c) {
                return Ok(Candidate { algo, ..c });
            }
            if algo == AlgoMode::Dynamic && policy == Policy::All {
                break;
            }
        }
        if algo == AlgoMode::Dynamic {
            for policy in [Policy::Conv, Policy::All] {
                let fast = self.fixed(policy, AlgoMode::Performance, timings)?;
                let c = self.fit_workspaces(fast, timings)?;
                if self.fits(&c) {
                    return Ok(c);
                }
            }
        }
        Ok(Candidate { algo, ..trainable })
    }

    /// The smallest device arena any policy reaches with the leanest algorithms that `algo` permits.
    ///
    /// # Errors
    /// Those of the passes.
    pub fn smallest(&self, algo: AlgoMode, timings: &mut Timings) -> Result<Candidate, PassError> {
        let leanest = if matches!(algo, AlgoMode::Only(_)) { algo } else { AlgoMode::Memory };
        let mut best: Option<Candidate> = None;
        for policy in [Policy::None, Policy::Conv, Policy::All] {
            for lag in [1, 0] {
                let c = self.attempt(policy, leanest, lag, timings)?;
                if best.as_ref().is_none_or(|b| c.layout.device_bytes < b.layout.device_bytes) {
                    best = Some(c);
                }
            }
        }
        Ok(best.expect("three candidates"))
    }
}
