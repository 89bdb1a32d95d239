//! Inserts the halves of offload and prefetch pairs.

use super::packing;
use super::policy::{Offloaded, Selection, backward, selection, view_root};
use crate::options::{Packing, Policy, SyncMode};
use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use std::collections::BTreeMap;
use vdnn_ir::graph::{Graph, NodeId, NodeSpec, Stage, ValueId};
use vdnn_ir::id::EntityId;
use vdnn_ir::{Bytes, Op, Phase};

const PASS: &str = "insert-offload";

/// Inserts `OffloadStart`/`OffloadDone` for every tensor the policy offloads, and
/// `PrefetchStart`/`PrefetchDone` for those that backward reads.
///
/// The copy out starts right before the first layer that has the tensor as its X, and so
/// overlaps that layer. [`SyncMode::Layer`] awaits it at the end of the layer, as vDNN does
/// (MICRO 2016, section III); [`SyncMode::Event`] when `lag` more copies have started. The
/// tensor's bytes are free from there, or from its last forward reader if that is later.
///
/// The copy in starts at the beginning of the backward pass of some later layer, found as in
/// the paper's figure 10: seen from layer l, the nearest preceding layer whose X is on the
/// host, looking no further back than the next convolution, or the one after it if backward makes
/// that one's X again. The X of a layer that joins what it reads is in pieces, which are fetched
/// together. A tensor whose first reader comes before such a place is fetched right before that
/// reader (counted as `demand_prefetches`).
///
/// With [`Packing::Auto`] the tensors that are predicted to cross the link sooner packed are
/// noted as packed on the host.
///
/// Counters: `offloads`, `offload_bytes`, `packed_bytes` (of them), `prefetches`, `prefetch_bytes`, `demand_prefetches`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InsertOffload {
    /// What to offload. `Dyn` must have been resolved.
    pub policy: Policy,
    /// When compute waits for the copies.
    pub sync: SyncMode,
    /// With [`SyncMode::Event`]: how many more offloads start before this one is awaited.
    pub lag: u32,
    /// Which tensors are packed.
    pub packing: Packing,
}

impl InsertOffload {
    /// The pass with the default lag of one, and nothing packed.
    pub fn new(policy: Policy, sync: SyncMode) -> Self {
        Self { policy, sync, lag: 1, packing: Packing::Off }
    }
}

impl Pass for InsertOffload {
    fn name(&self) -> &'static str {
        PASS
    }
    fn requires(&self) -> Phase {
        Phase::Selected
    }
    fn produces(&self) -> Phase {
        Phase::Placed
    }
    fn run(&self, graph: &mut Graph, cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        if self.policy == Policy::Dyn {
            return Err(PassError::Unsupported(
                "policy `dyn` is a search over the other policies; resolve it first".into(),
            ));
        }
        let chosen = selection(graph, self.policy);
        let mut stats = Stats::from([
            ("offloads", chosen.offloaded.len() as u64),
            ("offload_bytes", chosen.bytes(graph).0),
            ("prefetches", 0),
            ("prefetch_bytes", 0),
            ("demand_prefetches", 0),
        ]);
        if chosen.offloaded.is_empty() {
            return Ok(Outcome { changed: false, stats });
        }
        let packed = |o: &Offloaded| self.packing == Packing::Auto && packing::pays(graph, o.value, cx.cost);
        let packed: Vec<bool> = chosen.offloaded.iter().map(packed).collect();
        if self.packing == Packing::Auto {
            let of = chosen.offloaded.iter().zip(&packed).filter(|(_, p)| **p).map(|(o, _)| o);
            stats.insert("packed_bytes", of.map(|o| graph.ty(o.value).bytes().0).sum());
        }
        let mut inserter = Inserter::new(graph, self);
        let copies = inserter.offload(&chosen, &packed)?;
        inserter.prefetch(&chosen, copies, &mut stats)?;
        inserter.finish();
        Ok(Outcome { changed: true, stats })
    }
}

/// Nodes to insert around one position of the old program order.
#[derive(Clone, Default)]
struct Around {
    before: Vec<NodeId>,
    after: Vec<NodeId>,
}

struct Inserter<'g> {
    graph: &'g mut Graph,
    options: &'g InsertOffload,
    /// The program order before insertion.
    order: Vec<NodeId>,
    /// By position: it lies in a backward pass.
    backward: Vec<bool>,
    around: Vec<Around>,
    /// By value: the readers of a tensor under any shape, with the value each reads.
    readers: Vec<Vec<(usize, ValueId)>>,
}

/// An offloaded tensor that backward reads.
struct Pending {
    host: ValueId,
    layer: NodeId,
    first_reader: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// On the host.
    Away,
    /// The copy in was started; it is awaited after this old position, or, if that is
    /// `None` or too late, right before the first reader.
    Coming { device: ValueId, done_after: Option<usize> },
    /// Back on the device.
    Back,
}

impl<'g> Inserter<'g> {
    fn new(graph: &'g mut Graph, options: &'g InsertOffload) -> Self {
        let order = graph.order().to_vec();
        let backward = backward(graph);
        let mut readers: Vec<Vec<(usize, ValueId)>> = vec![Vec::new(); graph.value_bound()];
        for (p, &id) in order.iter().enumerate() {
            let node = graph.node(id);
            if matches!(node.op, Op::Reshape { .. }) {
                continue;
            }
            for (i, &v) in node.inputs.iter().enumerate() {
                if !node.inputs[..i].contains(&v) {
                    readers[view_root(graph, v).index()].push((p, v));
                }
            }
        }
        let around = vec![Around::default(); order.len()];
        Self { graph, options, order, backward, around, readers }
    }

    fn add(
        &mut self,
        op: Op,
        inputs: &[ValueId],
        layer: NodeId,
        what: &str,
    ) -> Result<(NodeId, ValueId), PassError> {
        let stage = match op {
            Op::OffloadStart | Op::OffloadDone => Stage::Forward,
            _ => Stage::Backward,
        };
        let spec = NodeSpec {
            name: format!("{}/{what}", self.graph.node(layer).name),
            stage,
            origin: (stage == Stage::Backward).then_some(layer),
            n_outputs: 1,
        };
        let id = self.graph.add(op, inputs, spec).map_err(|error| PassError::Infer { pass: PASS, error })?;
        Ok((id, self.graph.node(id).outputs[0]))
    }

    /// Inserts the offloads; returns the host copy of each tensor.
    fn offload(&mut self, chosen: &Selection, packed: &[bool]) -> Result<Vec<ValueId>, PassError> {
        let at = self.graph.positions();
        let mut copies = Vec::with_capacity(chosen.offloaded.len());
        // Starts first: where both meet, an older copy is awaited after the next has started.
        for (o, &packed) in chosen.offloaded.iter().zip(packed) {
            let (start, host) = self.add(Op::OffloadStart, &[o.value], o.layer, "offload")?;
            *self.graph.annotate(start).packed = packed;
            self.around[at[o.layer.index()] as usize].before.push(start);
            copies.push(host);
        }
        for (k, o) in chosen.offloaded.iter().enumerate() {
            let (done, host) = self.add(Op::OffloadDone, &[copies[k], o.value], o.layer, "offloaded")?;
            copies[k] = host;
            let layer = at[o.layer.index()] as usize;
            if self.options.sync == SyncMode::Layer {
                self.around[layer].after.push(done);
                continue;
            }
            let reads = self.readers[o.value.index()].iter().map(|r| r.0);
            let last_read = reads.filter(|&p| !self.backward[p]).max().unwrap_or(layer);
            let end = self.backward[layer..].iter().position(|b| *b).map_or(self.order.len(), |n| layer + n);
            let later = chosen.offloaded.get(k + self.options.lag as usize);
            let after = match later.map(|l| at[l.layer.index()] as usize).filter(|&p| p < end) {
                Some(p) if p > last_read => {
                    self.around[p].before.push(done);
                    continue;
                }
                Some(_) => last_read,
                // Nothing more leaves the device: the end of the forward pass.
                None => last_read.max(end.saturating_sub(1)),
            };
            // Where several are awaited the last copy comes first: it implies the others.
            self.around[after].after.insert(0, done);
        }
        Ok(copies)
    }

    /// Inserts the prefetches and makes backward read them.
    fn prefetch(
        &mut self,
        chosen: &Selection,
        copies: Vec<ValueId>,
        stats: &mut Stats,
    ) -> Result<(), PassError> {
        let mut pending: BTreeMap<ValueId, Pending> = BTreeMap::new();
        let mut first_reads: BTreeMap<usize, Vec<ValueId>> = BTreeMap::new();
        for (o, host) in chosen.offloaded.iter().zip(copies) {
            let reads = self.readers[o.value.index()].iter().map(|r| r.0);
            if let Some(first_reader) = reads.filter(|&p| self.backward[p]).min() {
                first_reads.entry(first_reader).or_default().push(o.value);
                pending.insert(o.value, Pending { host, layer: o.layer, first_reader, state: State::Away });
            }
        }
        let mut x_of: BTreeMap<NodeId, Vec<ValueId>> = BTreeMap::new();
        for &(layer, x) in &chosen.layers {
            x_of.entry(layer).or_default().push(x);
        }
        let at = self.graph.positions();
        let mut backward_end: BTreeMap<NodeId, usize> = BTreeMap::new();
        for (p, &id) in self.order.iter().enumerate().filter(|&(p, _)| self.backward[p]) {
            let node = self.graph.node(id);
            if let (Stage::Backward, Some(layer)) = (node.stage, node.origin) {
                backward_end.insert(layer, p);
            }
        }
        let mut begun = vec![false; self.graph.node_bound()];
        for p in (0..self.order.len()).filter(|&p| self.backward[p]).collect::<Vec<_>>() {
            let node = self.graph.node(self.order[p]);
            // A layer that is gone is nowhere to look back from.
            let layer = match (node.stage, node.origin) {
                (Stage::Backward, Some(l)) if !matches!(node.op, Op::Reshape { .. }) => {
                    Some(l).filter(|l| self.graph.get_node(*l).is_some())
                }
                _ => None,
            };
            let found = layer
                .filter(|l| !std::mem::replace(&mut begun[l.index()], true))
                .map(|l| (l, self.window(at[l.index()] as usize, &x_of, &pending)));
            let ahead = found.as_ref().map_or(&[][..], |(_, xs)| xs);
            let wanted = first_reads.remove(&p).unwrap_or_default();
            // What this node reads goes first: copies in run one after another.
            for &x in &wanted {
                if pending[&x].state == State::Away && !ahead.contains(&x) {
                    self.start(p, x, &mut pending, None, stats)?;
                    *stats.entry("demand_prefetches").or_default() += 1;
                }
            }
            for (layer, x) in found.iter().flat_map(|(layer, xs)| xs.iter().map(move |x| (layer, *x))) {
                let done_after = match self.options.sync {
                    SyncMode::Layer => backward_end.get(layer).copied(),
                    SyncMode::Event => None,
                };
                self.start(p, x, &mut pending, done_after, stats)?;
            }
            for x in wanted {
                self.done(x, &mut pending)?;
            }
        }
        Ok(())
    }

    /// Figure 10 of the paper: seen from the layer at position `from`, the X to fetch, in pieces
    /// if the layer reads them so.
    fn window(
        &self,
        from: usize,
        x_of: &BTreeMap<NodeId, Vec<ValueId>>,
        pending: &BTreeMap<ValueId, Pending>,
    ) -> Vec<ValueId> {
        let is_away = |x: &ValueId| pending.get(x).is_some_and(|p| p.state == State::Away);
        let mut further = false;
        for &id in self.order[..from].iter().rev() {
            let away: Vec<ValueId> = x_of.get(&id).into_iter().flatten().copied().filter(is_away).collect();
            if !away.is_empty() {
                return away;
            }
            if matches!(self.graph.node(id).op, Op::Conv(_) | Op::ConvEpilogue { .. }) {
                // Behind one whose X is made again lies what that is made of, which is wanted first.
                if further || x_of.contains_key(&id) {
                    break;
                }
                further = true;
            }
        }
        Vec::new()
    }

    /// Starts the copy in before old position `p`.
    fn start(
        &mut self,
        p: usize,
        x: ValueId,
        pending: &mut BTreeMap<ValueId, Pending>,
        done_after: Option<usize>,
        stats: &mut Stats,
    ) -> Result<(), PassError> {
        let Some(entry) = pending.get_mut(&x) else { return Ok(()) };
        let (start, device) = self.add(Op::PrefetchStart, &[entry.host], entry.layer, "prefetch")?;
        self.around[p].before.push(start);
        entry.state = State::Coming { device, done_after };
        *stats.entry("prefetches").or_default() += 1;
        let bytes: Bytes = self.graph.ty(x).bytes();
        *stats.entry("prefetch_bytes").or_default() += bytes.0;
        Ok(())
    }

    /// Awaits the copy in and rewires the readers in backward.
    fn done(&mut self, x: ValueId, pending: &mut BTreeMap<ValueId, Pending>) -> Result<(), PassError> {
        let Some(entry) = pending.get_mut(&x) else { return Ok(()) };
        let State::Coming { device, done_after } = entry.state else { return Ok(()) };
        entry.state = State::Back;
        let (layer, host, first_reader) = (entry.layer, entry.host, entry.first_reader);
        let (done, back) = self.add(Op::PrefetchDone, &[device, host], layer, "prefetched")?;
        let mut new = vec![done];
        let mut shaped: BTreeMap<ValueId, ValueId> = BTreeMap::from([(x, back)]);
        for (p, v) in self.readers[x.index()].clone() {
            if !self.backward[p] {
                continue;
            }
            let reader = self.order[p];
            let to = match shaped.get(&v) {
                Some(&to) => to,
                None => {
                    let op = Op::Reshape { dims: self.graph.ty(v).dims.clone() };
                    let (view, to) = self.add(op, &[back], layer, "prefetched_view")?;
                    new.push(view);
                    shaped.insert(v, to);
                    to
                }
            };
            self.graph.replace_use(reader, v, to);
        }
        match done_after {
            Some(p) if p < first_reader => self.around[p].after.append(&mut new),
            _ => self.around[first_reader].before.append(&mut new),
        }
        Ok(())
    }

    /// Puts the new nodes into the program order.
    fn finish(self) {
        let mut order = Vec::with_capacity(self.graph.order().len());
        for (id, around) in self.order.iter().zip(&self.around) {
            order.extend(&around.before);
            order.push(*id);
            order.extend(&around.after);
        }
        // Reshapes in backward that only the rewired readers used.
        self.graph.set_order(order);
        let backward = self.order.iter().zip(&self.backward).filter(|(_, b)| **b).map(|(&id, _)| id);
        let idle: Vec<NodeId> = backward
            .filter(|&id| {
                let node = self.graph.node(id);
                let y = node.outputs[0];
                matches!(node.op, Op::Reshape { .. })
                    && self.graph.value(y).users().is_empty()
                    && !self.graph.outputs.iter().any(|o| o.value == y)
                    && !self.graph.updates.iter().any(|u| u.value == y)
            })
            .collect();
        for id in idle.into_iter().rev() {
            self.graph.remove(id);
        }
    }
}
