//! Makes dropped values again in front of their readers in backward.

use super::price::{Prices, concat_of};
use super::{PASS, is_backward};
use crate::pass::PassError;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::MAX_JOINED;
use vdnn_ir::{Graph, NodeId, Op, Stage, ValueId};

/// A graph that drops values.
pub(super) struct Remade {
    pub(super) graph: Graph,
    /// What backward reads instead of a value of the forward pass.
    pub(super) again: BTreeMap<ValueId, ValueId>,
}

/// The graph with `dropped` values made again.
pub(super) fn remake(
    graph: &Graph,
    prices: &Prices,
    dropped: &BTreeSet<ValueId>,
) -> Result<Remade, PassError> {
    let mut remaking = Remaking {
        source: graph,
        graph: graph.clone(),
        prices,
        dropped,
        again: BTreeMap::new(),
        places: BTreeMap::new(),
        before: vec![Vec::new(); graph.order().len()],
        place: 0,
    };
    let mut data_gradients: BTreeMap<NodeId, usize> = BTreeMap::new();
    for (p, (id, node)) in graph.nodes().enumerate().filter(|(_, (_, n))| is_backward(n.stage)) {
        remaking.place = p;
        match (&node.op, node.origin) {
            (Op::ConvDgrad { .. }, Some(layer)) => {
                data_gradients.insert(layer, p);
            }
            // It is scheduled in front of the data gradient if what it reads is there by then.
            (Op::ConvWgrad { .. }, Some(layer)) => {
                remaking.place = data_gradients.get(&layer).copied().unwrap_or(p);
            }
            _ => {}
        }
        for &v in &node.inputs {
            let now = remaking.value(v)?;
            if now != v {
                remaking.graph.replace_use(id, v, now);
            }
        }
    }
    let Remaking { graph: mut made, again, before, .. } = remaking;
    let order = graph.order().iter().zip(before).flat_map(|(&id, new)| new.into_iter().chain([id]));
    made.set_order(order.collect());
    Ok(Remade { graph: made, again })
}

struct Remaking<'a> {
    source: &'a Graph,
    graph: Graph,
    prices: &'a Prices,
    dropped: &'a BTreeSet<ValueId>,
    again: BTreeMap<ValueId, ValueId>,
    /// In front of which old position each new node goes.
    places: BTreeMap<NodeId, usize>,
    before: Vec<Vec<NodeId>>,
    /// Where new nodes go now.
    place: usize,
}

impl Remaking<'_> {
    /// What backward reads as a value.
    fn value(&mut self, v: ValueId) -> Result<ValueId, PassError> {
        if let Some(&again) = self.again.get(&v) {
            return Ok(again);
        }
        let Some(def) = self.source.def_node(v).filter(|&n| self.source.node(n).stage == Stage::Forward)
        else {
            return Ok(v);
        };
        let node = self.source.node(def);
        if matches!(node.op, Op::Reshape { .. }) {
            let (of, op) = (node.inputs[0], node.op.clone());
            let now = self.value(of)?;
            return if now == of { Ok(v) } else { self.add(def, op, &[now], 1) };
        }
        if !self.dropped.contains(&v) && !self.prices.is_between(self.source, v) {
            return Ok(v);
        }
        self.node(def)?;
        Ok(self.again.get(&v).copied().unwrap_or(v))
    }

    /// Computes a node again.
    fn node(&mut self, id: NodeId) -> Result<ValueId, PassError> {
        let node = self.source.node(id);
        match node.op {
            Op::BatchNormTrainRelu { eps, .. } => {
                let x = node.inputs[0];
                let mut pieces = Vec::new();
                match concat_of(self.source, x, 1) {
                    Some(concat) if self.is_open(x) => self.pieces(concat, 1, &mut pieces)?,
                    _ => pieces.push(self.value(x)?),
                }
                if pieces.len() > MAX_JOINED {
                    pieces = vec![self.value(x)?];
                }
                let mut inputs: SmallVec<[ValueId; 8]> = SmallVec::new();
                for v in [node.inputs[1], node.inputs[2], node.outputs[3], node.outputs[4]] {
                    inputs.push(self.value(v)?);
                }
                inputs.extend(pieces);
                self.add(id, Op::BatchNormApplyRelu { eps }, &inputs, 1)
            }
            Op::BatchNormTrainReluJoined { eps, .. } => {
                let first = node.op.first_joined().unwrap_or(node.inputs.len());
                let (scale, bias, pieces) = (node.inputs[0], node.inputs[1], &node.inputs[first..]);
                let mut inputs: SmallVec<[ValueId; 8]> = SmallVec::new();
                for &v in [scale, bias, node.outputs[3], node.outputs[4]].iter().chain(pieces) {
                    inputs.push(self.value(v)?);
                }
                self.add(id, Op::BatchNormApplyRelu { eps }, &inputs, 1)
            }
            Op::Concat { axis } => {
                let mut pieces = Vec::new();
                self.pieces(id, axis, &mut pieces)?;
                self.add(id, node.op.clone(), &pieces, 1)
            }
            _ => {
                let mut inputs: SmallVec<[ValueId; 8]> = SmallVec::new();
                for &v in &node.inputs {
                    inputs.push(self.value(v)?);
                }
                // The indices of a pool only where they, too, are made again.
                let wanted = |v: &ValueId| self.dropped.contains(v);
                let n = if matches!(node.op, Op::MaxPool(_)) && !node.outputs[1..].iter().any(wanted) {
                    1
                } else {
                    node.outputs.len()
                };
                self.add(id, node.op.clone(), &inputs, n)
            }
        }
    }

    /// True if a value is dropped and not made again yet.
    fn is_open(&self, v: ValueId) -> bool {
        self.dropped.contains(&v) && !self.again.contains_key(&v)
    }

    /// The operands of a concat; of those that are dropped concats themselves, their operands.
    fn pieces(&mut self, concat: NodeId, axis: u64, out: &mut Vec<ValueId>) -> Result<(), PassError> {
        for &v in &self.source.node(concat).inputs {
            match concat_of(self.source, v, axis) {
                Some(inner) if self.is_open(v) => self.pieces(inner, axis, out)?,
                _ => out.push(self.value(v)?),
            }
        }
        Ok(())
    }

    /// Adds a node that computes the first `n` results of `id` again.
    fn add(&mut self, id: NodeId, op: Op, inputs: &[ValueId], n: usize) -> Result<ValueId, PassError> {
        let layer = self.source.node(id);
        let spec = NodeSpec::backward(format!("{}/again", layer.name), id).outputs(n);
        let new = self.graph.add(op, inputs, spec).map_err(|error| PassError::Infer { pass: PASS, error })?;
        let needed = inputs.iter().filter_map(|&v| self.places.get(&self.graph.def_node(v)?));
        let place = needed.copied().fold(self.place, usize::max);
        self.places.insert(new, place);
        self.before[place].push(new);
        let results = self.graph.node(new).outputs.clone();
        self.again.extend(layer.outputs.iter().copied().zip(results.iter().copied()));
        Ok(results[0])
    }
}
