//! Pyramids: chains of convolutions and pools of an inference become single nodes
//! ([`vdnn_ir::Op::Pyramid`]) where one kernel for them is faster than their own, or, with a
//! limit on what may live at once, where it keeps a large tensor from existing.
//!
//! A group of layers is fused if its kernel was measured to be faster than the measured layers,
//! or is predicted, or measured beside predicted layers, to be 1.15 times as fast. Which tiles it
//! runs in is part of the node. Times come from the cost model, so the same graph and the same
//! table of measured times give the same nodes.

mod chains;
mod division;

pub use chains::{Found, FoundLayer, FoundOperand, chains, price};
pub use division::{Fused, Group};

use crate::conversion;
use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use division::{GAIN, Known, Problem, divide, footprint};
use std::collections::{BTreeMap, BTreeSet};
use vdnn_cost::CostModel;
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::PyramidAttrs;
use vdnn_ir::op::infer::InferError;
use vdnn_ir::{Bytes, DType, Graph, Mode, Nanos, NodeId, Op, Phase, TensorType, ValueId};

/// Whose word counts for a pyramid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Measurements where there are some of a pyramid, else predictions that are fitted to
    /// measurements ([`PyramidOption::is_fitted`](vdnn_cost::PyramidOption::is_fitted)).
    Fitted,
    /// Measurements where there are some of a pyramid, else any predictions.
    Predicted,
}

/// A pyramid that is predicted to take more than so many percent of its layers' time is not worth
/// measuring.
const HOPELESS: u64 = 150;

/// Most convolutions of a pyramid where nothing else is said: halos grow with every one.
pub const DEPTH: usize = 3;

/// Fuses pyramids in a joint inference graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FusePyramids {
    /// Most convolutions of a pyramid.
    pub depth: usize,
    /// Which pyramids are believed in.
    pub rule: Rule,
    /// Images read and written by one kernel should not have more bytes than this; pyramids
    /// that help are fused whatever they cost.
    pub footprint: Option<Bytes>,
}

impl FusePyramids {
    /// The chains of a graph, each divided into groups: what [`Pass::run`] fuses.
    pub fn groups(&self, graph: &Graph, cost: &CostModel) -> Vec<(Found, Vec<Group>)> {
        let mut known = Known::new();
        let divided = |found: Found| {
            let groups = divide(self, graph, &found, cost, &mut known);
            (found, groups)
        };
        chains(graph, cost).into_iter().map(divided).collect()
    }
}

impl Pass for FusePyramids {
    fn name(&self) -> &'static str {
        "fuse-pyramids"
    }

    fn requires(&self) -> Phase {
        Phase::Joint
    }

    fn produces(&self) -> Phase {
        Phase::Joint
    }

    fn run(&self, graph: &mut Graph, cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        // Training reads what lies inside again.
        if graph.mode != Mode::Infer {
            return Ok(Outcome::default());
        }
        let mut stats = Stats::new();
        let mut run = Run { graph, widened: BTreeMap::new(), renamed: BTreeMap::new() };
        for (found, groups) in self.groups(run.graph, cx.cost) {
            for group in groups {
                let Some(fused) = &group.fused else { continue };
                *stats.entry("pyramids").or_default() += 1;
                *stats.entry("measured").or_default() += u64::from(fused.measured);
                *stats.entry("layers").or_default() += group.layers.len() as u64;
                run.fuse(&found, &group, &fused.option.config)
                    .map_err(|error| PassError::Infer { pass: self.name(), error })?;
            }
        }
        Ok(Outcome { changed: !stats.is_empty(), stats })
    }
}

struct Run<'a> {
    graph: &'a mut Graph,
    /// Narrow biases, as f32.
    widened: BTreeMap<ValueId, ValueId>,
    /// What groups made before they were fused, and what they make now.
    renamed: BTreeMap<ValueId, ValueId>,
}

impl Run<'_> {
    /// Puts one node in the place of a group's last one.
    fn fuse(&mut self, found: &Found, group: &Group, config: &str) -> Result<(), InferError> {
        let layers = &found.layers[group.layers.clone()];
        let nodes: Vec<NodeId> = layers.iter().flat_map(|l| l.nodes.iter().copied()).collect();
        let (&[first, ..], &[.., last]) = (nodes.as_slice(), nodes.as_slice()) else { return Ok(()) };
        let (pyramid, operands) = found.pyramid(group.layers.clone());
        let mut inputs = Vec::new();
        for operand in operands {
            inputs.push(match operand {
                FoundOperand::Bias(v) if self.graph.ty(v).dtype != DType::F32 => self.widen(v, first)?,
                FoundOperand::Bias(v) | FoundOperand::Other(v) => self.renamed.get(&v).copied().unwrap_or(v),
            });
        }
        let name = format!("{} .. {}", self.graph.node(first).name, self.graph.node(last).name);
        let op = Op::Pyramid(pyramid.with_config(config));
        let old = self.graph.node(last).outputs[0];
        let new = one_node(self.graph, &nodes, op, &inputs, name)?;
        self.renamed.insert(old, new);
        Ok(())
    }

    /// A narrow bias as f32: exact, and made once at load, since chains have static ones only.
    fn widen(&mut self, v: ValueId, reader: NodeId) -> Result<ValueId, InferError> {
        if let Some(&wide) = self.widened.get(&v) {
            return Ok(wide);
        }
        let at = conversion::place(self.graph, v, reader, true);
        let wide = conversion::insert(self.graph, Op::Cast { to: DType::F32 }, "f32", v, at, true)?;
        self.widened.insert(v, wide);
        Ok(wide)
    }
}

/// Puts one node with one result in the place of the last of some nodes, in program order, and removes
/// these; nobody else reads what the others make. Returns the new result.
pub(crate) fn one_node(
    graph: &mut Graph,
    nodes: &[NodeId],
    op: Op,
    inputs: &[ValueId],
    name: String,
) -> Result<ValueId, InferError> {
    let last = nodes.last().copied();
    let at = graph.order().iter().position(|&n| Some(n) == last).unwrap_or(graph.order().len());
    let node = graph.insert(at, op, inputs, NodeSpec::forward(name))?;
    let new = graph.node(node).outputs[0];
    if let Some(last) = last {
        graph.replace_all_uses(graph.node(last).outputs[0], new);
    }
    for &id in nodes.iter().rev() {
        graph.remove(id);
    }
    Ok(new)
}

/// A pyramid and the types of its operands and result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The layers, without a configuration.
    pub pyramid: PyramidAttrs,
    /// Types of the operands.
    pub inputs: Vec<TensorType>,
    /// Type of the result.
    pub output: TensorType,
    /// Time of the layers by themselves.
    pub alone: Nanos,
}

impl Candidate {
    /// The configurations that are worth measuring, at most `most`, the best predicted first:
    /// none that is predicted to be far slower than the layers.
    pub fn ways(&self, most: usize, cost: &CostModel) -> Vec<Op> {
        let ways = cost.predicted_pyramid(&self.pyramid, &self.inputs.iter().collect::<Vec<_>>());
        let worst = self.alone.0.saturating_mul(HOPELESS);
        let hopes = ways.into_iter().filter(|o| o.time.0.saturating_mul(100) <= worst);
        hopes.take(most).map(|o| Op::Pyramid(self.pyramid.with_config(o.config))).collect()
    }

    /// Whether [`Rule::Fitted`] would believe in it before anything of it is measured.
    pub fn is_promising(&self, cost: &CostModel) -> bool {
        let ways = cost.predicted_pyramid(&self.pyramid, &self.inputs.iter().collect::<Vec<_>>());
        // A stage is not judged by its time alone.
        let percent = if self.pyramid.is_chain() { GAIN } else { 100 };
        let gains = |time: Nanos| time.0.saturating_mul(percent) <= self.alone.0.saturating_mul(100);
        ways.iter().any(|o| o.is_fitted() && gains(o.time))
    }
}

/// Every pyramid that the pass chooses among in a joint graph, each once, in the order of the graph.
pub fn candidates(graph: &Graph, cost: &CostModel, depth: usize) -> Vec<Candidate> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    if graph.mode != Mode::Infer {
        return all;
    }
    for found in chains(graph, cost) {
        for end in 2..=found.layers.len() {
            for start in 0..end - 1 {
                let Some(problem) = Problem::of(graph, &found, start..end, depth) else { continue };
                let Problem { pyramid, inputs, output } = problem;
                if seen.insert((pyramid.clone(), inputs.clone())) {
                    let alone = found.alone(start..end).0;
                    all.push(Candidate { pyramid, inputs, output, alone });
                }
            }
        }
    }
    all
}

/// What a limit on footprints may be: those of the layers of chains by themselves, the largest,
/// which limits nothing, left out; largest first.
pub fn footprints(graph: &Graph, cost: &CostModel) -> Vec<Bytes> {
    let found = chains(graph, cost);
    let mut all: Vec<Bytes> =
        found.iter().flat_map(|f| (0..f.layers.len()).map(|l| footprint(graph, f, l..l + 1))).collect();
    all.sort_unstable();
    all.dedup();
    all.pop();
    all.reverse();
    all
}
