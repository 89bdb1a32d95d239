//! The simulator behind the executor's interface.

use super::{SimResult, simulate};
use crate::backend::Backend;
use crate::error::RunError;
use crate::program::{Program, Span};
use std::sync::Arc;
use vdnn_cost::CostModel;
use vdnn_ir::kernel::Kernels;
use vdnn_plan::CmdId;

/// A device that takes predicted time and computes nothing: what is written to it is lost
/// and every output reads as zeros. A step's time does not depend on values, so it is
/// simulated once, when the plan is loaded.
#[derive(Debug)]
pub struct SimBackend<K> {
    cost: CostModel,
    host: K,
    result: Option<SimResult>,
}

impl<K: Kernels> SimBackend<K> {
    /// A device of this profile; `host` runs the setup program of loaded plans.
    pub fn new(cost: CostModel, host: K) -> Self {
        Self { cost, host, result: None }
    }

    /// What every step of the loaded plan costs; `None` before a plan is loaded.
    pub fn result(&self) -> Option<&SimResult> {
        self.result.as_ref()
    }
}

impl<K: Kernels> Backend for SimBackend<K> {
    fn prepare(&mut self, program: Arc<Program>) -> Result<(), RunError> {
        let bytes = program.plan().device.bytes;
        if bytes > self.cost.capacity() {
            return Err(RunError::OutOfMemory { arena: "device", bytes });
        }
        self.result = Some(simulate(program.plan(), &self.cost)?);
        Ok(())
    }

    fn begin(&mut self) -> Result<(), RunError> {
        Ok(())
    }

    fn write(&mut self, _span: Span, _bytes: &[u8]) -> Result<(), RunError> {
        Ok(())
    }

    fn read(&self, _span: Span, into: &mut [u8]) -> Result<(), RunError> {
        into.fill(0);
        Ok(())
    }

    fn issue(&mut self, _at: CmdId) -> Result<(), RunError> {
        Ok(())
    }

    fn synchronize(&mut self) -> Result<(), RunError> {
        Ok(())
    }

    fn host_kernels(&self) -> &dyn Kernels {
        &self.host
    }
}
