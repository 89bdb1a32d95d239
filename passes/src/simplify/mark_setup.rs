//! What an inference graph computes from parameters alone is computed once.

use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use vdnn_ir::{Graph, Mode, NodeId, Phase, Stage};

/// Moves every node of an inference graph whose inputs are all static (parameters, literals,
/// results of such nodes) to [`Stage::Setup`], which runs once, when the weights are loaded.
/// Leaves training graphs alone: their parameters change.
///
/// Counter: `marked`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MarkSetup;

impl Pass for MarkSetup {
    fn name(&self) -> &'static str {
        "mark-setup"
    }
    fn requires(&self) -> Phase {
        Phase::Simplified
    }
    fn produces(&self) -> Phase {
        Phase::Joint
    }
    fn run(&self, graph: &mut Graph, _cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        let marked = mark(graph);
        Ok(Outcome { changed: marked > 0, stats: Stats::from([("marked", marked)]) })
    }
}

/// Marks what is static; returns how many nodes that were not marked before.
pub(super) fn mark(graph: &mut Graph) -> u64 {
    if graph.mode != Mode::Infer {
        return 0;
    }
    let mut marked = 0;
    // Program order, so one walk follows chains of static nodes.
    let order: Vec<NodeId> = graph.order().to_vec();
    for id in order {
        let node = graph.node(id);
        if node.stage == Stage::Forward && node.inputs.iter().all(|&v| graph.is_static(v)) {
            *graph.annotate(id).stage = Stage::Setup;
            marked += 1;
        }
    }
    marked
}
