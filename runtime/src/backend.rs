//! What an executor needs of a device.

use crate::error::RunError;
use crate::program::{Program, Span};
use std::sync::Arc;
use vdnn_ir::id::EntityId;
use vdnn_ir::kernel::Kernels;
use vdnn_plan::CmdId;

/// A device with two arenas and in-order queues. It decides nothing: the plan says which
/// bytes each command touches and what it waits for.
///
/// A step is [`begin`](Self::begin), inputs by [`write`](Self::write), every command by
/// [`run`](Self::run), outputs by [`read`](Self::read).
pub trait Backend {
    /// Takes both arenas and the streams and events of a plan. Called once, first. This is
    /// the only allocation of device memory.
    ///
    /// # Errors
    /// If the device cannot hold the arenas or cannot run the program.
    fn prepare(&mut self, program: Arc<Program>) -> Result<(), RunError>;

    /// A step begins: all bytes but those of parameters are undefined from here on.
    ///
    /// # Errors
    /// If the device fails.
    fn begin(&mut self) -> Result<(), RunError>;

    /// Writes bytes of an arena. Called while the device is idle.
    ///
    /// # Errors
    /// If the device fails.
    fn write(&mut self, span: Span, bytes: &[u8]) -> Result<(), RunError>;

    /// Reads bytes of an arena. Called while the device is idle.
    ///
    /// # Errors
    /// If the device fails.
    fn read(&self, span: Span, into: &mut [u8]) -> Result<(), RunError>;

    /// Issues one command (a launch, copy, free, record or wait) to its stream. Returns at
    /// once or when it is done, as the device likes.
    ///
    /// # Errors
    /// If a kernel that has already run failed.
    fn issue(&mut self, at: CmdId) -> Result<(), RunError>;

    /// Waits until every issued command is done.
    ///
    /// # Errors
    /// The first kernel that failed.
    fn synchronize(&mut self) -> Result<(), RunError>;

    /// Runs every command of the program once and returns when all are done. A device that
    /// can take a whole step at once does so here.
    ///
    /// # Errors
    /// The first command that failed.
    fn run(&mut self, program: &Program) -> Result<(), RunError> {
        let commands = program.plan().commands.len();
        let issued = (0..commands).try_for_each(|i| self.issue(CmdId::from_index(i)));
        // Also after an error: no command may run on when this returns.
        let done = self.synchronize();
        issued.and(done)
    }

    /// Kernels that run on host memory, for the setup program.
    fn host_kernels(&self) -> &dyn Kernels;
}

impl<B: Backend + ?Sized> Backend for Box<B> {
    fn prepare(&mut self, program: Arc<Program>) -> Result<(), RunError> {
        (**self).prepare(program)
    }
    fn begin(&mut self) -> Result<(), RunError> {
        (**self).begin()
    }
    fn write(&mut self, span: Span, bytes: &[u8]) -> Result<(), RunError> {
        (**self).write(span, bytes)
    }
    fn read(&self, span: Span, into: &mut [u8]) -> Result<(), RunError> {
        (**self).read(span, into)
    }
    fn issue(&mut self, at: CmdId) -> Result<(), RunError> {
        (**self).issue(at)
    }
    fn synchronize(&mut self) -> Result<(), RunError> {
        (**self).synchronize()
    }
    fn run(&mut self, program: &Program) -> Result<(), RunError> {
        (**self).run(program)
    }
    fn host_kernels(&self) -> &dyn Kernels {
        (**self).host_kernels()
    }
}
