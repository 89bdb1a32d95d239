//! Fused layer pyramids (Alwani, Chen, Ferdman and Milder, *Fused-Layer CNN Accelerators*, MICRO
//! 2016): chains of convolutions, pools and pointwise functions that run tile by tile, what lies
//! between them never leaving the multiprocessor.
//!
//! ```text
//! Chain + Tiling --Geometry--> Program --interpret--> result and Counts
//!                      |--count--> the same Counts --Estimate--> time --search--> groups
//! ```
//!
//! A leaf above the IR: it knows types and units, no graph, plan or pass. [`Chain`] is what is
//! computed, [`Tiling`] how it is cut, [`Geometry`] which positions of every layer a tile needs,
//! [`Program`] what a thread block does; [`interpret`] executes programs on the CPU and
//! [`reference()`] the chain layer by layer. [`search`] lists tilings and divides layers into groups.
//!
//! Images are `[C,H,W]`, row-major; a batch is as many runs of the same program.

mod chain;
pub mod cost;
pub mod cuda;
mod geometry;
pub mod interpret;
mod interval;
pub mod kernel;
pub mod machine;
mod op;
mod program;
mod reference;
mod rounding;
pub mod search;
pub mod stage;
pub mod tensor;
mod text;
mod tiling;
mod verify;

pub use chain::{Chain, ChainError, Kind, Layer, MAX_EXTENT, Operand, OperandUse, Pointwise, Shape, Window};
pub use cost::{Counts, count, count_tile};
pub use geometry::{Geometry, Track};
pub use interval::Interval;
pub use op::{chain_of, pyramid_of};
pub use program::{Body, Buffer, Instruction, Outside, PoolKind, Program, Space, Step};
pub use reference::reference;
pub use text::ParseError;
pub use tiling::{Mode, Tiling, TilingError};
pub use verify::ProgramError;
