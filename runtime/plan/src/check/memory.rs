//! Part 2 of the statement: bounds, alignment, budget, and the bytes of parameters and inputs.

use super::error::{Place, PlanError, Site};
use super::report::Report;
use crate::plan::{ALIGNMENT, BufId, Plan};
use std::collections::BTreeMap;
use vdnn_ir::Space;

/// Size, alignment, bounds and budget.
pub(super) fn bounds(plan: &Plan, report: &mut Report) {
    for (space, arena) in [(Space::Device, plan.device), (Space::Host, plan.host)] {
        if let Some(budget) = arena.budget
            && budget < arena.bytes
        {
            report.push(PlanError::OverBudget { space, bytes: arena.bytes, budget });
        }
    }
    for (id, buffer) in plan.buffers.iter() {
        let size = buffer.ty.checked_elements().and_then(|n| n.checked_mul(buffer.ty.dtype.bytes()));
        let Some(size) = size.filter(|&n| n > 0) else {
            report.push(PlanError::BadSize { buf: id, ty: buffer.ty.clone() });
            continue;
        };
        let site = Site::of(plan, id);
        if buffer.offset.0 % ALIGNMENT != 0 {
            report.push(PlanError::Misaligned { site });
        }
        let arena = match buffer.space {
            Space::Device => plan.device.bytes,
            Space::Host => plan.host.bytes,
        };
        if buffer.offset.0.checked_add(size).is_none_or(|end| end > arena.0) {
            report.push(PlanError::OutOfBounds { site, arena });
        }
    }
}

/// Parameters own their bytes; inputs are disjoint. Ids and bounds are sound.
pub(super) fn exclusive(plan: &Plan, report: &mut Report) {
    // Start of each parameter to (its index, its site).
    let mut params: BTreeMap<u64, (usize, Site)> = BTreeMap::new();
    for (i, p) in plan.params.iter().enumerate() {
        let site = Site::of(plan, p.buf);
        if site.space != Space::Device {
            report.push(PlanError::WrongSpace {
                place: Place::Named("parameter", p.name.clone()),
                buf: p.buf,
                needed: Space::Device,
            });
            continue;
        }
        let clash = params.range(..site.end.0).next_back().filter(|(_, (_, s))| s.overlaps(&site));
        if let Some((_, (_, other))) = clash {
            report.push(PlanError::ParamShared { param: p.name.clone(), site, other: *other });
        } else {
            params.insert(site.start.0, (i, site));
        }
    }
    // Parameters are disjoint now, so the ones a range meets are the last few that start
    // before its end.
    let meets = |site: &Site| -> Option<(usize, Site)> {
        if site.space != Space::Device {
            return None;
        }
        let (_, (i, s)) = params.range(..site.end.0).next_back()?;
        s.overlaps(site).then_some((*i, *s))
    };
    for id in plan.buffers.keys() {
        let other = Site::of(plan, id);
        if let Some((i, site)) = meets(&other)
            && !site.same_range(&other)
        {
            report.push(PlanError::ParamShared { param: plan.params[i].name.clone(), site, other });
        }
    }
    let mut inputs: Vec<(Site, BufId)> = plan.inputs.iter().map(|b| (Site::of(plan, b.buf), b.buf)).collect();
    for (site, _) in &inputs {
        if let Some((i, s)) = meets(site) {
            let param = plan.params[i].name.clone();
            report.push(PlanError::ParamShared { param, site: s, other: *site });
        }
    }
    inputs.sort_by_key(|(s, _)| (s.space, s.start, s.end));
    for pair in inputs.windows(2) {
        if pair[0].0.overlaps(&pair[1].0) {
            report.push(PlanError::InputsOverlap { first: pair[0].0, second: pair[1].0 });
        }
    }
}
