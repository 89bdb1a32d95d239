//! Part 3 of the statement: conflicting accesses are ordered.
//!
//! Per byte range it suffices to remember the last write and, per stream, the last read
//! since: an earlier access was ordered before one of these when that one was made (or the
//! plan is rejected already), and happens-before is transitive.

use super::clock::HappensBefore;
use super::error::{AccessKind, PlanError, Site};
use super::ranges::RangeMap;
use super::report::Report;
use crate::plan::{CmdId, Command, Plan};
use crate::rows::rows_in_place;
use smallvec::SmallVec;
use vdnn_ir::id::EntityId;
use vdnn_ir::{Bytes, Space};

#[derive(Clone, Default)]
struct Last {
    write: Option<CmdId>,
    /// At most one per stream.
    reads: SmallVec<[CmdId; 3]>,
}

pub(super) fn check(plan: &Plan, order: &HappensBefore, report: &mut Report) {
    let mut device = RangeMap::<Last>::default();
    let mut host = RangeMap::<Last>::default();
    for (i, command) in plan.commands.iter().enumerate() {
        let me = CmdId::from_index(i);
        accesses(plan, command, |site, kind| {
            let map = match site.space {
                Space::Device => &mut device,
                Space::Host => &mut host,
            };
            let (start, end) = (site.start.0, site.end.0);
            let mut told = None;
            for (s, e, last) in map.over(start, end) {
                let overlap = (Bytes(s.max(start)), Bytes(e.min(end)));
                let mut conflict = |other: CmdId, other_kind| {
                    if !order.ordered(other, me) && told != Some(other) {
                        told = Some(other);
                        report.push(PlanError::Race {
                            first: other,
                            first_kind: other_kind,
                            second: me,
                            second_kind: kind,
                            site,
                            overlap,
                        });
                    }
                };
                if let Some(w) = last.write {
                    conflict(w, AccessKind::Write);
                }
                if kind == AccessKind::Write {
                    last.reads.iter().for_each(|&r| conflict(r, AccessKind::Read));
                }
            }
            match kind {
                AccessKind::Write => {
                    map.set(start, end, Last { write: Some(me), reads: SmallVec::new() });
                }
                AccessKind::Read => map.update(start, end, |last| {
                    match last.reads.iter_mut().find(|r| order.stream(**r) == order.stream(me)) {
                        Some(mine) => *mine = me,
                        None => last.reads.push(me),
                    }
                }),
            }
        });
    }
}

/// The bytes a command touches. A slice or concat of rows writes only what is not in place.
fn accesses(plan: &Plan, command: &Command, mut f: impl FnMut(Site, AccessKind)) {
    if let Command::Launch { op, inputs, outputs, workspace, .. } = command
        && let Some(moves) = rows_in_place(plan, op, inputs, outputs)
    {
        inputs.iter().for_each(|&b| f(Site::of(plan, b), AccessKind::Read));
        let result = Site::of(plan, outputs[0]);
        for part in moves.iter().map(|m| result.part(m.at, m.len)).chain(workspace.map(|b| Site::of(plan, b)))
        {
            f(part, AccessKind::Write);
        }
        return;
    }
    super::accesses(command, |buf, kind| f(Site::of(plan, buf), kind));
}
