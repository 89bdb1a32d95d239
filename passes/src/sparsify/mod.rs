//! Zeros that are known when a plan is made: channels that need not be computed, and weights that
//! need not be multiplied.
//!
//! [`Sparsify`] removes channels and makes dense shapes smaller; [`PackWeights`] lets convolutions
//! that are left sparse run on packed weights. Both know the weights by [`Facts`] only, and leave
//! them as they are in the file: what is cut is cut at load, in the setup stage. [`SkipZeroInputs`]
//! is about zeros that only a step makes, and knows where they may be.

mod channels;
mod entries;
mod facts;
mod inputs;
mod keep_zeros;
mod pack;
mod rewrite;

pub use facts::{Facts, ParamFacts};
pub use inputs::{SkipZeroInputs, skipping_kernels};
pub use keep_zeros::KeepZeros;
pub use pack::{PackWeights, worthwhile};

use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use channels::{Channels, Kind, count, kind};
use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;
use std::str::FromStr;
use vdnn_ir::op::UnaryKind;
use vdnn_ir::{Graph, Mode, NodeId, Op, Phase, Stage, ValueId};

const PASS: &str = "sparsify";

/// What is done about zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SparseMode {
    /// Nothing.
    Off,
    /// What is free or predicted to pay.
    #[default]
    Auto,
    /// Every channel that can be removed is, also where the rest must be gathered at run time;
    /// no weights are packed.
    Channels,
    /// As [`Self::Auto`], and every convolution and product with static weights on packed ones, row
    /// by row.
    Csr,
    /// The same with blocks of weights.
    Block,
    /// The same with weights of which two of four are zero, in bf16; others stay dense.
    TwoFour,
    /// Every convolution with a window of several taps leaves out products with zeros that a ReLU
    /// made; nothing is done about weights.
    Activations,
}

impl fmt::Display for SparseMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Auto => "auto",
            Self::Channels => "force=channels",
            Self::Csr => "force=csr",
            Self::Block => "force=block",
            Self::TwoFour => "force=two-four",
            Self::Activations => "force=activations",
        })
    }
}

impl FromStr for SparseMode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Off, Self::Auto, Self::Channels, Self::Csr, Self::Block, Self::TwoFour, Self::Activations]
            .into_iter()
            .find(|m| m.to_string() == text)
            .ok_or_else(|| {
                let all = "off, auto, force=channels, force=csr, force=block, force=two-four or \
                           force=activations";
                format!("`{text}` is not {all}")
            })
    }
}

/// What the passes of this module need to know.
#[derive(Clone, Debug, Default)]
pub struct Sparse {
    /// What is done.
    pub mode: SparseMode,
    /// Factors of batch norms below this count as zero in front of a ReLU; 0 loses nothing.
    pub dead_tolerance: f32,
    /// The zeros of the weights that the plan will be run with. Empty: nothing is known, nothing
    /// is done.
    pub facts: Rc<Facts>,
    /// The host CPU runs the plan: it has the kernels for packed weights and gathers.
    pub on_host: bool,
    /// In training: weights that are zero stay zero.
    pub keep_zeros: bool,
}

impl Sparse {
    /// True if there is anything to do about zeros in the weights.
    pub fn is_active(&self) -> bool {
        !matches!(self.mode, SparseMode::Off | SparseMode::Activations) && !self.facts.is_empty()
    }
    /// True if zeros in feature maps may be looked for.
    pub fn skips_inputs(&self) -> bool {
        self.mode == SparseMode::Activations || (self.mode == SparseMode::Auto && !self.on_host)
    }
}

/// Removes channels of feature maps that hold constants or that nobody reads, in inference graphs.
///
/// Zeros come from batch norms whose factor is 0 (in front of a ReLU: whose shift is at most 0,
/// too) and from filters without weights, and go on through ReLUs, pools, concats, sums and
/// products. A channel that holds zeros is no operand of the next convolution; one that holds
/// another constant becomes part of its bias where nothing is padded. A channel that no filter
/// has weights for is not computed.
///
/// Removed products are with zeros, so each output is the same sum of the same terms. The pass
/// assumes that feature maps are finite (0 times infinity is not 0), and constants in biases are
/// rounded as batch norms folded into weights are.
///
/// Where others read channels that a consumer does not want, they must be gathered at run time:
/// on the host only, and in [`SparseMode::Auto`] only where that pays.
///
/// Counters: `dead_channels` (of batch norms, in front of a ReLU), `removed_channels` (results of
/// convolutions, batch norms and products), `folded_constants` (channels that became part of a
/// bias), `gathers` (at run time), `macs` and `removed_macs` (of
/// convolutions and products).
#[derive(Clone, Debug, Default)]
pub struct Sparsify(pub Sparse);

impl Pass for Sparsify {
    fn name(&self) -> &'static str {
        PASS
    }
    fn requires(&self) -> Phase {
        Phase::Simplified
    }
    fn produces(&self) -> Phase {
        // Gathers exist from there on.
        Phase::Joint
    }
    fn run(&self, graph: &mut Graph, _cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        let Sparse { mode, dead_tolerance, facts, on_host, .. } = &self.0;
        let mut stats = Stats::new();
        if graph.mode != Mode::Infer || !self.0.is_active() {
            return Ok(Outcome { changed: false, stats });
        }
        let before = macs(graph);
        let mut channels = Channels::new(graph, facts, *dead_tolerance);
        stats.insert("dead_channels", channels.dead);
        let mut cut = if *on_host { candidates(graph) } else { BTreeSet::new() };
        if !cut.is_empty() {
            channels.find_needs(graph, &cut);
            cut.retain(|&id| worth_gathering(graph, &mut channels, id, *mode == SparseMode::Channels));
        }
        channels.find_needs(graph, &cut);
        let done = rewrite::rewrite(graph, &mut channels, &cut)
            .map_err(|error| PassError::Infer { pass: PASS, error })?;
        graph.remove_dead_nodes();
        graph.remove_dead_params();
        stats.insert("removed_channels", done.channels);
        stats.insert("folded_constants", done.constants);
        stats.insert("gathers", done.gathers);
        stats.insert("macs", before);
        stats.insert("removed_macs", before - macs(graph).min(before));
        Ok(Outcome { changed: done.channels + done.gathers > 0, stats })
    }
}

/// Multiply-adds of the convolutions and products of a graph.
fn macs(graph: &Graph) -> u64 {
    let of = |(_, n): (NodeId, &vdnn_ir::Node)| {
        let w = graph.ty(*n.inputs.get(1)?);
        let taps: u64 = match &n.op {
            Op::Conv(_) => w.dims[1..].iter().product(),
            Op::Gemm { trans_b, .. } => w.dims[usize::from(*trans_b)],
            _ => return None,
        };
        Some(taps * graph.ty(n.outputs[0]).elements())
    };
    graph.nodes().filter(|(_, n)| n.stage == Stage::Forward).filter_map(of).sum()
}

/// Nodes that may gather the channels that they want: batch norms and convolutions whose operand
/// others read, too, or that is not made here.
fn candidates(graph: &Graph) -> BTreeSet<NodeId> {
    let may = |n: &vdnn_ir::Node| match (kind(graph, n), &n.op) {
        (Kind::Conv, _) => true,
        (Kind::Tied, op) => matches!(op, Op::BatchNormInfer { .. }),
        _ => false,
    };
    graph.nodes().filter(|(_, n)| n.stage == Stage::Forward && may(n)).map(|(id, _)| id).collect()
}

/// Operations that a CPU does in the time in which it moves a byte.
const FLOPS_PER_BYTE: f64 = 6.0;

/// True if gathering makes anything smaller and, unless it is `forced`, what it saves downstream
/// is more than what it costs.
fn worth_gathering(graph: &Graph, channels: &mut Channels, id: NodeId, forced: bool) -> bool {
    let node = graph.node(id);
    let (x, y) = (node.inputs[0], node.outputs[0]);
    let there = channels.kept(graph, x).len();
    let is_conv = matches!(node.op, Op::Conv(_));
    let wanted = if is_conv { channels.wanted(graph, node) } else { channels.kept(graph, y) }.len();
    let wanted = wanted.max(1);
    if wanted >= there {
        return false;
    }
    let (saved, kept) = ((there - wanted) as f64, wanted as f64);
    // Per pixel: a gather reads and writes what is kept; the batch norm and the ReLU behind it
    // read and write less.
    let (products, passes) = if is_conv { (products(graph, id), 0.0) } else { (behind(graph, y, 4), 2.0) };
    forced || saved * (2.0 * products / FLOPS_PER_BYTE + 8.0 * passes) > 8.0 * kept
}

/// Multiply-adds of a convolution per pixel of a channel.
fn products(graph: &Graph, id: NodeId) -> f64 {
    let node = graph.node(id);
    let (x, w) = (graph.ty(node.inputs[0]), graph.ty(node.inputs[1]));
    let pixels = graph.ty(node.outputs[0]).elements() as f64 / x.elements().max(1) as f64;
    // Outputs per input element, times weights of one input channel per filter.
    let per = pixels * x.dims[1] as f64;
    per * w.dims[2..].iter().product::<u64>() as f64
}

/// Multiply-adds per pixel of a channel in the convolutions behind a value.
fn behind(graph: &Graph, v: ValueId, depth: u32) -> f64 {
    if depth == 0 {
        return 0.0;
    }
    let of = |&user: &NodeId| {
        let node = graph.node(user);
        match (&node.op, kind(graph, node)) {
            (Op::Conv(_), Kind::Conv) => products(graph, user),
            (Op::Unary(UnaryKind::Relu | UnaryKind::Clip { .. }), _) if count(graph, v).is_some() => {
                behind(graph, node.outputs[0], depth - 1)
            }
            _ => 0.0,
        }
    };
    graph.value(v).users().iter().map(of).sum()
}
