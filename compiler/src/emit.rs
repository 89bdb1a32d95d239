//! Graphviz form of a graph.

use std::fmt::Write;
use vdnn_ir::{Graph, Stage};

/// The graph as a `digraph`: boxes are nodes, edges are values with their types.
pub fn dot(graph: &Graph) -> String {
    let mut out = String::from("digraph {\n  rankdir=TB;\n  node [shape=box, fontsize=10];\n");
    let escape = |s: &str| s.replace('\\', "\\\\").replace('"', "\\\"");
    for (id, node) in graph.nodes() {
        let colour = match node.stage {
            Stage::Setup => "gray80",
            Stage::Forward => "lightblue",
            Stage::Backward => "lightsalmon",
            Stage::Update => "palegreen",
        };
        let colour = if node.op.is_transfer() { "gold" } else { colour };
        let _ = writeln!(
            out,
            "  {id} [label=\"{}\\n{}\", style=filled, fillcolor={colour}];",
            escape(&node.op.name()),
            escape(&node.name)
        );
        for &v in &node.inputs {
            if let Some(def) = graph.def_node(v) {
                let _ = writeln!(out, "  {def} -> {id} [label=\"{}\", fontsize=8];", graph.ty(v));
            }
        }
    }
    out.push_str("}\n");
    out
}
