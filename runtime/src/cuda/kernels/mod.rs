//! Kernels of our own, compiled by NVRTC.

use super::device::DeviceFacts;
use super::error::CudaError;
use super::launch::{LaunchSpec, Prepared};
use std::path::PathBuf;

/// Compiled kernels of one device.
#[derive(Debug)]
pub(crate) struct Modules;

impl Modules {
    /// Nothing compiled yet; compiled code is kept in `cache_dir`.
    pub(crate) fn new(_device: &DeviceFacts, _cache_dir: Option<PathBuf>) -> Result<Self, CudaError> {
        Ok(Self)
    }
}

/// Prepares a launch of any op but convolutions and matrix products.
pub(crate) fn prepare(spec: &LaunchSpec<'_>, _modules: &mut Modules) -> Result<Box<dyn Prepared>, CudaError> {
    Err(CudaError::Unsupported { op: spec.op.to_string(), why: "not written yet".into() })
}

/// A kernel of one thread that spins for `nanos` and touches no memory.
pub(crate) fn delay(_nanos: u64, _modules: &mut Modules) -> Result<Box<dyn Prepared>, CudaError> {
    Err(CudaError::Unsupported { op: "delay".into(), why: "not written yet".into() })
}
