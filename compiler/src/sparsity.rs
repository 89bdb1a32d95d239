//! The zeros of a model: what patterns they have, layer by layer.

pub mod activations;
pub mod heat;
pub mod mask;
mod report;

pub use report::Report;

use std::collections::BTreeMap;
use vdnn_ir::graph::Def;
use vdnn_ir::{DType, Graph, Op, ValueId, Weights};

/// Filters and channels of a block whose zeros are counted, the tile of tensor-core kernels.
pub const BLOCK: [usize; 2] = [16, 16];

/// Groups of a heat map's row.
const CELLS: usize = 64;

/// The weights of a convolution or fully connected layer as `[M, C, taps]`.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The node's name.
    pub name: String,
    /// The parameter's name.
    pub weight: String,
    /// Operation, in lower case.
    pub op: String,
    /// Filters, channels per group and taps.
    pub shape: [usize; 3],
    /// A product's weights in the order `[C, M]`.
    turned: bool,
}

impl Layer {
    /// Index in the parameter of filter m, channel c and tap t.
    pub fn index(&self, m: usize, c: usize, t: usize) -> usize {
        let [filters, channels, taps] = self.shape;
        if self.turned { c * filters + m } else { (m * channels + c) * taps + t }
    }

    /// Number of weights.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The layers with weights of a model, in order; a weight that several share is its first's.
pub fn layers(graph: &Graph) -> Vec<Layer> {
    let mut found: Vec<Layer> = Vec::new();
    for (_, node) in graph.nodes() {
        let Some(&w) = node.inputs.get(1) else { continue };
        let (value, dims) = (graph.value(w), &graph.ty(w).dims);
        let turned = match &node.op {
            Op::Conv(_) => false,
            Op::Gemm { trans_b, .. } => !trans_b,
            _ => continue,
        };
        let is_weight = matches!(value.def, Def::Param(_)) && value.ty.dtype == DType::F32 && dims.len() >= 2;
        if !is_weight || found.iter().any(|l| l.weight == value.name) {
            continue;
        }
        let [mut m, mut c] = [dims[0] as usize, dims[1] as usize];
        if turned {
            (m, c) = (c, m);
        }
        found.push(Layer {
            name: node.name.clone(),
            weight: value.name.clone(),
            op: node.op.name(),
            shape: [m, c, dims[2..].iter().product::<u64>() as usize],
            turned,
        });
    }
    found
}

/// What zeros a layer's weights have.
#[derive(Clone, Debug, PartialEq)]
pub struct Zeros {
    /// Weights.
    pub elements: usize,
    /// Of them zero.
    pub zeros: usize,
    /// Share of the groups of four neighbouring channels at one tap with at least two zeros: what
    /// 2:4 sparse tensor cores ask for. A rest of fewer than four counts as a group.
    pub two_of_four: f64,
    /// The least N such that every M neighbouring channels have at most N weights that are not
    /// zero, for M of 4, 8 and 16.
    pub n_of_m: [(usize, usize); 3],
    /// Share of the blocks of [`BLOCK`] filters and channels, all taps, that are zero.
    pub blocks: f64,
    /// Filters that are zero.
    pub filters: usize,
    /// Channels that no filter has weights for.
    pub channels: usize,
    /// Shares of zeros of up to 64 groups of filters, in order.
    pub heat: Vec<f64>,
}

impl Zeros {
    /// Counts the zeros of the weights `data` of a layer.
    pub fn of(layer: &Layer, data: &[f32]) -> Self {
        let [filters, channels, taps] = layer.shape;
        let zero = |m: usize, c: usize, t: usize| data.get(layer.index(m, c, t)).is_none_or(|v| *v == 0.0);
        let (mut alive_filters, mut alive_channels) = (vec![false; filters], vec![false; channels]);
        let mut alive_blocks = vec![false; filters.div_ceil(BLOCK[0]) * channels.div_ceil(BLOCK[1])];
        let mut per_filter = vec![0usize; filters];
        let (mut groups, mut compliant) = (0usize, 0usize);
        let mut n_of_m = [(0, 4), (0, 8), (0, 16)];
        for (m, zeros) in per_filter.iter_mut().enumerate() {
            for t in 0..taps {
                // Of the current group of each size.
                let mut counts = [0usize; 3];
                for c in 0..channels {
                    if zero(m, c, t) {
                        *zeros += 1;
                    } else {
                        alive_filters[m] = true;
                        alive_channels[c] = true;
                        alive_blocks[m / BLOCK[0] * channels.div_ceil(BLOCK[1]) + c / BLOCK[1]] = true;
                        counts.iter_mut().for_each(|n| *n += 1);
                    }
                    for (count, (n, of)) in counts.iter_mut().zip(&mut n_of_m) {
                        if (c + 1).is_multiple_of(*of) || c + 1 == channels {
                            if *of == 4 {
                                groups += 1;
                                compliant += usize::from(*count <= 2);
                            }
                            *n = (*count).max(*n);
                            *count = 0;
                        }
                    }
                }
            }
        }
        let share = |n: usize, of: usize| n as f64 / of.max(1) as f64;
        let cells = filters.min(CELLS);
        let heat = (0..cells).map(|i| {
            let range = i * filters / cells..(i + 1) * filters / cells;
            share(per_filter[range.clone()].iter().sum(), range.len() * channels * taps)
        });
        Self {
            elements: layer.elements(),
            zeros: per_filter.iter().sum(),
            two_of_four: share(compliant, groups),
            n_of_m,
            blocks: share(alive_blocks.iter().filter(|a| !**a).count(), alive_blocks.len()),
            filters: alive_filters.iter().filter(|a| !**a).count(),
            channels: alive_channels.iter().filter(|a| !**a).count(),
            heat: heat.collect(),
        }
    }
}

/// The dead channels of a batch norm: those that a ReLU behind it makes zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Norm {
    /// The node's name.
    pub name: String,
    /// Channels.
    pub channels: usize,
    /// With a factor of 0 and a shift of at most 0.
    pub dead: usize,
    /// With a factor and a shift within the tolerance, too.
    pub almost: usize,
}

/// Values of a parameter, by name.
pub fn values(weights: &Weights, graph: &Graph, v: ValueId) -> Option<Vec<f32>> {
    weights.tensors.get(&graph.value(v).name)?.to_f32()
}

/// The batch norms of an inference graph that a ReLU reads.
pub fn norms(graph: &Graph, weights: &Weights, tolerance: f32) -> Vec<Norm> {
    let relu = |v: ValueId| {
        let users = graph.value(v).users();
        users.iter().any(|&u| matches!(graph.node(u).op, Op::Unary(vdnn_ir::op::UnaryKind::Relu)))
    };
    let mut found = Vec::new();
    let mut seen = BTreeMap::new();
    for (_, node) in graph.nodes() {
        if !matches!(node.op, Op::BatchNormInfer { .. }) || !relu(node.outputs[0]) {
            continue;
        }
        let mut read = |v: ValueId| seen.entry(v).or_insert_with(|| values(weights, graph, v)).clone();
        let (Some(gamma), Some(beta)) = (read(node.inputs[1]), read(node.inputs[2])) else { continue };
        let count =
            |dead: &dyn Fn(f32, f32) -> bool| gamma.iter().zip(&beta).filter(|(g, b)| dead(**g, **b)).count();
        found.push(Norm {
            name: node.name.clone(),
            channels: gamma.len(),
            dead: count(&|g, b| g == 0.0 && b <= 0.0),
            almost: count(&|g, b| g == 0.0 && b <= 0.0 || g.abs() < tolerance && b <= tolerance),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(shape: [usize; 3], turned: bool) -> Layer {
        Layer { name: "l".into(), weight: "w".into(), op: "conv".into(), shape, turned }
    }

    #[test]
    fn patterns_are_counted() {
        // Two filters of five channels at one tap: the second is zero, channel 4 unused.
        let data = [1.0, 0.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, -0.0];
        let z = Zeros::of(&layer([2, 5, 1], false), &data);
        assert_eq!((z.elements, z.zeros, z.filters, z.channels), (10, 7, 1, 2));
        assert_eq!(z.two_of_four, 0.75, "three of the first four are not zero");
        assert_eq!(z.n_of_m, [(3, 4), (3, 8), (3, 16)]);
        assert_eq!(z.blocks, 0.0);
        assert_eq!(z.heat, [0.4, 1.0]);
        // The same matrix stored the other way round.
        let turned: Vec<f32> = (0..5).flat_map(|c| [data[c], data[5 + c]]).collect();
        assert_eq!(Zeros::of(&layer([2, 5, 1], true), &turned), z);
    }
}
