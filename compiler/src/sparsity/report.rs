//! The zeros of a model as a table and as JSON.

use super::{Layer, Norm, Zeros, layers, norms};
use crate::commands::load;
use serde_json::{Value, json};
use std::fmt::Write;
use std::rc::Rc;
use vdnn_cost::CostModel;
use vdnn_frontends::onnx::Imported;
use vdnn_ir::Graph;
use vdnn_passes::sparsify::{Sparse, SparseMode, Sparsify};
use vdnn_passes::{PassCtx, PassError, Stats, pass::run_pass, simplify::Simplify};

/// The zeros of a model.
#[derive(Debug)]
pub struct Report {
    /// Layers with weights.
    pub layers: Vec<(Layer, Zeros)>,
    /// Batch norms in front of ReLUs.
    pub norms: Vec<Norm>,
    /// Below this a factor counts as zero.
    pub tolerance: f32,
    /// What `sparsify` removes if it removes all it can.
    pub removal: Stats,
}

impl Report {
    /// Looks at a model's weights.
    ///
    /// # Errors
    /// Those of the passes that tell what can be removed.
    pub fn new(imported: &Imported, tolerance: f32, cost: &CostModel) -> Result<Self, PassError> {
        let mut graph: Graph = imported.graph.clone();
        let cx = PassCtx { cost };
        run_pass(&Simplify, &mut graph, &cx)?;
        let weights = &imported.weights;
        let param = |name: &str| weights.tensors.get(name)?.to_f32();
        let found = layers(&imported.graph).into_iter().filter_map(|layer| {
            let zeros = Zeros::of(&layer, &param(&layer.weight)?);
            Some((layer, zeros))
        });
        let norms = norms(&graph, weights, tolerance);
        let layers = found.collect();
        let sparse = Sparse {
            mode: SparseMode::Channels,
            dead_tolerance: tolerance,
            facts: Rc::new(load::facts(weights)),
            on_host: true,
            ..Sparse::default()
        };
        let removal = run_pass(&Sparsify(sparse), &mut graph, &cx)?.stats;
        Ok(Self { layers, norms, tolerance, removal })
    }

    fn removed(&self, what: &str) -> u64 {
        self.removal.get(what).copied().unwrap_or(0)
    }

    fn removed_share(&self) -> f64 {
        self.removed("removed_macs") as f64 / self.removed("macs").max(1) as f64
    }

    fn total(&self) -> (usize, usize) {
        self.layers.iter().fold((0, 0), |(z, n), (_, l)| (z + l.zeros, n + l.elements))
    }

    /// The table.
    pub fn text(&self) -> String {
        let mut t = String::new();
        let _ = writeln!(
            t,
            "{:<42}{:>18}{:>9}{:>8}{:>20}{:>10}{:>13}{:>13}",
            "layer", "weights", "zeros", "2:4", "N:M", "blocks", "filters", "channels"
        );
        for (layer, z) in &self.layers {
            let [m, c, taps] = layer.shape;
            let n_of_m: Vec<String> = z.n_of_m.iter().map(|(n, m)| format!("{n}:{m}")).collect();
            let _ = writeln!(
                t,
                "{:<42}{:>18}{:>7.1} %{:>6.0} %{:>20}{:>8.1} %{:>13}{:>13}",
                layer.name,
                format!("{m}x{c}x{taps}"),
                100.0 * z.zeros as f64 / z.elements.max(1) as f64,
                100.0 * z.two_of_four,
                n_of_m.join(" "),
                100.0 * z.blocks,
                format!("{}/{m}", z.filters),
                format!("{}/{c}", z.channels),
            );
        }
        let dead: Vec<&Norm> = self.norms.iter().filter(|n| n.almost > 0).collect();
        if !dead.is_empty() {
            let _ = writeln!(
                t,
                "\n{:<42}{:>18}{:>9}{:>20}",
                "batch norm",
                "channels",
                "dead",
                format!("below {:e}", self.tolerance)
            );
        }
        for n in dead {
            let _ = writeln!(t, "{:<42}{:>18}{:>9}{:>20}", n.name, n.channels, n.dead, n.almost);
        }
        let (zeros, elements) = self.total();
        let sum = |f: &dyn Fn(&Norm) -> usize| self.norms.iter().map(f).sum::<usize>();
        let _ = writeln!(
            t,
            "\n{zeros} of {elements} weights are zero ({:.2} %); {} of {} batch norm channels are dead, {} within {:e}",
            100.0 * zeros as f64 / elements.max(1) as f64,
            sum(&|n| n.dead),
            sum(&|n| n.channels),
            sum(&|n| n.almost),
            self.tolerance
        );
        let _ = writeln!(
            t,
            "removing channels: {} results, {:.2} % of the multiply-adds ({} gathers at run time)",
            self.removed("removed_channels"),
            100.0 * self.removed_share(),
            self.removed("gathers")
        );
        t
    }

    /// The JSON object.
    pub fn json(&self) -> Value {
        let layers = self.layers.iter().map(|(layer, z)| {
            let n_of_m = z.n_of_m.iter().map(|(n, m)| json!({"n": n, "m": m})).collect::<Vec<_>>();
            json!({
                "name": layer.name, "weight": layer.weight, "op": layer.op, "shape": layer.shape,
                "elements": z.elements, "zeros": z.zeros, "two_of_four": z.two_of_four, "n_of_m": n_of_m,
                "zero_blocks_16x16": z.blocks, "zero_filters": z.filters, "zero_channels": z.channels,
            })
        });
        let norms = self.norms.iter().map(|n| {
            json!({"name": n.name, "channels": n.channels, "dead": n.dead, "dead_within_tolerance": n.almost})
        });
        let (zeros, elements) = self.total();
        json!({
            "elements": elements, "zeros": zeros, "dead_tolerance": self.tolerance,
            "dead_channels": self.norms.iter().map(|n| n.dead).sum::<usize>(),
            "dead_channels_within_tolerance": self.norms.iter().map(|n| n.almost).sum::<usize>(),
            "batch_norm_channels": self.norms.iter().map(|n| n.channels).sum::<usize>(),
            "removable": self.removal, "removable_macs_share": self.removed_share(),
            "layers": layers.collect::<Vec<_>>(), "norms": norms.collect::<Vec<_>>(),
        })
    }
}
