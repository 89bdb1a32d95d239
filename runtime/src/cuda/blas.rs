//! Matrix products by cuBLASLt.

use super::error::CudaError;
use super::launch::{LaunchSpec, Prepared};

/// A cuBLASLt handle of the current context.
#[derive(Debug)]
pub(crate) struct Blas;

impl Blas {
    /// Creates the handle.
    pub(crate) fn new() -> Result<Self, CudaError> {
        Ok(Self)
    }
}

/// Prepares a matrix product.
pub(crate) fn prepare(spec: &LaunchSpec<'_>, _blas: &Blas) -> Result<Box<dyn Prepared>, CudaError> {
    Err(CudaError::Unsupported { op: spec.op.to_string(), why: "not written yet".into() })
}
