//! Which regions of an inference graph to run in how many slices.
//!
//! A dynamic program over the nodes in their order, from the last to the first. Going forward the
//! number of slices never rises, each is a multiple of the next, and what crosses from a region to
//! one of fewer, larger slices waits there until enough of it exists. Under a limit of the memory
//! a state, the node and its number, has the choices that no other beats in time and in what waits
//! behind; with several limits that gives a front of (time, memory). A single node may run in
//! more slices than those around it, so that its result takes the bytes of the operands it uses up.
//!
//! Both are estimates: kernels are priced alone, and live bytes are those of the order the
//! graph has, without what sharing and packing do to them. Plans tell what they come to.

use super::halves::{Halves, Price};
use super::live::Sliced;
use super::order::Cut;
use super::rules::on_rows;
use super::{Halved, Part, Rows, SliceBatch, Slicing};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::collections::BTreeMap;
use vdnn_cost::{CostModel, rings};
use vdnn_ir::id::EntityId;
use vdnn_ir::{Bytes, Graph, Nanos, NodeId, Op, TensorType, ValueId};

/// Limits tried: each is this many percent of the one before.
const STEP: u64 = 98;
/// At most so many.
const LIMITS: usize = 160;

/// A choice this many times as slow as the whole batch is of no use.
const SLOWEST: u64 = 4;

/// In so many numbers of slices a node may run inside those around it: 1, 2 and 4 times as many.
const INNER: usize = 3;

/// Halving slices may cost one part in so many of the time.
const LONGER: u64 = 20;

/// A choice for the whole graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regions {
    /// In how many slices each node runs, by its index; 1 for nodes that are not cut.
    pub counts: Vec<u64>,
    /// See [`Slicing::Layers`].
    pub by_layer: bool,
    /// See [`SliceBatch::halved`].
    pub halved: Halved,
    /// Predicted time of the nodes that have rows.
    pub time: Nanos,
    /// Predicted memory of what has rows, with workspace.
    pub peak: Bytes,
}

impl Regions {
    /// The pass that cuts the batch so.
    pub fn slices(self, batch: u64) -> SliceBatch {
        let slicing = match self.by_layer {
            true => Slicing::Layers(self.counts),
            false => Slicing::Regions(self.counts),
        };
        SliceBatch { batch, slicing, halved: self.halved }
    }
}

/// A choice of the program.
#[derive(Clone)]
struct Choice {
    /// By step; later by node.
    counts: Vec<u64>,
    /// Nanoseconds.
    time: u64,
    /// Of the order the graph has.
    peak: u64,
}

/// A node of the program.
struct Step {
    id: NodeId,
    /// Bytes of rows made up to here that are read behind it, without graph inputs.
    crossing: u64,
    /// Bytes of graph inputs still to be read when it starts, by this or a later node.
    inputs: u64,
    /// Per number of slices, its ways to run, fastest first.
    ways: Vec<Vec<Way>>,
}

/// A way to run a node on a slice.
#[derive(Clone, Copy)]
struct Way {
    /// Of all slices.
    time: u64,
    /// Live bytes of rows, and workspace.
    bytes: u64,
    /// In how many slices in all; a multiple of the number of slices around it.
    slices: u64,
}

/// What follows from a node on.
#[derive(Clone, Copy)]
struct State {
    time: u64,
    /// Bytes of what waits behind while the node runs.
    waiting: u64,
    peak: u64,
    /// In how many slices the node itself runs.
    slices: u64,
    /// Number of slices (index) and state of the next node.
    next: (usize, usize),
}

/// The choices for an inference graph: of the dynamic program, from the fastest to the smallest, first
/// those in which no node has more slices than those around it, which are easier to pack; the same with
/// larger stages; each in both orders; and those with halved slices that none of all these beats.
pub fn regions(graph: &Graph, batch: u64, cost: &CostModel) -> Vec<Regions> {
    let rows = Rows::of(graph, batch);
    let prices = Prices { graph, rows: &rows, batch, cost, known: RefCell::default() };
    let numbers: Vec<u64> = (0..=batch.max(1).ilog2()).map(|i| 1 << i).collect();
    let mut found: Vec<Choice> = Vec::new();
    for inner in [1, INNER] {
        let steps = steps(&prices, (&numbers, inner));
        let (mut limit, mut slowest) = (u64::MAX, u64::MAX);
        for _ in 0..LIMITS {
            let Some(mut choice) = under(&steps, &numbers, limit).filter(|c| c.time <= slowest) else {
                break;
            };
            slowest = slowest.min(choice.time.saturating_mul(SLOWEST));
            limit = (choice.peak / 100 * STEP).min(limit / 100 * STEP);
            let mut counts = vec![1; graph.node_bound()];
            for (step, k) in steps.iter().zip(&choice.counts) {
                counts[step.id.index()] = *k;
            }
            choice.counts = counts;
            // A plan is made of each.
            if found.iter().all(|other| other.counts != choice.counts) {
                found.push(choice);
            }
        }
    }
    let larger: Vec<Choice> = found.iter().filter_map(|c| with_larger_stages(c, &prices)).collect();
    found.extend(larger);
    in_both_orders(&found, &prices)
}

/// Choices in both orders, and with halved slices.
fn in_both_orders(found: &[Choice], prices: &Prices<'_>) -> Vec<Regions> {
    let fastest = |id: NodeId, k: u64| prices.fastest(id, k);
    let price: Price<'_> = &fastest;
    let (mut all, mut halved): (Vec<Regions>, Vec<Regions>) = Default::default();
    let sliced = |c: &Choice| Sliced::new(prices.graph, prices.rows, prices.batch, &c.counts);
    // Of most choices both orders are one.
    let differ = |c: &Choice| {
        let (nodes, halved) = (sliced(c).nodes, &Halved::default());
        let runs = |by_layer| Cut { counts: &c.counts, halved, by_layer }.runs(&nodes);
        runs(false) != runs(true)
    };
    let orders = |c| if differ(c) { vec![(c, false), (c, true)] } else { vec![(c, false)] };
    for (choice, by_layer) in found.iter().flat_map(orders) {
        let sliced = sliced(choice);
        let mut halves = Halves { counts: &choice.counts, by_layer, halved: Halved::default(), longer: 0 };
        let regions = |halves: &Halves<'_>, peak: u64| Regions {
            counts: choice.counts.clone(),
            by_layer,
            halved: halves.halved.clone(),
            time: Nanos(choice.time + halves.longer),
            peak: Bytes(peak),
        };
        let mut next = halves.fit(u64::MAX, prices.batch, &sliced, price);
        all.extend(next.map(|peak| regions(&halves, peak)));
        while let Some(peak) = next.filter(|_| halves.longer <= choice.time / LONGER) {
            next = halves.fit(peak.saturating_sub(1), prices.batch, &sliced, price);
            halved.extend(next.map(|peak| regions(&halves, peak)));
        }
    }
    let beats = |o: &Regions, r: &Regions| {
        o.time <= r.time && o.peak <= r.peak && (o.time, o.peak) != (r.time, r.peak)
    };
    for (i, r) in halved.iter().enumerate() {
        let again = halved[..i].iter().any(|o| (o.time, o.peak) == (r.time, r.peak));
        if !again && !r.halved.is_empty() && !all.iter().chain(&halved).any(|o| beats(o, r)) {
            all.push(r.clone());
        }
    }
    all
}

/// The same with stages of blocks on slices of twice the size, where it is cut: a stage needs a
/// while until all of its layers are busy, and what it makes can be used up in smaller slices.
fn with_larger_stages(choice: &Choice, prices: &Prices<'_>) -> Option<Choice> {
    let mut larger = choice.clone();
    for (id, node) in prices.graph.nodes() {
        let count = &mut larger.counts[id.index()];
        let is_stage = matches!(&node.op, Op::Pyramid(pyramid) if !pyramid.is_chain());
        if !is_stage || *count < 2 {
            continue;
        }
        let ((before, _), (after, _)) = (prices.fastest(id, *count)?, prices.fastest(id, *count / 2)?);
        larger.time = larger.time.saturating_sub(before).saturating_add(after);
        *count /= 2;
    }
    (larger.counts != choice.counts).then_some(larger)
}

/// Rows per slice, at most.
fn len(batch: u64, slices: u64) -> u64 {
    batch.div_ceil(slices)
}

fn steps(prices: &Prices<'_>, (numbers, inner): (&[u64], usize)) -> Vec<Step> {
    let &Prices { graph, rows, .. } = prices;
    // What feeds no slice and is a sum waits for all of them, and is small.
    let nodes: Vec<NodeId> = graph
        .order()
        .iter()
        .copied()
        .filter(|id| rows.rule[id.index()].is_some() || rows.barriers.contains(id))
        .collect();
    let is_input = |v: ValueId| graph.def_node(v).is_none();
    // First and last node that has a value of rows.
    let mut spans: BTreeMap<ValueId, (usize, usize)> = BTreeMap::new();
    for (p, id) in nodes.iter().enumerate() {
        let node = graph.node(*id);
        for &v in node.inputs.iter().chain(&node.outputs).filter(|v| rows.value[v.index()]) {
            spans.entry(v).or_insert((p, p)).1 = p;
        }
    }
    for output in &graph.outputs {
        if let Some(span) = spans.get_mut(&output.value) {
            span.1 = nodes.len();
        }
    }
    let sum = |which: &dyn Fn(ValueId, (usize, usize)) -> bool| -> u64 {
        spans.iter().filter(|(v, s)| which(**v, **s)).map(|(v, _)| graph.ty(*v).bytes().0).sum()
    };
    let step = |(p, &id): (usize, &NodeId)| {
        let live = sum(&|v, (a, b)| !is_input(v) && a <= p && p <= b);
        let made = sum(&|v, (a, _)| !is_input(v) && a == p);
        let spent = sum(&|v, (a, b)| !is_input(v) && a < p && b == p);
        let runs: Vec<Runs> = numbers.iter().map(|&k| prices.runs(id, k)).collect();
        let ways = |i: usize| {
            let mut ways = Vec::new();
            for (n, &slices) in numbers.iter().enumerate().skip(i).take(inner) {
                // Of what the node makes and uses up, at the first and at the last of its slices.
                let parts = slices / numbers[i];
                let both = (spent + made / parts).max(spent / parts + made);
                let bytes = (live - made - spent + both).div_ceil(numbers[i]);
                ways.extend(runs[n].iter().map(|r| Way { time: r.0, bytes: bytes + r.1, slices }));
            }
            ways.sort_by_key(|w: &Way| (w.time, w.bytes));
            let mut least = u64::MAX;
            ways.retain(|w| {
                let better = w.bytes < least;
                least = least.min(w.bytes);
                better
            });
            ways
        };
        Step {
            id,
            crossing: sum(&|v, (a, b)| !is_input(v) && a <= p && p < b),
            inputs: sum(&|v, (_, b)| is_input(v) && p <= b),
            ways: (0..numbers.len()).map(ways).collect(),
        }
    };
    nodes.iter().enumerate().map(step).collect()
}

/// What slices of nodes take.
struct Prices<'a> {
    graph: &'a Graph,
    rows: &'a Rows,
    batch: u64,
    cost: &'a CostModel,
    /// By node and number of slices.
    known: RefCell<BTreeMap<(NodeId, u64), Runs>>,
}

/// (time, workspace) of the ways to run a node in so many slices, fastest first, each with less
/// workspace than the one before; empty if it cannot be cut.
type Runs = Vec<(u64, u64)>;

impl Prices<'_> {
    fn runs(&self, id: NodeId, k: u64) -> Runs {
        if let Some(known) = self.known.borrow().get(&(id, k)) {
            return known.clone();
        }
        let runs = self.priced(id, k);
        self.known.borrow_mut().insert((id, k), runs.clone());
        runs
    }

    /// The first of these.
    fn fastest(&self, id: NodeId, k: u64) -> Option<(u64, u64)> {
        if let Some(known) = self.known.borrow().get(&(id, k)) {
            return known.first().copied();
        }
        self.runs(id, k).first().copied()
    }

    fn priced(&self, id: NodeId, k: u64) -> Runs {
        let &Self { graph, rows, batch, cost, .. } = self;
        let node = graph.node(id);
        let own = |v: &ValueId| graph.ty(*v).clone();
        let (mut op, mut inputs, mut outputs): (_, SmallVec<[TensorType; 4]>, SmallVec<[TensorType; 4]>) =
            (node.op.clone(), node.inputs.iter().map(own).collect(), node.outputs.iter().map(own).collect());
        if k > 1 {
            let Some(rule) = &rows.rule[id.index()] else { return Vec::new() };
            let rows = len(batch, k);
            op = on_rows(&node.op, graph, node, 0, rows);
            let cut = rule.cut.iter().zip(&mut inputs).filter(|(cut, _)| **cut);
            let made = rule.results.iter().zip(&mut outputs).filter(|(part, _)| **part == Part::Rows);
            for ty in cut.map(|(_, ty)| ty).chain(made.map(|(_, ty)| ty)) {
                if let Some(first) = ty.dims.first_mut() {
                    *first = rows;
                }
            }
        }
        if !node.op.views().is_empty() {
            return vec![(0, 0)];
        }
        let inputs: SmallVec<[&TensorType; 4]> = inputs.iter().collect();
        let outputs: SmallVec<[&TensorType; 4]> = outputs.iter().collect();
        // Beside measurements nothing is guessed.
        let whole = |v: &ValueId| graph.ty(*v);
        let (all_in, all_out): (SmallVec<[_; 4]>, SmallVec<[_; 4]>) =
            (node.inputs.iter().map(whole).collect(), node.outputs.iter().map(whole).collect());
        if cost.is_measured(&node.op, &all_in, &all_out) && !cost.is_reliable(&op, &inputs, &outputs) {
            return Vec::new();
        }
        if !op.is_conv() {
            return vec![(k * cost.kernel(&op, &inputs, &outputs, None).0, rings(&op, &inputs).0)];
        }
        let mut ways: Vec<(u64, u64)> = Vec::new();
        for option in cost.conv_options(&op, &inputs, &outputs) {
            if ways.last().is_none_or(|last| option.workspace.0 < last.1) {
                ways.push((k * option.time.0, option.workspace.0));
            }
        }
        ways
    }
}

/// The fastest choice with at most so much memory; `counts` by step.
fn under(steps: &[Step], numbers: &[u64], limit: u64) -> Option<Choice> {
    // By node, from the last on, and number.
    let mut table: Vec<Vec<Vec<State>>> = Vec::new();
    for step in steps.iter().rev() {
        let mut row: Vec<Vec<State>> = Vec::new();
        for (i, &k) in numbers.iter().enumerate() {
            let mut states = Vec::new();
            // Of a slice's inputs what it has not read yet is there, and what later slices will read.
            let own = step.inputs / k;
            let first = if k > 1 { steps[0].inputs - steps[0].inputs / k + own } else { own };
            let mut add = |later: Option<&State>, next: (usize, usize), after: u64| {
                // What the slices before this one left for the larger slice of the next node.
                let joined = step.crossing / after - step.crossing / k;
                let waiting = later.map_or(0, |s| s.waiting) + joined;
                let others = first.max(own + waiting);
                let Some(way) = step.ways[i].iter().find(|w| others + w.bytes <= limit) else { return };
                states.push(State {
                    time: later.map_or(0, |s| s.time) + way.time,
                    waiting,
                    peak: later.map_or(0, |s| s.peak).max(others + way.bytes),
                    slices: way.slices,
                    next,
                });
            };
            match table.last() {
                None => add(None, (0, 0), 1),
                Some(after) => {
                    for (j, later) in after.iter().enumerate().take(i + 1) {
                        for (n, state) in later.iter().enumerate() {
                            add(Some(state), (j, n), numbers[j]);
                        }
                    }
                }
            }
            row.push(front(states));
        }
        table.push(row);
    }
    table.reverse();
    let first = table.first()?;
    let states =
        first.iter().enumerate().flat_map(|(i, s)| s.iter().enumerate().map(move |(n, s)| (s, i, n)));
    let (best, mut number, mut at) = states.min_by_key(|(s, ..)| (s.time, s.peak))?;
    let mut counts = Vec::new();
    for row in &table {
        counts.push(row[number][at].slices);
        (number, at) = row[number][at].next;
    }
    Some(Choice { counts, time: best.time, peak: best.peak })
}

/// The states that no other beats in time and in what waits, fastest first.
fn front(mut states: Vec<State>) -> Vec<State> {
    states.sort_by_key(|s| (s.time, s.waiting, s.peak));
    let mut least = u64::MAX;
    states.retain(|s| {
        let better = s.waiting < least;
        least = least.min(s.waiting);
        better
    });
    states
}
