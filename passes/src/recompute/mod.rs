//! Recomputation: feature maps that backward reads and that are cheap to compute again are not
//! kept but made anew right before they are read (Chen et al., arXiv:1604.06174, section 4.2:
//! what is cheap is dropped, convolutions and products never are).
//!
//! What is cheap moves its operands through memory once: elementwise ops, concats, pools, and a
//! batch norm, which in backward is an application of the statistics that are kept anyway. What
//! such an op reads must be kept, so dropping its result gains memory only where that is kept
//! anyway or smaller: the layers of a DenseNet, whose concats and batch norms are remade from the
//! tensors that convolutions wrote.

mod price;
mod remake;
#[cfg(test)]
mod testnet;
#[cfg(test)]
mod tests;

use crate::memory::live_profile;
use crate::micro_batch::Menu;
use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use crate::schedule::Schedule;
use crate::select_conv::SelectConv;
use crate::{AlgoMode, BatchSizes, Workspace};
use price::{Candidate, Prices};
use remake::{Remade, remake};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use vdnn_ir::id::EntityId;
use vdnn_ir::{Bytes, Graph, Mode, Phase, Stage, ValueId};

const PASS: &str = "recompute";

/// Share of the smallest peak that a step may have beyond it, for what matters little to be kept.
const SLACK: u64 = 64;

/// Drops feature maps and recomputes them in backward.
///
/// Peaks are those of a step with the fastest convolutions that offloads nothing. If nothing that
/// can be dropped lowers the peak the graph stays as it is.
///
/// Counters: `dropped` (feature maps), `dropped_bytes`, `nodes` (that make them again),
/// `nanoseconds` (these take), `peak_before`, `peak_after`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recompute {
    /// The arena the step is to fit, with as little recomputed as that takes. `None`: the
    /// smallest peak, but for one part in 64.
    pub within: Option<Bytes>,
}

impl Pass for Recompute {
    fn name(&self) -> &'static str {
        PASS
    }
    fn requires(&self) -> Phase {
        Phase::Joint
    }
    fn produces(&self) -> Phase {
        Phase::Joint
    }
    fn run(&self, graph: &mut Graph, cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        let unchanged = |peak: Bytes| Outcome {
            changed: false,
            stats: Stats::from([("dropped", 0), ("peak_before", peak.0), ("peak_after", peak.0)]),
        };
        if graph.mode != Mode::Train {
            return Ok(unchanged(Bytes::ZERO));
        }
        let before = Scheduled::new(graph, cx)?.peak();
        if self.within.is_some_and(|limit| before <= limit) {
            return Ok(unchanged(before));
        }
        let prices = Prices::new(graph, cx.cost);
        let candidates = prices.candidates(graph);
        if candidates.is_empty() {
            return Ok(unchanged(before));
        }
        let every: BTreeSet<ValueId> = candidates.iter().map(|c| c.value).collect();
        let all = remake(graph, &prices, &every)?;
        let scheduled = Scheduled::new(&all.graph, cx)?;
        let least = scheduled.peak();
        let target = self.within.unwrap_or(Bytes(least.0 + least.0 / SLACK)).max(least);
        let dropped = thinned(&scheduled, &all, candidates.clone(), target);
        let mut best = (least, all, every);
        if dropped.len() < best.2.len() {
            let some = remake(graph, &prices, &dropped)?;
            let peak = Scheduled::new(&some.graph, cx)?.peak();
            if peak <= target {
                best = (peak, some, dropped);
            }
        }
        let (peak, remade, dropped) = best;
        if peak >= before {
            return Ok(unchanged(before));
        }
        let bytes = dropped.iter().map(|&v| graph.ty(v).bytes()).sum::<Bytes>();
        let time = remade.graph.nodes().filter(|(id, _)| graph.get_node(*id).is_none());
        let time: u64 = time.map(|(_, node)| price::time(&remade.graph, cx.cost, node).0).sum();
        let stats = Stats::from([
            ("dropped", dropped.len() as u64),
            ("dropped_bytes", bytes.0),
            ("nodes", (remade.graph.order().len() - graph.order().len()) as u64),
            ("nanoseconds", time),
            ("peak_before", before.0),
            ("peak_after", peak.0),
        ]);
        *graph = remade.graph;
        Ok(Outcome { changed: true, stats })
    }
}

/// A graph in the order of its step, with the bytes in use at each position.
struct Scheduled {
    graph: Graph,
    live: Vec<Bytes>,
}

impl Scheduled {
    fn new(graph: &Graph, cx: &PassCtx<'_>) -> Result<Self, PassError> {
        let mut graph = graph.clone();
        let convolutions = SelectConv {
            mode: AlgoMode::Performance,
            overrides: BTreeMap::new(),
            workspace: Workspace::Planned,
            menu: Rc::new(Menu::new(BatchSizes::Undivided)),
        };
        convolutions.run(&mut graph, cx)?;
        Schedule.run(&mut graph, cx)?;
        crate::inplace::Inplace.run(&mut graph, cx)?;
        let live = live_profile(&graph).map_err(|e| PassError::Unsupported(e.to_string()))?;
        Ok(Self { graph, live })
    }

    fn peak(&self) -> Bytes {
        self.live.iter().copied().max().unwrap_or_default()
    }
}

/// What to drop so that at most `target` bytes are in use at a time: of all candidates, which
/// `scheduled` drops, those are kept for which there is room, the dearest by the byte first.
fn thinned(
    scheduled: &Scheduled,
    all: &Remade,
    mut candidates: Vec<Candidate>,
    target: Bytes,
) -> BTreeSet<ValueId> {
    let (graph, at) = (&scheduled.graph, scheduled.graph.positions());
    let mut live = scheduled.live.clone();
    let reads = |v: ValueId| graph.value(v).users().iter().map(|u| at[u.index()] as usize);
    // From the last reader in forward to where it is made again.
    let away = |v: ValueId| -> Range<usize> {
        let born = graph.def_node(v).map_or(0, |n| at[n.index()] as usize);
        let again = all.again.get(&v).and_then(|&c| graph.def_node(c));
        let end = again.map_or(born, |n| at[n.index()] as usize);
        reads(v).max().unwrap_or(born).max(born) + 1..end
    };
    candidates.sort_by(|a, b| a.worth(b));
    let mut dropped = BTreeSet::new();
    for Candidate { value, .. } in candidates {
        let bytes = graph.ty(value).bytes().align_up(vdnn_plan::plan::ALIGNMENT);
        let range = away(value);
        let room = live.get_mut(range).unwrap_or_default();
        if room.iter().all(|&b| b + bytes <= target) {
            room.iter_mut().for_each(|b| *b += bytes);
        } else {
            dropped.insert(value);
        }
    }
    dropped
}

/// True for what runs after the loss.
fn is_backward(stage: Stage) -> bool {
    matches!(stage, Stage::Backward | Stage::Update)
}
