//! The command line.

mod gpu;
mod micro;
mod reproduce;
mod shared;
mod sparse;
mod tools;

pub use gpu::{
    BackendName, BenchArgs, CalibrateArgs, ComputeBackend, CudaArgs, DeviceName, DevicesArgs, GpuArgs,
    ProfileArgs,
};
pub use micro::{BenchConvArgs, MicroArgs, WorkspaceMode};
pub use reproduce::{Artefact, CusnnArgs, Preprocess, ReproduceArgs};
pub(crate) use shared::parse_depth;
use shared::{parse_dim, parse_precision};
pub(crate) use sparse::parse_tolerance;
pub use sparse::{PruneArgs, Scope, SparseArgs};
pub use tools::{CheckArgs, InspectArgs, ZooArgs};

use crate::slicing::Slices;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use vdnn_cost::Precision;
use vdnn_ir::{Bytes, Mode, Phase};
use vdnn_passes::fuse_pyramids::DEPTH;
use vdnn_passes::streams::Streams;
use vdnn_passes::{AlgoMode, Fuse, Packing, Policy, Recompute, SyncMode};

/// Compiles a convolutional network into a plan of GPU memory, kernels and transfers.
///
/// `vdnnc model.onnx --policy conv` reads an ONNX model, builds the training (or inference)
/// step, decides which feature maps leave the device and when they come back, lays out
/// every byte, proves the plan with an independent checker and predicts its time on the
/// chosen device. `-o m.vplan` writes the plan; `vdnnc run` and `vdnnc train` execute plans
/// on the CPU or a CUDA GPU, `vdnnc bench` measures them.
///
/// Exit status: 0 success; 1 the model, the options or the memory budget; 2 a bug in vdnnc.
#[derive(Debug, Parser)]
#[command(name = "vdnnc", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Cli {
    /// Something other than compiling.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Compiling.
    #[command(flatten)]
    pub compile: CompileCommand,
}

/// `vdnnc MODEL.onnx …`.
#[derive(Debug, Args)]
pub struct CompileCommand {
    /// The ONNX model.
    #[arg(required = true, value_name = "MODEL.onnx")]
    pub model: Option<PathBuf>,
    /// What the plan is for.
    #[arg(long, value_name = "train|infer", default_value = "train", help_heading = "Compilation")]
    pub mode: Mode,
    /// Options shared with run and train.
    #[command(flatten)]
    pub shared: SharedArgs,
    /// Write the plan; `.vplan` is text, any other extension compact binary.
    #[arg(short = 'o', value_name = "FILE.vplan", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// Print this instead of the summary: the graph (see --stop-after), the plan, the
    /// predicted timeline as a Chrome/Perfetto trace, the graph in Graphviz form, or the layers
    /// of an inference that could be fused into pyramids, with the predicted gain.
    #[arg(long, value_name = "graph|plan|timeline|dot|pyramids", help_heading = "Output")]
    pub emit: Option<Emit>,
    /// With --emit pyramids: draw them, halos and all.
    #[arg(long, value_name = "FILE.svg", help_heading = "Output")]
    pub svg: Option<PathBuf>,
    /// With --emit graph or dot: the phase to print: imported, simplified, joint, selected,
    /// placed or scheduled.
    #[arg(long, value_name = "PHASE", help_heading = "Output")]
    pub stop_after: Option<Phase>,
    /// Write a self-contained page with the timeline and the memory map.
    #[arg(long, value_name = "FILE.html", help_heading = "Output")]
    pub report: Option<PathBuf>,
    /// Print one JSON object instead of the table.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// What `--emit` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Emit {
    /// The graph's text form.
    Graph,
    /// The plan's text form.
    Plan,
    /// Chrome/Perfetto JSON of the simulated step.
    Timeline,
    /// Graphviz.
    Dot,
    /// Layers that could be fused into pyramids.
    Pyramids,
}

/// Options every compilation takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Compilation")]
pub struct SharedArgs {
    /// Which feature maps are offloaded: none; baseline (network-wide allocation, the
    /// yardstick of vDNN); all (inputs of every conv, pool, BN and LRN of the feature
    /// extractor); conv (inputs of convolutions); dyn (the first that fits, fastest first).
    #[arg(long, value_name = "none|baseline|all|conv|dyn", default_value = "dyn")]
    pub policy: Policy,
    /// Convolution algorithms: memory (no workspace), performance (fastest), dynamic
    /// (fastest that lets the plan fit), or one for all of them, on a GPU by cuDNN's older API:
    /// only=implicit_gemm, implicit_precomp_gemm, gemm, fft, fft_tiling, winograd or
    /// winograd_nonfused.
    /// Default: dynamic, and memory where the CPU runs the plan, which needs no workspace.
    #[arg(long, value_name = "memory|performance|dynamic|only=NAME")]
    pub algo: Option<AlgoMode>,
    /// Batch size, for models whose batch dimension is symbolic. Default: the file's, else 1.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub batch: Option<u64>,
    /// Binds a symbolic dimension; may be repeated.
    #[arg(long = "dim", value_name = "NAME=N", value_parser = parse_dim)]
    pub dims: Vec<(String, u64)>,
    /// What to plan and predict for: a profile (h200, titan-x-maxwell, p100, v100, rtx-2080-ti,
    /// cpu, or a file as `vdnnc calibrate` writes it), or the GPU at hand as cuda:N or cuda:UUID,
    /// which is measured where it was not yet, and runs the plan.
    #[arg(long, value_name = "NAME|FILE.toml|cuda:N", default_value = "h200")]
    pub device: DeviceName,
    /// Hard limit on device memory, such as 12GiB: of all that the process takes on the device;
    /// where the CPU runs the plan, of the device arena. Default: the device's capacity.
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Bytes>,
    /// Hard limit on the pinned host memory that offloaded tensors go to. Default: none.
    #[arg(long, value_name = "SIZE")]
    pub host_memory: Option<Bytes>,
    /// When compute waits for copies: event (as late as the data allows) or layer (at the
    /// end of the layer, as in the vDNN paper).
    #[arg(long, value_name = "event|layer", default_value = "event")]
    pub sync: SyncMode,
    /// Leave zeros out of offloaded tensors: auto does it for those that a ReLU made and that are
    /// predicted to cross the link sooner for it. Exact.
    #[arg(long, value_name = "off|auto", default_value = "off")]
    pub pack_offload: Packing,
    /// Arithmetic of convolutions and matrix products; bf16: feature maps, too, are bf16, and
    /// weights, statistics and losses f32. Default: f32, and tf32 where a GPU runs the plan.
    #[arg(long, value_name = "f32|tf32|bf16", value_parser = parse_precision)]
    pub precision: Option<Precision>,
    /// Use only kernels whose results do not differ from run to run.
    #[arg(long)]
    pub deterministic: bool,
    /// Take the convolution algorithms of another plan of the same model and options.
    #[arg(long, value_name = "PLAN")]
    pub kernels_from: Option<PathBuf>,
    /// Measured kernel times, as `vdnnc profile` writes them, to plan and predict with.
    #[arg(long, value_name = "FILE")]
    pub times: Option<PathBuf>,
    /// What is fused: epilogue puts sums and ReLUs into the convolution or batch norm in
    /// front of them, and chains of elementwise ops into one kernel; pyramid, in inference,
    /// chains of convolutions and pools into one kernel where that is measured or predicted to
    /// be faster; all does both; auto both, but only pyramids that were measured, or are
    /// predicted by prices fitted to measurements. Default: off, and auto where a GPU runs the
    /// plan.
    #[arg(long, value_name = "off|auto|epilogue|pyramid|all")]
    pub fuse: Option<Fuse>,
    /// Feature maps that backward computes again instead of reading what was kept: cheap drops
    /// what passes over memory make (concats, ReLUs, batch norms, pools) where that lowers the
    /// peak, auto as little of it as lets the step fit --memory.
    #[arg(long, value_name = "off|cheap|auto", default_value = "off")]
    pub recompute: Recompute,
    /// Most convolutions of a pyramid.
    #[arg(long, value_name = "N", default_value_t = DEPTH, value_parser = parse_depth)]
    pub fuse_depth: usize,
    /// Run chains of layers slice by slice of the batch: on takes the smallest plan that is
    /// at most 5 % slower (with a margin for predictions), auto the fastest that fits --memory; a number cuts
    /// everything into so many. Training steps with batch norm cannot be cut.
    #[arg(long, value_name = "off|on|auto|N", default_value = "off")]
    pub micro_batch_regions: Slices,
    /// Compute streams of an inference: a number lets independent branches run side by side on
    /// up to so many, auto on as many as are predicted to pay, which is at small batches. Default:
    /// 1, and auto where a GPU runs the plan and nothing is cut in slices.
    #[arg(long, value_name = "auto|1..4")]
    pub streams: Option<Streams>,
    /// Keep weight gradients to the end of the step (implied by --save-gradients).
    #[arg(long)]
    pub keep_gradients: bool,
    /// Switch an elision off: waits (implied by other waits) or copies (already there).
    #[arg(long, value_name = "waits|copies")]
    pub no_elide: Vec<Elision>,
    /// Libraries and measured times.
    #[command(flatten)]
    pub gpu: GpuArgs,
    /// Micro-batches and workspaces.
    #[command(flatten)]
    pub micro: MicroArgs,
    /// Zeros.
    #[command(flatten)]
    pub sparse: SparseArgs,
}

/// Optional clean-ups of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Elision {
    /// Waits and events that happens-before already implies.
    Waits,
    /// Copies whose destination already holds the value.
    Copies,
}

/// Everything but compiling.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Execute a plan, or compile a model and execute it: inference, or training steps.
    Run(RunArgs),
    /// Train a model on a data set and write the trained ONNX.
    Train(TrainArgs),
    /// Measure steps of models on synthetic data: time, memory, transfers, overlap.
    Bench(BenchArgs),
    /// Tell what micro-batches gain for a list of single convolutions.
    BenchConv(BenchConvArgs),
    /// List the CUDA GPUs and the libraries in use, or say what is missing.
    Devices(DevicesArgs),
    /// Time every kernel that models need on the GPU at hand, into a table for --times.
    Profile(ProfileArgs),
    /// Measure the GPU at hand and write its device profile, for --device-profile.
    Calibrate(CalibrateArgs),
    /// Write a model of the zoo as ONNX, with seeded random weights.
    Zoo(ZooArgs),
    /// Prove a plan: bounds, races, contents, budget.
    Check(CheckArgs),
    /// Describe a model or a plan.
    Inspect(InspectArgs),
    /// Write a model with fewer weights: the others become zero.
    Prune(PruneArgs),
    /// Print published tables beside ours; exit 1 if a cell leaves its tolerance.
    Reproduce(ReproduceArgs),
}

/// `vdnnc run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// An ONNX model or a plan.
    #[arg(value_name = "MODEL|PLAN")]
    pub target: PathBuf,
    /// Inference, or training steps on --labels.
    #[arg(long, value_name = "train|infer", default_value = "infer")]
    pub mode: Mode,
    /// Input tensors: x.npy for the only input, x.npz by entry names, or NAME=x.npy.
    #[arg(long, value_name = "[NAME=]FILE", num_args = 1.., required_unless_present = "synthetic")]
    pub input: Vec<String>,
    /// Fill the inputs (and labels) with seeded random values instead of --input.
    #[arg(long, conflicts_with_all = ["input", "labels"])]
    pub synthetic: bool,
    /// Write the outputs, keyed by output name.
    #[arg(long, value_name = "y.npz")]
    pub output: Option<PathBuf>,
    /// Class labels for training steps.
    #[arg(long, value_name = "y.npy")]
    pub labels: Option<PathBuf>,
    /// Number of training steps.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub steps: u64,
    /// Optimizer settings.
    #[command(flatten)]
    pub sgd: SgdArgs,
    /// Write the final weights with running statistics, keyed by initializer name.
    #[arg(long, value_name = "w.safetensors")]
    pub save_weights: Option<PathBuf>,
    /// Write the last step's gradients, keyed by initializer name.
    #[arg(long, value_name = "g.safetensors")]
    pub save_gradients: Option<PathBuf>,
    /// Executor: cpu and cuda compute, sim predicts. Default: cpu, and cuda with --device
    /// cuda:N.
    #[arg(long, value_name = "cpu|cuda|sim")]
    pub backend: Option<BackendName>,
    /// Options of the CUDA backend.
    #[command(flatten)]
    pub cuda: CudaArgs,
    /// Run the naive graph interpreter instead of a plan.
    #[arg(long)]
    pub plain: bool,
    /// Worker threads of the CPU kernels; results do not depend on it.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Poison freed memory and the untouched arena with NaN.
    #[arg(long)]
    pub poison: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Where a plan was made for another GPU or cuDNN, plan its model anew for the GPU at hand,
    /// by the same policy and within the same memory.
    #[arg(long)]
    pub replan: bool,
    /// Compile options (ignored for a plan, but for --replan).
    #[command(flatten)]
    pub shared: SharedArgs,
}

/// SGD with momentum: v = momentum*v + (g + weight_decay*w); w -= lr*v.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Optimizer")]
pub struct SgdArgs {
    /// Learning rate.
    #[arg(long, default_value_t = 0.01)]
    pub lr: f32,
    /// Momentum.
    #[arg(long, default_value_t = 0.9)]
    pub momentum: f32,
    /// Weight decay.
    #[arg(long, default_value_t = 0.0)]
    pub weight_decay: f32,
}

/// `vdnnc train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The ONNX model to start from.
    #[arg(value_name = "MODEL.onnx")]
    pub model: PathBuf,
    /// A folder of IDX files (MNIST), or an .npz with an image and a label array.
    #[arg(long, value_name = "DIR|x.npz")]
    pub data: PathBuf,
    /// Passes over the training part.
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub epochs: u64,
    /// Last part of the data, by index, held out for validation.
    #[arg(long, default_value_t = 0.2, value_name = "FRACTION")]
    pub validation: f64,
    /// Seed of the shuffle.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Optimizer settings.
    #[command(flatten)]
    pub sgd: SgdArgs,
    /// Learning rate over the run: constant, or a half cosine down to zero.
    #[arg(long, default_value = "cosine")]
    pub schedule: LrSchedule,
    /// Subtracted from images after scaling bytes to 0..1.
    #[arg(long, default_value_t = 0.0)]
    pub mean: f32,
    /// Images are divided by this after the mean is subtracted.
    #[arg(long, default_value_t = 1.0)]
    pub std: f32,
    /// Write the trained model, names kept.
    #[arg(short = 'o', value_name = "trained.onnx")]
    pub output: Option<PathBuf>,
    /// Write a checkpoint here after every epoch.
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,
    /// Continue from the checkpoint folder.
    #[arg(long, requires = "checkpoint")]
    pub resume: bool,
    /// Executor. Default: cpu, and cuda with --device cuda:N.
    #[arg(long, value_name = "cpu|cuda")]
    pub backend: Option<ComputeBackend>,
    /// Options of the CUDA backend.
    #[command(flatten)]
    pub cuda: CudaArgs,
    /// Worker threads of the CPU kernels; results do not depend on it.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Poison freed memory and the untouched arena with NaN.
    #[arg(long)]
    pub poison: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Compile options.
    #[command(flatten)]
    pub shared: SharedArgs,
}

/// Learning-rate schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LrSchedule {
    /// `lr` throughout.
    Constant,
    /// `lr * (1 + cos(pi * t)) / 2`.
    Cosine,
}

impl RunArgs {
    /// The executor asked for.
    pub fn backend(&self) -> BackendName {
        let own = if self.shared.gpu_at_hand().is_some() { BackendName::Cuda } else { BackendName::Cpu };
        self.backend.unwrap_or(own)
    }
}

impl TrainArgs {
    /// The executor asked for.
    pub fn backend(&self) -> ComputeBackend {
        let own =
            if self.shared.gpu_at_hand().is_some() { ComputeBackend::Cuda } else { ComputeBackend::Cpu };
        self.backend.unwrap_or(own)
    }
}
