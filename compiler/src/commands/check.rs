//! `vdnnc check PLAN`.

use super::load;
use crate::cli::CheckArgs;
use crate::error::Failure;

/// Runs the command.
///
/// # Errors
/// Every violation found.
pub fn run(args: &CheckArgs) -> Result<(), Failure> {
    let plan = load::plan(&args.plan)?;
    let name = args.plan.display();
    match vdnn_plan::check::check(&plan) {
        Ok(stats) => {
            let s = vdnn_plan::stats::stats(&plan);
            super::print(&if args.json {
                serde_json::json!({
                    "plan": args.plan, "ok": true, "commands": plan.commands.len(), "launches": stats.launches,
                    "copies": stats.copies, "device_bytes": plan.device.bytes.0, "host_bytes": plan.host.bytes.0,
                })
                .to_string()
            } else {
                format!(
                    "{name}: proved\n  {} commands ({} kernels, {} copies) on {} streams, {} events\n  device arena \
                     {}, pinned host arena {}\n  offloads {}, prefetches {} per step",
                    plan.commands.len(),
                    stats.launches,
                    stats.copies,
                    plan.streams.len(),
                    plan.n_events,
                    plan.device.bytes,
                    plan.host.bytes,
                    s.offload_bytes,
                    s.prefetch_bytes
                )
            });
            Ok(())
        }
        Err(errors) => {
            if args.json {
                super::print(
                    &serde_json::json!({"plan": args.plan, "ok": false, "errors": errors.to_string().lines().collect::<Vec<_>>()})
                        .to_string(),
                );
            }
            Err(Failure::user(format!("{name} is not a valid plan:\n{errors}")))
        }
    }
}
