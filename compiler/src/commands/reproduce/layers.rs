//! A training graph as the list of layers the vDNN paper and its open implementation reason
//! about: one input X, one output Y, weights, and a workspace per direction.

use std::collections::BTreeMap;
use vdnn_ir::graph::{Def, NodeId, Stage, ValueId};
use vdnn_ir::op::ReduceKind;
use vdnn_ir::{Bytes, Graph, Op, ParamRole};

/// What a layer is to an offload policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Convolution.
    Conv,
    /// Pooling.
    Pool,
    /// Element by element.
    Activation,
    /// Fully connected.
    Dense,
    /// The classifier's softmax.
    Softmax,
}

/// Index of a feature map in [`Network::maps`].
pub type Map = usize;

/// One layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Its kind.
    pub kind: Kind,
    /// The map it reads.
    pub x: Map,
    /// The map it writes; X itself for an activation in place.
    pub y: Map,
    /// Bytes of its weights and bias.
    pub weights: Bytes,
    /// Workspace of its forward pass.
    pub forward_workspace: Bytes,
    /// The larger of the workspaces of its data and weight gradients.
    pub backward_workspace: Bytes,
}

/// The layers of a network in program order.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// Size of each feature map.
    pub maps: Vec<Bytes>,
    /// The layers. Reshapes and concatenations are none: they share bytes.
    pub layers: Vec<Layer>,
    /// Number of layers before the first fully connected one: the feature extractor.
    pub extractor: usize,
}

/// How a graph becomes layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Activations write over their input (the paper) or into a map of their own (the open
    /// implementation).
    pub in_place: bool,
    /// The softmax of the loss is a layer.
    pub softmax: bool,
}

impl Network {
    /// The layers of a training graph whose convolutions have algorithms.
    pub fn of(graph: &Graph, options: Options) -> Self {
        let mut net = Self::default();
        let mut map_of: BTreeMap<ValueId, Map> = BTreeMap::new();
        let mut joined: BTreeMap<Map, Map> = BTreeMap::new();
        let mut dense = None;
        for (id, node) in graph.nodes().filter(|(_, n)| n.stage == Stage::Forward) {
            let (x, y) = (node.inputs[0], node.outputs[0]);
            if let Def::Input = graph.value(x).def {
                map_of.entry(x).or_insert_with(|| net.add(graph.ty(x).bytes()));
            }
            let Some(&from) = map_of.get(&x) else { continue };
            let kind = match &node.op {
                Op::Conv(_) => Kind::Conv,
                Op::MaxPool(_) | Op::AvgPool { .. } | Op::Reduce { kind: ReduceKind::Mean, .. } => Kind::Pool,
                Op::Unary(_) | Op::Dropout { .. } => Kind::Activation,
                Op::Gemm { .. } | Op::MatMul { .. } => Kind::Dense,
                Op::SoftmaxCrossEntropy { .. } if options.softmax => Kind::Softmax,
                Op::Reshape { .. } => {
                    map_of.insert(y, from);
                    continue;
                }
                // The branches write straight into the joined map.
                Op::Concat { .. } => {
                    let whole = net.add(graph.ty(y).bytes());
                    map_of.insert(y, whole);
                    joined.extend(node.inputs.iter().filter_map(|v| Some((*map_of.get(v)?, whole))));
                    continue;
                }
                _ => continue,
            };
            let to = match kind {
                Kind::Activation if options.in_place => from,
                Kind::Softmax => net.add(graph.ty(x).bytes()),
                _ => net.add(graph.ty(y).bytes()),
            };
            map_of.insert(y, to);
            if kind == Kind::Dense {
                dense.get_or_insert(net.layers.len());
            }
            net.layers.push(Layer {
                kind,
                x: from,
                y: to,
                weights: weights(graph, id),
                forward_workspace: node.workspace,
                backward_workspace: backward_workspace(graph, id),
            });
        }
        net.extractor = dense.unwrap_or(net.layers.len());
        // A branch may itself be a joined map, so follow to the end.
        let root = |mut m: Map| {
            while let Some(&whole) = joined.get(&m) {
                m = whole;
            }
            m
        };
        for layer in &mut net.layers {
            (layer.x, layer.y) = (root(layer.x), root(layer.y));
        }
        for m in joined.keys() {
            net.maps[*m] = Bytes::ZERO;
        }
        net
    }

    fn add(&mut self, bytes: Bytes) -> Map {
        self.maps.push(bytes);
        self.maps.len() - 1
    }

    /// Bytes of the weights of some layers.
    pub fn weights(&self, layers: std::ops::Range<usize>) -> Bytes {
        self.layers[layers].iter().map(|l| l.weights).sum()
    }

    /// The largest workspace.
    pub fn workspace(&self) -> Bytes {
        let each = self.layers.iter().map(|l| l.forward_workspace.max(l.backward_workspace));
        each.max().unwrap_or_default()
    }
}

fn weights(graph: &Graph, node: NodeId) -> Bytes {
    let is_weight =
        |v: &&ValueId| matches!(graph.value(**v).def, Def::Param(ParamRole::Trainable | ParamRole::Frozen));
    graph.node(node).inputs.iter().filter(is_weight).map(|&v| graph.ty(v).bytes()).sum()
}

fn backward_workspace(graph: &Graph, layer: NodeId) -> Bytes {
    let of = graph.nodes().filter(|(_, n)| n.stage == Stage::Backward && n.origin == Some(layer));
    of.map(|(_, n)| n.workspace).max().unwrap_or_default()
}
