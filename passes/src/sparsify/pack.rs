//! Which convolutions run on packed weights.

use super::{Facts, Sparse, SparseMode};
use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use vdnn_cost::CostModel;
use vdnn_ir::graph::{Def, NodeSpec};
use vdnn_ir::op::infer::InferError;
use vdnn_ir::op::{BinaryKind, ConvAttrs, UnaryKind};
use vdnn_ir::types::Dims;
use vdnn_ir::{DType, Graph, Mode, NodeId, Op, Phase, Stage, TensorType, ValueId, sparse};

const PASS: &str = "pack-weights";

/// Gives convolutions and fully connected layers whose weights have many zeros packed weights
/// ([`vdnn_ir::sparse`]) in an inference graph: where the host runs the plan by what
/// [`worthwhile`] says, on a GPU where both ways were measured and packed weights are faster, with
/// the sum and the ReLU that then run by themselves. How many entries there is room
/// for follows from the facts; the weights are packed in the setup stage, and only the packed ones
/// are in the plan's arena.
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
        let (mut packed, mut dense, mut entries) = (0, 0, 0);
        let wanted = self.0.is_active() && *mode != SparseMode::Channels;
        if wanted && graph.mode == Mode::Infer {
            for id in graph.order().to_vec() {
                let Some(layer) = Layer::of(graph, id).filter(|l| *on_host || l.has_gpu_kernel()) else {
                    continue;
                };
                let found = nonzeros(graph, facts, layer.w, 16);
                let (x, w) = (graph.ty(graph.node(id).inputs[0]), graph.ty(layer.w));
                let pays = |n: u64| match on_host {
                    _ if *mode == SparseMode::Csr => true,
                    true => worthwhile(x, w, &layer.conv, n),
                    false => layer.is_faster(graph, id, n, cx.cost),
                };
                let Some(n) = found.filter(|&n| i32::try_from(w.elements()).is_ok() && pays(n)) else {
                    dense += 1;
                    continue;
                };
                layer.pack(graph, id, n).map_err(|error| PassError::Infer { pass: PASS, error })?;
                packed += 1;
                entries += n;
            }
        }
        let stats = Stats::from([("packed", packed), ("dense", dense), ("entries", entries)]);
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
}

impl Layer {
    fn of(graph: &Graph, id: NodeId) -> Option<Self> {
        let node = graph.node(id);
        let fixed = |i: usize| node.inputs.get(i).is_none_or(|&v| graph.is_static(v));
        if node.stage != Stage::Forward || node.inputs.len() < 2 || graph.is_static(node.inputs[0]) {
            return None;
        }
        let w = node.inputs[1];
        let of = |conv: ConvAttrs| Self { conv, w, turned: false, added: None, relu: false };
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

    /// True for what runtime/src/cuda/kernels/sparse.rs runs.
    fn has_gpu_kernel(&self) -> bool {
        self.conv.groups == 1 && matches!(self.conv.kernel.len(), 0 | 2)
    }

    /// True if packed weights with so many entries were measured to be faster than the node.
    fn is_faster(&self, graph: &Graph, id: NodeId, entries: u64, cost: &CostModel) -> bool {
        let node = graph.node(id);
        // As the graph will be.
        let ty = |v: ValueId| match graph.ty(v) {
            ty if ty.rank() == 4 => ty.in_layout(cost.layout()),
            ty => ty.clone(),
        };
        let dense: Vec<TensorType> = node.inputs.iter().map(|&v| ty(v)).collect();
        let dense: Vec<&TensorType> = dense.iter().collect();
        let (x, y) = (ty(node.inputs[0]), ty(node.outputs[0]));
        let mut w_dims = graph.ty(self.w).dims.clone();
        if self.turned {
            w_dims.reverse();
        }
        let words = TensorType::new(DType::I32, [sparse::packed_len(w_dims[0], entries)]);
        let bias = node.inputs.get(2).map(|_| TensorType::f32([w_dims[0]]));
        let packed: Vec<&TensorType> = [&x, &words].into_iter().chain(&bias).collect();
        let op = Op::SparseConv { conv: self.conv.clone(), w_dims };
        if !cost.is_measured(&node.op, &dense, &[&y]) || !cost.is_measured(&op, &packed, &[&y]) {
            return false;
        }
        let algos = cost.conv_options(&node.op, &dense, &[&y]);
        let whole = algos.iter().map(|o| o.time).min();
        let whole = whole.unwrap_or_else(|| cost.kernel(&node.op, &dense, &[&y], None));
        let mut apart = cost.kernel(&op, &packed, &[&y], None);
        if self.added.is_some() {
            apart += cost.kernel(&Op::Binary(BinaryKind::Add), &[&y, &y], &[&y], None);
        }
        if self.relu {
            apart += cost.kernel(&Op::Unary(UnaryKind::Relu), &[&y], &[&y], None);
        }
        apart < whole
    }

    fn pack(self, graph: &mut Graph, id: NodeId, entries: u64) -> Result<(), InferError> {
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
        let mut inputs = vec![node.inputs[0], setup(graph, Op::PackSparse { nonzeros: entries }, w)?];
        if let Some(&bias) = node.inputs.get(2) {
            let flat = Dims::from_slice(&w_dims[..1]);
            let bias = if graph.ty(bias).dims == flat {
                bias
            } else {
                setup(graph, Op::Reshape { dims: flat }, bias)?
            };
            inputs.push(bias);
        }
        let spec = NodeSpec { name: node.name.clone(), stage: node.stage, origin: node.origin, n_outputs: 1 };
        let new = graph.insert(at, Op::SparseConv { conv: self.conv, w_dims }, &inputs, spec)?;
        let from = node.outputs[0];
        let mut to = graph.node(new).outputs[0];
        let mut then = |graph: &mut Graph, op: Op, inputs: &[ValueId], what: &str| {
            at += 1;
            let name = format!("{}/{what}", node.name);
            let spec = NodeSpec { name, stage: node.stage, origin: node.origin, n_outputs: 1 };
            let new = graph.insert(at, op, inputs, spec)?;
            Ok::<ValueId, InferError>(graph.node(new).outputs[0])
        };
        if let Some(added) = self.added {
            to = then(graph, Op::Binary(BinaryKind::Add), &[to, added], "sum")?;
        }
        if self.relu {
            to = then(graph, Op::Unary(UnaryKind::Relu), &[to], "relu")?;
        }
        let hint = graph.value(from).name.clone();
        graph.set_name(to, hint);
        graph.replace_all_uses(from, to);
        graph.remove(id);
        Ok(())
    }
}

/// A bound of the elements of a static value that are not zero, through what folding and removal
/// do to weights.
fn nonzeros(graph: &Graph, facts: &Facts, v: ValueId, depth: u32) -> Option<u64> {
    let most = graph.ty(v).elements();
    let found = match graph.value(v).def {
        Def::Node { node, .. } if depth > 0 => {
            let node = graph.node(node);
            let of = |i: usize| nonzeros(graph, facts, node.inputs[i], depth - 1);
            match &node.op {
                Op::Reshape { .. } | Op::Transpose { .. } | Op::Gather { .. } => of(0)?,
                Op::Binary(BinaryKind::Mul | BinaryKind::Div)
                    if graph.ty(node.inputs[0]).dims == graph.ty(v).dims =>
                {
                    of(0)?
                }
                _ => return None,
            }
        }
        Def::Node { .. } => return None,
        _ => facts.get(graph, v)?.nonzeros,
    };
    Some(found.min(most))
}
