//! Devices.

use vdnn_ir::Bytes;

/// What a GPU says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Marketing name.
    pub name: String,
    /// `GPU-` and a UUID in lower case.
    pub uuid: String,
    /// Major and minor, (9, 0) for Hopper.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// All its memory.
    pub total_memory: Bytes,
    /// Second-level cache.
    pub l2: Bytes,
    /// Newest CUDA version the driver supports: 1000 × major + 10 × minor.
    pub driver_version: i32,
}
