//! In which order the slices of a graph's nodes run.

use super::Rows;
use super::halved::{Half, Halved};
use vdnn_ir::NodeId;
use vdnn_ir::id::EntityId;

/// How nodes are cut.
#[derive(Clone, Copy)]
pub(super) struct Cut<'a> {
    /// By node: in how many slices it runs.
    pub(super) counts: &'a [u64],
    /// See [`super::SliceBatch::halved`].
    pub(super) halved: &'a Halved,
    /// See [`super::Slicing::Layers`].
    pub(super) by_layer: bool,
}

/// Slice `slice` of `of` of a node; the whole of it if `of` is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) node: NodeId,
    pub(super) of: u64,
    pub(super) slice: u64,
}

/// How a node runs inside a slice of those around it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    /// At once.
    Once,
    /// In two halves.
    Halves,
    /// In more slices, with its neighbours that do.
    Loop,
}

/// What depends on no rows, which every slice may read; what runs in slices or is read by some;
/// and what is made of sums and feeds no slice, which can wait for all of them.
pub(super) fn parts(nodes: &[NodeId], rows: &Rows, counts: &[u64]) -> [Vec<NodeId>; 3] {
    let mut parts = [Vec::new(), Vec::new(), Vec::new()];
    for &id in nodes {
        let of_sums = rows.rule[id.index()].is_none() && !rows.barriers.contains(&id);
        let once = counts[id.index()] == 1 && rows.sums_only(id);
        let part = match rows.late[id.index()] {
            false => 0,
            true if of_sums || once => 2,
            true => 1,
        };
        parts[part].push(id);
    }
    parts
}

impl Cut<'_> {
    /// All slices of nodes in their order.
    pub(super) fn runs(&self, nodes: &[NodeId]) -> Vec<Run> {
        let mut runs = Vec::new();
        self.inside(nodes, 1, 0, &mut runs);
        runs
    }

    /// Slice `slice` of `k` of nodes that run in as many or more: those in between that run in more
    /// slices form loops, each in the fewest any of its nodes has, and inner loops in turn.
    fn inside(&self, nodes: &[NodeId], k: u64, slice: u64, runs: &mut Vec<Run>) {
        let kind = |id: NodeId| match self.counts[id.index()] {
            n if n > k => Inside::Loop,
            n if n == k && self.halved.get(id, slice).is_some() => Inside::Halves,
            _ => Inside::Once,
        };
        for these in nodes.chunk_by(|&a, &b| kind(a) == kind(b)) {
            let mut run = |node, of, slice| runs.push(Run { node, of, slice });
            match kind(these[0]) {
                Inside::Once => these.iter().for_each(|&id| run(id, k, slice)),
                Inside::Halves => {
                    let each = |id: NodeId| self.halved.get(id, slice) == Some(Half::Each);
                    for together in these.chunk_by(|&a, _| each(a)) {
                        for half in [2 * slice, 2 * slice + 1] {
                            together.iter().for_each(|&id| run(id, 2 * k, half));
                        }
                    }
                }
                Inside::Loop => {
                    for group in self.loops(these, k) {
                        let least = group.iter().map(|id| self.counts[id.index()]).min().unwrap_or(k);
                        for inner in slice * least / k..(slice + 1) * least / k {
                            self.inside(group, least, inner, runs);
                        }
                    }
                }
            }
        }
    }

    /// Cuts nodes where the numbers of slices have no common loop, and inside a loop everywhere if
    /// each is to run by itself.
    fn loops<'n>(&self, nodes: &'n [NodeId], k: u64) -> Vec<&'n [NodeId]> {
        let count = |id: &NodeId| self.counts[id.index()];
        if self.by_layer && k > 1 {
            return nodes.chunks(1).collect();
        }
        let least = nodes.iter().map(count).min().unwrap_or(k);
        if nodes.iter().all(|id| count(id).is_multiple_of(least)) {
            return vec![nodes];
        }
        nodes.chunk_by(|a, b| count(a) == count(b)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs as `node:slice/of`, of nodes 0, 1, ….
    fn runs(counts: &[u64], halved: &str, by_layer: bool) -> String {
        let nodes: Vec<NodeId> = (0..counts.len()).map(NodeId::from_index).collect();
        let halved = if halved.is_empty() { Halved::default() } else { halved.parse().expect("slices") };
        let runs = Cut { counts, halved: &halved, by_layer }.runs(&nodes);
        let text = |r: &Run| format!("{}:{}/{}", r.node.index(), r.slice, r.of);
        runs.iter().map(text).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn slices_form_loops_and_halves_run_where_the_slice_would() {
        assert_eq!(runs(&[2, 2, 1], "", false), "0:0/2 1:0/2 0:1/2 1:1/2 2:0/1");
        assert_eq!(runs(&[4, 2], "", false), "0:0/4 0:1/4 1:0/2 0:2/4 0:3/4 1:1/2");
        assert_eq!(
            runs(&[2, 4, 4], "", false),
            "0:0/2 1:0/4 2:0/4 1:1/4 2:1/4 0:1/2 1:2/4 2:2/4 1:3/4 2:3/4"
        );
        assert_eq!(runs(&[2, 4, 4], "", true), "0:0/2 1:0/4 1:1/4 2:0/4 2:1/4 0:1/2 1:2/4 1:3/4 2:2/4 2:3/4");
        assert_eq!(runs(&[2, 2], "n0:1", false), "0:0/2 1:0/2 0:2/4 0:3/4 1:1/2");
        // Both halves of one before those of the other, or one after the other.
        assert_eq!(runs(&[2, 2], "n0:0,n1:0", false), "0:0/4 0:1/4 1:0/4 1:1/4 0:1/2 1:1/2");
        assert_eq!(runs(&[2, 2], "n0:0+,n1:0", false), "0:0/4 1:0/4 0:1/4 1:1/4 0:1/2 1:1/2");
        // The next node's slice is whole, or belongs to an inner loop.
        assert_eq!(runs(&[2, 2], "n0:0+", false), "0:0/4 0:1/4 1:0/2 0:1/2 1:1/2");
        assert_eq!(runs(&[2, 4], "n0:0+", false), "0:0/4 0:1/4 1:0/4 1:1/4 0:1/2 1:2/4 1:3/4");
    }

    #[test]
    fn what_is_no_slice_of_a_node_is_refused() {
        for text in ["", "n1", "1:0", "n1:x", "n1:0,", "n1:0++", "nx:0"] {
            assert!(text.parse::<Halved>().is_err(), "{text}");
        }
    }
}
