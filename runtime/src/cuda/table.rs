//! The commands of a plan with everything resolved: what a step does is walk this table.

use super::arena::{DeviceArena, PinnedArena};
use super::blas::{self, Blas};
use super::cudnn::{self, Dnn, DnnOptions};
use super::delays;
use super::divided;
use super::error::CudaError;
use super::kernels::{self, Modules};
use super::lanes::Lanes;
use super::launch::{DeviceRange, LaunchSpec, Operand, Prepared};
use crate::program::{Program, Span};
use cudarc::driver::sys;
use std::cell::OnceCell;
use std::ffi::c_void;
use vdnn_ir::id::EntityId;
use vdnn_ir::{Bytes, ConvSchedule, Op, Space};
use vdnn_plan::{BufId, CmdId, Command, CopyForm, EventId, StreamId, StreamKind};

/// What undefined bytes hold: a NaN of every float type, -1 as an integer.
pub(super) const POISON: u8 = 0xff;

/// Library handles, made when a plan first needs one: they take device memory.
#[derive(Debug, Default)]
pub(super) struct Handles {
    dnn: OnceCell<Dnn>,
    blas: OnceCell<Blas>,
    deterministic: bool,
}

impl Handles {
    /// None yet; `deterministic` refuses kernels that are not.
    pub(super) fn new(deterministic: bool) -> Self {
        Self { deterministic, ..Self::default() }
    }

    pub(super) fn dnn(&self) -> Result<&Dnn, CudaError> {
        if let Some(dnn) = self.dnn.get() {
            return Ok(dnn);
        }
        let options = DnnOptions { deterministic: self.deterministic, ..DnnOptions::default() };
        let dnn = Dnn::with_options(options)?;
        Ok(self.dnn.get_or_init(|| dnn))
    }

    fn blas(&self) -> Result<&Blas, CudaError> {
        if let Some(blas) = self.blas.get() {
            return Ok(blas);
        }
        let blas = Blas::new()?;
        Ok(self.blas.get_or_init(|| blas))
    }

    /// Gives back what no launch uses any more.
    pub(super) fn forget_unused(&self) {
        if let Some(dnn) = self.dnn.get() {
            dnn.forget_unused();
        }
    }
}

/// Memory and libraries a table is made with.
#[derive(Debug)]
pub(super) struct Resources<'a> {
    pub device: &'a DeviceArena,
    pub host: &'a PinnedArena,
    /// By stream; empty for streams that only copy.
    pub scratch: &'a [DeviceArena],
    pub handles: &'a Handles,
}

impl Resources<'_> {
    /// A span's address as the device sees it.
    pub(super) fn address(&self, span: Span) -> sys::CUdeviceptr {
        match span.space {
            Space::Device => self.device.at(span.start, span.len),
            Space::Host => self.host.device_at(span.start, span.len),
        }
    }
}

/// One command.
#[derive(Debug)]
enum Action {
    Kernel(Box<dyn Prepared>),
    ToHost {
        to: *mut c_void,
        from: sys::CUdeviceptr,
        len: usize,
    },
    ToDevice {
        to: sys::CUdeviceptr,
        from: *const c_void,
        len: usize,
    },
    Within {
        to: sys::CUdeviceptr,
        from: sys::CUdeviceptr,
        len: usize,
    },
    /// Copies within the device, one after the other.
    Rows(Vec<Action>),
    Poison(DeviceBytes),
    Record(EventId),
    Wait(EventId),
    Nothing,
}

#[derive(Clone, Copy, Debug)]
struct DeviceBytes {
    at: sys::CUdeviceptr,
    len: usize,
}

#[derive(Debug)]
struct Entry {
    stream: StreamId,
    /// Runs first; makes missing waits visible.
    delay: Option<Box<dyn Prepared>>,
    /// Poisoned before the action.
    undefined: Option<DeviceBytes>,
    action: Action,
}

/// How a table differs from the plan, for tests.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TableOptions {
    /// Overwrite what becomes undefined.
    pub poison: bool,
    /// Delay launches and copies by the nanoseconds of this table, a 32-bit word per command.
    pub delays: Option<DeviceRange>,
    /// Leave this wait out.
    pub dropped_wait: Option<CmdId>,
    /// Make this launch fail.
    pub failing: Option<CmdId>,
}

/// Every command, by id.
#[derive(Debug)]
pub(super) struct Table(Vec<Entry>);

impl Table {
    /// Resolves all commands.
    ///
    /// # Errors
    /// The first command that no kernel can run.
    pub(super) fn new(
        program: &Program,
        resources: &Resources<'_>,
        modules: &mut Modules,
        options: TableOptions,
    ) -> Result<Self, (CmdId, CudaError)> {
        let commands = &program.plan().commands;
        let mut entries = Vec::with_capacity(commands.len());
        for (i, command) in commands.iter().enumerate() {
            let at = CmdId::from_index(i);
            entries.push(entry(program, resources, modules, options, at, command).map_err(|e| (at, e))?);
        }
        Ok(Self(entries))
    }

    /// The kernel of a command, if it is one.
    pub(super) fn kernel(&self, at: CmdId) -> Option<&dyn Prepared> {
        match &self.0[at.index()].action {
            Action::Kernel(kernel) => Some(&**kernel),
            _ => None,
        }
    }

    /// Queues one command on its stream.
    pub(super) fn enqueue(&self, at: CmdId, lanes: &Lanes) -> Result<(), CudaError> {
        let entry = &self.0[at.index()];
        let stream = lanes.stream(entry.stream);
        if let Some(delay) = &entry.delay {
            delay.enqueue(stream.raw())?;
        }
        if let Some(bytes) = entry.undefined {
            poison(bytes, stream.raw())?;
        }
        match &entry.action {
            Action::Kernel(kernel) => kernel.enqueue(stream.raw()),
            Action::Record(event) => stream.record(lanes.event(*event)),
            Action::Wait(event) => stream.wait(lanes.event(*event)),
            Action::Poison(bytes) => poison(*bytes, stream.raw()),
            Action::Nothing => Ok(()),
            copy => copy.enqueue_copy(stream.raw()),
        }
    }
}

impl Action {
    #[expect(unsafe_code, reason = "queues a copy between the arenas")]
    fn enqueue_copy(&self, stream: sys::CUstream) -> Result<(), CudaError> {
        // SAFETY: the addresses are ranges of arenas that outlive the table, of `len` bytes
        // each; that no other command touches them meanwhile is what the checker proved.
        unsafe {
            match *self {
                Self::Rows(ref parts) => parts.iter().try_for_each(|part| part.enqueue_copy(stream)),
                Self::ToHost { to, from, len } => {
                    CudaError::check("cuMemcpyDtoHAsync", sys::cuMemcpyDtoHAsync_v2(to, from, len, stream))
                }
                Self::ToDevice { to, from, len } => {
                    CudaError::check("cuMemcpyHtoDAsync", sys::cuMemcpyHtoDAsync_v2(to, from, len, stream))
                }
                Self::Within { to, from, len } => {
                    CudaError::check("cuMemcpyDtoDAsync", sys::cuMemcpyDtoDAsync_v2(to, from, len, stream))
                }
                _ => Ok(()),
            }
        }
    }
}

#[expect(unsafe_code, reason = "queues a fill")]
fn poison(bytes: DeviceBytes, stream: sys::CUstream) -> Result<(), CudaError> {
    // SAFETY: a range of an arena that outlives the table; a free counts as a write to the
    // checker, and a workspace belongs to its launch.
    CudaError::check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(bytes.at, POISON, bytes.len, stream) })
}

fn entry(
    program: &Program,
    resources: &Resources<'_>,
    modules: &mut Modules,
    options: TableOptions,
    at: CmdId,
    command: &Command,
) -> Result<Entry, CudaError> {
    let stream = command.stream();
    let span = |b: BufId| program.span(b);
    let bytes = |s: Span| DeviceBytes { at: resources.address(s), len: s.len };
    let mut undefined = None;
    let action = match command {
        Command::Launch { inputs, outputs, .. } if program.launch(at).rows.is_some() => {
            rows(program, resources, at, inputs, outputs[0])
        }
        Command::Launch { op, inputs, outputs, workspace, algo, name, .. } => {
            if program.plan().streams[stream.index()] != StreamKind::Compute {
                return Err(CudaError::BadPlan { why: format!("a launch on copy stream {stream}") });
            }
            let buffers = &program.plan().buffers;
            let operand = |&b: &BufId| Operand { ty: &buffers[b].ty, ptr: resources.address(span(b)) };
            let inputs: Vec<Operand<'_>> = inputs.iter().map(operand).collect();
            let outputs: Vec<Operand<'_>> = outputs.iter().map(operand).collect();
            let workspace = workspace.map(span);
            undefined = workspace.filter(|w| options.poison && w.len > 0).map(bytes);
            let spec = LaunchSpec {
                op,
                accumulate: false,
                inputs: &inputs,
                outputs: &outputs,
                workspace: workspace
                    .map(|w| DeviceRange { ptr: resources.address(w), bytes: Bytes(w.len as u64) }),
                scratch: resources.scratch[stream.index()].range(),
                algo: algo.as_ref().and_then(ConvSchedule::whole),
                exact: program.plan().header.is_exact(),
                precision: program.plan().header.precision,
                name,
            };
            match algo {
                Some(schedule @ ConvSchedule::Divided(_)) => {
                    Action::Kernel(divided::prepare(&spec, schedule, resources.handles.dnn()?, modules)?)
                }
                _ => launch(&spec, resources, modules)?,
            }
        }
        Command::Copy { form: form @ (CopyForm::Pack | CopyForm::Unpack), src, dst, .. } => {
            let buffers = &program.plan().buffers;
            let tensor = if *form == CopyForm::Pack { &buffers[*src].ty } else { &buffers[*dst].ty };
            let [from, to] = [src, dst].map(|b| resources.address(span(*b)));
            Action::Kernel(kernels::copy_packed(*form, tensor, from, to, modules)?)
        }
        Command::Copy { form: CopyForm::Plain, src, dst, .. } => {
            let (from, to) = (span(*src), span(*dst));
            let len = to.len;
            match (from.space, to.space) {
                (Space::Device, Space::Host) => Action::ToHost {
                    to: resources.host.at(to.start, len).cast(),
                    from: resources.device.at(from.start, len),
                    len,
                },
                (Space::Host, Space::Device) => Action::ToDevice {
                    to: resources.device.at(to.start, len),
                    from: resources.host.at(from.start, len).cast_const().cast(),
                    len,
                },
                _ => return Err(CudaError::BadPlan { why: "a copy within an arena".to_owned() }),
            }
        }
        Command::Free { buf, .. } if options.poison => match span(*buf) {
            // Fills by the driver are for device memory; a kernel reaches pinned memory too.
            host @ Span { space: Space::Host, .. } => {
                let range = DeviceRange { ptr: resources.address(host), bytes: Bytes(host.len as u64) };
                Action::Kernel(kernels::poison(range, u32::from_ne_bytes([POISON; 4]), modules)?)
            }
            device => Action::Poison(bytes(device)),
        },
        Command::Free { .. } => Action::Nothing,
        Command::Record { event, .. } => Action::Record(*event),
        Command::Wait { .. } if options.dropped_wait == Some(at) => Action::Nothing,
        Command::Wait { event, .. } => Action::Wait(*event),
    };
    let delay = match options.delays.filter(|_| delays::may_delay(command)) {
        Some(table) => Some(kernels::delay_by(table.ptr + delays::offset(at), modules)?),
        None if options.failing == Some(at) => Some(kernels::trap(modules)?),
        None => None,
    };
    Ok(Entry { stream, delay, undefined, action })
}

/// What a slice or concat with rows in place has left to do.
fn rows(program: &Program, resources: &Resources<'_>, at: CmdId, inputs: &[BufId], output: BufId) -> Action {
    let to = resources.address(program.span(output));
    let moves = program.launch(at).rows.iter().flatten();
    let copies: Vec<Action> = moves
        .map(|m| {
            let from = program.span(inputs[m.operand]);
            Action::Within { to: to + m.at.0, from: resources.address(from), len: from.len }
        })
        .collect();
    if copies.is_empty() { Action::Nothing } else { Action::Rows(copies) }
}

fn launch(
    spec: &LaunchSpec<'_>,
    resources: &Resources<'_>,
    modules: &mut Modules,
) -> Result<Action, CudaError> {
    Ok(match spec.op {
        // Moves no data in the graph; launched, it is a copy.
        Op::Reshape { .. } => {
            let (from, to) = (spec.inputs[0].ptr, spec.outputs[0].ptr);
            if from == to {
                return Ok(Action::Nothing);
            }
            let len = usize::try_from(spec.outputs[0].ty.bytes().0)
                .map_err(|_| CudaError::BadPlan { why: "a tensor above the address space".to_owned() })?;
            Action::Within { to, from, len }
        }
        op if op.is_conv() => Action::Kernel(cudnn::prepare(spec, resources.handles.dnn()?, &mut || {
            kernels::epilogue(spec, modules)
        })?),
        Op::Gemm { .. } | Op::MatMul { .. } => {
            Action::Kernel(blas::prepare(spec, resources.handles.blas()?)?)
        }
        _ => Action::Kernel(kernels::prepare(spec, modules)?),
    })
}
