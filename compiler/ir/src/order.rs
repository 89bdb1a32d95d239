//! Deterministic topological orders, for passes that move nodes (Kahn's algorithm with a
//! priority queue, so that ties fall the same way in every run).

use crate::graph::{Graph, NodeId};
use crate::id::EntityId;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The dependencies form a cycle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nodes depend on each other in a cycle; one of them is {node}")]
pub struct CycleError {
    /// A node that is on a cycle or behind one.
    pub node: NodeId,
}

/// The topological order of the live nodes that is lexicographically smallest by id.
///
/// # Errors
/// If the graph has a cycle.
pub fn topological(graph: &Graph) -> Result<Vec<NodeId>, CycleError> {
    topological_by(graph, &[], |id| id)
}

/// A topological order that also keeps each pair of `extra` in order (before, after). Of the
/// nodes that are ready the one with the smallest `(key, id)` comes first.
///
/// # Errors
/// If the graph with the extra edges has a cycle.
pub fn topological_by<K: Ord>(
    graph: &Graph,
    extra: &[(NodeId, NodeId)],
    key: impl Fn(NodeId) -> K,
) -> Result<Vec<NodeId>, CycleError> {
    let mut blockers = vec![0u32; graph.node_bound()];
    let mut later: Vec<Vec<NodeId>> = vec![Vec::new(); graph.node_bound()];
    for &(before, after) in extra {
        later[before.index()].push(after);
        blockers[after.index()] += 1;
    }
    for (id, node) in graph.nodes() {
        for (i, &v) in node.inputs.iter().enumerate() {
            // A value read twice is one dependency, as in `Value::users`.
            if !node.inputs[..i].contains(&v) && graph.def_node(v).is_some() {
                blockers[id.index()] += 1;
            }
        }
    }
    let mut ready: BinaryHeap<Reverse<(K, NodeId)>> = graph
        .order()
        .iter()
        .filter(|id| blockers[id.index()] == 0)
        .map(|&id| Reverse((key(id), id)))
        .collect();
    let mut order = Vec::with_capacity(graph.order().len());
    while let Some(Reverse((_, id))) = ready.pop() {
        order.push(id);
        let users = graph.node(id).outputs.iter().flat_map(|&v| graph.value(v).users());
        for &next in users.chain(&later[id.index()]) {
            let n = &mut blockers[next.index()];
            *n -= 1;
            if *n == 0 {
                ready.push(Reverse((key(next), next)));
            }
        }
    }
    if order.len() == graph.order().len() {
        return Ok(order);
    }
    let stuck = graph.order().iter().copied().filter(|id| blockers[id.index()] > 0).min();
    Err(CycleError { node: stuck.unwrap_or(NodeId(0)) })
}

/// Pairs (reader, updater): every node that reads a parameter must run before the node
/// that overwrites it. Not edges of the graph, so a pass that sorts passes them as `extra`.
pub fn update_edges(graph: &Graph) -> Vec<(NodeId, NodeId)> {
    let mut edges = Vec::new();
    for update in &graph.updates {
        if let Some(updater) = graph.def_node(update.value) {
            let readers = graph.value(update.param).users().iter().copied();
            edges.extend(readers.filter(|&r| r != updater).map(|r| (r, updater)));
        }
    }
    edges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::parse_graph;

    const DIAMOND: &str = r#"graph "g" phase=imported mode=infer {
        input %0 "x" : f32[2]
        n3: %1 : f32[2] = unary(relu) (%0) forward "a"
        n2: %2 : f32[2] = unary(exp) (%1) forward "b"
        n0: %3 : f32[2] = binary(add) (%1, %1) forward "c"
        n5: %4 : f32[2] = binary(mul) (%2, %3) forward "d"
        n1: %5 : f32[2] = unary(exp) (%0) forward "e"
        output "y" = %4
    }"#;

    fn ids(order: &[NodeId]) -> Vec<u32> {
        order.iter().map(|n| n.0).collect()
    }

    #[test]
    fn ties_fall_by_id_or_key() {
        let graph = parse_graph(DIAMOND).unwrap();
        assert_eq!(ids(&topological(&graph).unwrap()), [1, 3, 0, 2, 5]);
        let at = graph.positions();
        let same = topological_by(&graph, &[], |id| at[id.index()]).unwrap();
        assert_eq!(same, graph.order());
        let extra = [(NodeId(5), NodeId(1))];
        assert_eq!(ids(&topological_by(&graph, &extra, |id| id).unwrap()), [3, 0, 2, 5, 1]);
    }

    #[test]
    fn cycles_are_reported() {
        let graph = parse_graph(DIAMOND).unwrap();
        let extra = [(NodeId(5), NodeId(3))];
        assert_eq!(topological_by(&graph, &extra, |id| id), Err(CycleError { node: NodeId(0) }));
    }
}
