//! One launch for the optimizer steps of many small weights: a launch takes longer than the
//! step of a batch norm's parameters, and there are hundreds.

use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use smallvec::SmallVec;
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::MAX_UPDATES;
use vdnn_ir::{Bytes, Graph, Layout, NodeId, Op, Phase, Stage, ValueId};

/// Gradients up to this size are small: their step moves five times as much, which takes the
/// time of a launch.
const SMALL: Bytes = Bytes(1 << 20);

/// The gradients of a group wait for its last one, so this bounds the memory it can cost.
const GROUP: Bytes = Bytes(16 << 20);

/// Joins the optimizer steps of small weights into groups, in program order.
///
/// Counters: `grouped` (steps that went into a group), `groups`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupUpdates;

impl Pass for GroupUpdates {
    fn name(&self) -> &'static str {
        "group-updates"
    }

    fn requires(&self) -> Phase {
        Phase::Joint
    }

    fn produces(&self) -> Phase {
        Phase::Joint
    }

    fn run(&self, graph: &mut Graph, _cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        let groups = groups(graph);
        let mut stats = Stats::from([("grouped", 0), ("groups", groups.len() as u64)]);
        for group in &groups {
            *stats.entry("grouped").or_default() += group.len() as u64;
            join(graph, group)?;
        }
        Ok(Outcome { changed: !groups.is_empty(), stats })
    }
}

/// The small steps of the same settings and layout, cut where a group is full.
fn groups(graph: &Graph) -> Vec<Vec<NodeId>> {
    let mut open: Vec<(ValueId, Layout, Bytes, Vec<NodeId>)> = Vec::new();
    let mut full = Vec::new();
    for (id, node) in graph.nodes() {
        let (Op::SgdUpdate, &[w, _, _, hyper]) = (&node.op, node.inputs.as_slice()) else { continue };
        let ty = graph.ty(w);
        if ty.bytes() > SMALL {
            continue;
        }
        // Operands of rank 4 of one launch have one layout; the others fit either.
        let at = open.iter().position(|g| g.0 == hyper && (ty.rank() != 4 || g.1 == ty.layout));
        let at = at.unwrap_or_else(|| {
            open.push((hyper, ty.layout, Bytes::ZERO, Vec::new()));
            open.len() - 1
        });
        let (_, _, bytes, members) = &mut open[at];
        if members.len() == MAX_UPDATES || *bytes + ty.bytes() > GROUP {
            full.push(std::mem::take(members));
            *bytes = Bytes::ZERO;
        }
        members.push(id);
        *bytes += ty.bytes();
    }
    full.extend(open.into_iter().map(|g| g.3));
    full.retain(|members| members.len() > 1);
    full
}

/// Puts one step in the place of the last of several.
fn join(graph: &mut Graph, group: &[NodeId]) -> Result<(), PassError> {
    let mut inputs: SmallVec<[ValueId; 8]> = SmallVec::new();
    let mut outputs = Vec::new();
    let mut last = (0, None);
    for &id in group {
        let node = graph.node(id);
        inputs.extend_from_slice(&node.inputs[..3]);
        outputs.extend_from_slice(&node.outputs);
        let position = graph.order().iter().position(|&n| n == id).expect("a live node");
        last = last.max((position, Some(node.inputs[3])));
    }
    inputs.extend(last.1);
    let origin = group.last().and_then(|&id| graph.node(id).origin);
    let spec = NodeSpec {
        name: format!("updates/{}", graph.node(group[0]).name),
        stage: Stage::Update,
        origin,
        n_outputs: outputs.len(),
    };
    let joined = graph
        .insert(last.0, Op::SgdUpdate, &inputs, spec)
        .map_err(|error| PassError::Infer { pass: "group-updates", error })?;
    for (from, to) in outputs.into_iter().zip(graph.node(joined).outputs.clone()) {
        graph.replace_all_uses(from, to);
    }
    for &id in group {
        graph.remove(id);
    }
    Ok(())
}
