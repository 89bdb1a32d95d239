//! Stages of bottleneck blocks: runs of residual blocks of an inference (He, Zhang, Ren and Sun,
//! *Deep Residual Learning for Image Recognition*, CVPR 2016, figure 5, right) become single nodes
//! ([`vdnn_ir::Op::Pyramid`]) where there is a kernel that runs them image by image and takes no
//! longer than their layers: the tensors between them are then never there as a whole.
//!
//! A block is a 1x1 convolution, a 3x3 one and another 1x1 one, each with its bias and ReLU in it,
//! with the block's input or a 1x1 convolution of it added in front of the last ReLU. Blocks follow
//! each other if nothing else reads what lies between them. Layers that already are a pyramid count
//! as that one. Which sizes there are kernels for, and
//! what they take, the cost model says; of a run the most blocks from its first on are fused that
//! gain, then the rest is looked at again. Run it behind `fuse-epilogues`.

use crate::fuse_pyramids::{Candidate, one_node, price};
use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use vdnn_cost::CostModel;
use vdnn_ir::op::infer::InferError;
use vdnn_ir::op::pyramid::MAX_LAYERS;
use vdnn_ir::op::{ConvAttrs, PyramidAttrs, PyramidKind, PyramidLayer, PyramidStep, PyramidUse};
use vdnn_ir::{Graph, Mode, Nanos, NodeId, Op, Phase, Stage, TensorType, ValueId};

/// Fewest blocks of a stage.
const FEWEST: usize = 2;

/// Makes stages of blocks single nodes in a joint inference graph.
///
/// Counters: `stages`, `blocks` in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FuseStages;

/// What a layer reads and makes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Image {
    /// A value of the graph.
    Value(ValueId),
    /// The result of so-manieth layer of a pyramid, which its next one alone reads.
    Inside(NodeId, usize),
}

/// A convolution of a block: a node, or a layer of a pyramid.
struct Layer<'a> {
    node: NodeId,
    conv: &'a ConvAttrs,
    input: Image,
    weight: ValueId,
    bias: ValueId,
    residual: Option<ValueId>,
    relu: bool,
}

/// A block: its convolutions, with that of the residual, if there is one, before the last. Either of
/// the two may be the node that has the sum.
struct Block<'a> {
    layers: SmallVec<[Layer<'a>; 4]>,
    input: ValueId,
    result: ValueId,
    /// Its nodes; the last one makes its result.
    nodes: SmallVec<[NodeId; 4]>,
}

impl Block<'_> {
    fn has_side(&self) -> bool {
        self.layers.len() > 3
    }
}

/// Blocks as one op, without a configuration.
struct Found {
    pyramid: PyramidAttrs,
    inputs: Vec<ValueId>,
    nodes: Vec<NodeId>,
    result: ValueId,
    /// Time of the layers by themselves.
    alone: Nanos,
}

impl Pass for FuseStages {
    fn name(&self) -> &'static str {
        "fuse-stages"
    }

    fn requires(&self) -> Phase {
        Phase::Joint
    }

    fn produces(&self) -> Phase {
        Phase::Joint
    }

    fn run(&self, graph: &mut Graph, cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        // Training reads what lies inside again.
        if graph.mode != Mode::Infer {
            return Ok(Outcome::default());
        }
        let mut stats = Stats::new();
        let mut found = Vec::new();
        for (blocks, stage) in stages(graph, cx.cost, |stage| stage.fastest(graph, cx.cost)) {
            *stats.entry("stages").or_default() += 1;
            *stats.entry("blocks").or_default() += blocks as u64;
            found.push(stage);
        }
        replace(graph, found).map_err(|error| PassError::Infer { pass: self.name(), error })?;
        Ok(Outcome { changed: !stats.is_empty(), stats })
    }
}

/// Blocks that follow each other, in program order; every block is in one run.
fn runs(graph: &Graph) -> Vec<Vec<Block<'_>>> {
    let mut all: Vec<Vec<Block<'_>>> = Vec::new();
    // Which run a value ends.
    let mut ends: BTreeMap<ValueId, usize> = BTreeMap::new();
    for (id, _) in graph.nodes() {
        let Some(block) = block(graph, id) else { continue };
        let before = ends.get(&block.input).copied();
        let before = before.filter(|_| !block.has_side() && is_inner(graph, block.input, &block.nodes));
        let run = before.unwrap_or(all.len());
        ends.insert(block.result, run);
        match all.get_mut(run) {
            Some(run) => run.push(block),
            None => all.push(vec![block]),
        }
    }
    all
}

/// The block whose result a node makes.
fn block(graph: &Graph, id: NodeId) -> Option<Block<'_>> {
    let &[result] = graph.node(id).outputs.as_slice() else { return None };
    let sum = layer(graph, Image::Value(result)).filter(|l| l.relu && is(l.conv, 1))?;
    let residual = sum.residual?;
    let plain = || {
        let other = layer(graph, Image::Value(residual)).filter(|l| !l.relu && l.residual.is_none())?;
        (is(other.conv, 1) && is_inner(graph, residual, &[id])).then_some(other)
    };
    if let Some([first, second]) = inner(graph, &sum) {
        if Image::Value(residual) == first.input {
            return made(graph, [first, second, sum], result);
        }
        let side = plain().filter(|side| side.input == first.input)?;
        return made(graph, [first, second, side, sum], result);
    }
    let last = plain()?;
    let [first, second] = inner(graph, &last).filter(|[first, _]| first.input == sum.input)?;
    made(graph, [first, second, sum, last], result)
}

/// The 1x1 and the 3x3 convolution in front of a block's last one.
fn inner<'a>(graph: &'a Graph, last: &Layer<'_>) -> Option<[Layer<'a>; 2]> {
    let of = |image: Image, reader: NodeId, kernel: u64| {
        let layer = layer(graph, image)?;
        let alone = match image {
            Image::Value(v) => is_inner(graph, v, &[reader]),
            Image::Inside(..) => true,
        };
        (alone && layer.relu && layer.residual.is_none() && is(layer.conv, kernel)).then_some(layer)
    };
    let second = of(last.input, last.node, 3)?;
    let first = of(second.input, second.node, 1)?;
    Some([first, second])
}

/// A block of these layers; `None` if there are others in one of its nodes.
fn made<'a, const N: usize>(graph: &Graph, layers: [Layer<'a>; N], result: ValueId) -> Option<Block<'a>> {
    let Image::Value(input) = layers[0].input else { return None };
    let last = graph.def_node(result)?;
    let mut nodes: SmallVec<[NodeId; 4]> = SmallVec::new();
    for node in layers.iter().map(|l| l.node).filter(|&node| node != last) {
        if !nodes.contains(&node) {
            nodes.push(node);
        }
    }
    nodes.push(last);
    let own = |&id: &NodeId| match &graph.node(id).op {
        Op::Pyramid(pyramid) => pyramid.layers.len(),
        _ => 1,
    };
    let all = nodes.iter().map(own).sum::<usize>() == N;
    all.then(|| Block { layers: layers.into_iter().collect(), input, result, nodes })
}

/// The convolution, with a bias, that makes an image.
fn layer(graph: &Graph, image: Image) -> Option<Layer<'_>> {
    let (id, inside) = match image {
        Image::Value(v) => (graph.def_node(v)?, None),
        Image::Inside(id, at) => (id, Some(at)),
    };
    let node = graph.node(id);
    let forward = node.stage == Stage::Forward;
    if let Op::Pyramid(pyramid) = &node.op {
        let at = inside.or(pyramid.layers.len().checked_sub(1))?;
        let layer = pyramid.layers.get(at)?;
        let PyramidKind::Conv { conv, bias: true } = &layer.kind else { return None };
        let first = 1 + pyramid.layers[..at].iter().map(PyramidLayer::operands).sum::<usize>();
        let &[weight, bias, ref residual @ ..] = node.inputs.get(first..first + layer.operands())? else {
            return None;
        };
        let (adds, relu) = match layer.then.as_slice() {
            [] => (false, false),
            [PyramidStep::Relu] => (false, true),
            [PyramidStep::Add] => (true, false),
            [PyramidStep::Add, PyramidStep::Relu] => (true, true),
            _ => return None,
        };
        let residual = residual.first().copied();
        let input = if at == 0 { Image::Value(node.inputs[0]) } else { Image::Inside(id, at - 1) };
        let chain = pyramid.is_chain() && adds == residual.is_some();
        return (forward && chain).then_some(Layer { node: id, conv, input, weight, bias, residual, relu });
    }
    let (conv, relu) = match &node.op {
        Op::Conv(conv) => (conv, false),
        Op::ConvEpilogue { conv, relu } => (conv, *relu),
        _ => return None,
    };
    let &[input, weight, bias, ref residual @ ..] = node.inputs.as_slice() else { return None };
    let (input, residual) = (Image::Value(input), residual.first().copied());
    forward.then_some(Layer { node: id, conv, input, weight, bias, residual, relu })
}

/// True for a window of so many rows and columns that keeps the image's.
fn is(conv: &ConvAttrs, kernel: u64) -> bool {
    *conv == ConvAttrs::square(kernel, 1, kernel / 2, 1)
}

/// True if these nodes alone read a value.
fn is_inner(graph: &Graph, v: ValueId, by: &[NodeId]) -> bool {
    let named = graph.outputs.iter().any(|o| o.value == v);
    !named && graph.value(v).users().iter().all(|user| by.contains(user))
}

/// Of every run the longest stages that something is found for, from its first block on, with what
/// it is and their numbers of blocks.
fn stages<T>(
    graph: &Graph,
    cost: &CostModel,
    mut of: impl FnMut(&Found) -> Option<T>,
) -> Vec<(usize, (Found, T))> {
    let mut all = Vec::new();
    for run in runs(graph) {
        let mut rest = run.as_slice();
        while rest.len() >= FEWEST {
            let longest = (FEWEST..=rest.len()).rev().find_map(|n| {
                let found = Found::of(graph, &rest[..n], cost)?;
                let is = of(&found)?;
                Some((n, (found, is)))
            });
            rest = &rest[longest.as_ref().map_or(1, |(n, _)| *n)..];
            all.extend(longest);
        }
    }
    all
}

impl Found {
    /// `None` if they are too many.
    fn of(graph: &Graph, blocks: &[Block<'_>], cost: &CostModel) -> Option<Self> {
        let pyramid = PyramidAttrs::stage(u32::try_from(blocks.len()).ok()?, blocks[0].has_side());
        if pyramid.layers.len() > MAX_LAYERS {
            return None;
        }
        let layers = blocks.iter().flat_map(|b| &b.layers);
        let inputs =
            std::iter::once(blocks[0].input).chain(layers.flat_map(|l| [l.weight, l.bias])).collect();
        let nodes: Vec<NodeId> = blocks.iter().flat_map(|b| b.nodes.iter().copied()).collect();
        let alone = nodes.iter().map(|&id| price(graph, id, cost).0).sum();
        Some(Self { pyramid, inputs, nodes, result: blocks[blocks.len() - 1].result, alone })
    }

    fn types<'g>(&self, graph: &'g Graph) -> (Vec<&'g TensorType>, &'g TensorType) {
        (self.inputs.iter().map(|&v| graph.ty(v)).collect(), graph.ty(self.result))
    }

    /// The configuration with the least time, by measurements where there are any, else by
    /// prediction; `None` if there is none or the layers by themselves take less.
    fn fastest(&self, graph: &Graph, cost: &CostModel) -> Option<String> {
        let (inputs, output) = self.types(graph);
        let (option, _) = cost.fastest_pyramid(&self.pyramid, &inputs, &[output], |_| true)?;
        (option.time <= self.alone).then_some(option.config)
    }
}

/// Every stage that the pass might fuse in a joint graph and that there is a kernel for, whatever it
/// takes, with so many images each.
pub fn candidates(graph: &Graph, cost: &CostModel, sizes: &[u64]) -> Vec<Candidate> {
    let mut all = Vec::new();
    if graph.mode != Mode::Infer {
        return all;
    }
    let has_kernel = |found: &Found| {
        let inputs = found.types(graph).0;
        (!cost.predicted_pyramid(&found.pyramid, &inputs).is_empty()).then_some(())
    };
    for (_, (Found { pyramid, inputs, result, alone, .. }, ())) in stages(graph, cost, has_kernel) {
        let whole = graph.ty(result).dims[0].max(1);
        for &images in sizes {
            let cut = |v: ValueId, of: PyramidUse| {
                let mut ty = graph.ty(v).clone();
                if of == PyramidUse::Image {
                    ty.dims[0] = images;
                }
                ty
            };
            let candidate = Candidate {
                inputs: inputs.iter().zip(pyramid.uses()).map(|(&v, of)| cut(v, of)).collect(),
                output: cut(result, PyramidUse::Image),
                pyramid: pyramid.clone(),
                alone: Nanos((alone.as_f64() * images as f64 / whole as f64) as u64),
            };
            if !all.contains(&candidate) {
                all.push(candidate);
            }
        }
    }
    all
}

/// Puts one node in the place of the last one of each.
fn replace(graph: &mut Graph, found: Vec<(Found, String)>) -> Result<(), InferError> {
    let mut renamed: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for (Found { pyramid, mut inputs, nodes, result, .. }, config) in found {
        let (&[first, ..], &[.., last]) = (nodes.as_slice(), nodes.as_slice()) else { continue };
        for input in &mut inputs {
            *input = renamed.get(input).copied().unwrap_or(*input);
        }
        // Of a pyramid, its first and its last layer.
        let ends = [&graph.node(first).name, &graph.node(last).name];
        let [begin, end] = ends.map(|name| name.split(" .. ").collect::<Vec<_>>());
        let name = format!("{} .. {}", begin[0], end[end.len() - 1]);
        let new = one_node(graph, &nodes, Op::Pyramid(pyramid.with_config(config)), &inputs, name)?;
        renamed.insert(result, new);
    }
    Ok(())
}
