//! The dataflow IR of vdnnc: a typed SSA [`Graph`] over a closed set of [`Op`]s.
//!
//! This crate is a leaf: it knows nothing of files, devices, policies or plans. It holds
//! the contract between the frontends (which build graphs), the passes (which rewrite
//! them) and the executors (whose kernels implement [`kernel::Kernels`]).

pub mod algo;
pub mod bf16;
pub mod graph;
pub mod id;
pub mod kernel;
pub mod layout;
mod names;
pub mod op;
pub mod order;
pub mod packed;
pub mod parse;
pub mod parts;
pub mod phase;
pub mod print;
pub mod random;
pub mod rows;
pub mod schedule;
pub mod slices;
pub mod tensor;
pub mod types;
pub mod units;
pub mod verify;
pub mod weights;

pub use graph::{Def, Graph, Node, NodeId, Output, ParamRole, Stage, Update, Value, ValueId};
pub use op::Op;
pub use phase::{Mode, Phase};
pub use schedule::{ConvRun, ConvSchedule};
pub use tensor::Tensor;
pub use types::{DType, Dims, Layout, Precision, Real, Space, TensorType};
pub use units::{Bytes, Flops, Nanos};
pub use weights::{WeightTensor, Weights};
