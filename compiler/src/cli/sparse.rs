//! Options about zeros.

use crate::sparsity::mask::Method;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use vdnn_passes::sparsify::{Sparse, SparseMode};

/// What is done about zeros in the weights.
#[derive(Clone, Copy, Debug, Args)]
pub struct SparseArgs {
    /// Zeros in the weights of an inference: auto leaves out channels that are not needed and packs
    /// weights that are sparse enough: where the CPU runs the plan, or, on a GPU, where packed ones
    /// were measured to be faster, and there leaves out products with zeros of inputs where that was;
    /// force=channels leaves out every channel it can, gathering the rest; force=csr packs all
    /// weights row by row, force=block in blocks of 16 filters by 16 channels, which tensor cores
    /// multiply, force=two-four those of which two of four are zero, in bf16; force=activations leaves out products with zeros that a ReLU made in all convolutions
    /// but 1x1 ones, and does nothing about weights.
    #[arg(long, value_name = "off|auto|force=KIND", default_value = "auto")]
    pub sparse: SparseMode,
    /// Batch norms whose factor is smaller than this and whose shift is not larger count as dead
    /// in front of a ReLU. 0 takes those only whose results are zero.
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = parse_tolerance)]
    pub dead_tolerance: f32,
    /// In training, keep the weights that are zero at zero.
    #[arg(long)]
    pub keep_zeros: bool,
}

impl SparseArgs {
    /// The choices, without knowledge of weights.
    pub fn sparse(&self) -> Sparse {
        Sparse {
            mode: self.sparse,
            dead_tolerance: self.dead_tolerance,
            keep_zeros: self.keep_zeros,
            ..Sparse::default()
        }
    }
}

/// Among which weights the smallest are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scope {
    /// Those of each layer.
    Layer,
    /// Those of all chosen layers.
    Global,
}

/// `vdnnc prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// The ONNX model.
    #[arg(value_name = "MODEL.onnx")]
    pub model: PathBuf,
    /// magnitude: the smallest weights; 2:4: two of every four channels; block: whole blocks of
    /// filters and channels; channel: whole filters, but not those that make the outputs.
    #[arg(long, value_name = "magnitude|2:4|block|channel", default_value = "magnitude")]
    pub method: Method,
    /// Share of each layer's weights that becomes zero.
    #[arg(long, value_name = "S", value_parser = parse_share)]
    pub sparsity: Option<f64>,
    /// With --method magnitude: the smallest weights of each layer, or of all of them together.
    #[arg(long, value_enum, default_value_t = Scope::Layer)]
    pub scope: Scope,
    /// Filters and channels of a block. Default: 16x16.
    #[arg(long, value_name = "MxC", value_parser = parse_block)]
    pub block: Option<[usize; 2]>,
    /// Only layers or weights whose name contains one of these.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub layers: Vec<String>,
    /// Not those whose name contains one of these.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub keep: Vec<String>,
    /// Binds a symbolic dimension; may be repeated.
    #[arg(long = "dim", value_name = "NAME=N", value_parser = super::parse_dim)]
    pub dims: Vec<(String, u64)>,
    /// Then train it on this data as `vdnnc train --keep-zeros` does.
    #[arg(long, value_name = "DIR|x.npz")]
    pub finetune: Option<PathBuf>,
    /// Options of that training, such as "--epochs 3 --lr 0.02".
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true)]
    pub with: Vec<String>,
    /// Write weights as sparse initializers (SparseTensorProto) where that makes them smaller.
    #[arg(long)]
    pub sparse_initializers: bool,
    /// Print one JSON object (two with --finetune).
    #[arg(long)]
    pub json: bool,
    /// Where to write the pruned model.
    #[arg(short = 'o', value_name = "pruned.onnx")]
    pub output: PathBuf,
}

fn parse_share(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|s: &f64| (0.0..=1.0).contains(s));
    value.ok_or_else(|| format!("`{text}` is not a share from 0 to 1"))
}

fn parse_block(text: &str) -> Result<[usize; 2], String> {
    let number = |s: &str| s.parse().ok().filter(|&n: &usize| n > 0);
    let block = text.split_once('x').and_then(|(m, c)| Some([number(m)?, number(c)?]));
    block.ok_or_else(|| format!("`{text}` is not a block such as 16x16"))
}

pub(crate) fn parse_tolerance(text: &str) -> Result<f32, String> {
    let value = text.parse().ok().filter(|t: &f32| t.is_finite() && *t >= 0.0);
    value.ok_or_else(|| format!("`{text}` is not a number from 0 on"))
}
