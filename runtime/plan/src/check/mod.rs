//! The checker: proves that a plan computes what it says, whatever the timing.
//!
//! It knows nothing of how plans are made. It reads a [`Plan`] and either proves the
//! statement below or lists what is wrong. An executor may therefore hand out overlapping
//! arena ranges to kernels on several threads without a lock. The method follows the
//! checker of the regalloc2 register allocator (check each result by abstract
//! interpretation instead of trusting the algorithm that made it), with vector clocks
//! (Lamport 1978; Mattern 1989) for the streams and last-access states per byte range as
//! in FastTrack (Flanagan and Freund, PLDI 2009).
//!
//! # The statement
//!
//! Let the commands be `c0 .. cn` in issue order. *Happens-before* `<` is the least
//! transitive relation with
//!
//! - `a < b` if both are in one stream and `a` is issued first, and
//! - `r < w` if `w` waits for the event that `r` records.
//!
//! An *execution* is any order of the commands that extends `<`, or any overlapping of
//! commands that `<` leaves unordered. Writing `R(c)` and `W(c)` for the bytes a command
//! reads and writes (a launch reads its inputs and writes its outputs and its workspace, a
//! copy reads its source and writes its destination, a free writes "undefined"). A slice or
//! concat along the outermost dimension is *in place* where result and operand share bytes
//! exactly as [`vdnn_ir::rows`] says; it does not write these bytes:
//!
//! 1. **Structure.** Every id exists, stream 0 is a compute stream, an event is recorded
//!    at most once and before any wait on it in issue order, launches run on compute
//!    streams on device buffers and have the output types that shape inference gives,
//!    copies move a whole buffer to one of equal type in the other space on the stream
//!    kind of that direction, and the setup program is well-typed.
//!    *Hence no execution deadlocks*: the unfinished command of least issue order can
//!    always run, because its stream's earlier commands and, if it is a wait, the record
//!    it waits for have smaller issue order. (A CUDA event wait refers to the most recent
//!    record issued before it; with one record per event there is no other.)
//! 2. **Bounds.** Every buffer lies inside its arena (checked arithmetic), aligned to
//!    [`ALIGNMENT`](crate::plan::ALIGNMENT), is not empty, and the arena is within its
//!    budget. A parameter's bytes belong to it alone: any other buffer that touches them
//!    has exactly its range (that is how updates are written in place). Inputs overlap
//!    neither each other nor parameters.
//! 3. **No races.** For commands `a`, `b` of different streams, if `W(a)` meets `R(b)` or
//!    `W(b)`, then `a < b` or `b < a`. The host writes inputs and parameters before
//!    everything and reads outputs after everything.
//! 4. **No clobbering inside a launch.** `W(c)` consists of pairwise disjoint buffers. An
//!    output may meet one input only, and only as an in-place pair of
//!    [`Op::inplace`](vdnn_ir::Op::inplace) with identical range and type, or as rows in
//!    place; a workspace meets none.
//! 5. **Contents.** By 3 all executions write and read the same values, so one of them
//!    (issue order) stands for all. It is run symbolically: each byte range of each arena
//!    maps to *values* (each a term [`Sig`](crate::Sig) and the exact range it was written to
//!    or found in) or to *undefined*. With `v@[s,e)` for "the value v was written to `[s,e)`,
//!    or found there, and no byte of it was written since":
//!
//!    - start: `input(x)@range(x)` for each input, `param(p)@range(p)` for each parameter,
//!      all else undefined;
//!    - a read of `[s,e)` requires `v@[s,e)` for exactly this `s` and `e`, and yields `v`;
//!    - a copy writes the value it reads; a reshape that is launched does too;
//!    - launch of `op`: reads its inputs `v1 ..`, makes the workspace undefined, writes
//!      `apply(op, (v1, type1) .., i)` to output `i`;
//!    - launch of rows in place: as any launch, but the parts of the result that are in place
//!      are not written: the value is found there, beside those that these bytes hold already
//!      (unless one has exactly the result's range: that one goes);
//!    - free makes its range undefined;
//!    - end: each output and each parameter must hold the term the plan states for it.
//!
//! The stated terms are computed from the graph alone, so a gradient contribution that is
//! dropped, doubled or read too early gives another term.
//!
//! Not proved: that the stated terms are those of the model, and that the setup program
//! (which only types are checked of) computes the parameters it should.

mod clock;
mod contents;
mod error;
mod launch;
mod memory;
mod races;
mod ranges;
mod report;
#[cfg(test)]
mod rows_tests;
mod setup;
mod structure;
#[cfg(test)]
mod tests;

pub use error::{AccessKind, Found, Place, PlanError, Site};
pub use report::PlanErrors;

use crate::plan::{BufId, Command, Plan, StreamKind};
use report::Report;
use vdnn_ir::{Bytes, Space};

/// What a plan that passed contains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckStats {
    /// Commands of all kinds.
    pub commands: u64,
    /// Kernels.
    pub launches: u64,
    /// Copies of both directions.
    pub copies: u64,
    /// Releases.
    pub frees: u64,
    /// Waits.
    pub waits: u64,
    /// Bytes that leave the device in one step.
    pub bytes_copied_d2h: Bytes,
    /// Bytes that come back in one step.
    pub bytes_copied_h2d: Bytes,
    /// End of the highest device buffer.
    pub device_peak: Bytes,
    /// End of the highest host buffer.
    pub host_peak: Bytes,
}

/// Proves a plan. See the module documentation for what is proved.
///
/// Runs in `O((n + b) log n)` for `n` operands and `b` buffers, and in memory proportional
/// to the plan.
///
/// # Errors
/// Everything found wrong (at most [`PlanErrors::LIMIT`] errors are kept). Races and
/// contents are only looked at in plans whose structure and bounds are sound.
pub fn check(plan: &Plan) -> Result<CheckStats, PlanErrors> {
    let mut report = runnable(plan);
    if report.is_clean() {
        memory::exclusive(plan, &mut report);
    }
    if report.is_clean() {
        let order = clock::HappensBefore::of(plan);
        launch::check(plan, &mut report);
        races::check(plan, &order, &mut report);
        contents::check(plan, &mut report);
    }
    report.finish(plan)?;
    Ok(stats(plan))
}

/// Proves part 1 of the statement and that buffers are inside their arenas: enough for an
/// executor to run the plan on one thread without leaving its memory or getting stuck,
/// but not for the results to mean anything. For tests of what [`check`] refuses.
///
/// # Errors
/// As [`check`].
pub fn check_runnable(plan: &Plan) -> Result<(), PlanErrors> {
    runnable(plan).finish(plan)
}

fn runnable(plan: &Plan) -> Report {
    let mut report = Report::default();
    structure::check(plan, &mut report);
    memory::bounds(plan, &mut report);
    setup::check(plan, &mut report);
    report
}

/// Calls `f` for every buffer a command touches, reads first.
fn accesses(command: &Command, mut f: impl FnMut(BufId, AccessKind)) {
    match command {
        Command::Launch { inputs, outputs, workspace, .. } => {
            inputs.iter().for_each(|&b| f(b, AccessKind::Read));
            outputs.iter().chain(workspace).for_each(|&b| f(b, AccessKind::Write));
        }
        Command::Copy { src, dst, .. } => {
            f(*src, AccessKind::Read);
            f(*dst, AccessKind::Write);
        }
        Command::Free { buf, .. } => f(*buf, AccessKind::Write),
        Command::Record { .. } | Command::Wait { .. } => {}
    }
}

fn stats(plan: &Plan) -> CheckStats {
    let mut s = CheckStats { commands: plan.commands.len() as u64, ..CheckStats::default() };
    for command in &plan.commands {
        match command {
            Command::Launch { .. } => s.launches += 1,
            Command::Copy { stream, src, dst, .. } => {
                s.copies += 1;
                let (tensor, total) = match plan.streams[stream.0 as usize] {
                    StreamKind::D2h => (src, &mut s.bytes_copied_d2h),
                    _ => (dst, &mut s.bytes_copied_h2d),
                };
                let bytes = plan.buffers[*tensor].ty.bytes();
                *total = total.saturating_add(bytes);
            }
            Command::Free { .. } => s.frees += 1,
            Command::Wait { .. } => s.waits += 1,
            Command::Record { .. } => {}
        }
    }
    for id in plan.buffers.keys() {
        let site = Site::of(plan, id);
        let peak = match site.space {
            Space::Device => &mut s.device_peak,
            Space::Host => &mut s.host_peak,
        };
        *peak = (*peak).max(site.end);
    }
    s
}
