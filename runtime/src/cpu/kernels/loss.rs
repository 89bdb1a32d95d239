//! Softmax cross-entropy, negative log likelihood, and their gradients.

use super::args::{Call, shape};
use super::loops;
use super::math;
use super::scratch;
use super::softmax::{View, apply};
use std::borrow::Cow;
use vdnn_ir::DType;
use vdnn_ir::kernel::{KernelError, TensorMut};
use vdnn_ir::op::LossReduction;

/// The labels, checked, and the weight of each class.
struct Targets<'a> {
    labels: Cow<'a, [i64]>,
    weights: Option<&'a [f32]>,
    ignore: Option<i64>,
}

impl<'a> Targets<'a> {
    fn new(call: &Call<'a>, labels: usize, classes: usize, ignore: Option<i64>) -> Result<Self, KernelError> {
        let weights = call.f32_if_present(labels + 1)?;
        let labels: Cow<'a, [i64]> = match call.input(labels)? {
            t if t.ty.dtype == DType::I32 => {
                call.cast::<i32>(labels, t, DType::I32)?.iter().map(|&l| l.into()).collect()
            }
            _ => call.i64(labels)?.into(),
        };
        let bad = labels.iter().position(|&l| Some(l) != ignore && !(0..classes as i64).contains(&l));
        match bad {
            Some(i) => Err(KernelError::BadData(format!(
                "label {} at index {i} is outside the {classes} classes (0..{classes}); \
                 correct the labels or give the model as many classes",
                labels[i]
            ))),
            None => Ok(Self { labels, weights, ignore }),
        }
    }

    /// Class and weight of position `i`, or `None` if it does not count.
    fn get(&self, i: usize) -> Option<(usize, f32)> {
        let label = self.labels[i];
        if Some(label) == self.ignore {
            return None;
        }
        Some((label as usize, self.weights.map_or(1.0, |w| w[label as usize])))
    }

    fn total_weight(&self) -> f64 {
        (0..self.labels.len()).filter_map(|i| self.get(i)).map(|(_, w)| f64::from(w)).sum()
    }
}

/// [`vdnn_ir::Op::SoftmaxCrossEntropy`]. A mean over no label at all is NaN.
pub(super) fn forward(
    call: &Call<'_>,
    reduction: LossReduction,
    ignore: Option<i64>,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let view = View::new(&shape(call.input(0)?.ty), 1);
    let logits = call.f32(0)?;
    let targets = Targets::new(call, 1, view.axis, ignore)?;
    let (loss, log_prob) = match outputs {
        [loss, log_prob] => (loss, Some(log_prob)),
        [loss] => (loss, None),
        _ => return Err(call.unsupported(format!("{} outputs", outputs.len()))),
    };
    let loss = call.f32_out(loss)?;
    let mut finish = |log_prob: &mut [f32]| {
        apply(call.par, view, true, logits, log_prob);
        combine(&targets, reduction, view, log_prob, loss);
    };
    match log_prob {
        Some(t) => finish(call.f32_out(t)?),
        None => scratch::with(logits.len(), finish),
    }
    Ok(())
}

/// The negated log-probabilities of the targets, weighted and combined.
fn combine(targets: &Targets<'_>, reduction: LossReduction, view: View, log_prob: &[f32], loss: &mut [f32]) {
    let term = |i: usize| {
        let (n, at) = (i / view.inner, i % view.inner);
        targets.get(i).map_or(0.0, |(class, w)| {
            -f64::from(w) * f64::from(log_prob[n * view.plane() + class * view.inner + at])
        })
    };
    let count = targets.labels.len();
    match reduction {
        LossReduction::None => {
            loss.iter_mut().enumerate().for_each(|(i, l)| *l = term(i) as f32);
        }
        LossReduction::Sum => loss[0] = (0..count).map(term).sum::<f64>() as f32,
        LossReduction::Mean => {
            loss[0] = ((0..count).map(term).sum::<f64>() / targets.total_weight()) as f32;
        }
    }
}

/// [`vdnn_ir::Op::NegativeLogLikelihood`]. A mean over no label at all is NaN.
pub(super) fn pick(
    call: &Call<'_>,
    reduction: LossReduction,
    ignore: Option<i64>,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let view = View::new(&shape(call.input(0)?.ty), 1);
    let targets = Targets::new(call, 1, view.axis, ignore)?;
    let loss = call.f32_out(call.one(outputs)?)?;
    combine(&targets, reduction, view, call.f32(0)?, loss);
    Ok(())
}

/// [`vdnn_ir::Op::NegativeLogLikelihoodGrad`]: minus the weight times dloss at the label and
/// zero elsewhere, over the total weight for a mean.
pub(super) fn pick_grad(
    call: &Call<'_>,
    reduction: LossReduction,
    ignore: Option<i64>,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let out = call.one(outputs)?;
    let view = View::new(&shape(out.ty), 1);
    let dloss = call.f32(0)?;
    let targets = Targets::new(call, 1, view.axis, ignore)?;
    let dx = call.f32_out(out)?;
    let total = if reduction == LossReduction::Mean { targets.total_weight() } else { 1.0 };
    dx.fill(0.0);
    for i in 0..targets.labels.len() {
        if let Some((class, w)) = targets.get(i) {
            let d = if reduction == LossReduction::None { dloss[i] } else { dloss[0] };
            let at = i / view.inner * view.plane() + class * view.inner + i % view.inner;
            dx[at] = (-f64::from(d) * f64::from(w) / total) as f32;
        }
    }
    Ok(())
}

/// [`vdnn_ir::Op::SoftmaxCrossEntropyGrad`]:
/// `dlogits = (softmax - onehot(label)) * weight * dloss`, over the total weight for a mean.
pub(super) fn grad(
    call: &Call<'_>,
    reduction: LossReduction,
    ignore: Option<i64>,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let dloss = call.f32(0)?;
    let view = View::new(&shape(call.input(1)?.ty), 1);
    let log_prob = call.f32(1)?;
    let targets = Targets::new(call, 2, view.axis, ignore)?;
    let dx = call.f32_out(call.one(outputs)?)?;
    let total = match reduction {
        LossReduction::Mean => targets.total_weight(),
        LossReduction::Sum | LossReduction::None => 1.0,
    };
    let factor = |i: usize, w: f32| {
        let d = if reduction == LossReduction::None { dloss[i] } else { dloss[0] };
        (f64::from(d) * f64::from(w) / total) as f32
    };
    let planes = (2048 / view.plane().max(1)).max(1);
    call.par.chunks(dx, planes * view.plane(), 8, |c, dx| {
        for (p, dx) in dx.chunks_exact_mut(view.plane()).enumerate() {
            let n = c * planes + p;
            let log_prob = &log_prob[n * view.plane()..][..view.plane()];
            if view.inner == 1 {
                let target = targets.get(n);
                let scale = target.map_or(0.0, |(_, w)| factor(n, w));
                loops::map(log_prob, dx, |l| math::exp(l) * scale);
                match target {
                    // One rounding of (p - 1), not of p and of the difference.
                    Some((class, _)) => dx[class] = (math::exp(log_prob[class]) - 1.0) * scale,
                    None => dx.fill(0.0),
                }
                continue;
            }
            for at in 0..view.inner {
                let target = targets.get(n * view.inner + at);
                for class in 0..view.axis {
                    let i = class * view.inner + at;
                    dx[i] = target.map_or(0.0, |(label, w)| {
                        let hot = if class == label { 1.0 } else { 0.0 };
                        (math::exp(log_prob[i]) - hot) * factor(n * view.inner + at, w)
                    });
                }
            }
        }
    });
    Ok(())
}
