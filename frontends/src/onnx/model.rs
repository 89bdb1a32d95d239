//! From bytes to a checked `ModelProto`, and the order its nodes can be imported in.

use super::error::ImportError;
use super::node::{display_name, domain_name};
use super::prescan;
use super::proto::{GraphProto, ModelProto, NodeProto};
use super::sparse;
use bytes::Bytes as Buf;
use prost::Message;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use vdnn_ir::Bytes;

/// Oldest version of the default operator set that is understood.
pub const MIN_OPSET: i64 = 6;
/// Newest version of the default operator set that is understood (ONNX 1.23).
pub const MAX_OPSET: i64 = 28;
/// Newest version of the file format that is understood (ONNX 1.23).
pub const MAX_IR_VERSION: i64 = 14;

/// A decoded model whose versions are understood.
#[derive(Debug)]
pub(super) struct Model {
    pub proto: ModelProto,
    /// Imported version per domain; the default domain is `ai.onnx`.
    pub opsets: BTreeMap<String, i64>,
    /// Domain and name of every function that the model defines.
    pub functions: HashSet<(String, String)>,
}

impl Model {
    /// Decodes a model; tensors stay slices of `bytes`.
    pub(super) fn decode(bytes: Buf) -> Result<Self, ImportError> {
        let format = |text: String| ImportError::Format(text);
        if bytes.is_empty() {
            return Err(format("the file is empty".into()));
        }
        if !prescan::is_affordable(&bytes) {
            return Err(format(format!(
                "decoding its {} would take more than {}",
                Bytes(bytes.len() as u64),
                prescan::limit(bytes.len())
            )));
        }
        let proto = ModelProto::decode(bytes)
            .map_err(|e| format(format!("it is not a complete protobuf message ({e})")))?;
        Self::check(proto)
    }

    /// Checks the versions of a decoded model.
    pub(super) fn check(proto: ModelProto) -> Result<Self, ImportError> {
        let format = |text: String| ImportError::Format(text);
        let version = proto.ir_version.unwrap_or(0);
        if proto.graph.is_none() || version < 1 {
            return Err(format("it holds no graph or no format version".into()));
        }
        if version > MAX_IR_VERSION {
            return Err(format(format!(
                "its format (IR) version {version} is newer than {MAX_IR_VERSION}, the newest understood"
            )));
        }
        let mut opsets = BTreeMap::new();
        for import in &proto.opset_import {
            let previous = opsets.insert(domain_name(import.domain()).to_owned(), import.version());
            if previous.is_some_and(|p| p != import.version()) {
                return Err(format(format!(
                    "it imports two versions of the operator set {}",
                    domain_name(import.domain())
                )));
            }
        }
        match opsets.get("ai.onnx") {
            Some(MIN_OPSET..=MAX_OPSET) => {}
            Some(v) => {
                return Err(format(format!(
                    "it uses opset {v}; opsets {MIN_OPSET} to {MAX_OPSET} are understood; \
                     convert the model with onnx.version_converter"
                )));
            }
            // Fine if only operators of other domains are used.
            None if proto
                .graph
                .iter()
                .flat_map(|g| &g.node)
                .all(|n| domain_name(n.domain()) != "ai.onnx") => {}
            None => return Err(format("it does not say which version of the ONNX operators it uses".into())),
        }
        let functions = proto
            .functions
            .iter()
            .map(|f| (domain_name(f.domain()).to_owned(), f.name().to_owned()))
            .collect();
        Ok(Self { proto, opsets, functions })
    }
}

/// Every name that a node reads: its operands and whatever its subgraphs mention.
///
/// Recursion is as deep as subgraphs nest, which the protobuf decoder bounds.
fn mentions<'m>(node: &'m NodeProto, out: &mut Vec<&'m str>) {
    out.extend(node.input.iter().map(String::as_str).filter(|n| !n.is_empty()));
    for a in &node.attribute {
        for graph in a.g.iter().chain(&a.graphs) {
            graph_mentions(graph, out);
        }
    }
}

fn graph_mentions<'m>(graph: &'m GraphProto, out: &mut Vec<&'m str>) {
    out.extend(graph.output.iter().map(|o| o.name()));
    for node in &graph.node {
        mentions(node, out);
    }
}

/// The nodes of one graph that its outputs need.
#[derive(Debug)]
pub(super) struct Body<'m> {
    /// Needed nodes, definitions before uses; in file order wherever that allows it.
    pub order: Vec<&'m NodeProto>,
    /// Names that something needed reads, graph outputs included.
    pub read: HashSet<&'m str>,
}

/// Checks that names are defined once and sorts the needed nodes.
pub(super) fn analyse(graph: &GraphProto) -> Result<Body<'_>, ImportError> {
    // An empty name stands for an operand that is left out, so nothing can be called so.
    let inputs = graph.input.iter().map(|i| ("input", i.name()));
    let outputs = graph.output.iter().map(|o| ("output", o.name()));
    let initializers = sparse::initializer_names(graph).map(|name| ("initializer", name));
    if let Some((what, _)) = inputs.chain(outputs).chain(initializers).find(|(_, name)| name.is_empty()) {
        return Err(ImportError::Graph(format!("an {what} has no name")));
    }
    let mut defined: HashMap<&str, Option<usize>> = HashMap::new();
    for input in &graph.input {
        if defined.insert(input.name(), None).is_some() {
            return Err(ImportError::Graph(format!("two inputs are named `{}`", input.name())));
        }
    }
    let mut initializers = HashSet::new();
    for name in sparse::initializer_names(graph) {
        // An initializer of the same name gives an input its default value.
        if !initializers.insert(name) {
            return Err(ImportError::Graph(format!("two initializers are named `{name}`")));
        }
        defined.insert(name, None);
    }
    for (i, node) in graph.node.iter().enumerate() {
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            if defined.insert(output, Some(i)).is_some() {
                return Err(ImportError::Graph(format!(
                    "`{output}` is defined twice, the second time by node `{}`",
                    display_name(node)
                )));
            }
        }
    }

    let mut outputs = HashSet::new();
    if let Some(twice) = graph.output.iter().find(|o| !outputs.insert(o.name())) {
        return Err(ImportError::Graph(format!("two outputs are named `{}`", twice.name())));
    }

    let producers = |names: &[&str]| -> Vec<usize> {
        let mut found: Vec<usize> = names.iter().filter_map(|n| defined.get(n).copied().flatten()).collect();
        found.sort_unstable();
        found.dedup();
        found
    };
    let mut read: HashSet<&str> = graph.output.iter().map(|o| o.name()).collect();
    let mut operands: Vec<Option<Vec<usize>>> = vec![None; graph.node.len()];
    let mut pending = producers(&graph.output.iter().map(|o| o.name()).collect::<Vec<_>>());
    while let Some(i) = pending.pop() {
        if operands[i].is_some() {
            continue;
        }
        let mut names = Vec::new();
        mentions(&graph.node[i], &mut names);
        let from = producers(&names);
        read.extend(names);
        pending.extend(&from);
        operands[i] = Some(from);
    }
    Ok(Body { order: sort(&graph.node, &operands)?, read })
}

/// Kahn's algorithm, always taking the ready node that comes first in the file.
fn sort<'m>(
    nodes: &'m [NodeProto],
    operands: &[Option<Vec<usize>>],
) -> Result<Vec<&'m NodeProto>, ImportError> {
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    let mut waiting = vec![0usize; nodes.len()];
    let mut ready = BinaryHeap::new();
    for (i, from) in operands.iter().enumerate() {
        let Some(from) = from else { continue };
        waiting[i] = from.len();
        from.iter().for_each(|&p| users[p].push(i));
        if from.is_empty() {
            ready.push(Reverse(i));
        }
    }
    let mut order = Vec::new();
    while let Some(Reverse(i)) = ready.pop() {
        order.push(&nodes[i]);
        for &user in &users[i] {
            waiting[user] -= 1;
            if waiting[user] == 0 {
                ready.push(Reverse(user));
            }
        }
    }
    // Walking from an unsorted node to unsorted operands must run into the cycle.
    let Some(mut at) = (0..nodes.len()).find(|&i| waiting[i] > 0) else { return Ok(order) };
    let mut visited = vec![false; nodes.len()];
    while !std::mem::replace(&mut visited[at], true) {
        let next = operands[at].iter().flatten().copied().find(|&p| waiting[p] > 0);
        at = next.unwrap_or(at);
    }
    Err(ImportError::Cycle { node: display_name(&nodes[at]).to_owned() })
}

#[cfg(test)]
mod tests {
    use super::super::proto::{OperatorSetIdProto, ValueInfoProto};
    use super::*;

    fn node(inputs: &[&str], output: &str) -> NodeProto {
        NodeProto {
            input: inputs.iter().map(|&s| s.to_owned()).collect(),
            output: vec![output.to_owned()],
            op_type: Some("Add".into()),
            ..Default::default()
        }
    }
    fn graph(nodes: Vec<NodeProto>, output: &str) -> GraphProto {
        let named = |n: &str| ValueInfoProto { name: Some(n.into()), ..Default::default() };
        GraphProto { node: nodes, input: vec![named("x")], output: vec![named(output)], ..Default::default() }
    }
    fn order(g: &GraphProto) -> Vec<&str> {
        analyse(g).unwrap().order.iter().map(|n| display_name(n)).collect()
    }

    #[test]
    fn nodes_come_after_their_operands_and_dead_ones_not_at_all() {
        let g =
            graph(vec![node(&["b", "x"], "c"), node(&["x"], "a"), node(&["a"], "b"), node(&["x"], "z")], "c");
        assert_eq!(order(&g), ["a", "b", "c"]);
    }

    #[test]
    fn a_cycle_is_named_by_a_node_on_it() {
        let g = graph(vec![node(&["c"], "b"), node(&["b"], "c"), node(&["c"], "d")], "d");
        let error = analyse(&g).unwrap_err();
        assert!(matches!(&error, ImportError::Cycle { node } if node == "b" || node == "c"), "{error}");
        let g = graph(vec![node(&["a"], "a")], "a");
        assert_eq!(analyse(&g).unwrap_err(), ImportError::Cycle { node: "a".into() });
    }

    #[test]
    fn a_name_is_defined_once() {
        let g = graph(vec![node(&["x"], "a"), node(&["x"], "a")], "a");
        assert!(analyse(&g).unwrap_err().to_string().contains("`a` is defined twice"));
        let g = graph(vec![node(&["a"], "x")], "x");
        assert!(analyse(&g).unwrap_err().to_string().contains("`x` is defined twice"));
    }

    #[test]
    fn versions_outside_the_range_are_refused() {
        let model = |ir: i64, opset: i64| {
            let m = ModelProto {
                ir_version: Some(ir),
                graph: Some(graph(vec![], "x")),
                opset_import: vec![OperatorSetIdProto { domain: None, version: Some(opset) }],
                ..Default::default()
            };
            Model::decode(m.encode_to_vec().into()).map(|_| ()).map_err(|e| e.to_string())
        };
        assert_eq!(model(3, MIN_OPSET), Ok(()));
        assert_eq!(model(MAX_IR_VERSION, MAX_OPSET), Ok(()));
        assert!(model(8, 5).unwrap_err().contains("opsets 6 to 28"));
        assert!(model(8, 29).unwrap_err().contains("opset 29"));
        assert!(model(15, 17).unwrap_err().contains("version 15 is newer"));
        assert!(Model::decode(Buf::from_static(b"hello, world")).is_err());
        assert!(Model::decode(Buf::new()).is_err());
    }
}
