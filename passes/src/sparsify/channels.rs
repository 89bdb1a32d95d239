//! Which channels of feature maps hold constants, and which are needed.
//!
//! An *element* is one channel (index of dimension 1) of one feature map. Ops that work channel
//! by channel tie an element of their operand to one of their result: either both are computed or
//! neither. Needs start at outputs and at ops that this module does not know, and go backward
//! through convolutions, which need a channel only if a filter that is needed has a weight for it
//! that is not zero and its content is not a constant.

use super::facts::{Facts, ParamFacts};
use std::collections::{BTreeMap, BTreeSet};
use vdnn_ir::id::EntityId;
use vdnn_ir::op::{BinaryKind, ConvAttrs, ReduceKind, UnaryKind};
use vdnn_ir::{Graph, Node, NodeId, Op, Stage, ValueId};

/// What a channel is known to hold, everywhere in it and for every input of finite numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Content {
    /// Anything.
    Unknown,
    /// One number.
    Value(f32),
    /// What a ReLU makes zero, up to the tolerance.
    AlmostDead,
}

/// The channels of a graph.
pub(super) struct Channels {
    /// First element of each value that has channels.
    first: Vec<Option<usize>>,
    content: Vec<Content>,
    /// Parent of each element, the roots of ties being their own.
    tied: Vec<usize>,
    /// Of roots: someone reads it.
    needed: Vec<bool>,
    weights: BTreeMap<ValueId, ParamFacts>,
    /// Channels of batch norms that a ReLU makes zero.
    pub(super) dead: u64,
}

/// How a node treats channels.
pub(super) enum Kind {
    /// A convolution without groups, weights known to be static.
    Conv,
    /// One filter per channel.
    Depthwise,
    /// A product with static weights, `w[M,K]`.
    Dense,
    /// Channel c of the result is a function of channel c of the operands; for a reshape, of all
    /// of a channel's elements.
    Tied,
    /// The operands' channels one after the other.
    Concat,
    /// Anything else.
    Opaque,
}

/// Number of channels of a value that is a feature map.
pub(super) fn count(graph: &Graph, v: ValueId) -> Option<usize> {
    let dims = &graph.ty(v).dims;
    (dims.len() >= 2 && !graph.is_static(v)).then(|| dims[1] as usize)
}

/// How `node` treats channels.
pub(super) fn kind(graph: &Graph, node: &Node) -> Kind {
    let fixed = |i: usize| node.inputs.get(i).is_none_or(|&v| graph.is_static(v));
    let moving = |i: usize| count(graph, node.inputs[i]).is_some();
    let same = || node.inputs.iter().all(|&v| graph.ty(v).dims == graph.ty(node.outputs[0]).dims);
    if node.outputs.len() != 1 || node.inputs.is_empty() {
        return Kind::Opaque;
    }
    match &node.op {
        Op::Conv(a) if moving(0) && fixed(1) && fixed(2) => {
            let w = &graph.ty(node.inputs[1]).dims;
            match a.groups {
                1 => Kind::Conv,
                _ if w[1] == 1 && w[0] == a.groups => Kind::Depthwise,
                _ => Kind::Opaque,
            }
        }
        Op::Gemm { trans_a: false, trans_b: true, .. } if moving(0) && fixed(1) && fixed(2) => {
            let columns = graph.ty(node.inputs[1]).dims[0];
            let plain = node.inputs.get(2).is_none_or(|&c| graph.ty(c).dims[..] == [columns]);
            if plain { Kind::Dense } else { Kind::Opaque }
        }
        Op::BatchNormInfer { .. } if moving(0) && (1..5).all(fixed) => Kind::Tied,
        Op::Unary(_) | Op::MaxPool(_) | Op::AvgPool { .. } if moving(0) => Kind::Tied,
        Op::Reduce { axes, .. } if moving(0) && axes.iter().all(|&a| a >= 2) => Kind::Tied,
        Op::Binary(_) if moving(0) && moving(1) && same() => Kind::Tied,
        Op::Reshape { dims } if moving(0) => {
            let x = &graph.ty(node.inputs[0]).dims;
            let (whole, split) = (x[1..].iter().product::<u64>(), dims.get(1..).unwrap_or_default());
            let flat = split.first() == Some(&whole) && split[1..].iter().all(|&d| d == 1);
            if dims.first() == x.first() && flat { Kind::Tied } else { Kind::Opaque }
        }
        Op::Concat { axis: 1 } if (0..node.inputs.len()).all(moving) => Kind::Concat,
        _ => Kind::Opaque,
    }
}

/// True if a constant channel adds the same to every output: nothing is padded.
fn unpadded(a: &ConvAttrs) -> bool {
    a.before.iter().chain(&a.after).all(|&p| p == 0)
}

impl Channels {
    /// Analyses a graph. Below `tolerance` a batch norm's factor counts as zero in front of a
    /// ReLU; 0 asks for zeros.
    pub(super) fn new(graph: &Graph, facts: &Facts, tolerance: f32) -> Self {
        let (mut first, mut elements) = (vec![None; graph.value_bound()], 0);
        let results = graph.nodes().flat_map(|(_, n)| n.outputs.iter().copied());
        for v in graph.inputs().iter().copied().chain(results) {
            if let Some(n) = count(graph, v) {
                first[v.index()] = Some(elements);
                elements += n;
            }
        }
        let mut this = Self {
            first,
            content: vec![Content::Unknown; elements],
            tied: (0..elements).collect(),
            needed: Vec::new(),
            weights: BTreeMap::new(),
            dead: 0,
        };
        for (_, node) in graph.nodes().filter(|(_, n)| matches!(n.op, Op::Conv(_) | Op::Gemm { .. })) {
            if let Some(known) = node.inputs.get(1).and_then(|&w| Some((w, facts.get(graph, w)?))) {
                this.weights.insert(known.0, known.1.into_owned());
            }
        }
        for (_, node) in graph.nodes().filter(|(_, n)| n.stage == Stage::Forward) {
            this.contents(graph, facts, tolerance, node);
        }
        this
    }

    fn at(&self, v: ValueId, c: usize) -> usize {
        self.first[v.index()].expect("a value with channels") + c
    }

    /// What a channel holds.
    pub(super) fn content(&self, v: ValueId, c: usize) -> Content {
        self.content[self.at(v, c)]
    }

    /// The weight facts of a convolution or product.
    pub(super) fn weights(&self, w: ValueId) -> Option<&ParamFacts> {
        self.weights.get(&w)
    }

    fn is_zero(&self, v: ValueId, c: usize) -> bool {
        matches!(self.content(v, c), Content::Value(k) if k == 0.0)
    }

    fn contents(&mut self, graph: &Graph, facts: &Facts, tolerance: f32, node: &Node) {
        let Some(channels) = node.outputs.first().and_then(|&y| count(graph, y)) else { return };
        let (y, x) = (node.outputs[0], node.inputs.first().copied());
        let vector = |i: usize| node.inputs.get(i).and_then(|&v| facts.vector(graph, v));
        let found: Vec<Content> = match (kind(graph, node), &node.op, x) {
            (Kind::Conv | Kind::Dense, op, Some(x)) => {
                let plain = !matches!(op, Op::Gemm { beta, .. } if beta.0 != 1.0);
                let known = self.weights(node.inputs[1]).filter(|_| plain);
                let (bias, inputs) = (vector(2), count(graph, x).unwrap_or(0));
                let biased = node.inputs.len() > 2;
                (0..channels)
                    .map(|m| {
                        let silent = known.is_some_and(|w| {
                            !w.row_alive(m) || (0..inputs).all(|c| !w.is_alive(m, c) || self.is_zero(x, c))
                        });
                        match (silent, biased, &bias) {
                            (true, false, _) => Content::Value(0.0),
                            (true, true, Some(b)) => Content::Value(b[m]),
                            _ => Content::Unknown,
                        }
                    })
                    .collect()
            }
            (Kind::Tied, Op::BatchNormInfer { eps, .. }, Some(x)) => {
                let [Some(gamma), Some(beta), Some(mean), Some(var)] = [1, 2, 3, 4].map(vector) else {
                    return;
                };
                let relu = graph
                    .value(y)
                    .users()
                    .iter()
                    .any(|&u| matches!(graph.node(u).op, Op::Unary(UnaryKind::Relu)));
                (0..channels)
                    .map(|c| {
                        let exact = gamma[c] == 0.0;
                        if relu
                            && beta[c] <= tolerance
                            && (exact && beta[c] <= 0.0 || gamma[c].abs() < tolerance)
                        {
                            self.dead += 1;
                        }
                        let almost = gamma[c].abs() < tolerance && beta[c] <= tolerance;
                        match self.content(x, c) {
                            _ if almost && (beta[c] > 0.0 || !exact) => Content::AlmostDead,
                            _ if exact => Content::Value(beta[c]),
                            Content::Value(k) => {
                                Content::Value((k - mean[c]) / (var[c] + eps.0).sqrt() * gamma[c] + beta[c])
                            }
                            _ => Content::Unknown,
                        }
                    })
                    .collect()
            }
            (Kind::Tied, op, Some(x)) => {
                let inner = (channels / count(graph, x).unwrap_or(1).max(1)).max(1);
                (0..channels)
                    .map(|c| {
                        let other = node.inputs.get(1).map(|&b| self.content(b, c));
                        through(op, self.content(x, c / inner), other)
                    })
                    .collect()
            }
            (Kind::Concat, ..) => {
                let pieces = node.inputs.iter();
                pieces
                    .flat_map(|&p| (0..count(graph, p).unwrap_or(0)).map(move |c| (p, c)))
                    .map(|(p, c)| self.content(p, c))
                    .collect()
            }
            _ => return,
        };
        let first = self.at(y, 0);
        self.content[first..first + channels].copy_from_slice(&found);
    }

    fn root(&mut self, mut e: usize) -> usize {
        while self.tied[e] != e {
            self.tied[e] = self.tied[self.tied[e]];
            e = self.tied[e];
        }
        e
    }

    fn tie(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.tied[a.max(b)] = a.min(b);
    }

    /// True if a channel is computed.
    pub(super) fn is_needed(&mut self, v: ValueId, c: usize) -> bool {
        let e = self.at(v, c);
        let root = self.root(e);
        self.needed[root]
    }

    /// The channels of a value that are computed, in order.
    pub(super) fn kept(&mut self, graph: &Graph, v: ValueId) -> Vec<usize> {
        (0..count(graph, v).unwrap_or(0)).filter(|&c| self.is_needed(v, c)).collect()
    }

    fn need(&mut self, v: ValueId, c: usize) -> bool {
        let e = self.at(v, c);
        let root = self.root(e);
        !std::mem::replace(&mut self.needed[root], true)
    }

    fn need_all(&mut self, graph: &Graph, v: ValueId) {
        for c in 0..count(graph, v).unwrap_or(0) {
            self.need(v, c);
        }
    }

    /// The channels of `x` that a convolution or product asks for.
    pub(super) fn wanted(&mut self, graph: &Graph, node: &Node) -> Vec<usize> {
        let [x, w] = [node.inputs[0], node.inputs[1]];
        let inputs = count(graph, x).unwrap_or(0);
        let filters = self.kept(graph, node.outputs[0]);
        let foldable = match &node.op {
            Op::Conv(a) => unpadded(a),
            _ => false,
        };
        (0..inputs)
            .filter(|&c| {
                let skipped = match self.content(x, c) {
                    Content::Value(k) => k == 0.0 || foldable,
                    _ => false,
                };
                let known = self.weights.get(&w);
                !skipped && filters.iter().any(|&m| known.is_none_or(|w| w.is_alive(m, c)))
            })
            .collect()
    }

    /// Finds what is needed if the nodes `cut` gather the channels that they want of their first
    /// operand, and all others take every channel that there is.
    pub(super) fn find_needs(&mut self, graph: &Graph, cut: &BTreeSet<NodeId>) {
        self.tied = (0..self.content.len()).collect();
        self.needed = vec![false; self.content.len()];
        let nodes: Vec<(NodeId, &Node)> = graph.nodes().filter(|(_, n)| n.stage == Stage::Forward).collect();
        for &(id, node) in &nodes {
            self.tie_node(graph, node, cut.contains(&id));
        }
        for &v in graph.inputs() {
            self.need_all(graph, v);
        }
        for o in &graph.outputs {
            self.need_all(graph, o.value);
        }
        for (_, node) in nodes.iter().filter(|(_, n)| matches!(kind(graph, n), Kind::Opaque)) {
            for &v in node.inputs.iter().chain(&node.outputs) {
                self.need_all(graph, v);
            }
        }
        // What is asked for; only then something to read for those that ask for nothing.
        for lone in [false, true] {
            loop {
                let mut changed = false;
                for &(id, node) in nodes.iter().rev() {
                    changed |= self.needs_of(graph, node, cut.contains(&id));
                    changed |= lone && self.lone_need(graph, node);
                }
                if !changed {
                    break;
                }
            }
        }
    }

    /// Lets a convolution or product whose filters are constants read one channel: it cannot be
    /// without any.
    fn lone_need(&mut self, graph: &Graph, node: &Node) -> bool {
        if !matches!(kind(graph, node), Kind::Conv | Kind::Dense) {
            return false;
        }
        let (x, y) = (node.inputs[0], node.outputs[0]);
        let lacks = !self.kept(graph, y).is_empty() && self.kept(graph, x).is_empty();
        lacks && count(graph, x).is_some_and(|n| n > 0) && self.need(x, 0)
    }

    fn tie_node(&mut self, graph: &Graph, node: &Node, cut: bool) {
        let Some(&y) = node.outputs.first() else { return };
        match kind(graph, node) {
            Kind::Tied if !cut => {
                for &x in &node.inputs {
                    let Some(from) = count(graph, x) else { continue };
                    let to = count(graph, y).unwrap_or(0);
                    let inner = (to / from.max(1)).max(1);
                    for c in 0..to {
                        let (a, b) = (self.at(x, c / inner), self.at(y, c));
                        self.tie(a, b);
                    }
                }
            }
            Kind::Depthwise => {
                for c in 0..count(graph, y).unwrap_or(0) {
                    let (a, b) = (self.at(node.inputs[0], c), self.at(y, c));
                    self.tie(a, b);
                }
            }
            Kind::Concat => {
                let mut at = 0;
                for &x in &node.inputs {
                    for c in 0..count(graph, x).unwrap_or(0) {
                        let (a, b) = (self.at(x, c), self.at(y, at));
                        self.tie(a, b);
                        at += 1;
                    }
                }
            }
            _ => {}
        }
    }

    fn needs_of(&mut self, graph: &Graph, node: &Node, cut: bool) -> bool {
        let mut changed = false;
        match kind(graph, node) {
            Kind::Conv | Kind::Dense => {
                for c in self.wanted(graph, node) {
                    changed |= self.need(node.inputs[0], c);
                }
            }
            Kind::Tied if cut => {
                for c in self.kept(graph, node.outputs[0]) {
                    changed |= self.need(node.inputs[0], c);
                }
            }
            _ => {}
        }
        changed
    }
}

/// What an op that works channel by channel makes of constants.
fn through(op: &Op, x: Content, other: Option<Content>) -> Content {
    use Content::{AlmostDead, Unknown, Value};
    match (op, x, other) {
        (Op::Unary(UnaryKind::Relu), Value(k), _) => Value(k.max(0.0)),
        (Op::Unary(UnaryKind::Relu), AlmostDead, _) => Value(0.0),
        (Op::Unary(UnaryKind::Clip { lo, hi }), Value(k), _) => Value(k.max(lo.0).min(hi.0)),
        (Op::MaxPool(_) | Op::Reshape { .. }, Value(k), _) => Value(k),
        (Op::AvgPool { .. }, Value(0.0), _) => Value(0.0),
        (Op::Reduce { kind: ReduceKind::Sum | ReduceKind::Mean | ReduceKind::Max, .. }, Value(0.0), _) => {
            Value(0.0)
        }
        (Op::Binary(BinaryKind::Add), Value(a), Some(Value(b))) => Value(a + b),
        (Op::Binary(BinaryKind::Mul), Value(0.0), _) | (Op::Binary(BinaryKind::Mul), _, Some(Value(0.0))) => {
            Value(0.0)
        }
        _ => Unknown,
    }
}
