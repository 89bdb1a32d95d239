//! Options of executors and of the commands that need a GPU.

use super::SharedArgs;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use vdnn_ir::Mode;
use vdnn_runtime::cuda::DeviceSelector;

/// Executors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// The host's arithmetic in real arenas.
    Cpu,
    /// A CUDA GPU.
    Cuda,
    /// Discrete-event prediction.
    Sim,
}

/// Executors that compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ComputeBackend {
    /// The host's arithmetic in real arenas.
    Cpu,
    /// A CUDA GPU.
    Cuda,
}

impl ComputeBackend {
    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// Options of the CUDA backend.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "CUDA")]
pub struct CudaArgs {
    /// The GPU, by number or UUID as `vdnnc devices` prints them.
    #[arg(long, value_name = "N|UUID", default_value = "0")]
    pub cuda_device: DeviceSelector,
    /// Folders with the CUDA libraries, searched first; several are separated by `:`.
    #[arg(long, value_name = "DIR", env = "VDNNC_CUDA_LIBS", value_delimiter = ':')]
    pub cuda_libs: Vec<PathBuf>,
    /// Queue every command of every step instead of replaying a captured CUDA graph.
    #[arg(long)]
    pub no_graph: bool,
    /// Delay commands at random by up to 2 ms, to test for missing waits.
    #[arg(long, value_name = "SEED", hide = true)]
    pub delay_seed: Option<u64>,
    /// Leave out the N-th wait of the plan, to show that the test for missing waits notices.
    #[arg(long, value_name = "N", hide = true)]
    pub drop_wait: Option<usize>,
}

/// `vdnnc devices`.
#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Folders with the CUDA libraries, searched first; several are separated by `:`.
    #[arg(long, value_name = "DIR", env = "VDNNC_CUDA_LIBS", value_delimiter = ':')]
    pub cuda_libs: Vec<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `vdnnc profile`.
#[derive(Debug, Args)]
pub struct ProfileArgs {
    /// ONNX models, or names of the zoo's networks.
    #[arg(value_name = "MODEL|NAME", num_args = 1.., required = true)]
    pub targets: Vec<String>,
    /// The table; one that exists is added to.
    #[arg(short = 'o', value_name = "FILE", required = true)]
    pub output: PathBuf,
    /// Training steps or inference.
    #[arg(long, value_name = "train|infer", default_value = "train")]
    pub mode: Mode,
    /// Try only the few engines that the library recommends first.
    #[arg(long)]
    pub quick: bool,
    /// Seed of the weights of zoo networks.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The day to note in the table.
    #[arg(long, value_name = "YYYY-MM-DD", default_value = "unknown")]
    pub date: String,
    /// Options of the CUDA backend.
    #[command(flatten)]
    pub cuda: CudaArgs,
    /// Compile options.
    #[command(flatten)]
    pub shared: SharedArgs,
}

/// `vdnnc bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// ONNX models, or names of the zoo's networks, which get seeded random weights.
    #[arg(value_name = "MODEL|NAME", num_args = 1.., required = true)]
    pub targets: Vec<String>,
    /// Training steps or inference.
    #[arg(long, value_name = "train|infer", default_value = "train")]
    pub mode: Mode,
    /// Measured steps.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: u32,
    /// Steps before them; at least two, since the first loads code and the second is captured.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub warmup: u32,
    /// Executor.
    #[arg(long, value_name = "cpu|cuda", default_value = "cuda")]
    pub backend: ComputeBackend,
    /// Options of the CUDA backend.
    #[command(flatten)]
    pub cuda: CudaArgs,
    /// Hash all parameters after the last step: plans that differ in where things lie give
    /// the same hash if their kernels are the same and deterministic.
    #[arg(long)]
    pub checksum: bool,
    /// Run the measured steps again from the same parameters under random delays of up to 2 ms on
    /// every stream, for each of these seeds, and fail unless they leave the same parameters.
    #[arg(long, value_name = "FROM..TO", value_parser = parse_range)]
    pub delay_seeds: Option<std::ops::Range<u64>>,
    /// With --delay-seeds: a seed serves for so many steps. Default: --steps.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub delay_every: Option<u32>,
    /// Write the plan that is measured; one target.
    #[arg(short = 'o', value_name = "FILE.vplan")]
    pub output: Option<PathBuf>,
    /// Write the timeline of one step as a Chrome/Perfetto trace; one target, cuda only.
    #[arg(long, value_name = "FILE.json")]
    pub trace: Option<PathBuf>,
    /// Worker threads of the CPU kernels.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Seed of the weights of zoo networks.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print JSON lines instead of a table: per target a prediction, then a result.
    #[arg(long)]
    pub json: bool,
    /// Compile options.
    #[command(flatten)]
    pub shared: SharedArgs,
}

fn parse_range(text: &str) -> Result<std::ops::Range<u64>, String> {
    let number = |t: &str| t.parse::<u64>().ok();
    match text.split_once("..").and_then(|(from, to)| Some(number(from)?..number(to)?)) {
        Some(range) if range.start < range.end => Ok(range),
        _ => Err(format!("`{text}` is not FROM..TO with FROM below TO")),
    }
}
