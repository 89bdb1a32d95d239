//! The backend: a plan's commands on a GPU's streams.

use super::arena::{DeviceArena, PinnedArena};
use super::cudnn::Dnn;
use super::delays::{self, Delays};
use super::device::{self, Device, DeviceSelector};
use super::error::CudaError;
use super::kernels::Modules;
use super::lanes::Lanes;
use super::launch::{DeviceRange, SCRATCH};
use super::libs::{self, LibrarySearch, Loaded as LoadedLibrary};
use super::replay::{Mode, Replay};
use super::stream::Stream;
use super::table::{Handles, POISON, Resources, Table, TableOptions};
use crate::backend::Backend;
use crate::cpu::kernels::CpuKernels;
use crate::error::RunError;
use crate::program::{Program, Span};
use cudarc::driver::sys;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use vdnn_ir::id::EntityId;
use vdnn_ir::kernel::Kernels;
use vdnn_ir::{Bytes, Space};
use vdnn_plan::print::command_text;
use vdnn_plan::{CmdId, EngineOrigin, StreamKind};

/// Options of the CUDA backend.
#[derive(Clone, Debug)]
pub struct CudaOptions {
    /// Which device.
    pub device: DeviceSelector,
    /// Capture the second step as one CUDA graph and replay it from then on. Without it
    /// every command of every step is queued on its own.
    pub graph: bool,
    /// Fill undefined bytes with NaN: at the start of a step, when released, and
    /// workspaces before their launch.
    pub poison: bool,
    /// Delay some commands of every stream by up to 2 ms, as picked by the seed: a missing wait
    /// then changes results. [`CudaBackend::set_delays`] picks others later.
    pub delay_seed: Option<u64>,
    /// Leave out one of the plan's waits, counted round and round: shows that a test notices.
    /// Results are garbage; nothing outside the plan's memory is touched.
    pub drop_wait: Option<usize>,
    /// Make one of the plan's launches fail, counted round and round: shows what is said of it.
    pub fail_launch: Option<usize>,
    /// Where compiled kernels are kept; `None` compiles them in every process.
    pub cache_dir: Option<PathBuf>,
    /// Where the libraries are.
    pub libs: LibrarySearch,
    /// Refuse kernels that are not deterministic.
    pub deterministic: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            device: DeviceSelector::default(),
            graph: true,
            poison: false,
            delay_seed: None,
            drop_wait: None,
            fail_launch: None,
            cache_dir: None,
            libs: LibrarySearch::default(),
            deterministic: false,
        }
    }
}

/// A GPU as a device. Everything happens on the thread that made it.
pub struct CudaBackend {
    options: CudaOptions,
    libraries: Vec<LoadedLibrary>,
    host: CpuKernels,
    // In the order in which they may be destroyed: what uses a handle comes before it, the
    // context is last.
    pub(super) loaded: Option<Loaded>,
    handles: Handles,
    pub(super) modules: Modules,
    device: Device,
}

/// What one plan needs. Fields in the order in which they may be destroyed.
pub(super) struct Loaded {
    replay: Replay,
    pub(super) table: Table,
    pub(super) lanes: Lanes,
    /// For copies outside a step.
    transfers: Stream,
    host_arena: PinnedArena,
    device_arena: DeviceArena,
    /// Read by the delays of the table.
    pub(super) delays: Option<Delays>,
    /// By stream; read by the launches of the table.
    scratch: Vec<DeviceArena>,
    /// What is poisoned when a step begins; empty without poison.
    transient: Vec<Span>,
    pub(super) program: Arc<Program>,
}

impl CudaBackend {
    /// Loads the libraries and opens the device. Takes no memory but what the context and
    /// the libraries take.
    ///
    /// # Errors
    /// If a library or the device is missing, or too old.
    pub fn new(options: CudaOptions) -> Result<Self, CudaError> {
        let libraries = libs::load_all(&options.libs)?;
        let device = Device::open(&options.device)?;
        let modules = Modules::new(device.facts(), options.cache_dir.clone())?;
        let handles = Handles::new(options.deterministic);
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let host = CpuKernels::new(threads);
        Ok(Self { options, libraries, host, loaded: None, handles, modules, device })
    }

    /// Fails as [`Self::new`] would for want of a library or device, but makes no context.
    ///
    /// # Errors
    /// If a library or the device is missing, or too old.
    pub fn probe(options: &CudaOptions) -> Result<(), CudaError> {
        libs::load_all(&options.libs)?;
        device::find(&options.device)?;
        Ok(())
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The libraries in use.
    pub fn libraries(&self) -> &[LoadedLibrary] {
        &self.libraries
    }

    /// Whose engine numbers plans that run here may hold.
    pub fn engine_origin(&self) -> EngineOrigin {
        let cudnn = self.libraries.iter().find(|l| l.library == libs::Library::Cudnn);
        EngineOrigin {
            device: self.device.facts().name.clone(),
            cudnn: cudnn.map(|l| l.version.clone()).unwrap_or_default(),
        }
    }

    /// True once steps are replayed from a graph.
    pub fn is_captured(&self) -> bool {
        self.loaded.as_ref().is_some_and(|l| l.replay.is_captured())
    }

    pub(super) fn dnn(&self) -> Result<&Dnn, CudaError> {
        self.handles.dnn()
    }

    pub(super) fn loaded(&self) -> &Loaded {
        self.loaded.as_ref().expect("prepare comes first")
    }

    /// Queues one whole step, ordered on the main stream: at once, or as a graph.
    pub(super) fn enqueue_step(&mut self) -> Result<(), RunError> {
        let loaded = self.loaded.as_mut().expect("prepare comes first");
        let Loaded { replay, table, lanes, program, .. } = loaded;
        match replay.next() {
            Mode::Eager => {
                lanes.fork()?;
                enqueue_commands(table, lanes, program)?;
                lanes.join()?;
            }
            Mode::Capture => {
                lanes.main().begin_capture()?;
                let queued = lanes
                    .fork()
                    .map_err(RunError::from)
                    .and_then(|()| enqueue_commands(table, lanes, program))
                    .and_then(|()| lanes.join().map_err(RunError::from));
                if let Err(e) = queued {
                    lanes.main().abandon_capture();
                    return Err(e);
                }
                let graph = lanes.main().end_capture()?;
                replay.captured(graph).launch(lanes.main())?;
            }
            Mode::Replay(graph) => graph.launch(lanes.main())?,
        }
        Ok(())
    }
}

/// Queues every command of a step in issue order.
fn enqueue_commands(table: &Table, lanes: &Lanes, program: &Program) -> Result<(), RunError> {
    (0..program.plan().commands.len())
        .map(CmdId::from_index)
        .try_for_each(|at| table.enqueue(at, lanes).map_err(|error| command_error(program, at, error)))
}

/// What to say when queueing a command fails: which command, unless the error is an earlier
/// one's that shows only now. Where launches block, every error is the call's own.
pub(super) fn command_error(program: &Program, at: CmdId, error: CudaError) -> RunError {
    if std::env::var_os("CUDA_LAUNCH_BLOCKING").is_none_or(|v| v != "1") {
        if error.is_late() {
            return RunError::Step { error };
        }
        // A library that meets an earlier failure only says that it failed itself.
        let behind = (!matches!(error, CudaError::Driver { .. })).then(late_error).flatten();
        if let Some(error) = behind {
            return RunError::Step { error };
        }
    }
    RunError::Command { at, command: command_text(at, &program.plan().commands[at.index()]), error }
}

/// What the driver reports of kernels and copies that were queued, if one of them failed.
#[expect(unsafe_code, reason = "calls the driver")]
fn late_error() -> Option<CudaError> {
    // SAFETY: without arguments; without a current context it returns an error.
    let status = unsafe { sys::cuCtxSynchronize() };
    CudaError::check("cuCtxSynchronize", status).err().filter(CudaError::is_late)
}

impl Loaded {
    /// Fills bytes of an arena with [`POISON`].
    #[expect(unsafe_code, reason = "fills device or pinned memory")]
    fn poison(&self, span: Span) -> Result<(), CudaError> {
        match span.space {
            Space::Host => {
                let start = self.host_arena.at(span.start, span.len);
                if span.len > 0 {
                    // SAFETY: inside the arena; the device is idle, and no reference to
                    // these bytes exists.
                    unsafe { start.write_bytes(POISON, span.len) };
                }
                Ok(())
            }
            Space::Device => {
                let at = self.device_arena.at(span.start, span.len);
                // SAFETY: inside the arena.
                CudaError::check("cuMemsetD8Async", unsafe {
                    sys::cuMemsetD8Async(at, POISON, span.len, self.transfers.raw())
                })
            }
        }
    }

    fn poison_transient(&self) -> Result<(), CudaError> {
        self.transient.iter().try_for_each(|span| self.poison(*span))?;
        if self.transient.is_empty() { Ok(()) } else { self.transfers.synchronize() }
    }

    #[expect(unsafe_code, reason = "copies to an arena")]
    fn write(&self, span: Span, bytes: &[u8]) -> Result<(), CudaError> {
        assert_eq!(span.len, bytes.len(), "a buffer is written whole");
        match span.space {
            Space::Host if span.len > 0 => {
                let to = self.host_arena.at(span.start, span.len);
                // SAFETY: inside the arena; the device is idle, and `bytes` is another object.
                unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), span.len) };
                Ok(())
            }
            Space::Device if span.len > 0 => {
                let to = self.device_arena.at(span.start, span.len);
                // Pageable memory: the driver copies it through its own pinned buffers. The
                // call may return before the last of them has arrived.
                // SAFETY: `bytes` lives until the stream is idle.
                CudaError::check("cuMemcpyHtoDAsync", unsafe {
                    sys::cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), span.len, self.transfers.raw())
                })?;
                self.transfers.synchronize()
            }
            _ => Ok(()),
        }
    }

    #[expect(unsafe_code, reason = "copies from an arena")]
    fn read(&self, span: Span, into: &mut [u8]) -> Result<(), CudaError> {
        assert_eq!(span.len, into.len(), "a buffer is read whole");
        match span.space {
            Space::Host if span.len > 0 => {
                let from = self.host_arena.at(span.start, span.len);
                // SAFETY: inside the arena; the device is idle, and `into` is another object.
                unsafe { from.copy_to_nonoverlapping(into.as_mut_ptr(), span.len) };
                Ok(())
            }
            Space::Device if span.len > 0 => {
                let from = self.device_arena.at(span.start, span.len);
                // SAFETY: `into` lives until the stream is idle, and is not read before.
                CudaError::check("cuMemcpyDtoHAsync", unsafe {
                    sys::cuMemcpyDtoHAsync_v2(into.as_mut_ptr().cast(), from, span.len, self.transfers.raw())
                })?;
                self.transfers.synchronize()
            }
            _ => Ok(()),
        }
    }

    /// Address of a span for the device.
    pub(super) fn address(&self, span: Span) -> sys::CUdeviceptr {
        match span.space {
            Space::Device => self.device_arena.at(span.start, span.len),
            Space::Host => self.host_arena.device_at(span.start, span.len),
        }
    }

    /// The scratch range of a stream.
    pub(super) fn scratch(&self, stream: usize) -> DeviceRange {
        self.scratch[stream].range()
    }

    /// Bytes of all scratch ranges.
    pub(super) fn scratch_bytes(&self) -> Bytes {
        self.scratch.iter().map(|s| s.range().bytes).sum()
    }
}

impl Backend for CudaBackend {
    fn prepare(&mut self, program: Arc<Program>) -> Result<(), RunError> {
        if !program.is_checked() {
            return Err(RunError::NeedsCheckedPlan);
        }
        let plan = program.plan();
        if let Some(why) = plan.engines_differ(&self.engine_origin()) {
            let next = "plan for this GPU with --device cuda:N, or run the plan with --replan";
            return Err(CudaError::BadPlan { why: format!("{why}; {next}") }.into());
        }
        self.device.make_current()?;
        let device_arena = DeviceArena::new(plan.device.bytes, "the plan's device arena")?;
        let host_arena = PinnedArena::new(plan.host.bytes, "the plan's pinned host arena")?;
        let scratch: Result<Vec<_>, _> = plan
            .streams
            .iter()
            .map(|kind| match kind {
                StreamKind::Compute => DeviceArena::new(SCRATCH, "kernel scratch"),
                StreamKind::D2h | StreamKind::H2d => DeviceArena::new(Bytes::ZERO, "no scratch"),
            })
            .collect();
        let scratch = scratch?;
        let lanes = Lanes::new(plan)?;
        let resources =
            Resources { device: &device_arena, host: &host_arena, scratch: &scratch, handles: &self.handles };
        let delays = self.options.delay_seed.map(|seed| Delays::new(plan, seed)).transpose()?;
        let options = TableOptions {
            poison: self.options.poison,
            delays: delays.as_ref().map(Delays::range),
            dropped_wait: self.options.drop_wait.and_then(|n| delays::nth_wait(plan, n)),
            failing: self.options.fail_launch.and_then(|n| delays::nth_launch(plan, n)),
        };
        let table = Table::new(&program, &resources, &mut self.modules, options)
            .map_err(|(at, error)| command_error(&program, at, error))?;
        self.handles.forget_unused();
        let loaded = Loaded {
            replay: Replay::new(self.options.graph),
            table,
            lanes,
            transfers: Stream::new(false)?,
            host_arena,
            device_arena,
            delays,
            scratch,
            transient: if self.options.poison { program.transient() } else { Vec::new() },
            program,
        };
        loaded.poison_transient()?;
        self.loaded = Some(loaded);
        Ok(())
    }

    fn begin(&mut self) -> Result<(), RunError> {
        Ok(self.loaded().poison_transient()?)
    }

    fn write(&mut self, span: Span, bytes: &[u8]) -> Result<(), RunError> {
        Ok(self.loaded().write(span, bytes)?)
    }

    fn read(&self, span: Span, into: &mut [u8]) -> Result<(), RunError> {
        Ok(self.loaded().read(span, into)?)
    }

    fn issue(&mut self, at: CmdId) -> Result<(), RunError> {
        let Loaded { table, lanes, program, .. } = self.loaded();
        table.enqueue(at, lanes).map_err(|error| command_error(program, at, error))
    }

    fn synchronize(&mut self) -> Result<(), RunError> {
        self.device.synchronize().map_err(|error| RunError::Step { error })
    }

    fn run(&mut self, _program: &Program) -> Result<(), RunError> {
        let queued = self.enqueue_step();
        // Also after an error: no command may run on when this returns.
        let done = self.synchronize();
        queued.and(done)
    }

    fn host_kernels(&self) -> &dyn Kernels {
        &self.host
    }
}

impl Drop for CudaBackend {
    fn drop(&mut self) {
        // Nothing may run when the arenas go.
        if self.device.make_current().is_ok() {
            let _ = self.device.synchronize();
        }
    }
}

impl fmt::Debug for CudaBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaBackend").field("options", &self.options).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Program {
        let text = "vplan 1\nmodel \"m\"\nmode infer\nbatch 1\npolicy \"all\"\nalgo \"memory\"\ndevice \"d\"\n\
                    predicted step=0 compute=0 stall=0 lower_bound=0\narena device 512\narena host 256\n\
                    stream s0 compute\nstream s1 d2h\nevents 0\nbuffer b0 device 0 f32[1] \"features.3\"\n\
                    buffer b1 host 0 f32[1] \"features.3.host\"\ninput \"x\" b0\nc0 s1 copy b0 -> b1\n";
        Program::unchecked(vdnn_plan::parse_plan(text).expect("a plan")).expect("it runs")
    }

    #[test]
    fn what_a_call_refuses_names_the_command_and_what_shows_late_says_how_to_find_it() {
        let failed = |text: &str| {
            let error = CudaError::Driver { call: "cuMemcpyDtoHAsync", text: text.to_owned() };
            command_error(&program(), CmdId::from_index(0), error).to_string()
        };
        let refused = failed("invalid argument (CUDA_ERROR_INVALID_VALUE)");
        assert!(
            refused.starts_with("c0") && refused.contains("copy") && refused.contains("cuMemcpy"),
            "{refused}"
        );
        let late = failed("an illegal memory access was encountered (CUDA_ERROR_ILLEGAL_ADDRESS)");
        assert!(!late.contains("c0") && late.contains("CUDA_LAUNCH_BLOCKING"), "{late}");
    }
}
