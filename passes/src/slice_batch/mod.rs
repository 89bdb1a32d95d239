//! Runs chains of layers on one slice of the batch after the other, so that only a slice of
//! what they compute is in memory at a time.
//!
//! In training every sample's forward and backward pass belongs to one slice, weight gradients
//! are summed over the slices and the optimizer steps follow once (gradient accumulation). In
//! inference early layers, whose images are large, may run in more slices than later ones; the
//! rows of several slices are then joined for the layer that takes more of them at once.
//!
//! The result is the same up to the rounding of sums over the batch. What needs the whole
//! batch, such as batch norm in training, is a barrier.

mod counts;
mod halved;
mod halves;
mod live;
mod order;
mod regions;
mod rules;

pub use counts::Slicing;
pub use halved::{Half, Halved};
pub use regions::{Regions, regions};

use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use order::{Cut, Run, parts};
use rules::{Part, Rule, on_rows, rule};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::id::EntityId;
use vdnn_ir::op::infer::InferError;
use vdnn_ir::op::{BinaryKind, SliceAttrs};
use vdnn_ir::{Graph, Node, NodeId, Op, Phase, Stage, ValueId};
use vdnn_plan::plan::ALIGNMENT;

const PASS: &str = "slice-batch";

/// Cuts the batch of a joint graph into slices.
///
/// Counters: `sliced` (nodes that run in slices), `slices` (the most of any), `barriers`
/// (nodes that read rows and need them all).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceBatch {
    /// Samples of the batch: the first extent of the inputs that have a row per sample.
    pub batch: u64,
    /// How many slices.
    pub slicing: Slicing,
    /// Slices that run in two halves: those during which too much else is in memory. What is said of nodes
    /// that are not cut, or of slices of one sample, is ignored.
    pub halved: Halved,
}

impl SliceBatch {
    /// Slices of which none is halved.
    pub fn new(batch: u64, slicing: Slicing) -> Self {
        Self { batch, slicing, halved: Halved::default() }
    }
}

impl Pass for SliceBatch {
    fn name(&self) -> &'static str {
        PASS
    }

    fn requires(&self) -> Phase {
        Phase::Joint
    }

    fn produces(&self) -> Phase {
        Phase::Joint
    }

    fn run(&self, graph: &mut Graph, _cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        let rows = Rows::of(graph, self.batch);
        let counts = counts::counts(graph, &rows, self)?;
        let most = counts.iter().copied().max().unwrap_or(1);
        let stats = Stats::from([
            ("sliced", counts.iter().filter(|&&k| k > 1).count() as u64),
            ("slices", most),
            ("barriers", rows.barriers.len() as u64),
        ]);
        if most > 1 {
            let by_layer = matches!(self.slicing, Slicing::Layers(_));
            let count = |node: NodeId| counts.get(node.index()).copied().unwrap_or(1);
            let halved = self.halved.of(|node| (2..=self.batch / 2).contains(&count(node)));
            let mut slicer = Slicer::new(graph, self.batch, rows, counts);
            slicer.run(by_layer, &halved).map_err(|error| PassError::Infer { pass: PASS, error })?;
        }
        Ok(Outcome { changed: most > 1, stats })
    }
}

/// Which values have a row per sample.
struct Rows {
    /// By value.
    value: Vec<bool>,
    /// By node: how it runs on some samples.
    rule: Vec<Option<Rule>>,
    /// By node: it depends on rows, itself or through others.
    late: Vec<bool>,
    /// Nodes that need what slices before them make and have no rule, unless only sums over
    /// the whole batch and what is made of them depend on them, too.
    barriers: Vec<NodeId>,
}

impl Rows {
    fn of(graph: &Graph, batch: u64) -> Self {
        let mut value = vec![false; graph.value_bound()];
        for &v in graph.inputs() {
            // The step number and the optimizer's settings belong to no sample.
            let settings = graph.value(v).name.starts_with("vdnnc.");
            value[v.index()] = graph.ty(v).dims.first() == Some(&batch) && !settings;
        }
        let mut rules = vec![None; graph.node_bound()];
        let mut late = vec![false; graph.node_bound()];
        let mut reads = vec![false; graph.node_bound()];
        for (id, node) in graph.nodes() {
            let reads_rows = node.inputs.iter().any(|&v| value[v.index()]);
            let after = |v: &ValueId| graph.def_node(*v).is_some_and(|d| late[d.index()]);
            reads[id.index()] = reads_rows;
            late[id.index()] = reads_rows || node.inputs.iter().any(after);
            if !reads_rows || node.stage == Stage::Setup {
                continue;
            }
            let found = rule(graph, node, batch, |v| value[v.index()]);
            for (part, v) in found.iter().flat_map(|rule| rule.results.iter().zip(&node.outputs)) {
                value[v.index()] = *part == Part::Rows;
            }
            rules[id.index()] = found;
        }
        // Nodes that a node which reads rows depends on.
        let mut feeds = reads.clone();
        let mut barriers = Vec::new();
        for (id, node) in graph.nodes().rev() {
            let fed = |v: &ValueId| graph.value(*v).users().iter().any(|u| feeds[u.index()]);
            // A sum is complete only after the last slice.
            let rows = |i: usize| rules[id.index()].as_ref().is_some_and(|r| r.results[i] == Part::Rows);
            if node.outputs.iter().enumerate().any(|(i, v)| !rows(i) && fed(v)) {
                rules[id.index()] = None;
            }
            feeds[id.index()] |= node.outputs.iter().any(fed);
            if late[id.index()] && feeds[id.index()] && rules[id.index()].is_none() {
                barriers.push(id);
            }
        }
        barriers.reverse();
        Self { value, rule: rules, late, barriers }
    }

    /// True if a node makes sums over the samples and nothing that has rows.
    fn sums_only(&self, id: NodeId) -> bool {
        self.rule[id.index()].as_ref().is_some_and(|r| r.results.iter().all(|&part| part != Part::Rows))
    }
}

/// What a new node is called and belongs to.
struct Like {
    name: String,
    stage: Stage,
    origin: Option<NodeId>,
}

/// Rows `first..first + len`.
#[derive(Clone, Copy)]
struct Range {
    first: u64,
    len: u64,
}

/// The rows of slice `slice` of `k`.
fn range(batch: u64, k: u64, slice: u64) -> Range {
    let first = slice * batch / k;
    Range { first, len: (slice + 1) * batch / k - first }
}

struct Slicer<'a> {
    graph: &'a mut Graph,
    batch: u64,
    rows: Rows,
    /// By node: in how many slices it runs.
    counts: Vec<u64>,
    /// The rows of a value, by number of slices and slice.
    pieces: BTreeMap<(ValueId, u64, u64), ValueId>,
    /// What the slices of a sum have added up to so far.
    totals: BTreeMap<ValueId, ValueId>,
    /// Copies of forward nodes, by slice, for the origins of the others.
    copies: BTreeMap<(NodeId, u64), NodeId>,
    order: Vec<NodeId>,
}

impl<'a> Slicer<'a> {
    fn new(graph: &'a mut Graph, batch: u64, rows: Rows, counts: Vec<u64>) -> Self {
        Self {
            graph,
            batch,
            rows,
            counts,
            pieces: BTreeMap::new(),
            totals: BTreeMap::new(),
            copies: BTreeMap::new(),
            order: Vec::new(),
        }
    }

    fn run(&mut self, by_layer: bool, halved: &Halved) -> Result<(), InferError> {
        let old = self.graph.order().to_vec();
        let [early, sliced, waiting] = parts(&old, &self.rows, &self.counts);
        let runs = Cut { counts: &self.counts, halved, by_layer }.runs(&sliced);
        early.iter().try_for_each(|&id| self.once(id))?;
        for run in runs {
            if run.of == 1 { self.once(run.node)? } else { self.copy(run)? }
        }
        waiting.iter().try_for_each(|&id| self.once(id))?;
        for i in 0..self.graph.outputs.len() {
            let value = self.whole(self.graph.outputs[i].value)?;
            self.graph.outputs[i].value = value;
        }
        for i in 0..self.graph.updates.len() {
            let value = self.whole(self.graph.updates[i].value)?;
            self.graph.updates[i].value = value;
        }
        // The originals now only read each other.
        for &id in old.iter().rev() {
            if self.counts[id.index()] > 1 {
                self.graph.remove(id);
            }
        }
        self.graph.set_order(std::mem::take(&mut self.order));
        Ok(())
    }

    /// A node that stays, on whole operands.
    fn once(&mut self, id: NodeId) -> Result<(), InferError> {
        let operands = self.graph.node(id).inputs.clone();
        let mut inputs = operands.clone();
        for v in &mut inputs {
            *v = self.whole(*v)?;
        }
        if inputs != operands {
            self.graph.set_inputs(id, &inputs);
        }
        self.order.push(id);
        Ok(())
    }

    fn range(&self, k: u64, slice: u64) -> Range {
        range(self.batch, k, slice)
    }

    /// One slice of a node.
    fn copy(&mut self, run: Run) -> Result<(), InferError> {
        let Run { node: id, of: k, slice } = run;
        let number = match k > self.counts[id.index()] {
            true => format!("{}.{}", slice / 2, slice % 2),
            false => slice.to_string(),
        };
        let node: Node = self.graph.node(id).clone();
        let like = self.like(id, slice);
        let rule = self.rows.rule[id.index()].clone();
        let rule =
            rule.ok_or_else(|| InferError(format!("node {id} `{}` needs the whole batch", node.name)))?;
        let Range { first, len } = self.range(k, slice);
        let mut inputs: SmallVec<[ValueId; 8]> = SmallVec::new();
        for (i, &v) in node.inputs.iter().enumerate() {
            let v = if rule.cut[i] { self.piece(v, k, slice)? } else { self.whole(v)? };
            inputs.push(if rule.scaled == Some(i) { self.share(v, len, &like, slice)? } else { v });
        }
        let op = on_rows(&node.op, self.graph, &node, first, len);
        let made = self.add(op, &inputs, &like, &number, node.outputs.len())?;
        self.copies.insert((id, slice), made);
        for (i, &part) in rule.results.iter().enumerate() {
            let (whole, piece) = (node.outputs[i], self.graph.node(made).outputs[i]);
            if part == Part::Rows {
                self.pieces.insert((whole, k, slice), piece);
                continue;
            }
            let used = !self.graph.value(whole).users().is_empty() || self.named(whole);
            if used {
                let piece = if part == Part::Mean { self.share(piece, len, &like, slice)? } else { piece };
                let total = match self.totals.get(&whole) {
                    None => piece,
                    Some(&so_far) => {
                        let op = Op::Binary(BinaryKind::Add);
                        let name = format!("{slice}/sum");
                        let sum = self.add(op, &[so_far, piece], &like, &name, 1)?;
                        self.graph.node(sum).outputs[0]
                    }
                };
                self.totals.insert(whole, total);
            }
        }
        Ok(())
    }

    fn named(&self, v: ValueId) -> bool {
        self.graph.outputs.iter().any(|o| o.value == v) || self.graph.updates.iter().any(|u| u.value == v)
    }

    /// Adds a node behind what has been emitted.
    fn add(
        &mut self,
        op: Op,
        inputs: &[ValueId],
        like: &Like,
        suffix: &str,
        n_outputs: usize,
    ) -> Result<NodeId, InferError> {
        let name = format!("{}#{suffix}", like.name);
        let spec = NodeSpec { name, stage: like.stage, origin: like.origin, n_outputs };
        let id = self.graph.add(op, inputs, spec)?;
        self.order.push(id);
        Ok(id)
    }

    /// A value times the share that `len` samples are of the batch.
    fn share(&mut self, v: ValueId, len: u64, like: &Like, slice: u64) -> Result<ValueId, InferError> {
        let share = self.graph.add_const_f32([], &[(len as f64 / self.batch as f64) as f32]);
        let op = Op::Binary(BinaryKind::Mul);
        let id = self.add(op, &[v, share], like, &format!("{slice}/share"), 1)?;
        Ok(self.graph.node(id).outputs[0])
    }

    /// In how many slices a value's rows are made: 1 if all at once.
    fn made_in(&self, v: ValueId) -> u64 {
        let def = self.graph.def_node(v).filter(|_| self.rows.value.get(v.index()) == Some(&true));
        def.map_or(1, |d| self.counts[d.index()])
    }

    /// The whole of a value of the graph as it was.
    fn whole(&mut self, v: ValueId) -> Result<ValueId, InferError> {
        if let Some(&total) = self.totals.get(&v) {
            return Ok(total);
        }
        if self.made_in(v) > 1 { self.piece(v, 1, 0) } else { Ok(v) }
    }

    /// The rows of slice `slice` of `k` of a value of the graph as it was.
    fn piece(&mut self, v: ValueId, k: u64, slice: u64) -> Result<ValueId, InferError> {
        let made_in = self.made_in(v);
        if k == 1 && made_in == 1 {
            return Ok(v);
        }
        if let Some(&piece) = self.pieces.get(&(v, k, slice)) {
            return Ok(piece);
        }
        let like = self.like_of(v, slice);
        let piece = if made_in >= k && made_in.is_multiple_of(k) {
            let each = made_in / k;
            let mut parts: SmallVec<[ValueId; 8]> = SmallVec::new();
            for i in slice * each..(slice + 1) * each {
                let whole = self.pieces.get(&(v, made_in, i)).copied();
                let half = |j| self.pieces.get(&(v, 2 * made_in, 2 * i + j)).copied();
                match (whole, half(0), half(1)) {
                    (Some(whole), ..) => parts.push(whole),
                    (None, Some(first), Some(second)) => parts.extend([first, second]),
                    _ => return Err(InferError(format!("slice {i} of {v} is read before it is made"))),
                }
            }
            let made = self.add(Op::Concat { axis: 0 }, &parts, &like, &format!("{slice}/rows"), 1)?;
            self.graph.node(made).outputs[0]
        } else {
            let mut outer = if k.is_multiple_of(made_in) { made_in } else { 1 };
            // Half of a slice whose halves were made apart.
            let made = |of: u64| self.pieces.contains_key(&(v, of, slice * of / k));
            if outer > 1 && k.is_multiple_of(2 * outer) && made(2 * outer) && !made(outer) {
                outer *= 2;
            }
            let coarse = slice * outer / k;
            let from = self.piece(v, outer, coarse)?;
            // All at once where they can lie in the operand: what is made of one can then take its
            // bytes, which nobody reads any more as part of the whole.
            let each = k / outer;
            let all = coarse * each..(coarse + 1) * each;
            let together = all.clone().all(|i| self.aligned(from, self.within(k, i, outer, coarse)));
            for i in all.filter(|&i| i != slice && together) {
                let like = self.like_of(v, i);
                let made = self.cut(from, self.within(k, i, outer, coarse), &like, i)?;
                self.pieces.insert((v, k, i), made);
            }
            self.cut(from, self.within(k, slice, outer, coarse), &like, slice)?
        };
        self.pieces.insert((v, k, slice), piece);
        Ok(piece)
    }

    /// Where slice `slice` of `k` lies in slice `coarse` of `outer`.
    fn within(&self, k: u64, slice: u64, outer: u64, coarse: u64) -> Range {
        let (own, outer) = (self.range(k, slice), self.range(outer, coarse));
        Range { first: own.first - outer.first, len: own.len }
    }

    /// True if rows of a value start where a tensor may.
    fn aligned(&self, from: ValueId, rows: Range) -> bool {
        let ty = self.graph.ty(from);
        let row = ty.bytes().0 / ty.dims[0].max(1);
        (row * rows.first).is_multiple_of(ALIGNMENT)
    }

    /// Rows of a value.
    fn cut(&mut self, from: ValueId, rows: Range, like: &Like, slice: u64) -> Result<ValueId, InferError> {
        let dims = &self.graph.ty(from).dims;
        let mut attrs = SliceAttrs {
            starts: dims.iter().map(|_| 0).collect(),
            steps: dims.iter().map(|_| 1).collect(),
            lens: dims.clone(),
        };
        attrs.starts[0] = rows.first;
        attrs.lens[0] = rows.len;
        let made = self.add(Op::Slice(attrs), &[from], like, &format!("{slice}/rows"), 1)?;
        Ok(self.graph.node(made).outputs[0])
    }

    /// As the slice that makes rows of a value is.
    fn like_of(&self, v: ValueId, slice: u64) -> Like {
        match self.graph.def_node(v) {
            Some(def) => self.like(def, slice),
            None => Like { name: self.graph.value(v).name.clone(), stage: Stage::Forward, origin: None },
        }
    }

    /// As a slice of a node is.
    fn like(&self, id: NodeId, slice: u64) -> Like {
        let node = self.graph.node(id);
        let origin = node.origin.map(|o| self.copies.get(&(o, slice)).copied().unwrap_or(o));
        Like { name: node.name.clone(), stage: node.stage, origin }
    }
}
