//! Stages of bottleneck blocks: runs of residual blocks of an inference (He, Zhang, Ren and Sun,
//! *Deep Residual Learning for Image Recognition*, CVPR 2016, figure 5, right) become single nodes
//! ([`vdnn_ir::Op::Pyramid`]) where there is a kernel that runs them image by image and takes no
//! longer than their layers: the tensors between them are then never there as a whole.
//!
//! A block is a 1x1 convolution, a 3x3 one and another 1x1 one, each with its bias and ReLU in it,
//! with the block's input or a 1x1 convolution of it added in front of the last ReLU. Blocks follow
//! each other if nothing else reads what lies between them. Which sizes there are kernels for, and
//! what they take, the cost model says; of a run the most blocks from its first on are fused that
//! gain, then the rest is looked at again. Run it behind `fuse-epilogues`.

use crate::fuse_pyramids::{Candidate, price};
use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use smallvec::{SmallVec, smallvec};
use std::collections::BTreeMap;
use vdnn_cost::CostModel;
use vdnn_ir::graph::NodeSpec;
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

/// A convolution of a block.
struct Layer<'a> {
    node: NodeId,
    conv: &'a ConvAttrs,
    input: ValueId,
    weight: ValueId,
    bias: ValueId,
    residual: Option<ValueId>,
    relu: bool,
    result: ValueId,
}

/// A block: its convolutions, with that of the residual, if there is one, before the last. Either of
/// the two may be the node that has the sum.
struct Block<'a> {
    layers: SmallVec<[Layer<'a>; 4]>,
    /// The node that makes its result.
    last: NodeId,
    result: ValueId,
}

impl Block<'_> {
    fn input(&self) -> ValueId {
        self.layers[0].input
    }

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
        let own: SmallVec<[NodeId; 2]> = smallvec![block.layers[0].node, id];
        let before = ends.get(&block.input()).copied();
        let before = before.filter(|_| !block.has_side() && is_inner(graph, block.input(), &own));
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
    let single = |v: ValueId| layer(graph, graph.def_node(v)?).filter(|l| is(l.conv, 1));
    let plain =
        |v: ValueId| single(v).filter(|l| !l.relu && l.residual.is_none() && is_inner(graph, v, &[id]));
    let sum = layer(graph, id).filter(|l| l.relu && is(l.conv, 1))?;
    let (result, residual) = (sum.result, sum.residual?);
    let made = |layers: Vec<_>| Some(Block { layers: SmallVec::from_vec(layers), last: id, result });
    if let Some([first, second]) = inner(graph, &sum) {
        if residual == first.input {
            return made(vec![first, second, sum]);
        }
        let side = plain(residual).filter(|side| side.input == first.input)?;
        return made(vec![first, second, side, sum]);
    }
    let last = plain(residual)?;
    let [first, second] = inner(graph, &last).filter(|[first, _]| first.input == sum.input)?;
    made(vec![first, second, sum, last])
}

/// The 1x1 and the 3x3 convolution in front of a block's last one.
fn inner<'a>(graph: &'a Graph, last: &Layer<'_>) -> Option<[Layer<'a>; 2]> {
    let of = |v: ValueId, reader: NodeId, kernel: u64| {
        let layer = layer(graph, graph.def_node(v)?)?;
        let fits = layer.relu && layer.residual.is_none() && is(layer.conv, kernel);
        (fits && is_inner(graph, v, &[reader])).then_some(layer)
    };
    let second = of(last.input, last.node, 3)?;
    let first = of(second.input, second.node, 1)?;
    Some([first, second])
}

/// A convolution with a bias.
fn layer(graph: &Graph, id: NodeId) -> Option<Layer<'_>> {
    let node = graph.node(id);
    let (conv, relu) = match &node.op {
        Op::Conv(conv) => (conv, false),
        Op::ConvEpilogue { conv, relu } => (conv, *relu),
        _ => return None,
    };
    let &[input, weight, bias, ref residual @ ..] = node.inputs.as_slice() else { return None };
    let residual = residual.first().copied();
    let result = node.outputs[0];
    let forward = node.stage == Stage::Forward;
    forward.then_some(Layer { node: id, conv, input, weight, bias, residual, relu, result })
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
        if blocks.iter().map(|b| b.layers.len()).sum::<usize>() > MAX_LAYERS {
            return None;
        }
        let mut pyramid = PyramidAttrs { layers: Vec::new(), config: String::new() };
        let (mut inputs, mut nodes) = (vec![blocks[0].input()], Vec::new());
        for block in blocks {
            let input = u32::try_from(pyramid.layers.len()).ok()?;
            let side = block.has_side();
            for (i, layer) in block.layers.iter().enumerate() {
                let last = i + 1 == block.layers.len();
                let from = match (side, last) {
                    // Beside the two layers in front of it, and of them.
                    (true, true) => Some(input + 2),
                    (true, false) if i == 2 => Some(input),
                    _ => None,
                };
                let added = if side { input + 3 } else { input };
                let then: &[PyramidStep] = match i {
                    _ if last => &[PyramidStep::AddLayer { of: added }, PyramidStep::Relu],
                    0 | 1 => &[PyramidStep::Relu],
                    _ => &[],
                };
                let kind = PyramidKind::Conv { conv: layer.conv.clone(), bias: true };
                pyramid.layers.push(PyramidLayer { from, kind, then: SmallVec::from_slice(then) });
                inputs.extend([layer.weight, layer.bias]);
                nodes.extend((layer.node != block.last).then_some(layer.node));
            }
            nodes.push(block.last);
        }
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
        let measured = cost.measured_pyramid(&self.pyramid, &inputs, &[output]).into_iter().next();
        // What was measured and is no way could not run.
        let failed = |config: &str| {
            cost.is_measured(&Op::Pyramid(self.pyramid.with_config(config)), &inputs, &[output])
        };
        let predicted =
            || cost.predicted_pyramid(&self.pyramid, &inputs).into_iter().find(|o| !failed(&o.config));
        let option = measured.or_else(predicted)?;
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
        let name = format!("{} .. {}", graph.node(first).name, graph.node(last).name);
        let at = graph.order().iter().position(|&n| n == last).unwrap_or(graph.order().len());
        let node =
            graph.insert(at, Op::Pyramid(pyramid.with_config(config)), &inputs, NodeSpec::forward(name))?;
        let new = graph.node(node).outputs[0];
        graph.replace_all_uses(result, new);
        renamed.insert(result, new);
        // Readers first.
        for &id in nodes.iter().rev() {
            graph.remove(id);
        }
    }
    Ok(())
}
