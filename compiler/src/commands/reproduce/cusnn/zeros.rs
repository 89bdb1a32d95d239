//! The zeros of feature maps, layer by layer: what cuSNN's kernels leave out.

use crate::error::Failure;
use crate::options::CompileOptions;
use crate::sparsity::activations::{self, Activation};
use std::collections::BTreeMap;
use vdnn_cost::CostModel;
use vdnn_frontends::onnx::Imported;
use vdnn_ir::graph::Def;
use vdnn_ir::{Graph, Node, Op, Tensor, ValueId};

/// A 3x3 convolution with stride 1 and padding 1 whose operand the network computes.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    /// The node's name, in plans too.
    pub name: String,
    /// Channels read and written.
    pub channels: [u64; 2],
    /// Height of the feature map.
    pub size: u64,
    /// The zeros of its operand over all images.
    pub zeros: Activation,
}

/// What was counted.
#[derive(Clone, Debug)]
pub(super) struct Zeros {
    /// Behind every ReLU.
    pub relus: Vec<Activation>,
    /// In the order of the graph.
    pub layers: Vec<Layer>,
}

fn is_target(graph: &Graph, node: &Node) -> bool {
    let Op::Conv(a) = &node.op else { return false };
    let of = |list: &[u64], n: u64| list == [n, n];
    let plain = of(&a.kernel, 3) && of(&a.strides, 1) && of(&a.dilations, 1) && a.groups == 1;
    let computed = matches!(graph.value(node.inputs[0]).def, Def::Node { .. });
    plain && of(&a.before, 1) && of(&a.after, 1) && computed
}

/// Runs the model on the CPU, on images one after the other.
///
/// # Errors
/// As [`activations::measure`].
pub(super) fn count(
    imported: &Imported,
    images: &Tensor,
    options: &CompileOptions,
    cost: &CostModel,
) -> Result<Zeros, Failure> {
    let graph = &imported.graph;
    let relus = activations::relus(graph);
    let targets: Vec<&Node> = graph.nodes().map(|(_, n)| n).filter(|n| is_target(graph, n)).collect();
    let mut wanted: Vec<(String, ValueId)> = relus.clone();
    for node in &targets {
        let x = node.inputs[0];
        if wanted.iter().all(|(_, v)| *v != x) {
            wanted.push((node.name.clone(), x));
        }
    }
    let threads = crate::commands::run::default_threads();
    let values: Vec<ValueId> = wanted.iter().map(|w| w.1).collect();
    let found = activations::measure(imported, wanted, images, options, cost, threads)?;
    let by_value: BTreeMap<ValueId, &Activation> = values.into_iter().zip(&found).collect();
    let layer = |node: &&Node| Layer {
        name: node.name.clone(),
        channels: [graph.ty(node.inputs[1]).dims[1], graph.ty(node.inputs[1]).dims[0]],
        size: graph.ty(node.outputs[0]).dims[2],
        zeros: by_value[&node.inputs[0]].clone(),
    };
    Ok(Zeros { layers: targets.iter().map(layer).collect(), relus: found[..relus.len()].to_vec() })
}

/// Layers by the size of their feature maps, large ones first, and the mean, least and largest of
/// a figure over those that have it.
pub(super) fn by_size<T>(
    rows: &[T],
    size: impl Fn(&T) -> u64,
    figure: impl Fn(&T) -> Option<f64>,
) -> Vec<(u64, usize, [f64; 3])> {
    let mut groups: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for row in rows {
        if let Some(f) = figure(row) {
            groups.entry(size(row)).or_default().push(f);
        }
    }
    groups.into_iter().rev().map(|(size, all)| (size, all.len(), spread(&all))).collect()
}

/// Mean, least and largest.
pub(super) fn spread(all: &[f64]) -> [f64; 3] {
    let mean = all.iter().sum::<f64>() / all.len().max(1) as f64;
    let least = all.iter().copied().fold(f64::INFINITY, f64::min);
    [mean, least, all.iter().copied().fold(f64::NEG_INFINITY, f64::max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_grouped_by_size() {
        let rows = [(56, Some(1.0)), (7, Some(4.0)), (56, Some(2.0)), (7, None), (14, None)];
        let groups = by_size(&rows, |r| r.0, |r| r.1);
        assert_eq!(groups, [(56, 2, [1.5, 1.0, 2.0]), (7, 1, [4.0, 4.0, 4.0])]);
    }
}
