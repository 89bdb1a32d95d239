//! In-place reuse of a scheduled graph.
//!
//! Values share bytes through views, in-place pairs and updates. A pair (output, input) is
//! legal if the op grants it, both have one type, and no value in those bytes is read at a
//! later position or at another operand of the node. Named outputs and new parameter
//! contents are read at the end of the step. Literals and setup results are never
//! overwritten, a parameter only by the value of its update. That value must be able to
//! take the parameter's bytes, which implies that its node comes after every other reader.
//!
//! A slice of rows may lie in its operand unless that is kept from step to step; an operand of
//! a concat of rows may lie in the result if it has its bytes for itself, and then no other
//! operand may. From there on all of these bytes are read for as long as any of them.

use super::Checker;
use crate::graph::{Def, Node, NodeId, Stage, ValueId};
use crate::id::EntityId;
use crate::rows::{Placement, placement};
use crate::types::TensorType;
use crate::units::Bytes;
use std::collections::BTreeMap;

/// Read when the step has ended.
const END: u32 = u32::MAX;

struct Storage {
    /// The value in whose bytes each value lies, itself if in its own, and where it starts.
    parent: Vec<(ValueId, Bytes)>,
    /// By root: the last position at which a value now in those bytes is read.
    read_until: Vec<u32>,
}

impl Storage {
    /// The value that has all bytes of what a value lies in, and where the value starts there.
    fn locate(&self, v: ValueId) -> (ValueId, Bytes) {
        let (mut at, mut start) = (v, Bytes::ZERO);
        while self.parent[at.index()].0 != at {
            let (parent, here) = self.parent[at.index()];
            (at, start) = (parent, start.saturating_add(here));
        }
        (at, start)
    }

    fn root(&self, v: ValueId) -> ValueId {
        self.locate(v).0
    }

    /// Lets a new value lie in another one's bytes.
    fn put(&mut self, v: ValueId, inside: ValueId, at: Bytes) {
        let (root, start) = self.locate(inside);
        self.parent[v.index()] = (root, start.saturating_add(at));
    }
}

pub(super) fn check(cx: &mut Checker<'_>) {
    let graph = cx.graph;
    let mut last_read = vec![0u32; graph.value_bound()];
    for v in graph.value_ids() {
        let reads = graph.value(v).users().iter().map(|u| cx.at[u.index()]);
        last_read[v.index()] = reads.max().unwrap_or(0);
    }
    for v in graph.outputs.iter().map(|o| o.value).chain(graph.updates.iter().map(|u| u.value)) {
        last_read[v.index()] = END;
    }
    let target: BTreeMap<ValueId, ValueId> = graph.updates.iter().map(|u| (u.value, u.param)).collect();
    let parent = (0..graph.value_bound()).map(|v| (ValueId::from_index(v), Bytes::ZERO)).collect();
    let mut storage = Storage { parent, read_until: last_read.clone() };

    for (id, node) in graph.nodes() {
        for &(out, input) in node.op.views() {
            let root = storage.root(node.inputs[input]);
            let v = node.outputs[out];
            storage.put(v, node.inputs[input], Bytes::ZERO);
            let until = &mut storage.read_until[root.index()];
            *until = last_read[v.index()].max(*until);
        }
        let mut taken = Vec::new();
        let types: Vec<&TensorType> = node.inputs.iter().map(|&v| graph.ty(v)).collect();
        match placement(&node.op, &types).filter(|_| node.stage != Stage::Setup) {
            Some(placement) => rows(cx, &mut storage, id, node, &placement),
            None => {
                for &(out, input) in &node.inplace {
                    pair(cx, &storage, id, node, (out as usize, input as usize), &target, &mut taken);
                }
            }
        }
        for (out, v) in node.outputs.iter().enumerate() {
            let Some(&param) = target.get(v) else { continue };
            if taken.iter().any(|&(o, i)| o == out && node.inputs[i] == param) {
                continue;
            }
            let rights = node.op.inplace().iter();
            match rights.copied().find(|&(o, i)| o == out && node.inputs.get(i) == Some(&param)) {
                Some(right) => pair(cx, &storage, id, node, right, &target, &mut taken),
                None => {
                    let what = format!(
                        "its output {out} cannot take the bytes of {}, which it updates",
                        cx.show(param)
                    );
                    cx.fail_node(id, node, &what);
                }
            }
        }
        for (out, input) in taken {
            let root = storage.root(node.inputs[input]);
            let v = node.outputs[out];
            storage.put(v, node.inputs[input], Bytes::ZERO);
            storage.read_until[root.index()] = last_read[v.index()];
        }
    }
    for u in &graph.updates {
        if graph.def_node(u.value).is_none() {
            let what =
                format!("update {} = {}: no node computes the value", cx.show(u.param), cx.show(u.value));
            cx.fail(what);
        }
    }
}

/// Checks the pairs of a slice or concat of rows and lets its tensors lie in each other.
fn rows(cx: &mut Checker<'_>, storage: &mut Storage, id: NodeId, node: &Node, placement: &Placement) {
    let graph = cx.graph;
    let v = node.outputs[0];
    for (k, &(out, input)) in node.inplace.iter().enumerate() {
        let label = format!("in place {out}:{input}");
        let input = input as usize;
        if out != 0 || input >= node.inputs.len() {
            cx.fail_node(id, node, &format!("{label}: the op does not grant this"));
            continue;
        }
        if node.inplace[..k].contains(&node.inplace[k]) {
            cx.fail_node(id, node, &format!("{label}: the output or the input is in another pair"));
            continue;
        }
        let source = node.inputs[input];
        let (root, start) = storage.locate(source);
        let kept = match graph.value(root).def {
            Def::Input => false,
            Def::Const(_) | Def::Param(_) => true,
            Def::Node { node, .. } => graph.node(node).stage == Stage::Setup,
        };
        match placement {
            Placement::ResultInOperand(_) if kept => {
                let what = format!("{label}: the bytes of {} are kept from step to step", cx.show(source));
                cx.fail_node(id, node, &what);
            }
            Placement::ResultInOperand(at) => {
                let until = storage.read_until[v.index()].max(storage.read_until[root.index()]);
                storage.put(v, source, *at);
                storage.read_until[root.index()] = until;
            }
            Placement::OperandsInResult(places) => {
                let whole = start == Bytes::ZERO && graph.ty(root).bytes() == graph.ty(source).bytes();
                if kept || matches!(graph.value(root).def, Def::Input) || !whole || root == v {
                    let what = format!("{label}: {} has not its bytes for itself", cx.show(source));
                    cx.fail_node(id, node, &what);
                    continue;
                }
                storage.parent[root.index()] = (v, places[input]);
                let until = storage.read_until[v.index()].max(storage.read_until[root.index()]);
                storage.read_until[v.index()] = until;
            }
        }
    }
    if let Placement::OperandsInResult(_) = placement {
        for (input, &source) in node.inputs.iter().enumerate() {
            if storage.root(source) == v && !node.inplace.contains(&(0, input as u32)) {
                let what = format!("{} lies in the result at another operand's place", cx.show(source));
                cx.fail_node(id, node, &what);
            }
        }
    }
}

/// Checks one pair; a pair whose indices make sense goes into `taken`.
fn pair(
    cx: &mut Checker<'_>,
    storage: &Storage,
    id: NodeId,
    node: &Node,
    (out, input): (usize, usize),
    target: &BTreeMap<ValueId, ValueId>,
    taken: &mut Vec<(usize, usize)>,
) {
    let graph = cx.graph;
    let label = format!("in place {out}:{input}");
    if !node.op.inplace().contains(&(out, input)) || out >= node.outputs.len() || input >= node.inputs.len() {
        return cx.fail_node(id, node, &format!("{label}: the op does not grant this"));
    }
    if taken.iter().any(|&(o, i)| o == out || i == input) {
        return cx.fail_node(id, node, &format!("{label}: the output or the input is in another pair"));
    }
    taken.push((out, input));
    let (v, source) = (node.outputs[out], node.inputs[input]);
    if graph.ty(v) != graph.ty(source) {
        let what = format!("{label}: {} and {} differ", graph.ty(v), graph.ty(source));
        cx.fail_node(id, node, &what);
    }
    let root = storage.root(source);
    let reads = node.inputs.iter().filter(|&&i| storage.root(i) == root).count();
    if reads != 1 {
        cx.fail_node(id, node, &format!("{label}: another operand reads the bytes of {}", cx.show(source)));
    }
    if storage.read_until[root.index()] > cx.at[id.index()] {
        let what = format!("{label}: the bytes of {} are read later", cx.show(source));
        cx.fail_node(id, node, &what);
    }
    let keeps = match graph.value(root).def {
        Def::Const(_) => Some("are a literal"),
        Def::Param(_) if target.get(&v) != Some(&root) => Some("are a parameter that this does not update"),
        Def::Node { node: def, .. }
            if graph.node(def).stage == Stage::Setup && node.stage != Stage::Setup =>
        {
            Some("are computed once, at load")
        }
        _ => None,
    };
    if let Some(keeps) = keeps {
        cx.fail_node(id, node, &format!("{label}: the bytes of {} {keeps}", cx.show(source)));
    }
}
