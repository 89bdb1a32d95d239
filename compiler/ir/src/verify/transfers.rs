//! Offload and prefetch pairs, and which values live on the host.

use super::Checker;
use crate::graph::{Node, NodeId, ValueId};
use crate::op::Op;
use crate::packed;
use crate::types::Space;

pub(super) fn check(cx: &mut Checker<'_>) {
    let graph = cx.graph;
    for (id, node) in graph.nodes() {
        let space = match node.op {
            Op::OffloadStart | Op::OffloadDone => Space::Host,
            _ => Space::Device,
        };
        for (i, &v) in node.outputs.iter().enumerate() {
            if graph.value(v).space != space {
                let wrong = if space == Space::Host { "device" } else { "host" };
                cx.fail_node(id, node, &format!("output {i} is on the {wrong}"));
            }
        }
        let can = |v: &ValueId| packed::can_pack(&graph.value(*v).ty);
        if node.packed && !(node.op == Op::OffloadStart && node.inputs.first().is_some_and(can)) {
            cx.fail_node(id, node, "packed, which only an offload of floating-point numbers can be");
        }
        for (i, &v) in node.inputs.iter().enumerate() {
            let host = match node.op {
                Op::OffloadDone | Op::PrefetchStart => i == 0,
                Op::PrefetchDone => i == 1,
                _ => false,
            };
            if (graph.value(v).space == Space::Host) != host {
                let want = if host { "host" } else { "device" };
                let what = format!("operand {i}, {}, must be on the {want}", cx.show(v));
                cx.fail_node(id, node, &what);
            }
        }
        match node.op {
            Op::OffloadStart => start(cx, id, node, &Op::OffloadDone),
            Op::PrefetchStart => {
                start(cx, id, node, &Op::PrefetchDone);
                if defining(cx, node.inputs.first()).is_none_or(|(_, n)| n.op != Op::OffloadDone) {
                    cx.fail_node(id, node, "a prefetch must read the result of an offload_done");
                }
            }
            Op::OffloadDone => done(cx, id, node, &Op::OffloadStart),
            Op::PrefetchDone => done(cx, id, node, &Op::PrefetchStart),
            _ => {}
        }
    }
    for output in &graph.outputs {
        if graph.value(output.value).space == Space::Host {
            let what = format!("output {}: {} is on the host", output.name, cx.show(output.value));
            cx.fail(what);
        }
    }
    for update in &graph.updates {
        if graph.value(update.value).space == Space::Host {
            let what = format!("update {} = {}: on the host", cx.show(update.param), cx.show(update.value));
            cx.fail(what);
        }
    }
}

fn defining<'a>(cx: &Checker<'a>, v: Option<&ValueId>) -> Option<(NodeId, &'a Node)> {
    let id = cx.graph.def_node(*v?)?;
    Some((id, cx.graph.node(id)))
}

/// The result of a start is read by its one done, as the first operand, and by nothing else.
fn start(cx: &mut Checker<'_>, id: NodeId, node: &Node, done: &Op) {
    let graph = cx.graph;
    let Some(&result) = node.outputs.first() else { return };
    let users = graph.value(result).users();
    let is_done = |&u: &NodeId| graph.node(u).op == *done && graph.node(u).inputs.first() == Some(&result);
    if users.len() != 1 || !users.iter().all(is_done) {
        let what =
            format!("exactly one {} must read its result, and nothing else; read by {users:?}", done.name());
        cx.fail_node(id, node, &what);
    }
}

/// A done reads the result of its start and then what the start read.
fn done(cx: &mut Checker<'_>, id: NodeId, node: &Node, start: &Op) {
    match defining(cx, node.inputs.first()) {
        Some((_, s)) if s.op == *start => {
            if s.inputs.first() != node.inputs.get(1) {
                cx.fail_node(id, node, &format!("operand 1 is not what its {} read", start.name()));
            }
        }
        _ => cx.fail_node(id, node, &format!("operand 0 is not the result of a {}", start.name())),
    }
}
