//! Executors of plans. Decides nothing and never allocates device memory outside the plan.

pub mod backend;
pub mod cpu;
pub mod cuda;
pub mod error;
pub mod executor;
pub mod packed;
pub mod program;
mod ranges;
pub mod sim;
pub mod trace;
