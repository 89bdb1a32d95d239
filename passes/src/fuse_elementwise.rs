//! Elementwise chains: ops that look at one element at a time become one op that passes over
//! memory once ([`vdnn_ir::op::elementwise`]), which saves launches and, where memory bounds the
//! kernels, nearly all of the time of all ops but one.
//!
//! A group grows backwards from its last op, the root: an op joins whose result has the root's
//! type and is read by members only. So nothing that backward or the caller reads vanishes, and
//! reductions, changes of shape and smaller operands, which would be computed again for every
//! element, end a chain. The group runs where the root did. An op that reads two tensors of
//! the result's size keeps both until then, instead of one: it joins only if nothing but
//! elementwise ops runs in between.

use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use smallvec::SmallVec;
use std::collections::BTreeSet;
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::id::EntityId;
use vdnn_ir::op::elementwise::{MAX_OPERANDS, MAX_STEPS};
use vdnn_ir::op::infer::InferError;
use vdnn_ir::op::{ElementwiseAttrs, ElementwiseStep, StepOperand};
use vdnn_ir::{DType, Graph, Node, NodeId, Op, Phase, Stage, ValueId};

/// Makes one op of every group of elementwise ops with one result. In f32 no bit changes; in bf16
/// only the last result is rounded.
///
/// Counters: `programs` (ops made), `launches` (how many fewer there are).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FuseElementwise;

impl Pass for FuseElementwise {
    fn name(&self) -> &'static str {
        "fuse-elementwise"
    }

    fn requires(&self) -> Phase {
        Phase::Joint
    }

    fn produces(&self) -> Phase {
        Phase::Joint
    }

    fn run(&self, graph: &mut Graph, _cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        let order = graph.order().to_vec();
        let named = graph.outputs.iter().map(|o| o.value).chain(graph.updates.iter().map(|u| u.value));
        let facts = Facts { at: graph.positions(), named: named.collect(), order };
        let (mut programs, mut launches) = (0, 0);
        // From the end, so that a root takes all it can before its members would be roots.
        for &root in facts.order.iter().rev() {
            let members = match graph.get_node(root) {
                Some(node) if is_elementwise(graph, node) => facts.group(graph, root),
                _ => continue,
            };
            if members.len() > 1 {
                replace(graph, root, &members)
                    .map_err(|error| PassError::Infer { pass: self.name(), error })?;
                programs += 1;
                launches += members.len() as u64 - 1;
            }
        }
        let stats = Stats::from([("programs", programs), ("launches", launches)]);
        Ok(Outcome { changed: programs > 0, stats })
    }
}

/// The graph before anything was fused.
struct Facts {
    order: Vec<NodeId>,
    /// Positions by node.
    at: Vec<u32>,
    /// Outputs and updates.
    named: BTreeSet<ValueId>,
}

/// True for an op that can be a step of a program.
fn is_elementwise(graph: &Graph, node: &Node) -> bool {
    let &[y] = node.outputs.as_slice() else { return false };
    let dtype = graph.ty(y).dtype;
    matches!(node.op, Op::Unary(_) | Op::UnaryGrad(_) | Op::Binary(_))
        && matches!(dtype, DType::F32 | DType::BF16)
        && node.inputs.iter().all(|&v| graph.ty(v).dtype == dtype)
        && node.stage != Stage::Setup
}

impl Facts {
    /// The members of the group of a root, in order.
    fn group(&self, graph: &Graph, root: NodeId) -> Vec<NodeId> {
        let mut members = vec![root];
        // Largest first: once a member is refused for its readers, one that joins later may be
        // the last of them, so the search begins again.
        while members.len() < MAX_STEPS {
            let operands = members.iter().flat_map(|&m| graph.node(m).inputs.iter());
            let defs: BTreeSet<(u32, NodeId)> = operands
                .filter_map(|&v| graph.def_node(v).filter(|d| !members.contains(d)))
                .filter_map(|d| Some((*self.at.get(d.index())?, d)))
                .collect();
            let joins = defs.into_iter().rev().map(|(_, d)| d).find(|&d| self.joins(graph, &members, d));
            match joins {
                Some(d) => members.push(d),
                None => break,
            }
        }
        members.sort_by_key(|m| self.at[m.index()]);
        members
    }

    /// True if a node that a member reads may become one; the first member is the root.
    fn joins(&self, graph: &Graph, members: &[NodeId], id: NodeId) -> bool {
        let (node, root) = (graph.node(id), graph.node(members[0]));
        if !is_elementwise(graph, node) || node.stage != root.stage {
            return false;
        }
        let (y, result) = (node.outputs[0], graph.ty(root.outputs[0]));
        let hidden = !self.named.contains(&y) && graph.value(y).users().iter().all(|u| members.contains(u));
        if !hidden || graph.ty(y) != result {
            return false;
        }
        let with: Vec<NodeId> = members.iter().copied().chain([id]).collect();
        if operands(graph, &with).len() > MAX_OPERANDS {
            return false;
        }
        let large: BTreeSet<ValueId> = node
            .inputs
            .iter()
            .copied()
            .filter(|&v| graph.ty(v).bytes() >= result.bytes() && !graph.is_static(v))
            .collect();
        large.len() <= 1 || !self.waits(graph, &with, id)
    }

    /// True if more than elementwise ops runs between a node and the root of its group.
    fn waits(&self, graph: &Graph, members: &[NodeId], id: NodeId) -> bool {
        let (from, to) = (self.at[id.index()] as usize, self.at[members[0].index()] as usize);
        // What is gone became part of a later group.
        let between = self.order.get(from + 1..to).unwrap_or_default().iter();
        between.filter(|n| !members.contains(n)).filter_map(|&n| graph.get_node(n)).any(|node| {
            let light = is_elementwise(graph, node) || !node.op.views().is_empty();
            node.stage != Stage::Setup && !light
        })
    }
}

/// What a group reads, in the order of its members.
fn operands(graph: &Graph, members: &[NodeId]) -> SmallVec<[ValueId; 8]> {
    let mut read = SmallVec::new();
    for &m in members {
        for &v in &graph.node(m).inputs {
            if !read.contains(&v) && graph.def_node(v).is_none_or(|d| !members.contains(&d)) {
                read.push(v);
            }
        }
    }
    read
}

/// Puts a program in the place of the root.
fn replace(graph: &mut Graph, root: NodeId, members: &[NodeId]) -> Result<(), InferError> {
    let inputs = operands(graph, members);
    let made: Vec<ValueId> = members.iter().map(|&m| graph.node(m).outputs[0]).collect();
    let of = |v: &ValueId| {
        let step = made.iter().position(|m| m == v).map(|i| StepOperand::T(i as u8));
        step.or_else(|| inputs.iter().position(|x| x == v).map(|i| StepOperand::X(i as u8)))
    };
    let step = |&m: &NodeId| {
        let node = graph.node(m);
        let read: Option<SmallVec<[StepOperand; 2]>> = node.inputs.iter().map(of).collect();
        read.and_then(|read| ElementwiseStep::new(&node.op, &read))
    };
    let steps: Option<Vec<ElementwiseStep>> = members.iter().map(step).collect();
    let steps = steps.ok_or_else(|| InferError("elementwise: a member that is no step".into()))?;
    let node = graph.node(root);
    let (y, name) = (node.outputs[0], graph.value(node.outputs[0]).name.clone());
    let spec = NodeSpec { name: node.name.clone(), stage: node.stage, origin: node.origin, n_outputs: 1 };
    let at = graph.order().iter().position(|&n| n == root).unwrap_or(0);
    let fused = graph.insert(at, Op::Elementwise(ElementwiseAttrs { steps }), &inputs, spec)?;
    let new = graph.node(fused).outputs[0];
    graph.set_name(new, name);
    graph.replace_all_uses(y, new);
    // Their gradients now belong to it.
    for id in graph.order().to_vec() {
        if graph.node(id).origin.is_some_and(|o| members.contains(&o)) {
            *graph.annotate(id).origin = Some(fused);
        }
    }
    for &m in members.iter().rev() {
        graph.remove(m);
    }
    Ok(())
}
