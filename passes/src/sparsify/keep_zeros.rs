//! Weights that are zero stay zero in training.

use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use smallvec::SmallVec;
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::infer::InferError;
use vdnn_ir::op::{BinaryKind, UnaryKind};
use vdnn_ir::{Graph, Mode, Op, Phase, Stage, ValueId};

const PASS: &str = "keep-zeros";

/// Puts the gradient of every weight of rank 2 or more through a gate that the weight itself
/// opens: `g' = |w| > 0 ? g : 0`. Momentum starts at zero and decay of zero is zero, so a weight
/// that is zero when training begins is zero when it ends: the mask of a pruned network (Han et
/// al., NeurIPS 2015, section 3) without a tensor to hold it. Gradients that are outputs stay whole.
///
/// Counter: `masked` weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeepZeros;

impl Pass for KeepZeros {
    fn name(&self) -> &'static str {
        PASS
    }
    fn requires(&self) -> Phase {
        Phase::Joint
    }
    fn produces(&self) -> Phase {
        Phase::Joint
    }
    fn run(&self, graph: &mut Graph, _cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        let mut masked = 0;
        if graph.mode == Mode::Train {
            for id in graph.order().to_vec() {
                let node = graph.node(id);
                if node.op != Op::SgdUpdate || node.inputs.len() != 4 {
                    continue;
                }
                let (w, gradient) = (node.inputs[0], node.inputs[2]);
                if graph.ty(w).rank() < 2 {
                    continue;
                }
                let gated =
                    gate(graph, id, w, gradient).map_err(|error| PassError::Infer { pass: PASS, error })?;
                let inputs: SmallVec<[ValueId; 4]> = graph
                    .node(id)
                    .inputs
                    .iter()
                    .enumerate()
                    .map(|(i, &v)| if i == 2 { gated } else { v })
                    .collect();
                graph.set_inputs(id, &inputs);
                masked += 1;
            }
        }
        Ok(Outcome { changed: masked > 0, stats: Stats::from([("masked", masked)]) })
    }
}

fn gate(
    graph: &mut Graph,
    id: vdnn_ir::NodeId,
    w: ValueId,
    gradient: ValueId,
) -> Result<ValueId, InferError> {
    let node = graph.node(id);
    let (name, origin) = (format!("{}/mask", node.name), node.origin);
    let mut position = graph.order().iter().position(|&n| n == id).unwrap_or(0);
    let mut add = |op: Op, inputs: &[ValueId]| {
        let spec = NodeSpec { name: name.clone(), stage: Stage::Update, origin, n_outputs: 1 };
        let new = graph.insert(position, op, inputs, spec)?;
        position += 1;
        Ok::<ValueId, InferError>(graph.node(new).outputs[0])
    };
    let size = add(Op::Unary(UnaryKind::Abs), &[w])?;
    add(Op::Binary(BinaryKind::Gate), &[gradient, size])
}
