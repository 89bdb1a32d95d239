//! From a graph to an e-graph and back.

use super::extract::{FIRST, Rank};
use super::lang::{Analysis, Eg, Facts, Head, Term};
use crate::pass::PassError;
use egg::{EGraph, Id};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::id::EntityId;
use vdnn_ir::{DType, Def, Graph, Node, NodeId, Real, Stage, ValueId};

/// The e-graph of a graph's pure single-output region.
pub(super) struct Region {
    pub egraph: Eg,
    /// By value: its class, for every value that is a leaf or computed in the region.
    class_of: Vec<Option<Id>>,
}

/// True if the node computes one value that depends on its inputs alone and carries no
/// decision of a later pass.
fn in_region(node: &Node) -> bool {
    node.outputs.len() == 1
        && node.stage == Stage::Forward
        && node.algo.is_none()
        && node.inplace.is_empty()
        && !node.op.is_transfer()
}

/// Builds the e-graph: one e-node per region node; identical nodes coincide.
pub(super) fn build(graph: &Graph) -> Region {
    let mut egraph: Eg = EGraph::new(Analysis::default());
    let mut class_of: Vec<Option<Id>> = vec![None; graph.value_bound()];
    let leaf = |egraph: &mut Eg, class_of: &mut Vec<Option<Id>>, v: ValueId| match class_of[v.index()] {
        Some(id) => id,
        None => {
            let facts = Facts { ty: graph.ty(v).clone(), uniform: uniform(graph, v) };
            egraph.analysis.leaves.insert(v, facts);
            let id = egraph.add(Term::leaf(v));
            class_of[v.index()] = Some(id);
            id
        }
    };
    for (_, node) in graph.nodes() {
        let children: SmallVec<[Id; 4]> =
            node.inputs.iter().map(|&v| leaf(&mut egraph, &mut class_of, v)).collect();
        if in_region(node) {
            class_of[node.outputs[0].index()] = Some(egraph.add(Term::op(node.op.clone(), children)));
        } else {
            for &v in &node.outputs {
                leaf(&mut egraph, &mut class_of, v);
            }
        }
    }
    egraph.rebuild();
    Region { egraph, class_of }
}

/// The element of a literal whose elements are all the same.
fn uniform(graph: &Graph, v: ValueId) -> Option<Real> {
    let Def::Const(bytes) = &graph.value(v).def else { return None };
    if graph.ty(v).dtype != DType::F32 {
        return None;
    }
    let mut elements = bytes.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]));
    let first = Real(elements.next()?);
    elements.all(|x| Real(x) == first).then_some(first)
}

impl Region {
    fn class(&self, v: ValueId) -> Option<Id> {
        self.class_of[v.index()].map(|id| self.egraph.find(id))
    }

    /// The terms of the region's nodes as they stand.
    pub fn written(&self, graph: &Graph) -> FxHashSet<Term> {
        let region = graph.nodes().filter(|(_, n)| in_region(n));
        region.map(|(_, n)| self.term(n)).collect()
    }

    fn term(&self, node: &Node) -> Term {
        let children = node.inputs.iter().filter_map(|&v| self.class(v)).collect();
        Term::op(node.op.clone(), children)
    }

    /// The place of each class's first member in the program.
    pub fn ranks(&self, graph: &Graph) -> FxHashMap<Id, Rank> {
        let mut ranks: FxHashMap<Id, Rank> = FxHashMap::default();
        let positions = graph.positions();
        for v in graph.value_ids() {
            let Some(id) = self.class(v) else { continue };
            let rank = match graph.def_node(v) {
                None => FIRST,
                Some(node) => (positions[node.index()] + 1, 0),
            };
            let known = ranks.entry(id).or_insert(rank);
            *known = rank.min(*known);
        }
        ranks
    }
}

/// Rewrites the graph so that every class is computed as `chosen` says. Nodes that are chosen
/// as they are keep their id, name and place in the order. Returns whether anything changed.
pub(super) fn rebuild(
    graph: &mut Graph,
    region: &Region,
    chosen: &FxHashMap<Id, Term>,
) -> Result<bool, PassError> {
    let mut out = Rebuild::new(graph, region, chosen);
    for id in out.program.clone() {
        let node = out.graph.node(id);
        if in_region(node) {
            let value = node.outputs[0];
            let name = node.name.clone();
            if out.wanted.contains(&out.class(value)) {
                let new = out.value(out.class(value), &name)?;
                out.graph_replace(value, new);
            }
        } else {
            let (inputs, name) = (node.inputs.clone(), node.name.clone());
            let new: SmallVec<[ValueId; 4]> =
                inputs.iter().map(|&v| out.value(out.class(v), &name)).collect::<Result<_, _>>()?;
            if new != inputs {
                out.graph.set_inputs(id, &new);
                out.changed = true;
            }
            out.order.push(id);
        }
    }
    out.finish();
    let changed = out.changed;
    Ok(changed)
}

struct Rebuild<'a> {
    graph: &'a mut Graph,
    region: &'a Region,
    chosen: &'a FxHashMap<Id, Term>,
    program: Vec<NodeId>,
    /// The first original node that computes a chosen term as it stands.
    keeper: FxHashMap<Id, NodeId>,
    /// Classes that outputs or nodes outside the region need.
    wanted: FxHashSet<Id>,
    /// By class: the value that now holds it.
    values: FxHashMap<Id, ValueId>,
    order: Vec<NodeId>,
    changed: bool,
}

impl<'a> Rebuild<'a> {
    fn new(graph: &'a mut Graph, region: &'a Region, chosen: &'a FxHashMap<Id, Term>) -> Self {
        let program = graph.order().to_vec();
        let mut keeper = FxHashMap::default();
        for &id in &program {
            let node = graph.node(id);
            if !in_region(node) {
                continue;
            }
            if let Some(class) = region.class(node.outputs[0])
                && chosen.get(&class) == Some(&region.term(node))
            {
                keeper.entry(class).or_insert(id);
            }
        }
        let mut wanted: FxHashSet<Id> = FxHashSet::default();
        let mut stack: Vec<Id> = Vec::new();
        let named = graph.outputs.iter().map(|o| o.value).chain(graph.updates.iter().map(|u| u.value));
        let outside =
            graph.nodes().filter(|(_, n)| !in_region(n)).flat_map(|(_, n)| n.inputs.iter().copied());
        stack.extend(named.chain(outside).filter_map(|v| region.class(v)));
        while let Some(class) = stack.pop() {
            if wanted.insert(class) {
                stack.extend(chosen[&class].children.iter().copied());
            }
        }
        Self {
            graph,
            region,
            chosen,
            program,
            keeper,
            wanted,
            values: FxHashMap::default(),
            order: Vec::new(),
            changed: false,
        }
    }

    fn class(&self, v: ValueId) -> Id {
        self.region.class(v).expect("every value a node touches has a class")
    }

    /// The value of a class, computing it here if it is not computed yet. `name` is the node
    /// on whose behalf.
    fn value(&mut self, class: Id, name: &str) -> Result<ValueId, PassError> {
        if let Some(&v) = self.values.get(&class) {
            return Ok(v);
        }
        let term = &self.chosen[&class];
        let op = match &term.head {
            Head::Leaf(v) => {
                self.values.insert(class, *v);
                return Ok(*v);
            }
            Head::Op(op) => op,
        };
        let mut inputs: SmallVec<[ValueId; 4]> = SmallVec::new();
        for &child in &term.children {
            let v = self.value(child, name)?;
            inputs.push(v);
        }
        let node = match self.keeper.get(&class) {
            Some(&id) => {
                if self.graph.node(id).inputs != inputs {
                    self.graph.set_inputs(id, &inputs);
                    self.changed = true;
                }
                id
            }
            None => {
                self.changed = true;
                self.graph
                    .add(op.clone(), &inputs, NodeSpec::forward(name))
                    .map_err(|error| PassError::Infer { pass: super::PASS, error })?
            }
        };
        self.order.push(node);
        let v = self.graph.node(node).outputs[0];
        self.values.insert(class, v);
        Ok(v)
    }

    /// Moves the names and outside uses of `old` to `new`.
    fn graph_replace(&mut self, old: ValueId, new: ValueId) {
        if old != new {
            if self.graph.value(new).name.is_empty() {
                let hint = self.graph.value(old).name.clone();
                self.graph.set_name(new, hint);
            }
            self.graph.replace_all_uses(old, new);
            self.changed = true;
        }
    }

    /// Puts the kept and new nodes in order, drops the rest.
    fn finish(&mut self) {
        let placed: FxHashSet<NodeId> = self.order.iter().copied().collect();
        let rest: Vec<NodeId> = self.graph.order().iter().copied().filter(|n| !placed.contains(n)).collect();
        let mut order = std::mem::take(&mut self.order);
        order.extend(rest);
        self.graph.set_order(order);
        self.changed |= self.graph.remove_dead_nodes() > 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_reads_literals_only() {
        let mut g = Graph::new("t");
        let same = g.add_const_f32([2], &[3.0, 3.0]);
        let differ = g.add_const_f32([2], &[3.0, 4.0]);
        let none = g.add_const_f32([0], &[]);
        let x = g.add_input("x", vdnn_ir::TensorType::f32([2]));
        assert_eq!(uniform(&g, same), Some(Real(3.0)));
        for v in [differ, none, x] {
            assert_eq!(uniform(&g, v), None);
        }
    }
}
