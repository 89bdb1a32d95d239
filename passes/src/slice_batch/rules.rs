//! Which ops can run on a part of the batch, and what their results then are.

use smallvec::{SmallVec, smallvec};
use vdnn_ir::op::{LossReduction, PyramidUse, ReduceKind};
use vdnn_ir::{Graph, Node, Op, ValueId};

/// What a result made of some samples is to the whole result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Their rows.
    Rows,
    /// A summand.
    Sum,
    /// A summand after multiplication by their share of the batch.
    Mean,
}

/// How an op runs on some samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// Of each operand: true if it must be cut to the samples, too.
    pub(super) cut: SmallVec<[bool; 8]>,
    /// Of each result.
    pub(super) results: SmallVec<[Part; 4]>,
    /// An operand to multiply by the samples' share of the batch: the gradient of a mean.
    pub(super) scaled: Option<usize>,
}

/// The rule of a node with an operand that has a row per sample, `rows` telling which have;
/// `None` if it needs the whole batch.
pub(super) fn rule(graph: &Graph, node: &Node, batch: u64, rows: impl Fn(ValueId) -> bool) -> Option<Rule> {
    let is: SmallVec<[bool; 8]> = node.inputs.iter().map(|&v| rows(v)).collect();
    let dims = |i: usize| node.inputs.get(i).map(|&v| graph.ty(v).dims.as_slice()).unwrap_or_default();
    let n = node.outputs.len();
    let all = |part: Part| -> SmallVec<[Part; 4]> { smallvec![part; n] };
    // The first `cut` operands are cut, the rest are not.
    let leading = |cut: usize, part: Part| Rule {
        cut: (0..is.len()).map(|i| i < cut).collect(),
        results: all(part),
        scaled: None,
    };
    let result_rows = || graph.ty(node.outputs[0]).dims.first() == Some(&batch);
    let rule = match &node.op {
        Op::Conv(_) | Op::ConvDgrad { .. } | Op::BatchNormInfer { .. } | Op::Dropout { .. } => {
            leading(1, Part::Rows)
        }
        Op::BatchNormInferRelu { .. } => {
            Rule { cut: (0..is.len()).map(|i| i >= 4).collect(), results: all(Part::Rows), scaled: None }
        }
        Op::Pyramid(pyramid) => {
            let cut = pyramid.uses().iter().map(|u| *u == PyramidUse::Image).collect();
            Rule { cut, results: all(Part::Rows), scaled: None }
        }
        Op::ConvEpilogue { .. } | Op::SparseConv { .. } | Op::SparseInputConv { .. } => {
            let mut rule = leading(1, Part::Rows);
            if let Some(residual) = rule.cut.get_mut(3) {
                *residual = true;
            }
            rule
        }
        Op::MaxPool(_)
        | Op::AvgPool { .. }
        | Op::Lrn(_)
        | Op::Unary(_)
        | Op::Relayout { .. }
        | Op::Cast { .. }
        | Op::MaxPoolGrad { .. }
        | Op::AvgPoolGrad { .. }
        | Op::LrnGrad(_)
        | Op::UnaryGrad(_) => leading(is.len(), Part::Rows),
        Op::ConvWgrad { .. } => leading(2, Part::Sum),
        Op::BatchNormInferGrad { .. } => {
            let mut rule = leading(2, Part::Sum);
            rule.results[0] = Part::Rows;
            rule
        }
        Op::Binary(_) | Op::Elementwise(_) if result_rows() => {
            let rank = graph.ty(node.outputs[0]).rank();
            let cut = (0..is.len()).map(|i| dims(i).len() == rank && dims(i)[0] == batch).collect();
            Rule { cut, results: all(Part::Rows), scaled: None }
        }
        Op::Gemm { trans_a: false, .. } => {
            let mut rule = leading(1, Part::Rows);
            if dims(2).len() == 2 && dims(2)[0] == batch {
                rule.cut[2] = true;
            }
            rule
        }
        Op::Gemm { trans_a: true, trans_b: false, .. } if is.len() == 2 => leading(2, Part::Sum),
        Op::MatMul { trans_a, trans_b } => match (dims(0).len(), dims(1).len()) {
            (2, 2) if *trans_a && !trans_b => leading(2, Part::Sum),
            (2, 2) if !trans_a => leading(1, Part::Rows),
            (a, b) if a == b && a > 2 && dims(1)[0] == batch => leading(2, Part::Rows),
            (3.., 2) => leading(1, Part::Rows),
            _ => return None,
        },
        Op::Reduce { axes, kind, .. } => match (axes.contains(&0), kind) {
            (false, _) => leading(1, Part::Rows),
            (true, ReduceKind::Sum) => leading(1, Part::Sum),
            _ => return None,
        },
        Op::Softmax { axis } | Op::LogSoftmax { axis } | Op::Split { axis, .. } if *axis > 0 => {
            leading(1, Part::Rows)
        }
        Op::SoftmaxGrad { axis } | Op::LogSoftmaxGrad { axis } if *axis > 0 => leading(2, Part::Rows),
        Op::Gather { axis } if *axis > 0 => leading(1, Part::Rows),
        Op::Concat { axis } if *axis > 0 => leading(is.len(), Part::Rows),
        Op::Slice(slice) | Op::SliceGrad { slice, .. }
            if slice.starts[0] == 0 && slice.steps[0] == 1 && slice.lens[0] == batch =>
        {
            leading(1, Part::Rows)
        }
        Op::AddSlice(slice) if slice.starts[0] == 0 && slice.steps[0] == 1 && slice.lens[0] == batch => {
            leading(2, Part::Rows)
        }
        Op::Pad { before, after, .. } if before[0] == 0 && after[0] == 0 => leading(1, Part::Rows),
        Op::Reshape { dims } | Op::Expand { dims } if dims.first() == Some(&batch) => {
            let aligned =
                graph.ty(node.inputs[0]).rank() == dims.len() || matches!(node.op, Op::Reshape { .. });
            if !aligned {
                return None;
            }
            leading(1, Part::Rows)
        }
        Op::Transpose { perm } if perm[0] == 0 => leading(1, Part::Rows),
        Op::SoftmaxCrossEntropy { reduction, ignore_index: None } if is.len() == 2 => {
            let mut rule = leading(2, Part::Rows);
            rule.results[0] = total(*reduction);
            rule
        }
        Op::NegativeLogLikelihood { reduction, ignore_index: None } if is.len() == 2 => {
            leading(2, total(*reduction))
        }
        Op::SoftmaxCrossEntropyGrad { reduction, ignore_index: None } if is.len() == 3 => {
            of_loss(leading(3, Part::Rows), *reduction)
        }
        Op::NegativeLogLikelihoodGrad { reduction, ignore_index: None, .. } if is.len() == 2 => {
            of_loss(leading(2, Part::Rows), *reduction)
        }
        _ => return None,
    };
    let fits = rule
        .cut
        .iter()
        .zip(&is)
        .enumerate()
        .all(|(i, (&cut, &rows))| if cut { dims(i).first() == Some(&batch) } else { !rows });
    let rows_fit = rule
        .results
        .iter()
        .zip(&node.outputs)
        .all(|(part, &v)| *part != Part::Rows || graph.ty(v).dims.first() == Some(&batch));
    (fits && rows_fit && rule.cut.contains(&true)).then_some(rule)
}

fn total(reduction: LossReduction) -> Part {
    match reduction {
        LossReduction::None => Part::Rows,
        LossReduction::Sum => Part::Sum,
        LossReduction::Mean => Part::Mean,
    }
}

/// The gradient of a loss: its first operand is that of the loss itself.
fn of_loss(mut rule: Rule, reduction: LossReduction) -> Rule {
    rule.cut[0] = reduction == LossReduction::None;
    rule.scaled = (reduction == LossReduction::Mean).then_some(0);
    rule
}

/// The op on `len` of `batch` samples from `first` on. `results` are the types of its results.
pub(super) fn on_rows(op: &Op, graph: &Graph, node: &Node, first: u64, len: u64) -> Op {
    let mut op = op.clone();
    match &mut op {
        Op::ConvDgrad { x_dims, .. }
        | Op::MaxPoolGrad { x_dims, .. }
        | Op::AvgPoolGrad { x_dims, .. }
        | Op::NegativeLogLikelihoodGrad { x_dims, .. } => x_dims[0] = len,
        Op::SliceGrad { slice, x_dims } => {
            slice.lens[0] = len;
            x_dims[0] = len;
        }
        Op::Slice(slice) | Op::AddSlice(slice) => slice.lens[0] = len,
        Op::Reshape { dims } | Op::Expand { dims } => dims[0] = len,
        Op::Dropout { first: at, .. } => {
            let ty = graph.ty(node.outputs[0]);
            *at += first * (ty.elements() / ty.dims[0].max(1));
        }
        _ => {}
    }
    op
}
