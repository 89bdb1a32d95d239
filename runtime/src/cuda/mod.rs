//! The CUDA backend: plans executed on the streams of a GPU.
//!
//! Always compiled; nothing is linked. The driver and the libraries are loaded when the
//! backend is made, and a missing one is an error that says where it was looked for.

mod alias;
mod arena;
mod backend;
pub(crate) mod blas;
pub(crate) mod cudnn;
mod delays;
pub mod device;
mod divided;
mod energy;
pub mod error;
pub(crate) mod kernels;
mod lanes;
pub(crate) mod launch;
mod launch_times;
pub mod libs;
mod measure;
mod meter;
mod nvml;
mod proof;
mod replay;
mod stream;
mod table;
mod timeline;
mod timing;

pub use backend::{CudaBackend, CudaOptions};
pub use device::{Device, DeviceFacts, DeviceSelector};
pub use energy::Energy;
pub use error::CudaError;
pub use launch::SCRATCH;
pub use launch_times::LaunchTimes;
pub use measure::{LinkTimes, MeasureLimits, Measurer, identify};
pub use proof::SavedParams;
