//! The graph: values, nodes, and the program order that is always a topological order.
//!
//! The node order of a [`Graph`] is explicit (a sequence, as in a basic block). It is the
//! order of the compute stream once the graph is scheduled; before, it is any valid order.
//! Dependencies are mirrored in a private `petgraph` graph for reachability and sorting;
//! no petgraph index leaves this module, because petgraph reuses freed indices.

pub use crate::algo::{ConvAlgo, EngineConfig};
use crate::id::{EntityId, PrimaryMap};
use crate::op::Op;
use crate::op::infer::{self, InferError};
use crate::phase::{Mode, Phase};
use crate::schedule::ConvSchedule;
use crate::types::{Layout, Space, TensorType};
use crate::units::Bytes;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

pub(crate) mod parts;

crate::define_id!(
    /// A value: one tensor, defined once.
    ValueId, "%"
);
crate::define_id!(
    /// A node: one application of an op.
    NodeId, "n"
);

/// What a parameter is to training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParamRole {
    /// A weight the optimizer updates.
    Trainable,
    /// A weight that stays as it is.
    Frozen,
    /// A running statistic of batch norm: updated by the forward pass, never by gradients.
    Statistic,
    /// Optimizer state; starts at zero and has no initializer.
    Momentum,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Def {
    /// Bound by the caller before every step.
    Input,
    /// Persistent: loaded once, lives in the arena throughout.
    Param(ParamRole),
    /// Small literal, little-endian bytes.
    Const(std::sync::Arc<[u8]>),
    /// Output `index` of a node.
    Node {
        /// The defining node.
        node: NodeId,
        /// Which output.
        index: u32,
    },
}

/// A value.
#[derive(Clone, Debug)]
pub struct Value {
    /// Element type and shape.
    pub ty: TensorType,
    /// Device or host; host only for offloaded copies.
    pub space: Space,
    /// Origin.
    pub def: Def,
    /// For inputs and params the external name (unique); else a hint, possibly empty.
    pub name: String,
    users: Vec<NodeId>,
}

impl Value {
    /// Nodes that read this value, each once, by increasing id.
    pub fn users(&self) -> &[NodeId] {
        &self.users
    }
}

/// Which part of the step a node belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Depends only on parameters and constants of an inference graph: runs once, at load.
    Setup,
    /// The model itself (and the loss).
    Forward,
    /// Gradients.
    Backward,
    /// Optimizer.
    Update,
}

/// One application of an op.
#[derive(Clone, Debug)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// Operands.
    pub inputs: SmallVec<[ValueId; 4]>,
    /// Results.
    pub outputs: SmallVec<[ValueId; 2]>,
    /// For people: the model's node name, with a suffix for generated nodes.
    pub name: String,
    /// Part of the step.
    pub stage: Stage,
    /// For backward and update nodes, the forward node they belong to.
    pub origin: Option<NodeId>,
    /// Convolutions from `Phase::Selected` on.
    pub algo: Option<ConvSchedule>,
    /// Transient device bytes the kernel needs while it runs.
    pub workspace: Bytes,
    /// Chosen in-place reuse, pairs (output, input), a subset of `op.inplace()`; of a slice or
    /// concat of rows ([`crate::rows`]) the operands that share bytes with the result. Set by
    /// the in-place pass; update bindings are always in place.
    pub inplace: SmallVec<[(u32, u32); 2]>,
    /// Of an [`Op::OffloadStart`]: the copy on the host is packed ([`crate::packed`]).
    pub packed: bool,
    index: NodeIndex,
}

/// A named result of the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// External name.
    pub name: String,
    /// The value.
    pub value: ValueId,
}

/// `param` holds `value` when the step ends. `value` must take the param's bytes, so the
/// defining node is ordered after every other reader of the param.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// A `Def::Param` value.
    pub param: ValueId,
    /// Its next content.
    pub value: ValueId,
}

/// What [`Graph::add`] needs besides op and operands.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    /// See [`Node::name`].
    pub name: String,
    /// See [`Node::stage`].
    pub stage: Stage,
    /// See [`Node::origin`].
    pub origin: Option<NodeId>,
    /// How many outputs (ops with optional outputs).
    pub n_outputs: usize,
}

impl NodeSpec {
    /// A forward node with one output.
    pub fn forward(name: impl Into<String>) -> Self {
        Self { name: name.into(), stage: Stage::Forward, origin: None, n_outputs: 1 }
    }
    /// A backward node of `origin` with one output.
    pub fn backward(name: impl Into<String>, origin: NodeId) -> Self {
        Self { name: name.into(), stage: Stage::Backward, origin: Some(origin), n_outputs: 1 }
    }
    /// The same with another number of outputs.
    #[must_use]
    pub fn outputs(mut self, n: usize) -> Self {
        self.n_outputs = n;
        self
    }
}

/// A dataflow graph in SSA form with an explicit node order.
#[derive(Clone, Debug)]
pub struct Graph {
    /// Name of the model.
    pub name: String,
    /// How far lowering has come.
    pub phase: Phase,
    /// Inference or training; frontends say `Infer`, autodiff makes it `Train`.
    pub mode: Mode,
    /// Results, in order.
    pub outputs: Vec<Output>,
    /// Parameter updates.
    pub updates: Vec<Update>,
    values: PrimaryMap<ValueId, Value>,
    nodes: PrimaryMap<NodeId, Option<Node>>,
    order: Vec<NodeId>,
    inputs: Vec<ValueId>,
    params: Vec<ValueId>,
    dag: StableDiGraph<NodeId, ValueId>,
}

impl Graph {
    /// An empty graph in the imported phase.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            phase: Phase::Imported,
            mode: Mode::Infer,
            outputs: Vec::new(),
            updates: Vec::new(),
            values: PrimaryMap::new(),
            nodes: PrimaryMap::new(),
            order: Vec::new(),
            inputs: Vec::new(),
            params: Vec::new(),
            dag: StableDiGraph::new(),
        }
    }

    // ---- reading ---------------------------------------------------------------------

    /// A value; every id this graph ever handed out stays readable.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id]
    }
    /// The type of a value.
    pub fn ty(&self, id: ValueId) -> &TensorType {
        &self.values[id].ty
    }
    /// A live node. Panics if it was removed.
    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes[id].as_ref().expect("live node")
    }
    /// A node, or `None` if it was removed or never existed.
    pub fn get_node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id).and_then(Option::as_ref)
    }
    /// Live nodes in program order.
    pub fn order(&self) -> &[NodeId] {
        &self.order
    }
    /// Live nodes in program order with their ids.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> + ExactSizeIterator {
        self.order.iter().map(|&id| (id, self.node(id)))
    }
    /// Caller-bound inputs, in order.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }
    /// Parameters, in order.
    pub fn params(&self) -> &[ValueId] {
        &self.params
    }
    /// Every value id ever made, in order (values of removed nodes included).
    pub fn value_ids(&self) -> impl DoubleEndedIterator<Item = ValueId> + ExactSizeIterator + use<> {
        self.values.keys()
    }
    /// One more than the largest node id ever made.
    pub fn node_bound(&self) -> usize {
        self.nodes.len()
    }
    /// One more than the largest value id ever made.
    pub fn value_bound(&self) -> usize {
        self.values.len()
    }
    /// The node that defines a value, if a node does.
    pub fn def_node(&self, id: ValueId) -> Option<NodeId> {
        match self.values[id].def {
            Def::Node { node, .. } => Some(node),
            _ => None,
        }
    }
    /// True if the value is a literal or a parameter that inference never changes.
    pub fn is_static(&self, id: ValueId) -> bool {
        match &self.values[id].def {
            Def::Const(_) => true,
            Def::Param(_) => self.mode == Mode::Infer,
            Def::Input => false,
            Def::Node { node, .. } => self.node(*node).stage == Stage::Setup,
        }
    }
    /// True if `to` can be reached from `from` along dependencies.
    pub fn reaches(&self, from: NodeId, to: NodeId) -> bool {
        petgraph::algo::has_path_connecting(&self.dag, self.node(from).index, self.node(to).index, None)
    }
    /// The program order position of each live node, indexed by node id (`u32::MAX` if dead).
    pub fn positions(&self) -> Vec<u32> {
        let mut at = vec![u32::MAX; self.nodes.len()];
        for (i, id) in self.order.iter().enumerate() {
            at[id.index()] = u32::try_from(i).expect("fewer than 2^32 nodes");
        }
        at
    }

    // ---- building --------------------------------------------------------------------

    fn new_value(&mut self, ty: TensorType, space: Space, def: Def, name: String) -> ValueId {
        self.values.push(Value { ty, space, def, name, users: Vec::new() })
    }
    /// Adds a caller-bound input.
    pub fn add_input(&mut self, name: impl Into<String>, ty: TensorType) -> ValueId {
        let id = self.new_value(ty, Space::Device, Def::Input, name.into());
        self.inputs.push(id);
        id
    }
    /// Adds a parameter.
    pub fn add_param(&mut self, name: impl Into<String>, ty: TensorType, role: ParamRole) -> ValueId {
        let id = self.new_value(ty, Space::Device, Def::Param(role), name.into());
        self.params.push(id);
        id
    }
    /// Adds a literal; `bytes` must be `ty.bytes()` long.
    pub fn add_const(&mut self, ty: TensorType, bytes: impl Into<std::sync::Arc<[u8]>>) -> ValueId {
        let bytes = bytes.into();
        assert_eq!(Bytes(bytes.len() as u64), ty.bytes(), "literal of the wrong size");
        self.new_value(ty, Space::Device, Def::Const(bytes), String::new())
    }
    /// Adds an f32 scalar-or-vector literal of shape `dims`.
    pub fn add_const_f32(&mut self, dims: impl IntoIterator<Item = u64>, data: &[f32]) -> ValueId {
        let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.add_const(TensorType::f32(dims), bytes)
    }

    /// Appends a node; output types are inferred.
    ///
    /// # Errors
    /// If the operands break the op's shape rule.
    pub fn add(&mut self, op: Op, inputs: &[ValueId], spec: NodeSpec) -> Result<NodeId, InferError> {
        self.insert(self.order.len(), op, inputs, spec)
    }

    /// Appends a node with one output and returns that output.
    ///
    /// # Errors
    /// If the operands break the op's shape rule.
    pub fn add1(&mut self, op: Op, inputs: &[ValueId], spec: NodeSpec) -> Result<ValueId, InferError> {
        let node = self.add(op, inputs, spec)?;
        Ok(self.node(node).outputs[0])
    }

    /// Inserts a node at a position of the program order (`0..=len`).
    ///
    /// # Errors
    /// If the operands break the op's shape rule.
    pub fn insert(
        &mut self,
        position: usize,
        op: Op,
        inputs: &[ValueId],
        spec: NodeSpec,
    ) -> Result<NodeId, InferError> {
        let out_types = {
            let types: SmallVec<[&TensorType; 4]> = inputs.iter().map(|&v| &self.values[v].ty).collect();
            infer::infer(&op, &types, spec.n_outputs)?
        };
        let space =
            if matches!(op, Op::OffloadStart | Op::OffloadDone) { Space::Host } else { Space::Device };
        let id = NodeId::from_index(self.nodes.len());
        let index = self.dag.add_node(id);
        let mut outputs = SmallVec::new();
        for (i, ty) in out_types.into_iter().enumerate() {
            let def = Def::Node { node: id, index: i as u32 };
            outputs.push(self.new_value(ty, space, def, String::new()));
        }
        self.nodes.push(Some(Node {
            op,
            inputs: inputs.iter().copied().collect(),
            outputs,
            name: spec.name,
            stage: spec.stage,
            origin: spec.origin,
            algo: None,
            workspace: Bytes::ZERO,
            inplace: SmallVec::new(),
            packed: false,
            index,
        }));
        for &v in inputs {
            self.link(v, id);
        }
        self.order.insert(position, id);
        Ok(id)
    }

    fn link(&mut self, value: ValueId, user: NodeId) {
        let users = &mut self.values[value].users;
        if let Err(at) = users.binary_search(&user) {
            users.insert(at, user);
        }
        if let Some(def) = self.def_node(value) {
            self.dag.add_edge(self.node(def).index, self.node(user).index, value);
        }
    }

    fn unlink_inputs(&mut self, user: NodeId) {
        let index = self.node(user).index;
        let inputs = self.node(user).inputs.clone();
        for v in inputs {
            self.values[v].users.retain(|&u| u != user);
        }
        let incoming: Vec<_> = self
            .dag
            .edges_directed(index, petgraph::Direction::Incoming)
            .map(|e| petgraph::visit::EdgeRef::id(&e))
            .collect();
        for e in incoming {
            self.dag.remove_edge(e);
        }
    }

    /// Replaces a node's operands. The new types must equal the old ones.
    pub fn set_inputs(&mut self, node: NodeId, inputs: &[ValueId]) {
        self.unlink_inputs(node);
        self.nodes[node].as_mut().expect("live node").inputs = inputs.iter().copied().collect();
        for &v in inputs {
            self.link(v, node);
        }
    }

    /// Replaces a node's operands by others of other types; the types of its results follow.
    /// Users of the results are the caller's to revisit.
    ///
    /// # Errors
    /// If the operands break the op's rules; the graph is then unchanged.
    pub fn set_inputs_and_infer(&mut self, node: NodeId, inputs: &[ValueId]) -> Result<(), InferError> {
        let types = {
            let types: SmallVec<[&TensorType; 4]> = inputs.iter().map(|&v| &self.values[v].ty).collect();
            infer::infer(&self.node(node).op, &types, self.node(node).outputs.len())?
        };
        self.set_inputs(node, inputs);
        for (v, ty) in self.node(node).outputs.clone().into_iter().zip(types) {
            self.values[v].ty = ty;
        }
        Ok(())
    }

    /// Changes the memory layout of a parameter. Panics if the value is not one. Users are the
    /// caller's to revisit.
    pub fn set_param_layout(&mut self, param: ValueId, layout: Layout) {
        assert!(matches!(self.values[param].def, Def::Param(_)), "not a parameter");
        self.values[param].ty = self.values[param].ty.in_layout(layout);
    }

    /// Makes one node read `new` wherever it read `old`.
    pub fn replace_use(&mut self, node: NodeId, old: ValueId, new: ValueId) {
        let inputs: SmallVec<[ValueId; 4]> =
            self.node(node).inputs.iter().map(|&v| if v == old { new } else { v }).collect();
        self.set_inputs(node, &inputs);
    }

    /// Makes every user, output and update read `new` instead of `old`.
    pub fn replace_all_uses(&mut self, old: ValueId, new: ValueId) {
        for user in self.values[old].users.clone() {
            self.replace_use(user, old, new);
        }
        for o in &mut self.outputs {
            if o.value == old {
                o.value = new;
            }
        }
        for u in &mut self.updates {
            if u.value == old {
                u.value = new;
            }
        }
    }

    /// Removes a node whose results nobody reads. Its id and its values' ids stay dead.
    pub fn remove(&mut self, node: NodeId) {
        debug_assert!(self.node(node).outputs.iter().all(|&v| self.values[v].users.is_empty()));
        self.unlink_inputs(node);
        let index = self.node(node).index;
        self.dag.remove_node(index);
        self.nodes[node] = None;
        self.order.retain(|&n| n != node);
    }

    /// Removes parameters that no node reads and no output or update names.
    pub fn remove_dead_params(&mut self) {
        let outputs = &self.outputs;
        let updates = &self.updates;
        let values = &self.values;
        self.params.retain(|&p| {
            !values[p].users.is_empty()
                || outputs.iter().any(|o| o.value == p)
                || updates.iter().any(|u| u.param == p || u.value == p)
        });
    }

    /// Removes nodes, in reverse order, whose results are neither read nor named.
    pub fn remove_dead_nodes(&mut self) -> usize {
        let mut named = vec![false; self.values.len()];
        for v in self.outputs.iter().map(|o| o.value).chain(self.updates.iter().map(|u| u.value)) {
            named[v.index()] = true;
        }
        let mut dead = vec![false; self.nodes.len()];
        let mut count = 0;
        for &id in self.order.clone().iter().rev() {
            let used =
                self.node(id).outputs.iter().any(|&v| named[v.index()] || !self.values[v].users.is_empty());
            if !used {
                self.unlink_inputs(id);
                let index = self.node(id).index;
                self.dag.remove_node(index);
                self.nodes[id] = None;
                dead[id.index()] = true;
                count += 1;
            }
        }
        self.order.retain(|n| !dead[n.index()]);
        count
    }

    /// Replaces the program order by a permutation of it. The verifier checks that
    /// definitions precede uses.
    pub fn set_order(&mut self, order: Vec<NodeId>) {
        debug_assert_eq!(order.len(), self.order.len());
        self.order = order;
    }

    /// True for a value on the host that lies there packed ([`crate::packed`]).
    pub fn is_packed(&self, value: ValueId) -> bool {
        match self.def_node(value).and_then(|id| self.get_node(id)) {
            Some(node) if node.op == Op::OffloadDone => self.is_packed(node.inputs[0]),
            Some(node) => node.packed,
            None => false,
        }
    }

    /// Mutable access to what a pass may annotate on a node.
    pub fn annotate(&mut self, node: NodeId) -> NodeNotes<'_> {
        let n = self.nodes[node].as_mut().expect("live node");
        NodeNotes {
            stage: &mut n.stage,
            origin: &mut n.origin,
            algo: &mut n.algo,
            workspace: &mut n.workspace,
            inplace: &mut n.inplace,
            packed: &mut n.packed,
            name: &mut n.name,
        }
    }

    /// Sets the hint name of a value (the external name of an input or parameter).
    pub fn set_name(&mut self, value: ValueId, name: impl Into<String>) {
        self.values[value].name = name.into();
    }

    /// Changes the role of a parameter. Panics if the value is not one.
    pub fn set_role(&mut self, param: ValueId, role: ParamRole) {
        assert!(matches!(self.values[param].def, Def::Param(_)), "not a parameter");
        self.values[param].def = Def::Param(role);
    }
}

/// The fields of a node that passes may set without changing dataflow.
#[derive(Debug)]
pub struct NodeNotes<'a> {
    /// See [`Node::stage`].
    pub stage: &'a mut Stage,
    /// See [`Node::origin`].
    pub origin: &'a mut Option<NodeId>,
    /// See [`Node::algo`].
    pub algo: &'a mut Option<ConvSchedule>,
    /// See [`Node::workspace`].
    pub workspace: &'a mut Bytes,
    /// See [`Node::inplace`].
    pub inplace: &'a mut SmallVec<[(u32, u32); 2]>,
    /// See [`Node::packed`].
    pub packed: &'a mut bool,
    /// See [`Node::name`].
    pub name: &'a mut String,
}
