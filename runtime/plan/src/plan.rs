//! The types of a plan.
//!
//! # Execution model
//! A plan has streams, each a queue that runs its commands in order, and events. Commands
//! are listed in issue order. `Record` marks a point of its stream; `Wait` holds its
//! stream until the most recent `Record` of that event issued before it has been reached
//! (an event never recorded is an error). Nothing else orders streams: any interleaving
//! that respects stream order and waits must give the same result, and the checker
//! ([`crate::check()`]) proves that it does.
//!
//! One *step* runs all commands once. Before it the executor writes the inputs into their
//! buffers, after it (all streams idle) it reads the outputs. Parameters live at fixed
//! addresses across steps and are updated in place.

use crate::sig::Sig;
use smallvec::SmallVec;
use std::fmt;
use vdnn_ir::graph::{ConvAlgo, NodeId, Stage};
use vdnn_ir::id::PrimaryMap;
use vdnn_ir::{Bytes, ConvSchedule, Mode, Nanos, Op, ParamRole, Precision, Space, TensorType, define_id};

define_id!(
    /// A buffer: a typed byte range of one arena that holds one value for part of the step.
    BufId, "b"
);
define_id!(
    /// A stream.
    StreamId, "s"
);
define_id!(
    /// An event; recorded exactly once per step.
    EventId, "e"
);
define_id!(
    /// A command: its index in the issue order.
    CmdId, "c"
);
define_id!(
    /// A host tensor computed once at load from initializers.
    SetupId, "u"
);

/// Version of the text and binary forms.
pub const FORMAT_VERSION: u32 = 1;

/// Every buffer offset is a multiple of this (bytes).
pub const ALIGNMENT: u64 = 256;

/// In front of an algorithm's name in [`Header::algo`]: every convolution runs as exactly the
/// classic algorithm that its launch names.
pub const EXACT_ALGORITHM: &str = "only=";

/// What the plan was made from, for people and for refusing the wrong model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Name of the model.
    pub model_name: String,
    /// Inference or training.
    pub mode: Mode,
    /// Batch size the shapes are bound to.
    pub batch: u64,
    /// Offload policy, by name.
    pub policy: String,
    /// Algorithm mode, by name; see [`EXACT_ALGORITHM`].
    pub algo: String,
    /// Device profile, by name.
    pub device: String,
    /// Arithmetic of convolutions and matrix products.
    pub precision: Precision,
    /// Whose numbers the engines of the convolutions are, where it is known.
    pub engines: Option<EngineOrigin>,
    /// The weights' file, if the plan loads any.
    pub model: Option<ModelRef>,
    /// Options of the compilation that are not above, as `NAME=VALUE` in the compiler's words, for
    /// making the plan anew. Executors do not read them; empty where they are not known.
    pub options: Vec<String>,
}

impl Header {
    /// True if a classic name on a launch means that algorithm itself, and not that any kernel may
    /// run which is as fast and needs no more workspace.
    pub fn is_exact(&self) -> bool {
        self.algo.starts_with(EXACT_ALGORITHM)
    }
}

/// Where convolution engines were chosen. Their numbers mean the same only on the same kind of
/// device with the same version of cuDNN; classic algorithms have names and run anywhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EngineOrigin {
    /// What the driver calls the device.
    pub device: String,
    /// Version of cuDNN, such as `9.19.0`.
    pub cudnn: String,
}

impl fmt::Display for EngineOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with cuDNN {}", self.device, self.cudnn)
    }
}

/// Reference to the ONNX file that holds the weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelRef {
    /// Path as given to the compiler.
    pub path: String,
    /// SHA-256 over the model file and its external data files in name order.
    pub sha256: [u8; 32],
}

/// One arena, allocated once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arena {
    /// Size.
    pub bytes: Bytes,
    /// Hard limit the plan was made for, if one was given.
    pub budget: Option<Bytes>,
}

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamKind {
    /// Kernels.
    Compute,
    /// Device-to-host copies.
    D2h,
    /// Host-to-device copies.
    H2d,
}

impl fmt::Display for StreamKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(crate::names::stream_kind(*self))
    }
}

/// A typed byte range `[offset, offset + ty.bytes())` of an arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Which arena.
    pub space: Space,
    /// Offset in that arena, a multiple of [`ALIGNMENT`].
    pub offset: Bytes,
    /// Type of the value; a workspace is `u8[n]`.
    pub ty: TensorType,
    /// Hint for people.
    pub name: String,
}

/// A caller-bound input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// External name.
    pub name: String,
    /// Where the executor writes it before the step.
    pub buf: BufId,
}

/// A result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// External name.
    pub name: String,
    /// Where the executor reads it after the step.
    pub buf: BufId,
    /// The term the buffer must hold then.
    pub expect: Sig,
}

/// Where a parameter's first content comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParamSource {
    /// The initializer of the parameter's name in the model file.
    Initializer,
    /// Literal bytes (small constants of the graph).
    Inline(Vec<u8>),
    /// Zeros (optimizer state).
    Zero,
    /// A result of the setup program.
    Setup(SetupId),
}

/// A persistent tensor of the device arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// External name; unique.
    pub name: String,
    /// Its buffer. Nothing else ever uses these bytes.
    pub buf: BufId,
    /// What it is to training.
    pub role: ParamRole,
    /// First content.
    pub source: ParamSource,
    /// The term the buffer must hold when the step ends (its own [`Sig::param`] if unchanged).
    pub expect: Sig,
}

/// One op of the setup program, run once on the host at load (batch-norm folding and other
/// arithmetic on weights only).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupOp {
    /// What is computed.
    pub op: Op,
    /// Operands: earlier setup values.
    pub inputs: SmallVec<[SetupId; 4]>,
    /// Results, numbered on from the values before.
    pub outputs: SmallVec<[(SetupId, TensorType); 2]>,
}

/// A setup value that is loaded, not computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupLoad {
    /// Its id.
    pub id: SetupId,
    /// Its type.
    pub ty: TensorType,
    /// [`ParamSource::Initializer`] (by `name`) or [`ParamSource::Inline`].
    pub source: ParamSource,
    /// Initializer name (empty for inline).
    pub name: String,
}

/// How a copy moves a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CopyForm {
    /// As it is.
    #[default]
    Plain,
    /// Packed ([`vdnn_ir::packed`]) into a buffer of the packed type.
    Pack,
    /// Back from the packed form.
    Unpack,
}

/// One command. See the module documentation for the execution model.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "most commands are launches, and a plan has few thousand")]
pub enum Command {
    /// Run a kernel on a compute stream.
    Launch {
        /// The queue.
        stream: StreamId,
        /// What is computed.
        op: Op,
        /// Operands, as the op orders them.
        inputs: SmallVec<[BufId; 4]>,
        /// Results. In place where a result's range equals an operand's.
        outputs: SmallVec<[BufId; 2]>,
        /// Transient scratch; its content is undefined before and after.
        workspace: Option<BufId>,
        /// Convolution algorithm, or those of the micro-batches that the batch is run in; the
        /// result, and so the checker's term, is the same.
        algo: Option<ConvSchedule>,
        /// Part of the step.
        stage: Stage,
        /// The graph node it came from, for reports.
        node: NodeId,
        /// For people.
        name: String,
    },
    /// Copy a whole buffer between arenas (different space; the same type, unless packed).
    Copy {
        /// The queue.
        stream: StreamId,
        /// What becomes of the content on the way.
        form: CopyForm,
        /// From.
        src: BufId,
        /// To.
        dst: BufId,
    },
    /// The buffer's content is no longer needed; a poisoning executor overwrites it. To
    /// the checker this is a write of "undefined" by the stream.
    Free {
        /// The queue.
        stream: StreamId,
        /// Whose bytes.
        buf: BufId,
    },
    /// Marks a point of a stream.
    Record {
        /// The queue.
        stream: StreamId,
        /// The event.
        event: EventId,
    },
    /// Holds a stream until the event.
    Wait {
        /// The queue.
        stream: StreamId,
        /// The event.
        event: EventId,
    },
}

impl Command {
    /// True for a convolution that runs by an engine's number, or a part of whose batch does.
    pub fn uses_engines(&self) -> bool {
        let Self::Launch { algo: Some(schedule), .. } = self else { return false };
        schedule.runs(1).iter().any(|run| matches!(run.algo, ConvAlgo::Engine(_)))
    }

    /// The queue the command is in.
    pub fn stream(&self) -> StreamId {
        match self {
            Self::Launch { stream, .. }
            | Self::Copy { stream, .. }
            | Self::Free { stream, .. }
            | Self::Record { stream, .. }
            | Self::Wait { stream, .. } => *stream,
        }
    }
}

impl Plan {
    /// True if a convolution runs by an engine's number.
    pub fn uses_engines(&self) -> bool {
        self.commands.iter().any(Command::uses_engines)
    }

    /// Number of compute streams.
    pub fn compute_streams(&self) -> u64 {
        self.streams.iter().filter(|&&kind| kind == StreamKind::Compute).count() as u64
    }

    /// Bytes of the tensor that a copy moves: of its end on the device, which is never packed.
    pub fn copied_bytes(&self, src: BufId, dst: BufId) -> Bytes {
        let device = if self.buffers[src].space == Space::Device { src } else { dst };
        self.buffers[device].ty.bytes()
    }

    /// Why the plan's engines are not those of the device and libraries at hand, if they are
    /// not. A plan without engines runs anywhere.
    pub fn engines_differ(&self, here: &EngineOrigin) -> Option<String> {
        let chosen = match &self.header.engines {
            _ if !self.uses_engines() => return None,
            Some(origin) if origin == here => return None,
            Some(origin) => origin.to_string(),
            None => "a device that it does not name".to_owned(),
        };
        Some(format!(
            "the convolution engines of this plan were chosen for {chosen}; here is {here}, where their numbers mean \
             other kernels"
        ))
    }
}

/// What the planner predicts; carried for reports, never trusted by an executor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Predicted {
    /// One step.
    pub step: Nanos,
    /// Kernels alone.
    pub compute: Nanos,
    /// Compute stream idle.
    pub stall: Nanos,
    /// Largest sum of live aligned device bytes at one point of the compute stream.
    pub lower_bound: Bytes,
}

/// A complete, self-contained plan of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Provenance.
    pub header: Header,
    /// The device arena.
    pub device: Arena,
    /// The pinned host arena.
    pub host: Arena,
    /// Streams in id order; stream 0 is compute.
    pub streams: Vec<StreamKind>,
    /// Number of events.
    pub n_events: u32,
    /// Buffers.
    pub buffers: PrimaryMap<BufId, Buffer>,
    /// Inputs.
    pub inputs: Vec<Binding>,
    /// Results.
    pub outputs: Vec<Output>,
    /// Persistent tensors.
    pub params: Vec<Param>,
    /// Loaded setup values.
    pub setup_loads: Vec<SetupLoad>,
    /// The setup program, in order.
    pub setup: Vec<SetupOp>,
    /// Commands in issue order; a command's [`CmdId`] is its index.
    pub commands: Vec<Command>,
    /// Predictions.
    pub predicted: Predicted,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::sound;

    #[test]
    fn only_engine_numbers_bind_a_plan() {
        let origin = |device: &str, cudnn: &str| EngineOrigin { device: device.into(), cudnn: cudnn.into() };
        let here = origin("GPU A", "9.19.0");
        let mut plan = sound();
        plan.header.engines = Some(origin("GPU B", "8.0.0"));
        assert_eq!(plan.engines_differ(&here), None, "there is no engine in it");
        let with = |plan: &mut Plan, chosen: &str| {
            let Some(Command::Launch { algo, .. }) = plan.commands.first_mut() else {
                panic!("a launch first")
            };
            *algo = Some(chosen.parse().expect("a schedule"));
        };
        with(&mut plan, "fft");
        assert_eq!(plan.engines_differ(&here), None, "classic algorithms have names");
        with(&mut plan, "fft@3+eng5_k2=7@1");
        assert!(plan.uses_engines(), "a part of the batch");
        with(&mut plan, "eng5_k2=7");
        for (engines, says) in [
            (Some(here.clone()), None),
            (Some(origin("GPU B", "9.19.0")), Some("chosen for GPU B with cuDNN 9.19.0; here is GPU A with")),
            (Some(origin("GPU A", "9.20.0")), Some("chosen for GPU A with cuDNN 9.20.0; here is GPU A with")),
            (None, Some("a device that it does not name")),
        ] {
            plan.header.engines = engines;
            let why = plan.engines_differ(&here);
            assert_eq!(why.is_some(), says.is_some(), "{why:?}");
            assert!(why.unwrap_or_default().contains(says.unwrap_or_default()));
        }
    }
}
