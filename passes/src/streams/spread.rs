//! A plan's launches on several compute streams.

use super::Lanes;
use super::order::{Accesses, At, Order};
use std::ops::Range;
use vdnn_ir::Space;
use vdnn_ir::id::EntityId;
use vdnn_plan::{BufId, Command, EventId, Plan, StreamId, StreamKind};

/// What [`spread`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// Launches on another stream than the first.
    pub moved: u64,
    /// Waits between compute streams.
    pub waits: u64,
}

/// Puts every launch of a plan with one compute stream and no others on the stream of its lane.
/// Commands of different streams that touch the same bytes, one of them to write, stay in order by
/// events; a range is freed on the first stream that is past all its users. Other plans stay as
/// they are.
pub fn spread(plan: &mut Plan, lanes: &Lanes) -> Spread {
    let plain = |c: &Command| matches!(c, Command::Launch { .. } | Command::Free { .. });
    if lanes.count() < 2 || plan.streams != [StreamKind::Compute] || !plan.commands.iter().all(plain) {
        return Spread::default();
    }
    let mut s = Spreading {
        plan,
        order: Order::new(lanes.count() as usize),
        accesses: Accesses::default(),
        groups: Vec::new(),
        group_of: vec![Vec::new(); lanes.count() as usize],
        dead: Vec::new(),
        last: 0,
        done: Spread::default(),
    };
    for command in &plan.commands {
        match command {
            Command::Free { buf, .. } => s.free(*buf),
            launch => s.launch(launch, lanes),
        }
    }
    s.finish();
    let Spreading { groups, done, .. } = s;
    plan.streams = vec![StreamKind::Compute; lanes.count() as usize];
    (plan.commands, plan.n_events) = issue(&groups);
    done
}

/// Commands that follow each other on one stream, up to where others may wait for them.
struct Group {
    stream: StreamId,
    waits: Vec<At>,
    commands: Vec<Command>,
    /// Somebody waits for it, so that it can take no more.
    awaited: bool,
}

/// Bytes that nobody reads any more, and who must be done with them.
struct Dead {
    buf: BufId,
    needed: Vec<u32>,
}

struct Spreading<'a> {
    plan: &'a Plan,
    order: Order,
    accesses: Accesses,
    groups: Vec<Group>,
    /// By lane: the groups on it.
    group_of: Vec<Vec<usize>>,
    /// What no stream could free yet.
    dead: Vec<Dead>,
    /// Lane of the last launch.
    last: usize,
    done: Spread,
}

impl Spreading<'_> {
    /// The device bytes of a buffer: without copies nothing is on the host.
    fn bytes(&self, buf: BufId) -> Range<u64> {
        let b = &self.plan.buffers[buf];
        debug_assert_eq!(b.space, Space::Device);
        b.offset.0..b.offset.0 + b.ty.bytes().0
    }

    fn needed(&self, uses: &[(Range<u64>, bool)]) -> Vec<u32> {
        let mut needed = vec![0; self.order.lanes()];
        for (bytes, writes) in uses {
            self.accesses.conflicts(bytes, *writes, &mut needed);
        }
        needed
    }

    /// Begins a group that comes after all of `needed`.
    fn begin(&mut self, lane: usize, needed: &[u32]) -> At {
        let waits = self.order.wait(lane, needed);
        for at in &waits {
            let group = self.group_of[at.lane][at.count as usize - 1];
            self.groups[group].awaited = true;
        }
        self.done.waits += waits.len() as u64;
        let stream = StreamId::from_index(lane);
        self.group_of[lane].push(self.groups.len());
        self.groups.push(Group { stream, waits, commands: Vec::new(), awaited: false });
        self.order.push(lane)
    }

    /// Adds a free to the group of `at`, which is its lane's last.
    fn push_free(&mut self, buf: BufId, at: At) {
        let group = &mut self.groups[self.group_of[at.lane][at.count as usize - 1]];
        group.commands.push(Command::Free { stream: group.stream, buf });
        self.accesses.note(&self.bytes(buf), true, at);
    }

    fn launch(&mut self, command: &Command, lanes: &Lanes) {
        let Command::Launch { inputs, outputs, workspace, node, .. } = command else { return };
        let lane = lanes.of(*node) as usize;
        let reads = inputs.iter().map(|&b| (self.bytes(b), false));
        let writes = outputs.iter().chain(workspace).map(|&b| (self.bytes(b), true));
        let uses: Vec<(Range<u64>, bool)> = reads.chain(writes).collect();
        let mut needed = self.needed(&uses);
        // Bytes that it takes over are free first, all of them.
        let meets = |dead: &Dead, bytes: &Range<u64>| {
            let range = self.bytes(dead.buf);
            range.start < bytes.end && bytes.start < range.end
        };
        for dead in &self.dead {
            if uses.iter().any(|(bytes, _)| meets(dead, bytes)) {
                needed.iter_mut().zip(&dead.needed).for_each(|(n, d)| *n = (*n).max(*d));
            }
        }
        let at = self.begin(lane, &needed);
        for dead in std::mem::take(&mut self.dead) {
            if self.order.knows(lane, &dead.needed) {
                self.push_free(dead.buf, at)
            } else {
                self.dead.push(dead)
            }
        }
        let mut launch = command.clone();
        if let Command::Launch { stream, .. } = &mut launch {
            *stream = StreamId::from_index(lane);
        }
        self.groups[self.group_of[lane][at.count as usize - 1]].commands.push(launch);
        for (bytes, writes) in &uses {
            self.accesses.note(bytes, *writes, at);
        }
        self.done.moved += u64::from(lane != 0);
        self.last = lane;
    }

    fn free(&mut self, buf: BufId) {
        let needed = self.needed(&[(self.bytes(buf), true)]);
        let others = (0..self.order.lanes()).filter(|&l| l != self.last);
        let past = std::iter::once(self.last).chain(others).find(|&l| self.order.knows(l, &needed));
        let Some(lane) = past else {
            self.dead.push(Dead { buf, needed });
            return;
        };
        let open = self.group_of[lane].last().filter(|&&g| !self.groups[g].awaited).is_some();
        let at = if open {
            At { lane, count: self.group_of[lane].len() as u32 }
        } else {
            self.begin(lane, &vec![0; self.order.lanes()])
        };
        self.push_free(buf, at);
    }

    /// Frees what is left when all lanes are done.
    fn finish(&mut self) {
        let dead = std::mem::take(&mut self.dead);
        if dead.is_empty() {
            return;
        }
        let mut needed = vec![0; self.order.lanes()];
        for d in &dead {
            needed.iter_mut().zip(&d.needed).for_each(|(n, d)| *n = (*n).max(*d));
        }
        let at = self.begin(0, &needed);
        for d in dead {
            self.push_free(d.buf, at);
        }
    }
}

/// All groups in issue order, a record behind each that is awaited, and the number of records.
fn issue(groups: &[Group]) -> (Vec<Command>, u32) {
    let mut commands = Vec::new();
    // By stream, the event behind each of its groups.
    let mut event_of: Vec<Vec<Option<EventId>>> = Vec::new();
    let mut events = 0;
    for group in groups {
        let stream = group.stream;
        for at in &group.waits {
            if let Some(event) = event_of[at.lane][at.count as usize - 1] {
                commands.push(Command::Wait { stream, event });
            }
        }
        commands.extend(group.commands.iter().cloned());
        if event_of.len() <= stream.index() {
            event_of.resize(stream.index() + 1, Vec::new());
        }
        let event = group.awaited.then(|| {
            let event = EventId(events);
            events += 1;
            commands.push(Command::Record { stream, event });
            event
        });
        event_of[stream.index()].push(event);
    }
    (commands, events)
}
