//! `vdnnc reproduce WHAT`: published tables beside ours.

pub mod chart;
mod cusnn;
pub mod fused_layer;
pub mod layers;
pub mod replay;
pub mod seed_replay;
pub mod table;
pub mod vdnn;
pub mod vdnn_seed;

use crate::cli::{Artefact, ReproduceArgs};
use crate::error::Failure;
use crate::options::CompileOptions;
use crate::pipeline::{self, Attempt};
use crate::slicing::Slices;
use crate::timing::Timings;
use std::collections::BTreeMap;
use std::io::Write;
use std::rc::Rc;
use table::Figure;
use vdnn_cost::{CostModel, Precision};
use vdnn_frontends::onnx::{self, ImportOptions};
use vdnn_frontends::zoo::{self, ZooOptions};
use vdnn_ir::{Graph, Mode, Phase};
use vdnn_passes::fuse_pyramids::DEPTH;
use vdnn_passes::micro_batch::Menu;
use vdnn_passes::{AlgoMode, BatchSizes, Fuse, Packing, Policy, Recompute, SyncMode, Workspace};

/// The device of the paper.
const DEVICE: &str = "titan-x-maxwell";

/// What an artefact prints.
#[derive(Clone, Debug)]
pub struct Report {
    /// The figures.
    pub figures: Vec<Figure>,
    /// Text after them.
    pub remarks: String,
}

/// Runs the command.
///
/// # Errors
/// If a cell is outside its tolerance: the table names them all.
pub fn run(args: &ReproduceArgs) -> Result<(), Failure> {
    let own = &args.cusnn;
    let given = !own.models.is_empty() || own.data.is_some() || own.images.is_some() || own.limit.is_some();
    if given && args.what != Artefact::Cusnn {
        return Err(Failure::user(format!("reproduce {} takes neither models nor images", args.what.name())));
    }
    let report = match args.what {
        Artefact::Vdnn => vdnn::report()?,
        Artefact::VdnnSeed => vdnn_seed::report()?,
        Artefact::FusedLayer => fused_layer::report()?,
        Artefact::Cusnn => return cusnn::run(args),
    };
    if let Some(dir) = &args.svg {
        std::fs::create_dir_all(dir)
            .map_err(|e| Failure::user(format!("cannot make {}: {e}", dir.display())))?;
        for figure in &report.figures {
            let path = dir.join(format!("{}.svg", figure.id));
            vdnn_frontends::safe_file::write_atomic(&path, |f| f.write_all(chart::svg(figure).as_bytes()))
                .map_err(Failure::user)?;
        }
    }
    let outside: Vec<String> = report
        .figures
        .iter()
        .flat_map(|f| f.failures().map(move |c| format!("{} {} {}", f.id, c.row, c.column)))
        .collect();
    let judged = report.figures.iter().flat_map(|f| &f.cells);
    let judged = judged.filter(|c| c.tolerance != table::Tolerance::Reported).count();
    if args.json {
        let figures: Vec<_> = report.figures.iter().map(Figure::json).collect();
        let object = serde_json::json!({
            "artefact": args.what.name(), "judged": judged, "outside": outside, "figures": figures,
        });
        super::print(&object.to_string());
    } else {
        let mut text: Vec<String> = report.figures.iter().map(Figure::text).collect();
        text.push(report.remarks);
        text.push(format!("{} of {judged} cells with a tolerance keep it\n", judged - outside.len()));
        super::print(&text.join("\n"));
    }
    if outside.is_empty() {
        return Ok(());
    }
    Err(Failure::user(format!("{} cells outside their tolerance: {}", outside.len(), outside.join(", "))))
}

/// A network of the zoo at a batch size, imported.
fn import(name: &str, batch: u64) -> Result<Graph, Failure> {
    let options = ZooOptions { batch: Some(batch), ..ZooOptions::default() };
    let model = zoo::build_zeroed(name, &options).map_err(Failure::internal)?;
    let options = ImportOptions { batch: Some(batch), dims: BTreeMap::new(), training: true };
    Ok(onnx::import_model(model, None, &options).map_err(Failure::internal)?.graph)
}

/// The training graph of a network.
fn joint(name: &str, batch: u64, cost: &CostModel) -> Result<Graph, Failure> {
    let mut graph = import(name, batch)?;
    pipeline::to_joint(&mut graph, Mode::Train, false, Fuse::Off, cost, &mut Timings::default())?;
    Ok(graph)
}

/// The training graph with algorithms chosen.
fn selected(joint: &Graph, algo: AlgoMode, cost: &CostModel) -> Result<Graph, Failure> {
    let mut graph = joint.clone();
    let attempt = Attempt {
        policy: Policy::None,
        algo,
        overrides: BTreeMap::new(),
        workspace: Workspace::Planned,
        menu: Rc::new(Menu::new(BatchSizes::Undivided)),
        sync: SyncMode::Layer,
        packing: Packing::Off,
        lag: 0,
    };
    pipeline::to_phase(&mut graph, Phase::Selected, &attempt, cost, &mut Timings::default())?;
    Ok(graph)
}

/// The cost model of the paper's device.
fn device() -> Result<CostModel, Failure> {
    CostModel::named(DEVICE, Precision::F32)
        .ok_or_else(|| Failure::internal(format!("the profile {DEVICE} is not shipped")))
}

/// Options of a compilation as the paper's runtime would make it.
fn options(policy: Policy, algo: AlgoMode) -> CompileOptions {
    CompileOptions {
        mode: Mode::Train,
        policy,
        algo,
        batch: None,
        dims: BTreeMap::new(),
        device: DEVICE.to_owned(),
        overhead: vdnn_ir::Bytes::ZERO,
        host_memory: None,
        deterministic: false,
        kernels: std::collections::BTreeMap::new(),
        kernels_made_for: None,
        micro_batch: BatchSizes::Undivided,
        workspace: Workspace::Planned,
        memory: None,
        sync: SyncMode::Layer,
        packing: Packing::Off,
        precision: Precision::F32,
        keep_gradients: false,
        elide_waits: true,
        elide_copies: true,
        sparse: vdnn_passes::sparsify::Sparse::default(),
        fuse: Fuse::Off,
        recompute: Recompute::Off,
        fuse_depth: DEPTH,
        fuse_footprint: None,
        thorough_layout: false,
        slices: Slices::Off,
        streams: vdnn_passes::streams::Streams::Count(1),
    }
}
