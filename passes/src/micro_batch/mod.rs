//! Dividing the batch of single convolutions into micro-batches, so that a faster algorithm
//! fits the workspace there is (Oyama et al., *Accelerating Deep Learning Frameworks with
//! Micro-batches*, CLUSTER 2018).
//!
//! [`Menu`] gives for a convolution every way to run it that no other beats in time and
//! workspace. [`crate::select_conv`] takes one for each under a limit per convolution or one
//! pool for all; the driver's search one that fits what the memory plan leaves.

pub mod pareto;
pub mod wd;
pub mod wr;

use crate::options::BatchSizes;
use pareto::{Front, Kernel, Priced};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::cell::RefCell;
use std::rc::Rc;
use vdnn_cost::{ConvOption, CostModel};
use vdnn_ir::graph::ConvAlgo;
use vdnn_ir::slices::{ConvSlice, batch, image_bytes, input_has_images, output_has_images};
use vdnn_ir::{Bytes, ConvRun, ConvSchedule, DType, Graph, Nanos, Node, TensorType};

/// Micro-batches begin at multiples of this (bytes): what the convolution libraries want.
const SLICE_ALIGNMENT: u64 = 16;

/// A division must be this much faster than what it replaces, in percent. Times of single
/// launches differ by this from run to run, and many short launches behind each other take as
/// much more than each by itself.
const MIN_GAIN: u64 = 10;

/// One way to run a convolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// How.
    pub schedule: ConvSchedule,
    /// Scratch it needs.
    pub workspace: Bytes,
    /// Predicted time.
    pub time: Nanos,
}

impl Priced for Choice {
    fn workspace(&self) -> Bytes {
        self.workspace
    }
    fn time(&self) -> Nanos {
        self.time
    }
}

impl From<ConvOption> for Choice {
    fn from(o: ConvOption) -> Self {
        Self { schedule: ConvSchedule::Whole(o.algo), workspace: o.workspace, time: o.time }
    }
}

/// The ways to run convolutions under one cost model. Remembers them: networks repeat their
/// layers, and searches repeat their questions.
#[derive(Debug)]
pub struct Menu {
    sizes: BatchSizes,
    known: RefCell<FxHashMap<ConvSlice, Rc<[Choice]>>>,
}

impl Menu {
    /// A menu of divisions into micro-batches of these sizes; for one cost model.
    pub fn new(sizes: BatchSizes) -> Self {
        Self { sizes, known: RefCell::default() }
    }

    /// The ways to run a convolution node, fastest first, each with less workspace than those
    /// before it; a whole one before a division that gains less than ten percent over it. If the
    /// sizes are undivided: every algorithm of the cost model, fastest first.
    pub fn choices(&self, graph: &Graph, cost: &CostModel, node: &Node) -> Rc<[Choice]> {
        let types = |list: &[vdnn_ir::ValueId]| list.iter().map(|&v| graph.ty(v).clone()).collect();
        let key =
            ConvSlice { op: node.op.clone(), inputs: types(&node.inputs), outputs: types(&node.outputs) };
        if let Some(known) = self.known.borrow().get(&key) {
            return Rc::clone(known);
        }
        let choices: Rc<[Choice]> = choices(&key, cost, self.sizes).into();
        self.known.borrow_mut().insert(key, Rc::clone(&choices));
        choices
    }

    /// The choice that runs a convolution as `schedule`; `None` if one of its algorithms
    /// cannot run what it is to run. Sizes need not be of the menu.
    pub fn price(
        &self,
        graph: &Graph,
        cost: &CostModel,
        node: &Node,
        schedule: &ConvSchedule,
    ) -> Option<Choice> {
        let inputs: SmallVec<[&TensorType; 4]> = node.inputs.iter().map(|&v| graph.ty(v)).collect();
        let outputs: SmallVec<[&TensorType; 4]> = node.outputs.iter().map(|&v| graph.ty(v)).collect();
        let images = batch(&node.op, &inputs)?;
        if !schedule.covers(images) {
            return None;
        }
        let (mut workspace, mut time) = (Bytes::ZERO, Nanos::ZERO);
        for run in schedule.runs(images) {
            let options = match schedule {
                ConvSchedule::Whole(_) => cost.conv_options(&node.op, &inputs, &outputs),
                ConvSchedule::Divided(_) => cost.micro_batch_options(&node.op, &inputs, &outputs, run.images),
            };
            let option = options.into_iter().find(|o| o.algo == run.algo)?;
            workspace = workspace.max(option.workspace);
            time = Nanos(time.0.saturating_add(option.time.0.saturating_mul(run.times)));
        }
        Some(Choice { schedule: schedule.clone(), workspace, time })
    }
}

/// Sizes of micro-batches of a convolution, increasing, the batch last: those of the policy
/// whose slices are aligned. A gradient that is not summed in 32 bits at least is not divided.
pub fn sizes(conv: &ConvSlice, policy: BatchSizes) -> Vec<u64> {
    let (inputs, outputs) = conv.types();
    let Some(n) = batch(&conv.op, &inputs) else { return Vec::new() };
    let sums = output_has_images(&conv.op);
    if !sums && outputs.iter().any(|t| !matches!(t.dtype, DType::F32 | DType::F64)) {
        return vec![n];
    }
    let with_images = inputs
        .iter()
        .enumerate()
        .filter(|(i, _)| input_has_images(&conv.op, *i))
        .map(|(_, t)| *t)
        .chain(outputs.iter().copied().filter(|_| sums));
    let tensors: Vec<&TensorType> = with_images.collect();
    let aligned =
        |m: u64| m == n || tensors.iter().all(|t| image_bytes(t, m).0.is_multiple_of(SLICE_ALIGNMENT));
    policy.of(n).into_iter().filter(|&m| aligned(m)).collect()
}

fn choices(conv: &ConvSlice, cost: &CostModel, policy: BatchSizes) -> Vec<Choice> {
    let (inputs, outputs) = conv.types();
    let whole: Vec<Choice> =
        cost.conv_options(&conv.op, &inputs, &outputs).into_iter().map(Choice::from).collect();
    let sizes = sizes(conv, policy);
    let Some((&n, parts)) = sizes.split_last().filter(|(_, parts)| !parts.is_empty()) else { return whole };
    let kernel =
        |images: u64, o: ConvOption| Kernel { algo: o.algo, images, workspace: o.workspace, time: o.time };
    let mut kernels: Vec<Kernel<ConvAlgo>> = Vec::new();
    for &m in parts {
        let options = cost.micro_batch_options(&conv.op, &inputs, &outputs, m);
        kernels.extend(options.into_iter().map(|o| kernel(m, o)));
    }
    let divided = wr::front(n, &kernels).into_iter().filter_map(|d| {
        let runs = d.runs.iter().map(|(k, times)| ConvRun { algo: k.algo, images: k.images, times: *times });
        Some(Choice { schedule: ConvSchedule::divided(runs)?, workspace: d.workspace, time: d.time })
    });
    let whole: Front<Choice> = whole.into_iter().collect();
    let counted = |choice: &Choice| Counted { choice: choice.clone(), time: choice.time };
    let mut front: Front<Counted> = whole.as_slice().iter().map(counted).collect();
    for choice in divided {
        let gains = |w: &Choice| choice.time.0.saturating_mul(100) <= w.time.0.saturating_mul(100 - MIN_GAIN);
        let equals: Vec<&Choice> = whole.as_slice().iter().filter(|w| !gains(w)).collect();
        if equals.iter().all(|w| w.workspace > choice.workspace) {
            let time = equals.iter().map(|w| Nanos(w.time.0 + 1)).max().unwrap_or_default().max(choice.time);
            front.insert(Counted { choice, time });
        }
    }
    front.into_vec().into_iter().rev().map(|c| c.choice).collect()
}

/// A choice among others: a division that hardly gains counts as slower than the whole batch.
struct Counted {
    choice: Choice,
    time: Nanos,
}

impl Priced for Counted {
    fn workspace(&self) -> Bytes {
        self.choice.workspace
    }
    fn time(&self) -> Nanos {
        self.time
    }
}

#[cfg(test)]
mod tests;
