//! What can be wrong with a plan.

use crate::plan::{BufId, CmdId, EventId, Plan, SetupId, StreamId, StreamKind};
use crate::sig::Sig;
use std::fmt;
use vdnn_ir::{Bytes, Space, TensorType};

/// A buffer with the byte range `[start, end)` it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// The buffer.
    pub buf: BufId,
    /// Its arena.
    pub space: Space,
    /// First byte.
    pub start: Bytes,
    /// One past the last byte (saturated if the buffer is out of bounds).
    pub end: Bytes,
}

impl Site {
    pub(super) fn of(plan: &Plan, buf: BufId) -> Self {
        let b = &plan.buffers[buf];
        Self { buf, space: b.space, start: b.offset, end: b.offset.saturating_add(b.ty.bytes()) }
    }
    /// The `len` bytes from byte `at` of the buffer on.
    pub(super) fn part(&self, at: Bytes, len: Bytes) -> Self {
        let start = self.start.saturating_add(at);
        Self { start, end: start.saturating_add(len), ..*self }
    }
    /// True if both have a byte in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.space == other.space && self.start < other.end && other.start < self.end
    }
    /// True if both are the same bytes.
    pub fn same_range(&self, other: &Self) -> bool {
        self.space == other.space && self.start == other.start && self.end == other.end
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = crate::names::space(self.space);
        write!(f, "{} ({space} bytes {}..{})", self.buf, self.start.0, self.end.0)
    }
}

/// Which part of a plan an error is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A command.
    Command(CmdId),
    /// An op of the setup program, by index.
    Setup(usize),
    /// A loaded setup value.
    Load(SetupId),
    /// A binding: `input`, `output` or `parameter`, and its name.
    Named(&'static str, String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(c) => write!(f, "{c}"),
            Self::Setup(i) => write!(f, "setup op {i}"),
            Self::Load(id) => write!(f, "setup load {id}"),
            Self::Named(what, name) => write!(f, "{what} {name:?}"),
        }
    }
}

/// How a command touches bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// Operand or source.
    Read,
    /// Result, workspace, destination or release.
    Write,
}

impl fmt::Display for AccessKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "reads",
            Self::Write => "writes",
        })
    }
}

/// What the bytes of a read hold instead of one whole value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// At least one byte was never written in this step.
    Nothing,
    /// At least one byte was released by this command.
    Freed(CmdId),
    /// At least one byte was workspace of this command.
    Scratch(CmdId),
    /// Bytes of a value that has another range; `by` wrote it (`None`: the host).
    PartOf {
        /// First byte of that value.
        start: Bytes,
        /// One past its last byte.
        end: Bytes,
        /// Its writer.
        by: Option<CmdId>,
    },
    /// Part of the value was overwritten by this command (`None`: the host).
    Overwritten(Option<CmdId>),
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = |by: &Option<CmdId>| by.map_or_else(|| "the host".to_owned(), |c| c.to_string());
        match self {
            Self::Nothing => f.write_str("bytes that were never written"),
            Self::Freed(c) => write!(f, "bytes released by {c}"),
            Self::Scratch(c) => write!(f, "bytes used as workspace by {c}"),
            Self::PartOf { start, end, by } => {
                write!(f, "part of the value {} wrote to bytes {}..{}", who(by), start.0, end.0)
            }
            Self::Overwritten(by) => write!(f, "a value partly overwritten by {}", who(by)),
        }
    }
}

/// One thing wrong with a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    // ---- structure
    /// An id names nothing. `entity` is its text, such as `b7`.
    #[error("{place} names {entity}, which the plan does not have")]
    Unknown {
        /// Who names it.
        place: Place,
        /// The id.
        entity: String,
    },
    /// Stream 0 is missing or not for kernels.
    #[error("stream s0 must exist and be a compute stream")]
    NoComputeStream,
    /// More streams than an executor supports.
    #[error("{count} streams; at most {limit} are supported")]
    TooManyStreams {
        /// How many.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// More events than commands could record.
    #[error("{count} events but only {commands} commands")]
    TooManyEvents {
        /// How many.
        count: u32,
        /// Number of commands.
        commands: usize,
    },
    /// A name that must be unique occurs twice.
    #[error("two {what}s are named {name:?}")]
    DuplicateName {
        /// Input, output or parameter.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// An event has two records.
    #[error("{second} records {event}, which {first} recorded already")]
    RecordedTwice {
        /// The event.
        event: EventId,
        /// Earlier record.
        first: CmdId,
        /// Later record.
        second: CmdId,
    },
    /// A wait with no record before it in issue order.
    #[error("{at} waits for {event}, which no earlier command records")]
    WaitBeforeRecord {
        /// The wait.
        at: CmdId,
        /// The event.
        event: EventId,
    },
    /// A launch or copy in a stream of the wrong kind.
    #[error("{at} cannot run on {stream}, a {kind} stream: {why}")]
    WrongStream {
        /// The command.
        at: CmdId,
        /// Its stream.
        stream: StreamId,
        /// What the stream is for.
        kind: StreamKind,
        /// What the command is.
        why: &'static str,
    },
    /// A buffer in the wrong arena.
    #[error("{place}: {buf} must be in the {needed:?} arena")]
    WrongSpace {
        /// Who uses it.
        place: Place,
        /// The buffer.
        buf: BufId,
        /// Where it should be.
        needed: Space,
    },
    /// A copy inside one arena, or one that packs or unpacks in the wrong direction.
    #[error("{at} copies inside one arena, or leaves a packed tensor on the device")]
    CopyInPlace {
        /// The copy.
        at: CmdId,
    },
    /// A copy between buffers of different type, or other than the packed form of it.
    #[error("{at} copies {from} to {to}")]
    CopyTypes {
        /// The copy.
        at: CmdId,
        /// Type of the source.
        from: TensorType,
        /// Type of the destination.
        to: TensorType,
    },
    /// What is unpacked is not the packed form of anything, or of elements of another type.
    #[error("{at} unpacks {site}, which does not hold a packed tensor of that type")]
    NotPacked {
        /// The copy.
        at: CmdId,
        /// What it reads.
        site: Site,
    },
    /// An op that no plan launches (transfers and the views that are not reshapes).
    #[error("{at} launches {op}, which is never a kernel")]
    NotAKernel {
        /// The command.
        at: CmdId,
        /// The op.
        op: String,
    },
    /// A convolution without algorithm, or another op with one.
    #[error("{at}: convolutions, and only they, have an algorithm")]
    Algorithm {
        /// The launch.
        at: CmdId,
    },
    /// The micro-batches of a convolution are not its batch.
    #[error("{at}: its micro-batches {schedule} are not of its {images} images in all")]
    Division {
        /// The launch.
        at: CmdId,
        /// The division.
        schedule: String,
        /// Images of the batch.
        images: u64,
    },
    /// Shape inference refuses the operands.
    #[error("{place}: {why}")]
    IllTyped {
        /// The launch or setup op.
        place: Place,
        /// What inference says.
        why: String,
    },
    /// An output's type is not what inference gives.
    #[error("{place}: output {index} is {found} but the operands make {expected}")]
    OutputType {
        /// The launch or setup op.
        place: Place,
        /// Which output.
        index: usize,
        /// By inference.
        expected: TensorType,
        /// In the plan.
        found: TensorType,
    },
    /// A workspace that is not `u8[n]`.
    #[error("{at}: workspace {buf} is {ty}, not u8[n]")]
    WorkspaceType {
        /// The launch.
        at: CmdId,
        /// The buffer.
        buf: BufId,
        /// Its type.
        ty: TensorType,
    },
    // ---- setup and parameters
    /// A setup value is used before it is defined.
    #[error("{place} uses {id} before it is defined")]
    SetupUse {
        /// Who uses it.
        place: Place,
        /// The value.
        id: SetupId,
    },
    /// A setup value is defined twice.
    #[error("{place} defines {id} a second time")]
    SetupRedefined {
        /// Who defines it.
        place: Place,
        /// The value.
        id: SetupId,
    },
    /// A first content that cannot be: wrong length, wrong type, or not loadable.
    #[error("{place}: {why}")]
    Source {
        /// The parameter or setup load.
        place: Place,
        /// What is wrong.
        why: String,
    },
    // ---- memory
    /// A buffer with no bytes or with a size that overflows.
    #[error("{buf} is {ty}: empty or too large")]
    BadSize {
        /// The buffer.
        buf: BufId,
        /// Its type.
        ty: TensorType,
    },
    /// A buffer that leaves its arena.
    #[error("{site} is outside its arena of {arena} bytes", arena = .arena.0)]
    OutOfBounds {
        /// The buffer.
        site: Site,
        /// Size of the arena.
        arena: Bytes,
    },
    /// A misaligned offset.
    #[error("{site} does not start at a multiple of {}", crate::plan::ALIGNMENT)]
    Misaligned {
        /// The buffer.
        site: Site,
    },
    /// An arena larger than its budget.
    #[error("the {space:?} arena has {bytes} bytes, over its budget of {budget}", bytes = .bytes.0, budget = .budget.0)]
    OverBudget {
        /// Which arena.
        space: Space,
        /// Its size.
        bytes: Bytes,
        /// The limit.
        budget: Bytes,
    },
    /// A parameter's bytes are shared with a buffer of another range, or with another
    /// parameter or an input.
    #[error("parameter {param:?} at {site} shares bytes with {other}")]
    ParamShared {
        /// The parameter.
        param: String,
        /// Its bytes.
        site: Site,
        /// The other buffer.
        other: Site,
    },
    /// Two inputs share bytes.
    #[error("inputs at {first} and {second} share bytes")]
    InputsOverlap {
        /// One.
        first: Site,
        /// The other.
        second: Site,
    },
    // ---- one launch
    /// Two of a launch's buffers share bytes and may not.
    #[error("{at}: {written} is written while {other} shares its bytes: {why}")]
    LaunchOverlap {
        /// The launch.
        at: CmdId,
        /// Output or workspace.
        written: Site,
        /// The other buffer.
        other: Site,
        /// Which rule is broken.
        why: &'static str,
    },
    // ---- races
    /// Two commands of different streams touch the same bytes, at least one writes, and
    /// nothing orders them.
    #[error("{first} {first_kind} and {second} {second_kind} {site} (bytes {}..{}) in no order", .overlap.0.0, .overlap.1.0)]
    Race {
        /// Earlier in issue order.
        first: CmdId,
        /// What it does.
        first_kind: AccessKind,
        /// Later in issue order.
        second: CmdId,
        /// What it does.
        second_kind: AccessKind,
        /// The later command's buffer.
        site: Site,
        /// A range both touch.
        overlap: (Bytes, Bytes),
    },
    // ---- contents
    /// A read that does not see one whole value.
    #[error("{at} reads {site} but finds {found}")]
    BadRead {
        /// The launch or copy.
        at: CmdId,
        /// What it reads.
        site: Site,
        /// What is there.
        found: Found,
    },
    /// An output or parameter that is no whole value when the step ends.
    #[error("{what} {name:?} at {site} holds {found} when the step ends")]
    BadResult {
        /// Output or parameter.
        what: &'static str,
        /// Its name.
        name: String,
        /// Its bytes.
        site: Site,
        /// What is there.
        found: Found,
    },
    /// An output or parameter that holds another value than stated when the step ends.
    #[error("{what} {name:?} at {site} holds term {found} written by {}, not {expected}",
        .by.map_or_else(|| "the host".to_owned(), |c| c.to_string()))]
    WrongResult {
        /// Output or parameter.
        what: &'static str,
        /// Its name.
        name: String,
        /// Its bytes.
        site: Site,
        /// As stated.
        expected: Sig,
        /// As computed.
        found: Sig,
        /// The last writer (`None`: the host, before the step).
        by: Option<CmdId>,
    },
}

impl PlanError {
    /// The commands the error is about, in issue order.
    pub fn commands(&self) -> Vec<CmdId> {
        let of_found = |found: &Found| match found {
            Found::Freed(c) | Found::Scratch(c) => Some(*c),
            Found::PartOf { by, .. } | Found::Overwritten(by) => *by,
            Found::Nothing => None,
        };
        let mut all: Vec<CmdId> = match self {
            Self::RecordedTwice { first, second, .. } | Self::Race { first, second, .. } => {
                vec![*first, *second]
            }
            Self::WaitBeforeRecord { at, .. }
            | Self::WrongStream { at, .. }
            | Self::CopyInPlace { at }
            | Self::CopyTypes { at, .. }
            | Self::NotPacked { at, .. }
            | Self::NotAKernel { at, .. }
            | Self::Algorithm { at }
            | Self::Division { at, .. }
            | Self::WorkspaceType { at, .. }
            | Self::LaunchOverlap { at, .. } => vec![*at],
            Self::Unknown { place: Place::Command(at), .. }
            | Self::WrongSpace { place: Place::Command(at), .. }
            | Self::IllTyped { place: Place::Command(at), .. }
            | Self::OutputType { place: Place::Command(at), .. } => vec![*at],
            Self::BadRead { at, found, .. } => std::iter::once(*at).chain(of_found(found)).collect(),
            Self::BadResult { found, .. } => of_found(found).into_iter().collect(),
            Self::WrongResult { by, .. } => by.iter().copied().collect(),
            _ => Vec::new(),
        };
        all.sort_unstable();
        all.dedup();
        all
    }
}
