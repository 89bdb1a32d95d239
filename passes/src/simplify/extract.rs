//! Deterministic extraction with shared subgraphs counted once.
//!
//! egg's own extractor prices a term as a tree, so a chain of residual blocks doubles in price
//! with every block. Here each class carries the *set* of classes its choice needs, and the
//! price of a candidate is the price of that set (the greedy DAG extraction of the
//! extraction-gym, one visit per class). Optimal DAG extraction is NP-hard; this is exact
//! wherever alternatives do not trade sharing against each other.
//!
//! Classes are visited in the order of their rank, the place of their first original node in
//! the program, and a candidate may only use classes of lower rank. The original node is always
//! such a candidate, so extraction never fails and its result never has a cycle, although an
//! e-graph may have many.

use super::cost::Cost;
use super::lang::{Eg, Head, Term, cost};
use egg::Id;
use rustc_hash::{FxHashMap, FxHashSet};

/// Place in the program, then depth among terms that rules made.
pub(super) type Rank = (u32, u32);

/// Rank of what is there before the program starts.
pub(super) const FIRST: Rank = (0, 0);

/// The chosen e-node of every class that can be computed, children canonical. `first` is the
/// rank of each class that was there before any rule ran, `written` the terms of the graph as
/// it stands: among equally good candidates one of those wins, so nothing changes without gain.
pub(super) fn extract(
    egraph: &Eg,
    first: &FxHashMap<Id, Rank>,
    written: &FxHashSet<Term>,
) -> FxHashMap<Id, Term> {
    let ranks = ranks(egraph, first);
    let mut order: Vec<(Rank, Id)> = ranks.iter().map(|(&id, &rank)| (rank, id)).collect();
    order.sort_unstable();
    let index: FxHashMap<Id, usize> = order.iter().enumerate().map(|(i, &(_, id))| (id, i)).collect();

    let mut price: Vec<Cost> = Vec::with_capacity(order.len());
    let mut needs: Vec<Bits> = Vec::with_capacity(order.len());
    let mut chosen: FxHashMap<Id, Term> = FxHashMap::default();
    for &(rank, id) in &order {
        let mut best: Option<Candidate> = None;
        for node in &egraph[id].nodes {
            let term = canonical(egraph, node);
            if !admissible(&term, rank, &ranks) {
                continue;
            }
            let mut set = Bits::new(order.len());
            for c in &term.children {
                set.insert(index[c]);
                set.union(&needs[index[c]]);
            }
            let own = cost(egraph, &term);
            let total = set.iter().fold(own, |sum, c| sum.plus(price[c]));
            let key = (total, !written.contains(&term), term);
            // The term itself decides the last ties, so e-graph order never does.
            if best.as_ref().is_none_or(|b| key < b.key) {
                best = Some(Candidate { key, own, needs: set });
            }
        }
        let best = best.expect("the term that gave a class its rank is a candidate");
        price.push(best.own);
        needs.push(best.needs);
        chosen.insert(id, best.key.2);
    }
    chosen
}

/// A way to compute a class: total price, whether it is new, and the term; then the price of
/// the term alone and the classes below it.
struct Candidate {
    key: (Cost, bool, Term),
    own: Cost,
    needs: Bits,
}

fn canonical(egraph: &Eg, node: &Term) -> Term {
    let mut term = node.clone();
    for c in &mut term.children {
        *c = egraph.find(*c);
    }
    term
}

/// True if every child comes before a class of this rank.
fn admissible(term: &Term, rank: Rank, ranks: &FxHashMap<Id, Rank>) -> bool {
    matches!(term.head, Head::Leaf(_))
        || term.children.iter().all(|c| ranks.get(c).is_some_and(|r| *r < rank))
}

/// Ranks of all classes: given for those with an original node or leaf, one deeper than the
/// deepest child for those that rules made.
fn ranks(egraph: &Eg, first: &FxHashMap<Id, Rank>) -> FxHashMap<Id, Rank> {
    let mut ranks = first.clone();
    let mut open: Vec<Id> = egraph.classes().map(|c| c.id).filter(|id| !ranks.contains_key(id)).collect();
    open.sort_unstable();
    loop {
        let before = open.len();
        open.retain(|&id| {
            let of = |node: &Term| -> Option<Rank> {
                let deepest = node.children.iter().map(|c| ranks.get(&egraph.find(*c)).copied());
                let deepest = deepest.collect::<Option<Vec<_>>>()?.into_iter().max().unwrap_or(FIRST);
                Some((deepest.0, deepest.1 + 1))
            };
            match egraph[id].nodes.iter().filter_map(of).min() {
                Some(rank) => {
                    ranks.insert(id, rank);
                    false
                }
                None => true,
            }
        });
        if open.len() == before {
            return ranks;
        }
    }
}

/// A set of small integers.
#[derive(Clone, Debug)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(len: usize) -> Self {
        Self(vec![0; len.div_ceil(64)])
    }
    fn insert(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }
    fn union(&mut self, other: &Self) {
        for (a, b) in self.0.iter_mut().zip(&other.0) {
            *a |= b;
        }
    }
    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(w, &bits)| {
            let mut bits = bits;
            std::iter::from_fn(move || {
                if bits == 0 {
                    return None;
                }
                let i = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                Some(w * 64 + i)
            })
        })
    }
}
