//! Removes redundant waits, records nobody waits for, and useless copies from a plan.
//!
//! Each kind can be switched off. What remains has the same happens-before relation between
//! kernels, copies and frees as before, so a plan that passes the checker still does.

use std::collections::BTreeMap;
use vdnn_ir::id::EntityId;
use vdnn_ir::{Bytes, Space};
use vdnn_plan::{BufId, Command, EventId, Plan, StreamId};

/// What to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElideOptions {
    /// Waits that stream order and other waits imply, and records nobody waits for.
    pub waits: bool,
    /// Copies whose destination already holds the same value.
    pub copies: bool,
}

impl Default for ElideOptions {
    fn default() -> Self {
        Self { waits: true, copies: true }
    }
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Elided {
    /// Waits.
    pub waits: u64,
    /// Records.
    pub records: u64,
    /// Copies.
    pub copies: u64,
    /// Bytes those copies would have moved.
    pub copied_bytes: Bytes,
}

/// Shortens the plan; events are renumbered without gaps.
pub fn elide(plan: &mut Plan, options: &ElideOptions) -> Elided {
    let mut out = Elided::default();
    if options.copies {
        useless_copies(plan, &mut out);
    }
    if options.waits {
        redundant_waits(plan, &mut out);
        idle_records(plan, &mut out);
    }
    out
}

/// What a byte range holds: the last write to exactly this range and the stream that did it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Content {
    value: u64,
    by: StreamId,
}

/// The contents of the ranges of one arena, by start; ranges never overlap.
#[derive(Default)]
struct Contents {
    ranges: BTreeMap<u64, (u64, Content)>,
}

impl Contents {
    /// The content of exactly this range.
    fn get(&self, from: u64, to: u64) -> Option<Content> {
        self.ranges.get(&from).filter(|(end, _)| *end == to).map(|(_, c)| *c)
    }
    fn write(&mut self, from: u64, to: u64, content: Option<Content>) {
        let stale: Vec<u64> = self
            .ranges
            .range(..to)
            .rev()
            .take_while(|(_, (end, _))| *end > from)
            .map(|(&start, _)| start)
            .collect();
        for start in stale {
            self.ranges.remove(&start);
        }
        if let Some(content) = content {
            self.ranges.insert(from, (to, content));
        }
    }
}

/// Drops copies into a range that already holds the source's value. The plan is free of
/// races, so issue order is one of the orders that give its meaning. A copy is dropped only if
/// its own stream wrote the destination: who waited for the copy then still waits for that.
fn useless_copies(plan: &mut Plan, out: &mut Elided) {
    let mut arenas: BTreeMap<Space, Contents> = BTreeMap::new();
    let mut fresh = 0;
    let buffers = &plan.buffers;
    let range = |buf: BufId| {
        let b = &buffers[buf];
        (b.space, b.offset.0, b.offset.0 + b.ty.bytes().0)
    };
    // What the step starts with was written by nobody: a stream that does not exist.
    let outside = StreamId(u32::MAX);
    let before = plan.params.iter().map(|p| p.buf).chain(plan.inputs.iter().map(|i| i.buf));
    for buf in before {
        let (space, from, to) = range(buf);
        fresh += 1;
        let content = Content { value: fresh, by: outside };
        arenas.entry(space).or_default().write(from, to, Some(content));
    }
    plan.commands.retain(|command| match command {
        Command::Copy { stream, src, dst, .. } => {
            let (space, from, to) = range(*src);
            let source = arenas.entry(space).or_default().get(from, to);
            let (space, from, to) = range(*dst);
            let arena = arenas.entry(space).or_default();
            let there = arena.get(from, to);
            if let (Some(s), Some(t)) = (source, there)
                && s.value == t.value
                && t.by == *stream
            {
                out.copies += 1;
                out.copied_bytes += Bytes(to - from);
                return false;
            }
            arena.write(from, to, source.map(|s| Content { value: s.value, by: *stream }));
            true
        }
        Command::Launch { stream, outputs, workspace, .. } => {
            for (&buf, defined) in
                outputs.iter().map(|b| (b, true)).chain(workspace.iter().map(|b| (b, false)))
            {
                let (space, from, to) = range(buf);
                fresh += 1;
                let content = defined.then_some(Content { value: fresh, by: *stream });
                arenas.entry(space).or_default().write(from, to, content);
            }
            true
        }
        Command::Free { buf, .. } => {
            let (space, from, to) = range(*buf);
            arenas.entry(space).or_default().write(from, to, None);
            true
        }
        Command::Record { .. } | Command::Wait { .. } => true,
    });
}

/// How far each stream is known to have come, in commands.
type Clock = Vec<u32>;

fn covers(a: &Clock, b: &Clock) -> bool {
    a.iter().zip(b).all(|(x, y)| x >= y)
}

/// Drops waits for events that the stream's clock already covers. Waits that follow one
/// another on a stream are weighed together, so that of several the strongest stay.
fn redundant_waits(plan: &mut Plan, out: &mut Elided) {
    let streams = plan.streams.len();
    let mut clock: Vec<Clock> = vec![vec![0; streams]; streams];
    let mut recorded: Vec<Option<Clock>> = vec![None; plan.n_events as usize];
    let mut waiting: Vec<Vec<(usize, EventId)>> = vec![Vec::new(); streams];
    let mut keep = vec![true; plan.commands.len()];
    let mut settle = |s: usize,
                      waiting: &mut Vec<(usize, EventId)>,
                      clock: &mut Clock,
                      recorded: &[Option<Clock>],
                      keep: &mut [bool]| {
        let group = std::mem::take(waiting);
        let known = |e: EventId| recorded.get(e.index()).and_then(Option::as_ref);
        for (k, &(at, event)) in group.iter().enumerate() {
            let Some(this) = known(event) else { continue };
            // Of equal ones the first stays.
            let implied = group.iter().enumerate().any(|(j, &(_, other))| {
                j != k && known(other).is_some_and(|o| covers(o, this) && (j < k || !covers(this, o)))
            });
            if implied || covers(clock, this) {
                keep[at] = false;
                out.waits += 1;
            }
        }
        for (_, event) in group {
            if let Some(this) = known(event) {
                for (c, t) in clock.iter_mut().zip(this) {
                    *c = (*c).max(*t);
                }
            }
        }
        clock[s] += 1;
    };
    for (at, command) in plan.commands.iter().enumerate() {
        let s = command.stream().index();
        if let Command::Wait { event, .. } = command {
            waiting[s].push((at, *event));
            continue;
        }
        settle(s, &mut waiting[s], &mut clock[s], &recorded, &mut keep);
        if let Command::Record { event, .. } = command {
            recorded[event.index()] = Some(clock[s].clone());
        }
    }
    for s in 0..streams {
        // A wait at the end of a stream holds nothing; only the end of the step waits.
        settle(s, &mut waiting[s], &mut clock[s], &recorded, &mut keep);
    }
    let mut keep = keep.into_iter();
    plan.commands.retain(|_| keep.next().unwrap_or(true));
}

/// Drops records nobody waits for and renumbers the events in the order of their records.
fn idle_records(plan: &mut Plan, out: &mut Elided) {
    let mut awaited = vec![false; plan.n_events as usize];
    for command in &plan.commands {
        if let Command::Wait { event, .. } = command {
            awaited[event.index()] = true;
        }
    }
    let mut new: Vec<Option<EventId>> = vec![None; plan.n_events as usize];
    let mut count = 0;
    plan.commands.retain_mut(|command| match command {
        Command::Record { event, .. } => {
            if !awaited[event.index()] {
                out.records += 1;
                return false;
            }
            let id = EventId(count);
            count += 1;
            new[event.index()] = Some(id);
            *event = id;
            true
        }
        Command::Wait { event, .. } => {
            if let Some(id) = new[event.index()] {
                *event = id;
            }
            true
        }
        _ => true,
    });
    plan.n_events = count;
}

#[cfg(test)]
mod tests;
