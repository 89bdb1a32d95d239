//! Which layout a plan's convolutions have: the one that the device's dense kernels are fastest in,
//! or, where weights are so sparse that most of them are packed, the row-major one that the fastest
//! packed kernels read.

use crate::measuring::{self, Kernel};
use crate::options::CompileOptions;
use crate::slicing::{self, Slices};
use crate::timing::Timings;
use vdnn_cost::measured::NONDETERMINISTIC;
use vdnn_cost::{CostModel, MeasuredRow, Precision};
use vdnn_ir::{Graph, Layout, Mode, Op};
use vdnn_passes::PassError;
use vdnn_passes::sparsify::SparseMode;

/// Share of all weights that are not zero up to which the row-major layout is tried: packed kernels
/// pass dense TF32 ones on some layers at 0.1, and the first and last layers are often left dense.
const SPARSE: f64 = 0.2;

/// In how many hundredths of the time a plan in the other layout must run to be taken.
pub const PAYS: u64 = 97;

/// The cost model of the other layout, if weights are so sparse that it is worth a thought.
pub fn row_major(options: &CompileOptions, cost: &CostModel) -> Option<CostModel> {
    let sparse = &options.sparse;
    let worth = options.mode == Mode::Infer
        && options.slices == Slices::Off
        && cost.layout() == Layout::ChannelsLast
        && cost.precision() == Precision::Tf32
        && sparse.mode == SparseMode::Auto
        && !sparse.on_host
        && sparse.facts.density().is_some_and(|share| share <= SPARSE);
    worth.then(|| cost.clone().in_layout(Layout::RowMajor))
}

/// As [`row_major`], with options without pyramids, which are channels-last, and only if the graph
/// that it makes has packed weights and every convolution of it was measured: predictions are of the
/// other layout.
///
/// # Errors
/// Those of the passes.
pub fn measured_row_major(
    imported: &Graph,
    options: &CompileOptions,
    cost: &CostModel,
) -> Result<Option<(CompileOptions, CostModel)>, PassError> {
    let Some(rows) = row_major(options, cost) else { return Ok(None) };
    let options = CompileOptions { fuse: options.fuse.without_pyramids(), ..options.clone() };
    let joint = slicing::joint(imported, &options, None, &rows, &mut Timings::default())?;
    let kernels = measuring::kernels(&joint);
    let is_packed = |kernel: &Kernel| matches!(kernel.op, Op::SparseConv { .. });
    let known = kernels.iter().filter(|k| k.op.is_conv() || is_packed(k)).all(|kernel| {
        let (inputs, outputs) = kernel.types();
        let found = rows.measured().rows(&kernel.op, &inputs, &outputs, rows.precision());
        let runs = |r: &MeasuredRow| r.time.is_some() && !(rows.deterministic() && r.has(NONDETERMINISTIC));
        found.is_some_and(|found| found.iter().any(runs))
    });
    Ok((known && kernels.iter().any(is_packed)).then_some((options, rows)))
}
