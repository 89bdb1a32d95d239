//! A naive interpreter of the graph: the oracle that executors are compared with.
//!
//! It sees only the IR. [`NaiveKernels`] has one plain loop nest per op; [`interpret`] runs
//! a graph with any [`Kernels`](vdnn_ir::kernel::Kernels), each value in its own memory.

mod interpret;
mod kernels;
#[cfg(test)]
mod tests;

pub use interpret::{Evaluation, InterpError, interpret, interpret_f64};
pub use kernels::NaiveKernels;
