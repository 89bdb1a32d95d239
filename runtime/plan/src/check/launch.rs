//! Part 4 of the statement: the buffers of one launch do not clobber each other.

use super::error::{PlanError, Site};
use super::report::Report;
use crate::plan::{BufId, CmdId, Command, Plan};
use crate::rows::{moves_operand, rows_in_place};
use smallvec::SmallVec;
use vdnn_ir::Op;
use vdnn_ir::id::EntityId;

pub(super) fn check(plan: &Plan, report: &mut Report) {
    for (i, command) in plan.commands.iter().enumerate() {
        if let Command::Launch { op, inputs, outputs, workspace, .. } = command {
            launch(plan, CmdId::from_index(i), op, inputs, outputs, *workspace, report);
        }
    }
}

fn launch(
    plan: &Plan,
    at: CmdId,
    op: &Op,
    inputs: &[BufId],
    outputs: &[BufId],
    workspace: Option<BufId>,
    report: &mut Report,
) {
    // Sorted by address, so that overlaps are found by search; wide concats and splits
    // must not cost quadratic time. `None` is the workspace.
    let mut written: SmallVec<[(Site, Option<usize>); 4]> = outputs
        .iter()
        .enumerate()
        .map(|(o, &b)| (Site::of(plan, b), Some(o)))
        .chain(workspace.map(|b| (Site::of(plan, b), None)))
        .collect();
    written.sort_by_key(|(site, _)| (site.space, site.start, site.end));
    let mut disjoint = true;
    for pair in written.windows(2) {
        if pair[0].0.overlaps(&pair[1].0) {
            disjoint = false;
            report.push(PlanError::LaunchOverlap {
                at,
                written: pair[0].0,
                other: pair[1].0,
                why: "outputs and workspace of one launch must be disjoint",
            });
        }
    }
    if !disjoint {
        return;
    }
    let rows = rows_in_place(plan, op, inputs, outputs);
    let mut taken: SmallVec<[bool; 4]> = smallvec::smallvec![false; outputs.len()];
    for (n, &buf) in inputs.iter().enumerate() {
        let site = Site::of(plan, buf);
        let first = written.partition_point(|(w, _)| (w.space, w.end) <= (site.space, site.start));
        for (w, output) in written[first..].iter().take_while(|(w, _)| w.overlaps(&site)) {
            let mut refuse =
                |why| report.push(PlanError::LaunchOverlap { at, written: *w, other: site, why });
            match *output {
                None => refuse("a workspace may not overlap an operand"),
                // Shares the bytes it would be moved to, or from.
                Some(_) if rows.as_ref().is_some_and(|moves| !moves_operand(moves, n)) => {}
                Some(o) if !op.inplace().contains(&(o, n)) => {
                    refuse("the op does not allow this output in place of this operand");
                }
                Some(o) if !w.same_range(&site) || plan.buffers[outputs[o]].ty != plan.buffers[buf].ty => {
                    refuse("an output in place has exactly the operand's range and type");
                }
                Some(o) if taken[o] => refuse("a second operand has the bytes of an output in place"),
                Some(o) => taken[o] = true,
            }
        }
    }
}
