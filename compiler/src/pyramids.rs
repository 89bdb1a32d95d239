//! `--emit pyramids`: which layers of a network could run as one kernel, tile by tile, and what
//! that is predicted to gain. A report: no pass changes the graph.

mod chains;
mod picture;

pub use chains::{Found, chains};
pub use picture::svg;

use crate::error::Failure;
use serde_json::{Value, json};
use std::fmt::Write;
use vdnn_cost::CostModel;
use vdnn_ir::{Bytes, Graph, Nanos};
use vdnn_pyramid::machine::{Machine, Target};
use vdnn_pyramid::search::{Division, Fused, Group, Limits, search};

/// A chain of a graph, divided into groups.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The chain.
    pub found: Found,
    /// Its groups.
    pub division: Division,
}

/// All chains of a graph.
#[derive(Clone, Debug)]
pub struct Pyramids {
    /// Name of the device profile.
    pub device: String,
    /// Images.
    pub batch: u64,
    /// Most convolutions of a group.
    pub depth: usize,
    /// The chains with at least two layers, in program order.
    pub candidates: Vec<Candidate>,
    /// Predicted time of all kernels of the graph without pyramids.
    pub step: Nanos,
}

/// Finds the chains of a joint inference graph and searches each.
///
/// # Errors
/// If nothing is known of the device's multiprocessors.
pub fn find(graph: &Graph, batch: u64, depth: usize, cost: &CostModel) -> Result<Pyramids, Failure> {
    let device = cost.device_name();
    let machine = Machine::named(device).ok_or_else(|| {
        let known: Vec<&str> = Machine::names().collect();
        Failure::user(format!("nothing is known of the multiprocessors of `{device}`"))
            .hint(format!("use --device with one of {}", known.join(", ")))
    })?;
    let peaks = cost.peaks();
    let target = Target {
        machine,
        precision: cost.precision(),
        peak: peaks.arithmetic,
        bandwidth: peaks.bandwidth,
        launch: peaks.launch,
    };
    let limits = Limits { depth, ..Limits::default() };
    let candidates = chains(graph, cost).into_iter().map(|found| {
        let division = search(&found.chain, &found.alone, &target, batch, limits);
        Candidate { found, division }
    });
    let candidates = candidates.collect();
    let step = graph.nodes().map(|(id, _)| chains::price(graph, id, cost)).sum();
    Ok(Pyramids { device: device.to_owned(), batch, depth, candidates, step })
}

impl Pyramids {
    /// The groups that are fused, with their chains.
    pub fn fused(&self) -> impl Iterator<Item = (&Candidate, &Group, &Fused)> {
        self.candidates
            .iter()
            .flat_map(|c| c.division.groups.iter().filter_map(move |g| Some((c, g, g.fused.as_ref()?))))
    }

    /// Predicted time saved.
    pub fn saved(&self) -> Nanos {
        self.fused().map(|(_, g, _)| g.unfused.saturating_sub(g.time())).sum()
    }

    /// Bytes of tensors inside groups, which would not be stored any more.
    pub fn interior(&self) -> Bytes {
        self.fused().map(|(c, g, _)| c.found.interior(g.layers.clone())).sum()
    }

    /// The table.
    pub fn text(&self) -> String {
        let mut t = format!(
            "Layer pyramids, {} images on {}, at most {} convolutions each: predicted, no plan changes\n",
            self.batch, self.device, self.depth
        );
        if self.fused().next().is_none() {
            t.push_str("  none is predicted to be 15 % faster than its layers\n");
        } else {
            let _ = writeln!(
                t,
                "  {:<36}{:<24}{:>6}{:>10}{:>6}{:>8}{:>6}{:>10}{:>10}{:>7}",
                "layers", "tiles", "again", "shared", "regs", "blocks", "busy", "layers", "fused", "gain"
            );
        }
        for (c, g, f) in self.fused() {
            let e = &f.estimate;
            let names: Vec<&str> = c.found.names[g.layers.clone()].iter().map(String::as_str).collect();
            let _ = writeln!(
                t,
                "  {:<36}{:<24}{:>5.2}x{:>10}{:>6}{:>8}{:>5.0}%{:>10}{:>10}{:>6.2}x",
                short(&names),
                f.tiling.to_string(),
                e.recompute,
                e.shared.to_string(),
                e.registers,
                e.blocks,
                100.0 * e.utilisation,
                g.unfused.to_string(),
                e.time.to_string(),
                g.gain()
            );
        }
        let left = self.step.saturating_sub(self.saved());
        let _ = writeln!(
            t,
            "  {} chains; kernels of the step {} -> {} ({:.2}x); {} inside pyramids not stored",
            self.candidates.len(),
            self.step,
            left,
            self.step.as_f64() / left.as_f64().max(1.0),
            self.interior()
        );
        t
    }

    /// The object of `--json`.
    pub fn json(&self) -> Value {
        let group = |(c, g, f): (&Candidate, &Group, &Fused)| {
            let e = &f.estimate;
            json!({
                "layers": c.found.names[g.layers.clone()],
                "tiling": f.tiling.to_string(),
                "recompute": e.recompute,
                "shared_bytes": e.shared.0,
                "registers": e.registers,
                "blocks": e.blocks,
                "utilisation": e.utilisation,
                "memory_bytes": e.memory.0,
                "cache_bytes": e.cache.0,
                "interior_bytes": c.found.interior(g.layers.clone()).0,
                "unfused_ns": g.unfused.0,
                "fused_ns": e.time.0,
                "gain": g.gain(),
            })
        };
        json!({
            "device": self.device,
            "batch": self.batch,
            "depth": self.depth,
            "chains": self.candidates.len(),
            "step_ns": self.step.0,
            "saved_ns": self.saved().0,
            "interior_bytes": self.interior().0,
            "pyramids": self.fused().map(group).collect::<Vec<_>>(),
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
