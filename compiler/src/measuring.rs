//! Which kernels a model needs, and filling a table with their times: from what is known, and
//! from whoever can time the rest.

use crate::alternatives;
use crate::error::Failure;
use crate::options::CompileOptions;
use crate::progress::Progress;
use crate::slicing::{self, Slices};
use crate::timing::Timings;
use vdnn_cost::{CostModel, Measured, MeasuredOn, MeasuredRow, Precision};
use vdnn_ir::{Graph, Mode, Op, Stage, TensorType, ValueId};
use vdnn_passes::Recompute;
use vdnn_passes::fuse_pyramids::{Candidate, candidates};
use vdnn_passes::fuse_stages;
use vdnn_passes::sparsify::{Sparse, SparseMode, skipping_kernels};

/// Share of weights other than zero up to which packed ones are worth timing.
const PACKED_AT_MOST: f64 = 0.5;
/// Configurations of a pyramid that are measured.
pub const WAYS: usize = 8;
/// The same where a plan is waiting for it.
pub const FEW_WAYS: usize = 2;

/// Operands of one kernel that are all shown.
const MANY: usize = 8;

/// One kernel to time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What is computed.
    pub op: Op,
    /// Types of the operands.
    pub inputs: Vec<TensorType>,
    /// Types of the results.
    pub outputs: Vec<TensorType>,
}

impl Kernel {
    /// The types as tables take them.
    pub fn types(&self) -> (Vec<&TensorType>, Vec<&TensorType>) {
        (self.inputs.iter().collect(), self.outputs.iter().collect())
    }

    /// For people: the op's name and the operands; of long lists, which updates of many
    /// parameters have, only the first.
    pub fn describe(&self) -> String {
        let list = |types: &[TensorType]| {
            let shown = if types.len() > MANY { 3 } else { types.len() };
            let mut text: Vec<String> = types[..shown].iter().map(ToString::to_string).collect();
            if shown < types.len() {
                text.push(format!("and {} more", types.len() - shown));
            }
            text.join(" ")
        };
        let name = match &self.op {
            Op::Pyramid(pyramid) => {
                format!("pyramid of {} layers as {}", pyramid.layers.len(), pyramid.config)
            }
            op => op.name(),
        };
        format!("{name} {} -> {}", list(&self.inputs), list(&self.outputs))
    }
}

/// Every kernel of a joint graph, each once, in the order of the graph.
pub fn kernels(graph: &Graph) -> Vec<Kernel> {
    let mut all: Vec<Kernel> = Vec::new();
    for (_, node) in graph.nodes() {
        if node.stage == Stage::Setup || node.op.is_transfer() || !node.op.views().is_empty() {
            continue;
        }
        let types = |list: &[ValueId]| list.iter().map(|&v| graph.ty(v).clone()).collect();
        let kernel =
            Kernel { op: node.op.clone(), inputs: types(&node.inputs), outputs: types(&node.outputs) };
        if !all.contains(&kernel) {
            all.push(kernel);
        }
    }
    all
}

/// Every kernel that compiling an imported graph with these options needs, its layers by
/// themselves: those of pyramids are [`pyramids_of`]. They depend on the cost model by the layout
/// it wants, and, where the step is to recompute or to be cut in regions, by what it finds best.
///
/// # Errors
/// Those of the passes.
pub fn kernels_of(
    imported: &Graph,
    options: &CompileOptions,
    cost: &CostModel,
) -> Result<Vec<Kernel>, Failure> {
    let options = &CompileOptions { fuse: options.fuse.without_pyramids(), ..options.clone() };
    let batch = slicing::batch_of(imported);
    let ways = slicing::candidates(imported, batch, options, cost)?;
    let variants = variants(options, cost);
    let mut all = Vec::new();
    for way in std::iter::once(None).chain(ways.into_iter().map(Some)) {
        for (options, cost) in &variants {
            let whole = way.is_none();
            let joint = match slicing::joint(imported, options, way.clone(), cost, &mut Timings::default()) {
                Ok(joint) => joint,
                // What cannot be cut needs no kernels for it.
                Err(_) if !whole => break,
                Err(e) => return Err(e.into()),
            };
            let mut found = kernels(&joint);
            // Zeros of inputs are judged by the times of both kernels; in slices, too.
            if judges_zeros(options) && options.precision != Precision::Bf16 {
                let kernel = |(op, inputs, y)| Kernel { op, inputs, outputs: vec![y] };
                found.extend(skipping_kernels(&joint, cost).into_iter().map(kernel));
            }
            for kernel in found {
                if !all.contains(&kernel) {
                    all.push(kernel);
                }
            }
        }
    }
    Ok(all)
}

/// True if times decide what is done about zeros.
fn judges_zeros(options: &CompileOptions) -> bool {
    options.mode == Mode::Infer && options.sparse.mode == SparseMode::Auto && !options.sparse.on_host
}

/// The options, and those that a compilation with them tries or compares with, each with what its
/// passes are to know of times.
fn variants(options: &CompileOptions, cost: &CostModel) -> Vec<(CompileOptions, CostModel)> {
    let mut all = variants_in(options, cost);
    if let Some(other) = alternatives::row_major(options, cost) {
        all.extend(variants_in(options, &other));
    }
    all
}

/// Those in the layout of `cost`.
fn variants_in(options: &CompileOptions, cost: &CostModel) -> Vec<(CompileOptions, CostModel)> {
    let mut all = vec![(options.clone(), cost.clone())];
    // What is recomputed so that the step fits may not do.
    if options.recompute == Recompute::Auto {
        all.push((CompileOptions { recompute: Recompute::Cheap, ..options.clone() }, cost.clone()));
    }
    if !judges_zeros(options) {
        return all;
    }
    if let Some(dense) = alternatives::dense(options).filter(|_| !options.sparse.facts.is_empty()) {
        all.push((dense, cost.clone()));
    }
    // What is judged against dense kernels needs their times: without times nothing takes their place.
    if !cost.measured().is_empty() {
        let none = Measured::new(cost.measured().on.clone());
        all.push((options.clone(), cost.clone().with_measured(none)));
    }
    let sparse = &options.sparse;
    let forms = [
        (SparseMode::Csr, sparse.facts.are_sparse(PACKED_AT_MOST)),
        (SparseMode::Block, sparse.facts.are_in_blocks(PACKED_AT_MOST)),
        (SparseMode::TwoFour, sparse.facts.are_two_of_four()),
    ];
    for (mode, _) in forms.into_iter().filter(|&(_, worth)| worth) {
        let forced = Sparse { mode, ..sparse.clone() };
        all.push((CompileOptions { sparse: forced, ..options.clone() }, cost.clone()));
    }
    all
}

/// The pyramids that these options let a plan choose among, without configurations; none if they
/// allow none. Chains are those of the whole batch; stages, where the batch is to be cut, of slices,
/// too.
///
/// # Errors
/// Those of the passes.
pub fn pyramids_of(
    imported: &Graph,
    options: &CompileOptions,
    cost: &CostModel,
) -> Result<Vec<Candidate>, Failure> {
    if options.mode != Mode::Infer || options.fuse.pyramids().is_none() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    let sizes = slicing::sizes(slicing::batch_of(imported), options);
    for options in std::iter::once(options.clone()).chain(alternatives::dense(options)) {
        let joint = slicing::layers(imported, &options, cost)?;
        let chains = candidates(&joint, cost, options.fuse_depth);
        let stages = match options.slices {
            Slices::Off => Vec::new(),
            _ => fuse_stages::candidates(&joint, cost, &sizes),
        };
        for candidate in chains.into_iter().chain(stages) {
            if !found.contains(&candidate) {
                found.push(candidate);
            }
        }
    }
    Ok(found)
}

/// The configurations of pyramids that are worth measuring, at most `most` of each.
pub fn ways(pyramids: &[Candidate], most: usize, cost: &CostModel) -> Vec<Kernel> {
    let of = |c: &Candidate| {
        let kernel = |op| Kernel { op, inputs: c.inputs.clone(), outputs: vec![c.output.clone()] };
        c.ways(most, cost).into_iter().map(kernel).collect::<Vec<_>>()
    };
    pyramids.iter().flat_map(of).collect()
}

/// What the tables have of pyramids, of all configurations; the first table that has a row wins.
pub fn known(
    pyramids: &[Candidate],
    precision: Precision,
    tables: &[&Measured],
    on: &MeasuredOn,
) -> Measured {
    let mut found = Measured::new(on.clone());
    for Candidate { pyramid, inputs, output, .. } in pyramids {
        let inputs: Vec<&TensorType> = inputs.iter().collect();
        for table in tables.iter().rev() {
            for (config, row) in table.pyramids(pyramid, &inputs, &[output], precision) {
                let op = Op::Pyramid(pyramid.with_config(config));
                found.insert(&op, &inputs, &[output], precision, row.clone());
            }
        }
    }
    found
}

/// Why a kernel was not timed.
#[derive(Debug)]
pub enum TimerError {
    /// There is none, or not at this size; others can still be timed.
    Kernel(String),
    /// Nothing more can be timed.
    Device(Failure),
}

/// Who can time kernels: a GPU, or in tests something that makes times up.
pub trait KernelTimer {
    /// One row per way to run the kernel, also of ways that turn out not to run.
    ///
    /// # Errors
    /// See [`TimerError`].
    fn time(&mut self, kernel: &Kernel, precision: Precision) -> Result<Vec<MeasuredRow>, TimerError>;
}

/// What filling came to.
#[derive(Debug)]
pub struct Filled {
    /// The rows of the kernels, and no others.
    pub table: Measured,
    /// Kernels that were timed now.
    pub timed: usize,
    /// What could not be timed, and why.
    pub skipped: Vec<String>,
}

/// Gives every kernel its rows: those of the first table in `known` that has some, else of
/// the timer; new ones are handed to `keep` at once, so that an interrupted run can be taken
/// up again.
///
/// # Errors
/// If nothing more can be timed, or `keep` fails.
pub fn fill(
    (kernels, precision): (&[Kernel], Precision),
    known: &[&Measured],
    on: &MeasuredOn,
    timer: &mut dyn KernelTimer,
    keep: &mut dyn FnMut(&Measured) -> Result<(), Failure>,
    progress: &Progress,
) -> Result<Filled, Failure> {
    let mut filled = Filled { table: Measured::new(on.clone()), timed: 0, skipped: Vec::new() };
    for kernel in kernels {
        let (inputs, outputs) = kernel.types();
        let found = known.iter().find_map(|t| t.rows(&kernel.op, &inputs, &outputs, precision));
        let (rows, new) = match found {
            Some(rows) => (rows.to_vec(), false),
            None => match timer.time(kernel, precision) {
                Ok(rows) => (rows, true),
                Err(TimerError::Kernel(why)) => {
                    filled.skipped.push(format!("{}: {why}", kernel.describe()));
                    progress.tick(kernel.op.name());
                    continue;
                }
                Err(TimerError::Device(failure)) => return Err(failure),
            },
        };
        let mut one = Measured::new(on.clone());
        for row in rows {
            one.insert(&kernel.op, &inputs, &outputs, precision, row);
        }
        if new {
            filled.timed += 1;
            keep(&one)?;
        }
        filled.table.merge(&one);
        progress.tick(kernel.op.name());
    }
    Ok(filled)
}
