//! Batch norms of training that read what a concat would join: its result is not stored.
//!
//! Every layer of a DenseNet batch-normalises the concat of all layers before it. Where batch
//! norms, their gradients and further concats are a concat's only readers they read its operands
//! instead, so that forward writes, and backward keeps, what convolutions wrote and no copies of
//! it, and batch statistics are found once for each tensor. The gradient of such a batch norm adds
//! the part of the concat's gradient that later layers sent.

use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::id::EntityId;
use vdnn_ir::op::infer::InferError;
use vdnn_ir::op::{MAX_JOINED, SliceAttrs};
use vdnn_ir::{Graph, Node, NodeId, Op, Phase, Real, Stage, ValueId};

/// Joins batch norms with ReLU and the concats of channels they read, in a joint graph with fused
/// epilogues.
///
/// Counters: `batch_norms`, `concats` (that are gone), `known` (batch norms that are given some of
/// their statistics by another one), `sums` (of gradients, which are fused).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JoinBatchNorms;

impl Pass for JoinBatchNorms {
    fn name(&self) -> &'static str {
        "join-batch-norms"
    }
    fn requires(&self) -> Phase {
        Phase::Joint
    }
    fn produces(&self) -> Phase {
        Phase::Joint
    }
    fn run(&self, graph: &mut Graph, _cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        let stats = run(graph).map_err(|error| PassError::Infer { pass: self.name(), error })?;
        Ok(Outcome { changed: stats["batch_norms"] > 0, stats })
    }
}

fn run(graph: &mut Graph) -> Result<Stats, InferError> {
    let joined = pieces(graph);
    let mut stats = Stats::from([("batch_norms", 0), ("concats", 0), ("known", 0), ("sums", 0)]);
    // Batch statistics by what they are of.
    let mut found: BTreeMap<(Real, Vec<ValueId>), [ValueId; 2]> = BTreeMap::new();
    // Readers first in their new form, then what nothing reads any more.
    for id in graph.order().to_vec() {
        // A sum may be gone with the gradient in front of it.
        let Some(node) = graph.get_node(id) else { continue };
        let of = |i: usize| node.inputs.get(i).and_then(|v| joined.get(v));
        match node.op.clone() {
            Op::BatchNormTrainRelu { eps, momentum } => {
                let pieces = of(0).cloned().unwrap_or_else(|| vec![node.inputs[0]]);
                let mut new = id;
                if pieces.len() > 1 {
                    // The longest front of them that another batch norm has read.
                    let mut fronts = (1..=pieces.len()).rev();
                    let known = fronts.find_map(|n| found.get(&(eps, pieces[..n].to_vec())));
                    let mut inputs: SmallVec<[ValueId; 8]> = SmallVec::from_slice(&node.inputs[1..5]);
                    inputs.extend(known.into_iter().flatten().copied());
                    inputs.extend(pieces.iter().copied());
                    let op = Op::BatchNormTrainReluJoined { eps, momentum, known: known.is_some() };
                    *stats.entry("known").or_default() += u64::from(known.is_some());
                    new = replace(graph, id, op, &inputs)?;
                    *stats.entry("batch_norms").or_default() += 1;
                }
                let statistics = [graph.node(new).outputs[3], graph.node(new).outputs[4]];
                found.entry((eps, pieces)).or_insert(statistics);
            }
            Op::BatchNormReluGrad { eps } if is_plain_gradient(node) => {
                let (x, sum) = (node.inputs[1], sum_behind(graph, id));
                if !joined.contains_key(&x) && sum.is_none() {
                    continue;
                }
                let mut inputs: SmallVec<[ValueId; 8]> = SmallVec::from_slice(&[node.inputs[0]]);
                inputs.extend_from_slice(&node.inputs[2..6]);
                inputs.extend(sum.map(|(_, g)| g));
                match joined.get(&x) {
                    Some(pieces) => inputs.extend(pieces.iter().copied()),
                    None => inputs.push(x),
                }
                let op = Op::BatchNormReluGradJoined { eps, added: sum.is_some() };
                let new = replace(graph, id, op, &inputs)?;
                if let Some((sum, _)) = sum {
                    let (y, dx) = (graph.node(sum).outputs[0], graph.node(new).outputs[0]);
                    graph.replace_all_uses(y, dx);
                    graph.remove(sum);
                    *stats.entry("sums").or_default() += 1;
                }
            }
            Op::Concat { axis: 1 } if node.inputs.iter().any(|v| joined.contains_key(v)) => {
                let flat = flat(&joined, node);
                graph.set_inputs(id, &flat);
            }
            _ => {}
        }
    }
    for id in graph.order().to_vec().into_iter().rev() {
        let node = graph.node(id);
        if joined.contains_key(&node.outputs[0]) && graph.value(node.outputs[0]).users().is_empty() {
            graph.remove(id);
            *stats.entry("concats").or_default() += 1;
        }
    }
    Ok(stats)
}

/// What the concats that need not be stored join, with those in front of them: by result.
fn pieces(graph: &Graph) -> BTreeMap<ValueId, Vec<ValueId>> {
    let mut joined: BTreeMap<ValueId, Vec<ValueId>> = BTreeMap::new();
    for (_, node) in graph.nodes() {
        if node.op != (Op::Concat { axis: 1 }) || node.stage != Stage::Forward {
            continue;
        }
        let x = node.outputs[0];
        let named = graph.outputs.iter().any(|o| o.value == x) || graph.updates.iter().any(|u| u.value == x);
        let users = graph.value(x).users();
        let reads = |u: &NodeId| reads_pieces(graph.node(*u), x);
        let is_norm = |u: &NodeId| matches!(graph.node(*u).op, Op::BatchNormTrainRelu { .. });
        let flat = flat(&joined, node);
        if !named && users.iter().all(reads) && users.iter().any(is_norm) && flat.len() <= MAX_JOINED {
            joined.insert(x, flat);
        }
    }
    joined
}

/// The operands of a concat, those of joined concats in their place.
fn flat(joined: &BTreeMap<ValueId, Vec<ValueId>>, concat: &Node) -> Vec<ValueId> {
    let of = |v: &ValueId| joined.get(v).cloned().unwrap_or_else(|| vec![*v]);
    concat.inputs.iter().flat_map(of).collect()
}

/// True if a node reads `x` in a place where it may read what makes up x.
fn reads_pieces(node: &Node, x: ValueId) -> bool {
    let only = |i: usize| node.inputs.iter().enumerate().all(|(j, &v)| (v == x) == (i == j));
    match node.op {
        Op::BatchNormTrainRelu { .. } => node.inputs.len() == 5 && only(0),
        Op::BatchNormReluGrad { .. } => is_plain_gradient(node) && only(1),
        Op::Concat { axis } => axis == 1 && node.stage == Stage::Forward,
        _ => false,
    }
}

/// True for the gradient of a batch norm without a summand.
fn is_plain_gradient(node: &Node) -> bool {
    node.inputs.len() == 6 && node.outputs.len() == 3
}

/// The sum that alone reads the gradient a batch norm sends to its x, if it adds the first
/// channels of a tensor that is there by then, with that tensor.
fn sum_behind(graph: &Graph, gradient: NodeId) -> Option<(NodeId, ValueId)> {
    let dx = graph.node(gradient).outputs[0];
    let named = graph.outputs.iter().any(|o| o.value == dx);
    let &[sum] = graph.value(dx).users() else { return None };
    let node = graph.node(sum);
    let (Op::AddSlice(slice), &[a, g]) = (&node.op, node.inputs.as_slice()) else { return None };
    let at = graph.positions();
    let there = graph.def_node(g).is_none_or(|def| at[def.index()] < at[gradient.index()]);
    (a == dx && g != dx && !named && there && takes_first_channels(slice, graph, g)).then_some((sum, g))
}

fn takes_first_channels(slice: &SliceAttrs, graph: &Graph, g: ValueId) -> bool {
    let others = slice.lens.iter().zip(&graph.ty(g).dims).enumerate().all(|(d, (a, b))| d == 1 || a == b);
    others && slice.starts.iter().all(|&s| s == 0) && slice.steps.iter().all(|&s| s == 1)
}

/// Puts an op with the same results in a node's place.
fn replace(graph: &mut Graph, id: NodeId, op: Op, inputs: &[ValueId]) -> Result<NodeId, InferError> {
    let node = graph.node(id);
    let (old, stage, origin) = (node.outputs.clone(), node.stage, node.origin);
    let spec = NodeSpec { name: node.name.clone(), stage, origin, n_outputs: old.len() };
    let position = graph.order().iter().position(|&n| n == id).expect("a live node");
    let new = graph.insert(position, op, inputs, spec)?;
    for (from, to) in old.into_iter().zip(graph.node(new).outputs.clone()) {
        graph.replace_all_uses(from, to);
    }
    graph.remove(id);
    // What belonged to the layer still does.
    for other in graph.order().to_vec() {
        if graph.node(other).origin == Some(id) {
            *graph.annotate(other).origin = Some(new);
        }
    }
    Ok(new)
}
