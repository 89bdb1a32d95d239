//! Which convolutions run on packed weights.

use super::entries::entries;
use super::{Sparse, SparseMode};
use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use smallvec::SmallVec;
use vdnn_cost::CostModel;
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::ConvAttrs;
use vdnn_ir::op::infer::InferError;
use vdnn_ir::sparse::SparseForm;
use vdnn_ir::types::Dims;
use vdnn_ir::{DType, Graph, Mode, NodeId, Op, Phase, Precision, Stage, TensorType, ValueId};

const PASS: &str = "pack-weights";

/// Gives convolutions and fully connected layers whose weights have many zeros packed weights
/// ([`vdnn_ir::sparse`]) in an inference graph: where the host runs the plan by what
/// [`worthwhile`] says, on a GPU where both ways were measured and packed weights are faster. How
/// many entries there is room for follows from the facts; the weights are packed in the setup stage,
/// and only the packed ones are in the plan's arena.
///
/// Counters: `packed`, `dense` (that stay so) and `entries` (of all packed weights).
#[derive(Clone, Debug, Default)]
pub struct PackWeights(pub Sparse);

impl Pass for PackWeights {
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
        let Sparse { mode, facts, on_host, .. } = &self.0;
        let (mut packed, mut dense, mut all) = (0, 0, 0);
        let wanted = self.0.is_active() && *mode != SparseMode::Channels;
        if wanted && graph.mode == Mode::Infer {
            for id in graph.order().to_vec() {
                let Some(layer) = Layer::of(graph, id) else { continue };
                let forms = if *on_host { &layer.forms[..] } else { layer.on_gpu(cx.cost) };
                let known = forms.iter().filter_map(|&form| {
                    let n = entries(graph, facts, (layer.w, layer.turned), form)?;
                    i32::try_from(graph.ty(layer.w).elements()).is_ok().then_some((form, n))
                });
                let (x, w) = (graph.ty(graph.node(id).inputs[0]), graph.ty(layer.w));
                let chosen = match (mode, on_host) {
                    (SparseMode::Csr, _) => known.into_iter().find(|(form, _)| form.is_csr()),
                    (SparseMode::Block, _) => known.into_iter().find(|(form, _)| form.is_block()),
                    (SparseMode::TwoFour, _) => {
                        known.into_iter().find(|(form, _)| *form == SparseForm::TwoFourBf16)
                    }
                    // It reads all others row by row.
                    (_, true) => {
                        known.into_iter().find(|&(form, n)| form.is_csr() && worthwhile(x, w, &layer.conv, n))
                    }
                    (_, false) => layer.fastest(graph, id, known, cx.cost),
                };
                if let Some((form, n)) = chosen {
                    layer.pack(graph, id, form, n).map_err(|error| PassError::Infer { pass: PASS, error })?;
                    packed += 1;
                    all += n;
                } else if !forms.is_empty() {
                    dense += 1;
                }
            }
        }
        let stats = Stats::from([("packed", packed), ("dense", dense), ("entries", all)]);
        Ok(Outcome { changed: packed > 0, stats })
    }
}

/// True if the CPU is predicted to run a layer faster on packed weights with so many entries.
///
/// From measurements of both kernels on a core with 512-bit vectors: a packed weight costs about
/// as much as three dense ones where its row has long runs of outputs, more in small planes; of a
/// fully connected layer on few images both read the weights from memory, eight bytes against
/// four.
pub fn worthwhile(x: &TensorType, w: &TensorType, conv: &ConvAttrs, entries: u64) -> bool {
    let density = entries as f64 / w.elements().max(1) as f64;
    let limit = if conv.kernel.is_empty() {
        if x.dims[0] <= 2 { 0.4 } else { 0.2 }
    } else if conv.groups > 1 {
        0.1
    } else if conv.kernel.iter().all(|&k| k == 1) {
        0.25
    } else {
        0.28
    };
    // Small layers are all overhead.
    density <= limit && w.elements() >= 1024
}

/// A convolution or product that can be packed.
struct Layer {
    conv: ConvAttrs,
    w: ValueId,
    /// The weights are `[K, M]`.
    turned: bool,
    /// What is added to the result.
    added: Option<ValueId>,
    /// A ReLU follows.
    relu: bool,
    /// How its weights may be packed.
    forms: SmallVec<[SparseForm; 2]>,
}

impl Layer {
    fn of(graph: &Graph, id: NodeId) -> Option<Self> {
        let node = graph.node(id);
        let fixed = |i: usize| node.inputs.get(i).is_none_or(|&v| graph.is_static(v));
        if node.stage != Stage::Forward || node.inputs.len() < 2 || graph.is_static(node.inputs[0]) {
            return None;
        }
        let w = node.inputs[1];
        let of = |conv: ConvAttrs| {
            let narrow = graph.ty(node.inputs[0]).dtype == DType::BF16;
            let mut forms = SmallVec::new();
            if !narrow {
                forms.push(SparseForm::Csr);
            }
            if conv.groups == 1 {
                forms.push(if narrow { SparseForm::BlockBf16 } else { SparseForm::Block });
            }
            // Tensor cores know two of four in bf16; of f32 they take one of two.
            if conv.groups == 1 && narrow {
                forms.push(SparseForm::TwoFourBf16);
            }
            Self { conv, w, turned: false, added: None, relu: false, forms }
        };
        match &node.op {
            Op::Conv(a) if fixed(1) && fixed(2) && a.kernel.len() <= 2 => Some(of(a.clone())),
            Op::ConvEpilogue { conv, relu } if fixed(1) && fixed(2) && conv.kernel.len() <= 2 => {
                Some(Self { added: node.inputs.get(3).copied(), relu: *relu, ..of(conv.clone()) })
            }
            Op::Gemm { trans_a: false, trans_b, alpha, beta } if fixed(1) && fixed(2) && alpha.0 == 1.0 => {
                let columns = graph.ty(node.outputs[0]).dims[1];
                let plain = node.inputs.get(2).is_none_or(|&c| {
                    let dims = &graph.ty(c).dims;
                    beta.0 == 1.0 && dims.last() == Some(&columns) && graph.ty(c).elements() == columns
                });
                plain.then(|| Self { turned: !trans_b, ..of(ConvAttrs::without_axes()) })
            }
            _ => None,
        }
    }

    /// The forms for which runtime/src/cuda/kernels has a kernel.
    fn on_gpu(&self, cost: &CostModel) -> &[SparseForm] {
        if self.conv.groups != 1 || !matches!(self.conv.kernel.len(), 0 | 2) {
            return &[];
        }
        // Blocks are for tensor cores.
        let strict = cost.precision() == Precision::F32;
        if strict { self.forms.strip_suffix(&[SparseForm::Block]).unwrap_or_default() } else { &self.forms }
    }

    /// The form in which packed weights were measured to be faster than the node, if there is one.
    fn fastest(
        &self,
        graph: &Graph,
        id: NodeId,
        forms: impl Iterator<Item = (SparseForm, u64)>,
        cost: &CostModel,
    ) -> Option<(SparseForm, u64)> {
        let node = graph.node(id);
        // As the graph will be.
        let ty = |v: ValueId| match graph.ty(v) {
            ty if ty.rank() == 4 => ty.in_layout(cost.layout()),
            ty => ty.clone(),
        };
        let inputs: Vec<TensorType> = node.inputs.iter().map(|&v| ty(v)).collect();
        let dense: Vec<&TensorType> = inputs.iter().collect();
        let y = ty(node.outputs[0]);
        if !cost.is_measured(&node.op, &dense, &[&y]) {
            return None;
        }
        let algos = cost.conv_options(&node.op, &dense, &[&y]);
        let whole = algos.iter().map(|o| o.time).min();
        let whole = whole.unwrap_or_else(|| cost.kernel(&node.op, &dense, &[&y], None));
        let mut w_dims = graph.ty(self.w).dims.clone();
        if self.turned {
            w_dims.reverse();
        }
        let time = |(form, n): (SparseForm, u64)| {
            let words = TensorType::new(DType::I32, [form.packed_len(w_dims[0], n)]);
            let bias = inputs.get(2).map(|b| TensorType::new(b.dtype, [w_dims[0]]));
            let mut packed: Vec<&TensorType> = [&inputs[0], &words].into_iter().chain(&bias).collect();
            packed.extend(self.added.map(|_| &y));
            let op = self.op(form, w_dims.clone());
            let time =
                cost.is_measured(&op, &packed, &[&y]).then(|| cost.kernel(&op, &packed, &[&y], None))?;
            (time < whole).then_some((time, form, n))
        };
        forms.filter_map(time).min().map(|(_, form, n)| (form, n))
    }

    /// The op with packed weights, the sum and the ReLU in it.
    fn op(&self, form: SparseForm, w_dims: Dims) -> Op {
        Op::SparseConv { conv: self.conv.clone(), w_dims, form, relu: self.relu }
    }

    fn pack(&self, graph: &mut Graph, id: NodeId, form: SparseForm, nonzeros: u64) -> Result<(), InferError> {
        let node = graph.node(id).clone();
        let mut at = graph.order().iter().position(|&n| n == id).unwrap_or(0);
        let mut setup = |graph: &mut Graph, op: Op, x: ValueId| {
            let name = format!("{}/pack", node.name);
            let spec = NodeSpec { name, stage: Stage::Setup, origin: None, n_outputs: 1 };
            let new = graph.insert(at, op, &[x], spec)?;
            at += 1;
            Ok::<ValueId, InferError>(graph.node(new).outputs[0])
        };
        let mut w = self.w;
        if self.turned {
            w = setup(graph, Op::Transpose { perm: Dims::from_slice(&[1, 0]) }, w)?;
        }
        let w_dims = graph.ty(w).dims.clone();
        let mut inputs = vec![node.inputs[0], setup(graph, Op::PackSparse { nonzeros, form }, w)?];
        if let Some(&bias) = node.inputs.get(2) {
            let flat = Dims::from_slice(&w_dims[..1]);
            let bias = if graph.ty(bias).dims == flat {
                bias
            } else {
                setup(graph, Op::Reshape { dims: flat }, bias)?
            };
            inputs.push(bias);
        }
        inputs.extend(self.added);
        let spec = NodeSpec { name: node.name.clone(), stage: node.stage, origin: node.origin, n_outputs: 1 };
        let new = graph.insert(at, self.op(form, w_dims), &inputs, spec)?;
        let (from, to) = (node.outputs[0], graph.node(new).outputs[0]);
        let hint = graph.value(from).name.clone();
        graph.set_name(to, hint);
        graph.replace_all_uses(from, to);
        graph.remove(id);
        Ok(())
    }
}
