//! Softmax cross-entropy, negative log likelihood, and their gradients.

use super::element::{Element, get, put};
use super::{around, reduce};
use vdnn_ir::DType;
use vdnn_ir::kernel::{KernelError, TensorMut, TensorRef};
use vdnn_ir::op::LossReduction;

/// The class and weight of each position; `None` where the label is ignored.
fn targets<E: Element>(
    labels: TensorRef<'_>,
    weight: Option<&TensorRef<'_>>,
    classes: usize,
    ignore_index: Option<i64>,
) -> Result<Vec<Option<(usize, f64)>>, KernelError> {
    let labels: Vec<i64> = match labels.ty.dtype {
        DType::I32 => bytemuck::cast_slice(labels.bytes).iter().map(|&l: &i32| i64::from(l)).collect(),
        _ => labels.i64().to_vec(),
    };
    labels
        .iter()
        .enumerate()
        .map(|(i, &label)| {
            if Some(label) == ignore_index {
                return Ok(None);
            }
            match usize::try_from(label) {
                Ok(class) if class < classes => {
                    Ok(Some((class, weight.map_or(1.0, |w| get::<E>(*w)[class].wide()))))
                }
                _ => Err(KernelError::BadData(format!(
                    "label {label} at position {i} is outside the {classes} classes; \
                     pass labels in 0..{classes}"
                ))),
            }
        })
        .collect()
}

fn total(targets: &[Option<(usize, f64)>]) -> f64 {
    targets.iter().flatten().map(|t| t.1).sum()
}

pub(super) fn forward<E: Element>(
    reduction: LossReduction,
    ignore_index: Option<i64>,
    x: &[TensorRef<'_>],
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let [_, classes, inner] = around(x[0].ty, 1);
    let targets = targets::<E>(x[1], x.get(2), classes, ignore_index)?;
    reduce::softmax::<E>(1, x[0], &mut outputs[1], true);
    let [loss, log_prob] = outputs else {
        return Err(KernelError::BadData("cross-entropy has two outputs".into()));
    };
    combine(reduction, &targets, put::<E>(log_prob), [classes, inner], put::<E>(loss));
    Ok(())
}

/// The negated log-probabilities of the targets, weighted and combined.
fn combine<E: Element>(
    reduction: LossReduction,
    targets: &[Option<(usize, f64)>],
    log_prob: &[E],
    [classes, inner]: [usize; 2],
    loss: &mut [E],
) {
    let losses: Vec<f64> = targets
        .iter()
        .enumerate()
        .map(|(p, target)| {
            target.map_or(0.0, |(class, weight)| {
                let at = (p / inner * classes + class) * inner + p % inner;
                -weight * log_prob[at].wide()
            })
        })
        .collect();
    match reduction {
        LossReduction::Mean => loss[0] = E::round(losses.iter().sum::<f64>() / total(targets)),
        LossReduction::Sum => loss[0] = E::round(losses.iter().sum::<f64>()),
        LossReduction::None => loss.iter_mut().zip(&losses).for_each(|(l, &v)| *l = E::round(v)),
    }
}

/// [`vdnn_ir::Op::NegativeLogLikelihood`].
pub(super) fn pick<E: Element>(
    reduction: LossReduction,
    ignore_index: Option<i64>,
    x: &[TensorRef<'_>],
    loss: &mut TensorMut<'_>,
) -> Result<(), KernelError> {
    let [_, classes, inner] = around(x[0].ty, 1);
    let targets = targets::<E>(x[1], x.get(2), classes, ignore_index)?;
    combine(reduction, &targets, get::<E>(x[0]), [classes, inner], put::<E>(loss));
    Ok(())
}

/// [`vdnn_ir::Op::NegativeLogLikelihoodGrad`]: `-dloss * weight * onehot`, over the sum of
/// weights for a mean.
pub(super) fn pick_grad<E: Element>(
    reduction: LossReduction,
    ignore_index: Option<i64>,
    x: &[TensorRef<'_>],
    dx: &mut TensorMut<'_>,
) -> Result<(), KernelError> {
    let dloss = get::<E>(x[0]);
    let [_, classes, inner] = around(dx.ty, 1);
    let targets = targets::<E>(x[1], x.get(2), classes, ignore_index)?;
    let divisor = if reduction == LossReduction::Mean { total(&targets) } else { 1.0 };
    let dx = put::<E>(dx);
    dx.fill(E::round(0.0));
    for (p, target) in targets.iter().enumerate() {
        let upstream = if reduction == LossReduction::None { dloss[p] } else { dloss[0] };
        if let Some((class, weight)) = target {
            let at = (p / inner * classes + class) * inner + p % inner;
            dx[at] = E::round(-upstream.wide() * weight / divisor);
        }
    }
    Ok(())
}

/// `dlogits = dloss * weight * (softmax - onehot)`, over the sum of weights for a mean.
pub(super) fn grad<E: Element>(
    reduction: LossReduction,
    ignore_index: Option<i64>,
    x: &[TensorRef<'_>],
    dlogits: &mut TensorMut<'_>,
) -> Result<(), KernelError> {
    let (dloss, log_prob) = (get::<E>(x[0]), get::<E>(x[1]));
    let [_, classes, inner] = around(x[1].ty, 1);
    let targets = targets::<E>(x[2], x.get(3), classes, ignore_index)?;
    let divisor = if reduction == LossReduction::Mean { total(&targets) } else { 1.0 };
    let dlogits = put::<E>(dlogits);
    for (p, target) in targets.iter().enumerate() {
        let upstream = if reduction == LossReduction::None { dloss[p] } else { dloss[0] };
        for c in 0..classes {
            let at = (p / inner * classes + c) * inner + p % inner;
            dlogits[at] = E::round(target.map_or(0.0, |(class, weight)| {
                let hot = if c == class { 1.0 } else { 0.0 };
                upstream.wide() * weight / divisor * (log_prob[at].wide().exp() - hot)
            }));
        }
    }
    Ok(())
}
