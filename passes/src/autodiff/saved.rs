//! Which saved activations can be read back from a concatenation.
//!
//! A ReLU is differentiated from its output. Where that output feeds a Concat (the branches of
//! an Inception or a Fire module) and nothing else in backward reads it, keeping it beside the
//! concatenated copy would hold the same numbers twice: backward reads the Concat's output
//! through a transient Slice instead, and the ReLU's output dies at the Concat.

use super::sweep::{Seed, Sweep};
use crate::pass::PassError;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use vdnn_ir::id::EntityId;
use vdnn_ir::op::{SavedOperand, SliceAttrs};
use vdnn_ir::{Graph, NodeId, Op, Stage, ValueId};

/// The part of a concatenation that equals a node's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConcatRead {
    /// The concatenation's result.
    pub concat: ValueId,
    /// Where in it.
    pub range: SliceAttrs,
}

/// For each forward node whose output backward should read from a Concat, the place.
///
/// A node qualifies if it is a unary op differentiated from its output, that output is not kept
/// for backward anyway, and the Concat's output is kept anyway or is made of such outputs only
/// (otherwise keeping all of it for one part would cost memory). What is kept is found by
/// differentiating a copy of the graph in which every output is read directly.
pub(super) fn concat_reads(
    graph: &Graph,
    forward: &[NodeId],
    seeds: &[Seed],
    wrt: &[ValueId],
) -> Result<BTreeMap<NodeId, ConcatRead>, PassError> {
    let feeds_concat = |id: &NodeId| {
        saves_output(&graph.node(*id).op) && !concats(graph, graph.node(*id).outputs[0]).is_empty()
    };
    if !forward.iter().any(feeds_concat) {
        return Ok(BTreeMap::new());
    }
    let mut trial = graph.clone();
    Sweep::new(&mut trial, wrt, BTreeMap::new()).run(forward, seeds, |_, _, _| Ok(()))?;

    let mut kept = vec![false; graph.value_bound()];
    let mut own_read = vec![false; graph.node_bound()];
    for o in &graph.outputs {
        kept[root(graph, o.value).index()] = true;
    }
    for (_, node) in trial.nodes().filter(|(_, n)| n.stage == Stage::Backward) {
        let from_output = match node.op {
            Op::UnaryGrad(kind) if kind.saves() == SavedOperand::Y => node.origin,
            _ => None,
        };
        for (i, &v) in node.inputs.iter().enumerate().filter(|(_, v)| v.index() < graph.value_bound()) {
            match from_output {
                Some(origin) if i == 1 && graph.node(origin).outputs[0] == v => {
                    own_read[origin.index()] = true;
                }
                _ => kept[root(graph, v).index()] = true,
            }
        }
    }

    let candidate = |id: NodeId| {
        saves_output(&graph.node(id).op)
            && own_read[id.index()]
            && !kept[root(graph, graph.node(id).outputs[0]).index()]
    };
    let mut reads = BTreeMap::new();
    for &id in forward.iter().filter(|&&id| candidate(id)) {
        let y = graph.node(id).outputs[0];
        for concat in concats(graph, y) {
            let node = graph.node(concat);
            let whole = node.outputs[0];
            let all_parts = node.inputs.iter().all(|&v| graph.def_node(v).is_some_and(&candidate));
            if kept[root(graph, whole).index()] || all_parts {
                reads.insert(id, ConcatRead { concat: whole, range: range_in(graph, concat, y) });
                break;
            }
        }
    }
    Ok(reads)
}

fn saves_output(op: &Op) -> bool {
    matches!(op, Op::Unary(kind) if kind.saves() == SavedOperand::Y)
}

/// The Concat nodes that read `v`, in program order.
fn concats(graph: &Graph, v: ValueId) -> SmallVec<[NodeId; 2]> {
    graph
        .value(v)
        .users()
        .iter()
        .copied()
        .filter(|&u| matches!(graph.node(u).op, Op::Concat { .. }))
        .collect()
}

/// The value whose bytes `v` shares: itself, or what it is a view of.
fn root(graph: &Graph, v: ValueId) -> ValueId {
    let mut v = v;
    while let Some(def) = graph.def_node(v) {
        let node = graph.node(def);
        match node.op.views().iter().find(|(out, _)| node.outputs[*out] == v) {
            Some(&(_, input)) => v = node.inputs[input],
            None => break,
        }
    }
    v
}

fn range_in(graph: &Graph, concat: NodeId, part: ValueId) -> SliceAttrs {
    let node = graph.node(concat);
    let Op::Concat { axis } = node.op else { unreachable!("callers pass a Concat") };
    let axis = axis as usize;
    let before: u64 = node.inputs.iter().take_while(|&&v| v != part).map(|&v| graph.ty(v).dims[axis]).sum();
    let lens = graph.ty(part).dims.clone();
    let mut starts: vdnn_ir::Dims = lens.iter().map(|_| 0).collect();
    starts[axis] = before;
    SliceAttrs { starts, steps: lens.iter().map(|_| 1).collect(), lens }
}
