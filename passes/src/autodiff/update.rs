//! What the parameters hold when the step ends.

use super::ill_typed;
use crate::pass::{PassError, Stats};
use vdnn_ir::graph::{NodeSpec, Update};
use vdnn_ir::{Def, Graph, NodeId, Op, ParamRole, Stage, ValueId};

/// Appends the SGD step of `param`, whose last reader is the forward node `reader`, and binds
/// the new weight and momentum.
pub(super) fn sgd(
    graph: &mut Graph,
    param: ValueId,
    gradient: ValueId,
    hyper: ValueId,
    reader: NodeId,
) -> Result<(), PassError> {
    let momentum_name = format!("momentum:{}", graph.value(param).name);
    let ty = graph.ty(param).clone();
    let momentum = graph.add_param(momentum_name, ty, ParamRole::Momentum);
    let spec = NodeSpec {
        name: format!("{}/update", graph.node(reader).name),
        stage: Stage::Update,
        origin: Some(reader),
        n_outputs: 2,
    };
    let node = graph.add(Op::SgdUpdate, &[param, momentum, gradient, hyper], spec).map_err(ill_typed)?;
    let outputs = graph.node(node).outputs.clone();
    graph.updates.push(Update { param, value: outputs[0] });
    graph.updates.push(Update { param: momentum, value: outputs[1] });
    Ok(())
}

/// Binds the running statistics of every training batch norm.
///
/// A statistic can take one new value per step. If several nodes read it, only the last of them
/// in program order may write it, and only if that is a batch norm using it as one statistic;
/// a statistic that is no parameter (a constant) has nowhere to be written. Those stay as they
/// are and are counted in `unbound_statistics`: training uses batch statistics all the same.
pub(super) fn statistics(graph: &mut Graph, stats: &mut Stats) {
    let mut bindings = Vec::new();
    let (mut norms, mut unbound) = (0, 0);
    let positions = graph.positions();
    for (id, node) in graph.nodes() {
        if !matches!(node.op, Op::BatchNormTrain { .. }) {
            continue;
        }
        norms += 1;
        for (operand, result) in [(3, 1), (4, 2)] {
            let value = graph.value(node.inputs[operand]);
            let uses = node.inputs.iter().filter(|&&v| v == node.inputs[operand]).count();
            let last = value.users().iter().max_by_key(|u| positions[u.0 as usize]);
            if value.def == Def::Param(ParamRole::Statistic) && uses == 1 && last == Some(&id) {
                bindings.push(Update { param: node.inputs[operand], value: node.outputs[result] });
            } else {
                unbound += 1;
            }
        }
    }
    graph.updates.extend(bindings);
    stats.insert("batch_norms", norms);
    stats.insert("unbound_statistics", unbound);
}
