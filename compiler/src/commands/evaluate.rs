//! Accuracy of a classifier on part of a data set.

use super::dataset::Dataset;
use super::load::FromTensors;
use crate::error::Failure;
use std::collections::BTreeMap;
use vdnn_ir::Tensor;
use vdnn_plan::Plan;
use vdnn_runtime::backend::Backend;
use vdnn_runtime::executor::Executor;

/// Share of `indices` whose largest logit is at the label, as computed on a fresh `backend`.
///
/// # Errors
/// Those of the executor.
pub fn accuracy(
    plan: &Plan,
    params: &BTreeMap<String, Tensor>,
    data: &Dataset,
    indices: &[usize],
    backend: Box<dyn Backend>,
) -> Result<f64, Failure> {
    let mut executor =
        Executor::load(plan.clone(), &FromTensors(params), backend).map_err(Failure::internal)?;
    let input = plan.inputs[0].name.clone();
    let output = plan.outputs[0].name.clone();
    let batch = usize::try_from(plan.header.batch).unwrap_or(1);
    let mut right = 0usize;
    for chunk in indices.chunks(batch) {
        // The last batch is filled up by repeating its first sample.
        let mut padded = chunk.to_vec();
        padded.resize(batch, chunk[0]);
        let (images, _) = data.batch(&padded);
        let outputs = executor.step(&BTreeMap::from([(input.clone(), images)])).map_err(Failure::internal)?;
        let logits = outputs[&output].f32();
        let classes = logits.len() / batch;
        for (row, &i) in logits.chunks_exact(classes).zip(chunk) {
            let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |m| m.0);
            right += usize::from(best as i64 == data.labels[i]);
        }
    }
    Ok(right as f64 / indices.len().max(1) as f64)
}
