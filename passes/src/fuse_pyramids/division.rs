//! Which layers of a chain become one kernel: the division into groups with the least time, by
//! dynamic programming over where groups end.

use super::chains::{Found, FoundOperand};
use super::{FusePyramids, Rule};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use vdnn_cost::{CostModel, PyramidOption, least_division};
use vdnn_ir::op::pyramid::MAX_LAYERS;
use vdnn_ir::op::{PyramidAttrs, PyramidUse};
use vdnn_ir::{Bytes, Graph, Nanos, TensorType, ValueId};

/// A prediction must be so many percent of the fused time: what predictions may be wrong by.
pub(super) const GAIN: u64 = 115;

/// How a group runs as one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fused {
    /// The configuration and its time.
    pub option: PyramidOption,
    /// Whether that was measured.
    pub measured: bool,
}

/// Layers of a chain that run together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The layers.
    pub layers: Range<usize>,
    /// How they are fused; `None` for a layer by itself.
    pub fused: Option<Fused>,
    /// Time of the layers by themselves.
    pub unfused: Nanos,
}

impl Group {
    /// Time.
    pub fn time(&self) -> Nanos {
        self.fused.as_ref().map_or(self.unfused, |f| f.option.time)
    }

    /// Time of the layers by themselves over the group's.
    pub fn gain(&self) -> f64 {
        self.unfused.as_f64() / self.time().as_f64().max(1.0)
    }
}

/// Fastest ways to run pyramids, each looked for once.
pub(super) type Known = BTreeMap<(PyramidAttrs, Vec<TensorType>), Option<Fused>>;

/// What there is to say of some layers of a chain as one kernel.
pub(super) struct Problem {
    pub(super) pyramid: PyramidAttrs,
    pub(super) inputs: Vec<TensorType>,
    pub(super) output: TensorType,
}

impl Problem {
    /// `None` if they are too few or too many, or too many of them convolutions.
    pub(super) fn of(graph: &Graph, found: &Found, layers: Range<usize>, depth: usize) -> Option<Self> {
        let convolutions = found.layers[layers.clone()].iter().filter(|l| l.layer.is_conv()).count();
        let count = layers.len();
        if !(2..=MAX_LAYERS).contains(&count) || convolutions == 0 || convolutions > depth {
            return None;
        }
        let output = graph.ty(found.layers[layers.end - 1].result).clone();
        let (pyramid, operands) = found.pyramid(layers);
        let inputs = operands.into_iter().map(|o| o.ty(graph)).collect();
        Some(Self { pyramid, inputs, output })
    }

    pub(super) fn refs(&self) -> Vec<&TensorType> {
        self.inputs.iter().collect()
    }

    /// The fastest way by measurements, where there are any, else by prediction.
    fn fastest(&self, rule: Rule, cost: &CostModel) -> Option<Fused> {
        let believed = |o: &PyramidOption| rule == Rule::Predicted || o.is_fitted();
        let (option, measured) =
            cost.fastest_pyramid(&self.pyramid, &self.refs(), &[&self.output], believed)?;
        Some(Fused { option, measured })
    }
}

/// Bytes that live while some layers run as one kernel: the images that it reads, and its result.
pub(super) fn footprint(graph: &Graph, found: &Found, layers: Range<usize>) -> Bytes {
    let result = found.layers[layers.end - 1].result;
    let (pyramid, operands) = found.pyramid(layers);
    let uses = operands.into_iter().zip(pyramid.uses());
    let images: BTreeSet<ValueId> = uses
        .filter_map(|(operand, of)| match (operand, of) {
            (FoundOperand::Other(v), PyramidUse::Image) => Some(v),
            _ => None,
        })
        .collect();
    images.into_iter().chain([result]).map(|v| graph.ty(v).bytes()).sum()
}

/// The division of a chain that leaves the fewest bytes over the pass's footprint, of those the
/// one with the least time, of those the one with the earlier ends of groups. A group is fused
/// for its time only if it gains what the rule asks for.
pub(super) fn divide(
    pass: &FusePyramids,
    graph: &Graph,
    found: &Found,
    cost: &CostModel,
    known: &mut Known,
) -> Vec<Group> {
    let over = |bytes: Bytes| pass.footprint.map_or(Bytes::ZERO, |most| bytes.saturating_sub(most));
    let nothing = (Bytes::ZERO, Nanos::ZERO);
    let plus = |(bytes, time): (Bytes, Nanos), (more, longer): (Bytes, Nanos)| {
        (bytes.saturating_add(more), time.saturating_add(longer))
    };
    least_division(found.layers.len(), nothing, plus, |layers| {
        let bytes = over(footprint(graph, found, layers.clone()));
        let (unfused, layers_measured) = found.alone(layers.clone());
        if layers.len() == 1 {
            return Some(((bytes, unfused), Group { layers, fused: None, unfused }));
        }
        let problem = Problem::of(graph, found, layers.clone(), pass.depth)?;
        let key = (problem.pyramid.clone(), problem.inputs.clone());
        let fused = known.entry(key).or_insert_with(|| problem.fastest(pass.rule, cost)).clone()?;
        // Measured against measured, faster is faster.
        let percent = if fused.measured && layers_measured { 100 } else { GAIN };
        let time = fused.option.time;
        let gains = time < unfused && time.0.saturating_mul(percent) <= unfused.0.saturating_mul(100);
        if !gains && pass.footprint.is_none() {
            return None;
        }
        // One that does not gain enough is there for its footprint alone.
        let counted = if gains { time } else { time.max(unfused).saturating_add(Nanos(1)) };
        Some(((bytes, counted), Group { layers, fused: Some(fused), unfused }))
    })
}
