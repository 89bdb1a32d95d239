//! Chains on the matrix units of Hopper GPUs: each convolution is an implicit matrix product over
//! the positions of a tile, by `wgmma`, what lies between layers in shared memory.

mod plan;
mod price;
mod print;

pub(crate) use print::PRELUDE;

use crate::chain::Chain;
use crate::cuda::CudaError;
use crate::kernel::Kernel;
use crate::machine::Machine;
use plan::Plan;
use std::fmt;
use std::str::FromStr;
use vdnn_ir::types::Layout;
use vdnn_ir::{Nanos, Precision};

/// Which matrix instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Units {
    /// Those of a warp group, `wgmma`: Hopper's alone, and the fast ones there.
    WarpGroup,
    /// Those of a warp, `mma.sync`: every GPU since Ampere. They read the weights once per warp.
    Warp,
}

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
    /// Chunks (16 bytes) of channels of a slice, where the first convolution is of single positions.
    pub slice: u32,
    /// The weights of the first and the last convolution are brought to the slots for every tile
    /// again; else all are kept for as long as a block lives.
    pub streamed: bool,
    /// The matrix instructions.
    pub units: Units,
    /// Blocks; each goes on with further tiles when it is done with one.
    pub blocks: u32,
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, cols, workers, groups, slots, slice, streamed, units, blocks } = self;
        let units = match units {
            Units::WarpGroup => "group",
            Units::Warp => "warp",
        };
        let weights = if *streamed { "streamed" } else { "kept" };
        write!(
            f,
            "{rows}x{cols} workers {workers} groups {groups} slots {slots} slice {slice} weights {weights} units {units} blocks {blocks}"
        )
    }
}

impl FromStr for Tensor {
    type Err = String;

    /// Reads `8x8 workers 2 groups 1 slots 2 slice 8 weights kept units group blocks 132`.
    fn from_str(text: &str) -> Result<Self, String> {
        let error = || {
            format!(
                "`{text}` is not such as `8x8 workers 2 groups 1 slots 2 slice 8 weights kept units group blocks 132`"
            )
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        let [
            "workers",
            workers,
            "groups",
            groups,
            "slots",
            slots,
            "slice",
            slice,
            "weights",
            weights,
            "units",
            units,
            "blocks",
            blocks,
        ] = words.get(1..).ok_or_else(error)?
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
            slice: number(slice)?,
            streamed: match *weights {
                "kept" => false,
                "streamed" => true,
                _ => return Err(error()),
            },
            units: match *units {
                "group" => Units::WarpGroup,
                "warp" => Units::Warp,
                _ => return Err(error()),
            },
            blocks: number(blocks)?,
        })
    }
}

/// The kernel of a chain over `batch` channels-last images.
///
/// # Errors
/// If the chain, precision or layout has no such kernel, or it does not fit.
pub fn kernel(
    chain: &Chain,
    config: &Tensor,
    precision: Precision,
    layout: Layout,
    batch: u64,
) -> Result<Kernel, CudaError> {
    if layout != Layout::ChannelsLast {
        return Err(CudaError::Unsupported { what: "row-major images on matrix units" });
    }
    Ok(print::kernel(&Plan::new(chain, config, precision, batch)?, crate::kernel::ENTRY))
}

/// The predicted time of a chain as a configuration runs it; `None` if there is no such kernel.
pub fn predict(chain: &Chain, config: &Tensor, precision: Precision, batch: u64) -> Option<Nanos> {
    Plan::new(chain, config, precision, batch).ok().map(|plan| price::time(&plan))
}

/// Tiles that are tried: sides of squares and of what images of 224 are cut into.
const SIDES: [u32; 8] = [2, 4, 6, 7, 8, 12, 14, 16];

/// Ways to cut a chain, with predicted times; none if it has no such kernel.
pub fn configs(chain: &Chain, precision: Precision, batch: u64, machine: &Machine) -> Vec<(Nanos, Tensor)> {
    let out = chain.output();
    let blocks = machine.multiprocessors as u32;
    let mut all = Vec::new();
    for rows in SIDES {
        for cols in SIDES {
            if u64::from(rows) > out.height || u64::from(cols) > out.width {
                continue;
            }
            for (workers, groups) in [(1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (2, 2), (1, 3), (1, 4)] {
                for (slice, streamed) in [(8, false), (8, true), (4, false), (4, true)] {
                    // Streams need two slots, and what does not fit or run in some does not in more.
                    for slots in if streamed { 2..=6 } else { 1..=6 } {
                        let tensor = Tensor {
                            rows,
                            cols,
                            workers,
                            groups,
                            slots,
                            slice,
                            streamed,
                            units: Units::WarpGroup,
                            blocks,
                        };
                        let Ok(plan) = Plan::new(chain, &tensor, precision, batch) else { break };
                        all.push((price::time(&plan), tensor));
                    }
                }
            }
        }
    }
    all
}
