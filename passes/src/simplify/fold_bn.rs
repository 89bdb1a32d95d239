//! Batch norm of inference becomes part of the weights before it.

use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::infer::InferError;
use vdnn_ir::op::{BinaryKind, UnaryKind};
use vdnn_ir::types::Dims;
use vdnn_ir::{Graph, Mode, NodeId, Op, Phase, Real, Stage, ValueId};

const PASS: &str = "fold-batch-norm";

/// Folds `BatchNormInfer` into the `Conv` or `Gemm` that alone feeds it, where weights and
/// statistics are static: `f = scale / sqrt(var + eps)`, `w' = w * f` per output channel and
/// `b' = (b - mean) * f + bias` (Jacob et al. 2018, section 3.2, without the quantisation). The
/// weight arithmetic is left in the graph as [`Stage::Setup`] nodes, in f32 and in this order,
/// so the mean cancels before it is scaled. Training graphs are left alone: their batch norm
/// reads batch statistics.
///
/// Counters: `folded`, `kept` (batch norms whose producer cannot take them).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FoldBatchNorm;

impl Pass for FoldBatchNorm {
    fn name(&self) -> &'static str {
        PASS
    }
    fn requires(&self) -> Phase {
        Phase::Simplified
    }
    fn produces(&self) -> Phase {
        Phase::Simplified
    }
    fn run(&self, graph: &mut Graph, _cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        let (mut folded, mut kept, mut marked) = (0, 0, 0);
        if graph.mode == Mode::Infer {
            // Weights that are themselves computed from parameters count as static too.
            marked = super::mark_setup::mark(graph);
            for id in graph.order().to_vec() {
                let node = graph.node(id);
                // One of static values only is computed when the weights are loaded anyway.
                if !matches!(node.op, Op::BatchNormInfer { .. }) || node.stage == Stage::Setup {
                    continue;
                }
                match candidate(graph, id) {
                    Some(producer) => {
                        fold(graph, id, producer).map_err(|error| PassError::Infer { pass: PASS, error })?;
                        folded += 1;
                    }
                    None => kept += 1,
                }
            }
        }
        let stats = Stats::from([("folded", folded), ("kept", kept)]);
        Ok(Outcome { changed: folded + marked > 0, stats })
    }
}

/// The node before batch norm `bn`, if it can take it: a convolution or matrix product that
/// feeds nothing else, with static weights, and static statistics.
fn candidate(graph: &Graph, bn: NodeId) -> Option<NodeId> {
    let node = graph.node(bn);
    let x = node.inputs[0];
    let producer = graph.def_node(x)?;
    let before = graph.node(producer);
    let takes = match before.op {
        Op::Conv(_) => true,
        // c must be one number per column, or it cannot absorb the bias.
        Op::Gemm { .. } => before.inputs.get(2).is_none_or(|&c| per_column(graph, c, graph.ty(x).dims[1])),
        _ => false,
    };
    let alone = graph.value(x).users() == [bn] && graph.outputs.iter().all(|o| o.value != x);
    let static_weights = before.inputs[1..].iter().all(|&v| graph.is_static(v));
    let static_statistics = node.inputs[1..].iter().all(|&v| graph.is_static(v));
    // Setup nodes are put before the producer, where the statistics must be known already.
    let known = |v: ValueId| match graph.def_node(v) {
        None => true,
        Some(def) => graph.order().iter().take_while(|&&n| n != producer).any(|&n| n == def),
    };
    let ready = node.inputs[1..].iter().all(|&v| known(v));
    (takes && alone && static_weights && static_statistics && ready).then_some(producer)
}

fn per_column(graph: &Graph, c: ValueId, columns: u64) -> bool {
    let dims = &graph.ty(c).dims;
    dims.last() == Some(&columns) && dims.iter().rev().skip(1).all(|&d| d == 1)
}

fn fold(graph: &mut Graph, bn: NodeId, producer: NodeId) -> Result<(), InferError> {
    let norm = graph.node(bn);
    let Op::BatchNormInfer { eps, .. } = norm.op else { unreachable!("a batch norm") };
    let [_, scale, bias, mean, var] = norm.inputs[..] else { unreachable!("inference checks the arity") };
    let (result, norm_name) = (norm.outputs[0], norm.name.clone());
    let before = graph.node(producer);
    let (mut op, inputs, name) = (before.op.clone(), before.inputs.clone(), before.name.clone());
    let channels = graph.ty(scale).dims.clone();

    let position = graph.order().iter().position(|&n| n == producer).unwrap_or(0);
    let mut setup = Setup { graph, position, name: format!("{norm_name}/fold") };
    let affine =
        |scale: f32, shift: f32| Op::Unary(UnaryKind::Affine { scale: Real(scale), shift: Real(shift) });
    let shifted = setup.add(affine(1.0, eps.0), &[var])?;
    let deviation = setup.add(Op::Unary(UnaryKind::Sqrt), &[shifted])?;
    let factor = setup.add(Op::Binary(BinaryKind::Div), &[scale, deviation])?;

    let w = inputs[1];
    let w_dims = setup.graph.ty(w).dims.clone();
    // The axis of w that holds the output channels.
    let axis = match &op {
        Op::Gemm { trans_b: false, .. } => 1,
        _ => 0,
    };
    let mut factor_dims: Dims = w_dims.iter().map(|_| 1).collect();
    factor_dims[axis] = channels[0];
    let column = setup.add(Op::Reshape { dims: factor_dims }, &[factor])?;
    let new_w = setup.add(Op::Binary(BinaryKind::Mul), &[w, column])?;

    let mut old_bias = inputs.get(2).copied();
    if let Op::Gemm { beta, .. } = &mut op {
        if let Some(c) = old_bias {
            let c = setup.reshape(c, &channels)?;
            let scaled = *beta != Real(1.0);
            old_bias = Some(if scaled { setup.add(affine(beta.0, 0.0), &[c])? } else { c });
        }
        *beta = Real(1.0);
    }
    let centred = match old_bias {
        Some(b) => setup.add(Op::Binary(BinaryKind::Sub), &[b, mean])?,
        None => setup.add(Op::Unary(UnaryKind::Neg), &[mean])?,
    };
    let scaled = setup.add(Op::Binary(BinaryKind::Mul), &[centred, factor])?;
    let new_bias = setup.add(Op::Binary(BinaryKind::Add), &[scaled, bias])?;

    let position = setup.position;
    let id = graph.insert(position, op, &[inputs[0], new_w, new_bias], NodeSpec::forward(name))?;
    let y = graph.node(id).outputs[0];
    let hint = graph.value(result).name.clone();
    graph.set_name(y, hint);
    graph.replace_all_uses(result, y);
    graph.remove(bn);
    graph.remove(producer);
    Ok(())
}

/// Inserts set-up nodes one after the other.
struct Setup<'g> {
    graph: &'g mut Graph,
    position: usize,
    name: String,
}

impl Setup<'_> {
    fn add(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId, InferError> {
        let spec = NodeSpec { name: self.name.clone(), stage: Stage::Setup, origin: None, n_outputs: 1 };
        let id = self.graph.insert(self.position, op, inputs, spec)?;
        self.position += 1;
        Ok(self.graph.node(id).outputs[0])
    }
    fn reshape(&mut self, v: ValueId, dims: &Dims) -> Result<ValueId, InferError> {
        if self.graph.ty(v).dims == *dims {
            return Ok(v);
        }
        self.add(Op::Reshape { dims: dims.clone() }, &[v])
    }
}
