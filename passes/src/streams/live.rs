//! Lifetimes when nodes run side by side.

use super::order::{Accesses, At, Order};
use super::{Lanes, runs};
use crate::memory::storage::{self, StorageKind, Storages};
use std::ops::Range;
use vdnn_ir::graph::{Graph, NodeId, ValueId};
use vdnn_ir::id::EntityId;
use vdnn_plan::plan::ALIGNMENT;

/// Lengthens lifetimes: a storage whose last user is on another lane than a later node, and not
/// ordered before it, is not to be that node's. Afterwards whoever takes over a storage's bytes is
/// ordered after all who used them, by data alone. Storages that grow or shrink row by row are
/// taken whole.
pub(crate) fn extend(graph: &Graph, storages: &mut Storages, lanes: &Lanes) {
    if lanes.count() < 2 {
        return;
    }
    let until = covered(graph, storages, lanes);
    for s in storages.all.values_mut() {
        s.parts.clear();
    }
    for ((id, node), &until) in graph.nodes().zip(&until).filter(|((_, n), _)| runs(n)) {
        let values = node.inputs.iter().chain(&node.outputs).filter_map(|&v| storages.of[v]);
        for s in values.chain(storages.workspace[id]).collect::<Vec<_>>() {
            let s = &mut storages.all[s];
            if s.kind != StorageKind::Persistent {
                s.live.end = s.live.end.max(until);
            }
        }
    }
}

/// Per position, the first from which on every node is ordered after the one there.
fn covered(graph: &Graph, storages: &Storages, lanes: &Lanes) -> Vec<u32> {
    // Addresses at which no two storages meet.
    let mut base = Vec::with_capacity(storages.all.len());
    let mut top = 0u64;
    for s in storages.all.values() {
        base.push(top);
        top = top.saturating_add(s.bytes.align_up(ALIGNMENT).0);
    }
    let value = |v: ValueId| -> Option<Range<u64>> {
        let start = base[storages.of[v]?.index()] + storages.within[v].0;
        Some(start..start + storage::bytes(graph, v).0)
    };
    let scratch = |id: NodeId| -> Option<Range<u64>> {
        let s = storages.workspace[id]?;
        let start = base[s.index()];
        Some(start..start + storages.all[s].bytes.0)
    };
    let count = lanes.count() as usize;
    let mut order = Order::new(count);
    let mut accesses = Accesses::default();
    let mut items: Vec<Option<At>> = Vec::with_capacity(graph.order().len());
    for (id, node) in graph.nodes() {
        if !runs(node) {
            items.push(None);
            continue;
        }
        let reads = node.inputs.iter().filter_map(|&v| value(v)).map(|r| (r, false));
        let writes = node.outputs.iter().filter_map(|&v| value(v)).chain(scratch(id)).map(|r| (r, true));
        let all: Vec<(Range<u64>, bool)> = reads.chain(writes).collect();
        let mut needed = vec![0; count];
        for (bytes, writes) in &all {
            accesses.conflicts(bytes, *writes, &mut needed);
        }
        let lane = lanes.of(id) as usize;
        order.wait(lane, &needed);
        let at = order.push(lane);
        for (bytes, writes) in &all {
            accesses.note(bytes, *writes, at);
        }
        items.push(Some(at));
    }
    // How much of each lane every node from a position on is ordered after.
    let mut least: Vec<Vec<u32>> = vec![vec![u32::MAX; items.len()]; count];
    let mut now = vec![u32::MAX; count];
    for (p, item) in items.iter().enumerate().rev() {
        if let Some(at) = item {
            for (known, &count) in now.iter_mut().zip(order.clock(*at)) {
                *known = (*known).min(count);
            }
        }
        for (lane, &known) in least.iter_mut().zip(&now) {
            lane[p] = known;
        }
    }
    let covered = |(p, item): (usize, &Option<At>)| {
        let first = item.map_or(0, |at| least[at.lane].partition_point(|&known| known < at.count));
        first.max(p + 1) as u32
    };
    items.iter().enumerate().map(covered).collect()
}
