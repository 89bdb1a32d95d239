//! The structural verifier. Every pass's result goes through it, so it is near linear.
//!
//! First the ids; if one is broken nothing else is looked at:
//! - the program order holds every live node once, and no other;
//! - a node reads live values: inputs and parameters that are registered, literals, and
//!   results of live nodes; the same for outputs and updates;
//! - output `i` of a node is the value whose definition says "output `i` of that node";
//! - an origin is a node id that was handed out (the node may be gone).
//!
//! Then, all together:
//! - **mirrors**: each value's users, and the private dependency graph, say what the
//!   operand lists say;
//! - **order**: definitions precede uses in program order;
//! - **types**: those of a node's outputs are what shape inference gives; inputs,
//!   parameters and literals are within the size limit; a literal has its type's size;
//! - **names**: those of inputs and parameters together, and those of outputs, are unique
//!   and not empty;
//! - **phase**: no op before its earliest phase; a convolution outside the setup stage has
//!   an algorithm from phase selected on and not before, and nothing else ever has one;
//! - **setup**: setup nodes exist in inference graphs only and read static values only;
//! - **transfers** (transfers.rs): each start has exactly one done, which alone reads its
//!   result; a prefetch reads the result of an offload's done; values are on the host
//!   exactly if an offload made them, and only transfers read them;
//! - **updates**: in training graphs only; the target is a parameter, has the type of its
//!   new content, and is updated once; a value updates one parameter;
//! - **reuse** (reuse.rs), once scheduled: bytes are overwritten only if nobody reads them
//!   afterwards.

mod reuse;
#[cfg(test)]
mod tests;
mod transfers;

use crate::graph::{Def, Graph, Node, NodeId, Stage, ValueId};
use crate::id::EntityId;
use crate::op::infer::{check_size, infer};
use crate::phase::{Mode, Phase};
use crate::print::{NodeLine, Quoted};
use crate::slices::batch;
use crate::types::{Space, TensorType};
use crate::units::Bytes;
use smallvec::SmallVec;
use std::collections::BTreeSet;

/// Everything wrong with a graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct VerifyErrors(pub Vec<String>);

/// Checks every invariant of the graph and of its phase (see the [module](self)).
///
/// # Errors
/// All violations, each naming its entity and, for a node, showing its line.
pub fn verify(graph: &Graph) -> Result<(), VerifyErrors> {
    let mut cx = Checker { graph, at: vec![u32::MAX; graph.node_bound()], errors: Vec::new() };
    cx.ids();
    if cx.errors.is_empty() {
        cx.mirrors();
        cx.nodes();
        cx.leaves();
        cx.names();
        transfers::check(&mut cx);
        cx.updates();
        if graph.phase >= Phase::Scheduled {
            reuse::check(&mut cx);
        }
    }
    if cx.errors.is_empty() { Ok(()) } else { Err(VerifyErrors(cx.errors)) }
}

struct Checker<'a> {
    graph: &'a Graph,
    /// Program order position by node id.
    at: Vec<u32>,
    errors: Vec<String>,
}

impl<'a> Checker<'a> {
    fn fail(&mut self, what: String) {
        self.errors.push(what);
    }

    fn fail_node(&mut self, id: NodeId, node: &Node, what: &str) {
        self.errors.push(format!("{id}: {what}\n    {}", NodeLine(self.graph, id, node)));
    }

    fn show(&self, v: ValueId) -> String {
        let name = &self.graph.value(v).name;
        if name.is_empty() { v.to_string() } else { format!("{v} {}", Quoted(name)) }
    }

    fn is_live(&self, v: ValueId, registered: &[bool]) -> bool {
        if v.index() >= self.graph.value_bound() {
            return false;
        }
        match self.graph.value(v).def {
            Def::Const(_) => true,
            Def::Input | Def::Param(_) => registered[v.index()],
            Def::Node { node, index } => {
                self.graph.get_node(node).is_some_and(|n| n.outputs.get(index as usize) == Some(&v))
            }
        }
    }

    fn ids(&mut self) {
        let graph = self.graph;
        for (i, &id) in graph.order().iter().enumerate() {
            if graph.get_node(id).is_none() {
                self.fail(format!("{id}: in the program order, but not a live node"));
            } else if self.at[id.index()] != u32::MAX {
                self.fail(format!("{id}: twice in the program order"));
            } else {
                self.at[id.index()] = i as u32;
            }
        }
        for i in 0..graph.node_bound() {
            let id = NodeId::from_index(i);
            if let Some(node) = graph.get_node(id).filter(|_| self.at[i] == u32::MAX) {
                self.fail_node(id, node, "live, but not in the program order");
            }
        }
        let mut registered = vec![false; graph.value_bound()];
        for (list, what) in [(graph.inputs(), "input"), (graph.params(), "param")] {
            for &v in list {
                let is_kind = |def: &Def| match def {
                    Def::Input => what == "input",
                    Def::Param(_) => what == "param",
                    _ => false,
                };
                if v.index() >= graph.value_bound() || !is_kind(&graph.value(v).def) {
                    self.fail(format!("{v}: listed as {what}, but is none"));
                } else if std::mem::replace(&mut registered[v.index()], true) {
                    self.fail(format!("{v}: listed twice as {what}"));
                }
            }
        }
        for &id in graph.order() {
            let Some(node) = graph.get_node(id) else { continue };
            for (i, &v) in node.inputs.iter().enumerate() {
                if !self.is_live(v, &registered) {
                    self.fail_node(id, node, &format!("operand {i} is {v}, which is not a live value"));
                }
            }
            for (i, &v) in node.outputs.iter().enumerate() {
                let def = Def::Node { node: id, index: i as u32 };
                if v.index() >= graph.value_bound() || graph.value(v).def != def {
                    self.fail_node(id, node, &format!("output {i} is {v}, which is defined elsewhere"));
                }
            }
            if node.origin.is_some_and(|o| o.index() >= graph.node_bound()) {
                self.fail_node(id, node, "its origin never existed");
            }
        }
        for output in &graph.outputs {
            if !self.is_live(output.value, &registered) {
                self.fail(format!("output {}: {} is not a live value", Quoted(&output.name), output.value));
            }
        }
        for update in &graph.updates {
            for v in [update.param, update.value] {
                if !self.is_live(v, &registered) {
                    self.fail(format!("update {} = {}: {v} is not a live value", update.param, update.value));
                }
            }
        }
    }

    fn mirrors(&mut self) {
        let graph = self.graph;
        let mut users: Vec<SmallVec<[NodeId; 4]>> = vec![SmallVec::new(); graph.value_bound()];
        let mut edges = 0;
        // By id, as `Value::users` is sorted.
        for i in 0..graph.node_bound() {
            let id = NodeId::from_index(i);
            let Some(node) = graph.get_node(id) else { continue };
            let mut expected = Vec::new();
            for &v in &node.inputs {
                if users[v.index()].last() != Some(&id) {
                    users[v.index()].push(id);
                }
                expected.extend(graph.def_node(v).map(|def| (def, v)));
            }
            expected.sort_unstable();
            edges += expected.len();
            if graph.dag_node(id) != Some(id) || graph.dag_inputs(id) != expected {
                self.fail_node(id, node, "the dependency graph disagrees with its operands");
            }
        }
        if graph.dag_size() != (graph.order().len(), edges) {
            self.fail("the dependency graph holds nodes or edges that the graph does not".into());
        }
        for v in graph.value_ids() {
            if graph.value(v).users() != users[v.index()].as_slice() {
                let what =
                    format!("users are {:?}, but {:?} read it", graph.value(v).users(), users[v.index()]);
                self.fail(format!("{}: {what}", self.show(v)));
            }
        }
    }

    fn nodes(&mut self) {
        let graph = self.graph;
        for (i, (id, node)) in graph.nodes().enumerate() {
            for &v in &node.inputs {
                if graph.def_node(v).is_some_and(|def| self.at[def.index()] >= i as u32) {
                    let what = format!("reads {} before it is computed", self.show(v));
                    self.fail_node(id, node, &what);
                }
            }
            let inputs: SmallVec<[&TensorType; 4]> = node.inputs.iter().map(|&v| graph.ty(v)).collect();
            match infer(&node.op, &inputs, node.outputs.len()) {
                Err(e) => self.fail_node(id, node, &e.0),
                Ok(types) => {
                    if !types.iter().eq(node.outputs.iter().map(|&v| graph.ty(v))) {
                        let types: Vec<String> = types.iter().map(ToString::to_string).collect();
                        let what = format!("its outputs should be {}", types.join(", "));
                        self.fail_node(id, node, &what);
                    }
                }
            }
            if node.op.earliest_phase() > graph.phase {
                let what = format!(
                    "not legal before phase {}, and the graph is {}",
                    node.op.earliest_phase(),
                    graph.phase
                );
                self.fail_node(id, node, &what);
            }
            let chosen = graph.phase >= Phase::Selected;
            match (node.op.is_conv(), &node.algo) {
                (false, Some(_)) => self.fail_node(id, node, "only a convolution has an algorithm"),
                (true, _) if node.stage == Stage::Setup => {}
                (true, None) if chosen => self.fail_node(id, node, "a convolution without an algorithm"),
                (true, Some(_)) if !chosen => {
                    self.fail_node(id, node, "an algorithm before phase selected");
                }
                (true, Some(schedule)) => {
                    if let Some(images) = batch(&node.op, &inputs).filter(|&n| !schedule.covers(n)) {
                        let what = format!("its micro-batches are not of its {images} images in all");
                        self.fail_node(id, node, &what);
                    }
                }
                _ => {}
            }
            if node.stage == Stage::Setup {
                if graph.mode != Mode::Infer {
                    self.fail_node(id, node, "a setup node in a training graph");
                }
                for &v in &node.inputs {
                    if !graph.is_static(v) {
                        let what = format!("a setup node reads {}, which is not static", self.show(v));
                        self.fail_node(id, node, &what);
                    }
                }
            }
        }
    }

    /// Inputs, parameters and literals.
    fn leaves(&mut self) {
        let graph = self.graph;
        for v in graph.value_ids() {
            let value = graph.value(v);
            if matches!(value.def, Def::Node { .. }) {
                continue;
            }
            if let Err(e) = check_size(&value.ty) {
                self.fail(format!("{}: {e}", self.show(v)));
            }
            if value.space != Space::Device {
                self.fail(format!("{}: on the host, but no offload made it", self.show(v)));
            }
            if let Def::Const(bytes) = &value.def
                && Bytes(bytes.len() as u64) != value.ty.bytes()
            {
                self.fail(format!("{}: a literal of {} bytes for {}", self.show(v), bytes.len(), value.ty));
            }
        }
    }

    fn names(&mut self) {
        let graph = self.graph;
        let mut seen = BTreeSet::new();
        for &v in graph.inputs().iter().chain(graph.params()) {
            let name = graph.value(v).name.as_str();
            if name.is_empty() {
                self.fail(format!("{v}: an input or parameter without a name"));
            } else if !seen.insert(name) {
                self.fail(format!("{}: another input or parameter has this name", self.show(v)));
            }
        }
        seen.clear();
        for output in &graph.outputs {
            if output.name.is_empty() {
                self.fail(format!("output {}: has no name", output.value));
            } else if !seen.insert(&output.name) {
                let name = Quoted(&output.name);
                self.fail(format!("output {name}: another output has this name"));
            }
        }
    }

    fn updates(&mut self) {
        let graph = self.graph;
        let mut targets = BTreeSet::new();
        let mut sources = BTreeSet::new();
        for u in &graph.updates {
            let (param, value) = (graph.value(u.param), graph.value(u.value));
            let mut errors = Vec::new();
            if graph.mode != Mode::Train {
                errors.push("an update in an inference graph".to_owned());
            }
            if !matches!(param.def, Def::Param(_)) {
                errors.push("the target is not a parameter".to_owned());
            }
            if param.ty != value.ty {
                errors.push(format!("the target is {}, its content {}", param.ty, value.ty));
            }
            if !targets.insert(u.param) {
                errors.push("the parameter is updated twice".to_owned());
            }
            if !sources.insert(u.value) {
                errors.push("the value updates another parameter too".to_owned());
            }
            for e in errors {
                self.fail(format!("update {} = {}: {e}", self.show(u.param), self.show(u.value)));
            }
        }
    }
}
