//! Decides which outputs take their input's bytes.
//!
//! An output may take the bytes of an operand that nobody reads any more (Chen et al.,
//! arXiv:1604.06174, section 3); which pairs an op allows is [`vdnn_ir::Op::inplace`].
//! Parameter updates are always in place: a parameter has one address for ever. Slices and
//! concats of rows may share bytes with their operands for good (`rows.rs`).

mod rows;

use crate::memory::storage::Sharing;
use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use smallvec::SmallVec;
use vdnn_ir::graph::{Def, Graph, NodeId, Stage, ValueId};
use vdnn_ir::id::EntityId;
use vdnn_ir::{Op, Phase};

/// Pairs (output, input).
type Pairs = SmallVec<[(u32, u32); 2]>;

/// Sets [`vdnn_ir::Node::inplace`] on every node, greedily in program order. The order must
/// be final.
///
/// Counters: `inplace` (pairs chosen), `updates` (pairs among them that an update binding
/// demands), `rows` (operands that share bytes with a slice or concat of rows).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inplace;

impl Pass for Inplace {
    fn name(&self) -> &'static str {
        "inplace"
    }
    fn requires(&self) -> Phase {
        Phase::Placed
    }
    fn produces(&self) -> Phase {
        Phase::Scheduled
    }
    fn run(&self, graph: &mut Graph, _cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        let mut state = Liveness::new(graph);
        let mut chosen: Vec<(NodeId, Pairs)> = Vec::new();
        let mut stats = Stats::from([("inplace", 0), ("updates", 0), ("rows", 0)]);
        for (p, (id, node)) in graph.nodes().enumerate() {
            let mut pairs = Pairs::new();
            for &(o, i) in node.op.inplace() {
                if node.stage == Stage::Setup || o >= node.outputs.len() || i >= node.inputs.len() {
                    continue;
                }
                let taken = pairs.iter().any(|&(x, y)| x as usize == o || y as usize == i);
                let (output, input) = (node.outputs[o], node.inputs[i]);
                let update = state.sharing.find(output) == state.sharing.find(input);
                if !taken && (update || state.may_take(graph, id, p as u32, output, input)) {
                    pairs.push((o as u32, i as u32));
                    state.merge(input, output);
                    *stats.entry("updates").or_default() += u64::from(update);
                }
            }
            *stats.entry("inplace").or_default() += pairs.len() as u64;
            if pairs.is_empty() {
                pairs = state.rows(graph, node, p as u32);
                *stats.entry("rows").or_default() += pairs.len() as u64;
            }
            if pairs != node.inplace {
                chosen.push((id, pairs));
            }
        }
        let changed = !chosen.is_empty();
        for (id, pairs) in chosen {
            *graph.annotate(id).inplace = pairs;
        }
        Ok(Outcome { changed, stats })
    }
}

/// Which values share bytes so far, and when each set is read for the last time.
struct Liveness {
    sharing: Sharing,
    /// Positions by node, and how many there are.
    at: Vec<u32>,
    n: u32,
    /// By representative: the position that defines the bytes.
    first: Vec<u32>,
    /// By representative: last position that reads or writes the bytes.
    last: Vec<u32>,
    /// By representative: the bytes hold something that must survive the step or was
    /// written before it.
    pinned: Vec<bool>,
    /// By representative: the bytes belong to the step for ever.
    fixed: Vec<bool>,
    parts: rows::Parts,
}

impl Liveness {
    fn new(graph: &Graph) -> Self {
        let at = graph.positions();
        let mut sharing = Sharing::of_views(graph);
        for u in &graph.updates {
            sharing.join(u.param, u.value);
        }
        let mut last = vec![0; graph.value_bound()];
        let mut first = vec![u32::MAX; graph.value_bound()];
        let mut pinned = vec![false; graph.value_bound()];
        let mut fixed = vec![false; graph.value_bound()];
        for v in graph.value_ids() {
            let root = sharing.find(v).index();
            let value = graph.value(v);
            let (defined, keep) = match &value.def {
                Def::Node { node, .. } => match graph.get_node(*node) {
                    Some(n) => (at[node.index()], n.stage == Stage::Setup),
                    None => continue,
                },
                _ => (0, true),
            };
            pinned[root] |= keep;
            fixed[root] |= keep && !matches!(value.def, Def::Input);
            first[root] = first[root].min(defined);
            let reads = value.users().iter().filter(|&&u| !matches!(graph.node(u).op, Op::Reshape { .. }));
            let end = reads.map(|u| at[u.index()]).max().unwrap_or(0).max(defined);
            last[root] = last[root].max(end);
        }
        for o in &graph.outputs {
            let root = sharing.find(o.value).index();
            last[root] = u32::MAX;
        }
        let n = graph.order().len() as u32;
        Self { sharing, at, n, first, last, pinned, fixed, parts: rows::Parts::default() }
    }

    /// True if `output` of the node at `p` may take the bytes of `input`: equal types, own
    /// bytes so far, and no other operand and no later node reads them.
    fn may_take(&mut self, graph: &Graph, id: NodeId, p: u32, output: ValueId, input: ValueId) -> bool {
        let (to, from) = (self.sharing.find(output).index(), self.sharing.find(input).index());
        if graph.ty(output) != graph.ty(input) || self.pinned[from] || self.pinned[to] || self.last[from] != p
        {
            return false;
        }
        let operands = &graph.node(id).inputs;
        operands.iter().filter(|&&v| self.sharing.find(v).index() == from).count() == 1
    }

    fn merge(&mut self, input: ValueId, output: ValueId) {
        let (to, from) = (self.sharing.find(output).index(), self.sharing.find(input).index());
        let last = self.last[to].max(self.last[from]);
        self.sharing.join(input, output);
        self.last[from] = last;
        self.first[from] = self.first[from].min(self.first[to]);
    }
}

#[cfg(test)]
mod tests;
