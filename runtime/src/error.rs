//! Errors of running a plan.

use crate::cuda::CudaError;
use vdnn_ir::kernel::KernelError;
use vdnn_ir::{Bytes, TensorType};
use vdnn_plan::{CmdId, PlanErrors};

/// Why a parameter's first content is not available.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadParamError {
    /// There is no tensor of that name.
    #[error("the model has no initializer {name:?}; is it the model the plan was made from?")]
    Missing {
        /// The name.
        name: String,
    },
    /// The tensor has another type.
    #[error("initializer {name:?} is {found}, but the plan needs {expected}")]
    WrongType {
        /// The name.
        name: String,
        /// In the plan.
        expected: TensorType,
        /// In the model.
        found: TensorType,
    },
    /// Reading failed.
    #[error("initializer {name:?}: {why}")]
    Failed {
        /// The name.
        name: String,
        /// What happened.
        why: String,
    },
}

impl LoadParamError {
    /// There is no tensor named `name`.
    pub fn missing(name: &str) -> Self {
        Self::Missing { name: name.to_owned() }
    }
    /// The tensor named `name` has type `found`, not `expected`.
    pub fn wrong_type(name: &str, expected: &TensorType, found: &TensorType) -> Self {
        Self::WrongType { name: name.to_owned(), expected: expected.clone(), found: found.clone() }
    }
}

/// Why a plan cannot be loaded or a step cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The checker refuses the plan.
    #[error(transparent)]
    Unsound(#[from] PlanErrors),
    /// The host cannot give an arena.
    #[error("cannot allocate {bytes} for the plan's {arena} arena; lower --memory or the batch")]
    OutOfMemory {
        /// `device` or `host`.
        arena: &'static str,
        /// Its size.
        bytes: Bytes,
    },
    /// The host has no memory for a tensor of the setup program.
    #[error("cannot allocate {} for a tensor of type {ty} in the plan's setup", ty.bytes())]
    SetupOutOfMemory {
        /// Its type.
        ty: TensorType,
    },
    /// A parameter cannot be loaded.
    #[error(transparent)]
    Param(#[from] LoadParamError),
    /// An input is missing, unknown or has the wrong type.
    #[error("input {name:?}: {why}")]
    Input {
        /// The input.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// No parameter has that name.
    #[error("the plan has no parameter {0:?}")]
    NoSuchParam(String),
    /// A tensor written to a parameter has another type.
    #[error("parameter {name:?} is {expected}, not {found}")]
    ParamType {
        /// The parameter.
        name: String,
        /// Its type.
        expected: TensorType,
        /// The tensor's.
        found: TensorType,
    },
    /// A kernel of the step failed.
    #[error("{command}: {error}")]
    Kernel {
        /// The command.
        at: CmdId,
        /// Its text.
        command: String,
        /// What the kernel said.
        error: KernelError,
    },
    /// An op of the setup program failed.
    #[error("setup op {index} ({op}): {error}")]
    Setup {
        /// Its index.
        index: usize,
        /// Its text.
        op: String,
        /// What the kernel said.
        error: KernelError,
    },
    /// An earlier step failed half-way, so parameters are in an undefined state.
    #[error("an earlier step failed; load the plan again")]
    Poisoned,
    /// The backend cannot run plans that were not checked in this mode.
    #[error("unchecked plans run only on one thread")]
    NeedsCheckedPlan,
    /// Streams wait for each other. The checker excludes this.
    #[error("every stream waits for an event; the first is {command}")]
    Deadlock {
        /// The text of a waiting command.
        command: String,
    },
    /// The simulator cannot run the plan. The checker excludes this.
    #[error(transparent)]
    Sim(#[from] crate::sim::SimError),
    /// A command of the step failed on the GPU.
    #[error("{command}: {error}")]
    Command {
        /// The command.
        at: CmdId,
        /// Its text.
        command: String,
        /// What the driver or a library said.
        error: CudaError,
    },
    /// Something of the step failed on the GPU after it was queued.
    #[error(
        "a command of the step failed on the device: {error}; CUDA_LAUNCH_BLOCKING=1 with --no-graph shows which"
    )]
    Step {
        /// What the driver said.
        error: CudaError,
    },
    /// The GPU, or a library for it, failed outside a step.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// A worker thread of the backend ended early.
    #[error("a thread of the executor failed: {0}")]
    Thread(String),
}
