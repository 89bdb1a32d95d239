//! Which convolutions leave out products with zeros of their input.

use super::{Sparse, SparseMode};
use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use smallvec::SmallVec;
use vdnn_cost::CostModel;
use vdnn_ir::graph::{Def, NodeSpec};
use vdnn_ir::op::infer::InferError;
use vdnn_ir::op::{ConvAttrs, UnaryKind};
use vdnn_ir::types::Dims;
use vdnn_ir::{DType, Graph, Mode, NodeId, Op, Phase, Stage, TensorType, ValueId};

const PASS: &str = "skip-zero-inputs";

/// Multiply-adds of a layer up to which its input's zeros are worth a measurement: a dense kernel
/// has larger ones spread over the whole GPU, and leaves nothing to gain at the usual half of zeros.
pub const MACS_AT_MOST: u64 = 1 << 30;

/// Windows of at most so many inputs have a kernel on a GPU.
const WINDOW_AT_MOST: u64 = 96;

/// Lets convolutions of an inference graph leave out the products with zeros that a ReLU made of
/// their input ([`Op::SparseInputConv`]): with [`SparseMode::Activations`] all whose window has more
/// than one tap, with [`SparseMode::Auto`] on a GPU those that were measured to be faster so, with
/// half of the input zeros. How many there are in a step is found out on the device, by the kernel.
///
/// The filters' weights are laid out anew in the setup stage. Results are those of the dense layer,
/// as sums in another order; weights must be finite, as 0 times infinity is left out.
///
/// Counter: `skipping`.
#[derive(Clone, Debug, Default)]
pub struct SkipZeroInputs(pub Sparse);

impl Pass for SkipZeroInputs {
    fn name(&self) -> &'static str {
        PASS
    }
    fn requires(&self) -> Phase {
        Phase::Joint
    }
    fn produces(&self) -> Phase {
        Phase::Joint
    }
    fn run(&self, graph: &mut Graph, cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        let mut skipping = 0;
        if graph.mode == Mode::Infer && self.0.skips_inputs() {
            for id in graph.order().to_vec() {
                let Some(layer) = Layer::of(graph, id) else { continue };
                let pays = match self.0.mode {
                    SparseMode::Activations => layer.conv.kernel.iter().any(|&k| k > 1),
                    _ => layer.is_faster(graph, id, cx.cost),
                };
                if pays {
                    layer.replace(graph, id).map_err(|error| PassError::Infer { pass: PASS, error })?;
                    skipping += 1;
                }
            }
        }
        Ok(Outcome { changed: skipping > 0, stats: Stats::from([("skipping", skipping)]) })
    }
}

/// A kernel with the types of its operands and its result.
pub type Typed = (Op, Vec<TensorType>, TensorType);

/// The kernels that [`SkipZeroInputs`] would choose in place of a graph's convolutions if they were
/// fast, in the order of the graph.
pub fn skipping_kernels(graph: &Graph, cost: &CostModel) -> Vec<Typed> {
    let layers = graph.order().iter().filter_map(|&id| Some((id, Layer::of(graph, id)?)));
    layers.filter(|(_, l)| l.macs <= MACS_AT_MOST).map(|(id, l)| l.kernel(graph, id, cost)).collect()
}

/// A convolution whose input has zeros.
struct Layer {
    conv: ConvAttrs,
    relu: bool,
    macs: u64,
}

impl Layer {
    fn of(graph: &Graph, id: NodeId) -> Option<Self> {
        let node = graph.node(id);
        let (conv, relu) = match &node.op {
            Op::Conv(conv) => (conv, false),
            Op::ConvEpilogue { conv, relu } => (conv, *relu),
            _ => return None,
        };
        let (&x, &w) = (node.inputs.first()?, node.inputs.get(1)?);
        let fixed = node.inputs.iter().skip(1).take(2).all(|&v| graph.is_static(v));
        let plain = conv.groups == 1 && conv.kernel.len() == 2 && graph.ty(x).dtype == DType::F32;
        let span = |(k, d): (&u64, &u64)| (k - 1).saturating_mul(*d).saturating_add(1);
        let window = conv.kernel.iter().zip(&conv.dilations).map(span).fold(1, u64::saturating_mul);
        let (w, y) = (graph.ty(w), graph.ty(node.outputs[0]));
        let macs = w.dims[1..].iter().product::<u64>().saturating_mul(y.elements());
        let fits = graph.ty(x).elements().max(y.elements()).max(w.elements()) <= i32::MAX as u64;
        let wanted = node.stage == Stage::Forward && fixed && plain && window <= WINDOW_AT_MOST && fits;
        (wanted && !graph.is_static(x) && has_zeros(graph, x, 8)).then(|| Self {
            conv: conv.clone(),
            relu,
            macs,
        })
    }

    fn op(&self) -> Op {
        Op::SparseInputConv { conv: self.conv.clone(), relu: self.relu }
    }

    /// The weights with the filters last.
    fn packed(&self, graph: &Graph, id: NodeId) -> Dims {
        let w = &graph.ty(graph.node(id).inputs[1]).dims;
        [w[1], w[2] * w[3], w[0]].into_iter().collect()
    }

    /// As the graph will have it.
    fn kernel(&self, graph: &Graph, id: NodeId, cost: &CostModel) -> Typed {
        let node = graph.node(id);
        let mut inputs: Vec<TensorType> = node.inputs.iter().map(|&v| laid_out(graph, v, cost)).collect();
        inputs[1] = TensorType::f32(self.packed(graph, id));
        (self.op(), inputs, laid_out(graph, node.outputs[0], cost))
    }

    fn is_faster(&self, graph: &Graph, id: NodeId, cost: &CostModel) -> bool {
        if self.macs > MACS_AT_MOST {
            return false;
        }
        let (op, inputs, y) = self.kernel(graph, id, cost);
        let inputs: SmallVec<[&TensorType; 4]> = inputs.iter().collect();
        let node = graph.node(id);
        let dense: Vec<TensorType> = node.inputs.iter().map(|&v| laid_out(graph, v, cost)).collect();
        let dense: SmallVec<[&TensorType; 4]> = dense.iter().collect();
        if !cost.is_measured(&op, &inputs, &[&y]) || !cost.is_measured(&node.op, &dense, &[&y]) {
            return false;
        }
        let whole = cost.conv_options(&node.op, &dense, &[&y]).iter().map(|o| o.time).min();
        whole.is_some_and(|whole| cost.kernel(&op, &inputs, &[&y], None) < whole)
    }

    fn replace(self, graph: &mut Graph, id: NodeId) -> Result<(), InferError> {
        let node = graph.node(id).clone();
        let mut at = graph.order().iter().position(|&n| n == id).unwrap_or(0);
        let dims = self.packed(graph, id);
        let mut w = node.inputs[1];
        for op in [Op::Transpose { perm: Dims::from_slice(&[1, 2, 3, 0]) }, Op::Reshape { dims }] {
            let name = format!("{}/filters_last", node.name);
            let spec = NodeSpec { name, stage: Stage::Setup, origin: None, n_outputs: 1 };
            let new = graph.insert(at, op, &[w], spec)?;
            w = graph.node(new).outputs[0];
            at += 1;
        }
        let mut inputs = node.inputs.clone();
        inputs[1] = w;
        let spec = NodeSpec { name: node.name, stage: node.stage, origin: node.origin, n_outputs: 1 };
        let new = graph.insert(at, self.op(), &inputs, spec)?;
        let (from, to) = (node.outputs[0], graph.node(new).outputs[0]);
        let hint = graph.value(from).name.clone();
        graph.set_name(to, hint);
        graph.replace_all_uses(from, to);
        graph.remove(id);
        Ok(())
    }
}

/// The type of a value once layouts are assigned.
fn laid_out(graph: &Graph, v: ValueId, cost: &CostModel) -> TensorType {
    match graph.ty(v) {
        ty if ty.rank() == 4 => ty.in_layout(cost.layout()),
        ty => ty.clone(),
    }
}

/// True for what a ReLU made, perhaps seen through ops that keep zeros.
fn has_zeros(graph: &Graph, v: ValueId, depth: u32) -> bool {
    let Def::Node { node, .. } = graph.value(v).def else { return false };
    let node = graph.node(node);
    let of = |v: ValueId| depth > 0 && has_zeros(graph, v, depth - 1);
    match &node.op {
        Op::Unary(UnaryKind::Relu)
        | Op::BatchNormInferRelu { .. }
        | Op::ConvEpilogue { relu: true, .. }
        | Op::SparseConv { relu: true, .. }
        | Op::SparseInputConv { relu: true, .. } => true,
        Op::Unary(UnaryKind::Clip { lo, .. }) => lo.0 == 0.0,
        Op::MaxPool(_) | Op::Relayout { .. } | Op::Slice(_) => of(node.inputs[0]),
        Op::Concat { .. } => node.inputs.iter().all(|&v| of(v)),
        _ => false,
    }
}
