//! Measuring steps: whole ones by two events each, single commands by two events each.

use super::arena::PinnedArena;
use super::backend::{CudaBackend, Loaded, command_error};
use super::error::CudaError;
use super::kernels;
use super::stream::{Event, Stream};
use super::timeline;
use crate::error::RunError;
use crate::program::Span;
use crate::trace::Trace;
use cudarc::driver::sys;
use vdnn_ir::id::EntityId;
use vdnn_ir::{Bytes, Nanos};
use vdnn_plan::CmdId;
use vdnn_plan::plan::ALIGNMENT;

/// Nanoseconds the host may need to queue one command and its two events.
const QUEUEING: u64 = 20_000;

/// The inputs of a step in pinned memory, from where they are copied on a stream.
pub(super) struct Staged {
    memory: PinnedArena,
    /// Offset in `memory`, and where it goes.
    parts: Vec<(usize, Span)>,
}

impl Staged {
    #[expect(unsafe_code, reason = "fills pinned memory")]
    pub(super) fn new(inputs: &[(Span, &[u8])]) -> Result<Self, CudaError> {
        let mut total = 0usize;
        let mut parts = Vec::with_capacity(inputs.len());
        for (span, bytes) in inputs {
            assert_eq!(span.len, bytes.len(), "a buffer is written whole");
            parts.push((total, *span));
            total += bytes.len().next_multiple_of(ALIGNMENT as usize);
        }
        let memory = PinnedArena::new(Bytes(total as u64), "the inputs of a measured step")?;
        for ((at, span), (_, bytes)) in parts.iter().zip(inputs) {
            if span.len > 0 {
                // SAFETY: disjoint ranges of the new block.
                unsafe { memory.at(*at, span.len).copy_from_nonoverlapping(bytes.as_ptr(), span.len) };
            }
        }
        Ok(Self { memory, parts })
    }

    /// Queues the copies into the arenas.
    #[expect(unsafe_code, reason = "queues copies")]
    pub(super) fn enqueue(&self, loaded: &Loaded, stream: &Stream) -> Result<(), CudaError> {
        for (at, span) in self.parts.iter().filter(|p| p.1.len > 0) {
            let (to, from) = (loaded.address(*span), self.memory.device_at(*at, span.len));
            // SAFETY: both ranges live until the stream is idle, which every user of this
            // type waits for.
            CudaError::check("cuMemcpyAsync", unsafe {
                sys::cuMemcpyAsync(to, from, span.len, stream.raw())
            })?;
        }
        Ok(())
    }
}

impl CudaBackend {
    /// Runs steps back to back with the same inputs and returns how long each took on the
    /// device, from when its first command could begin to the end of its last. Copying the
    /// inputs in is queued before each and not counted; it also gives the host time to
    /// queue the step. Call it for plans prepared without poison, after at least two steps,
    /// so that no step of these is the captured one.
    ///
    /// # Errors
    /// As [`run`](crate::backend::Backend::run).
    pub fn time_steps(&mut self, inputs: &[(Span, &[u8])], steps: usize) -> Result<Vec<Nanos>, RunError> {
        let staged = Staged::new(inputs)?;
        let pairs: Result<Vec<(Event, Event)>, CudaError> =
            (0..steps).map(|_| Ok((Event::timed()?, Event::timed()?))).collect();
        let pairs = pairs?;
        let queued = pairs.iter().try_for_each(|(start, end)| {
            let loaded = self.loaded();
            staged.enqueue(loaded, loaded.lanes.main())?;
            loaded.lanes.main().record(start)?;
            self.enqueue_step()?;
            Ok(self.loaded().lanes.main().record(end)?)
        });
        // Also after an error: the staged inputs are about to go.
        let done = crate::backend::Backend::synchronize(self);
        queued.and(done)?;
        pairs.iter().map(|(start, end)| Ok(nanos(end.since(start)?))).collect()
    }

    /// Runs one step command by command with an event before and after each, and returns
    /// when each ran. Queued behind a delay, so that the host is not what the streams wait
    /// for. The events themselves cost about a microsecond per command.
    ///
    /// # Errors
    /// As [`run`](crate::backend::Backend::run).
    pub fn profile_step(&mut self, inputs: &[(Span, &[u8])]) -> Result<Trace, RunError> {
        let staged = Staged::new(inputs)?;
        let commands = self.loaded().program.plan().commands.len();
        let delay = kernels::delay(QUEUEING * commands as u64, &mut self.modules)?;
        let pairs: Result<Vec<(Event, Event)>, CudaError> =
            (0..commands).map(|_| Ok((Event::timed()?, Event::timed()?))).collect();
        let (pairs, zero) = (pairs?, Event::timed()?);
        let Loaded { table, lanes, program, .. } = self.loaded();
        let queue = || -> Result<(), RunError> {
            staged.enqueue(self.loaded(), lanes.main())?;
            delay.enqueue(lanes.main().raw())?;
            lanes.main().record(&zero)?;
            lanes.fork()?;
            for (i, (start, end)) in pairs.iter().enumerate() {
                let at = CmdId::from_index(i);
                let stream = lanes.stream(program.plan().commands[i].stream());
                stream.record(start)?;
                table.enqueue(at, lanes).map_err(|error| command_error(program, at, error))?;
                stream.record(end)?;
            }
            Ok(lanes.join()?)
        };
        let queued = queue();
        let done = self.device().synchronize().map_err(|error| RunError::Step { error });
        queued.and(done)?;
        let times: Result<Vec<(Nanos, Nanos)>, CudaError> = pairs
            .iter()
            .map(|(start, end)| Ok((nanos(start.since(&zero)?), nanos(end.since(&zero)?))))
            .collect();
        Ok(timeline::measured(program.plan(), &times?))
    }

    /// Device memory beside the plan's arena that the backend allocated itself: the scratch
    /// of its kernels.
    pub fn scratch_bytes(&self) -> Bytes {
        self.loaded().scratch_bytes()
    }
}

fn nanos(ns: f64) -> Nanos {
    Nanos(ns.max(0.0).round() as u64)
}
