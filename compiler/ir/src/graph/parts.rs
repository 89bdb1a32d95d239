//! Building a graph from stored entities, and looking at its private mirrors.

use super::{Def, Graph, Node, NodeId, Output, Stage, Update, Value, ValueId};
use crate::id::{EntityId, PrimaryMap};
use crate::op::Op;
use crate::phase::{Mode, Phase};
use crate::schedule::ConvSchedule;
use crate::types::{DType, Space, TensorType};
use crate::units::Bytes;
use petgraph::Direction;
use petgraph::graph::NodeIndex;
use petgraph::stable_graph::StableDiGraph;
use petgraph::visit::EdgeRef;
use smallvec::SmallVec;

/// A value without the mirrors that follow from the nodes.
pub(crate) struct ValueParts {
    pub ty: TensorType,
    pub space: Space,
    pub def: Def,
    pub name: String,
}

/// A node without the mirrors.
pub(crate) struct NodeParts {
    pub op: Op,
    pub inputs: SmallVec<[ValueId; 4]>,
    pub outputs: SmallVec<[ValueId; 2]>,
    pub name: String,
    pub stage: Stage,
    pub origin: Option<NodeId>,
    pub algo: Option<ConvSchedule>,
    pub workspace: Bytes,
    pub inplace: SmallVec<[(u32, u32); 2]>,
    pub packed: bool,
}

/// Everything a graph consists of. Missing values and nodes are removed ones.
pub(crate) struct GraphParts {
    pub name: String,
    pub phase: Phase,
    pub mode: Mode,
    pub values: Vec<Option<ValueParts>>,
    pub nodes: Vec<Option<NodeParts>>,
    pub order: Vec<NodeId>,
    pub inputs: Vec<ValueId>,
    pub params: Vec<ValueId>,
    pub outputs: Vec<Output>,
    pub updates: Vec<Update>,
}

impl Graph {
    /// A graph of these parts. Every id in them must be within bounds.
    pub(crate) fn from_parts(parts: GraphParts) -> Self {
        let mut values = PrimaryMap::new();
        for value in parts.values {
            // A removed value keeps its id as a literal that nothing reads.
            let v = value.unwrap_or_else(|| ValueParts {
                ty: TensorType::new(DType::F32, [0]),
                space: Space::Device,
                def: Def::Const(std::sync::Arc::from([])),
                name: String::new(),
            });
            values.push(Value { ty: v.ty, space: v.space, def: v.def, name: v.name, users: Vec::new() });
        }
        let mut dag = StableDiGraph::new();
        let mut nodes = PrimaryMap::new();
        for (i, node) in parts.nodes.into_iter().enumerate() {
            let id = NodeId::from_index(i);
            nodes.push(node.map(|n| Node {
                op: n.op,
                inputs: n.inputs,
                outputs: n.outputs,
                name: n.name,
                stage: n.stage,
                origin: n.origin,
                algo: n.algo,
                workspace: n.workspace,
                inplace: n.inplace,
                packed: n.packed,
                index: dag.add_node(id),
            }));
        }
        let mut graph = Self {
            name: parts.name,
            phase: parts.phase,
            mode: parts.mode,
            outputs: parts.outputs,
            updates: parts.updates,
            values,
            nodes,
            order: parts.order,
            inputs: parts.inputs,
            params: parts.params,
            dag,
        };
        for i in 0..graph.nodes.len() {
            let id = NodeId::from_index(i);
            let Some(node) = graph.nodes[id].as_ref() else { continue };
            for v in node.inputs.clone() {
                graph.link(v, id);
            }
        }
        graph
    }

    /// Incoming edges of the private dependency graph, sorted: (defining node, value).
    pub(crate) fn dag_inputs(&self, node: NodeId) -> Vec<(NodeId, ValueId)> {
        let mut edges: Vec<_> = self
            .dag
            .edges_directed(self.node(node).index, Direction::Incoming)
            .map(|e| (self.dag.node_weight(e.source()).copied().unwrap_or(NodeId(u32::MAX)), *e.weight()))
            .collect();
        edges.sort_unstable();
        edges
    }

    /// The node the private dependency graph holds at this node's place.
    pub(crate) fn dag_node(&self, node: NodeId) -> Option<NodeId> {
        let index: NodeIndex = self.node(node).index;
        self.dag.node_weight(index).copied()
    }

    /// Number of nodes and edges in the private dependency graph.
    pub(crate) fn dag_size(&self) -> (usize, usize) {
        (self.dag.node_count(), self.dag.edge_count())
    }
}
