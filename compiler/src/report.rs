//! The table for people and the JSON object for programs.

use crate::driver::Summary;
use crate::options::CompileOptions;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use vdnn_ir::Bytes;

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The model file.
    pub model: &'a Path,
    /// The options.
    pub options: &'a CompileOptions,
}

/// The JSON object of `--json`.
pub fn json(request: &Request<'_>, s: &Summary) -> Value {
    json!({
        "model": request.model.display().to_string(),
        "mode": request.options.mode.name(),
        "batch": s.batch,
        "policy": request.options.policy.name(),
        "chosen_policy": s.chosen_policy.name(),
        "algo": request.options.algo.to_string(),
        "device": s.device,
        "fits": s.fits,
        "memory": {
            "peak_bytes": s.peak.0,
            "average_bytes": s.average.0,
            "lower_bound_bytes": s.lower_bound.0,
            "baseline_peak_bytes": s.baseline_peak.0,
            "weights_bytes": s.weights.0,
            "workspace_bytes": s.workspace.0,
            "host_bytes": s.host.0,
            "budget_bytes": s.budget.0,
        },
        "transfer": {
            "offload_bytes": s.offload.0,
            "offload_packed_bytes": s.offload_packed.0,
            "prefetch_bytes": s.prefetch.0,
        },
        "time": {
            "step_ns": s.step.0,
            "compute_ns": s.compute.0,
            "stall_ns": s.stall.0,
            "lower_bound_ns": s.step_lower_bound.0,
        },
        "compile_ns": s.compile.0,
        "passes": s.timings.rows.iter().map(|r| json!({
            "name": r.name, "ns": r.time.0, "stats": r.stats,
        })).collect::<Vec<_>>(),
    })
}

fn percent(part: Bytes, whole: Bytes) -> f64 {
    if whole == Bytes::ZERO { 0.0 } else { 100.0 * part.as_f64() / whole.as_f64() }
}

/// The table of the bare command.
pub fn table(request: &Request<'_>, s: &Summary) -> String {
    let o = request.options;
    let mut t = String::new();
    let chosen =
        if s.chosen_policy == o.policy { String::new() } else { format!(" (chose {})", s.chosen_policy) };
    let _ = writeln!(
        t,
        "{}: {} at batch {}, policy {}{chosen}, algorithms {}, {}",
        request.model.display(),
        o.mode,
        s.batch,
        o.policy,
        o.algo,
        s.device
    );
    let mut row = |name: &str, value: String, note: String| {
        let line = format!("  {name:<22}{value:>12}  {note}");
        let _ = writeln!(t, "{}", line.trim_end());
    };
    row(
        "device memory, peak",
        s.peak.to_string(),
        format!("{:.1} % of baseline's {}", percent(s.peak, s.baseline_peak), s.baseline_peak),
    );
    row(
        "  lower bound",
        s.lower_bound.to_string(),
        format!("arena / bound {:.4}", ratio(s.peak, s.lower_bound)),
    );
    row(
        "  average",
        s.average.to_string(),
        format!("{:.1} % of baseline's", percent(s.average, s.baseline_peak)),
    );
    row("  weights", s.weights.to_string(), format!("largest workspace {}", s.workspace));
    row("host memory, pinned", s.host.to_string(), String::new());
    let packed = match s.offload_packed {
        Bytes::ZERO => String::new(),
        bytes => format!(", {bytes} of it packed"),
    };
    row("offloaded per step", s.offload.to_string(), format!("prefetched {}{packed}", s.prefetch));
    row("predicted step", s.step.to_string(), format!("lower bound {}", s.step_lower_bound));
    row("  kernels", s.compute.to_string(), format!("stall {}", s.stall));
    let _ = writeln!(t, "  compiled in {}:", s.compile);
    for r in &s.timings.rows {
        let stats: Vec<String> =
            r.stats.iter().filter(|s| *s.1 > 0).map(|(k, v)| format!("{k}={v}")).collect();
        let line = format!("    {:<16}{:>10}  {}", r.name, r.time.to_string(), stats.join(" "));
        let _ = writeln!(t, "{}", line.trim_end());
    }
    t
}

fn ratio(a: Bytes, b: Bytes) -> f64 {
    if b == Bytes::ZERO { 1.0 } else { a.as_f64() / b.as_f64() }
}
