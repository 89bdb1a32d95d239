//! What an executor needs of a device.

use crate::error::RunError;
use crate::program::{Program, Span};
use std::sync::Arc;
use vdnn_ir::kernel::Kernels;
use vdnn_plan::CmdId;

/// A device with two arenas and in-order queues. It decides nothing: the plan says which
/// bytes each command touches and what it waits for.
///
/// A step is [`begin`](Self::begin), inputs by [`write`](Self::write), every command in
/// issue order by [`issue`](Self::issue), [`synchronize`](Self::synchronize), outputs by
/// [`read`](Self::read).
pub trait Backend {
    /// Takes both arenas and the streams and events of a plan. Called once, first. This is
    /// the only allocation of device memory.
    ///
    /// # Errors
    /// If the device cannot hold the arenas or cannot run the program.
    fn prepare(&mut self, program: Arc<Program>) -> Result<(), RunError>;

    /// A step begins: all bytes but those of parameters are undefined from here on.
    fn begin(&mut self);

    /// Writes bytes of an arena. Called while the device is idle.
    fn write(&mut self, span: Span, bytes: &[u8]);

    /// Reads bytes of an arena. Called while the device is idle.
    fn read(&self, span: Span, into: &mut [u8]);

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

    /// Kernels that run on host memory, for the setup program.
    fn host_kernels(&self) -> &dyn Kernels;
}
