//! What dropping a feature map gains, and what making it again takes.

use super::is_backward;
use crate::offload::policy::view_root;
use smallvec::SmallVec;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use vdnn_cost::CostModel;
use vdnn_ir::id::EntityId;
use vdnn_ir::{Bytes, Def, Graph, Nanos, Node, NodeId, Op, Stage, TensorType, ValueId};

/// What computing a node again takes.
#[derive(Clone, Copy, Debug)]
struct Price {
    /// Bytes that must be kept for it and are not now.
    kept: Bytes,
    /// Time, with that of the operands that are made again for it.
    time: Nanos,
}

/// Which values of a joint graph are kept for backward, and what making them again takes.
#[derive(Debug)]
pub(super) struct Prices {
    /// By value: backward reads it or a view of it.
    kept: Vec<bool>,
    /// By node; `None` if it is not to be computed twice.
    nodes: Vec<Option<Price>>,
}

/// A value that backward reads and that may be dropped.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) value: ValueId,
    /// What is gained.
    bytes: Bytes,
    time: Nanos,
}

impl Candidate {
    /// Orders by bytes gained per time, what gains least first.
    pub(super) fn worth(&self, other: &Self) -> Ordering {
        let product = |a: &Self, b: &Self| u128::from(a.bytes.0) * u128::from(b.time.0.max(1));
        product(self, other).cmp(&product(other, self)).then(self.value.cmp(&other.value))
    }
}

impl Prices {
    pub(super) fn new(graph: &Graph, cost: &CostModel) -> Self {
        let mut kept = vec![false; graph.value_bound()];
        for (_, node) in graph.nodes().filter(|(_, n)| is_backward(n.stage)) {
            for &v in &node.inputs {
                kept[view_root(graph, v).index()] = true;
            }
        }
        let changing: BTreeSet<ValueId> = graph
            .updates
            .iter()
            .filter(|u| graph.def_node(u.value).is_some_and(|n| graph.node(n).stage == Stage::Forward))
            .map(|u| u.param)
            .collect();
        let mut prices = Self { kept, nodes: vec![None; graph.node_bound()] };
        for (id, node) in graph.nodes() {
            let operands = operands(node);
            let stays = operands.iter().all(|v| !changing.contains(v));
            if node.stage == Stage::Forward && is_cheap(node) && stays {
                prices.nodes[id.index()] = Some(prices.price(graph, cost, node, &operands));
            }
        }
        prices
    }

    fn price(&self, graph: &Graph, cost: &CostModel, node: &Node, operands: &[ValueId]) -> Price {
        let mut price = Price { kept: Bytes::ZERO, time: time(graph, cost, node) };
        let roots: BTreeSet<ValueId> = operands.iter().map(|&v| view_root(graph, v)).collect();
        for v in roots {
            if self.kept[v.index()] || matches!(graph.value(v).def, Def::Param(_) | Def::Const(_)) {
                continue;
            }
            let bytes = graph.ty(v).bytes();
            match self.between(graph, v) {
                Some(p) => {
                    price.kept = price.kept.saturating_add(p.kept);
                    price.time = Nanos(price.time.0.saturating_add(p.time.0));
                }
                None => price.kept = price.kept.saturating_add(bytes),
            }
        }
        price
    }

    /// The price of a value that backward does not read, if it is better made again than kept.
    fn between(&self, graph: &Graph, v: ValueId) -> Option<Price> {
        let price = self.of(graph, v)?;
        (!self.kept[v.index()] && price.kept < graph.ty(v).bytes()).then_some(price)
    }

    fn of(&self, graph: &Graph, v: ValueId) -> Option<Price> {
        let node = graph.def_node(v)?;
        let index = graph.node(node).outputs.iter().position(|&o| o == v)?;
        // The statistics of a batch norm stay.
        let op = &graph.node(node).op;
        let again =
            index == 0 || !matches!(op, Op::BatchNormTrainRelu { .. } | Op::BatchNormTrainReluJoined { .. });
        self.nodes[node.index()].filter(|_| again)
    }

    /// True if a value is to be made again although nothing dropped it: for others.
    pub(super) fn is_between(&self, graph: &Graph, v: ValueId) -> bool {
        self.between(graph, v).is_some()
    }

    /// The values that are kept, and smaller made again.
    pub(super) fn candidates(&self, graph: &Graph) -> Vec<Candidate> {
        let named: BTreeSet<ValueId> = graph.outputs.iter().map(|o| view_root(graph, o.value)).collect();
        let of = |v: ValueId| {
            let price = self.of(graph, v).filter(|_| self.kept[v.index()] && !named.contains(&v))?;
            let bytes = graph.ty(v).bytes().saturating_sub(price.kept);
            (bytes > Bytes::ZERO).then_some(Candidate { value: v, bytes, time: price.time })
        };
        let values = graph.nodes().flat_map(|(_, node)| node.outputs.iter().copied());
        values.filter_map(of).collect()
    }
}

/// What computing a node's results again reads.
fn operands(node: &Node) -> SmallVec<[ValueId; 8]> {
    match (&node.op, node.inputs.as_slice(), node.outputs.as_slice()) {
        (Op::BatchNormTrainRelu { .. }, &[x, scale, bias, ..], &[_, _, _, mean, invstd]) => {
            SmallVec::from_slice(&[scale, bias, mean, invstd, x])
        }
        (Op::BatchNormTrainReluJoined { .. }, inputs, &[_, _, _, mean, invstd]) => {
            let pieces = &inputs[node.op.first_joined().unwrap_or(inputs.len())..];
            inputs[..2].iter().chain(&[mean, invstd]).chain(pieces).copied().collect()
        }
        (_, inputs, _) => SmallVec::from_slice(inputs),
    }
}

/// Time of a node; of a batch norm in training, of its application alone.
pub(super) fn time(graph: &Graph, cost: &CostModel, node: &Node) -> Nanos {
    let types = |list: &[ValueId]| -> SmallVec<[TensorType; 8]> {
        list.iter().map(|&v| graph.ty(v).clone()).collect()
    };
    let (op, inputs, outputs) = match node.op {
        Op::BatchNormTrainRelu { eps, .. } | Op::BatchNormTrainReluJoined { eps, .. } => {
            (Op::BatchNormApplyRelu { eps }, types(&operands(node)), types(&node.outputs[..1]))
        }
        _ => (node.op.clone(), types(&node.inputs), types(&node.outputs)),
    };
    let inputs: SmallVec<[&TensorType; 8]> = inputs.iter().collect();
    let outputs: SmallVec<[&TensorType; 8]> = outputs.iter().collect();
    cost.kernel(&op, &inputs, &outputs, None)
}

/// True for ops that pass over memory and little more.
fn is_cheap(node: &Node) -> bool {
    match node.op {
        Op::Unary(_)
        | Op::Binary(_)
        | Op::Elementwise(_)
        | Op::Concat { .. }
        | Op::Split { .. }
        | Op::Slice(_)
        | Op::Pad { .. }
        | Op::Expand { .. }
        | Op::Transpose { .. }
        | Op::Relayout { .. }
        | Op::Cast { .. }
        | Op::Dropout { .. }
        | Op::MaxPool(_)
        | Op::AvgPool { .. }
        | Op::Lrn(_)
        | Op::BatchNormInfer { .. }
        | Op::BatchNormInferRelu { .. }
        | Op::BatchNormTrainReluJoined { .. }
        | Op::BatchNormApplyRelu { .. } => true,
        // With a summand y is rounded in another way than the statistics tell.
        Op::BatchNormTrainRelu { .. } => node.inputs.len() == 5,
        _ => false,
    }
}

/// The node that defines a value, if it is a concat along an axis.
pub(super) fn concat_of(graph: &Graph, v: ValueId, axis: u64) -> Option<NodeId> {
    let node = graph.def_node(v)?;
    (graph.node(node).op == Op::Concat { axis }).then_some(node)
}
