//! `vdnnc reproduce vdnn`: the figures of the vDNN paper (Rhu et al., MICRO 2016).

use super::layers::{Network, Options};
use super::replay::{Usage, managed, network_wide};
use super::table::{Figure, Tolerance};
use super::{Report, device, import, joint, options, selected};
use crate::driver::{self, NoPlan, Summary};
use crate::error::Failure;
use serde::Deserialize;
use std::collections::BTreeMap;
use vdnn_cost::CostModel;
use vdnn_ir::{Bytes, Graph};
use vdnn_passes::offload::selection;
use vdnn_passes::{AlgoMode, Policy};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Published {
    #[expect(dead_code, reason = "read by people")]
    resolution: BTreeMap<String, f64>,
    network: Vec<Row>,
    deep: Vec<Deep>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    title: String,
    zoo: String,
    batch: u64,
    average: BTreeMap<String, f64>,
    maximum: BTreeMap<String, f64>,
    offload: BTreeMap<String, f64>,
    performance: BTreeMap<String, f64>,
    reduction: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Deep {
    title: String,
    zoo: String,
    host: f64,
    device: f64,
    base: f64,
}

/// Batch of figure 15.
const DEEP_BATCH: u64 = 32;

/// The series of figures 11 and 14, in the paper's order.
const SERIES: [(&str, Policy, AlgoMode); 7] = [
    ("all(m)", Policy::All, AlgoMode::Memory),
    ("all(p)", Policy::All, AlgoMode::Performance),
    ("conv(m)", Policy::Conv, AlgoMode::Memory),
    ("conv(p)", Policy::Conv, AlgoMode::Performance),
    ("dyn", Policy::Dyn, AlgoMode::Dynamic),
    ("base(m)", Policy::Baseline, AlgoMode::Memory),
    ("base(p)", Policy::Baseline, AlgoMode::Performance),
];

const WORKSPACES: &str = "(p): the workspaces of cuDNN 4 are modelled (profile: fft_workspace, fft_passes)";

const REMARKS: &str = "\
How ours comes about
  Networks from the zoo (the paper's VGG-16 is VGG-19, its AlexNet the one-tower net, its
  OverFeat the accurate model), profile titan-x-maxwell, MiB, activations in place, only the
  feature extractor managed, layer-end synchronisation. Offloaded bytes and times are those
  of our plans and our simulator. Memory is the paper's account, which leaves out weight
  gradients and momentum: the rules are in compiler/src/commands/reproduce/replay.rs, the same
  for every cell. Constants fitted once: the efficiencies of the convolutions and of the FFTs'
  workspace and passes, in the profile, which says why.
";

/// The figures.
///
/// # Errors
/// Our own bugs.
pub fn report() -> Result<Report, Failure> {
    let published: Published = toml::from_str(include_str!("vdnn.toml")).map_err(Failure::internal)?;
    let cost = device()?;
    let mut figures = Figures::new();
    for row in &published.network {
        figures.network(row, &cost)?;
    }
    for deep in &published.deep {
        figures.deep(deep, &cost)?;
    }
    Ok(Report { figures: figures.finish(), remarks: REMARKS.to_owned() })
}

struct Figures {
    average: Figure,
    maximum: Figure,
    offload: Figure,
    performance: Figure,
    deep: Figure,
    reduction: Figure,
}

impl Figures {
    fn new() -> Self {
        let new = |id, title, unit, digits, notes: &[&'static str]| Figure {
            notes: notes.to_vec(),
            ..Figure::new(id, title, unit, digits)
        };
        Self {
            average: new(
                "fig11-average",
                "Figure 11: average device memory",
                "MiB",
                0,
                &[
                    "(m): the mean is over layers; the paper does not say over what it takes its own",
                    WORKSPACES,
                    "dyn: ours fits less often: its limit counts momentum and weight gradients too, \
                     and it stops at the first policy that fits",
                ],
            ),
            maximum: new(
                "fig11-maximum",
                "Figure 11: maximum device memory",
                "MiB",
                0,
                &[
                    "bars are read to 39 MiB",
                    WORKSPACES,
                    "VGG 256 (p) and base: the paper's own bars do not fit its 12 GB, so nothing ran",
                    "GoogLeNet base(m): the definition, maps and weights and two gradient buffers, does \
                     not explain the published value; VGG 128 base(m) is 5 % above it",
                ],
            ),
            offload: new("fig12", "Figure 12: offloaded per step", "MiB", 0, &["bars are read to 28 MiB"]),
            performance: new(
                "fig14",
                "Figure 14: speed against base(p)",
                "",
                2,
                &["kernel times are the profile's: efficiencies fitted once, for all networks together"],
            ),
            deep: new(
                "fig15",
                "Figure 15: very deep VGG, batch 32",
                "MiB",
                0,
                &["host: every X of a convolution or pool, which is what the paper's dyn offloads here"],
            ),
            reduction: new(
                "reduction",
                "Abstract: average memory of all(m) less than base(p)",
                "%",
                1,
                &["all(m) without the classifier, base(p) with it, as in figure 11"],
            ),
        }
    }

    fn network(&mut self, row: &Row, cost: &CostModel) -> Result<(), Failure> {
        let graph = joint(&row.zoo, row.batch, cost)?;
        let shape = Options { in_place: true, softmax: false };
        let lean = Network::of(&selected(&graph, AlgoMode::Memory, cost)?, shape);
        let rich = Network::of(&selected(&graph, AlgoMode::Performance, cost)?, shape);
        let of = |algo| if algo == AlgoMode::Memory { &lean } else { &rich };

        let source = import(&row.zoo, row.batch)?;
        let mut steps = BTreeMap::new();
        // What `dyn` chose: policy, and algorithms layer by layer.
        let mut chosen = (Policy::None, rich.clone());
        for (name, policy, algo) in SERIES {
            let (summary, graph) = simulate(&source, row.batch, policy, algo, cost)?;
            steps.insert(name, summary.step.as_f64());
            if let (Policy::Dyn, Some(graph)) = (policy, graph) {
                chosen = (summary.chosen_policy, Network::of(&graph, shape));
            }
        }
        for (name, policy, algo) in SERIES {
            let net = of(algo);
            let Usage { average, maximum } = match policy {
                Policy::Baseline => {
                    let bytes = network_wide(net);
                    Usage { average: bytes.as_f64(), maximum: bytes }
                }
                Policy::Dyn => managed(&chosen.1, chosen.0),
                _ => managed(net, policy),
            };
            if let Some(&theirs) = row.average.get(name) {
                self.average.cell(&row.title, name, theirs, average / 1_048_576.0, Tolerance::Reported);
            }
            if let Some(&theirs) = row.maximum.get(name) {
                self.maximum.cell(&row.title, name, theirs, maximum.mib(), maximum_bar(row, name));
            }
            if let Some(&theirs) = row.performance.get(name) {
                let ours = steps["base(p)"] / steps[name];
                let bar = if row.zoo == "googlenet" { Tolerance::Reported } else { Tolerance::Within(0.05) };
                self.performance.cell(&row.title, name, theirs, ours, bar);
            }
        }
        for (name, policy) in [("all", Policy::All), ("conv", Policy::Conv)] {
            let ours = selection(&graph, policy).bytes(&graph).mib();
            let bar = Tolerance::ShareOr(0.01, 28.0);
            self.offload.cell(&row.title, name, row.offload[name], ours, bar);
        }
        if let Some(theirs) = row.reduction {
            let used = managed(&lean, Policy::All).average;
            let ours = 100.0 * (1.0 - used / network_wide(&rich).as_f64());
            self.reduction.cell(&row.title, "all(m)", theirs, ours, Tolerance::Within(3.0));
        }
        Ok(())
    }

    fn deep(&mut self, deep: &Deep, cost: &CostModel) -> Result<(), Failure> {
        let graph = joint(&deep.zoo, DEEP_BATCH, cost)?;
        let shape = Options { in_place: true, softmax: false };
        let rich = Network::of(&selected(&graph, AlgoMode::Performance, cost)?, shape);
        let host = selection(&graph, Policy::All).bytes(&graph).mib();
        self.deep.cell(&deep.title, "host", deep.host, host, Tolerance::ShareOr(0.01, 28.0));
        let device = managed(&rich, Policy::All).maximum.mib();
        self.deep.cell(&deep.title, "device", deep.device, device, Tolerance::Reported);
        let base = network_wide(&rich).mib();
        self.deep.cell(&deep.title, "base(p)", deep.base, base, Tolerance::Reported);
        Ok(())
    }

    fn finish(self) -> Vec<Figure> {
        vec![self.average, self.maximum, self.reduction, self.offload, self.performance, self.deep]
    }
}

/// The bar of a maximum.
fn maximum_bar(row: &Row, series: &str) -> Tolerance {
    match (series, row.zoo.as_str(), row.batch) {
        ("base(m)", "googlenet", _) => Tolerance::Reported,
        ("base(m)", "vgg19", 128) => Tolerance::Share(0.06),
        ("base(m)", ..) => Tolerance::Share(0.01),
        ("base(p)" | "dyn", ..) => Tolerance::Reported,
        _ => Tolerance::Share(0.20),
    }
}

/// Compiles without a limit on memory (the paper shows what does not fit, too), `dyn` with
/// the device's, and predicts the step.
fn simulate(
    graph: &Graph,
    batch: u64,
    policy: Policy,
    algo: AlgoMode,
    cost: &CostModel,
) -> Result<(Summary, Option<Graph>), Failure> {
    let mut options = options(policy, algo);
    if policy != Policy::Dyn {
        options.memory = Some(Bytes(u64::MAX / 4));
    }
    match driver::compile(graph.clone(), batch, None, &options, cost) {
        Ok(compiled) => Ok((compiled.summary, Some(compiled.graph))),
        Err(NoPlan::TooLarge { summary, .. }) => Ok((*summary, None)),
        Err(NoPlan::Failed(f)) => Err(f),
    }
}
