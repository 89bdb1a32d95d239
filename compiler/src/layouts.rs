//! Which layout a plan's convolutions have: the one that the device's dense kernels are fastest in,
//! or, where weights are so sparse that most of them are packed, the row-major one that the fastest
//! packed kernels read.

use crate::measuring;
use crate::options::CompileOptions;
use crate::slicing;
use crate::timing::Timings;
use vdnn_cost::{CostModel, Precision};
use vdnn_ir::{Graph, Layout, Mode, Op};
use vdnn_passes::PassError;
use vdnn_passes::sparsify::SparseMode;

/// Share of weights that are not zero, of one parameter at least, from which on down the row-major
/// layout is tried: packed kernels pass dense TF32 ones on some layers at 0.1.
const SPARSE: f64 = 0.12;

/// In how many hundredths of the time a plan in the other layout must run to be taken.
pub const PAYS: u64 = 97;

/// The cost model of the other layout, if weights are so sparse that it is worth a thought.
pub fn row_major(options: &CompileOptions, cost: &CostModel) -> Option<CostModel> {
    let sparse = &options.sparse;
    let worth = options.mode == Mode::Infer
        && cost.layout() == Layout::ChannelsLast
        && cost.precision() == Precision::Tf32
        && sparse.mode == SparseMode::Auto
        && !sparse.on_host
        && sparse.facts.are_sparse(SPARSE);
    worth.then(|| cost.clone().in_layout(Layout::RowMajor))
}

/// As [`row_major`], and only if every convolution of the graph that it makes was measured:
/// predictions are of the other layout.
///
/// # Errors
/// Those of the passes.
pub fn measured_row_major(
    imported: &Graph,
    options: &CompileOptions,
    cost: &CostModel,
) -> Result<Option<CostModel>, PassError> {
    let Some(rows) = row_major(options, cost) else { return Ok(None) };
    let joint = slicing::joint(imported, options, None, &rows, &mut Timings::default())?;
    let known = measuring::kernels(&joint).iter().all(|kernel| {
        let (inputs, outputs) = kernel.types();
        let timed = kernel.op.is_conv() || matches!(kernel.op, Op::SparseConv { .. });
        !timed || rows.is_measured(&kernel.op, &inputs, &outputs)
    });
    Ok(known.then_some(rows))
}
