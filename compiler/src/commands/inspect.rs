//! `vdnnc inspect MODEL|PLAN`.

use super::load;
use crate::cli::{InspectArgs, SharedArgs};
use crate::error::Failure;
use crate::sparsity::{Report, activations, heat};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::Write as _;
use std::path::Path;
use vdnn_cost::CostModel;
use vdnn_frontends::safe_file::write_atomic;
use vdnn_frontends::tensors::{npy, npz};
use vdnn_ir::op::work;
use vdnn_ir::{Bytes, Flops, Mode, ParamRole, Precision, Stage, TensorType};
use vdnn_plan::Plan;

/// Runs the command.
///
/// # Errors
/// What the user should read.
pub fn run(args: &InspectArgs) -> Result<(), Failure> {
    if load::looks_like_plan(&args.target) {
        let plan = load::plan(&args.target)?;
        super::print(&describe_plan(&plan, args.json));
        return Ok(());
    }
    let dims: BTreeMap<String, u64> = args.dims.iter().cloned().collect();
    let model = load::model(&args.target, args.batch, &dims, false)?;
    if args.sparsity {
        return sparsity(args, &model);
    }
    super::print(&describe_model(&model, args.json));
    Ok(())
}

fn sparsity(args: &InspectArgs, model: &load::Model) -> Result<(), Failure> {
    // Any profile will do: nothing here depends on times.
    let cost = load::cost_model("cpu", Precision::F32)?;
    let report = Report::new(&model.imported, args.dead_tolerance, &cost)?;
    if let Some(path) = &args.svg {
        let text = heat::svg(&report);
        write_atomic(path, |w| w.write_all(text.as_bytes()))
            .map_err(|e| Failure::user(format!("{}: {e}", path.display())))?;
    }
    let measured = args.input.as_deref().map(|path| activations_on(path, model, &cost)).transpose()?;
    if args.json {
        let mut json = report.json();
        json["activations"] = measured.map_or(serde_json::Value::Null, |m| activations::json(&m));
        super::print(&json.to_string());
    } else {
        super::print(&(report.text() + &measured.map(|m| activations::text(&m)).unwrap_or_default()));
    }
    Ok(())
}

/// The zeros behind ReLUs for the images in a file: of an archive with several arrays, `input`.
fn activations_on(
    path: &Path,
    model: &load::Model,
    cost: &CostModel,
) -> Result<Vec<activations::Activation>, Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::user(format!("{}: {e}", path.display()));
    let tensor = if path.extension().is_some_and(|e| e == "npz") {
        let mut all = npz::read(path).map_err(|e| fail(&e))?;
        let only = if all.len() == 1 { all.keys().next().cloned() } else { Some("input".to_owned()) };
        only.and_then(|name| all.remove(&name)).ok_or_else(|| fail(&"no array `input`"))?
    } else {
        npy::read(path).map_err(|e| fail(&e))?
    };
    let options = SharedArgs::of([])?.options_on_cpu(Mode::Infer);
    let relus = activations::relus(&model.imported.graph);
    activations::measure(&model.imported, relus, &tensor, &options, cost, super::run::default_threads())
}

fn describe_model(model: &load::Model, json: bool) -> String {
    let g = &model.imported.graph;
    let mut ops: BTreeMap<String, (u64, Flops)> = BTreeMap::new();
    let mut activations = Bytes::ZERO;
    for (_, node) in g.nodes() {
        let inputs: Vec<&TensorType> = node.inputs.iter().map(|&v| g.ty(v)).collect();
        let outputs: Vec<&TensorType> = node.outputs.iter().map(|&v| g.ty(v)).collect();
        let entry = ops.entry(node.op.name()).or_default();
        entry.0 += 1;
        entry.1 += work::flops(&node.op, &inputs, &outputs);
        activations += outputs.iter().map(|t| t.bytes()).sum();
    }
    let total: Flops = ops.values().map(|o| o.1).sum();
    let params: u64 = g
        .params()
        .iter()
        .filter(|&&p| matches!(g.value(p).def, vdnn_ir::Def::Param(ParamRole::Trainable)))
        .map(|&p| g.ty(p).elements())
        .sum();
    let tensor = |v: vdnn_ir::ValueId| format!("{} : {}", g.value(v).name, g.ty(v));
    if json {
        return serde_json::json!({
            "model": g.name, "batch": model.imported.batch, "nodes": g.order().len(),
            "trainable_parameters": params, "flops": total.0, "activation_bytes": activations.0,
            "inputs": g.inputs().iter().map(|&v| tensor(v)).collect::<Vec<_>>(),
            "outputs": g.outputs.iter().map(|o| format!("{} : {}", o.name, g.ty(o.value))).collect::<Vec<_>>(),
            "ops": ops.iter().map(|(k, v)| (k.clone(), v.0)).collect::<BTreeMap<_, _>>(),
        })
        .to_string();
    }
    let mut out = format!(
        "{} (batch {})\n  {} nodes, {:.2} M trainable parameters, {total} forward, activations {activations}\n",
        g.name,
        model.imported.batch,
        g.order().len(),
        params as f64 / 1e6
    );
    for &v in g.inputs() {
        let _ = writeln!(out, "  input  {}", tensor(v));
    }
    for o in &g.outputs {
        let _ = writeln!(out, "  output {} : {}", o.name, g.ty(o.value));
    }
    for (name, (n, flops)) in &ops {
        let _ = writeln!(out, "  {n:>5} x {name:<18} {flops}");
    }
    out
}

fn describe_plan(plan: &Plan, json: bool) -> String {
    let s = vdnn_plan::stats::stats(plan);
    let h = &plan.header;
    let mut stages: BTreeMap<Stage, u64> = BTreeMap::new();
    for c in &plan.commands {
        if let vdnn_plan::Command::Launch { stage, .. } = c {
            *stages.entry(*stage).or_default() += 1;
        }
    }
    if json {
        return serde_json::json!({
            "model": h.model_name, "mode": h.mode.name(), "batch": h.batch, "policy": h.policy, "algo": h.algo,
            "device": h.device, "commands": plan.commands.len(), "buffers": plan.buffers.len(),
            "device_bytes": plan.device.bytes.0, "host_bytes": plan.host.bytes.0,
            "offload_bytes": s.offload_bytes.0, "prefetch_bytes": s.prefetch_bytes.0,
            "predicted_step_ns": plan.predicted.step.0, "options": h.options,
        })
        .to_string();
    }
    let mut out = format!(
        "plan of {} ({}, batch {}): policy {}, algorithms {}, device {}\n  device arena {} (weights {}, workspace {}), \
         pinned host arena {}\n  {} commands, {} buffers, {} params, {} events\n  predicted step {}, stall {}\n",
        h.model_name,
        h.mode,
        h.batch,
        h.policy,
        h.algo,
        h.device,
        plan.device.bytes,
        s.weights_bytes,
        s.workspace_bytes,
        plan.host.bytes,
        plan.commands.len(),
        plan.buffers.len(),
        plan.params.len(),
        plan.n_events,
        plan.predicted.step,
        plan.predicted.stall,
    );
    for (stage, n) in stages {
        let _ = writeln!(out, "  {n:>5} {stage:?} kernels");
    }
    let _ = writeln!(out, "  offloads {}, prefetches {} per step", s.offload_bytes, s.prefetch_bytes);
    if let Some(m) = &h.model {
        let hex: String = m.sha256.iter().map(|b| format!("{b:02x}")).collect();
        let _ = writeln!(out, "  weights from {} (sha256 {hex})", m.path);
    }
    if !h.options.is_empty() {
        let _ = writeln!(out, "  made with {}", h.options.join(" "));
    }
    out
}
