//! Chains on the matrix units of Hopper GPUs: each convolution is an implicit matrix product over
//! the positions of a tile, by `wgmma`, what lies between layers in shared memory.

use crate::chain::Chain;
use crate::cuda::CudaError;
use crate::kernel::Kernel;
use crate::machine::Machine;
use std::fmt;
use std::str::FromStr;
use vdnn_ir::types::Layout;
use vdnn_ir::{Nanos, Precision};

/// How the blocks of a kernel go through tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tensor {
    /// Rows of the result per tile.
    pub rows: u32,
    /// Columns of the result per tile.
    pub cols: u32,
    /// Workers of a block: each makes tiles of its own, all share the weights.
    pub workers: u32,
    /// Warp groups (128 threads) of a worker.
    pub groups: u32,
    /// Slices of the input that a worker has room for.
    pub slots: u32,
    /// Blocks; each goes on with further tiles when it is done with one.
    pub blocks: u32,
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, cols, workers, groups, slots, blocks } = self;
        write!(f, "{rows}x{cols} workers {workers} groups {groups} slots {slots} blocks {blocks}")
    }
}

impl FromStr for Tensor {
    type Err = String;

    /// Reads `8x8 workers 2 groups 1 slots 2 blocks 132`.
    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("`{text}` is not such as `8x8 workers 2 groups 1 slots 2 blocks 132`");
        let words: Vec<&str> = text.split_whitespace().collect();
        let ["workers", workers, "groups", groups, "slots", slots, "blocks", blocks] =
            words.get(1..).ok_or_else(error)?
        else {
            return Err(error());
        };
        let (rows, cols) = words[0].split_once('x').ok_or_else(error)?;
        let number = |t: &str| t.parse::<u32>().ok().filter(|&n| n > 0).ok_or_else(error);
        Ok(Self {
            rows: number(rows)?,
            cols: number(cols)?,
            workers: number(workers)?,
            groups: number(groups)?,
            slots: number(slots)?,
            blocks: number(blocks)?,
        })
    }
}

/// The kernel of a chain over `batch` channels-last images.
///
/// # Errors
/// If the chain, precision or layout has no such kernel, or it does not fit.
pub fn kernel(
    _chain: &Chain,
    _config: &Tensor,
    precision: Precision,
    _layout: Layout,
    _batch: u64,
) -> Result<Kernel, CudaError> {
    Err(CudaError::Precision(precision))
}

/// Ways to cut a chain, with predicted times; none if it has no such kernel.
pub fn configs(
    _chain: &Chain,
    _precision: Precision,
    _batch: u64,
    _machine: &Machine,
) -> Vec<(Nanos, Tensor)> {
    Vec::new()
}
