//! The setup program and the first contents of parameters.

use super::error::{Place, PlanError};
use super::report::Report;
use crate::plan::{ParamSource, Plan, SetupId};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use vdnn_ir::TensorType;
use vdnn_ir::op::infer::infer;

pub(super) fn check(plan: &Plan, report: &mut Report) {
    let mut types: BTreeMap<SetupId, &TensorType> = BTreeMap::new();
    for load in &plan.setup_loads {
        let place = || Place::Load(load.id);
        size(&load.ty, &load.source, &place, report);
        if matches!(load.source, ParamSource::Setup(_)) {
            let why = "a load is an initializer, inline or zero".to_owned();
            report.push(PlanError::Source { place: place(), why });
        }
        if types.insert(load.id, &load.ty).is_some() {
            report.push(PlanError::SetupRedefined { place: place(), id: load.id });
        }
    }
    for (i, op) in plan.setup.iter().enumerate() {
        let place = || Place::Setup(i);
        if op.op.is_transfer() {
            report.push(PlanError::IllTyped { place: place(), why: "a transfer cannot run at load".into() });
            continue;
        }
        let mut inputs: SmallVec<[&TensorType; 4]> = SmallVec::new();
        for &id in &op.inputs {
            match types.get(&id) {
                Some(ty) => inputs.push(ty),
                None => report.push(PlanError::SetupUse { place: place(), id }),
            }
        }
        if inputs.len() == op.inputs.len() {
            match infer(&op.op, &inputs, op.outputs.len()) {
                Err(e) => report.push(PlanError::IllTyped { place: place(), why: e.to_string() }),
                Ok(made) => {
                    for (index, (expected, (_, found))) in made.iter().zip(&op.outputs).enumerate() {
                        if expected != found {
                            report.push(PlanError::OutputType {
                                place: place(),
                                index,
                                expected: expected.clone(),
                                found: found.clone(),
                            });
                        }
                    }
                }
            }
        }
        for (id, ty) in &op.outputs {
            if types.insert(*id, ty).is_some() {
                report.push(PlanError::SetupRedefined { place: place(), id: *id });
            }
        }
    }
    for p in &plan.params {
        let place = || Place::Named("parameter", p.name.clone());
        let Some(buffer) = plan.buffers.get(p.buf) else { continue };
        size(&buffer.ty, &p.source, &place, report);
        if let ParamSource::Setup(id) = p.source {
            match types.get(&id) {
                None => report.push(PlanError::SetupUse { place: place(), id }),
                Some(ty) if **ty != buffer.ty => {
                    let why = format!("its buffer is {} but {id} is {ty}", buffer.ty);
                    report.push(PlanError::Source { place: place(), why });
                }
                Some(_) => {}
            }
        }
    }
}

/// The type has a size, and inline bytes have that size.
fn size(ty: &TensorType, source: &ParamSource, place: &dyn Fn() -> Place, report: &mut Report) {
    let size = ty.checked_elements().and_then(|n| n.checked_mul(ty.dtype.bytes()));
    match (size, source) {
        (None, _) => {
            report.push(PlanError::Source { place: place(), why: format!("the size of {ty} overflows") });
        }
        (Some(n), ParamSource::Inline(bytes)) if n != bytes.len() as u64 => {
            let why = format!("{} inline bytes for {ty}", bytes.len());
            report.push(PlanError::Source { place: place(), why });
        }
        _ => {}
    }
}
