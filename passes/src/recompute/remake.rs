//! Makes dropped values again in front of their readers in backward.

use super::price::{Prices, concat_of};
use super::{PASS, is_backward};
use crate::offload::policy::view_root;
use crate::pass::PassError;
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
        made: BTreeSet::new(),
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
    /// The nodes that are computed again.
    made: BTreeSet<NodeId>,
    /// In front of which old position each new node goes.
    places: BTreeMap<NodeId, usize>,
    before: Vec<Vec<NodeId>>,
    /// Where new nodes go now.
    place: usize,
}

impl Remaking<'_> {
    /// What backward reads as a value, made again with all that it takes. A list of what is open
    /// instead of recursion: a chain may be as long as the graph.
    fn value(&mut self, v: ValueId) -> Result<ValueId, PassError> {
        let mut open = vec![v];
        while let Some(&v) = open.last() {
            if !self.is_missing(v) {
                open.pop();
                continue;
            }
            match self.reads(v).into_iter().find(|&r| self.is_missing(r)) {
                Some(first) => open.push(first),
                None => self.make(v)?,
            }
        }
        Ok(self.now(v))
    }

    /// What is read as a value now.
    fn now(&self, v: ValueId) -> ValueId {
        self.again.get(&v).copied().unwrap_or(v)
    }

    /// The node that made a value in forward.
    fn maker(&self, v: ValueId) -> Option<NodeId> {
        self.source.def_node(v).filter(|&n| self.source.node(n).stage == Stage::Forward)
    }

    /// True for a value that is to be made again and is not yet: dropped, between what is kept and
    /// what is dropped, or a view of one that is made again.
    fn is_missing(&self, v: ValueId) -> bool {
        let to_make = |v: ValueId| {
            self.maker(v).is_some_and(|n| !self.made.contains(&n))
                && (self.dropped.contains(&v) || self.prices.is_between(self.source, v))
        };
        let root = view_root(self.source, v);
        !self.again.contains_key(&v)
            && self.maker(v).is_some()
            && (to_make(root) || root != v && self.again.contains_key(&root))
    }

    /// What a value is made of again.
    fn reads(&self, v: ValueId) -> Vec<ValueId> {
        let Some(node) = self.maker(v).map(|n| self.source.node(n)) else { return Vec::new() };
        match node.op {
            Op::BatchNormTrainRelu { .. } => {
                let x = node.inputs[0];
                let concat = concat_of(self.source, x, 1).filter(|_| self.is_open(x));
                let mut pieces = concat.map_or_else(|| vec![x], |concat| self.pieces(concat, 1));
                if pieces.len() > MAX_JOINED {
                    pieces = vec![x];
                }
                let known = [node.inputs[1], node.inputs[2], node.outputs[3], node.outputs[4]];
                known.into_iter().chain(pieces).collect()
            }
            Op::BatchNormTrainReluJoined { .. } => {
                let pieces = &node.inputs[node.op.first_joined().unwrap_or(node.inputs.len())..];
                let known = [node.inputs[0], node.inputs[1], node.outputs[3], node.outputs[4]];
                known.iter().chain(pieces).copied().collect()
            }
            Op::Concat { axis } => self.maker(v).map(|concat| self.pieces(concat, axis)).unwrap_or_default(),
            _ => node.inputs.to_vec(),
        }
    }

    /// Computes a value's node again, of what is there.
    fn make(&mut self, v: ValueId) -> Result<(), PassError> {
        let Some(id) = self.maker(v) else { return Ok(()) };
        let node = self.source.node(id);
        let inputs: Vec<ValueId> = self.reads(v).into_iter().map(|r| self.now(r)).collect();
        let wanted = |v: &ValueId| self.dropped.contains(v);
        let (op, n) = match &node.op {
            Op::BatchNormTrainRelu { eps, .. } | Op::BatchNormTrainReluJoined { eps, .. } => {
                (Op::BatchNormApplyRelu { eps: *eps }, 1)
            }
            // The indices of a pool only where they, too, are made again.
            op @ Op::MaxPool(_) if !node.outputs[1..].iter().any(wanted) => (op.clone(), 1),
            op => (op.clone(), node.outputs.len()),
        };
        self.made.insert(id);
        self.add(id, op, &inputs, n)
    }

    /// True if a value is dropped and not made again yet.
    fn is_open(&self, v: ValueId) -> bool {
        self.dropped.contains(&v) && !self.again.contains_key(&v)
    }

    /// The operands of a concat; of those that are dropped concats themselves, their operands.
    fn pieces(&self, concat: NodeId, axis: u64) -> Vec<ValueId> {
        let mut found = Vec::new();
        let mut open: Vec<ValueId> = self.source.node(concat).inputs.iter().rev().copied().collect();
        while let Some(v) = open.pop() {
            match concat_of(self.source, v, axis).filter(|_| self.is_open(v)) {
                Some(inner) => open.extend(self.source.node(inner).inputs.iter().rev()),
                None => found.push(v),
            }
        }
        found
    }

    /// Adds a node that computes the first `n` results of `id` again.
    fn add(&mut self, id: NodeId, op: Op, inputs: &[ValueId], n: usize) -> Result<(), PassError> {
        let layer = self.source.node(id);
        let spec = NodeSpec::backward(format!("{}/again", layer.name), id).outputs(n);
        let new = self.graph.add(op, inputs, spec).map_err(|error| PassError::Infer { pass: PASS, error })?;
        let needed = inputs.iter().filter_map(|&v| self.places.get(&self.graph.def_node(v)?));
        let place = needed.copied().fold(self.place, usize::max);
        self.places.insert(new, place);
        self.before[place].push(new);
        let results = self.graph.node(new).outputs.clone();
        self.again.extend(layer.outputs.iter().copied().zip(results));
        Ok(())
    }
}
