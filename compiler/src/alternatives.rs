//! Plans that are compiled beside the first one, because what is best for each layer need not be best for
//! all: where weights are so sparse that most of them are packed, a plan in the row-major layout that the
//! fastest packed kernels read, instead of that of the device's dense kernels; and where anything was done
//! about zeros, one that lets them be: a layer with a kernel of its own is in no pyramid, and channels that are
//! left may be of an unhandy number.

use crate::measuring::{self, Kernel};
use crate::options::CompileOptions;
use crate::slicing::{self, Slices};
use crate::timing::Timings;
use vdnn_cost::measured::NONDETERMINISTIC;
use vdnn_cost::{CostModel, MeasuredRow, Precision};
use vdnn_ir::{Graph, Layout, Mode, Op};
use vdnn_passes::PassError;
use vdnn_passes::sparsify::{Sparse, SparseMode};

/// Share of all weights that are not zero up to which the row-major layout is tried: packed kernels
/// pass dense TF32 ones on some layers at 0.1, and the first and last layers are often left dense.
const SPARSE: f64 = 0.2;

/// In how many hundredths of the time a plan in the other layout must run to be taken.
const PAYS: u64 = 97;

/// Options and a cost model to try, and in how many hundredths of the time a plan with them must run
/// to be taken.
#[derive(Debug)]
pub struct Alternative {
    /// What to compile with.
    pub options: CompileOptions,
    /// What it is to know of times.
    pub cost: CostModel,
    /// Hundredths.
    pub pays: u64,
}

/// What is to be tried beside a plan of this graph.
///
/// # Errors
/// Those of the passes.
pub fn of(
    imported: &Graph,
    options: &CompileOptions,
    cost: &CostModel,
) -> Result<Vec<Alternative>, PassError> {
    let rows = measured_row_major(imported, options, cost)?;
    let rows = rows.map(|(options, cost)| Alternative { options, cost, pays: PAYS });
    let dense = dense(options).map(|options| Alternative { options, cost: cost.clone(), pays: 100 });
    Ok(rows.into_iter().chain(dense).collect())
}

/// True if another plan than the first may be taken.
pub fn may_differ(options: &CompileOptions, cost: &CostModel) -> bool {
    row_major(options, cost).is_some() || dense(options).is_some()
}

/// The options without anything done about zeros, if they let it be chosen.
pub fn dense(options: &CompileOptions) -> Option<CompileOptions> {
    let sparse = &options.sparse;
    let free = options.mode == Mode::Infer && sparse.mode == SparseMode::Auto && !sparse.on_host;
    let sparse = Sparse { mode: SparseMode::Off, ..sparse.clone() };
    free.then(|| CompileOptions { sparse, ..options.clone() })
}

/// True if something was done about zeros by the passes that these are the counts of.
pub fn is_sparse(timings: &Timings) -> bool {
    let did = |pass: &str, what: &str| {
        let rows = timings.rows.iter().filter(|row| row.name == pass);
        rows.filter_map(|row| row.stats.get(what)).any(|&n| n > 0)
    };
    did("sparsify", "removed_channels")
        || did("pack-weights", "packed")
        || did("skip-zero-inputs", "skipping")
}

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
fn measured_row_major(
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
