//! Work and traffic of an op, for cost models.
//!
//! Counts are the textbook ones: convolutions and matrix products by their multiply-adds,
//! everything else by a small number of operations per element, which is enough because
//! those ops are bound by memory traffic.

use super::Op;
use crate::types::TensorType;
use crate::units::{Bytes, Flops};

/// Floating-point operations of one execution (a multiply-add is two), saturating.
/// `inputs` and `outputs` are those [`super::infer::infer`] accepts and returns.
pub fn flops(op: &Op, inputs: &[&TensorType], outputs: &[&TensorType]) -> Flops {
    let input = |i: usize| inputs.get(i).map_or(0, |t| t.elements());
    let output = |i: usize| outputs.get(i).map_or(0, |t| t.elements());
    let product = |factors: &[u64]| factors.iter().fold(1u64, |n, &f| n.saturating_mul(f));
    let window = |kernel: &[u64]| product(kernel);
    // Multiply-adds of one output pixel and channel: the weight without its first extent.
    let taps = |w: &TensorType| product(w.dims.get(1..).unwrap_or_default());
    let count = match op {
        Op::Conv(_) | Op::ConvEpilogue { .. } => {
            let bias = if inputs.len() > 2 { output(0) } else { 0 };
            product(&[2, output(0), inputs.get(1).map_or(0, |w| taps(w))]).saturating_add(bias)
        }
        Op::Pyramid(pyramid) => pyramid.typed(inputs).map_or(0, |parts| {
            let part = |p: &super::pyramid::TypedPart| {
                flops(&p.op, &p.operands.iter().collect::<Vec<_>>(), &[&p.result]).0
            };
            parts.iter().fold(0u64, |n, p| n.saturating_add(part(p)))
        }),
        Op::ConvDgrad { .. } => product(&[2, input(0), inputs.get(1).map_or(0, |w| taps(w))]),
        Op::ConvWgrad { .. } => product(&[2, input(1), outputs.first().map_or(0, |w| taps(w))]),
        Op::Gemm { trans_a, .. } => {
            let k = inputs.first().and_then(|a| a.dims.get(usize::from(!trans_a)));
            let c = if inputs.len() > 2 { output(0) } else { 0 };
            product(&[2, output(0), k.copied().unwrap_or(0)]).saturating_add(c)
        }
        Op::MatMul { trans_a, .. } => {
            let back = if *trans_a { 2 } else { 1 };
            let k = inputs.first().and_then(|a| a.dims.iter().rev().nth(back - 1));
            product(&[2, output(0), k.copied().unwrap_or(0)])
        }
        Op::MaxPool(pool) | Op::AvgPool { pool, .. } => product(&[output(0), window(&pool.kernel)]),
        Op::AvgPoolGrad { pool, .. } => product(&[input(0), window(&pool.kernel)]),
        Op::MaxPoolGrad { .. } => input(0),
        // Square, window sum (running), power, divide.
        Op::Lrn(_) => product(&[6, input(0)]),
        Op::LrnGrad(_) => product(&[10, input(0)]),
        Op::BatchNormInfer { .. } => product(&[2, input(0)]),
        Op::BatchNormInferRelu { .. } | Op::BatchNormApplyRelu { .. } => product(&[3, output(0)]),
        // Mean, centred squares, then scale and shift.
        Op::BatchNormTrain { .. } | Op::BatchNormTrainRelu { .. } | Op::BatchNormTrainReluJoined { .. } => {
            product(&[6, output(0)])
        }
        Op::BatchNormReluGrad { .. } | Op::BatchNormReluGradJoined { .. } => product(&[10, input(0)]),
        Op::BatchNormGrad | Op::BatchNormInferGrad { .. } => product(&[8, input(0)]),
        // Maximum, exponential, sum, divide.
        Op::Softmax { .. } | Op::LogSoftmax { .. } | Op::SoftmaxCrossEntropy { .. } => {
            product(&[5, input(0)])
        }
        Op::SoftmaxGrad { .. } | Op::LogSoftmaxGrad { .. } => product(&[4, input(0)]),
        Op::SoftmaxCrossEntropyGrad { .. } => product(&[3, output(0)]),
        Op::NegativeLogLikelihood { .. } => product(&[2, input(1)]),
        Op::NegativeLogLikelihoodGrad { .. } => product(&[2, input(1)]),
        Op::Unary(_) | Op::Binary(_) | Op::AddSlice(_) | Op::Dropout { .. } | Op::Cast { .. } => output(0),
        Op::Elementwise(program) => product(&[program.steps.len() as u64, output(0)]),
        Op::UnaryGrad(_) => product(&[2, output(0)]),
        Op::Reduce { .. } => input(0),
        Op::SgdUpdate => (0..outputs.len() as u64 / 2)
            .fold(0u64, |n, i| n.saturating_add(product(&[6, input(3 * i as usize)]))),
        // As if there were no zeros: how many there are is the data's.
        Op::SparseInputConv { .. } => {
            let bias = if inputs.len() > 2 { output(0) } else { 0 };
            let taps = inputs.get(1).map_or(&[][..], |w| w.dims.get(..2).unwrap_or_default());
            product(&[2, output(0), product(taps)]).saturating_add(bias)
        }
        Op::SparseConv { w_dims, form, .. } => {
            let bias = if inputs.len() > 2 { output(0) } else { 0 };
            let rows = w_dims.first().copied().unwrap_or(1).max(1);
            let entries = form.room(rows, input(1)).unwrap_or(0);
            product(&[2, output(0) / rows, entries, form.weights()]).saturating_add(bias)
        }
        Op::Concat { .. }
        | Op::Gather { .. }
        | Op::PackSparse { .. }
        | Op::Split { .. }
        | Op::Slice(_)
        | Op::SliceGrad { .. }
        | Op::Pad { .. }
        | Op::Reshape { .. }
        | Op::Relayout { .. }
        | Op::Transpose { .. }
        | Op::Expand { .. }
        | Op::Fill { .. }
        | Op::OffloadStart
        | Op::OffloadDone
        | Op::PrefetchStart
        | Op::PrefetchDone => 0,
    };
    Flops(count)
}

/// Bytes a kernel reads and writes in device memory if every operand is touched once,
/// saturating. Zero for ops that launch no kernel: reshapes and both kinds of transfer,
/// whose copies are priced by the link.
pub fn traffic(op: &Op, inputs: &[&TensorType], outputs: &[&TensorType]) -> Bytes {
    let sum = |types: &[&TensorType]| types.iter().fold(Bytes::ZERO, |n, t| n.saturating_add(t.bytes()));
    match op {
        Op::Reshape { .. } => Bytes::ZERO,
        _ if op.is_transfer() => Bytes::ZERO,
        // One class of each position is read.
        Op::NegativeLogLikelihood { .. } => sum(inputs.get(1..).unwrap_or_default())
            .saturating_add(inputs.get(1).map_or(Bytes::ZERO, |labels| labels.bytes()))
            .saturating_add(sum(outputs)),
        // Only the selected elements are read.
        Op::Slice(_) | Op::Gather { .. } => sum(outputs).saturating_add(sum(outputs)),
        Op::AddSlice(_) => [outputs; 3].into_iter().fold(Bytes::ZERO, |n, y| n.saturating_add(sum(y))),
        _ => sum(inputs).saturating_add(sum(outputs)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::infer::infer;

    fn measure(op: &str, inputs: &[&str]) -> (u64, u64) {
        let op: Op = op.parse().unwrap();
        let inputs: Vec<TensorType> = inputs.iter().map(|t| t.parse().unwrap()).collect();
        let inputs: Vec<&TensorType> = inputs.iter().collect();
        let outputs = infer(&op, &inputs, 1).unwrap();
        let outputs: Vec<&TensorType> = outputs.iter().collect();
        (flops(&op, &inputs, &outputs).0, traffic(&op, &inputs, &outputs).0)
    }

    #[test]
    fn the_three_convolution_directions_cost_the_same() {
        let conv = "kernel:[3,3],strides:[1,1],before:[1,1],after:[1,1],dilations:[1,1],groups:2";
        let macs = 2 * (2 * 6 * 5 * 7) * (2 * 3 * 3);
        let (x, w, y) = ("f32[2,4,5,7]", "f32[6,2,3,3]", "f32[2,6,5,7]");
        let bytes = 4 * (2 * 4 * 5 * 7 + 6 * 2 * 3 * 3 + 2 * 6 * 5 * 7);
        assert_eq!(measure(&format!("conv({conv})"), &[x, w]), (macs, bytes));
        assert_eq!(measure(&format!("conv_dgrad(conv:({conv}),x_dims:[2,4,5,7])"), &[y, w]), (macs, bytes));
        assert_eq!(measure(&format!("conv_wgrad(conv:({conv}),w_dims:[6,2,3,3])"), &[x, y]), (macs, bytes));
    }

    #[test]
    fn matrix_products_count_the_inner_extent() {
        let gemm = |ta| format!("gemm(trans_a:{ta},trans_b:false,alpha:1.0,beta:0.0)");
        assert_eq!(measure(&gemm(false), &["f32[2,3]", "f32[3,5]"]).0, 2 * 2 * 3 * 5);
        assert_eq!(measure(&gemm(true), &["f32[3,2]", "f32[3,5]"]).0, 2 * 2 * 3 * 5);
        let matmul = |ta| format!("mat_mul(trans_a:{ta},trans_b:false)");
        assert_eq!(measure(&matmul(false), &["f32[4,2,3]", "f32[3,5]"]).0, 2 * 4 * 2 * 3 * 5);
        assert_eq!(measure(&matmul(true), &["f32[4,3,2]", "f32[3,5]"]).0, 2 * 4 * 2 * 3 * 5);
    }

    #[test]
    fn views_and_transfers_are_free() {
        assert_eq!(measure("reshape(dims:[6])", &["f32[2,3]"]), (0, 0));
        assert_eq!(measure("offload_start", &["f32[2,3]"]), (0, 0));
        assert_eq!(measure("concat(axis:0)", &["f32[2]", "f32[3]"]), (0, 40));
        assert_eq!(measure("slice(starts:[0],steps:[1],lens:[2])", &["f32[100]"]), (0, 16));
    }
}
