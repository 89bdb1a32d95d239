//! In how many slices each node runs.

use super::{Rows, SliceBatch};
use crate::pass::PassError;
use std::collections::BTreeSet;
use vdnn_ir::id::EntityId;
use vdnn_ir::{Bytes, Graph, Mode, NodeId, ValueId};

/// How the number of slices is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slicing {
    /// So many for every node.
    Count(u64),
    /// For each node the fewest, a power of two, with which a slice of its operands and results
    /// is at most so large, and no fewer than `least`; never fewer than for a later node up to the
    /// next barrier. In training, where a sample's results are kept for its backward pass, the
    /// results of all nodes count together.
    Target {
        /// The size.
        bytes: Bytes,
        /// The number, a power of two.
        least: u64,
    },
    /// So many for each node, by its index, where it can be cut; as [`super::regions`] gives them.
    /// Neighbours that run in more slices than those around them form a loop.
    Regions(Vec<u64>),
    /// The same, but inside the outermost loops every node runs all of its slices before the next
    /// one begins: what it has used up is gone by then.
    Layers(Vec<u64>),
}

/// By node; 1 for what runs on the whole batch.
pub(super) fn counts(graph: &Graph, rows: &Rows, pass: &SliceBatch) -> Result<Vec<u64>, PassError> {
    let mut counts = vec![1; graph.node_bound()];
    let sliced: Vec<NodeId> =
        graph.order().iter().copied().filter(|id| rows.rule[id.index()].is_some()).collect();
    // A barrier in the middle of a training step would keep everything in front of it until the
    // backward pass; there is nothing to gain.
    if let (Mode::Train, Some(&barrier)) = (graph.mode, rows.barriers.first()) {
        let node = graph.node(barrier);
        return Err(PassError::Unsupported(format!(
            "the training step cannot run in slices of the batch: node {barrier} `{}` ({}) needs the whole batch; \
             leave out --micro-batch-regions",
            node.name,
            node.op.name()
        )));
    }
    match (&pass.slicing, graph.mode) {
        (&Slicing::Count(k), _) => {
            for id in sliced {
                counts[id.index()] = k.clamp(1, pass.batch);
            }
        }
        (Slicing::Regions(each) | Slicing::Layers(each), _) => {
            for id in sliced {
                counts[id.index()] = each.get(id.index()).map_or(1, |&k| k.clamp(1, pass.batch));
            }
        }
        (&Slicing::Target { bytes, least }, Mode::Infer) => {
            targets(graph, rows, pass.batch, (bytes, least), &mut counts);
        }
        (&Slicing::Target { bytes: target, least }, Mode::Train) => {
            // Forward and backward pass of a sample belong together: what all of it keeps counts.
            let kept: u64 = sliced.iter().map(|&id| moved(graph, rows, id, false)).sum();
            let k = kept.div_ceil(target.0.max(1)).max(least).clamp(1, pass.batch);
            for id in sliced {
                counts[id.index()] = k;
            }
        }
    }
    once(graph, rows, &mut counts);
    Ok(counts)
}

/// Sums over the batch that are better made once, of all rows: those larger than the rows they are
/// made of, such as the weight gradients of a fully connected layer, and what is made of no other
/// rows. Such rows are kept for it, instead of a sum and a summand.
fn once(graph: &Graph, rows: &Rows, counts: &mut [u64]) {
    let sums: Vec<NodeId> = graph.order().iter().copied().filter(|&id| rows.sums_only(id)).collect();
    let operands = |id: NodeId| {
        let node = graph.node(id);
        node.inputs.iter().copied().filter(|v| rows.value[v.index()])
    };
    let bytes =
        |values: &mut dyn Iterator<Item = ValueId>| values.map(|v| graph.ty(v).bytes().0).sum::<u64>();
    let mut kept = BTreeSet::new();
    for &id in &sums {
        let results = bytes(&mut graph.node(id).outputs.iter().copied());
        if results > bytes(&mut operands(id)) {
            kept.extend(operands(id));
            counts[id.index()] = 1;
        }
    }
    for &id in &sums {
        if operands(id).all(|v| kept.contains(&v)) {
            counts[id.index()] = 1;
        }
    }
}

/// Bytes of a node's results that have rows, and of its operands that have.
fn moved(graph: &Graph, rows: &Rows, id: NodeId, operands: bool) -> u64 {
    let node = graph.node(id);
    let inputs = node.inputs.iter().filter(|_| operands);
    inputs.chain(&node.outputs).filter(|v| rows.value[v.index()]).map(|&v| graph.ty(v).bytes().0).sum()
}

fn targets(graph: &Graph, rows: &Rows, batch: u64, (target, floor): (Bytes, u64), counts: &mut [u64]) {
    // Slices of a power of two nest only if there are enough samples.
    let most = 1 << batch.max(1).ilog2();
    let floor = floor.next_power_of_two().min(most);
    let mut least = floor;
    for &id in graph.order().iter().rev() {
        if rows.rule[id.index()].is_none() {
            if rows.barriers.contains(&id) {
                least = floor;
            }
            continue;
        }
        let wanted = moved(graph, rows, id, true).div_ceil(target.0.max(1)).next_power_of_two();
        least = least.max(wanted.min(most));
        counts[id.index()] = least;
    }
}
