//! Slices and concats of rows that need not move anything.
//!
//! A slice of rows may lie in its operand, and an operand of a concat of rows in the result. Both
//! keep bytes longer than copies would: the whole operand for as long as a slice is read, the
//! whole result from the first operand on. They are done if that is not much more.

use super::{Liveness, Pairs};
use crate::memory::storage::row_placement;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};
use vdnn_ir::graph::{Graph, Node, ValueId};
use vdnn_ir::id::EntityId;
use vdnn_ir::rows::Placement;
use vdnn_ir::{Bytes, Space};
use vdnn_plan::plan::ALIGNMENT;

/// Slices are left in their operand if it costs at most so many times the bytes times positions
/// that copies of them would.
const SLICES: u128 = 2;
/// The same for operands that are written into the result of a concat. Of equal ones that are made
/// one after the other the result takes less than twice what they take by themselves.
const OPERANDS: u128 = 3;

/// What is known of sets of bytes that have parts.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// By representative: start and size of every part and of the whole; absent if there is no
    /// part. A plan tells values by their range, so no range may be used twice.
    ranges: BTreeMap<ValueId, BTreeSet<(Bytes, Bytes)>>,
    /// Whether the slices of a value are to be left in it.
    pays: BTreeMap<ValueId, bool>,
}

impl Liveness {
    /// The operands of the node at `p` that share bytes with its result from now on.
    pub(super) fn rows(&mut self, graph: &Graph, node: &Node, p: u32) -> Pairs {
        let mut pairs = Pairs::new();
        match row_placement(graph, node) {
            None => {}
            Some(Placement::ResultInOperand(at)) => {
                let (x, y) = (node.inputs[0], node.outputs[0]);
                if self.fits_in(graph, x, y, at) && self.slices_pay(graph, x) {
                    pairs.push((0, 0));
                    self.put(graph, x, y, at);
                }
            }
            Some(Placement::OperandsInResult(places)) => {
                let y = node.outputs[0];
                for i in self.operands(graph, node, p, &places) {
                    pairs.push((0, i as u32));
                    self.put(graph, y, node.inputs[i], places[i]);
                }
            }
        }
        pairs
    }

    /// True if nobody else has a claim to the bytes of a value or of what it lies in.
    fn owns(&mut self, graph: &Graph, v: ValueId) -> bool {
        let (root, start) = self.sharing.locate(v);
        let whole = start == Bytes::ZERO && graph.ty(root).bytes() == graph.ty(v).bytes();
        whole && !self.pinned[root.index()] && graph.value(v).space == Space::Device
    }

    fn fits_in(&mut self, graph: &Graph, x: ValueId, y: ValueId, at: Bytes) -> bool {
        let (root, start) = self.sharing.locate(x);
        let range = (start + at, graph.ty(y).bytes());
        let used = self.parts.ranges.get(&root).is_some_and(|all| all.contains(&range));
        at.0.is_multiple_of(ALIGNMENT) && !used && !self.fixed[root.index()] && self.owns(graph, y)
    }

    /// Whether all slices of a value, which are read until later than it, are to be left in it.
    fn slices_pay(&mut self, graph: &Graph, x: ValueId) -> bool {
        if let Some(&pays) = self.parts.pays.get(&x) {
            return pays;
        }
        let root = self.sharing.find(x);
        let ends = self.last[root.index()].min(self.n);
        let (mut copies, mut until) = (0, ends);
        for &user in graph.value(x).users() {
            let node = graph.node(user);
            let Some(Placement::ResultInOperand(at)) = row_placement(graph, node) else { continue };
            let y = node.outputs[0];
            if self.fits_in(graph, x, y, at) {
                let read = self.last[self.sharing.find(y).index()].min(self.n);
                copies += area(graph, y, self.at[user.index()], read);
                until = until.max(read);
            }
        }
        let pays = area(graph, root, ends, until) <= SLICES * copies;
        self.parts.pays.insert(x, pays);
        pays
    }

    /// The operands of a concat that are to be made in its result, those made last first.
    fn operands(&mut self, graph: &Graph, node: &Node, p: u32, places: &[Bytes]) -> Vec<usize> {
        let y = node.outputs[0];
        if !self.owns(graph, y) {
            return Vec::new();
        }
        let roots: SmallVec<[ValueId; 8]> = node.inputs.iter().map(|&v| self.sharing.find(v)).collect();
        let mut readers: BTreeMap<ValueId, u32> = BTreeMap::new();
        for &root in &roots {
            *readers.entry(root).or_default() += 1;
        }
        let mut fitting: Vec<usize> = (0..roots.len())
            .filter(|&i| {
                let aligned = places[i].0.is_multiple_of(ALIGNMENT);
                aligned && readers[&roots[i]] == 1 && self.owns(graph, node.inputs[i])
            })
            .collect();
        let first = |i: usize| self.first[roots[i].index()];
        fitting.sort_by_key(|&i| std::cmp::Reverse((first(i), i)));
        let (mut copies, mut good) = (0, 0);
        for (k, &i) in fitting.iter().enumerate() {
            copies += area(graph, node.inputs[i], first(i), p);
            if area(graph, y, first(i), p) <= OPERANDS * copies {
                good = k + 1;
            }
        }
        fitting.truncate(good);
        fitting
    }

    /// Lets `inner` lie in `outer` from byte `at` on.
    fn put(&mut self, graph: &Graph, outer: ValueId, inner: ValueId, at: Bytes) {
        let (to, start) = self.sharing.locate(outer);
        let from = self.sharing.find(inner);
        let whole = |root: ValueId| BTreeSet::from([(Bytes::ZERO, graph.ty(root).bytes())]);
        let parts = self.parts.ranges.remove(&from).unwrap_or_else(|| whole(from));
        let ranges = self.parts.ranges.entry(to).or_insert_with(|| whole(to));
        ranges.extend(parts.into_iter().map(|(s, size)| (start + at + s, size)));
        self.last[to.index()] = self.last[to.index()].max(self.last[from.index()]);
        self.first[to.index()] = self.first[to.index()].min(self.first[from.index()]);
        self.sharing.join_at(outer, inner, at);
    }
}

/// Bytes of a value times positions.
fn area(graph: &Graph, v: ValueId, from: u32, to: u32) -> u128 {
    u128::from(graph.ty(v).bytes().0) * u128::from(to.saturating_sub(from))
}
