//! Which regions of an inference graph to run in how many slices.
//!
//! A dynamic program over the nodes in their order, from the last to the first. Going forward the
//! number of slices never rises, each is a multiple of the next, and what crosses from a region to
//! one of fewer, larger slices waits there until enough of it exists. Under a limit of the memory
//! a state, the node and its number, has the choices that no other beats in time and in what waits
//! behind; with several limits that gives a front of (time, memory).
//!
//! Both are estimates: kernels are priced alone, and live bytes are those of the order the
//! graph has, without what sharing and packing do to them. Plans tell what they come to.

use super::rules::on_rows;
use super::{Part, Rows};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use vdnn_cost::CostModel;
use vdnn_ir::id::EntityId;
use vdnn_ir::{Bytes, Graph, Nanos, NodeId, Op, TensorType, ValueId};

/// Limits tried: each is this many percent of the one before.
const STEP: u64 = 93;
/// At most so many.
const LIMITS: usize = 64;

/// A choice for the whole graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regions {
    /// In how many slices each node runs, by its index; 1 for nodes that are not cut.
    pub counts: Vec<u64>,
    /// Predicted time of the nodes that have rows.
    pub time: Nanos,
    /// Predicted memory of what has rows, with workspace.
    pub peak: Bytes,
}

/// A node of the program.
struct Step {
    id: NodeId,
    /// Bytes of rows that are live while it runs, of the whole batch, without graph inputs.
    live: u64,
    /// Bytes of rows made up to here that are read behind it, without graph inputs.
    crossing: u64,
    /// Bytes of graph inputs still to be read when it starts, by this or a later node.
    inputs: u64,
    /// Per number of slices, (time, workspace) of its ways to run, fastest first.
    ways: Vec<Vec<(u64, u64)>>,
}

/// What follows from a node on.
#[derive(Clone, Copy)]
struct State {
    time: u64,
    /// Bytes of what waits behind while the node runs.
    waiting: u64,
    peak: u64,
    /// Number of slices (index) and state of the next node.
    next: (usize, usize),
}

/// The choices for an inference graph, from the fastest, which is the whole batch at once, to the
/// smallest; each has less memory and takes more time than the one before.
pub fn regions(graph: &Graph, batch: u64, cost: &CostModel) -> Vec<Regions> {
    let rows = Rows::of(graph, batch);
    let numbers: Vec<u64> = (0..=batch.max(1).ilog2()).map(|i| 1 << i).collect();
    let steps = steps(graph, &rows, batch, &numbers, cost);
    let mut found: Vec<Regions> = Vec::new();
    let mut limit = u64::MAX;
    for _ in 0..LIMITS {
        let Some(best) = under(&steps, &numbers, limit) else { break };
        limit = (best.peak.0 / 100 * STEP).min(limit / 100 * STEP);
        let mut regions = best;
        let mut counts = vec![1; graph.node_bound()];
        for (step, k) in steps.iter().zip(&regions.counts) {
            counts[step.id.index()] = *k;
        }
        regions.counts = counts;
        found.push(regions);
    }
    found
}

/// Rows per slice, at most.
fn len(batch: u64, slices: u64) -> u64 {
    batch.div_ceil(slices)
}

fn steps(graph: &Graph, rows: &Rows, batch: u64, numbers: &[u64], cost: &CostModel) -> Vec<Step> {
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
    nodes
        .iter()
        .enumerate()
        .map(|(p, &id)| Step {
            id,
            live: sum(&|v, (a, b)| !is_input(v) && a <= p && p <= b),
            crossing: sum(&|v, (a, b)| !is_input(v) && a <= p && p < b),
            inputs: sum(&|v, (_, b)| is_input(v) && p <= b),
            ways: numbers.iter().map(|&k| ways(graph, rows, id, batch, k, cost)).collect(),
        })
        .collect()
}

/// (time, workspace) of the ways to run a node in so many slices, fastest first, each with less
/// workspace than the one before; empty if it cannot be cut.
fn ways(graph: &Graph, rows: &Rows, id: NodeId, batch: u64, k: u64, cost: &CostModel) -> Vec<(u64, u64)> {
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
    let known = |op: &Op, inputs: &[&TensorType], outputs: &[&TensorType]| {
        cost.measured().rows(op, inputs, outputs, cost.precision()).is_some()
    };
    if known(&node.op, &all_in, &all_out) && !known(&op, &inputs, &outputs) {
        return Vec::new();
    }
    if !op.is_conv() {
        return vec![(k * cost.kernel(&op, &inputs, &outputs, None).0, 0)];
    }
    let mut ways: Vec<(u64, u64)> = Vec::new();
    for option in cost.conv_options(&op, &inputs, &outputs) {
        if ways.last().is_none_or(|last| option.workspace.0 < last.1) {
            ways.push((k * option.time.0, option.workspace.0));
        }
    }
    ways
}

/// The fastest choice with at most so much memory; `counts` by step.
fn under(steps: &[Step], numbers: &[u64], limit: u64) -> Option<Regions> {
    // By node, from the last on, and number.
    let mut table: Vec<Vec<Vec<State>>> = Vec::new();
    for step in steps.iter().rev() {
        let mut row: Vec<Vec<State>> = Vec::new();
        for (i, &k) in numbers.iter().enumerate() {
            let mut states = Vec::new();
            // Until a slice is the last, inputs are still to be read.
            let inputs = if k > 1 { steps[0].inputs } else { step.inputs };
            let mut add = |later: Option<&State>, next: (usize, usize), after: u64| {
                // What the slices before this one left for the larger slice of the next node.
                let joined = step.crossing / after - step.crossing / k;
                let waiting = later.map_or(0, |s| s.waiting) + joined;
                let least = step.live.div_ceil(k) + waiting + inputs;
                let Some(way) = step.ways[i].iter().find(|w| least + w.1 <= limit) else { return };
                states.push(State {
                    time: later.map_or(0, |s| s.time) + way.0,
                    waiting,
                    peak: later.map_or(0, |s| s.peak).max(least + way.1),
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
        counts.push(numbers[number]);
        (number, at) = row[number][at].next;
    }
    Some(Regions { counts, time: Nanos(best.time), peak: Bytes(best.peak) })
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
