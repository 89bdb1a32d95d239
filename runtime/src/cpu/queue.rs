//! The ways to run a step's commands: every one respects stream order and events, nothing
//! else. By the checker's proof they all give the same bytes.

use super::machine::Machine;
use crate::error::RunError;
use std::sync::{Condvar, Mutex, PoisonError};
use vdnn_ir::id::EntityId;
use vdnn_ir::random::splitmix64;
use vdnn_plan::print::command_text;
use vdnn_plan::{CmdId, Command};

/// The commands of each stream, and where each stream stands.
#[derive(Debug, Default)]
pub(super) struct Queues {
    streams: Vec<Vec<CmdId>>,
    next: Vec<usize>,
    reached: Vec<bool>,
}

impl Queues {
    pub(super) fn new(streams: usize, events: usize) -> Self {
        Self { streams: vec![Vec::new(); streams], next: vec![0; streams], reached: vec![false; events] }
    }

    pub(super) fn push(&mut self, stream: usize, at: CmdId) {
        self.streams[stream].push(at);
    }

    /// Empties the queues; their memory stays for the next step.
    fn reset(&mut self) {
        self.streams.iter_mut().for_each(Vec::clear);
        self.next.fill(0);
        self.reached.fill(false);
    }

    /// The head of a stream if it may run now.
    fn ready(&self, machine: &Machine, stream: usize) -> Option<CmdId> {
        let at = *self.streams[stream].get(self.next[stream])?;
        match &machine.program().plan().commands[at.index()] {
            Command::Wait { event, .. } if !self.reached[event.index()] => None,
            _ => Some(at),
        }
    }
}

/// What an interleaved run prefers among the streams that may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taste {
    /// Any stream, each with equal chance.
    Even,
    /// The lowest stream: compute runs ahead, copies come as late as possible.
    LowFirst,
    /// The highest stream: copies run ahead, compute comes as late as possible.
    HighFirst,
    /// One stream as long as it can, then another at random.
    Bursts,
}

/// Numbers one after the other.
#[derive(Clone, Debug)]
pub(super) struct Random {
    seed: u64,
    drawn: u64,
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }
    fn next(&mut self) -> u64 {
        self.drawn += 1;
        splitmix64(self.seed, self.drawn - 1)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Runs the queues on this thread in an order picked by `random`; each step draws a new
/// preference, so a few steps see the extreme orders as well as mixed ones.
pub(super) fn interleaved(
    queues: &mut Queues,
    machine: &Machine,
    random: &mut Random,
) -> Result<(), RunError> {
    let result = interleave(queues, machine, random);
    queues.reset();
    result
}

#[expect(unsafe_code, reason = "runs commands one at a time")]
fn interleave(queues: &mut Queues, machine: &Machine, random: &mut Random) -> Result<(), RunError> {
    let taste = [Taste::Even, Taste::LowFirst, Taste::HighFirst, Taste::Bursts][random.below(4)];
    let n = queues.streams.len();
    let mut last = None;
    loop {
        let ready = |s: &usize| queues.ready(machine, *s).is_some();
        let count = (0..n).filter(ready).count();
        if count == 0 {
            break;
        }
        let pick = match taste {
            Taste::LowFirst => 0,
            Taste::HighFirst => count - 1,
            Taste::Even | Taste::Bursts => random.below(count),
        };
        let stream = match last {
            Some(s) if taste == Taste::Bursts && ready(&s) => s,
            _ => (0..n).filter(ready).nth(pick).expect("fewer than the ready streams"),
        };
        last = Some(stream);
        let at = queues.streams[stream][queues.next[stream]];
        // SAFETY: commands run one after another on this thread.
        unsafe { machine.run(at)? };
        if let Command::Record { event, .. } = &machine.program().plan().commands[at.index()] {
            queues.reached[event.index()] = true;
        }
        queues.next[stream] += 1;
    }
    match (0..n).find_map(|s| queues.streams[s].get(queues.next[s])) {
        None => Ok(()),
        Some(&at) => Err(RunError::Deadlock {
            command: command_text(at, &machine.program().plan().commands[at.index()]),
        }),
    }
}

/// What the stream threads share.
struct Shared {
    reached: Vec<bool>,
    error: Option<RunError>,
}

/// Runs each stream on a thread of its own. The program must be checked.
pub(super) fn threads(queues: &mut Queues, machine: &Machine) -> Result<(), RunError> {
    assert!(machine.program().is_checked(), "only checked programs run on several threads");
    let shared = Mutex::new(Shared { reached: std::mem::take(&mut queues.reached), error: None });
    let changed = Condvar::new();
    let panicked = std::thread::scope(|scope| {
        let workers: Vec<_> = queues
            .streams
            .iter()
            .filter(|queue| !queue.is_empty())
            .map(|queue| scope.spawn(|| stream_thread(queue, machine, &shared, &changed)))
            .collect();
        // Join every worker, also after one that panicked.
        workers.into_iter().filter_map(|w| w.join().err()).count()
    });
    let shared = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    queues.reached = shared.reached;
    queues.reset();
    match shared.error {
        Some(e) => Err(e),
        None if panicked > 0 => Err(RunError::Thread("a kernel panicked".into())),
        None => Ok(()),
    }
}

/// Reports an error to the other threads if the thread unwinds.
struct Watch<'a> {
    shared: &'a Mutex<Shared>,
    changed: &'a Condvar,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            fail(self.shared, self.changed, RunError::Thread("a kernel panicked".into()));
        }
    }
}

fn fail(shared: &Mutex<Shared>, changed: &Condvar, error: RunError) {
    shared.lock().unwrap_or_else(PoisonError::into_inner).error.get_or_insert(error);
    changed.notify_all();
}

#[expect(unsafe_code, reason = "runs commands concurrently, as the checker's proof allows")]
fn stream_thread(queue: &[CmdId], machine: &Machine, shared: &Mutex<Shared>, changed: &Condvar) {
    let _watch = Watch { shared, changed };
    for &at in queue {
        match &machine.program().plan().commands[at.index()] {
            Command::Record { event, .. } => {
                let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
                state.reached[event.index()] = true;
                changed.notify_all();
                if state.error.is_some() {
                    return;
                }
            }
            Command::Wait { event, .. } => {
                let state = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let state = changed
                    .wait_while(state, |s| s.error.is_none() && !s.reached[event.index()])
                    .unwrap_or_else(PoisonError::into_inner);
                if state.error.is_some() {
                    return;
                }
            }
            _ => {
                // SAFETY: the program is checked (asserted by `threads`), this thread runs
                // its stream in order, and a wait returns only after the record was
                // reached, under the same lock; so every command running now is unordered
                // with this one.
                if let Err(e) = unsafe { machine.run(at) } {
                    fail(shared, changed, e);
                    return;
                }
            }
        }
    }
}
