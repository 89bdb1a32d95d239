//! Options of executors, and of the commands that need a GPU or its measured times.

use super::SharedArgs;
use clap::{Args, ValueEnum};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
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

/// What a plan is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceName {
    /// A shipped profile.
    Profile(String),
    /// A profile in a file.
    File(PathBuf),
    /// The GPU at hand, as it was measured.
    Gpu(DeviceSelector),
}

impl FromStr for DeviceName {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let lower = s.to_ascii_lowercase();
        Ok(if lower.starts_with("cuda:") || lower.starts_with("gpu-") {
            Self::Gpu(s.parse()?)
        } else if lower.ends_with(".toml") {
            Self::File(s.into())
        } else {
            Self::Profile(s.to_owned())
        })
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Profile(name) => f.write_str(name),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Gpu(selector) => write!(f, "cuda:{selector}"),
        }
    }
}

/// Where CUDA's libraries and the measured times are.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "CUDA")]
pub struct GpuArgs {
    /// Folders with the CUDA libraries, searched first; several are separated by `:`.
    #[arg(long, value_name = "DIR", env = "VDNNC_CUDA_LIBS", value_delimiter = ':')]
    pub cuda_libs: Vec<PathBuf>,
    /// The database of measured kernel times. Default: vdnnc/bench.sqlite in the user's cache
    /// folder.
    #[arg(long, value_name = "FILE", env = "VDNNC_DB")]
    pub db: Option<PathBuf>,
    /// A device profile, as `vdnnc calibrate` writes it, instead of the shipped one.
    #[arg(long, value_name = "FILE.toml")]
    pub device_profile: Option<PathBuf>,
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
    /// The GPU that runs, by number or UUID as `vdnnc devices` prints them. Default: that of
    /// --device cuda:N, else 0.
    #[arg(long, value_name = "N|UUID")]
    pub cuda_device: Option<DeviceSelector>,
    /// Queue every command of every step instead of replaying a captured CUDA graph.
    #[arg(long)]
    pub no_graph: bool,
    /// Delay commands at random by up to 2 ms, to test for missing waits.
    #[arg(long, value_name = "SEED", hide = true)]
    pub delay_seed: Option<u64>,
    /// Leave out the N-th wait of the plan, to show that the test for missing waits notices.
    #[arg(long, value_name = "N", hide = true)]
    pub drop_wait: Option<usize>,
    /// Make the N-th launch of the plan fail, to see what is said of it.
    #[arg(long, value_name = "N", hide = true)]
    pub fail_launch: Option<usize>,
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
    #[arg(value_name = "MODEL|NAME", num_args = 1.., required_unless_present_any = ["import", "export"])]
    pub targets: Vec<String>,
    /// Also write the models' times as a table for --times; one that exists is added to.
    #[arg(short = 'o', value_name = "TABLE", requires = "targets")]
    pub output: Option<PathBuf>,
    /// First put tables into the database.
    #[arg(long, value_name = "TABLE", num_args = 1)]
    pub import: Vec<PathBuf>,
    /// At the end write everything the database has of one device as a table.
    #[arg(long, value_name = "TABLE")]
    pub export: Option<PathBuf>,
    /// What --export or --replay is to take, where the database has times of several devices,
    /// drivers or libraries: a part of its description.
    #[arg(long, value_name = "TEXT")]
    pub select: Option<String>,
    /// Instead of measuring, take the times from a table or another database, and say what
    /// the models need that it lacks. Needs no GPU.
    #[arg(long, value_name = "TABLE|DB", requires = "targets")]
    pub replay: Option<PathBuf>,
    /// Training steps or inference.
    #[arg(long, value_name = "train|infer", default_value = "train")]
    pub mode: Mode,
    /// Try only the few engines that the library recommends first.
    #[arg(long)]
    pub quick: bool,
    /// Measure also what was measured before.
    #[arg(long, conflicts_with = "replay")]
    pub again: bool,
    /// Measure on several GPUs of one kind at once, by number or UUID.
    #[arg(long, value_name = "N|UUID,…", value_delimiter = ',', conflicts_with_all = ["replay", "cuda_device"])]
    pub bench_devices: Vec<DeviceSelector>,
    /// Seed of the weights of zoo networks.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The day to note with the times.
    #[arg(long, value_name = "YYYY-MM-DD", default_value = "unknown")]
    pub date: String,
    /// Options of the CUDA backend.
    #[command(flatten)]
    pub cuda: CudaArgs,
    /// Compile options.
    #[command(flatten)]
    pub shared: SharedArgs,
}

/// `vdnnc calibrate`.
#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// The profile.
    #[arg(short = 'o', value_name = "PROFILE.toml")]
    pub output: PathBuf,
    /// Name of the profile. Default: the driver's name of the GPU.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The day to note in it.
    #[arg(long, value_name = "YYYY-MM-DD", default_value = "unknown")]
    pub date: String,
    /// Options of the CUDA backend.
    #[command(flatten)]
    pub cuda: CudaArgs,
    /// Compile options, of which only --device cuda:N and those of CUDA matter.
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
    /// Also measure the energy of a step by the GPU's own counter (NVML), over two seconds of steps.
    #[arg(long)]
    pub energy: bool,
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
