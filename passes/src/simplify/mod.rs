//! Canonicalisation and simplification.
//!
//! [`Simplify`] rewrites with an e-graph under the contract of `README.md` beside this file.
//! [`FoldBatchNorm`] and [`MarkSetup`] finish an inference graph: what depends on parameters
//! alone is computed once, when the weights are loaded.

mod cost;
mod extract;
mod fold_bn;
mod lang;
mod mark_setup;
mod region;
mod rules;
#[cfg(test)]
mod tests;

pub use fold_bn::FoldBatchNorm;
pub use mark_setup::MarkSetup;

use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use egg::{Runner, SimpleScheduler};
use std::time::Duration;
use vdnn_ir::{Graph, Phase};

const PASS: &str = "simplify";

/// Rounds of rewriting. Every rule shrinks what it matches, and a round shortens every chain
/// of n equal ops to half, so this is enough for chains of 2^16; real models need three rounds.
const MAX_ROUNDS: usize = 16;

/// E-nodes. Rules add a few nodes per match, so a model of 10,000 nodes stays far below; a
/// graph at the limit is still correct, only less simplified.
const MAX_NODES: usize = 400_000;

/// Removes and merges what does not change any value: identities, chains of reshapes,
/// transposes, clips and affine maps, paddings a convolution can do itself, equal nodes.
///
/// Counters: one per rule (applications that taught the e-graph something), `removed` and
/// `added` nodes, `rounds`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Simplify;

/// Names of the rules of [`Simplify`], which are its counters.
pub fn rule_names() -> impl Iterator<Item = &'static str> {
    rules::RULES.iter().map(|r| r.name)
}

impl Pass for Simplify {
    fn name(&self) -> &'static str {
        PASS
    }
    fn requires(&self) -> Phase {
        Phase::Imported
    }
    fn produces(&self) -> Phase {
        Phase::Simplified
    }
    fn run(&self, graph: &mut Graph, _cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        let mut region = region::build(graph);
        let rules: Vec<_> = rules::RULES.iter().map(rules::Rule::rewrite).collect();
        // No clock may decide what is compiled: rounds and nodes are the only limits.
        let runner: Runner<lang::Term, lang::Analysis> = Runner::new(lang::Analysis::default())
            .with_egraph(region.egraph)
            .with_scheduler(SimpleScheduler)
            .with_iter_limit(MAX_ROUNDS)
            .with_node_limit(MAX_NODES)
            .with_time_limit(Duration::MAX)
            .run(&rules);
        let mut stats: Stats = rule_names().map(|name| (name, 0)).collect();
        for round in &runner.iterations {
            for (name, n) in &round.applied {
                if let Some((_, count)) = stats.iter_mut().find(|(rule, _)| **rule == name.as_str()) {
                    *count += *n as u64;
                }
            }
        }
        stats.insert("rounds", runner.iterations.len() as u64);
        region.egraph = runner.egraph;

        let chosen = extract::extract(&region.egraph, &region.ranks(graph), &region.written(graph));
        let (live, made) = (graph.order().len(), graph.node_bound());
        let changed = region::rebuild(graph, &region, &chosen)?;
        let added = graph.node_bound() - made;
        stats.insert("added", added as u64);
        stats.insert("removed", (live + added - graph.order().len()) as u64);
        Ok(Outcome { changed, stats })
    }
}
