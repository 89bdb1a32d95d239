//! The terms a plan must produce, computed from the graph alone.

use crate::memory::storage::persistent_values;
use std::collections::BTreeMap;
use vdnn_ir::TensorType;
use vdnn_ir::graph::{Def, Graph, Stage, ValueId};
use vdnn_ir::id::EntityId;
use vdnn_plan::Sig;

/// What outputs and parameters must hold when the step ends. Computed before offloading,
/// scheduling and layout, so that none of them can make its own mistake the expectation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpectedTerms {
    /// Output name to term.
    pub outputs: BTreeMap<String, Sig>,
    /// Parameter name (as in the plan) to term.
    pub params: BTreeMap<String, Sig>,
}

/// The plan's names of persistent values: a parameter's own, and unique made-up names for
/// literals (`const:%id`) and setup results (`setup:%id`).
#[derive(Clone, Debug)]
pub(super) struct PersistentNames {
    names: BTreeMap<ValueId, String>,
}

impl PersistentNames {
    pub(super) fn new(graph: &Graph) -> Self {
        // An external name may look like a made-up one; then more apostrophes tell them apart.
        let mut mark = String::new();
        while graph.params().iter().any(|&p| {
            let name = &graph.value(p).name;
            name.starts_with(&format!("const{mark}:")) || name.starts_with(&format!("setup{mark}:"))
        }) {
            mark.push('\'');
        }
        let name = |v: ValueId| match &graph.value(v).def {
            Def::Const(_) => format!("const{mark}:{v}"),
            Def::Node { .. } => format!("setup{mark}:{v}"),
            Def::Param(_) | Def::Input => graph.value(v).name.clone(),
        };
        Self { names: persistent_values(graph).into_iter().map(|v| (v, name(v))).collect() }
    }
    pub(super) fn get(&self, v: ValueId) -> Option<&str> {
        self.names.get(&v).map(String::as_str)
    }
    pub(super) fn iter(&self) -> impl Iterator<Item = (ValueId, &str)> {
        self.names.iter().map(|(&v, n)| (v, n.as_str()))
    }
}

/// The terms of a graph's outputs and of all its persistent values. Ops that move no data
/// ([`vdnn_ir::Op::views`]) and transfers keep their operand's term.
pub fn expected_terms(graph: &Graph) -> ExpectedTerms {
    let names = PersistentNames::new(graph);
    let mut terms: Vec<Option<Sig>> = vec![None; graph.value_bound()];
    for &v in graph.inputs() {
        terms[v.index()] = Some(Sig::input(&graph.value(v).name));
    }
    for (v, name) in names.iter() {
        terms[v.index()] = Some(Sig::param(name));
    }
    for (_, node) in graph.nodes().filter(|(_, n)| n.stage != Stage::Setup) {
        let operands: Option<Vec<(Sig, &TensorType)>> =
            node.inputs.iter().map(|&v| Some((terms[v.index()]?, graph.ty(v)))).collect();
        let Some(operands) = operands else { continue };
        let keeps = !node.op.views().is_empty() || node.op.is_transfer();
        let text = if keeps { String::new() } else { node.op.to_string() };
        for (i, &v) in node.outputs.iter().enumerate() {
            terms[v.index()] = Some(if keeps { operands[0].0 } else { Sig::apply_text(&text, &operands, i) });
        }
    }
    let updated: BTreeMap<ValueId, ValueId> = graph.updates.iter().map(|u| (u.param, u.value)).collect();
    let mut out = ExpectedTerms::default();
    for o in &graph.outputs {
        if let Some(term) = terms[o.value.index()] {
            out.outputs.insert(o.name.clone(), term);
        }
    }
    for (v, name) in names.iter() {
        if let Some(term) = terms[updated.get(&v).unwrap_or(&v).index()] {
            out.params.insert(name.to_owned(), term);
        }
    }
    out
}
