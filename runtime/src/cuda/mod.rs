//! The CUDA backend: plans executed on the streams of a GPU.
//!
//! Always compiled; nothing is linked. The driver and the libraries are loaded when the
//! backend is made, and a missing one is an error that says where it was looked for.

pub(crate) mod blas;
pub(crate) mod cudnn;
pub mod device;
pub mod error;
pub(crate) mod kernels;
pub(crate) mod launch;

pub use device::DeviceFacts;
pub use error::CudaError;
