//! The CPU backend: executes a plan in two real arenas, every copy really copied.
//!
//! It exists to train and infer without a GPU and to show that a plan computes the same
//! bytes under every order its streams and events allow.

mod arena;
pub mod kernels;
mod machine;
mod queue;
#[cfg(test)]
mod tests;

pub use machine::SharedKernels;

use crate::backend::Backend;
use crate::error::RunError;
use crate::program::{Program, Span};
use machine::Machine;
use queue::{Queues, Random};
use std::fmt;
use std::sync::Arc;
use vdnn_ir::id::EntityId;
use vdnn_ir::kernel::Kernels;
use vdnn_plan::CmdId;

/// In which order commands run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuMode {
    /// Issue order, on the calling thread.
    #[default]
    Serial,
    /// An order that stream order and events allow, picked from the seed anew each step:
    /// copies as late as possible, as early as possible, in bursts, or evenly mixed.
    Interleaved {
        /// Determines all picks.
        seed: u64,
    },
    /// One thread per stream.
    Threads,
}

/// Options of the CPU backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads a kernel may use. Results do not depend on it.
    pub threads: usize,
    /// Fill undefined bytes with NaN: at the start of a step, when released, and
    /// workspaces before and after their launch.
    pub poison: bool,
    /// Order of commands. Results do not depend on it.
    pub mode: CpuMode,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self { threads: 1, poison: false, mode: CpuMode::Serial }
    }
}

/// The CPU as a device. See [`CpuOptions`].
pub struct CpuBackend {
    options: CpuOptions,
    kernels: SharedKernels,
    loaded: Option<Loaded>,
}

struct Loaded {
    machine: Machine,
    queues: Queues,
    random: Random,
}

impl CpuBackend {
    /// A backend with the fast kernels.
    pub fn new(options: CpuOptions) -> Self {
        Self::with_kernels(Arc::new(kernels::CpuKernels::new(options.threads)), options)
    }

    /// A backend with other kernels; [`CpuOptions::threads`] is then theirs to obey.
    pub fn with_kernels(kernels: SharedKernels, options: CpuOptions) -> Self {
        Self { options, kernels, loaded: None }
    }

    fn loaded(&mut self) -> &mut Loaded {
        self.loaded.as_mut().expect("prepare comes first")
    }
}

impl fmt::Debug for CpuBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuBackend").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Backend for CpuBackend {
    fn prepare(&mut self, program: Arc<Program>) -> Result<(), RunError> {
        if !program.is_checked() && self.options.mode == CpuMode::Threads {
            return Err(RunError::NeedsCheckedPlan);
        }
        let queues = Queues::new(program.plan().streams.len(), program.plan().n_events as usize);
        let seed = match self.options.mode {
            CpuMode::Interleaved { seed } => seed,
            CpuMode::Serial | CpuMode::Threads => 0,
        };
        let machine = Machine::new(program, Arc::clone(&self.kernels), self.options.poison)?;
        self.loaded = Some(Loaded { machine, queues, random: Random::new(seed) });
        Ok(())
    }

    fn begin(&mut self) -> Result<(), RunError> {
        self.loaded().machine.begin();
        Ok(())
    }

    fn write(&mut self, span: Span, bytes: &[u8]) -> Result<(), RunError> {
        self.loaded().machine.owned(span).copy_from_slice(bytes);
        Ok(())
    }

    #[expect(unsafe_code, reason = "reads the idle arenas")]
    fn read(&self, span: Span, into: &mut [u8]) -> Result<(), RunError> {
        let loaded = self.loaded.as_ref().expect("prepare comes first");
        // SAFETY: commands run only inside methods that take `&mut self`, so none runs now
        // and none can start while this borrow of `self` lasts.
        into.copy_from_slice(unsafe { loaded.machine.bytes(span) });
        Ok(())
    }

    #[expect(unsafe_code, reason = "serial mode runs the command here")]
    fn issue(&mut self, at: CmdId) -> Result<(), RunError> {
        let serial = self.options.mode == CpuMode::Serial;
        let Loaded { machine, queues, .. } = self.loaded();
        if serial {
            // SAFETY: `&mut self`: no other command runs.
            return unsafe { machine.run(at) };
        }
        let stream = machine.program().plan().commands[at.index()].stream();
        queues.push(stream.index(), at);
        Ok(())
    }

    fn synchronize(&mut self) -> Result<(), RunError> {
        let mode = self.options.mode;
        let Loaded { machine, queues, random } = self.loaded();
        match mode {
            CpuMode::Serial => Ok(()),
            CpuMode::Interleaved { .. } => queue::interleaved(queues, machine, random),
            CpuMode::Threads => queue::threads(queues, machine),
        }
    }

    fn host_kernels(&self) -> &dyn Kernels {
        &*self.kernels
    }
}
