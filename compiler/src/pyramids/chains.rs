//! Chains of a graph: convolutions, pools and pointwise ops, each read by the next one only.

use std::collections::BTreeSet;
use std::ops::Range;
use vdnn_cost::CostModel;
use vdnn_ir::graph::{Node, NodeId, Stage, ValueId};
use vdnn_ir::op::{BinaryKind, ConvAttrs, PoolAttrs, UnaryKind};
use vdnn_ir::{Bytes, Dims, Graph, Nanos, Op, TensorType};
use vdnn_pyramid::{Chain, Kind, Layer, Pointwise, Shape, Window};

/// A chain and the nodes it is made of.
#[derive(Clone, Debug)]
pub struct Found {
    /// The chain, of one image.
    pub chain: Chain,
    /// Name of each layer's node.
    pub names: Vec<String>,
    /// Predicted time of each layer by itself, with the pointwise nodes behind it (before the
    /// first layer, those in front of it).
    pub alone: Vec<Nanos>,
    /// Bytes of each layer's result, of the whole batch.
    results: Vec<Bytes>,
}

impl Found {
    /// Bytes of the results inside a group, which nothing outside reads.
    pub fn interior(&self, layers: Range<usize>) -> Bytes {
        let inner = layers.start..layers.end.saturating_sub(1).max(layers.start);
        self.results[inner].iter().copied().sum()
    }
}

/// What a node is in a chain.
enum Link {
    Layer(Layer),
    Pointwise(Vec<Pointwise>),
}

impl Link {
    fn adds(&self) -> bool {
        match self {
            Self::Layer(layer) => layer.then.contains(&Pointwise::Add),
            Self::Pointwise(list) => list.contains(&Pointwise::Add),
        }
    }
}

/// The operand that a chain may come by, before it is known which one it does.
fn source(node: &Node) -> Option<ValueId> {
    let at = if matches!(node.op, Op::BatchNormInferRelu { .. }) { 4 } else { 0 };
    node.inputs.get(at).copied()
}

/// The chains of at least two layers, in program order; every node is in one at most.
pub fn chains(graph: &Graph, cost: &CostModel) -> Vec<Found> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for (id, node) in graph.nodes().filter(|(_, n)| n.stage == Stage::Forward) {
        if seen.contains(&id) || link(graph, node, source(node)).is_none() {
            continue;
        }
        let mut nodes = Vec::new();
        let mut next = Some((id, source(node)));
        // After a residual a chain only goes on to the next layer.
        let mut ended = false;
        while let Some((id, from)) = next {
            let node = graph.node(id);
            let Some(link) = link(graph, node, from).filter(|_| !seen.contains(&id)) else { break };
            if nodes.is_empty() && matches!(link, Link::Pointwise(_)) && link.adds() {
                break;
            }
            if ended && matches!(link, Link::Layer(_)) {
                break;
            }
            ended |= link.adds();
            seen.insert(id);
            nodes.push((id, link));
            let value = node.outputs[0];
            let named = graph.outputs.iter().any(|o| o.value == value);
            next = match graph.value(value).users() {
                &[user] if !named => Some((user, Some(value))),
                _ => None,
            };
        }
        all.extend(found(graph, nodes, cost));
    }
    all
}

fn found(graph: &Graph, nodes: Vec<(NodeId, Link)>, cost: &CostModel) -> Option<Found> {
    let (first, _) = nodes.first()?;
    let dims = &graph.ty(source(graph.node(*first))?).dims;
    let input = Shape { channels: dims[1], height: dims[2], width: dims[3] };
    let (mut prologue, mut layers) = (Vec::new(), Vec::<Layer>::new());
    let (mut names, mut alone, mut results) = (Vec::new(), Vec::new(), Vec::new());
    let mut front = Nanos::ZERO;
    for (id, link) in nodes {
        let time = price(graph, id, cost);
        let node = graph.node(id);
        match link {
            Link::Layer(layer) => {
                layers.push(layer);
                names.push(node.name.clone());
                alone.push(time.saturating_add(std::mem::take(&mut front)));
                results.push(graph.ty(node.outputs[0]).bytes());
            }
            Link::Pointwise(list) => match layers.last_mut() {
                Some(layer) => {
                    layer.then.extend(list);
                    if let Some(last) = alone.last_mut() {
                        *last = last.saturating_add(time);
                    }
                }
                None => {
                    prologue.extend(list);
                    front = front.saturating_add(time);
                }
            },
        }
    }
    if layers.len() < 2 {
        return None;
    }
    let chain = Chain::new(input, prologue, layers).ok()?;
    Some(Found { chain, names, alone, results })
}

/// Predicted time of a node by the fastest algorithm there is.
pub(super) fn price(graph: &Graph, id: NodeId, cost: &CostModel) -> Nanos {
    let node = graph.node(id);
    if node.stage == Stage::Setup {
        return Nanos::ZERO;
    }
    let types = |list: &[ValueId]| list.iter().map(|&v| graph.ty(v)).collect::<Vec<&TensorType>>();
    let (inputs, outputs) = (types(&node.inputs), types(&node.outputs));
    if node.op.is_conv() {
        let options = cost.conv_options(&node.op, &inputs, &outputs);
        return options.first().map_or(Nanos::ZERO, |o| o.time);
    }
    cost.kernel(&node.op, &inputs, &outputs, None)
}

/// What a node is in a chain that comes to it by `from`, if it can be in one.
fn link(graph: &Graph, node: &Node, from: Option<ValueId>) -> Option<Link> {
    let from = from?;
    let dims = &graph.ty(from).dims;
    if dims.len() != 4 || node.outputs.len() != 1 {
        return None;
    }
    let first = node.inputs.first() == Some(&from);
    let layer = |kind, then| Some(Link::Layer(Layer { kind, then }));
    let pointwise = |list: &[Pointwise]| Some(Link::Pointwise(list.to_vec()));
    match &node.op {
        Op::Conv(conv) if first => {
            layer(convolution(conv, graph.ty(node.inputs[1]), node.inputs.len() > 2)?, vec![])
        }
        Op::ConvEpilogue { conv, relu } if first => {
            let mut then = Vec::new();
            if node.inputs.len() > 3 {
                then.push(Pointwise::Add);
            }
            if *relu {
                then.push(Pointwise::Relu);
            }
            layer(convolution(conv, graph.ty(node.inputs[1]), true)?, then)
        }
        Op::MaxPool(pool) => layer(Kind::MaxPool { window: pooling(pool)? }, vec![]),
        Op::AvgPool { pool, count_include_pad } => {
            let count_include_pad = *count_include_pad;
            layer(Kind::AvgPool { window: pooling(pool)?, count_include_pad }, vec![])
        }
        Op::BatchNormInfer { .. } if first => pointwise(&[Pointwise::Scale]),
        // With several operands a concat is in it, which is no function of one image.
        Op::BatchNormInferRelu { .. } if node.inputs.len() == 5 && node.inputs[4] == from => {
            pointwise(&[Pointwise::Scale, Pointwise::Relu])
        }
        Op::Unary(UnaryKind::Relu) => pointwise(&[Pointwise::Relu]),
        Op::Unary(UnaryKind::Clip { lo, hi }) => pointwise(&[Pointwise::Clip { lo: *lo, hi: *hi }]),
        Op::Binary(BinaryKind::Add) => {
            let same = |v: &ValueId| graph.ty(*v).dims == *dims;
            let other = node.inputs.iter().filter(|v| **v != from).count() == 1;
            if other && node.inputs.iter().all(same) { pointwise(&[Pointwise::Add]) } else { None }
        }
        _ => None,
    }
}

fn pair(dims: &Dims) -> Option<[u64; 2]> {
    dims.as_slice().try_into().ok()
}

fn convolution(conv: &ConvAttrs, weight: &TensorType, bias: bool) -> Option<Kind> {
    let window = Window {
        kernel: pair(&conv.kernel)?,
        strides: pair(&conv.strides)?,
        before: pair(&conv.before)?,
        after: pair(&conv.after)?,
        dilations: pair(&conv.dilations)?,
        ceil: false,
    };
    Some(Kind::Conv { window, groups: conv.groups, out: *weight.dims.first()?, bias })
}

fn pooling(pool: &PoolAttrs) -> Option<Window> {
    Some(Window {
        kernel: pair(&pool.kernel)?,
        strides: pair(&pool.strides)?,
        before: pair(&pool.before)?,
        after: pair(&pool.after)?,
        dilations: pair(&pool.dilations)?,
        ceil: pool.ceil_mode,
    })
}
