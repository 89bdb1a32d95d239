//! A plan made ready to run: byte ranges and in-place operands resolved once, so that a
//! step only follows indices.

use crate::error::RunError;
use smallvec::SmallVec;
use vdnn_ir::id::EntityId;
use vdnn_ir::{Bytes, Op, Space};
use vdnn_plan::rows::{RowMoves, moves_operand, rows_in_place};
use vdnn_plan::{BufId, CmdId, Command, Plan, check};

/// The bytes `[start, start + len)` of an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Which arena.
    pub space: Space,
    /// First byte.
    pub start: usize,
    /// Number of bytes.
    pub len: usize,
}

impl Span {
    /// True if both have a byte in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.space == other.space
            && self.start < other.start + other.len
            && other.start < self.start + self.len
    }
}

/// How a launch uses its operands.
#[derive(Clone, Debug, Default)]
pub struct LaunchInfo {
    /// For each input, the output whose bytes it is in, if it is run in place.
    pub in_place: SmallVec<[Option<usize>; 4]>,
    /// What a slice or concat of rows with operands in place has still to move.
    pub rows: Option<RowMoves>,
    /// Outputs or workspace overlap where the op does not allow it. Never in a checked plan.
    pub clobbers: bool,
}

/// A plan with everything resolved that does not change from step to step.
#[derive(Debug)]
pub struct Program {
    plan: Plan,
    checked: bool,
    spans: Vec<Span>,
    launches: Vec<LaunchInfo>,
}

impl Program {
    /// Checks and resolves a plan.
    ///
    /// # Errors
    /// [`RunError::Unsound`] with everything the checker found.
    pub fn checked(plan: Plan) -> Result<Self, RunError> {
        check::check(&plan)?;
        Self::resolve(plan, true)
    }

    /// Resolves a plan of which only ids, types and bounds are checked. It may have races
    /// and read undefined bytes; see [`Executor::load_unchecked_for_tests`](crate::executor::Executor::load_unchecked_for_tests).
    ///
    /// # Errors
    /// [`RunError::Unsound`] if the plan names what does not exist.
    pub fn unchecked(plan: Plan) -> Result<Self, RunError> {
        check::check_runnable(&plan)?;
        Self::resolve(plan, false)
    }

    fn resolve(plan: Plan, checked: bool) -> Result<Self, RunError> {
        let mut spans = Vec::with_capacity(plan.buffers.len());
        for b in plan.buffers.values() {
            let fits = |n: Bytes| {
                usize::try_from(n.0)
                    .map_err(|_| RunError::OutOfMemory { arena: arena_name(b.space), bytes: n })
            };
            spans.push(Span { space: b.space, start: fits(b.offset)?, len: fits(b.ty.bytes())? });
        }
        let mut program = Self { launches: Vec::with_capacity(plan.commands.len()), plan, checked, spans };
        for command in &program.plan.commands {
            let info = match command {
                Command::Launch { op, inputs, outputs, workspace, .. } => {
                    program.launch_info(op, inputs, outputs, *workspace)
                }
                _ => LaunchInfo::default(),
            };
            program.launches.push(info);
        }
        Ok(program)
    }

    fn launch_info(
        &self,
        op: &Op,
        inputs: &[BufId],
        outputs: &[BufId],
        workspace: Option<BufId>,
    ) -> LaunchInfo {
        let in_place: SmallVec<[Option<usize>; 4]> = inputs
            .iter()
            .enumerate()
            .map(|(n, &b)| {
                op.inplace().iter().filter(|pair| pair.1 == n).map(|pair| pair.0).find(|&o| {
                    outputs.get(o).is_some_and(|&y| {
                        self.span(y) == self.span(b) && self.plan.buffers[y].ty == self.plan.buffers[b].ty
                    })
                })
            })
            .collect();
        let rows = rows_in_place(&self.plan, op, inputs, outputs);
        let clobbers = !self.checked && {
            let written: Vec<(usize, Span)> =
                outputs.iter().chain(&workspace).map(|&b| self.span(b)).enumerate().collect();
            let twice = |o: usize| in_place.iter().filter(|p| **p == Some(o)).count() > 1;
            written.iter().any(|(o, w)| {
                twice(*o)
                    || written[o + 1..].iter().any(|(_, other)| other.overlaps(w))
                    || inputs
                        .iter()
                        .zip(&in_place)
                        .enumerate()
                        // Output 0 is the result of rows.
                        .filter(|(n, _)| *o > 0 || rows.as_ref().is_none_or(|moves| moves_operand(moves, *n)))
                        .any(|(_, (&b, place))| *place != Some(*o) && self.span(b).overlaps(w))
            })
        };
        LaunchInfo { in_place, rows, clobbers }
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
    /// True if the checker proved the plan.
    pub fn is_checked(&self) -> bool {
        self.checked
    }
    /// The bytes of a buffer.
    pub fn span(&self, buf: BufId) -> Span {
        self.spans[buf.index()]
    }
    /// What is not a parameter, merged: the bytes of both arenas that are undefined when a
    /// step begins.
    pub(crate) fn transient(&self) -> Vec<Span> {
        let mut params: Vec<Span> = self.plan.params.iter().map(|p| self.span(p.buf)).collect();
        params.sort_by_key(|s| s.start);
        let mut spans = Vec::new();
        let mut at = 0;
        let mut gap = |start: usize, end: usize| {
            if start < end {
                spans.push(Span { space: Space::Device, start, len: end - start });
            }
        };
        for p in params {
            gap(at, p.start);
            at = at.max(p.start + p.len);
        }
        // Arenas that do not fit the address space were refused with their buffers.
        gap(at, usize::try_from(self.plan.device.bytes.0).unwrap_or(usize::MAX));
        let len = usize::try_from(self.plan.host.bytes.0).unwrap_or(usize::MAX);
        spans.push(Span { space: Space::Host, start: 0, len });
        spans
    }
    /// How the launch `at` uses its operands (empty for other commands).
    pub fn launch(&self, at: CmdId) -> &LaunchInfo {
        &self.launches[at.index()]
    }
}

/// `device` or `host`.
pub(crate) fn arena_name(space: Space) -> &'static str {
    match space {
        Space::Device => "device",
        Space::Host => "host",
    }
}
