//! Happens-before by vector clocks.

use crate::plan::{CmdId, Command, Plan};
use vdnn_ir::id::EntityId;

/// The happens-before relation of a plan whose structure is sound.
///
/// `clock(c)[s]` counts the commands of stream `s` that are ordered before or equal to
/// `c`. One pass in issue order computes it, because a wait follows its record.
pub(super) struct HappensBefore {
    width: usize,
    clocks: Vec<u32>,
    streams: Vec<u32>,
}

impl HappensBefore {
    pub(super) fn of(plan: &Plan) -> Self {
        let width = plan.streams.len();
        let mut clocks = Vec::with_capacity(plan.commands.len() * width);
        let mut streams = Vec::with_capacity(plan.commands.len());
        let mut now = vec![vec![0u32; width]; width];
        let mut recorded: Vec<Option<usize>> = vec![None; plan.n_events as usize];
        for (i, command) in plan.commands.iter().enumerate() {
            let s = command.stream().index();
            if let Command::Wait { event, .. } = command
                && let Some(record) = recorded[event.index()]
            {
                let seen = &clocks[record * width..(record + 1) * width];
                for (mine, theirs) in now[s].iter_mut().zip(seen) {
                    *mine = (*mine).max(*theirs);
                }
            }
            now[s][s] += 1;
            if let Command::Record { event, .. } = command {
                recorded[event.index()] = Some(i);
            }
            clocks.extend_from_slice(&now[s]);
            streams.push(s as u32);
        }
        Self { width, clocks, streams }
    }

    /// True if `a` is ordered before `b` in every execution, or is `b`.
    pub(super) fn ordered(&self, a: CmdId, b: CmdId) -> bool {
        let stream = self.streams[a.index()] as usize;
        self.clocks[b.index() * self.width + stream] >= self.clocks[a.index() * self.width + stream]
    }

    /// The stream of a command.
    pub(super) fn stream(&self, c: CmdId) -> usize {
        self.streams[c.index()] as usize
    }
}
