//! Options of the commands that look at files or make them: zoo, check, inspect.

use super::parse_dim;
use clap::Args;
use std::path::PathBuf;

/// `vdnnc zoo`.
#[derive(Debug, Args)]
pub struct ZooArgs {
    /// alexnet, alexnet-seed, overfeat, overfeat-fast, googlenet, googlenet-bn,
    /// vgg11/13/16/19, vgg116/216/316/416, resnet18/34/50/101/152, densenet121/161/169/201
    /// or lenet.
    pub name: String,
    /// Fixes the batch dimension; symbolic `N` if absent.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub batch: Option<u64>,
    /// Number of classes.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u64).range(1..))]
    pub classes: Option<u64>,
    /// Seed of the He-initialised weights.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Where to write it.
    #[arg(short = 'o', value_name = "m.onnx")]
    pub output: PathBuf,
}

/// `vdnnc check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The plan.
    pub plan: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `vdnnc inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// An ONNX model or a plan.
    #[arg(value_name = "MODEL|PLAN")]
    pub target: PathBuf,
    /// Batch size for a symbolic batch dimension.
    #[arg(long, value_name = "N")]
    pub batch: Option<u64>,
    /// Binds a symbolic dimension; may be repeated.
    #[arg(long = "dim", value_name = "NAME=N", value_parser = parse_dim)]
    pub dims: Vec<(String, u64)>,
    /// Tell where the weights of a model are zero, and what follows from that.
    #[arg(long)]
    pub sparsity: bool,
    /// With --sparsity: factors of batch norms below this count as zero in front of a ReLU.
    #[arg(long, value_name = "X", default_value_t = 1e-6, value_parser = super::parse_tolerance)]
    pub dead_tolerance: f32,
    /// With --sparsity: run the model on these images on the CPU and tell what share of every
    /// ReLU's results is zero, and how small zero-value compression makes them.
    #[arg(long, value_name = "x.npy|x.npz", requires = "sparsity")]
    pub input: Option<PathBuf>,
    /// With --sparsity: draw it.
    #[arg(long, value_name = "FILE.svg", requires = "sparsity")]
    pub svg: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}
