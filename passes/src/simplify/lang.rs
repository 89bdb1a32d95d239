//! The pure single-output part of a graph as an e-graph language.

use super::cost::Cost;
use egg::{DidMerge, EGraph, Id, Language};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::mem::Discriminant;
use vdnn_ir::op::infer::infer;
use vdnn_ir::{Op, Real, TensorType, ValueId};

/// What an e-node is.
#[expect(clippy::large_enum_variant, reason = "nearly all heads are ops")]
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Head {
    /// A value the region takes as given: an input, a parameter, a literal, or the result of a
    /// node outside the region.
    Leaf(ValueId),
    /// One application of a single-output op.
    Op(Op),
}

/// An e-node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Term {
    pub head: Head,
    pub children: SmallVec<[Id; 4]>,
}

impl Term {
    pub fn leaf(value: ValueId) -> Self {
        Self { head: Head::Leaf(value), children: SmallVec::new() }
    }
    pub fn op(op: Op, children: SmallVec<[Id; 4]>) -> Self {
        Self { head: Head::Op(op), children }
    }
}

impl Language for Term {
    type Discriminant = Option<Discriminant<Op>>;
    fn discriminant(&self) -> Self::Discriminant {
        match &self.head {
            Head::Leaf(_) => None,
            Head::Op(op) => Some(std::mem::discriminant(op)),
        }
    }
    fn matches(&self, other: &Self) -> bool {
        self.head == other.head && self.children.len() == other.children.len()
    }
    fn children(&self) -> &[Id] {
        &self.children
    }
    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.children
    }
}

/// What is known of every member of an e-class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// The type of the value.
    pub ty: TensorType,
    /// The value of every element, if it is known and the same everywhere.
    pub uniform: Option<Real>,
}

/// The e-class analysis: types and uniform constants. Facts of leaves are put in beforehand.
#[derive(Clone, Debug, Default)]
pub(super) struct Analysis {
    pub leaves: FxHashMap<ValueId, Facts>,
}

/// The e-graph of a region.
pub(super) type Eg = EGraph<Term, Analysis>;

impl egg::Analysis<Term> for Analysis {
    type Data = Facts;
    fn make(egraph: &mut Eg, term: &Term, _id: Id) -> Facts {
        match &term.head {
            Head::Leaf(v) => egraph.analysis.leaves[v].clone(),
            Head::Op(op) => {
                let ty =
                    result_type(egraph, op, &term.children).expect("terms are typed before they are added");
                let uniform = match op {
                    Op::Fill { value, .. } => Some(*value),
                    Op::Reshape { .. } | Op::Transpose { .. } | Op::Expand { .. } | Op::Slice(_) => {
                        egraph[term.children[0]].data.uniform
                    }
                    _ => None,
                };
                Facts { ty, uniform }
            }
        }
    }
    fn merge(&mut self, a: &mut Facts, b: Facts) -> DidMerge {
        debug_assert_eq!(a.ty, b.ty, "a rule equated values of different types");
        let before = a.uniform;
        a.uniform = a.uniform.or(b.uniform);
        DidMerge(a.uniform != before, a.uniform != b.uniform)
    }
}

/// The type of `op` applied to these classes, or `None` if it does not apply.
pub(super) fn result_type(egraph: &Eg, op: &Op, children: &[Id]) -> Option<TensorType> {
    let types: SmallVec<[&TensorType; 4]> = children.iter().map(|&c| &egraph[c].data.ty).collect();
    infer(op, &types, 1).ok()?.into_iter().next()
}

/// The price of one e-node.
pub(super) fn cost(egraph: &Eg, term: &Term) -> Cost {
    match &term.head {
        Head::Leaf(_) => Cost(0),
        Head::Op(op) => {
            let inputs: SmallVec<[&TensorType; 4]> =
                term.children.iter().map(|&c| &egraph[c].data.ty).collect();
            let Some(output) = result_type(egraph, op, &term.children) else { return Cost(u64::MAX) };
            super::cost::of(op, &inputs, &output)
        }
    }
}
