//! `vdnnc MODEL.onnx`: compile, report, write.

use super::load;
use super::target::{Runner, Target};
use crate::cli::{CompileCommand, Emit};
use crate::driver::{self, NoPlan, Summary};
use crate::error::Failure;
use crate::options::CompileOptions;
use crate::{emit, html, pyramids, report, slicing};
use std::io::Write;
use std::path::Path;
use vdnn_cost::CostModel;
use vdnn_frontends::safe_file::write_atomic;
use vdnn_ir::{Graph, Mode, Phase};
use vdnn_passes::Fuse;
use vdnn_plan::Plan;

/// Runs the command.
///
/// # Errors
/// What the user should read.
pub fn run(args: &CompileCommand) -> Result<(), Failure> {
    let path = args.model.as_deref().ok_or_else(|| Failure::user("no model given"))?;
    refuse_unused(args)?;
    let mut options = match args.shared.gpu_at_hand() {
        Some(_) => args.shared.options_on_gpu(args.mode),
        None => args.shared.options(args.mode),
    };
    let mut target = Target::open(&mut options, &args.shared, Runner::Device)?;
    let model = load::model(path, options.batch, &options.dims, args.mode == Mode::Train)?;
    model.note_zeros(&mut options);
    let cost = target.cost(&model.imported.graph, &options)?;
    if let Some(what @ (Emit::Graph | Emit::Dot)) = args.emit {
        let phase = args.stop_after.unwrap_or(Phase::Scheduled);
        let graph = driver::stop_after(model.imported.graph, phase, &options, &cost)?;
        super::print(&if what == Emit::Graph { graph.to_string() } else { emit::dot(&graph) });
        return Ok(());
    }
    if args.emit == Some(Emit::Pyramids) {
        return emit_pyramids(args, &model.imported.graph, &options, &cost);
    }
    let request = report::Request { model: path, options: &options };
    let reference = model.reference()?;
    match model.compile(Some(reference), &options, &cost) {
        Ok(compiled) => {
            if let Some(output) = &args.output {
                write_plan(&compiled.plan, output)?;
            }
            if let Some(page) = &args.report {
                let text = html::page(&request, &compiled);
                write_atomic(page, |w| w.write_all(text.as_bytes()))
                    .map_err(|e| Failure::user(format!("{}: {e}", page.display())))?;
            }
            match args.emit {
                Some(Emit::Plan) => super::print(&compiled.plan.to_string()),
                Some(Emit::Timeline) => super::print(&compiled.sim.trace.to_chrome_json()),
                _ => print_summary(args, &request, &compiled.summary),
            }
            Ok(())
        }
        Err(NoPlan::TooLarge { summary, smallest }) => {
            if args.json {
                super::print(&report::json(&request, &summary).to_string());
            }
            Err(load::over_budget(NoPlan::TooLarge { summary, smallest }))
        }
        Err(e @ NoPlan::Failed(_)) => Err(load::over_budget(e)),
    }
}

/// Refuses options that have no meaning beside the others: nobody would notice that nothing came of
/// them.
fn refuse_unused(args: &CompileCommand) -> Result<(), Failure> {
    let graph = matches!(args.emit, Some(Emit::Graph | Emit::Dot));
    if args.stop_after.is_some() && !graph {
        return Err(Failure::user("--stop-after names the phase of a graph to print")
            .hint("add --emit graph, or --emit dot"));
    }
    if args.svg.is_some() && args.emit != Some(Emit::Pyramids) {
        return Err(Failure::user("--svg draws pyramids").hint("add --emit pyramids"));
    }
    if (graph || args.emit == Some(Emit::Pyramids)) && (args.output.is_some() || args.report.is_some()) {
        return Err(Failure::user(
            "--emit graph, dot and pyramids make no plan that -o or --report could write",
        )
        .hint("leave out --emit, or -o and --report"));
    }
    Ok(())
}

/// `--emit pyramids`: of inference, whose inner tensors nobody reads later.
fn emit_pyramids(
    args: &CompileCommand,
    graph: &Graph,
    options: &CompileOptions,
    cost: &CostModel,
) -> Result<(), Failure> {
    if args.mode != Mode::Infer {
        return Err(Failure::user("a training step reads the tensors inside pyramids again")
            .hint("--emit pyramids is for inference: add --mode infer"));
    }
    // Beside layers as good as they get: sums and ReLUs in the convolutions.
    let fuse = args.shared.fuse.unwrap_or(Fuse::Epilogue).without_pyramids();
    let options = CompileOptions { fuse, ..options.clone() };
    let batch = slicing::batch_of(graph);
    let graph = slicing::layers(graph, &options, cost)?;
    let pyramids = pyramids::find(&graph, batch, options.fuse_depth, cost)?;
    if let Some(path) = &args.svg {
        let text = pyramids::svg(&pyramids);
        write_atomic(path, |w| w.write_all(text.as_bytes()))
            .map_err(|e| Failure::user(format!("{}: {e}", path.display())))?;
    }
    super::print(&if args.json { pyramids.json().to_string() } else { pyramids.text() });
    Ok(())
}

fn print_summary(args: &CompileCommand, request: &report::Request<'_>, summary: &Summary) {
    if args.json {
        super::print(&report::json(request, summary).to_string());
    } else {
        super::print(&report::table(request, summary));
    }
}

/// Writes a plan, text for the extension `vplan`, else binary.
///
/// # Errors
/// If the file cannot be written; an existing file is then as it was.
pub fn write_plan(plan: &Plan, path: &Path) -> Result<(), Failure> {
    let text = path.extension().is_some_and(|e| e == "vplan");
    let bytes = if text { plan.to_string().into_bytes() } else { vdnn_plan::codec::encode(plan) };
    write_atomic(path, |w| w.write_all(&bytes)).map_err(|e| Failure::user(format!("{}: {e}", path.display())))
}
