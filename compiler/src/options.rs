//! What a compilation needs to know, as one typed value. No `Default`: the caller decides.

use crate::pipeline::Fusion;
use crate::slicing::Slices;
use std::collections::BTreeMap;
use vdnn_cost::Precision;
use vdnn_ir::{Bytes, ConvSchedule, Mode, NodeId};
use vdnn_passes::sparsify::Sparse;
use vdnn_passes::streams::Streams;
use vdnn_passes::{AlgoMode, BatchSizes, Fuse, Packing, Policy, Recompute, SyncMode, Workspace};
use vdnn_plan::EngineOrigin;

/// Options of one compilation.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// Inference or training.
    pub mode: Mode,
    /// Offload policy.
    pub policy: Policy,
    /// Convolution algorithm mode.
    pub algo: AlgoMode,
    /// Batch for a symbolic batch dimension.
    pub batch: Option<u64>,
    /// Other symbolic dimensions.
    pub dims: BTreeMap<String, u64>,
    /// Device profile name.
    pub device: String,
    /// Hard limit on the device memory of the process; the device's capacity if absent.
    pub memory: Option<Bytes>,
    /// What of it is not the arena's: the context, libraries and their kernels.
    pub overhead: Bytes,
    /// Hard limit on the pinned host arena.
    pub host_memory: Option<Bytes>,
    /// Only kernels whose results do not differ from run to run.
    pub deterministic: bool,
    /// Convolution algorithms by node, from another plan of the same model and options.
    pub kernels: BTreeMap<NodeId, ConvSchedule>,
    /// Where the engines among them were chosen, if that plan says.
    pub kernels_made_for: Option<EngineOrigin>,
    /// Sizes of micro-batches that convolutions may be divided into.
    pub micro_batch: BatchSizes,
    /// How much workspace convolutions may have.
    pub workspace: Workspace,
    /// When compute waits for copies.
    pub sync: SyncMode,
    /// Which offloaded tensors are packed.
    pub packing: Packing,
    /// Arithmetic the cost model assumes.
    pub precision: Precision,
    /// What is fused.
    pub fuse: Fuse,
    /// What backward computes again.
    pub recompute: Recompute,
    /// What is done about zeros, and where the weights have them.
    pub sparse: Sparse,
    /// Most convolutions of a pyramid.
    pub fuse_depth: usize,
    /// Largest footprint of a kernel that pyramids are to leave, whatever they cost
    /// ([`vdnn_passes::fuse_pyramids::FusePyramids::footprint`]).
    pub fuse_footprint: Option<Bytes>,
    /// Search longer for the memory layout ([`vdnn_passes::memory::LayoutOptions::thorough`]).
    pub thorough_layout: bool,
    /// Whether the batch is cut into slices.
    pub slices: Slices,
    /// Compute streams of an inference.
    pub streams: Streams,
    /// Keep every weight gradient to the end of the step, as outputs `grad:NAME`.
    pub keep_gradients: bool,
    /// Remove waits that other waits imply.
    pub elide_waits: bool,
    /// Remove copies whose destination already holds the value.
    pub elide_copies: bool,
}

impl CompileOptions {
    /// What is fused, as the pipeline takes it.
    pub fn fusion(&self) -> Fusion {
        Fusion { depth: self.fuse_depth, footprint: self.fuse_footprint, ..Fusion::from(self.fuse) }
    }

    /// Limit of the device arena on a device of this capacity.
    pub fn budget(&self, capacity: Bytes) -> Bytes {
        self.memory.unwrap_or(capacity).saturating_sub(self.overhead)
    }
}
