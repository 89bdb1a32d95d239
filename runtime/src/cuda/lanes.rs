//! The streams and events of a plan, and how a step is bracketed on them.

use super::error::CudaError;
use super::stream::{Event, Stream};
use vdnn_ir::id::EntityId;
use vdnn_plan::{Command, CopyForm, EventId, Plan, StreamId, StreamKind};

/// Which streams of a plan a step uses. The first is the main one: it forks the others at
/// the start of a step and joins them at its end, so that the step as a whole is ordered
/// on it, running or captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Streams other than the main one with at least one command, in order.
    pub others: Vec<usize>,
}

impl Shape {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut used = vec![false; plan.streams.len()];
        for command in &plan.commands {
            used[command.stream().index()] = true;
        }
        let all = 0..plan.streams.len();
        Self { others: all.filter(|&s| s != 0 && used[s]).collect() }
    }
}

/// Streams and events on the device.
#[derive(Debug)]
pub(super) struct Lanes {
    shape: Shape,
    streams: Vec<Stream>,
    events: Vec<Event>,
    fork: Event,
    joins: Vec<Event>,
}

impl Lanes {
    /// One stream per stream of the plan, one event without timing per event. Compute ones have the
    /// highest priority; where kernels copy, those streams have it instead, or their blocks would
    /// wait for whole kernels of the step.
    pub(super) fn new(plan: &Plan) -> Result<Self, CudaError> {
        let shape = Shape::new(plan);
        let packs = plan
            .commands
            .iter()
            .any(|c| matches!(c, Command::Copy { form: CopyForm::Pack | CopyForm::Unpack, .. }));
        let streams: Result<Vec<_>, _> =
            plan.streams.iter().map(|kind| Stream::new((*kind == StreamKind::Compute) != packs)).collect();
        let mut streams = streams?;
        if streams.is_empty() {
            // A plan without commands may have no streams; the step is still bracketed.
            streams.push(Stream::new(true)?);
        }
        let events: Result<Vec<_>, _> = (0..plan.n_events).map(|_| Event::new()).collect();
        let joins: Result<Vec<_>, _> = shape.others.iter().map(|_| Event::new()).collect();
        Ok(Self { streams, events: events?, fork: Event::new()?, joins: joins?, shape })
    }

    /// The stream that orders whole steps.
    pub(super) fn main(&self) -> &Stream {
        &self.streams[0]
    }

    pub(super) fn stream(&self, id: StreamId) -> &Stream {
        &self.streams[id.index()]
    }

    pub(super) fn event(&self, id: EventId) -> &Event {
        &self.events[id.index()]
    }

    /// Lets every other stream start after what is queued on the main one.
    pub(super) fn fork(&self) -> Result<(), CudaError> {
        if self.shape.others.is_empty() {
            return Ok(());
        }
        self.main().record(&self.fork)?;
        self.shape.others.iter().try_for_each(|&s| self.streams[s].wait(&self.fork))
    }

    /// Lets the main stream go on after everything queued on the others.
    pub(super) fn join(&self) -> Result<(), CudaError> {
        for (&s, event) in self.shape.others.iter().zip(&self.joins) {
            self.streams[s].record(event)?;
            self.main().wait(event)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_forks_exactly_the_streams_it_uses() {
        let text = "vplan 1\nmodel \"m\"\nmode infer\nbatch 1\npolicy \"none\"\nalgo \"memory\"\ndevice \"d\"\n\
                    predicted step=0 compute=0 stall=0 lower_bound=0\narena device 512\narena host 256\n\
                    stream s0 compute\nstream s1 d2h\nstream s2 h2d\nstream s3 compute\nevents 1\n\
                    buffer b0 device 0 f32[1] \"x\"\nbuffer b1 host 0 f32[1] \"y\"\ninput \"x\" b0\n\
                    c0 s0 record e0\nc1 s2 wait e0\nc2 s2 copy b1 -> b0\n";
        let plan = vdnn_plan::parse_plan(text).expect("a plan");
        assert_eq!(Shape::new(&plan), Shape { others: vec![2] });
    }
}
