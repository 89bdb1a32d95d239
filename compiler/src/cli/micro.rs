//! Options of micro-batches and workspaces.

use clap::{Args, ValueEnum};
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
