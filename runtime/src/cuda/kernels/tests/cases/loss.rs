//! Softmax and losses.

use super::{Case, Rng, list, naive};
use vdnn_ir::op::{LossReduction, Op};
use vdnn_ir::{DType, Tensor, TensorType};

pub(super) fn softmax_and_losses(rng: &mut Rng, out: &mut Vec<Case>) {
    let shapes: [(&[u64], u64); 9] = [
        (&[3, 10], 1),
        (&[2, 1000], 1),
        (&[2, 5, 3, 4], 1),
        (&[2, 5, 3, 4], 3),
        (&[4, 3], 0),
        (&[2, 3, 200], 1),
        (&[7], 0),
        (&[17, 1], 1),
        (&[9, 33], 1),
    ];
    for (dims, axis) in shapes {
        let x = rng.tensor(dims, -9.0, 9.0);
        let dy = rng.tensor(dims, -1.0, 1.0);
        for (op, grad) in [
            (Op::Softmax { axis }, Op::SoftmaxGrad { axis }),
            (Op::LogSoftmax { axis }, Op::LogSoftmaxGrad { axis }),
        ] {
            let y = naive(&op, std::slice::from_ref(&x), 1).remove(0);
            out.push(Case::new(op, vec![x.clone()], 1e-6));
            out.push(Case::new(grad, vec![dy.clone(), y], 1e-6));
        }
    }
    for dims in [&[5, 10][..], &[2, 4, 3], &[2, 3, 2, 5], &[3000, 3], &[1, 1], &[1, 2, 2000]] {
        let labels: Vec<u64> = dims[..1].iter().chain(&dims[2..]).copied().collect();
        let n = labels.iter().product::<u64>();
        for (weighted, ignore, narrow) in
            [(false, None, false), (true, None, true), (false, Some(-1), false), (true, Some(0), true)]
        {
            let values: Vec<i64> = (0..n)
                .map(|i| if i % 3 == 1 { ignore.unwrap_or(0) } else { (rng.next() % dims[1]) as i64 })
                .collect();
            let labels = if narrow {
                let bytes: Vec<u8> = values.iter().flat_map(|&v| (v as i32).to_le_bytes()).collect();
                Tensor::from_bytes(TensorType::new(DType::I32, labels.clone()), &bytes)
                    .expect("a size that fits")
            } else {
                Tensor::from_i64(labels.clone(), &values)
            };
            let weight = weighted.then(|| rng.tensor(&dims[1..2], 0.5, 2.0));
            let with_labels = |mut inputs: Vec<Tensor>| {
                inputs.push(labels.clone());
                inputs.extend(weight.clone());
                inputs
            };
            for reduction in [LossReduction::Mean, LossReduction::Sum, LossReduction::None] {
                let inputs = with_labels(vec![rng.tensor(dims, -5.0, 5.0)]);
                let op = Op::SoftmaxCrossEntropy { reduction, ignore_index: ignore };
                let made = naive(&op, &inputs, 2);
                out.push(Case { op, inputs, outputs: 2, tolerance: 1e-6 });
                let dloss = rng.tensor(&made[0].ty().dims, -1.0, 1.0);
                let op = Op::SoftmaxCrossEntropyGrad { reduction, ignore_index: ignore };
                out.push(Case::new(op, with_labels(vec![dloss.clone(), made[1].clone()]), 1e-6));
                let op = Op::NegativeLogLikelihood { reduction, ignore_index: ignore };
                out.push(Case::new(op, with_labels(vec![made[1].clone()]), 1e-6));
                let op =
                    Op::NegativeLogLikelihoodGrad { reduction, ignore_index: ignore, x_dims: list(dims) };
                out.push(Case::new(op, with_labels(vec![dloss]), 1e-6));
            }
        }
    }
}

/// Losses with a label outside the classes.
pub(crate) fn bad_labels() -> Vec<Case> {
    let mut out = Vec::new();
    for label in [3, -1, i64::MIN, i64::MAX] {
        for reduction in [LossReduction::Mean, LossReduction::Sum, LossReduction::None] {
            let x = Tensor::zeros(TensorType::f32([3, 3]));
            let labels = Tensor::from_i64([3], &[0, -100, label]);
            let ignore_index = Some(-100);
            let op = Op::SoftmaxCrossEntropy { reduction, ignore_index };
            let inputs = vec![x.clone(), labels.clone()];
            out.push(Case { op, inputs, outputs: 2, tolerance: 0.0 });
            let dims: &[u64] = if reduction == LossReduction::None { &[3] } else { &[] };
            let dloss = Rng(1).tensor(dims, 0.5, 1.0);
            let op = Op::SoftmaxCrossEntropyGrad { reduction, ignore_index };
            out.push(Case::new(op, vec![dloss.clone(), x, labels.clone()], 0.0));
            let op = Op::NegativeLogLikelihoodGrad { reduction, ignore_index, x_dims: list(&[3, 3]) };
            out.push(Case::new(op, vec![dloss, labels], 0.0));
        }
    }
    out
}
