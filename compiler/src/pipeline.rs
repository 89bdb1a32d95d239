//! The pipeline: every pass of every phase, in order, with the reason for the order.
//!
//! ```text
//! Imported --simplify--> Simplified --nest-concats, autodiff, [keep-zeros] | [sparsify],
//!   fold-batch-norm, mark-setup-->
//!   [mixed-precision, fuse-epilogues, join-batch-norms, pack-weights, skip-zero-inputs,
//!    channels-last, fuse-pyramids, [fuse-stages,] fuse-elementwise, slice-batch, recompute, group-updates] Joint
//!   --select-conv--> Selected --insert-offload--> Placed --schedule, inplace--> Scheduled
//!   --memory layout, lower, [spread,] elide--> Plan --check--> checked Plan
//! ```
//! The driver repeats the part after `Joint` when it searches (policy `dyn`, algorithm mode
//! `dynamic`); the part before runs once.

use crate::timing::Timings;
use std::collections::BTreeMap;
use std::rc::Rc;
use vdnn_cost::CostModel;
use vdnn_ir::{Bytes, ConvSchedule, Graph, Layout, Mode, NodeId, Phase, Precision};
use vdnn_passes::autodiff::Autodiff;
use vdnn_passes::channels_last::ChannelsLast;
use vdnn_passes::fuse::FuseEpilogues;
use vdnn_passes::fuse_elementwise::FuseElementwise;
use vdnn_passes::fuse_pyramids::{DEPTH, FusePyramids};
use vdnn_passes::fuse_stages::FuseStages;
use vdnn_passes::group_updates::GroupUpdates;
use vdnn_passes::inplace::Inplace;
use vdnn_passes::join_batch_norms::JoinBatchNorms;
use vdnn_passes::micro_batch::Menu;
use vdnn_passes::mixed_precision::MixedPrecision;
use vdnn_passes::nest_concats::NestConcats;
use vdnn_passes::offload::InsertOffload;
use vdnn_passes::recompute::Recompute;
use vdnn_passes::schedule::Schedule;
use vdnn_passes::select_conv::SelectConv;
use vdnn_passes::simplify::{FoldBatchNorm, MarkSetup, Simplify};
use vdnn_passes::slice_batch::SliceBatch;
use vdnn_passes::sparsify::{KeepZeros, PackWeights, SkipZeroInputs, Sparse, Sparsify};
use vdnn_passes::{AlgoMode, Fuse, Packing, PassCtx, PassError, Policy, SyncMode, Workspace};

/// What is fused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fusion {
    /// The kinds.
    pub kinds: Fuse,
    /// Most convolutions of a pyramid.
    pub depth: usize,
    /// See [`FusePyramids::footprint`].
    pub footprint: Option<Bytes>,
    /// Elementwise chains, too.
    pub elementwise: bool,
}

impl From<Fuse> for Fusion {
    fn from(kinds: Fuse) -> Self {
        Self { kinds, depth: DEPTH, footprint: None, elementwise: kinds.epilogues() }
    }
}

/// Passes up to the joint graph of the whole batch.
///
/// # Errors
/// Those of the passes.
pub fn to_joint(
    graph: &mut Graph,
    mode: Mode,
    keep_gradients: bool,
    fuse: impl Into<Fusion>,
    cost: &CostModel,
    timings: &mut Timings,
) -> Result<(), PassError> {
    let fuse = fuse.into();
    let options = Joint {
        mode,
        keep_gradients,
        fuse,
        stages: false,
        slices: None,
        recompute: None,
        sparse: Sparse::default(),
    };
    to_joint_by(graph, options, cost, timings)
}

/// What the joint graph depends on.
#[derive(Clone, Debug)]
pub struct Joint {
    /// Inference or training.
    pub mode: Mode,
    /// Weight gradients are outputs.
    pub keep_gradients: bool,
    /// What is fused.
    pub fuse: Fusion,
    /// In inference stages of blocks become one kernel where pyramids are fused. Meant for graphs
    /// whose batch is cut or to be cut: a stage is itself a region, in slices of one image. Without
    /// regions every layer takes the whole batch, which is what regions are compared with.
    pub stages: bool,
    /// How the batch is cut.
    pub slices: Option<SliceBatch>,
    /// What backward computes again.
    pub recompute: Option<Recompute>,
    /// What is done about zeros, and where the weights have them.
    pub sparse: Sparse,
}

/// Passes up to the joint graph. Independent of policy and algorithms, and of the budget unless
/// `options` say how much is to be recomputed to fit it.
///
/// # Errors
/// Those of the passes.
pub fn to_joint_by(
    graph: &mut Graph,
    options: Joint,
    cost: &CostModel,
    timings: &mut Timings,
) -> Result<(), PassError> {
    let Joint { mode, keep_gradients, fuse, stages, slices, recompute, sparse } = options;
    let cx = PassCtx { cost };
    // First, so that every later pass sees one form of each thing.
    timings.pass(&Simplify, graph, &cx)?;
    match mode {
        Mode::Train => {
            // After simplify, which gives equal concats one form; before autodiff, which makes a
            // slice and a sum for every operand.
            timings.pass(&NestConcats, graph, &cx)?;
            // Batch norm must still be there: training uses batch statistics, so nothing is folded.
            timings.pass(&Autodiff { keep_gradients }, graph, &cx)?;
            // Before casts, layouts and groups of updates, which then see ordinary gradients.
            if sparse.keep_zeros {
                timings.pass(&KeepZeros, graph, &cx)?;
            }
        }
        Mode::Infer => {
            // While batch norms are there to be judged, and before folding, which makes one weight
            // of what is cut here.
            if sparse.is_active() {
                timings.pass(&Sparsify(sparse.clone()), graph, &cx)?;
            }
            // Before mark-setup, which must see the arithmetic on weights that folding leaves behind.
            timings.pass(&FoldBatchNorm, graph, &cx)?;
            timings.pass(&MarkSetup, graph, &cx)?;
        }
    }
    // After autodiff, whose rules then know one element type, and after mark-setup, so that what
    // depends on weights alone is cast at load; before fusion, which wants no cast in between.
    if cost.precision() == Precision::Bf16 {
        timings.pass(&MixedPrecision, graph, &cx)?;
    }
    // After autodiff, whose rules then need not know of fused ops, and after batch norms have
    // become weights, which makes more convolutions end in a ReLU.
    if fuse.kinds.epilogues() {
        timings.pass(&FuseEpilogues, graph, &cx)?;
        // After batch norms have got their ReLUs and sums of gradients their slices.
        if mode == Mode::Train {
            timings.pass(&JoinBatchNorms, graph, &cx)?;
        }
    }
    // After folding, whose weights it packs, and after fusion, whose kernels are what it is judged
    // against; before layouts, of which packed weights have one.
    if mode == Mode::Infer && sparse.is_active() {
        timings.pass(&PackWeights(sparse.clone()), graph, &cx)?;
    }
    // After weights are packed, which leaves less work than zeros of the input do.
    if mode == Mode::Infer && sparse.skips_inputs() && cost.precision() != Precision::Bf16 {
        timings.pass(&SkipZeroInputs(sparse), graph, &cx)?;
    }
    // After autodiff, whose rules then need not know of layouts; before terms are taken and
    // kernels are priced, which do.
    if cost.layout() == Layout::ChannelsLast {
        timings.pass(&ChannelsLast, graph, &cx)?;
    }
    // Beside layers as fast as they get, in the layout that decides which kernels there are; before
    // slices, which cut a pyramid like any other node.
    if mode == Mode::Infer
        && let Some(rule) = fuse.kinds.pyramids()
    {
        let Fusion { depth, footprint, .. } = fuse;
        timings.pass(&FusePyramids { depth, rule, footprint }, graph, &cx)?;
        // After pyramids, so that layers of a stage are judged as fast as they get without it.
        if stages {
            timings.pass(&FuseStages, graph, &cx)?;
        }
    }
    // After epilogues and pyramids, which take sums, ReLUs and bounds for nothing, and after
    // layouts, which part what must not be one op; before slices, which cut the fused op like any
    // other node.
    if fuse.elementwise {
        timings.pass(&FuseElementwise, graph, &cx)?;
    }
    // After autodiff, which then differentiates every layer once, and after the fused ops and
    // conversions of layouts exist, which are part of a slice like any other.
    if let Some(slices) = slices {
        timings.pass(&slices, graph, &cx)?;
    }
    // After fusion, whose batch norms backward then reads less of and can apply again; after
    // layouts and slices, which make the tensors what they will be in memory. Before terms are
    // taken: what is computed again is a term of its own where a batch norm is only applied.
    // Before updates are grouped: a group has the order of the step around it.
    if let Some(recompute) = recompute.filter(|_| mode == Mode::Train) {
        timings.pass(&recompute, graph, &cx)?;
    }
    // After weights have got their layouts, of which a group has one, and after slices have
    // become the sums that a step waits for.
    if fuse.kinds.epilogues() && mode == Mode::Train {
        timings.pass(&GroupUpdates, graph, &cx)?;
    }
    Ok(())
}

/// Choices of one attempt at the second half.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// A policy that is not `dyn`.
    pub policy: Policy,
    /// Algorithm mode; `dynamic` here means: fastest, then `overrides`.
    pub algo: AlgoMode,
    /// Algorithms fixed by the search.
    pub overrides: BTreeMap<NodeId, ConvSchedule>,
    /// Bound of the workspaces.
    pub workspace: Workspace,
    /// The ways to run convolutions.
    pub menu: Rc<Menu>,
    /// When compute waits for copies.
    pub sync: SyncMode,
    /// Which offloaded tensors are packed.
    pub packing: Packing,
    /// How many further offloads may start before an offload must be complete.
    pub lag: u32,
}

/// Passes from the joint graph to the end of `phase` (`Selected`, `Placed` or `Scheduled`).
///
/// # Errors
/// Those of the passes.
pub fn to_phase(
    graph: &mut Graph,
    phase: Phase,
    attempt: &Attempt,
    cost: &CostModel,
    timings: &mut Timings,
) -> Result<(), PassError> {
    let cx = PassCtx { cost };
    // Before anything that needs workspace sizes.
    let select = SelectConv {
        mode: attempt.algo,
        overrides: attempt.overrides.clone(),
        workspace: attempt.workspace,
        menu: Rc::clone(&attempt.menu),
    };
    timings.pass(&select, graph, &cx)?;
    if phase == Phase::Selected {
        return Ok(());
    }
    // Before scheduling: a transfer is an ordinary pair of nodes to everything that follows.
    let Attempt { policy, sync, packing, lag, .. } = *attempt;
    let insert = InsertOffload { policy, sync, lag, packing };
    timings.pass(&insert, graph, &cx)?;
    if phase == Phase::Placed {
        return Ok(());
    }
    // The order must be final before in-place reuse, which asks "is this the last reader?".
    timings.pass(&Schedule, graph, &cx)?;
    timings.pass(&Inplace, graph, &cx)?;
    Ok(())
}
