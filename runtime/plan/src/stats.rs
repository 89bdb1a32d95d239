//! Sizes and counts of a plan, for reports.

use crate::plan::{Command, CopyForm, Plan};
use std::collections::BTreeSet;
use vdnn_ir::{Bytes, ParamRole, Space};

/// Sizes and counts; sums saturate. Computed from the plan alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlanStats {
    /// Parameters other than optimizer state.
    pub weights_bytes: Bytes,
    /// Optimizer state.
    pub momentum_bytes: Bytes,
    /// Largest workspace of a launch.
    pub workspace_bytes: Bytes,
    /// Size of the device arena.
    pub device_bytes: Bytes,
    /// Size of the pinned host arena.
    pub host_bytes: Bytes,
    /// Tensors copied to the host in one step.
    pub offload_bytes: Bytes,
    /// Tensors copied to the device in one step.
    pub prefetch_bytes: Bytes,
    /// What of `offload_bytes` goes packed: fewer bytes cross the link.
    pub offload_packed: Bytes,
    /// What of `prefetch_bytes` comes packed.
    pub prefetch_packed: Bytes,
    /// Kernels per step.
    pub n_launches: u64,
    /// Copies per step, both directions.
    pub n_copies: u64,
    /// Waits per step.
    pub n_waits: u64,
    /// Commands per step.
    pub n_commands: u64,
    /// Buffers.
    pub n_buffers: u64,
    /// Distinct (arena, offset, size) ranges, that is, buffers after reuse in place.
    pub n_ranges: u64,
}

/// The statistics of a plan. Ids that name nothing are skipped, so any plan has some.
pub fn stats(plan: &Plan) -> PlanStats {
    let size = |id| plan.buffers.get(id).map_or(Bytes::ZERO, |b| b.ty.bytes());
    let mut s = PlanStats {
        device_bytes: plan.device.bytes,
        host_bytes: plan.host.bytes,
        n_commands: plan.commands.len() as u64,
        n_buffers: plan.buffers.len() as u64,
        n_ranges: plan
            .buffers
            .values()
            .map(|b| (b.space, b.offset, b.ty.bytes()))
            .collect::<BTreeSet<_>>()
            .len() as u64,
        ..PlanStats::default()
    };
    let add = |total: &mut Bytes, bytes: Bytes| *total = total.saturating_add(bytes);
    for p in &plan.params {
        match p.role {
            ParamRole::Momentum => add(&mut s.momentum_bytes, size(p.buf)),
            _ => add(&mut s.weights_bytes, size(p.buf)),
        }
    }
    for command in &plan.commands {
        match command {
            Command::Launch { workspace, .. } => {
                s.n_launches += 1;
                s.workspace_bytes = s.workspace_bytes.max(workspace.map_or(Bytes::ZERO, size));
            }
            Command::Copy { form, src, dst, .. } => {
                s.n_copies += 1;
                let packed = *form != CopyForm::Plain;
                let (all, part, tensor) = match plan.buffers.get(*src).map(|b| b.space) {
                    Some(Space::Host) => (&mut s.prefetch_bytes, &mut s.prefetch_packed, *dst),
                    _ => (&mut s.offload_bytes, &mut s.offload_packed, *src),
                };
                add(all, size(tensor));
                if packed {
                    add(part, size(tensor));
                }
            }
            Command::Wait { .. } => s.n_waits += 1,
            Command::Free { .. } | Command::Record { .. } => {}
        }
    }
    s
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::sound;

    #[test]
    fn counts_of_the_example() {
        let mut plan = sound();
        let s = stats(&plan);
        assert_eq!((s.weights_bytes, s.momentum_bytes), (Bytes(256), Bytes(0)));
        assert_eq!((s.offload_bytes, s.prefetch_bytes), (Bytes(256), Bytes(256)));
        assert_eq!((s.workspace_bytes, s.device_bytes, s.host_bytes), (Bytes(300), Bytes(2048), Bytes(256)));
        assert_eq!((s.n_launches, s.n_copies, s.n_waits, s.n_commands), (5, 2, 4, 16));
        assert_eq!((s.n_buffers, s.n_ranges), (10, 8));
        plan.params[0].role = ParamRole::Momentum;
        assert_eq!((stats(&plan).weights_bytes, stats(&plan).momentum_bytes), (Bytes(0), Bytes(256)));
    }
}
