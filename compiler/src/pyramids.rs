//! `--emit pyramids`: which layers of a network run as one kernel, tile by tile, with `--fuse all`,
//! and what that is measured or predicted to gain.

mod picture;

pub use picture::svg;

use crate::error::Failure;
use serde_json::{Value, json};
use std::fmt::Write;
use std::ops::Range;
use vdnn_cost::CostModel;
use vdnn_ir::{Bytes, Graph, Nanos, Op, TensorType};
use vdnn_passes::fuse_pyramids::{Found, FusePyramids, Group, Rule, chains, price};
use vdnn_pyramid::kernel::{Config, kernel};
use vdnn_pyramid::machine::Machine;
use vdnn_pyramid::{Chain, Geometry, Mode, Tiling, chain_of, count};

/// A group of layers as one kernel.
#[derive(Clone, Debug)]
pub struct Pyramid {
    /// Names of the layers' nodes.
    pub names: Vec<String>,
    /// The layers, of one image.
    pub chain: Chain,
    /// How the kernel runs.
    pub config: String,
    /// Its tiles.
    pub tiling: Tiling,
    /// Multiply-adds over those with every position computed once.
    pub recompute: f64,
    /// Shared memory of a block.
    pub shared: Bytes,
    /// Blocks.
    pub blocks: u64,
    /// Time of the layers by themselves.
    pub unfused: Nanos,
    /// Predicted time, if the cost model has one.
    pub predicted: Option<Nanos>,
    /// Measured time, if there is one.
    pub measured: Option<Nanos>,
    /// Bytes of the tensors inside, which are not stored.
    pub interior: Bytes,
    /// Whether a plan would have it.
    pub fused: bool,
}

impl Pyramid {
    /// Time: measured if it was.
    pub fn time(&self) -> Nanos {
        self.measured.or(self.predicted).unwrap_or_default()
    }

    /// Time of the layers by themselves over the pyramid's.
    pub fn gain(&self) -> f64 {
        self.unfused.as_f64() / self.time().as_f64().max(1.0)
    }
}

/// All pyramids of a graph.
#[derive(Clone, Debug)]
pub struct Pyramids {
    /// Name of the device profile.
    pub device: String,
    /// Images.
    pub batch: u64,
    /// Most convolutions of a group.
    pub depth: usize,
    /// Chains with at least two layers.
    pub chains: usize,
    /// Those that a plan would have, in program order, then those that were measured to be no
    /// faster than their layers.
    pub pyramids: Vec<Pyramid>,
    /// Time of all kernels of the graph without pyramids.
    pub step: Nanos,
}

/// Finds the pyramids of a joint inference graph without any.
///
/// # Errors
/// If nothing is known of the device's multiprocessors.
pub fn find(graph: &Graph, batch: u64, depth: usize, cost: &CostModel) -> Result<Pyramids, Failure> {
    let device = cost.device_name();
    if cost.pyramid_target().is_none() && cost.measured().is_empty() {
        let known: Vec<&str> = Machine::names().collect();
        return Err(Failure::user(format!("nothing is known of the multiprocessors of `{device}`"))
            .hint(format!("use --device with one of {}", known.join(", "))));
    }
    let pass = FusePyramids { depth, rule: Rule::Predicted, footprint: None };
    let divided = pass.groups(graph, cost);
    let mut pyramids = Vec::new();
    for (found, groups) in &divided {
        pyramids.extend(groups.iter().filter_map(|group| chosen(graph, found, group, cost)));
    }
    for (found, groups) in &divided {
        let taken = |layers: &Range<usize>| groups.iter().any(|g| g.fused.is_some() && g.layers == *layers);
        let ends = 2..=found.layers.len();
        let all = ends.flat_map(|end| (0..end - 1).map(move |start| start..end));
        let others = all.filter(|layers| !taken(layers));
        pyramids.extend(others.filter_map(|layers| measured(graph, found, layers, cost)));
    }
    let step = graph.nodes().map(|(id, _)| price(graph, id, cost).0).sum();
    let chains = chains(graph, cost).len();
    Ok(Pyramids { device: device.to_owned(), batch, depth, chains, pyramids, step })
}

fn chosen(graph: &Graph, found: &Found, group: &Group, cost: &CostModel) -> Option<Pyramid> {
    let fused = group.fused.as_ref()?;
    let mut pyramid = describe(graph, found, group.layers.clone(), &fused.option.config, cost)?;
    pyramid.measured = fused.measured.then_some(fused.option.time);
    pyramid.fused = true;
    Some(pyramid)
}

/// What was measured of some layers, if something was.
fn measured(graph: &Graph, found: &Found, layers: Range<usize>, cost: &CostModel) -> Option<Pyramid> {
    let (pyramid, operands) = found.pyramid(layers.clone());
    let inputs: Vec<TensorType> = operands.into_iter().map(|o| o.ty(graph)).collect();
    let output = graph.ty(found.layers[layers.end - 1].result);
    let best = cost.measured_pyramid(&pyramid, &inputs.iter().collect::<Vec<_>>(), &[output]);
    let best = best.into_iter().next()?;
    let mut pyramid = describe(graph, found, layers, &best.config, cost)?;
    pyramid.measured = Some(best.time);
    Some(pyramid)
}

fn describe(
    graph: &Graph,
    found: &Found,
    layers: Range<usize>,
    config: &str,
    cost: &CostModel,
) -> Option<Pyramid> {
    let (pyramid, operands) = found.pyramid(layers.clone());
    let inputs: Vec<TensorType> = operands.into_iter().map(|o| o.ty(graph)).collect();
    let inputs: Vec<&TensorType> = inputs.iter().collect();
    let output = graph.ty(found.layers[layers.end - 1].result);
    let chain = chain_of(&pyramid, &inputs)?;
    let way: Config = config.parse().ok()?;
    let tiling = match way {
        Config::Loops(tiling) => tiling,
        Config::Tensor(t) => {
            Tiling { rows: u64::from(t.rows), cols: u64::from(t.cols), mode: Mode::Recompute }
        }
        // No tiles of images.
        Config::Stage(_) => return None,
    };
    let batch = inputs[0].dims[0];
    let kernel = kernel(&chain, &way, cost.precision(), inputs[0].layout, batch).ok()?;
    let geometry = Geometry::new(&chain, tiling).ok()?;
    let op = Op::Pyramid(pyramid.with_config(config));
    // Without the rows, what the model itself says.
    let model = cost.clone().with_measured(vdnn_cost::Measured::default());
    Some(Pyramid {
        names: found.names(graph)[layers.clone()].to_vec(),
        config: config.to_owned(),
        tiling,
        recompute: count(&chain, &geometry, cost.precision()).recompute(&chain),
        shared: kernel.shared,
        blocks: kernel.grid.iter().map(|&n| u64::from(n)).product(),
        unfused: found.alone(layers.clone()).0,
        predicted: cost.pyramid_target().map(|_| model.kernel(&op, &inputs, &[output], None)),
        measured: None,
        interior: found.interior(graph, layers),
        fused: false,
        chain,
    })
}

impl Pyramids {
    /// Those that a plan would have.
    pub fn fused(&self) -> impl Iterator<Item = &Pyramid> {
        self.pyramids.iter().filter(|p| p.fused)
    }

    /// Time saved.
    pub fn saved(&self) -> Nanos {
        self.fused().map(|p| p.unfused.saturating_sub(p.time())).sum()
    }

    /// Bytes of tensors inside pyramids, which are not stored any more.
    pub fn interior(&self) -> Bytes {
        self.fused().map(|p| p.interior).sum()
    }

    /// The table.
    pub fn text(&self) -> String {
        let mut t = format!(
            "Layer pyramids, {} images on {}, at most {} convolutions each\n",
            self.batch, self.device, self.depth
        );
        if self.pyramids.is_empty() {
            t.push_str("  none is measured to be faster than its layers, or predicted to be 15 % faster\n");
        } else {
            let _ = writeln!(
                t,
                "  {:<36}{:>6}{:>10}{:>8}{:>10}{:>10}{:>10}{:>7}  kernel",
                "layers", "again", "shared", "blocks", "layers", "predicted", "measured", "gain"
            );
        }
        let time = |t: Option<Nanos>| t.map_or_else(|| "-".to_owned(), |t| t.to_string());
        for p in &self.pyramids {
            let names: Vec<&str> = p.names.iter().map(String::as_str).collect();
            let _ = writeln!(
                t,
                "  {:<36}{:>5.2}x{:>10}{:>8}{:>10}{:>10}{:>10}{:>6.2}x  {}{}",
                short(&names),
                p.recompute,
                p.shared.to_string(),
                p.blocks,
                p.unfused.to_string(),
                time(p.predicted),
                time(p.measured),
                p.gain(),
                p.config,
                if p.fused { "" } else { " (left apart)" }
            );
        }
        let left = self.step.saturating_sub(self.saved());
        let _ = writeln!(
            t,
            "  {} chains; kernels of the step {} -> {} ({:.2}x); {} inside pyramids not stored",
            self.chains,
            self.step,
            left,
            self.step.as_f64() / left.as_f64().max(1.0),
            self.interior()
        );
        t
    }

    /// The object of `--json`.
    pub fn json(&self) -> Value {
        let pyramid = |p: &Pyramid| {
            json!({
                "layers": p.names,
                "fused": p.fused,
                "kernel": p.config,
                "tiling": p.tiling.to_string(),
                "recompute": p.recompute,
                "shared_bytes": p.shared.0,
                "blocks": p.blocks,
                "interior_bytes": p.interior.0,
                "unfused_ns": p.unfused.0,
                "predicted_ns": p.predicted.map(|t| t.0),
                "measured_ns": p.measured.map(|t| t.0),
                "gain": p.gain(),
            })
        };
        json!({
            "device": self.device,
            "batch": self.batch,
            "depth": self.depth,
            "chains": self.chains,
            "step_ns": self.step.0,
            "saved_ns": self.saved().0,
            "interior_bytes": self.interior().0,
            "pyramids": self.pyramids.iter().map(pyramid).collect::<Vec<_>>(),
        })
    }
}

/// The first name and what the last one adds to it, cut to the table's column.
fn short(names: &[&str]) -> String {
    let cut = |name: &str| -> String {
        let chars: Vec<char> = name.chars().collect();
        chars[chars.len().saturating_sub(22)..].iter().collect()
    };
    match names {
        [] => String::new(),
        [one] => cut(one),
        [first, .., last] => {
            let tail = last.rsplit(['.', '/', '_']).next().unwrap_or(last);
            format!("{} .. {}", cut(first), cut(tail))
        }
    }
}
