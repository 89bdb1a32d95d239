//! The final program order, which is the order of the compute stream.
//!
//! The order of autodiff is kept (reverse mode visits layers in the order that frees feature
//! maps soonest), with two local changes that shorten lifetimes.

use crate::memory::storage::Sharing;
use crate::offload::policy::view_root;
use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use std::collections::BTreeMap;
use vdnn_ir::graph::{Graph, NodeId, ValueId};
use vdnn_ir::id::EntityId;
use vdnn_ir::verify::VerifyErrors;
use vdnn_ir::{Op, Phase};

const PASS: &str = "schedule";

/// Fixes the program order.
///
/// * A convolution's weight gradient moves before its data gradient if it is the last reader
///   of X, X is larger than dW, and X is on the device anyway: then X and dX need not be live
///   together, only dW and dX. (An X that is being fetched gains from the later place: the
///   data gradient hides the copy.)
/// * An optimizer step moves to the earliest place after its gradient is complete and after
///   every other reader of the weight and its momentum, because it overwrites both.
///
/// Counters: `updates_moved`, `weight_gradients_moved`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule;

impl Pass for Schedule {
    fn name(&self) -> &'static str {
        PASS
    }
    fn requires(&self) -> Phase {
        Phase::Placed
    }
    fn produces(&self) -> Phase {
        Phase::Placed
    }
    fn run(&self, graph: &mut Graph, _cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        let before = graph.order().to_vec();
        let weight_gradients_moved = weight_gradients_first(graph);
        let updates_moved = place_updates(graph);
        check(graph)?;
        Ok(Outcome {
            changed: graph.order() != before,
            stats: Stats::from([
                ("updates_moved", updates_moved),
                ("weight_gradients_moved", weight_gradients_moved),
            ]),
        })
    }
}

/// Swaps pairs of data gradient and weight gradient of one convolution. Returns how many.
fn weight_gradients_first(graph: &mut Graph) -> u64 {
    let at = graph.positions();
    // The last position that reads the bytes of each value, by root of its reshapes.
    let mut last_read = vec![0; graph.value_bound()];
    for (p, (_, node)) in graph.nodes().enumerate() {
        if !matches!(node.op, Op::Reshape { .. }) {
            for &v in &node.inputs {
                last_read[view_root(graph, v).index()] = p;
            }
        }
    }
    let mut data_gradient: BTreeMap<NodeId, NodeId> = BTreeMap::new();
    let mut moves: BTreeMap<NodeId, NodeId> = BTreeMap::new();
    for (p, (id, node)) in graph.nodes().enumerate() {
        let Some(layer) = node.origin else { continue };
        match node.op {
            Op::ConvDgrad { .. } => {
                data_gradient.insert(layer, id);
            }
            Op::ConvWgrad { .. } => {
                let Some(&dgrad) = data_gradient.get(&layer) else { continue };
                let x = view_root(graph, node.inputs[0]);
                let fetched = graph.def_node(x).is_some_and(|n| graph.node(n).op == Op::PrefetchDone);
                let ready = node.inputs.iter().all(|&v| match graph.def_node(v) {
                    Some(def) => at[def.index()] < at[dgrad.index()],
                    None => true,
                });
                let dw = node.outputs[0];
                let pays = graph.ty(x).bytes() >= graph.ty(dw).bytes();
                if last_read[x.index()] == p && !fetched && ready && pays {
                    moves.insert(dgrad, id);
                }
            }
            _ => {}
        }
    }
    let count = moves.len() as u64;
    let moved: std::collections::BTreeSet<NodeId> = moves.values().copied().collect();
    let mut order = Vec::with_capacity(graph.order().len());
    for &id in graph.order() {
        order.extend(moves.get(&id));
        if !moved.contains(&id) {
            order.push(id);
        }
    }
    graph.set_order(order);
    count
}

/// Puts each optimizer step at its earliest legal place. Returns how many moved.
fn place_updates(graph: &mut Graph) -> u64 {
    let at = graph.positions();
    let mut sharing = Sharing::of_views(graph);
    // The last reader of each set of bytes other than an optimizer step.
    let mut last_read = vec![0; graph.value_bound()];
    for (p, (_, node)) in graph.nodes().enumerate() {
        if node.op != Op::SgdUpdate {
            for &v in &node.inputs {
                last_read[sharing.find(v).index()] = p;
            }
        }
    }
    let mut root = |v: ValueId| sharing.find(v).index();
    let mut follows: Vec<Vec<NodeId>> = vec![Vec::new(); graph.order().len()];
    let mut moved = 0;
    // How many other nodes precede each position: an update moves past at least one of them.
    let mut others = vec![0];
    others.extend(graph.nodes().scan(0, |n, (_, node)| {
        *n += u64::from(node.op != Op::SgdUpdate);
        Some(*n)
    }));
    for (p, (id, node)) in graph.nodes().enumerate() {
        if node.op != Op::SgdUpdate {
            continue;
        }
        let defined = node.inputs.iter().filter_map(|&v| graph.def_node(v)).map(|n| at[n.index()] as usize);
        let overwritten = Op::updates(&node.inputs).flat_map(|[w, v, _]| [w, v]);
        let read = overwritten.map(|v| last_read[root(v)]);
        let place = defined.chain(read).max().unwrap_or(0);
        follows[place].push(id);
        moved += u64::from(others[p] != others[place + 1]);
    }
    let mut order = Vec::with_capacity(graph.order().len());
    for (&id, updates) in graph.order().iter().zip(&follows) {
        if graph.node(id).op != Op::SgdUpdate {
            order.push(id);
        }
        order.extend(updates);
    }
    graph.set_order(order);
    moved
}

/// Definitions precede uses, and an update's value is defined after the last other reader of
/// its parameter.
fn check(graph: &Graph) -> Result<(), PassError> {
    let at = graph.positions();
    let mut errors = Vec::new();
    for (id, node) in graph.nodes() {
        for &v in &node.inputs {
            if graph.def_node(v).is_some_and(|def| at[def.index()] >= at[id.index()]) {
                errors.push(format!("{id} ({}) reads {v} before it is defined", node.name));
            }
        }
    }
    let mut sharing = Sharing::of_views(graph);
    let mut by_param: BTreeMap<ValueId, (ValueId, NodeId)> = BTreeMap::new();
    for u in &graph.updates {
        if let Some(def) = graph.def_node(u.value) {
            by_param.insert(sharing.find(u.param), (u.param, def));
        }
    }
    for (id, node) in graph.nodes() {
        for &v in &node.inputs {
            if let Some(&(param, def)) = by_param.get(&sharing.find(v))
                && at[def.index()] < at[id.index()]
            {
                let name = &graph.value(param).name;
                errors.push(format!("{id} ({}) reads parameter `{name}` after its update", node.name));
            }
        }
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(PassError::Broke { pass: PASS, errors: VerifyErrors(errors) })
    }
}

#[cfg(test)]
mod tests;
