//! Options of micro-batches and workspaces.

use super::SharedArgs;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use vdnn_ir::Bytes;
use vdnn_passes::{BatchSizes, Workspace};

/// How convolutions may be divided and what workspace they may have.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Micro-batches")]
pub struct MicroArgs {
    /// Sizes of micro-batches that convolutions may be divided into, so that a faster
    /// algorithm fits the workspace there is; the batch itself always is one.
    #[arg(long, value_name = "undivided|power-of-two|all", default_value = "undivided")]
    pub micro_batch: BatchSizes,
    /// Largest workspace of a convolution: planned (what the memory plan leaves at that
    /// moment).
    #[arg(long, value_name = "planned", default_value = "planned")]
    pub workspace: WorkspaceMode,
    /// Largest workspace of each convolution, such as 64MiB, even where the plan has more.
    #[arg(long, value_name = "SIZE")]
    pub workspace_limit: Option<Bytes>,
    /// Workspace of all convolutions together, such as 512MiB, divided over them.
    #[arg(long, value_name = "SIZE", conflicts_with = "workspace_limit")]
    pub workspace_total: Option<Bytes>,
    /// Before a plan runs, run each of its divided convolutions alone on random operands, also
    /// in one piece, and fail if the two differ by more than their arithmetic explains.
    #[arg(long)]
    pub verify_equivalence: bool,
}

/// What `--workspace` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WorkspaceMode {
    /// Whatever the memory plan leaves.
    Planned,
}

impl MicroArgs {
    /// The bound of the workspaces.
    pub fn bound(&self) -> Workspace {
        let limit = self.workspace_limit.map(Workspace::Limit);
        limit.or(self.workspace_total.map(Workspace::Total)).unwrap_or_default()
    }
}

/// `vdnnc bench-conv`.
#[derive(Debug, Args)]
pub struct BenchConvArgs {
    /// A list of convolutions: columns n, c, k, h, w, filter_h, filter_w and, where they are
    /// not 0 or 1, pad_h, pad_w, stride_h, stride_w, dilation_h, dilation_w, groups.
    #[arg(value_name = "LIST.csv")]
    pub list: PathBuf,
    /// Only layers with this in the column `set`; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub set: Vec<String>,
    /// Only filters of this height and width, such as 3x3; may be repeated.
    #[arg(long, value_name = "RxS")]
    pub filter: Vec<String>,
    /// Only this direction: fprop, dgrad or wgrad; may be repeated.
    #[arg(long, value_name = "fprop|dgrad|wgrad", value_parser = ["fprop", "dgrad", "wgrad"])]
    pub direction: Vec<String>,
    /// Compare packed weights with dense ones instead, forward, with so many percent of zeros.
    #[arg(long, value_name = "PERCENT,…", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(0..=100))]
    pub sparsity: Vec<u64>,
    /// With --sparsity: weights packed row by row, in blocks of 16 filters by 16 channels, or, with 50
    /// percent, two of every four channels.
    #[arg(long, value_name = "magnitude|block|2:4", value_parser = ["magnitude", "block", "2:4"], default_value = "magnitude", requires = "sparsity")]
    pub method: String,
    /// Limits of the workspace.
    #[arg(long, value_name = "SIZE,…", value_delimiter = ',', default_value = "64MiB")]
    pub limits: Vec<Bytes>,
    /// Compare nothing: only the whole batch, where otherwise power-of-two is the default.
    #[arg(long, conflicts_with = "micro_batch")]
    pub undivided: bool,
    /// Try only the few engines that the library recommends first.
    #[arg(long)]
    pub quick: bool,
    /// Also run what was chosen on the GPU of --device, and compare these times.
    #[arg(long)]
    pub run: bool,
    /// Write a table.
    #[arg(long, value_name = "FILE.csv")]
    pub csv: Option<PathBuf>,
    /// Write a picture of the gains.
    #[arg(long, value_name = "FILE.svg")]
    pub svg: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Device, times, precision and sizes; options of whole networks have no meaning here.
    #[command(flatten)]
    pub shared: SharedArgs,
}
