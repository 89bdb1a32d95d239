//! Part 1 of the statement: ids, streams, events, types.

use super::error::{Place, PlanError};
use super::report::Report;
use crate::plan::{BufId, CmdId, Command, CopyForm, EventId, Plan, StreamKind};
use smallvec::SmallVec;
use std::collections::{BTreeSet, HashMap};
use vdnn_ir::id::EntityId;
use vdnn_ir::op::infer::infer;
use vdnn_ir::packed::{can_pack, packed_type};
use vdnn_ir::{DType, Op, Space, TensorType};

/// Streams a plan may have; real devices need three, and vector clocks cost this much per command.
const MAX_STREAMS: usize = 16;

pub(super) fn check(plan: &Plan, report: &mut Report) {
    if plan.streams.first() != Some(&StreamKind::Compute) {
        report.push(PlanError::NoComputeStream);
    }
    if plan.streams.len() > MAX_STREAMS {
        report.push(PlanError::TooManyStreams { count: plan.streams.len(), limit: MAX_STREAMS });
    }
    if plan.n_events as usize > plan.commands.len() {
        report.push(PlanError::TooManyEvents { count: plan.n_events, commands: plan.commands.len() });
    }
    bindings(plan, report);
    let mut records: HashMap<EventId, CmdId> = HashMap::new();
    for (i, command) in plan.commands.iter().enumerate() {
        let at = CmdId::from_index(i);
        let known = known_ids(plan, at, command, report);
        match command {
            Command::Record { event, .. } => {
                if let Some(&first) = records.get(event) {
                    report.push(PlanError::RecordedTwice { event: *event, first, second: at });
                } else {
                    records.insert(*event, at);
                }
            }
            Command::Wait { event, .. } if !records.contains_key(event) => {
                report.push(PlanError::WaitBeforeRecord { at, event: *event });
            }
            Command::Copy { form, src, dst, .. } if known => {
                copy(plan, at, command, *form, [*src, *dst], report);
            }
            Command::Launch { .. } if known => launch(plan, at, command, report),
            _ => {}
        }
    }
}

fn unknown(report: &mut Report, place: Place, entity: impl ToString) {
    report.push(PlanError::Unknown { place, entity: entity.to_string() });
}

fn bindings(plan: &Plan, report: &mut Report) {
    let inputs = plan.inputs.iter().map(|b| ("input", &b.name, b.buf));
    let outputs = plan.outputs.iter().map(|o| ("output", &o.name, o.buf));
    let params = plan.params.iter().map(|p| ("parameter", &p.name, p.buf));
    let mut names = BTreeSet::new();
    for (what, name, buf) in inputs.chain(outputs).chain(params) {
        if !names.insert((what, name.as_str())) {
            report.push(PlanError::DuplicateName { what, name: name.clone() });
        }
        if plan.buffers.get(buf).is_none() {
            unknown(report, Place::Named(what, name.clone()), buf);
        }
    }
}

/// Reports ids that name nothing; true if all are known.
fn known_ids(plan: &Plan, at: CmdId, command: &Command, report: &mut Report) -> bool {
    let mut known = true;
    let stream = command.stream();
    if stream.index() >= plan.streams.len() {
        known = false;
        unknown(report, Place::Command(at), stream);
    }
    if let Command::Record { event, .. } | Command::Wait { event, .. } = command
        && event.0 >= plan.n_events
    {
        known = false;
        unknown(report, Place::Command(at), event);
    }
    super::accesses(command, |buf, _| {
        if plan.buffers.get(buf).is_none() {
            known = false;
            unknown(report, Place::Command(at), buf);
        }
    });
    known
}

fn copy(plan: &Plan, at: CmdId, command: &Command, form: CopyForm, ends: [BufId; 2], report: &mut Report) {
    let [from, to] = ends.map(|b| &plan.buffers[b]);
    let agree = match form {
        CopyForm::Plain => from.ty == to.ty,
        CopyForm::Pack => can_pack(&from.ty) && to.ty == packed_type(&from.ty),
        CopyForm::Unpack => can_pack(&to.ty) && from.ty == packed_type(&to.ty),
    };
    if !agree {
        report.push(PlanError::CopyTypes { at, from: from.ty.clone(), to: to.ty.clone() });
    }
    // Only the host holds packed tensors.
    let (needed, why) = match (from.space, to.space) {
        (Space::Device, Space::Host) if form != CopyForm::Unpack => {
            (StreamKind::D2h, "it copies from device to host")
        }
        (Space::Host, Space::Device) if form != CopyForm::Pack => {
            (StreamKind::H2d, "it copies from host to device")
        }
        _ => {
            report.push(PlanError::CopyInPlace { at });
            return;
        }
    };
    stream_kind(plan, at, command, needed, why, report);
}

fn stream_kind(
    plan: &Plan,
    at: CmdId,
    command: &Command,
    needed: StreamKind,
    why: &'static str,
    report: &mut Report,
) {
    let stream = command.stream();
    let kind = plan.streams[stream.index()];
    if kind != needed {
        report.push(PlanError::WrongStream { at, stream, kind, why });
    }
}

fn launch(plan: &Plan, at: CmdId, command: &Command, report: &mut Report) {
    let Command::Launch { op, inputs, outputs, workspace, algo, .. } = command else { return };
    stream_kind(plan, at, command, StreamKind::Compute, "it is a kernel", report);
    super::accesses(command, |buf, _| {
        if plan.buffers[buf].space != Space::Device {
            report.push(PlanError::WrongSpace { place: Place::Command(at), buf, needed: Space::Device });
        }
    });
    if op.is_transfer() || (!op.views().is_empty() && !matches!(op, Op::Reshape { .. })) {
        report.push(PlanError::NotAKernel { at, op: op.to_string() });
        return;
    }
    if algo.is_some() != op.is_conv() {
        report.push(PlanError::Algorithm { at });
    }
    if let Some(buf) = *workspace {
        let ty = &plan.buffers[buf].ty;
        if ty.dtype != DType::U8 || ty.rank() != 1 {
            report.push(PlanError::WorkspaceType { at, buf, ty: ty.clone() });
        }
    }
    let types: SmallVec<[&TensorType; 4]> = inputs.iter().map(|&b| &plan.buffers[b].ty).collect();
    // Executors reach the images of a micro-batch by its place in this list.
    if let (Some(schedule), Some(images)) = (algo, vdnn_ir::slices::batch(op, &types))
        && !schedule.covers(images)
    {
        report.push(PlanError::Division { at, schedule: schedule.to_string(), images });
    }
    match infer(op, &types, outputs.len()) {
        Err(e) => report.push(PlanError::IllTyped { place: Place::Command(at), why: e.to_string() }),
        Ok(made) if made.len() != outputs.len() => report.push(PlanError::IllTyped {
            place: Place::Command(at),
            why: format!("it has {} outputs, not {}", made.len(), outputs.len()),
        }),
        Ok(made) => {
            for (index, (expected, &buf)) in made.iter().zip(outputs).enumerate() {
                let found = &plan.buffers[buf].ty;
                if expected != found {
                    report.push(PlanError::OutputType {
                        place: Place::Command(at),
                        index,
                        expected: expected.clone(),
                        found: found.clone(),
                    });
                }
            }
        }
    }
}
