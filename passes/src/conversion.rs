//! Nodes that convert a value for some of its readers: to another layout or element type.

use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::infer::InferError;
use vdnn_ir::{Graph, NodeId, Op, Stage, ValueId};

fn position(graph: &Graph, node: NodeId) -> usize {
    graph.order().iter().position(|&n| n == node).expect("a live node")
}

/// Where the conversion of `v` for `reader` goes: in front of it, or, for what never changes and
/// is converted once at load (`setup`), behind what makes it.
pub(crate) fn place(graph: &Graph, v: ValueId, reader: NodeId, setup: bool) -> usize {
    if setup { graph.def_node(v).map_or(0, |def| position(graph, def) + 1) } else { position(graph, reader) }
}

/// Inserts the conversion `op` of `v`, named after `v` and `what`; returns the result.
///
/// # Errors
/// If the op does not take such a value.
pub(crate) fn insert(
    graph: &mut Graph,
    op: Op,
    what: &str,
    v: ValueId,
    at: usize,
    setup: bool,
) -> Result<ValueId, InferError> {
    let def = graph.def_node(v).map(|d| graph.node(d));
    let name = match def {
        Some(node) => format!("{}/{what}", node.name),
        None => format!("{}/{what}", graph.value(v).name),
    };
    let reader = graph.order().get(at).map(|&n| graph.node(n));
    let stage = match (setup, def, reader) {
        (true, ..) => Stage::Setup,
        (_, Some(node), _) => node.stage,
        (_, None, Some(node)) => node.stage,
        (_, None, None) => Stage::Forward,
    };
    let origin = def.and_then(|node| node.origin);
    let spec = NodeSpec { name, stage, origin, n_outputs: 1 };
    let node = graph.insert(at, op, &[v], spec)?;
    Ok(graph.node(node).outputs[0])
}
