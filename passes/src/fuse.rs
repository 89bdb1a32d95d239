//! Epilogues: ops on a result that are computed before it is stored, which saves passes over
//! memory. Each fused op means its parts ([`vdnn_ir::parts`]), to the bit on the CPU.
//!
//! - batch norm in training, the sum with another branch, and the ReLU behind it, with their
//!   gradients;
//! - batch norm of inference that no convolution could take, the ReLU behind it, and the concat
//!   of channels in front of it (the layers of a DenseNet), which then is not stored;
//! - the sum of a gradient with a slice of another, as concats send them back;
//! - a convolution with bias, the sum and the ReLU behind it (batch norm of inference has
//!   become the convolution's weights by then).

use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use smallvec::SmallVec;
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::infer::InferError;
use vdnn_ir::op::{BinaryKind, UnaryKind};
use vdnn_ir::rows::placement;
use vdnn_ir::{Graph, NodeId, Op, Phase, Stage, ValueId};

/// Fuses epilogues in a joint graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FuseEpilogues;

impl Pass for FuseEpilogues {
    fn name(&self) -> &'static str {
        "fuse-epilogues"
    }

    fn requires(&self) -> Phase {
        Phase::Joint
    }

    fn produces(&self) -> Phase {
        Phase::Joint
    }

    fn run(&self, graph: &mut Graph, _cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        let mut counts = [0; 3];
        // Where gradients read what a concat or a frozen batch norm stores, nothing is saved.
        let infers = graph.nodes().all(|(_, node)| node.stage != Stage::Backward);
        for id in graph.order().to_vec() {
            let Some(node) = graph.get_node(id).filter(|n| n.stage == Stage::Forward) else { continue };
            let kind = match node.op {
                Op::BatchNormTrain { .. } => 0,
                Op::Conv(_) if node.inputs.len() == 3 => 1,
                Op::BatchNormInfer { .. } if infers => 2,
                _ => continue,
            };
            let Some(tail) = Tail::of(graph, id) else { continue };
            let fused = match kind {
                0 => batch_norm(graph, id, &tail),
                1 => convolution(graph, id, &tail),
                _ if tail.add.is_some() => continue,
                _ => batch_norm_infer(graph, id, &tail),
            };
            fused.map_err(|error| PassError::Infer { pass: self.name(), error })?;
            counts[kind] += 1;
        }
        let sums = add_slices(graph).map_err(|error| PassError::Infer { pass: self.name(), error })?;
        let stats = Stats::from([
            ("batch_norms", counts[0]),
            ("convolutions", counts[1]),
            ("running_batch_norms", counts[2]),
            ("sums_of_slices", sums),
        ]);
        Ok(Outcome { changed: counts != [0; 3] || sums > 0, stats })
    }
}

/// What follows a producer: a sum with another value, perhaps, and a ReLU.
struct Tail {
    /// The sum and its other operand.
    add: Option<(NodeId, ValueId)>,
    relu: NodeId,
    /// The ReLU's result.
    y: ValueId,
}

impl Tail {
    /// The tail of a node whose first result only the tail reads.
    fn of(graph: &Graph, producer: NodeId) -> Option<Self> {
        let mut value = graph.node(producer).outputs[0];
        let mut user = only_user(graph, value)?;
        let mut add = None;
        if graph.node(user).op == Op::Binary(BinaryKind::Add) {
            let operands = &graph.node(user).inputs;
            let other = *operands.iter().find(|&&v| v != value)?;
            if graph.ty(other) != graph.ty(value) {
                return None;
            }
            add = Some((user, other));
            value = graph.node(user).outputs[0];
            user = only_user(graph, value)?;
        }
        let node = graph.node(user);
        let is_relu = node.op == Op::Unary(UnaryKind::Relu) && node.stage == Stage::Forward;
        is_relu.then(|| Self { add, relu: user, y: node.outputs[0] })
    }

    fn other(&self) -> Option<ValueId> {
        self.add.map(|(_, other)| other)
    }

    /// Removes what the fused node has replaced; their gradients now belong to it.
    fn remove(&self, graph: &mut Graph, producer: NodeId, fused: NodeId) {
        let gone = [Some(producer), self.add.map(|(add, _)| add), Some(self.relu)];
        for id in graph.order().to_vec() {
            if graph.node(id).origin.is_some_and(|o| gone.contains(&Some(o))) {
                *graph.annotate(id).origin = Some(fused);
            }
        }
        graph.remove(self.relu);
        if let Some((add, _)) = self.add {
            graph.remove(add);
        }
        graph.remove(producer);
    }
}

/// The only node that reads a value that is no output or update.
fn only_user(graph: &Graph, v: ValueId) -> Option<NodeId> {
    let named = graph.outputs.iter().any(|o| o.value == v) || graph.updates.iter().any(|u| u.value == v);
    match graph.value(v).users() {
        &[user] if !named => Some(user),
        _ => None,
    }
}

fn position(graph: &Graph, node: NodeId) -> usize {
    graph.order().iter().position(|&n| n == node).expect("a live node")
}

/// Puts a forward node in the place of the tail's ReLU.
fn insert(
    graph: &mut Graph,
    producer: NodeId,
    tail: &Tail,
    op: Op,
    inputs: &[ValueId],
    n_outputs: usize,
) -> Result<NodeId, InferError> {
    let node = graph.node(producer);
    let spec = NodeSpec { name: node.name.clone(), stage: node.stage, origin: node.origin, n_outputs };
    graph.insert(position(graph, tail.relu), op, inputs, spec)
}

fn convolution(graph: &mut Graph, id: NodeId, tail: &Tail) -> Result<(), InferError> {
    let Op::Conv(conv) = graph.node(id).op.clone() else { return Ok(()) };
    let mut inputs = graph.node(id).inputs.clone();
    inputs.extend(tail.other());
    let fused = insert(graph, id, tail, Op::ConvEpilogue { conv, relu: true }, &inputs, 1)?;
    graph.replace_all_uses(tail.y, graph.node(fused).outputs[0]);
    tail.remove(graph, id, fused);
    Ok(())
}

/// Fuses sums one of whose operands is a slice of its own; how many.
fn add_slices(graph: &mut Graph) -> Result<u64, InferError> {
    let mut fused = 0;
    for id in graph.order().to_vec() {
        let node = graph.node(id);
        let &[a, b] = node.inputs.as_slice() else { continue };
        // A slice of rows may stay where it is.
        let slice_of = |v: ValueId| {
            let def = graph.def_node(v).filter(|_| a != b && only_user(graph, v) == Some(id))?;
            let node = graph.node(def);
            match &node.op {
                Op::Slice(slice) => {
                    let in_place = placement(&node.op, &[graph.ty(node.inputs[0])]).is_some();
                    (!in_place).then(|| (def, slice.clone()))
                }
                _ => None,
            }
        };
        if node.op != Op::Binary(BinaryKind::Add) || graph.ty(a) != graph.ty(b) {
            continue;
        }
        let Some((def, slice, other)) = slice_of(b)
            .map(|(def, slice)| (def, slice, a))
            .or_else(|| slice_of(a).map(|(def, slice)| (def, slice, b)))
        else {
            continue;
        };
        let inputs = [other, graph.node(def).inputs[0]];
        let spec = NodeSpec { name: node.name.clone(), stage: node.stage, origin: node.origin, n_outputs: 1 };
        let y = node.outputs[0];
        let new = graph.insert(position(graph, id), Op::AddSlice(slice), &inputs, spec)?;
        graph.replace_all_uses(y, graph.node(new).outputs[0]);
        graph.remove(id);
        graph.remove(def);
        fused += 1;
    }
    Ok(fused)
}

/// Most tensors that a batch norm joins: what a kernel's parameters hold.
const MAX_PIECES: usize = 64;

fn batch_norm_infer(graph: &mut Graph, id: NodeId, tail: &Tail) -> Result<(), InferError> {
    let Op::BatchNormInfer { eps, .. } = graph.node(id).op.clone() else { return Ok(()) };
    let x = graph.node(id).inputs[0];
    let concat = graph.def_node(x).filter(|&d| {
        let node = graph.node(d);
        node.op == Op::Concat { axis: 1 } && node.stage == Stage::Forward && node.inputs.len() <= MAX_PIECES
    });
    let concat = concat.filter(|_| only_user(graph, x) == Some(id));
    let mut inputs: SmallVec<[ValueId; 8]> = SmallVec::from_slice(&graph.node(id).inputs[1..]);
    match concat {
        Some(concat) => inputs.extend(graph.node(concat).inputs.iter().copied()),
        None => inputs.push(x),
    }
    let fused = insert(graph, id, tail, Op::BatchNormInferRelu { eps }, &inputs, 1)?;
    graph.replace_all_uses(tail.y, graph.node(fused).outputs[0]);
    tail.remove(graph, id, fused);
    if let Some(concat) = concat {
        graph.remove(concat);
    }
    Ok(())
}

fn batch_norm(graph: &mut Graph, id: NodeId, tail: &Tail) -> Result<(), InferError> {
    let Op::BatchNormTrain { eps, momentum } = graph.node(id).op.clone() else { return Ok(()) };
    let mut inputs = graph.node(id).inputs.clone();
    let (x, scale, bias) = (inputs[0], inputs[1], inputs[2]);
    inputs.extend(tail.other());
    let old: SmallVec<[ValueId; 5]> = graph.node(id).outputs.iter().copied().collect();
    // The gradients first, while the ReLU's output still tells them.
    let gradient = Gradient::of(graph, tail, x, &old);
    let fused = insert(graph, id, tail, Op::BatchNormTrainRelu { eps, momentum }, &inputs, 5)?;
    let new = graph.node(fused).outputs.clone();
    graph.replace_all_uses(tail.y, new[0]);
    for (&from, &to) in old.iter().zip(&new).skip(1) {
        graph.replace_all_uses(from, to);
    }
    if let Some(g) = gradient {
        let mut inputs: SmallVec<[ValueId; 7]> =
            SmallVec::from_slice(&[g.dy, x, scale, bias, new[3], new[4]]);
        let summed = tail.add.is_some();
        if summed {
            inputs.push(new[0]);
        }
        let node = graph.node(g.norm);
        let spec = NodeSpec {
            name: node.name.clone(),
            stage: node.stage,
            origin: node.origin,
            n_outputs: if g.shared { 4 } else { 3 },
        };
        // In the ReLU gradient's place: readers of the gated gradient may come before the
        // batch norm's own.
        let at = position(graph, g.relu);
        let gradient = graph.insert(at, Op::BatchNormReluGrad { eps }, &inputs, spec)?;
        let new = graph.node(gradient).outputs.clone();
        for (from, &to) in graph.node(g.norm).outputs.clone().into_iter().zip(&new) {
            graph.replace_all_uses(from, to);
        }
        graph.remove(g.norm);
        if g.shared {
            graph.replace_all_uses(g.gated, new[3]);
        }
        graph.remove(g.relu);
    }
    tail.remove(graph, id, fused);
    Ok(())
}

/// The backward pass of a batch norm with a tail.
struct Gradient {
    /// The gradient of the tail's result.
    dy: ValueId,
    /// The gradient of the ReLU.
    relu: NodeId,
    /// Its result.
    gated: ValueId,
    /// The gradient of the batch norm.
    norm: NodeId,
    /// Others read the gated gradient, too.
    shared: bool,
}

impl Gradient {
    fn of(graph: &Graph, tail: &Tail, x: ValueId, old: &[ValueId]) -> Option<Self> {
        let relu = graph.value(tail.y).users().iter().copied().find(|&u| {
            let node = graph.node(u);
            node.op == Op::UnaryGrad(UnaryKind::Relu) && node.inputs[1] == tail.y
        })?;
        let gated = graph.node(relu).outputs[0];
        let norm = graph.value(gated).users().iter().copied().find(|&u| {
            let node = graph.node(u);
            node.op == Op::BatchNormGrad
                && node.inputs[0] == gated
                && node.inputs[1] == x
                && node.inputs[3..5] == old[3..5]
        })?;
        let named = graph.outputs.iter().any(|o| o.value == gated);
        let shared = named || graph.value(gated).users().len() > 1;
        // Without a sum nothing else can ask for it, unless the model itself does.
        (tail.add.is_some() || !shared).then(|| Self {
            dy: graph.node(relu).inputs[0],
            relu,
            gated,
            norm,
            shared,
        })
    }
}
