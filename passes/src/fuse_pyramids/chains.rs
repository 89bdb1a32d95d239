//! Chains of a graph: convolutions, pools and pointwise ops, each read by the next one only.

use smallvec::SmallVec;
use std::collections::BTreeSet;
use std::ops::Range;
use vdnn_cost::CostModel;
use vdnn_ir::graph::{Node, NodeId, Stage, ValueId};
use vdnn_ir::op::{BinaryKind, PyramidAttrs, PyramidKind, PyramidLayer, PyramidStep, PyramidUse, UnaryKind};
use vdnn_ir::{Bytes, DType, Graph, Nanos, Op, Precision, TensorType};

/// A layer of a chain: a convolution or pool and the pointwise nodes behind it.
#[derive(Clone, Debug)]
pub struct FoundLayer {
    /// What it computes.
    pub layer: PyramidLayer,
    /// Its operands besides its input: weight, bias, other summands.
    pub operands: SmallVec<[ValueId; 4]>,
    /// Its nodes, in order.
    pub nodes: SmallVec<[NodeId; 2]>,
    /// What it reads.
    pub input: ValueId,
    /// What it makes.
    pub result: ValueId,
    /// Time of its nodes by themselves, each as fast as it gets.
    pub alone: Nanos,
    /// Whether all of that was measured.
    pub measured: bool,
}

impl FoundLayer {
    fn adds(&self) -> bool {
        self.layer.then.contains(&PyramidStep::Add)
    }
}

/// At least two layers, each read by the next one only.
#[derive(Clone, Debug)]
pub struct Found {
    /// The layers.
    pub layers: Vec<FoundLayer>,
}

impl Found {
    /// Name of each layer's first node.
    pub fn names(&self, graph: &Graph) -> Vec<String> {
        self.layers.iter().map(|l| graph.node(l.nodes[0]).name.clone()).collect()
    }

    /// Bytes of the results inside a group, which nothing outside reads.
    pub fn interior(&self, graph: &Graph, layers: Range<usize>) -> Bytes {
        let inner = layers.start..layers.end.saturating_sub(1).max(layers.start);
        self.layers[inner].iter().map(|l| graph.ty(l.result).bytes()).sum()
    }

    /// Time of some layers by themselves, and whether all of it was measured.
    pub fn alone(&self, layers: Range<usize>) -> (Nanos, bool) {
        let layers = &self.layers[layers];
        (layers.iter().map(|l| l.alone).sum(), layers.iter().all(|l| l.measured))
    }

    /// The pyramid of some layers, without a configuration, and its operands.
    pub fn pyramid(&self, layers: Range<usize>) -> (PyramidAttrs, Vec<FoundOperand>) {
        let layers = &self.layers[layers];
        let pyramid =
            PyramidAttrs { layers: layers.iter().map(|l| l.layer.clone()).collect(), config: String::new() };
        let values =
            std::iter::once(layers[0].input).chain(layers.iter().flat_map(|l| l.operands.iter().copied()));
        let operand = |(v, of): (ValueId, PyramidUse)| match of {
            PyramidUse::Bias => FoundOperand::Bias(v),
            PyramidUse::Image | PyramidUse::Weight => FoundOperand::Other(v),
        };
        let operands = values.zip(pyramid.uses()).map(operand).collect();
        (pyramid, operands)
    }
}

/// An operand of a pyramid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundOperand {
    /// A bias, which a pyramid takes in f32.
    Bias(ValueId),
    /// Any other.
    Other(ValueId),
}

impl FoundOperand {
    /// The type that the pyramid takes it in.
    pub fn ty(self, graph: &Graph) -> TensorType {
        match self {
            Self::Bias(v) => TensorType { dtype: DType::F32, ..graph.ty(v).clone() },
            Self::Other(v) => graph.ty(v).clone(),
        }
    }
}

/// What a node is in a chain.
enum Link {
    Layer(Box<PyramidLayer>, SmallVec<[ValueId; 4]>),
    Pointwise(PyramidStep, Option<ValueId>),
}

/// The chains of at least two layers, in program order; every node is in one at most. Only
/// layers whose tensors are of the element type that kernels at this precision have.
pub fn chains(graph: &Graph, cost: &CostModel) -> Vec<Found> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for (id, node) in graph.nodes().filter(|(_, n)| n.stage == Stage::Forward) {
        let starts = |from: &ValueId| matches!(link(graph, node, *from, cost), Some(Link::Layer(..)));
        let Some(input) = node.inputs.first().copied().filter(starts) else { continue };
        if seen.contains(&id) {
            continue;
        }
        let mut layers: Vec<FoundLayer> = Vec::new();
        let mut next = Some((id, input));
        while let Some((id, from)) = next {
            let node = graph.node(id);
            let Some(link) = link(graph, node, from, cost).filter(|_| !seen.contains(&id)) else { break };
            // A residual is added in the last layer.
            if matches!(link, Link::Layer(..)) && layers.last().is_some_and(FoundLayer::adds) {
                break;
            }
            seen.insert(id);
            let result = node.outputs[0];
            let (time, measured) = price(graph, id, cost);
            match (link, layers.last_mut()) {
                (Link::Layer(layer, operands), _) => layers.push(FoundLayer {
                    layer: *layer,
                    operands,
                    nodes: SmallVec::from_slice(&[id]),
                    input: from,
                    result,
                    alone: time,
                    measured,
                }),
                (Link::Pointwise(step, operand), Some(last)) => {
                    last.layer.then.push(step);
                    last.operands.extend(operand);
                    last.nodes.push(id);
                    last.result = result;
                    last.alone = last.alone.saturating_add(time);
                    last.measured &= measured;
                }
                (Link::Pointwise(..), None) => break,
            }
            let named = graph.outputs.iter().any(|o| o.value == result);
            next = match graph.value(result).users() {
                &[user] if !named => Some((user, result)),
                _ => None,
            };
        }
        if layers.len() > 1 {
            all.push(Found { layers });
        }
    }
    all
}

/// Time of a node by the fastest algorithm there is, and whether that was measured.
pub fn price(graph: &Graph, id: NodeId, cost: &CostModel) -> (Nanos, bool) {
    let node = graph.node(id);
    if node.stage == Stage::Setup {
        return (Nanos::ZERO, true);
    }
    let types = |list: &[ValueId]| list.iter().map(|&v| graph.ty(v)).collect::<Vec<&TensorType>>();
    let (inputs, outputs) = (types(&node.inputs), types(&node.outputs));
    let measured = cost.is_measured(&node.op, &inputs, &outputs);
    if node.op.is_conv() {
        let options = cost.conv_options(&node.op, &inputs, &outputs);
        return (options.first().map_or(Nanos::ZERO, |o| o.time), measured);
    }
    (cost.kernel(&node.op, &inputs, &outputs, None), measured)
}

/// What a node is in a chain that comes to it by `from`, if it can be in one.
fn link(graph: &Graph, node: &Node, from: ValueId, cost: &CostModel) -> Option<Link> {
    let element = if cost.precision() == Precision::Bf16 { DType::BF16 } else { DType::F32 };
    let alike = |v: &ValueId| graph.ty(*v).dtype == element;
    let rank = graph.ty(from).rank();
    if rank != 4 || node.outputs.len() != 1 || node.stage != Stage::Forward || !node.inputs.iter().all(alike)
    {
        return None;
    }
    // What else it reads; none of it may be what the chain makes.
    let rest = &node.inputs[1..];
    let first = node.inputs.first() == Some(&from) && !rest.contains(&from);
    let layer = |kind, then: &[PyramidStep]| {
        let layer = PyramidLayer { from: None, kind, then: SmallVec::from_slice(then) };
        first.then(|| Link::Layer(Box::new(layer), SmallVec::from_slice(rest)))
    };
    // A narrow bias is widened once, at load.
    let has_bias = matches!(node.op, Op::Conv(_) | Op::ConvEpilogue { .. }) && rest.len() > 1;
    if has_bias && element != DType::F32 && !graph.is_static(rest[1]) {
        return None;
    }
    match &node.op {
        Op::Conv(conv) => layer(PyramidKind::Conv { conv: conv.clone(), bias: has_bias }, &[]),
        Op::ConvEpilogue { conv, relu } => {
            let mut then: SmallVec<[PyramidStep; 2]> = SmallVec::new();
            if rest.len() > 2 {
                then.push(PyramidStep::Add);
            }
            if *relu {
                then.push(PyramidStep::Relu);
            }
            layer(PyramidKind::Conv { conv: conv.clone(), bias: true }, &then)
        }
        Op::MaxPool(pool) => layer(PyramidKind::MaxPool(pool.clone()), &[]),
        Op::AvgPool { pool, count_include_pad } => {
            layer(PyramidKind::AvgPool { pool: pool.clone(), count_include_pad: *count_include_pad }, &[])
        }
        Op::Unary(UnaryKind::Relu) => Some(Link::Pointwise(PyramidStep::Relu, None)),
        Op::Unary(UnaryKind::Clip { lo, hi }) => {
            Some(Link::Pointwise(PyramidStep::Clip { lo: *lo, hi: *hi }, None))
        }
        Op::Binary(BinaryKind::Add) => {
            let others: SmallVec<[ValueId; 2]> = node.inputs.iter().copied().filter(|v| *v != from).collect();
            match others.as_slice() {
                &[other] if graph.ty(other) == graph.ty(from) => {
                    Some(Link::Pointwise(PyramidStep::Add, Some(other)))
                }
                _ => None,
            }
        }
        _ => None,
    }
}
