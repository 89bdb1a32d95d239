//! The same steps again under other delays, for tests that compare what they leave.

use super::arena::DeviceArena;
use super::backend::{CudaBackend, Loaded};
use super::error::CudaError;
use super::kernels;
use crate::error::RunError;
use crate::program::Span;
use cudarc::driver::sys;
use vdnn_ir::{Bytes, Space};
use vdnn_plan::plan::ALIGNMENT;

/// A copy of all parameters in device memory beside the plan's. Drop it before the backend.
#[derive(Debug)]
pub struct SavedParams {
    memory: DeviceArena,
    /// Offset in `memory`, and the bytes it is a copy of.
    parts: Vec<(usize, Span)>,
}

impl SavedParams {
    #[expect(unsafe_code, reason = "queues copies")]
    fn copy(&self, loaded: &Loaded, back: bool) -> Result<(), CudaError> {
        let stream = loaded.lanes.main();
        for (at, span) in self.parts.iter().filter(|p| p.1.len > 0) {
            let (here, there) = (self.memory.at(*at, span.len), loaded.address(*span));
            let (to, from) = if back { (there, here) } else { (here, there) };
            // SAFETY: both ranges live until the stream is idle, which is waited for below.
            CudaError::check("cuMemcpyAsync", unsafe {
                sys::cuMemcpyAsync(to, from, span.len, stream.raw())
            })?;
        }
        stream.synchronize()
    }
}

impl CudaBackend {
    /// Copies all parameters to device memory of their own, which no budget covers.
    ///
    /// # Errors
    /// If there is not so much memory, or the device fails.
    pub fn save_params(&self) -> Result<SavedParams, RunError> {
        let loaded = self.loaded();
        let mut total = 0usize;
        let mut parts = Vec::new();
        for param in &loaded.program.plan().params {
            let span = loaded.program.span(param.buf);
            parts.push((total, span));
            total += span.len.next_multiple_of(ALIGNMENT as usize);
        }
        let memory = DeviceArena::new(Bytes(total as u64), "a copy of the parameters")?;
        let saved = SavedParams { memory, parts };
        saved.copy(loaded, false)?;
        Ok(saved)
    }

    /// Gives all parameters the content they had when they were saved. Call it between steps.
    ///
    /// # Errors
    /// If the device fails.
    pub fn restore_params(&mut self, saved: &SavedParams) -> Result<(), RunError> {
        Ok(saved.copy(self.loaded(), true)?)
    }

    /// How many 32-bit words of the parameters differ from what was saved. Call it between steps.
    ///
    /// # Errors
    /// If the device fails.
    #[expect(unsafe_code, reason = "clears and reads a counter")]
    pub fn changed_words(&mut self, saved: &SavedParams) -> Result<u32, RunError> {
        let counter = DeviceArena::new(Bytes(4), "a counter")?;
        let found = counter.at(0, 4);
        let mut launches = Vec::new();
        for (at, span) in saved.parts.iter().filter(|p| p.1.len > 0) {
            assert!(span.space == Space::Device && span.len.is_multiple_of(4), "whole words on the device");
            let (a, b) = (saved.memory.at(*at, span.len), self.loaded().address(*span));
            let words = span.len as u64 / 4;
            launches.push(kernels::count_different(a, b, words, found, &mut self.modules)?);
        }
        let stream = self.loaded().lanes.main();
        // SAFETY: the counter lives to the end of this function, which waits for the stream.
        CudaError::check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(found, 0, 4, stream.raw()) })?;
        let queued = launches.iter().try_for_each(|launch| launch.enqueue(stream.raw()));
        let done = stream.synchronize();
        queued.and(done)?;
        let mut words = 0u32;
        // SAFETY: four bytes of each; the call returns when they are there.
        CudaError::check("cuMemcpyDtoH", unsafe { sys::cuMemcpyDtoH_v2((&raw mut words).cast(), found, 4) })?;
        Ok(words)
    }

    /// Changes the delays of later steps to those of another seed, or to none. Only for backends
    /// made with [`delay_seed`](super::CudaOptions::delay_seed). Call it between steps.
    ///
    /// # Errors
    /// If the backend has no delays, or the device fails.
    pub fn set_delays(&mut self, seed: Option<u64>) -> Result<(), RunError> {
        let loaded = self.loaded();
        let Some(delays) = &loaded.delays else {
            return Err(CudaError::BadPlan { why: "the plan was loaded without delays".to_owned() }.into());
        };
        Ok(delays.write(loaded.program.plan(), seed)?)
    }
}
