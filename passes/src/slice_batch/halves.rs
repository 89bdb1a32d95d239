//! Which slices run in two halves, because too much else is in memory while they run.
//!
//! While a batch runs in slices, what they leave for larger ones grows and what is left of
//! its inputs shrinks, so that some slices of a node need more memory than others. Halving these costs two
//! launches where more slices of the node would cost as many for each.

use super::halved::{Half, Halved};
use super::live::Sliced;
use super::order::{Cut, Run};
use vdnn_ir::NodeId;
use vdnn_ir::id::EntityId;

/// At most so many slices are halved.
const MOST: usize = 32;

/// Time of all slices of a node, in nanoseconds, and workspace of one, by node and number; `None` if it
/// cannot be cut so.
pub(super) type Price<'a> = &'a dyn Fn(NodeId, u64) -> Option<(u64, u64)>;

/// Slices of nodes, some halved.
#[derive(Clone)]
pub(super) struct Halves<'a> {
    pub(super) counts: &'a [u64],
    pub(super) by_layer: bool,
    pub(super) halved: Halved,
    /// What the halves take longer, in nanoseconds.
    pub(super) longer: u64,
}

impl Halves<'_> {
    /// All slices in their order, with bytes of rows and workspace that are in memory during each.
    fn moments(&self, sliced: &Sliced<'_>, price: Price<'_>) -> Vec<(Run, u64)> {
        let cut = Cut { counts: self.counts, halved: &self.halved, by_layer: self.by_layer };
        let runs = cut.runs(&sliced.nodes);
        let live = sliced.live(&runs);
        let workspace = |run: &Run| price(run.node, run.of).map_or(0, |(_, workspace)| workspace);
        runs.iter().zip(live).map(|(run, live)| (*run, live + workspace(run))).collect()
    }

    /// Halves those slices during which more than `limit` is in memory, and if that does not help what runs
    /// before them, half by half with them. The most that is in memory then; `None` if that does not help either.
    pub(super) fn fit(
        &mut self,
        limit: u64,
        batch: u64,
        sliced: &Sliced<'_>,
        price: Price<'_>,
    ) -> Option<u64> {
        while self.halved.len() < MOST {
            let moments = self.moments(sliced, price);
            let Some((run, _)) = moments.iter().find(|(_, bytes)| *bytes > limit) else {
                return Some(moments.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0));
            };
            let whole = self.counts[run.node.index()];
            // Nodes that are not cut stay, and halves are not halved.
            let halved = match run.of == whole {
                true => {
                    whole > 1 && 2 * whole <= batch && self.halve((run.node, run.slice), Half::Both, price)
                }
                false => self.join((run.node, run.slice / 2), &sliced.nodes, price),
            };
            if !halved {
                return None;
            }
        }
        None
    }

    /// Lets the halves of what runs before a halved slice be followed by its own. False if that is no
    /// slice of the same size.
    fn join(&mut self, (node, slice): (NodeId, u64), nodes: &[NodeId], price: Price<'_>) -> bool {
        let whole = self.counts[node.index()];
        let Some(mut at) = nodes.iter().position(|&id| id == node) else { return false };
        // To the first of those that already do.
        while at > 0 && self.halved.get(nodes[at - 1], slice) == Some(Half::Each) {
            at -= 1;
        }
        let before = at.checked_sub(1).map(|at| nodes[at]).filter(|id| self.counts[id.index()] == whole);
        let Some(before) = before else { return false };
        if self.halved.get(before, slice).is_none() {
            return self.halve((before, slice), Half::Each, price);
        }
        self.halved.insert(before, slice, Half::Each);
        true
    }

    /// False if the halves have no price.
    fn halve(&mut self, (node, slice): (NodeId, u64), half: Half, price: Price<'_>) -> bool {
        let whole = self.counts[node.index()];
        let time = |of: u64| price(node, of).map(|(time, _)| time / of);
        let Some((one, halves)) = time(whole).zip(time(2 * whole)) else { return false };
        self.longer += (2 * halves).saturating_sub(one);
        self.halved.insert(node, slice, half);
        true
    }
}
