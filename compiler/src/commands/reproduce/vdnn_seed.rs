//! `vdnnc reproduce vdnn-seed`: the networks, policies and algorithm modes of the open
//! implementation of vDNN, from a replay of its own allocation rules over our layer lists.

use super::layers::{Kind, Network, Options};
use super::seed_replay::replay;
use super::table::{Figure, Tolerance};
use super::{Report, device, joint, selected};
use crate::error::Failure;
use serde::Deserialize;
use vdnn_passes::{AlgoMode, Policy};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Published {
    network: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "SCREAMING_SNAKE_CASE")]
struct Row {
    #[serde(rename = "title")]
    title: String,
    #[serde(rename = "zoo")]
    zoo: String,
    #[serde(rename = "batch")]
    batch: u64,
    /// Its fully connected layers are convolutions, and offloaded as such.
    #[serde(rename = "dense_as_conv")]
    dense_as_conv: bool,
    baseline: Sizes,
    vdnn_none: Sizes,
    vdnn_all: Sizes,
    vdnn_conv: Sizes,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sizes {
    peak: f64,
    average: Option<f64>,
    pinned: Option<f64>,
}

const MAPPING: &str = "\
Their options and ours
  BASELINE                --policy baseline
  VDNN_NONE               --policy none --sync layer
  VDNN_ALL                --policy all --sync layer
  VDNN_CONV               --policy conv --sync layer
  VDNN_MEMORY_OPT_ALGO    --algo memory
  VDNN_PERF_OPT_ALGO      --algo performance
  VDNN_DYNAMIC_ALGO       --policy dyn --algo dynamic
  ALEXNET, OVERFEAT, VGG16_N   zoo alexnet-seed, overfeat-fast, vgg16 with --batch N (128, 128, N)
  What our plans do otherwise: activations in place, inputs of activations and of fully
  connected layers stay on the device, the input image is released once it is on the host,
  pinned buffers are shared, weight gradients and momentum are counted.
";

/// The tables.
///
/// # Errors
/// None but our own bugs.
pub fn report() -> Result<Report, Failure> {
    let published: Published = toml::from_str(include_str!("vdnn_seed.toml")).map_err(Failure::internal)?;
    let cost = device()?;
    let mut memory =
        Figure::new("seed-memory-opt", "VDNN_MEMORY_OPT_ALGO: device and pinned memory", "MiB", 0);
    memory.notes.push(
        "published: a replay of the implementation's calls with workspaces of zero; it prints no \
         loss and no time that could be compared",
    );
    let mut fast = Figure::new(
        "seed-perf-opt",
        "VDNN_PERF_OPT_ALGO beside VDNN_MEMORY_OPT_ALGO (published): device memory",
        "MiB",
        0,
    );
    fast.notes.push("the difference is our model of the workspaces: cuDNN's heuristics are not public");
    for row in &published.network {
        let graph = joint(&row.zoo, row.batch, &cost)?;
        let shape = Options { in_place: false, softmax: true };
        let lean = network(&selected(&graph, AlgoMode::Memory, &cost)?, shape, row);
        let rich = network(&selected(&graph, AlgoMode::Performance, &cost)?, shape, row);
        let policies = [
            ("BASELINE", Policy::Baseline, &row.baseline),
            ("NONE", Policy::None, &row.vdnn_none),
            ("ALL", Policy::All, &row.vdnn_all),
            ("CONV", Policy::Conv, &row.vdnn_conv),
        ];
        for (name, policy, sizes) in policies {
            let ours = replay(&lean, policy);
            let bar = Tolerance::Share(0.01);
            memory.cell(&row.title, &format!("{name} peak"), sizes.peak, ours.peak.mib(), bar);
            if let Some(average) = sizes.average {
                memory.cell(&row.title, &format!("{name} mean"), average, ours.average / 1_048_576.0, bar);
            }
            if let Some(pinned) = sizes.pinned {
                memory.cell(&row.title, &format!("{name} pinned"), pinned, ours.pinned.mib(), bar);
            }
            let peak = replay(&rich, policy).peak;
            fast.cell(&row.title, &format!("{name} peak"), sizes.peak, peak.mib(), Tolerance::Reported);
        }
    }
    Ok(Report { figures: vec![memory, fast], remarks: MAPPING.to_owned() })
}

fn network(graph: &vdnn_ir::Graph, options: Options, row: &Row) -> Network {
    let mut net = Network::of(graph, options);
    if row.dense_as_conv {
        for layer in net.layers.iter_mut().filter(|l| l.kind == Kind::Dense) {
            layer.kind = Kind::Conv;
        }
    }
    net
}
