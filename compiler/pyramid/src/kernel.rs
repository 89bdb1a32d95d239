//! Kernels of chains: which ways there are to run a chain as one kernel, and the source of each.
//!
//! Two printers stand behind this: [`crate::cuda`], plain loops in strict f32 over row-major
//! images, and [`crate::tensor`], matrix instructions of a warp group over channels-last images.

use crate::chain::Chain;
use crate::cuda::{CudaError, CudaOptions, cuda};
use crate::machine::{Machine, THREADS, Target};
use crate::program::Program;
use crate::search::{estimate, tilings};
use crate::stage::StageConfig;
use crate::tensor::{self, Tensor};
use crate::tiling::Tiling;
use std::fmt;
use std::str::FromStr;
use vdnn_ir::types::Layout;
use vdnn_ir::{Bytes, Nanos, Precision};

/// Name of the entry of every kernel.
pub const ENTRY: &str = "pyramid";

/// How a chain runs as one kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Config {
    /// Plain loops in these tiles: strict f32, row-major.
    Loops(Tiling),
    /// Matrix instructions: TF32 and bf16, channels last.
    Tensor(Tensor),
    /// Image by image, of a stage of blocks, which is no chain ([`crate::stage::kernel`]).
    Stage(StageConfig),
}

/// A kernel that runs a chain.
///
/// Its parameters are pointers: [`Chain::operands`] in order, then the result. Images, residuals
/// and the result are those of the whole batch; images and weights have the layout and the
/// element type (f32, or bf16 at that precision) that the kernel was made for, biases, scales and
/// shifts are f32. Every pointer is a multiple of 16 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// CUDA C++ without any include.
    pub source: String,
    /// Name of the kernel in it.
    pub entry: String,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block, in x.
    pub threads: u32,
    /// Dynamic shared memory of a block; above 48 KiB a function needs to be allowed it.
    pub shared: Bytes,
    /// Needs instructions of exactly this architecture, such as `sm_90a`; `None` if any will do.
    pub target: Option<&'static str>,
}

/// The kernel of a chain over `batch` images.
///
/// # Errors
/// If there is no kernel of this kind for the chain, precision and layout, or it does not fit.
pub fn kernel(
    chain: &Chain,
    config: &Config,
    precision: Precision,
    layout: Layout,
    batch: u64,
) -> Result<Kernel, CudaError> {
    match config {
        Config::Tensor(config) => tensor::kernel(chain, config, precision, layout, batch),
        Config::Stage(_) => Err(CudaError::Unsupported { what: "a chain as a stage of blocks" }),
        Config::Loops(tiling) => {
            if precision != Precision::F32 {
                return Err(CudaError::Precision(precision));
            }
            if layout != Layout::RowMajor {
                return Err(CudaError::Unsupported { what: "channels-last images in plain loops" });
            }
            let program = Program::new(chain, *tiling, precision)?;
            let options = CudaOptions { threads: THREADS as u32, fma: true };
            let grid = |n: u64, most: u32| u32::try_from(n).ok().filter(|&n| n <= most);
            let grid = [
                grid(program.grid[1], i32::MAX as u32),
                grid(program.grid[0], u32::from(u16::MAX)),
                grid(batch, u32::from(u16::MAX)),
            ];
            let [Some(x), Some(y), Some(z)] = grid else { return Err(CudaError::TooLarge) };
            Ok(Kernel {
                source: cuda(&program, ENTRY, true, options)?,
                entry: ENTRY.to_owned(),
                grid: [x, y, z],
                threads: options.threads,
                shared: program.shared,
                target: None,
            })
        }
    }
}

/// Most ways that are worth measuring.
const MOST: usize = 8;

/// Ways to run a chain as one kernel, the best predicted first, always in the same order; none if
/// there is no kernel for it.
pub fn configs(
    chain: &Chain,
    precision: Precision,
    layout: Layout,
    batch: u64,
    machine: &Machine,
) -> Vec<Config> {
    let mut list: Vec<(Nanos, Config)> = match (precision, layout) {
        (Precision::F32, Layout::RowMajor) => {
            // Only the ratio of the rates matters for the order: about 12 operations per byte.
            let target = Target {
                machine: machine.clone(),
                precision,
                peak: 50e3,
                bandwidth: 4200.0,
                launch: Nanos::ZERO,
            };
            let timed = |t: Tiling| Some((estimate(chain, t, &target, batch)?.time, Config::Loops(t)));
            tilings(chain).into_iter().filter_map(timed).collect()
        }
        (Precision::F32, _) | (_, Layout::RowMajor) => Vec::new(),
        _ => tensor::configs(chain, precision, batch, machine)
            .into_iter()
            .map(|(time, c)| (time, Config::Tensor(c)))
            .collect(),
    };
    list.sort();
    list.truncate(MOST);
    list.into_iter().map(|(_, c)| c).collect()
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loops(tiling) => write!(f, "loops {tiling}"),
            Self::Tensor(tensor) => write!(f, "tensor {tensor}"),
            Self::Stage(stage) => write!(f, "stage {stage}"),
        }
    }
}

impl FromStr for Config {
    type Err = String;

    /// Reads what is printed: `loops recompute 8x8`, or `tensor 8x8 workers 2 groups 1 slots 2
    /// slice 8 weights kept units group blocks 132`, or `stage rings 3 3 4 3 3 blocks 132`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(' ') {
            Some(("loops", rest)) => rest.parse().map(Self::Loops),
            Some(("tensor", rest)) => rest.parse().map(Self::Tensor),
            Some(("stage", rest)) => rest.parse().map(Self::Stage),
            _ => {
                Err(format!("`{text}` is no way to run layers: it begins with `loops`, `tensor` or `stage`"))
            }
        }
    }
}
