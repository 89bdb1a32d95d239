//! Builds the joint forward, backward and update graph of one training step.
//!
//! Reverse-mode differentiation of a program (Griewank and Walther, *Evaluating
//! Derivatives*, chapter 3): the forward nodes are visited in reverse program order, and each
//! appends the nodes of its gradient. One rule per op lives in `rules/`; a rule reads only the
//! forward values it must, because everything backward reads stays in memory, or has to be
//! brought back, until then.

mod prepare;
mod rules;
mod saved;
mod sweep;
#[cfg(test)]
mod tests;
mod update;

use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use sweep::{Seed, Sweep};
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::infer::InferError;
use vdnn_ir::types::Dims;
use vdnn_ir::{DType, Def, Graph, Mode, NodeId, Op, Output, ParamRole, Phase, Real, ValueId};

const PASS: &str = "autodiff";

/// Name of the input that holds the class indices, `i64[N, ..]`.
pub const LABELS: &str = "labels";
/// Name of the input that holds `(learning rate, momentum, weight decay)`, `f32[3]`.
pub const HYPER: &str = "vdnnc.hyper";
/// Name of the input that holds the step number, `i64[]`; there only if dropout is active.
pub const STEP: &str = "vdnnc.step";
/// Name of the output that holds the mean loss before the update, `f32[]`.
pub const LOSS: &str = "loss";

/// Turns a simplified model into its training step: mean softmax cross-entropy of the first
/// output against the input [`LABELS`], gradients of every trainable parameter, SGD with
/// momentum and weight decay, and the running statistics of batch norm.
///
/// A final Softmax or LogSoftmax on the output is dropped (the loss contains it), other outputs
/// are dropped with everything only they need, `BatchNormInfer` becomes `BatchNormTrain`.
/// The only output is [`LOSS`] unless gradients are kept; each trainable parameter `P` that the
/// loss depends on gains a momentum parameter `momentum:P`; `Graph::updates` binds the next
/// contents of weights, momenta and statistics.
///
/// Counters: `backward_nodes`, `update_nodes`, `trained` and `untrained` parameters (the latter
/// have no path to the loss), `dropped_outputs`, `dropped_softmax`, `batch_norms`,
/// `unbound_statistics` (statistics that are shared or constant and therefore stay), and
/// `read_from_concat` (activations read back as a part of a concatenation).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Autodiff {
    /// Add one output `grad:P` per trained parameter.
    pub keep_gradients: bool,
}

impl Pass for Autodiff {
    fn name(&self) -> &'static str {
        PASS
    }
    fn requires(&self) -> Phase {
        Phase::Simplified
    }
    fn produces(&self) -> Phase {
        Phase::Joint
    }
    fn run(&self, graph: &mut Graph, _cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        let mut stats = Stats::new();
        let loss = prepare::training_forward(graph, &mut stats)?;
        let wrt: Vec<ValueId> = trainable(graph);
        prepare::pool_indices(graph, &wrt)?;

        let forward = graph.order().to_vec();
        let loss_node = graph
            .def_node(loss)
            .ok_or_else(|| PassError::Unsupported("the loss does not depend on any node".into()))?;
        let seed = [Seed::Ones { of: loss, origin: loss_node }];
        let reads = saved::concat_reads(graph, &forward, &seed, &wrt)?;
        stats.insert("read_from_concat", reads.len() as u64);

        let hyper = graph.add_input(HYPER, vdnn_ir::TensorType::f32([3]));
        let mut trained: Vec<(ValueId, ValueId)> = Vec::new();
        let mut sweep = Sweep::new(graph, &wrt, reads);
        sweep.run(&forward, &seed, |sweep, param, reader| {
            if let Some(gradient) = sweep.grad(param) {
                update::sgd(sweep.graph, param, gradient, hyper, reader)?;
                trained.push((param, gradient));
            }
            Ok(())
        })?;
        update::statistics(graph, &mut stats);

        graph.mode = Mode::Train;
        graph.outputs = vec![Output { name: LOSS.into(), value: loss }];
        if self.keep_gradients {
            for &param in &wrt {
                if let Some(&(_, value)) = trained.iter().find(|(p, _)| *p == param) {
                    let name = format!("grad:{}", graph.value(param).name);
                    graph.outputs.push(Output { name, value });
                }
            }
        }
        let count = |stage| graph.nodes().filter(|(_, n)| n.stage == stage).count() as u64;
        stats.insert("backward_nodes", count(vdnn_ir::Stage::Backward));
        stats.insert("update_nodes", count(vdnn_ir::Stage::Update));
        stats.insert("trained", trained.len() as u64);
        stats.insert("untrained", (wrt.len() - trained.len()) as u64);
        Ok(Outcome { changed: true, stats })
    }
}

/// Appends the vector-Jacobian product of a graph: for each `(y, dy)` of `cotangents`, `dy` is
/// the gradient of some scalar with respect to `y`; the result holds the gradient of that scalar
/// with respect to each value of `wrt`, or `None` where no path leads there.
///
/// Nothing else about the graph changes: no loss, no updates, batch norm stays as it is. A
/// `MaxPool` on the way is re-added with its index output, so the *values* it defined get new
/// ids; the named outputs of the graph follow. The graph moves to [`Phase::Joint`].
///
/// # Errors
/// If an op on the way has no gradient, or a cotangent has another type than its value.
pub fn gradients(
    graph: &mut Graph,
    cotangents: &[(ValueId, ValueId)],
    wrt: &[ValueId],
) -> Result<Vec<Option<ValueId>>, PassError> {
    let replaced = prepare::pool_indices(graph, wrt)?;
    let follow = |v: ValueId| replaced.iter().find(|(old, _)| *old == v).map_or(v, |(_, new)| *new);
    let forward = graph.order().to_vec();
    let mut seeds = Vec::new();
    for &(y, dy) in cotangents {
        if graph.ty(y) != graph.ty(dy) {
            return Err(PassError::Unsupported(format!(
                "the cotangent of {y} is {}, but {y} is {}",
                graph.ty(dy),
                graph.ty(y)
            )));
        }
        seeds.push(Seed::Given { of: follow(y), cotangent: dy });
    }
    let wrt: Vec<ValueId> = wrt.iter().map(|&v| follow(v)).collect();
    let reads = saved::concat_reads(graph, &forward, &seeds, &wrt)?;
    let mut sweep = Sweep::new(graph, &wrt, reads);
    sweep.run(&forward, &seeds, |_, _, _| Ok(()))?;
    let result = wrt.iter().map(|&v| sweep.grad(v)).collect();
    graph.phase = graph.phase.max(Phase::Joint);
    Ok(result)
}

/// The parameters the optimizer moves, in the graph's order.
fn trainable(graph: &Graph) -> Vec<ValueId> {
    let is = |v: &ValueId| {
        graph.value(*v).def == Def::Param(ParamRole::Trainable) && graph.ty(*v).dtype == DType::F32
    };
    graph.params().iter().copied().filter(is).collect()
}

/// An ill-typed node is a bug of this pass; say which pass.
fn ill_typed(error: InferError) -> PassError {
    PassError::Infer { pass: PASS, error }
}

/// Puts `op` in the place of `old` in the program order, under its name, and moves every use of
/// `old`'s outputs to the outputs of the same index. Returns the new node.
fn replace_node(
    graph: &mut Graph,
    old: NodeId,
    op: Op,
    inputs: &[ValueId],
    n_outputs: usize,
) -> Result<NodeId, PassError> {
    let position = graph.order().iter().position(|&n| n == old).unwrap_or(graph.order().len());
    let node = graph.node(old);
    let spec = NodeSpec { name: node.name.clone(), stage: node.stage, origin: node.origin, n_outputs };
    let outputs = node.outputs.clone();
    let new = graph.insert(position, op, inputs, spec).map_err(ill_typed)?;
    let new_outputs = graph.node(new).outputs.clone();
    for (&from, &to) in outputs.iter().zip(&new_outputs) {
        let name = graph.value(from).name.clone();
        graph.set_name(to, name);
        graph.replace_all_uses(from, to);
    }
    graph.remove(old);
    Ok(new)
}

/// A tensor of one value.
fn fill(value: f32, dims: &Dims) -> Op {
    Op::Fill { value: Real(value), dims: dims.clone() }
}
