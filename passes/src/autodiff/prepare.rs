//! The forward half of the training step: loss, batch statistics, dropout, pool indices.

use super::{HYPER, LABELS, STEP, ill_typed, replace_node, sweep::needed};
use crate::pass::{PassError, Stats};
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::LossReduction;
use vdnn_ir::types::Dims;
use vdnn_ir::{DType, Def, Graph, NodeId, Op, Output, TensorType, ValueId};

/// Makes the graph compute the loss in training mode and nothing else. Returns the loss.
pub(super) fn training_forward(graph: &mut Graph, stats: &mut Stats) -> Result<ValueId, PassError> {
    let Some(first) = graph.outputs.first().cloned() else {
        return Err(PassError::Unsupported("the model has no output to train on".into()));
    };
    stats.insert("dropped_outputs", graph.outputs.len() as u64 - 1);
    let own_loss = matches!(graph.def_node(first.value).map(|n| &graph.node(n).op),
        Some(Op::SoftmaxCrossEntropy { reduction, .. } | Op::NegativeLogLikelihood { reduction, .. })
            if *reduction != LossReduction::None);
    let logits = if own_loss { first.value } else { drop_softmax(graph, first.value, stats)? };
    // Name the kept part before pruning, so nothing it needs goes.
    graph.outputs = vec![Output { name: first.name.clone(), value: logits }];
    graph.remove_dead_nodes();
    graph.remove_dead_params();

    free_names(graph)?;
    batch_statistics(graph)?;
    activate_dropout(graph)?;
    // Batch norm conversion re-adds nodes, so read the value back from the output.
    let value = graph.outputs[0].value;
    if own_loss { adopt_loss(graph, value) } else { add_loss(graph, value, &first.name) }
}

/// Walks from the model's output through Reshapes to a final Softmax or LogSoftmax; if there is
/// one, its input is the logits, with the class axis moved to 1.
fn drop_softmax(graph: &mut Graph, output: ValueId, stats: &mut Stats) -> Result<ValueId, PassError> {
    let mut at = output;
    let found = loop {
        let Some(def) = graph.def_node(at) else { break None };
        let node = graph.node(def);
        match node.op {
            Op::Reshape { .. } => at = node.inputs[0],
            Op::Softmax { axis } | Op::LogSoftmax { axis } => break Some((def, node.inputs[0], axis)),
            _ => break None,
        }
    };
    stats.insert("dropped_softmax", u64::from(found.is_some()));
    let Some((node, x, axis)) = found else { return Ok(output) };
    let rank = graph.ty(x).rank();
    match axis {
        1 => Ok(x),
        0 => Err(PassError::Unsupported(format!(
            "the final softmax `{}` runs over axis 0, the batch; training needs classes on another axis",
            graph.node(node).name
        ))),
        _ => {
            let mut perm: Dims = (0..rank as u64).filter(|&i| i != axis).collect();
            perm.insert(1, axis);
            let name = format!("{}/classes_first", graph.node(node).name);
            let position = graph.order().iter().position(|&n| n == node).unwrap_or(0);
            let id = graph
                .insert(position, Op::Transpose { perm }, &[x], NodeSpec::forward(name))
                .map_err(ill_typed)?;
            Ok(graph.node(id).outputs[0])
        }
    }
}

/// Appends mean softmax cross-entropy of `logits` against a new input of class indices.
fn add_loss(graph: &mut Graph, logits: ValueId, output_name: &str) -> Result<ValueId, PassError> {
    let ty = graph.ty(logits).clone();
    if ty.dtype != DType::F32 || ty.rank() < 2 {
        return Err(PassError::Unsupported(format!(
            "cannot train on output `{output_name}` of type {ty}: the loss needs f32 logits [batch, classes, ..]"
        )));
    }
    if graph.inputs().iter().any(|&v| graph.value(v).name == LABELS) {
        return Err(taken(LABELS));
    }
    // [N,K,1,1] is the output of a fully convolutional classifier: the labels are still [N].
    let logits = if ty.rank() > 2 && ty.dims[2..].iter().all(|&d| d == 1) {
        let dims: Dims = ty.dims[..2].into();
        graph.add1(Op::Reshape { dims }, &[logits], NodeSpec::forward("loss/logits")).map_err(ill_typed)?
    } else {
        logits
    };
    let ty = graph.ty(logits);
    let label_dims: Dims = ty.dims[..1].iter().chain(&ty.dims[2..]).copied().collect();
    let labels = graph.add_input(LABELS, TensorType::new(DType::I64, label_dims));
    let op = Op::SoftmaxCrossEntropy { reduction: LossReduction::Mean, ignore_index: None };
    let node = graph.add(op, &[logits, labels], NodeSpec::forward("loss").outputs(2)).map_err(ill_typed)?;
    Ok(graph.node(node).outputs[0])
}

/// A name of the training step that the model uses for something else.
fn taken(name: &str) -> PassError {
    PassError::Unsupported(format!(
        "the model itself uses the name `{name}`, which training needs; rename it"
    ))
}

/// Refuses models whose parameters have names that the training step gives.
fn free_names(graph: &Graph) -> Result<(), PassError> {
    let clash = |name: &str| name == LABELS || name == HYPER || name == STEP || name.starts_with("momentum:");
    match graph.params().iter().map(|&v| &graph.value(v).name).find(|n| clash(n)) {
        Some(name) => Err(taken(name)),
        None => Ok(()),
    }
}

/// The model computes its own scalar loss: keep it, and call its labels by the usual name.
fn adopt_loss(graph: &mut Graph, loss: ValueId) -> Result<ValueId, PassError> {
    let def =
        graph.def_node(loss).ok_or_else(|| PassError::Unsupported("the loss is not computed".into()))?;
    let node = graph.node(def);
    let labels = node.inputs[1];
    if graph.inputs().iter().any(|&v| v != labels && graph.value(v).name == LABELS) {
        return Err(taken(LABELS));
    }
    if graph.value(labels).def != Def::Input {
        return Err(PassError::Unsupported(format!(
            "the labels of the loss `{}` are not an input of the model, so no batch can be bound to them",
            node.name
        )));
    }
    graph.set_name(labels, LABELS);
    Ok(loss)
}

/// Training normalises by the statistics of the batch.
fn batch_statistics(graph: &mut Graph) -> Result<(), PassError> {
    for id in graph.order().to_vec() {
        let node = graph.node(id);
        let inputs = node.inputs.clone();
        if let Op::BatchNormInfer { eps, momentum } = node.op {
            replace_node(graph, id, Op::BatchNormTrain { eps, momentum }, &inputs, 5)?;
        }
    }
    Ok(())
}

/// Every dropout draws its mask from the step number the caller binds.
fn activate_dropout(graph: &mut Graph) -> Result<(), PassError> {
    let is_active = |op: &Op| matches!(op, Op::Dropout { ratio, .. } if ratio.0 > 0.0);
    let active: Vec<NodeId> = graph.nodes().filter(|(_, n)| is_active(&n.op)).map(|(id, _)| id).collect();
    if active.is_empty() {
        return Ok(());
    }
    let named = graph.inputs().iter().copied().find(|&v| graph.value(v).name == STEP);
    let step = named.unwrap_or_else(|| graph.add_input(STEP, TensorType::new(DType::I64, [])));
    for id in active {
        let x = graph.node(id).inputs[0];
        graph.set_inputs(id, &[x, step]);
    }
    Ok(())
}

/// Re-adds every MaxPool whose input needs a gradient with its index output, which is all its
/// gradient reads. Returns the replaced values, old and new.
pub(super) fn pool_indices(graph: &mut Graph, wrt: &[ValueId]) -> Result<Vec<(ValueId, ValueId)>, PassError> {
    use vdnn_ir::id::EntityId;
    let needs = needed(graph, wrt);
    let mut replaced = Vec::new();
    for id in graph.order().to_vec() {
        let node = graph.node(id);
        if matches!(node.op, Op::MaxPool(_)) && node.outputs.len() == 1 && needs[node.outputs[0].index()] {
            let (op, inputs, old) = (node.op.clone(), node.inputs.clone(), node.outputs[0]);
            let new = replace_node(graph, id, op, &inputs, 2)?;
            replaced.push((old, graph.node(new).outputs[0]));
        }
    }
    Ok(replaced)
}
