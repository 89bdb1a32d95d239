//! The reverse sweep: which values need a gradient, and where contributions add up.

use super::saved::ConcatRead;
use super::{fill, ill_typed, rules};
use crate::pass::PassError;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::id::EntityId;
use vdnn_ir::op::{BinaryKind, ReduceKind};
use vdnn_ir::types::Dims;
use vdnn_ir::{Graph, NodeId, Op, ValueId};

/// Where the sweep starts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Seed {
    /// The gradient of this value is this value.
    Given {
        /// A value of the forward graph.
        of: ValueId,
        /// Its gradient, of the same type.
        cotangent: ValueId,
    },
    /// The gradient of this scalar is one.
    Ones {
        /// The scalar, usually the loss.
        of: ValueId,
        /// The node that defines it.
        origin: NodeId,
    },
}

/// A forward node as the rules see it: a copy, so the graph can grow meanwhile.
#[derive(Clone, Debug)]
pub(super) struct Forward {
    pub id: NodeId,
    pub name: String,
    pub inputs: SmallVec<[ValueId; 4]>,
    pub outputs: SmallVec<[ValueId; 2]>,
}

/// The state of one reverse sweep.
#[derive(Debug)]
pub(super) struct Sweep<'g> {
    pub graph: &'g mut Graph,
    /// By value: a gradient is wanted, and the value depends on something wanted.
    needs: Vec<bool>,
    /// By value: the sum of the contributions so far.
    grads: Vec<Option<ValueId>>,
    /// By value: a parameter or input whose gradient the caller wants.
    wanted: Vec<bool>,
    reads: BTreeMap<NodeId, ConcatRead>,
}

impl<'g> Sweep<'g> {
    pub fn new(graph: &'g mut Graph, wrt: &[ValueId], reads: BTreeMap<NodeId, ConcatRead>) -> Self {
        let needs = needed(graph, wrt);
        let bound = graph.value_bound();
        let mut wanted = vec![false; bound];
        for &v in wrt {
            wanted[v.index()] = true;
        }
        Self { graph, needs, grads: vec![None; bound], wanted, reads }
    }

    /// Visits `forward` (a prefix of the program order) backwards. `complete` is told of each
    /// value of `wrt` that a forward node reads, right after its earliest reader was handled:
    /// then its gradient is complete, and nothing appended later reads the value.
    pub fn run(
        &mut self,
        forward: &[NodeId],
        seeds: &[Seed],
        mut complete: impl FnMut(&mut Self, ValueId, NodeId) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        let mut completed_at: BTreeMap<NodeId, Vec<ValueId>> = BTreeMap::new();
        let mut seen = vec![false; self.needs.len()];
        for &id in forward {
            for &v in &self.graph.node(id).inputs {
                if self.wanted[v.index()] && !std::mem::replace(&mut seen[v.index()], true) {
                    completed_at.entry(id).or_default().push(v);
                }
            }
        }
        for seed in seeds {
            match *seed {
                Seed::Given { of, cotangent } => match self.graph.def_node(of) {
                    Some(def) => {
                        let at = self.forward(def);
                        self.contribute(&at, of, cotangent)?;
                    }
                    None => self.grads[of.index()] = Some(cotangent),
                },
                Seed::Ones { of, origin } => {
                    let at = self.forward(origin);
                    if self.needs(of) {
                        let dims = self.dims(of);
                        let one = self.emit(&at, fill(1.0, &dims), &[], "seed")?;
                        self.contribute(&at, of, one)?;
                    }
                }
            }
        }
        for &id in forward.iter().rev() {
            let node = self.forward(id);
            if node.outputs.iter().any(|&v| self.grad(v).is_some()) {
                let op = self.graph.node(id).op.clone();
                rules::apply(self, &op, &node)?;
            }
            for v in completed_at.remove(&id).unwrap_or_default() {
                complete(self, v, id)?;
            }
        }
        Ok(())
    }

    fn forward(&self, id: NodeId) -> Forward {
        let n = self.graph.node(id);
        Forward { id, name: n.name.clone(), inputs: n.inputs.clone(), outputs: n.outputs.clone() }
    }

    /// True if some wanted value lies behind `v`.
    pub fn needs(&self, v: ValueId) -> bool {
        self.needs.get(v.index()).copied().unwrap_or(false)
    }
    /// The gradient of `v` so far.
    pub fn grad(&self, v: ValueId) -> Option<ValueId> {
        self.grads.get(v.index()).copied().flatten()
    }
    /// The gradient of `v`, as zeros if no path reached it.
    pub fn grad_or_zeros(&mut self, at: &Forward, v: ValueId) -> Result<ValueId, PassError> {
        match self.grad(v) {
            Some(g) => Ok(g),
            None => {
                let dims = self.dims(v);
                self.emit(at, fill(0.0, &dims), &[], "zeros")
            }
        }
    }
    /// The shape of a value.
    pub fn dims(&self, v: ValueId) -> Dims {
        self.graph.ty(v).dims.clone()
    }

    /// Appends a backward node of `at` with one output.
    pub fn emit(
        &mut self,
        at: &Forward,
        op: Op,
        inputs: &[ValueId],
        suffix: &str,
    ) -> Result<ValueId, PassError> {
        Ok(self.emit_n(at, op, inputs, suffix, 1)?[0])
    }
    /// Appends a backward node of `at` with `n` outputs.
    pub fn emit_n(
        &mut self,
        at: &Forward,
        op: Op,
        inputs: &[ValueId],
        suffix: &str,
        n: usize,
    ) -> Result<SmallVec<[ValueId; 2]>, PassError> {
        let spec = NodeSpec::backward(format!("{}/{suffix}", at.name), at.id).outputs(n);
        let id = self.graph.add(op, inputs, spec).map_err(ill_typed)?;
        Ok(self.graph.node(id).outputs.clone())
    }

    /// Adds `gradient` to the gradient of `v`, if `v` needs one.
    pub fn contribute(&mut self, at: &Forward, v: ValueId, gradient: ValueId) -> Result<(), PassError> {
        if !self.needs(v) {
            return Ok(());
        }
        debug_assert_eq!(self.graph.ty(v), self.graph.ty(gradient), "gradient of {v} at {}", at.name);
        let sum = match self.grad(v) {
            None => gradient,
            Some(so_far) => self.emit(at, Op::Binary(BinaryKind::Add), &[so_far, gradient], "sum")?,
        };
        self.grads[v.index()] = Some(sum);
        Ok(())
    }

    /// The forward node's output as backward reads it: itself, or its part of a concatenation.
    pub fn saved_output(&mut self, at: &Forward) -> Result<ValueId, PassError> {
        match self.reads.get(&at.id).cloned() {
            None => Ok(at.outputs[0]),
            Some(read) => self.emit(at, Op::Slice(read.range), &[read.concat], "saved"),
        }
    }

    /// Sums `gradient` down to `dims`, undoing numpy broadcasting, in nodes called `suffix`.
    pub fn unbroadcast(
        &mut self,
        at: &Forward,
        gradient: ValueId,
        dims: &Dims,
        suffix: &str,
    ) -> Result<ValueId, PassError> {
        let from = self.dims(gradient);
        if from == *dims {
            return Ok(gradient);
        }
        let lead = from.len() - dims.len();
        let axes: Dims =
            (0..from.len()).filter(|&i| i < lead || dims[i - lead] != from[i]).map(|i| i as u64).collect();
        let mut g = gradient;
        if !axes.is_empty() {
            g = self.emit(at, Op::Reduce { kind: ReduceKind::Sum, axes, keepdims: false }, &[g], suffix)?;
        }
        self.reshape(at, g, dims, suffix)
    }

    /// `v` in shape `dims`, which has as many elements.
    pub fn reshape(
        &mut self,
        at: &Forward,
        v: ValueId,
        dims: &Dims,
        suffix: &str,
    ) -> Result<ValueId, PassError> {
        if self.graph.ty(v).dims == *dims {
            return Ok(v);
        }
        self.emit(at, Op::Reshape { dims: dims.clone() }, &[v], suffix)
    }
}

/// By value: true if it is in `wrt` or computed, differentiably, from such a value.
pub(super) fn needed(graph: &Graph, wrt: &[ValueId]) -> Vec<bool> {
    let mut needs = vec![false; graph.value_bound()];
    for &v in wrt {
        needs[v.index()] = true;
    }
    for (_, node) in graph.nodes() {
        let depends = node
            .inputs
            .iter()
            .enumerate()
            .any(|(i, &v)| needs[v.index()] && differentiable_input(&node.op, i));
        if depends {
            for (i, &v) in node.outputs.iter().enumerate() {
                if graph.ty(v).dtype.is_float() && differentiable_output(&node.op, i) {
                    needs[v.index()] = true;
                }
            }
        }
    }
    needs
}

/// False for operands that are data, not variables: running statistics that do not enter the
/// result, class weights, the Dropout step, the condition of a gate.
fn differentiable_input(op: &Op, index: usize) -> bool {
    match op {
        Op::BatchNormTrain { .. } => index < 3,
        Op::SoftmaxCrossEntropy { .. }
        | Op::NegativeLogLikelihood { .. }
        | Op::Dropout { .. }
        | Op::Binary(BinaryKind::Gate) => index == 0,
        _ => true,
    }
}

/// False for the by-products of an op.
fn differentiable_output(op: &Op, index: usize) -> bool {
    match op {
        Op::BatchNormTrain { .. } | Op::MaxPool(_) => index == 0,
        _ => true,
    }
}
