//! Which values a policy offloads (vDNN, MICRO 2016, section III): the inputs X of layers of
//! the feature extractor, that is of the forward nodes before the first fully connected one, that
//! backward reads.

use crate::options::Policy;
use vdnn_ir::graph::{Def, Graph, Node, NodeId, Stage, ValueId};
use vdnn_ir::id::EntityId;
use vdnn_ir::op::ReduceKind;
use vdnn_ir::{Bytes, Mode, Op};

/// One offloaded tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloaded {
    /// The tensor, as its defining node gave it (reshapes of it are the same tensor).
    pub value: ValueId,
    /// The first layer, in program order, whose X it is; its copy starts there.
    pub layer: NodeId,
}

/// What a policy offloads from one graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The tensors, each once, in the order of their layers.
    pub offloaded: Vec<Offloaded>,
    /// Every layer the policy selects, in program order, with its X (not each X is listed
    /// in `offloaded` under this layer: branches share one X).
    pub layers: Vec<(NodeId, ValueId)>,
}

impl Selection {
    /// The sum of the offloaded tensors' sizes: what one step copies to the host.
    pub fn bytes(&self, graph: &Graph) -> Bytes {
        self.offloaded.iter().map(|o| graph.ty(o.value).bytes()).sum()
    }
}

/// The value whose bytes `value` shares through reshapes.
pub fn view_root(graph: &Graph, mut value: ValueId) -> ValueId {
    while let Some(def) = graph.def_node(value) {
        match graph.get_node(def) {
            Some(n) if matches!(n.op, Op::Reshape { .. }) && n.stage != Stage::Setup => value = n.inputs[0],
            _ => break,
        }
    }
    value
}

/// Chooses what `policy` offloads. Pool indices, masks, statistics and the activations of
/// the classifier are never chosen, and neither is what backward does not read, such as what it
/// makes again; in inference nothing is. `Dyn` is a search over the other
/// policies and chooses nothing itself.
pub fn selection(graph: &Graph, policy: Policy) -> Selection {
    let mut out = Selection::default();
    if graph.mode == Mode::Infer || !matches!(policy, Policy::All | Policy::Conv) {
        return out;
    }
    let backward = backward(graph);
    let mut read = vec![false; graph.value_bound()];
    for ((_, node), _) in graph.nodes().zip(&backward).filter(|(_, backward)| **backward) {
        if !matches!(node.op, Op::Reshape { .. }) {
            node.inputs.iter().for_each(|&v| read[view_root(graph, v).index()] = true);
        }
    }
    let mut seen = vec![false; graph.value_bound()];
    let mut classifier = false;
    for ((id, node), backward) in graph.nodes().zip(backward) {
        if node.stage != Stage::Forward {
            classifier &= !backward;
            continue;
        }
        classifier |= matches!(node.op, Op::Gemm { .. } | Op::MatMul { .. });
        if classifier || !selects(graph, policy, node) {
            continue;
        }
        let layer_inputs = match (&node.op, node.op.first_joined()) {
            (Op::BatchNormTrainReluJoined { .. }, Some(first)) => &node.inputs[first..],
            _ => &node.inputs[..1],
        };
        for &v in layer_inputs {
            let x = view_root(graph, v);
            let moves = match &graph.value(x).def {
                Def::Input => true,
                Def::Node { node, .. } => graph.node(*node).stage == Stage::Forward,
                Def::Param(_) | Def::Const(_) => false,
            };
            if !moves || !read[x.index()] {
                continue;
            }
            out.layers.push((id, x));
            if !std::mem::replace(&mut seen[x.index()], true) {
                out.offloaded.push(Offloaded { value: x, layer: id });
            }
        }
    }
    out
}

/// By position: true in a backward pass. There is one for each slice of the batch; after it the
/// next forward pass begins with its first layer.
pub(super) fn backward(graph: &Graph) -> Vec<bool> {
    let layer = |node: &Node| {
        selects(graph, Policy::All, node) || matches!(node.op, Op::Gemm { .. } | Op::MatMul { .. })
    };
    let mut now = false;
    let positions = graph.nodes().map(|(_, node)| {
        match node.stage {
            Stage::Backward | Stage::Update => now = true,
            Stage::Forward => now &= !layer(node),
            Stage::Setup => {}
        }
        now
    });
    positions.collect()
}

/// True if the policy offloads the X of such a layer.
fn selects(graph: &Graph, policy: Policy, node: &Node) -> bool {
    match &node.op {
        Op::Conv(_) | Op::ConvEpilogue { .. } => true,
        Op::MaxPool(_)
        | Op::AvgPool { .. }
        | Op::BatchNormInfer { .. }
        | Op::BatchNormTrain { .. }
        | Op::BatchNormTrainRelu { .. }
        | Op::BatchNormTrainReluJoined { .. }
        | Op::Lrn(_) => policy == Policy::All,
        // Global average pooling: a mean over every spatial dimension of an image.
        Op::Reduce { kind: ReduceKind::Mean, axes, .. } => {
            let rank = graph.ty(node.inputs[0]).rank() as u64;
            policy == Policy::All && rank >= 4 && axes.iter().copied().eq(2..rank)
        }
        _ => false,
    }
}
