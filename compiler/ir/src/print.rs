//! The text form of a graph, read back by [`crate::parse`].
//!
//! ```text
//! graph "net" phase=joint mode=train {
//!   input %0 "x" : f32[8,3,32,32]
//!   param %1 "w" trainable : f32[64,3,7,7]
//!   const %2 : f32[1] = 0x0000803f
//!   n0: %3 "hint" : f32[8,64,26,26] = conv(kernel:[7,7],...) (%0, %1) forward "conv1"
//!   output "logits" = %3
//!   update %1 = %40
//! }
//! ```
//!
//! The nodes stand in program order. After the node's name may follow `origin=n0`,
//! `algo=fft`, `workspace=4096` (bytes), `inplace=0:0,1:1` (output:input) and `packed`; after a type
//! `host`; after the mode `values=60 nodes=20`, the id bounds, if the largest ids are dead.
//! Literals are the little-endian bytes in hexadecimal. Values that nothing defines or
//! reads any more are not printed: their ids are gaps.

use crate::graph::{Def, Graph, Node, NodeId, Value, ValueId};
use crate::id::EntityId;
use crate::types::Space;
use crate::units::Bytes;
use std::fmt::{self, Write};

/// A string in double quotes; control characters, quotes and backslashes escaped.
pub(crate) struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                c if c.is_control() => write!(f, "\\u{{{:x}}}", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

/// A value with its optional name and its type, as where it is defined.
struct Typed<'a>(ValueId, &'a Value);

impl fmt::Display for Typed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        if !self.1.name.is_empty() {
            write!(f, " {}", Quoted(&self.1.name))?;
        }
        write!(f, " : {}", self.1.ty)?;
        if self.1.space == Space::Host {
            f.write_str(" host")?;
        }
        Ok(())
    }
}

/// One node as in the text form of its graph.
pub(crate) struct NodeLine<'a>(pub &'a Graph, pub NodeId, pub &'a Node);

impl fmt::Display for NodeLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(graph, id, node) = *self;
        write!(f, "{id}: ")?;
        for (i, &v) in node.outputs.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            if v.index() < graph.value_bound() {
                write!(f, "{comma}{}", Typed(v, graph.value(v)))?;
            } else {
                write!(f, "{comma}{v}")?;
            }
        }
        write!(f, " = {} (", node.op)?;
        for (i, v) in node.inputs.iter().enumerate() {
            write!(f, "{}{v}", if i > 0 { ", " } else { "" })?;
        }
        write!(f, ") {} {}", node.stage, Quoted(&node.name))?;
        if let Some(origin) = node.origin {
            write!(f, " origin={origin}")?;
        }
        if let Some(algo) = &node.algo {
            write!(f, " algo={algo}")?;
        }
        if node.workspace != Bytes::ZERO {
            write!(f, " workspace={}", node.workspace.0)?;
        }
        for (i, (output, input)) in node.inplace.iter().enumerate() {
            write!(f, "{}{output}:{input}", if i > 0 { "," } else { " inplace=" })?;
        }
        if node.packed {
            f.write_str(" packed")?;
        }
        Ok(())
    }
}

/// Marks the literals that something reads.
fn live_consts(graph: &Graph) -> Vec<bool> {
    let mut live: Vec<bool> = graph.value_ids().map(|v| !graph.value(v).users().is_empty()).collect();
    let named = graph.outputs.iter().map(|o| o.value).chain(graph.updates.iter().map(|u| u.value));
    for v in named {
        if let Some(l) = live.get_mut(v.index()) {
            *l = true;
        }
    }
    live
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let live = live_consts(self);
        let is_const = |v: &ValueId| matches!(self.value(*v).def, Def::Const(_)) && live[v.index()];
        let consts: Vec<ValueId> = self.value_ids().filter(is_const).collect();
        let results = self.nodes().flat_map(|(_, n)| n.outputs.iter());
        let values = self.inputs().iter().chain(self.params()).chain(&consts).chain(results);
        let value_bound = values.map(|v| v.index() + 1).max().unwrap_or(0);
        let node_bound = self.order().iter().map(|n| n.index() + 1).max().unwrap_or(0);

        write!(f, "graph {} phase={} mode={}", Quoted(&self.name), self.phase, self.mode)?;
        if value_bound < self.value_bound() {
            write!(f, " values={}", self.value_bound())?;
        }
        if node_bound < self.node_bound() {
            write!(f, " nodes={}", self.node_bound())?;
        }
        f.write_str(" {\n")?;
        for &v in self.inputs() {
            let value = self.value(v);
            writeln!(f, "  input {v} {} : {}", Quoted(&value.name), value.ty)?;
        }
        for &v in self.params() {
            let value = self.value(v);
            let Def::Param(role) = value.def else { continue };
            writeln!(f, "  param {v} {} {role} : {}", Quoted(&value.name), value.ty)?;
        }
        for v in consts {
            let value = self.value(v);
            let Def::Const(bytes) = &value.def else { continue };
            write!(f, "  const {} = 0x", Typed(v, value))?;
            for b in bytes.iter() {
                write!(f, "{b:02x}")?;
            }
            f.write_char('\n')?;
        }
        for (id, node) in self.nodes() {
            writeln!(f, "  {}", NodeLine(self, id, node))?;
        }
        for output in &self.outputs {
            writeln!(f, "  output {} = {}", Quoted(&output.name), output.value)?;
        }
        for update in &self.updates {
            writeln!(f, "  update {} = {}", update.param, update.value)?;
        }
        f.write_str("}\n")
    }
}
