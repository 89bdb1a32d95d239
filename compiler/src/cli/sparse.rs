//! Options about zeros.

use clap::Args;
use vdnn_passes::sparsify::{Sparse, SparseMode};

/// What is done about zeros in the weights.
#[derive(Clone, Copy, Debug, Args)]
pub struct SparseArgs {
    /// Zeros in the weights of an inference: auto leaves out channels that are not needed and,
    /// where the CPU runs the plan, packs weights that are sparse enough; force=channels leaves
    /// out every channel it can, gathering the rest; force=csr packs all weights.
    #[arg(long, value_name = "off|auto|force=KIND", default_value = "auto")]
    pub sparse: SparseMode,
    /// Batch norms whose factor is smaller than this and whose shift is not larger count as dead
    /// in front of a ReLU. 0 takes those only whose results are zero.
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = parse_tolerance)]
    pub dead_tolerance: f32,
}

impl SparseArgs {
    /// The choices, without knowledge of weights.
    pub fn sparse(&self) -> Sparse {
        Sparse { mode: self.sparse, dead_tolerance: self.dead_tolerance, ..Sparse::default() }
    }
}

fn parse_tolerance(text: &str) -> Result<f32, String> {
    let value = text.parse().ok().filter(|t: &f32| t.is_finite() && *t >= 0.0);
    value.ok_or_else(|| format!("`{text}` is not a number from 0 on"))
}
