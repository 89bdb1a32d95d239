//! Graph to graph to plan: every decision of the compiler, one module each. No IO, no
//! environment, no clocks: the same graph and options give the same plan, byte for byte.

pub mod autodiff;
pub mod channels_last;
mod conversion;
pub mod elide;
pub mod fuse;
pub mod fuse_elementwise;
pub mod fuse_pyramids;
pub mod fuse_stages;
pub mod group_updates;
pub mod inplace;
pub mod join_batch_norms;
pub mod lower;
pub mod memory;
pub mod micro_batch;
pub mod mixed_precision;
pub mod nest_concats;
pub mod offload;
pub mod options;
pub mod pass;
pub mod recompute;
pub mod registry;
pub mod schedule;
pub mod select_conv;
pub mod simplify;
pub mod slice_batch;
pub mod sparsify;
pub mod streams;

pub use options::{AlgoMode, BatchSizes, Fuse, Packing, Policy, Recompute, SyncMode, Workspace};
pub use pass::{Outcome, Pass, PassCtx, PassError, Stats};
