//! The simulator: a discrete-event device that runs a plan in predicted time.
//!
//! # The device
//! Streams are queues that run their commands in order. Copies share one engine per direction, as
//! on the GPUs that vDNN (MICRO 2016, section III) uses; it takes the command that became ready
//! first, ties by stream. Kernels of different streams run at once, each taking a share of the
//! device ([`CostModel::occupancy`]): at full speed while the shares add up to no more than the
//! device, else all slowed alike, so that kernels which fill the device take as long as one after
//! the other. A kernel that waits for another compute stream loses [`CostModel::wait`]. `Record`,
//! `Wait` and `Free` take no time, nor do slices and concats that find their rows in place. While both copy directions run, each keeps the
//! profile's share of its rate; while copies run, kernels keep theirs (the copies use the
//! memory the kernels read). Rates change only when an engine starts or stops, so between
//! two such moments progress is linear, and the simulation is exact in integer
//! nanoseconds: work is kept in millionths of a nanosecond, and a command ends at the
//! first whole nanosecond at which it is done.
//!
//! The simulator obeys the plan's events and nothing else: layer-end synchronisation, for
//! example, is a property of the plan.

mod backend;
#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod tests;

pub use backend::SimBackend;

use crate::ranges::LiveBytes;
use crate::trace::{Span, SpanKind, Trace, command_name};
use std::collections::VecDeque;
use vdnn_cost::{CopyDir, CostModel, PPM};
use vdnn_ir::id::EntityId;
use vdnn_ir::{Bytes, Nanos, Op, Space, TensorType};
use vdnn_plan::rows::{RowMoves, rows_in_place};
use vdnn_plan::{BufId, Buffer, CmdId, Command, CopyForm, EventId, Plan, StreamId, StreamKind};

/// What a step costs on the simulated device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimResult {
    /// From the start of the step until every stream is idle.
    pub step: Nanos,
    /// Sum of the kernels' times, each alone on the device.
    pub compute: Nanos,
    /// No order of the kernels takes less: their times, each by the share of the device that it
    /// takes where there are several compute streams.
    pub device_time: Nanos,
    /// What copies, through the shared memory, and kernels of other streams add to kernels.
    pub contention: Nanos,
    /// Time without a kernel; with one compute stream `step - compute - contention`.
    pub stall: Nanos,
    /// Largest number of live bytes of the device arena. A byte is live from the start of
    /// the command that writes it (inputs and parameters from the start of the step) until
    /// its `Free`, a workspace while its kernel runs.
    pub peak_live: Bytes,
    /// Mean of the live bytes over the time of the step, rounded down.
    pub average_live: Bytes,
    /// The timeline.
    pub trace: Trace,
}

impl SimResult {
    /// Kernels, but those that take no time.
    pub fn launches(&self) -> u64 {
        let kernels = self.trace.spans.iter().filter(|s| s.kind == SpanKind::Kernel);
        kernels.filter(|s| s.duration() > Nanos::ZERO).count() as u64
    }
}

/// Why a plan cannot be simulated. A checked plan never gives one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SimError {
    /// A command names a stream the plan has not.
    #[error("command {cmd} is on stream {stream}, but the plan has {count} streams")]
    UnknownStream {
        /// The command.
        cmd: CmdId,
        /// What it names.
        stream: StreamId,
        /// Streams of the plan.
        count: usize,
    },
    /// A command, input or parameter names a buffer the plan has not.
    #[error("{user} uses buffer {buf}, but the plan has {count} buffers")]
    UnknownBuffer {
        /// Who names it.
        user: String,
        /// What it names.
        buf: BufId,
        /// Buffers of the plan.
        count: usize,
    },
    /// A command names an event the plan has not.
    #[error("command {cmd} names event {event}, but the plan has {count} events")]
    UnknownEvent {
        /// The command.
        cmd: CmdId,
        /// What it names.
        event: EventId,
        /// Events of the plan.
        count: u32,
    },
    /// A wait for an event nobody records: its stream would never go on.
    #[error("command {cmd} waits for event {event}, which no command records")]
    NeverRecorded {
        /// The wait.
        cmd: CmdId,
        /// The event.
        event: EventId,
    },
    /// A wait issued before the record it waits for. Every cycle of waits has such a one,
    /// so streams that respect the issue order cannot deadlock.
    #[error("deadlock: command {cmd} waits for event {event}, first recorded by {record}, issued later")]
    Deadlock {
        /// The wait.
        cmd: CmdId,
        /// The event.
        event: EventId,
        /// The first record.
        record: CmdId,
    },
    /// A copy that stays in its arena.
    #[error("command {cmd} copies {src} to {dst}, which are in the same arena; a copy goes between arenas")]
    SameArena {
        /// The copy.
        cmd: CmdId,
        /// From.
        src: BufId,
        /// To.
        dst: BufId,
    },
}

/// Runs one step of a plan in predicted time.
///
/// # Errors
/// If the plan names what it does not have, waits for what is not recorded before, or
/// copies within an arena.
pub fn simulate(plan: &Plan, cost: &CostModel) -> Result<SimResult, SimError> {
    let tasks = tasks(plan, cost)?;
    let mut device = Device::new(plan, cost, tasks)?;
    device.run();
    Ok(device.finish())
}

/// What runs commands that take time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    Compute,
    D2h,
    H2d,
}

const ENGINES: [Engine; 3] = [Engine::Compute, Engine::D2h, Engine::H2d];

/// A command, resolved.
#[derive(Clone, Copy, Debug)]
enum Task {
    Work {
        engine: Engine,
        time: Nanos,
        /// Of the device, in millionths; of interest for kernels.
        share: u64,
    },
    Free(BufId),
    /// A launch whose result lies where its operands are.
    InPlace,
    Record,
    /// Goes on when this command, a record, has been reached, and so much later.
    Wait(CmdId, Nanos),
}

/// Resolves every command: prices, engines, the record each wait waits for.
fn tasks(plan: &Plan, cost: &CostModel) -> Result<Vec<Task>, SimError> {
    let mut last_record: Vec<Option<CmdId>> = vec![None; plan.n_events as usize];
    let mut tasks = Vec::with_capacity(plan.commands.len());
    let several = plan.compute_streams() > 1;
    for (i, command) in plan.commands.iter().enumerate() {
        let cmd = CmdId::from_index(i);
        let stream = command.stream();
        if stream.index() >= plan.streams.len() {
            return Err(SimError::UnknownStream { cmd, stream, count: plan.streams.len() });
        }
        let buffer = |buf: BufId| buffer(plan, buf, || format!("command {cmd}"));
        tasks.push(match command {
            Command::Launch { op, inputs, outputs, workspace, algo, .. } => {
                let input_types =
                    inputs.iter().map(|&b| Ok(&buffer(b)?.ty)).collect::<Result<Vec<_>, SimError>>()?;
                let output_types =
                    outputs.iter().map(|&b| Ok(&buffer(b)?.ty)).collect::<Result<Vec<_>, SimError>>()?;
                workspace.map(buffer).transpose()?;
                match rows_in_place(plan, op, inputs, outputs) {
                    Some(moves) if moves.is_empty() => Task::InPlace,
                    Some(moves) => {
                        let time = concat_of(&moves, &input_types, cost);
                        Task::Work { engine: Engine::Compute, time, share: PPM }
                    }
                    None => {
                        let time = cost.launch(op, &input_types, &output_types, algo.as_ref());
                        let share = match several {
                            true => cost.occupancy(op, &input_types, &output_types, algo.as_ref()),
                            false => PPM,
                        };
                        Task::Work { engine: Engine::Compute, time, share }
                    }
                }
            }
            Command::Copy { form, src, dst, .. } => {
                let (from, to) = (buffer(*src)?, buffer(*dst)?);
                let (engine, dir) = match (from.space, to.space) {
                    (Space::Device, Space::Host) => (Engine::D2h, CopyDir::D2h),
                    (Space::Host, Space::Device) => (Engine::H2d, CopyDir::H2d),
                    _ => return Err(SimError::SameArena { cmd, src: *src, dst: *dst }),
                };
                let time = match form {
                    CopyForm::Plain => cost.copy(dir, from.ty.bytes()),
                    CopyForm::Pack => cost.packed_copy(dir, &from.ty),
                    CopyForm::Unpack => cost.packed_copy(dir, &to.ty),
                };
                Task::Work { engine, time, share: PPM }
            }
            Command::Free { buf, .. } => {
                buffer(*buf)?;
                Task::Free(*buf)
            }
            Command::Record { event, .. } => {
                *event_slot(&mut last_record, cmd, *event)? = Some(cmd);
                Task::Record
            }
            Command::Wait { event, .. } => match *event_slot(&mut last_record, cmd, *event)? {
                Some(record) => {
                    let from = plan.commands[record.index()].stream();
                    let between = from != stream && [from, stream].iter().all(|&s| is_compute(plan, s));
                    Task::Wait(record, if between { cost.wait() } else { Nanos::ZERO })
                }
                None => return Err(not_recorded(plan, cmd, *event)),
            },
        });
    }
    Ok(tasks)
}

fn is_compute(plan: &Plan, stream: StreamId) -> bool {
    plan.streams.get(stream.index()) == Some(&StreamKind::Compute)
}

/// The time of a concat of rows that has only these operands to move.
fn concat_of(moves: &RowMoves, types: &[&TensorType], cost: &CostModel) -> Nanos {
    let moved: Vec<&TensorType> = moves.iter().map(|m| types[m.operand]).collect();
    let mut result = moved[0].clone();
    result.dims[0] = moved.iter().map(|ty| ty.dims[0]).fold(0, u64::saturating_add);
    cost.launch(&Op::Concat { axis: 0 }, &moved, &[&result], None)
}

fn event_slot(
    slots: &mut [Option<CmdId>],
    cmd: CmdId,
    event: EventId,
) -> Result<&mut Option<CmdId>, SimError> {
    let count = u32::try_from(slots.len()).unwrap_or(u32::MAX);
    slots.get_mut(event.index()).ok_or(SimError::UnknownEvent { cmd, event, count })
}

fn not_recorded(plan: &Plan, cmd: CmdId, event: EventId) -> SimError {
    let records = |c: &Command| matches!(c, Command::Record { event: e, .. } if *e == event);
    match plan.commands.iter().position(records) {
        Some(at) => SimError::Deadlock { cmd, event, record: CmdId::from_index(at) },
        None => SimError::NeverRecorded { cmd, event },
    }
}

fn buffer(plan: &Plan, buf: BufId, user: impl FnOnce() -> String) -> Result<&Buffer, SimError> {
    plan.buffers.get(buf).ok_or_else(|| SimError::UnknownBuffer {
        user: user(),
        buf,
        count: plan.buffers.len(),
    })
}

/// A command an engine runs.
#[derive(Clone, Copy, Debug)]
struct Running {
    cmd: CmdId,
    start: Nanos,
    /// Nanoseconds alone on the device, in millionths.
    left: u128,
    engine: Engine,
    /// Of the device.
    share: u64,
}

/// A queue and when its first command became ready to go on.
#[derive(Debug, Default)]
struct Queue {
    commands: VecDeque<CmdId>,
    /// When the stream reached its first command.
    since: Nanos,
    /// The first command is on an engine.
    running: bool,
}

/// State of the simulated device.
struct Device<'a> {
    plan: &'a Plan,
    tasks: Vec<Task>,
    queues: Vec<Queue>,
    /// What runs: one copy per direction, one kernel per stream. In the order of starting.
    running: Vec<Running>,
    /// Per command: when a record was reached.
    reached: Vec<Option<Nanos>>,
    link_share: u64,
    /// By number of running copies.
    kernel_share: [u64; 3],
    now: Nanos,
    /// By space: device, host.
    live: [LiveBytes; 2],
    peak: Bytes,
    /// Live device bytes times nanoseconds.
    weighted: u128,
    compute: Nanos,
    /// Millionths of a nanosecond of the whole device.
    device_time: u128,
    /// The kernels' times as they ran.
    ran: Nanos,
    /// Time with a kernel.
    busy: Nanos,
    trace: Trace,
}

impl<'a> Device<'a> {
    fn new(plan: &'a Plan, cost: &CostModel, tasks: Vec<Task>) -> Result<Self, SimError> {
        let mut queues: Vec<Queue> = plan.streams.iter().map(|_| Queue::default()).collect();
        for (i, command) in plan.commands.iter().enumerate() {
            queues[command.stream().index()].commands.push_back(CmdId::from_index(i));
        }
        let mut device = Self {
            plan,
            reached: vec![None; tasks.len()],
            tasks,
            queues,
            running: Vec::new(),
            link_share: cost.link_share(),
            kernel_share: [0, 1, 2].map(|copies| cost.kernel_share(copies)),
            now: Nanos::ZERO,
            live: Default::default(),
            peak: Bytes::ZERO,
            weighted: 0,
            compute: Nanos::ZERO,
            device_time: 0,
            ran: Nanos::ZERO,
            busy: Nanos::ZERO,
            trace: Trace::default(),
        };
        for input in &plan.inputs {
            buffer(plan, input.buf, || format!("input `{}`", input.name))?;
            device.set_live(input.buf, true);
        }
        for param in &plan.params {
            buffer(plan, param.buf, || format!("parameter `{}`", param.name))?;
            device.set_live(param.buf, true);
        }
        Ok(device)
    }

    fn set_live(&mut self, buf: BufId, live: bool) {
        let b = &self.plan.buffers[buf];
        let (start, end) = (b.offset.0, b.offset.saturating_add(b.ty.bytes()).0);
        let bytes = &mut self.live[usize::from(b.space == Space::Host)];
        if live { bytes.insert(start, end) } else { bytes.remove(start, end) }
    }

    fn run(&mut self) {
        loop {
            self.settle();
            self.sample();
            let Some(next) = self.next_end() else { break };
            self.advance(next);
        }
        debug_assert!(self.queues.iter().all(|q| q.commands.is_empty()), "every wait has an earlier record");
    }

    /// Runs everything that takes no time now, then gives idle engines their next command.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for stream in 0..self.queues.len() {
                while self.step_instant(stream) {
                    moved = true;
                }
            }
            for engine in ENGINES {
                while self.dispatch(engine) {
                    moved = true;
                }
            }
            // An engine may have been given work of no duration.
            moved |= self.complete();
            if !moved {
                break;
            }
        }
    }

    /// Runs the first command of a stream if it takes no time and may run.
    fn step_instant(&mut self, stream: usize) -> bool {
        let Some(&cmd) = self.queues[stream].commands.front() else { return false };
        match self.tasks[cmd.index()] {
            Task::Work { .. } => return false,
            Task::Free(buf) => self.set_live(buf, false),
            // Its bytes are live already.
            Task::InPlace => {}
            Task::Record => self.reached[cmd.index()] = Some(self.now),
            Task::Wait(record, delay) if !self.is_past(record, delay) => return false,
            Task::Wait(..) => {
                let start = self.queues[stream].since;
                if start < self.now {
                    self.span(cmd, SpanKind::Wait, start, Bytes::ZERO);
                }
            }
        }
        self.pop(stream);
        true
    }

    /// True if a record was reached so long ago.
    fn is_past(&self, record: CmdId, delay: Nanos) -> bool {
        self.reached[record.index()].is_some_and(|at| at.saturating_add(delay) <= self.now)
    }

    fn pop(&mut self, stream: usize) {
        let queue = &mut self.queues[stream];
        queue.commands.pop_front();
        queue.since = self.now;
        queue.running = false;
    }

    /// Gives an engine that can take one the command that has been ready longest.
    fn dispatch(&mut self, engine: Engine) -> bool {
        if engine != Engine::Compute && self.running.iter().any(|r| r.engine == engine) {
            return false;
        }
        let ready = self.queues.iter().enumerate().filter(|(_, q)| !q.running).filter_map(|(i, q)| {
            let &cmd = q.commands.front()?;
            match self.tasks[cmd.index()] {
                Task::Work { engine: e, time, share } if e == engine => Some((q.since, i, cmd, time, share)),
                _ => None,
            }
        });
        let Some((_, stream, cmd, time, share)) = ready.min_by_key(|&(since, i, ..)| (since, i)) else {
            return false;
        };
        self.queues[stream].running = true;
        let left = u128::from(time.0) * u128::from(PPM);
        self.running.push(Running { cmd, start: self.now, left, engine, share });
        if engine == Engine::Compute {
            self.compute = self.compute.saturating_add(time);
            self.device_time = self.device_time.saturating_add(u128::from(time.0) * u128::from(share));
        }
        let plan = self.plan;
        match &plan.commands[cmd.index()] {
            Command::Launch { outputs, workspace, .. } => {
                outputs.iter().chain(workspace).for_each(|&b| self.set_live(b, true));
            }
            Command::Copy { dst, .. } => self.set_live(*dst, true),
            _ => {}
        }
        true
    }

    /// Takes finished commands off their engines.
    fn complete(&mut self) -> bool {
        let mut any = false;
        while let Some(at) = self.running.iter().position(|r| r.left == 0) {
            let Running { cmd, start, .. } = self.running.remove(at);
            any = true;
            let plan = self.plan;
            match &plan.commands[cmd.index()] {
                Command::Launch { workspace, .. } => {
                    if let Some(workspace) = workspace {
                        self.set_live(*workspace, false);
                    }
                    self.ran = self.ran.saturating_add(self.now.saturating_sub(start));
                    self.span(cmd, SpanKind::Kernel, start, Bytes::ZERO);
                }
                Command::Copy { src, dst, .. } => {
                    self.span(cmd, SpanKind::Copy, start, plan.copied_bytes(*src, *dst));
                }
                _ => {}
            }
            self.pop(plan.commands[cmd.index()].stream().index());
        }
        any
    }

    /// Millionths of a nanosecond of work that a command on an engine does in one nanosecond.
    fn rate(&self, engine: Engine) -> u64 {
        let copies = self.running.iter().filter(|r| r.engine != Engine::Compute).count();
        match engine {
            Engine::Compute => {
                let kernels = self.running.iter().filter(|r| r.engine == Engine::Compute);
                let shares = kernels.map(|r| r.share).sum::<u64>().max(PPM);
                (u128::from(self.kernel_share[copies]) * u128::from(PPM) / u128::from(shares)).max(1) as u64
            }
            Engine::D2h | Engine::H2d if copies == 2 => self.link_share,
            Engine::D2h | Engine::H2d => PPM,
        }
    }

    /// Time until the first command is done, or a stream has waited long enough, if any is at work.
    fn next_end(&self) -> Option<Nanos> {
        let ends = self.running.iter().map(|r| {
            let ns = r.left.div_ceil(u128::from(self.rate(r.engine)));
            Nanos(u64::try_from(ns).unwrap_or(u64::MAX))
        });
        let waits = self.queues.iter().filter_map(|q| match self.tasks[q.commands.front()?.index()] {
            Task::Wait(record, delay) => {
                Some(self.reached[record.index()]?.saturating_add(delay).saturating_sub(self.now))
            }
            _ => None,
        });
        ends.chain(waits).min()
    }

    /// Lets all engines work for a while.
    fn advance(&mut self, by: Nanos) {
        let rates = ENGINES.map(|engine| self.rate(engine));
        if self.running.iter().any(|r| r.engine == Engine::Compute) {
            self.busy = self.busy.saturating_add(by);
        }
        for running in &mut self.running {
            let rate = rates[running.engine as usize];
            running.left = running.left.saturating_sub(u128::from(by.0) * u128::from(rate));
        }
        let area = u128::from(self.live[0].total().0) * u128::from(by.0);
        self.weighted = self.weighted.saturating_add(area);
        self.now = self.now.saturating_add(by);
        self.complete();
    }

    /// Notes the live bytes that hold from now on.
    fn sample(&mut self) {
        let [device, host] = [self.live[0].total(), self.live[1].total()];
        self.peak = self.peak.max(device);
        let same = self.trace.memory.last().is_some_and(|&(_, d, h)| (d, h) == (device, host));
        if !same {
            self.trace.memory.push((self.now, device, host));
        }
    }

    fn span(&mut self, cmd: CmdId, kind: SpanKind, start: Nanos, bytes: Bytes) {
        let command = &self.plan.commands[cmd.index()];
        let name = command_name(self.plan, command);
        let stream = command.stream();
        self.trace.spans.push(Span { stream, cmd, name, kind, start, end: self.now, bytes });
    }

    fn finish(mut self) -> SimResult {
        self.trace.spans.sort_by_key(|s| (s.start, s.cmd));
        let step = self.now;
        // An empty step has the bytes it began with.
        let average = match u128::from(step.0) {
            0 => self.live[0].total(),
            ns => Bytes(u64::try_from(self.weighted / ns).unwrap_or(u64::MAX)),
        };
        SimResult {
            step,
            compute: self.compute,
            device_time: Nanos(u64::try_from(self.device_time / u128::from(PPM)).unwrap_or(u64::MAX)),
            contention: self.ran.saturating_sub(self.compute),
            stall: step.saturating_sub(self.busy),
            peak_live: self.peak,
            average_live: average,
            trace: self.trace,
        }
    }
}
