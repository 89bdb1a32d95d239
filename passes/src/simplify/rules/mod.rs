//! The rules. See `README.md` for what a rule may do.

mod elementwise;
mod movement;
mod window;

use super::lang::{Analysis, Eg, Facts, Head, Term, result_type};
use egg::{Applier, EClass, Id, Language, PatternAst, Rewrite, SearchMatches, Searcher, Subst, Symbol, Var};
use smallvec::SmallVec;
use vdnn_ir::{Op, Real};

/// What the left-hand side equals.
#[expect(clippy::large_enum_variant, reason = "short-lived, a few per match")]
#[derive(Clone, Debug)]
pub(super) enum Rhs {
    /// An existing class.
    Class(Id),
    /// An op applied to existing classes.
    Node(Op, SmallVec<[Id; 4]>),
}

/// One directional rule: for an op applied to classes, everything it equals by this rule.
/// A pure function of the e-graph.
#[derive(Debug)]
pub(super) struct Rule {
    pub name: &'static str,
    pub lhs: fn(&View<'_>, &Op, &[Id]) -> SmallVec<[Rhs; 1]>,
}

/// All rules, in the order they are tried.
pub(super) const RULES: &[Rule] = &[
    Rule { name: "reshape-of-reshape", lhs: movement::reshape_of_reshape },
    Rule { name: "reshape-to-same-shape", lhs: movement::reshape_to_same_shape },
    Rule { name: "transpose-of-transpose", lhs: movement::transpose_of_transpose },
    Rule { name: "transpose-of-nothing", lhs: movement::transpose_of_nothing },
    Rule { name: "transpose-to-reshape", lhs: movement::transpose_to_reshape },
    Rule { name: "expand-of-expand", lhs: movement::expand_of_expand },
    Rule { name: "expand-to-same-shape", lhs: movement::expand_to_same_shape },
    Rule { name: "pad-of-nothing", lhs: movement::pad_of_nothing },
    Rule { name: "slice-of-everything", lhs: movement::slice_of_everything },
    Rule { name: "concat-of-one", lhs: movement::concat_of_one },
    Rule { name: "split-of-one", lhs: movement::split_of_one },
    Rule { name: "relu-of-relu", lhs: elementwise::relu_of_relu },
    Rule { name: "relu-of-clip", lhs: elementwise::relu_of_clip },
    Rule { name: "clip-of-relu", lhs: elementwise::clip_of_relu },
    Rule { name: "clip-of-clip", lhs: elementwise::clip_of_clip },
    Rule { name: "clip-to-relu", lhs: elementwise::clip_to_relu },
    Rule { name: "clip-to-anything", lhs: elementwise::clip_to_anything },
    Rule { name: "add-zero", lhs: elementwise::add_zero },
    Rule { name: "mul-one", lhs: elementwise::mul_one },
    Rule { name: "affine-of-affine", lhs: elementwise::affine_of_affine },
    Rule { name: "affine-of-nothing", lhs: elementwise::affine_of_nothing },
    Rule { name: "binary-of-expand", lhs: elementwise::binary_of_expand },
    Rule { name: "dropout-of-nothing", lhs: elementwise::dropout_of_nothing },
    Rule { name: "conv-of-pad", lhs: window::conv_of_pad },
    Rule { name: "pool-of-one", lhs: window::pool_of_one },
    Rule { name: "reduce-of-ones", lhs: window::reduce_of_ones },
];

/// What a rule may look at.
pub(super) struct View<'e>(&'e Eg);

impl View<'_> {
    /// Extents of a class.
    pub fn dims(&self, id: Id) -> &[u64] {
        &self.0[id].data.ty.dims
    }
    /// The element of a class whose elements are all the same.
    pub fn uniform(&self, id: Id) -> Option<Real> {
        self.0[id].data.uniform
    }
    /// The ops that compute a class, with their operands.
    pub fn ops(&self, id: Id) -> impl Iterator<Item = (&Op, &[Id])> {
        self.0[id].nodes.iter().filter_map(|n| match &n.head {
            Head::Op(op) => Some((op, &n.children[..])),
            Head::Leaf(_) => None,
        })
    }
}

/// No equality.
pub(super) fn none() -> SmallVec<[Rhs; 1]> {
    SmallVec::new()
}

/// The left-hand side is `id` if `holds`.
pub(super) fn same_if(holds: bool, id: Id) -> SmallVec<[Rhs; 1]> {
    if holds { [Rhs::Class(id)].into_iter().collect() } else { none() }
}

impl Rule {
    /// The rule in egg's terms.
    pub fn rewrite(&self) -> Rewrite<Term, Analysis> {
        let run = Run { name: self.name, lhs: self.lhs };
        Rewrite::new(self.name, run.clone(), run).expect("rules bind no variables")
    }
}

#[derive(Clone)]
struct Run {
    name: &'static str,
    lhs: fn(&View<'_>, &Op, &[Id]) -> SmallVec<[Rhs; 1]>,
}

impl Run {
    fn matches(&self, egraph: &Eg, class: &EClass<Term, Facts>) -> SmallVec<[Rhs; 1]> {
        let view = View(egraph);
        let mut found = none();
        for term in &class.nodes {
            if let Head::Op(op) = &term.head {
                found.extend((self.lhs)(&view, op, term.children()));
            }
        }
        found
    }
}

impl Searcher<Term, Analysis> for Run {
    fn search_eclass_with_limit(
        &self,
        egraph: &Eg,
        eclass: Id,
        _limit: usize,
    ) -> Option<SearchMatches<'_, Term>> {
        let class = &egraph[eclass];
        let found = self.matches(egraph, class);
        (!found.is_empty()).then(|| SearchMatches { eclass, substs: vec![Subst::default()], ast: None })
    }
    fn vars(&self) -> Vec<Var> {
        Vec::new()
    }
}

impl Applier<Term, Analysis> for Run {
    fn apply_one(
        &self,
        egraph: &mut Eg,
        eclass: Id,
        _subst: &Subst,
        _ast: Option<&PatternAst<Term>>,
        _rule: Symbol,
    ) -> Vec<Id> {
        let found = self.matches(egraph, &egraph[eclass]);
        let mut changed = Vec::new();
        for rhs in found {
            let id = match rhs {
                Rhs::Class(id) => id,
                Rhs::Node(op, children) => {
                    // A rule that builds something ill-typed would be wrong; it must not be applied.
                    let ty = result_type(egraph, &op, &children);
                    debug_assert_eq!(ty.as_ref(), Some(&egraph[eclass].data.ty), "rule {}", self.name);
                    if ty.as_ref() != Some(&egraph[eclass].data.ty) {
                        continue;
                    }
                    egraph.add(Term::op(op, children))
                }
            };
            if egraph.union(eclass, id) {
                changed.push(eclass);
            }
        }
        changed
    }
}
