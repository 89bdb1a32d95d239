//! `vdnnc train MODEL --data …`: real training, checkpoints, trained ONNX out.

use super::backend::Choice;
use super::dataset::Dataset;
use super::equivalence;
use super::evaluate;
use super::load::{self, FromTensors};
use super::target::{Runner, Target};
use crate::cli::{ComputeBackend, LrSchedule, TrainArgs};
use crate::error::Failure;
use crate::progress::Progress;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;
use vdnn_frontends::onnx;
use vdnn_frontends::tensors::safetensors;
use vdnn_ir::random::splitmix64;
use vdnn_ir::{Mode, Tensor};
use vdnn_plan::Plan;
use vdnn_runtime::executor::Executor;

/// Batch for models whose batch is symbolic, unless the user says.
const DEFAULT_BATCH: u64 = 32;

/// Where a run stands; with the parameters, everything a checkpoint holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    epoch: u64,
    step: u64,
    seed: u64,
}

#[derive(Debug, serde::Serialize)]
struct EpochRow {
    epoch: u64,
    loss: f64,
    accuracy: f64,
    seconds: f64,
}

/// Runs the command.
///
/// # Errors
/// What the user should read.
pub fn run(args: &TrainArgs) -> Result<(), Failure> {
    if !(0.0..1.0).contains(&args.validation) {
        return Err(Failure::user("--validation must be at least 0 and below 1"));
    }
    let choice = Choice {
        backend: args.backend(),
        threads: args.threads,
        poison: args.poison,
        cuda: &args.cuda,
        shared: &args.shared,
    };
    choice.probe()?;
    let data = Dataset::read(&args.data, args.mean, args.std)?;
    let held_out = (data.len() as f64 * args.validation).round() as usize;
    let (train_len, total) = (data.len() - held_out, data.len());

    let mut options = match args.backend() {
        ComputeBackend::Cuda => args.shared.options_on_gpu(Mode::Train),
        ComputeBackend::Cpu => args.shared.options_on_cpu(Mode::Train),
    };
    let runner = if args.backend() == ComputeBackend::Cpu { Runner::Host } else { Runner::Device };
    let mut target = Target::open(&mut options, &args.shared, runner)?;
    let model = open_model(args, &mut options.batch, &options.dims, true)?;
    let cost = target.cost(&model.imported.graph, &options)?;
    let compiled = model.compile(None, &options, &cost).map_err(load::over_budget)?;
    let plan = compiled.plan;
    let batch = usize::try_from(plan.header.batch).map_err(Failure::user)?;
    check_data(&plan, &data, train_len, batch)?;
    let evaluation = evaluation_plan(args, &options, &mut target)?;
    // Measuring holds memory of the device.
    drop(target);
    if args.shared.micro.verify_equivalence {
        equivalence::verify(&plan, &choice)?;
    }

    let mut params = load::tensors(&model.imported.weights);
    let mut at = Position { epoch: 0, step: 0, seed: args.seed };
    if args.resume
        && let Some(dir) = &args.checkpoint
    {
        at = read_checkpoint(dir, &mut params)?;
    }
    let names: Vec<String> =
        plan.params.iter().filter(|p| p.role != vdnn_ir::ParamRole::Frozen).map(|p| p.name.clone()).collect();
    let wanted: Vec<String> = plan.inputs.iter().map(|i| i.name.clone()).collect();
    let mut executor = Executor::load(plan, &FromTensors(&params), choice.open()?).map_err(Failure::user)?;
    for name in &names {
        if let Some(t) = params.get(name) {
            executor.write_param(name, t).map_err(Failure::user)?;
        }
    }

    let per_epoch = (train_len / batch) as u64;
    let total_steps = (per_epoch * args.epochs).max(1);
    let mut rows = Vec::new();
    let validation: Vec<usize> = (train_len..total).collect();
    for epoch in at.epoch..args.epochs {
        let start = Instant::now();
        let order = shuffled(train_len, at.seed, epoch);
        let progress = Progress::new(per_epoch, &format!("epoch {}/{}", epoch + 1, args.epochs));
        let mut sum = 0.0;
        for chunk in order.chunks_exact(batch) {
            let lr = learning_rate(args, at.step, total_steps);
            let (images, labels) = data.batch(chunk);
            let inputs = inputs(args, &wanted, images, labels, lr, at.step);
            let outputs = executor.step(&inputs).map_err(Failure::user)?;
            let loss = outputs["loss"].f32()[0];
            if !loss.is_finite() {
                return Err(
                    Failure::user(format!("the loss is {loss} at step {}", at.step)).hint("lower --lr")
                );
            }
            sum += f64::from(loss);
            at.step += 1;
            progress.tick(format!("loss {loss:.4}"));
        }
        progress.finish();
        for name in &names {
            params.insert(name.clone(), executor.read_param(name).map_err(Failure::internal)?);
        }
        let accuracy = if validation.is_empty() {
            f64::NAN
        } else {
            evaluate::accuracy(&evaluation, &params, &data, &validation, choice.open()?)?
        };
        at.epoch = epoch + 1;
        let row = EpochRow {
            epoch: epoch + 1,
            loss: sum / per_epoch as f64,
            accuracy,
            seconds: start.elapsed().as_secs_f64(),
        };
        if !args.json {
            super::print(&format!(
                "epoch {:>3}  loss {:.4}  accuracy {:.2} %  {:.1} s",
                row.epoch,
                row.loss,
                100.0 * row.accuracy,
                row.seconds
            ));
        }
        rows.push(row);
        if let Some(dir) = &args.checkpoint {
            write_checkpoint(dir, at, &params, &names)?;
        }
    }
    if let Some(output) = &args.output {
        let trained: BTreeMap<String, Tensor> = params
            .iter()
            .filter(|(n, _)| !n.starts_with("momentum:"))
            .map(|(n, t)| (n.clone(), t.clone()))
            .collect();
        onnx::write_with_weights(&args.model, &trained, output)
            .map_err(|e| Failure::user(format!("{}: {e}", output.display())))?;
    }
    report(args, &rows, &compiled.summary, train_len, held_out);
    Ok(())
}

fn report(
    args: &TrainArgs,
    rows: &[EpochRow],
    summary: &crate::driver::Summary,
    train_len: usize,
    held_out: usize,
) {
    let last = rows.last();
    if args.json {
        super::print(
            &serde_json::json!({
                "model": args.model, "train_samples": train_len, "validation_samples": held_out,
                "epochs": rows, "accuracy": last.map(|r| r.accuracy),
                "memory": {"peak_bytes": summary.peak.0, "baseline_peak_bytes": summary.baseline_peak.0},
            })
            .to_string(),
        );
    } else if let Some(r) = last {
        super::print(&format!(
            "trained {} epochs on {train_len} samples: loss {:.4}, accuracy {:.2} % on {held_out} held out; device \
             arena {} ({:.1} % of baseline)",
            r.epoch,
            r.loss,
            100.0 * r.accuracy,
            summary.peak,
            100.0 * summary.peak.as_f64() / summary.baseline_peak.as_f64().max(1.0)
        ));
    } else {
        super::print("nothing left to train");
    }
}

fn open_model(
    args: &TrainArgs,
    batch: &mut Option<u64>,
    dims: &BTreeMap<String, u64>,
    training: bool,
) -> Result<load::Model, Failure> {
    if batch.is_some() {
        return load::model(&args.model, *batch, dims, training);
    }
    // A model of fixed batch refuses the default and is then opened at its own.
    match load::model(&args.model, Some(DEFAULT_BATCH), dims, training) {
        Ok(model) => {
            *batch = Some(DEFAULT_BATCH);
            Ok(model)
        }
        Err(_) => load::model(&args.model, None, dims, training),
    }
}

fn evaluation_plan(
    args: &TrainArgs,
    train: &crate::options::CompileOptions,
    target: &mut Target,
) -> Result<Plan, Failure> {
    let model = load::model(&args.model, train.batch, &train.dims, false)?;
    let options = crate::options::CompileOptions {
        mode: Mode::Infer,
        policy: vdnn_passes::Policy::None,
        keep_gradients: false,
        memory: None,
        ..train.clone()
    };
    let cost = target.cost(&model.imported.graph, &options)?;
    Ok(model.compile(None, &options, &cost).map_err(load::over_budget)?.plan)
}

fn check_data(plan: &Plan, data: &Dataset, train_len: usize, batch: usize) -> Result<(), Failure> {
    let images: Vec<_> =
        plan.inputs.iter().filter(|i| i.name != "labels" && !i.name.starts_with("vdnnc.")).collect();
    let [image] = images.as_slice() else {
        return Err(Failure::user("training on a data set needs a model with exactly one input"));
    };
    let ty = &plan.buffers[image.buf].ty;
    if ty.dims[1..] != data.image_dims[..] {
        return Err(Failure::user(format!(
            "the model's input `{}` is {ty}, the data set's images are {:?}",
            image.name, data.image_dims
        )));
    }
    if train_len < batch {
        return Err(Failure::user(format!("{train_len} training samples do not fill a batch of {batch}")));
    }
    Ok(())
}

fn inputs(
    args: &TrainArgs,
    wanted: &[String],
    images: Tensor,
    labels: Tensor,
    lr: f32,
    step: u64,
) -> BTreeMap<String, Tensor> {
    let mut images = Some(images);
    let mut labels = Some(labels);
    wanted
        .iter()
        .map(|name| {
            let t = match name.as_str() {
                "vdnnc.hyper" => Tensor::from_f32([3], &[lr, args.sgd.momentum, args.sgd.weight_decay]),
                "vdnnc.step" => Tensor::from_i64([], &[step as i64]),
                "labels" => labels.take().expect("one labels input"),
                _ => images.take().expect("one image input"),
            };
            (name.clone(), t)
        })
        .collect()
}

fn learning_rate(args: &TrainArgs, step: u64, total: u64) -> f32 {
    match args.schedule {
        LrSchedule::Constant => args.sgd.lr,
        LrSchedule::Cosine => {
            let t = step as f64 / total as f64;
            (f64::from(args.sgd.lr) * 0.5 * (1.0 + (std::f64::consts::PI * t).cos())) as f32
        }
    }
}

/// A permutation of `0..n` (Fisher-Yates) that depends only on seed and epoch.
fn shuffled(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let seed = seed ^ epoch.wrapping_mul(0xD134_2543_DE82_EF95);
    let mut order: Vec<usize> = (0..n).collect();
    for (draw, i) in (0u64..).zip((1..n).rev()) {
        let j = ((u128::from(splitmix64(seed, draw)) * (i as u128 + 1)) >> 64) as usize;
        order.swap(i, j);
    }
    order
}

fn checkpoint_file(dir: &Path) -> PathBuf {
    dir.join("checkpoint.safetensors")
}

/// Key of the position inside a checkpoint; no initializer can have this name by accident.
const POSITION: &str = "vdnnc.position";

fn write_checkpoint(
    dir: &Path,
    at: Position,
    params: &BTreeMap<String, Tensor>,
    names: &[String],
) -> Result<(), Failure> {
    let path = checkpoint_file(dir);
    let fail = |e: &dyn std::fmt::Display| Failure::user(format!("{}: {e}", path.display()));
    std::fs::create_dir_all(dir).map_err(|e| fail(&e))?;
    let mut all: BTreeMap<String, Tensor> =
        names.iter().filter_map(|n| Some((n.clone(), params.get(n)?.clone()))).collect();
    let position = [at.epoch as i64, at.step as i64, at.seed as i64];
    all.insert(POSITION.to_owned(), Tensor::from_i64([3], &position));
    safetensors::write(&path, &all).map_err(|e| fail(&e))
}

fn read_checkpoint(dir: &Path, params: &mut BTreeMap<String, Tensor>) -> Result<Position, Failure> {
    let path = checkpoint_file(dir);
    let fail = |e: &dyn std::fmt::Display| Failure::user(format!("{}: {e}", path.display()));
    let mut all = safetensors::read(&path).map_err(|e| fail(&e))?;
    let position = all
        .remove(POSITION)
        .filter(|t| t.ty().dtype == vdnn_ir::DType::I64 && t.ty().elements() == 3)
        .ok_or_else(|| fail(&"is not a checkpoint of vdnnc train"))?;
    let p = position.i64();
    params.extend(all);
    Ok(Position { epoch: p[0] as u64, step: p[1] as u64, seed: p[2] as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffle_is_a_permutation_that_depends_on_seed_and_epoch() {
        let a = shuffled(1000, 1, 0);
        let mut sorted = a.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        assert_eq!(a, shuffled(1000, 1, 0));
        assert_ne!(a, shuffled(1000, 1, 1));
        assert_ne!(a, shuffled(1000, 2, 0));
    }
}
