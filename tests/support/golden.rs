//! The reference results of `golden/`: what a backend is given, and how close is close enough
//! (golden/README.md).

use crate::data::{self, difference, magnitude};
use crate::harness;
use std::collections::BTreeMap;
use vdnn_frontends::onnx::{self, ImportOptions, Imported};
use vdnn_ir::Tensor;
use vdnn_plan::Plan;

/// The small nets of `golden/train`.
pub const SMALL_NETS: [&str; 4] = ["vgg_small", "resnet_small", "densenet_small", "alexnet_small"];
/// The full-size training steps of `golden/fulltrain`.
pub const FULL_STEPS: [&str; 4] =
    ["alexnet.ts17", "vgg16.ts17", "resnet50.ts17_preserve", "densenet121.ts17_preserve"];
/// Folders with the files whose logits `golden/infer` has.
pub const FOLDERS: [&str; 2] = ["onnx/skel", "onnx/light_seeded"];
/// Batch of the small nets.
pub const BATCH: u64 = 8;
/// Their steps; the parameters are compared after the first and the one before the last.
pub const STEPS: usize = 6;
const CLASSES: u64 = 10;

/// Tensors of a reference file.
pub type Reference = BTreeMap<String, (Vec<u64>, Vec<f64>)>;

/// What came of a comparison.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Numbers or tensors compared.
    pub checks: usize,
    /// Largest error as a share of its limit.
    pub worst: f64,
    /// What is over its limit.
    pub failures: Vec<String>,
}

impl Verdict {
    fn add(&mut self, error: f64, limit: f64, what: &str) {
        self.checks += 1;
        let share = if error == 0.0 { 0.0 } else { error / limit };
        if share.is_nan() || share > 1.0 {
            self.failures.push(format!("{what} is off by {error:e}, more than {limit:e}"));
        }
        self.worst = self.worst.max(if share.is_nan() { f64::INFINITY } else { share });
    }

    fn fail(&mut self, what: String) {
        self.failures.push(what);
    }
}

/// One training run of a small net.
#[derive(Debug, Default)]
pub struct SmallRun {
    /// Of every step.
    pub losses: Vec<f32>,
    /// Of the first step, by parameter.
    pub gradients: BTreeMap<String, Tensor>,
    /// Parameters after the first step.
    pub first: BTreeMap<String, Tensor>,
    /// Parameters after the fifth step.
    pub last: BTreeMap<String, Tensor>,
}

/// A small net, if the data is there.
pub fn small_net(net: &str) -> Option<Imported> {
    let path = data::shared(&format!("golden/train/{net}.onnx"))?;
    Some(harness::import(&path, Some(BATCH), true))
}

/// Inputs of every training step of a small net.
pub fn small_inputs(net: &str, plan: &Plan) -> BTreeMap<String, Tensor> {
    let image = &plan.inputs[0];
    let dims = plan.buffers[image.buf].ty.dims.to_vec();
    let inputs = BTreeMap::from([
        (image.name.clone(), data::model_input(net, &dims)),
        ("labels".to_owned(), data::labels(BATCH, CLASSES, &format!("labels:{net}"))),
        ("vdnnc.hyper".to_owned(), harness::hyper(0.01, 0.9, 0.0)),
    ]);
    with_step(inputs, plan)
}

fn with_step(mut inputs: BTreeMap<String, Tensor>, plan: &Plan) -> BTreeMap<String, Tensor> {
    if plan.inputs.iter().any(|i| i.name == "vdnnc.step") {
        inputs.insert("vdnnc.step".to_owned(), Tensor::from_i64([], &[0]));
    }
    inputs
}

/// The gradients among a step's outputs.
pub fn gradients(outputs: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    outputs.iter().filter_map(|(n, t)| Some((n.strip_prefix("grad:")?.to_owned(), t.clone()))).collect()
}

/// Compares a run of a small net: losses within 1e-5, tensors within 1e-4 of their largest
/// element, and gradients within 1e-6 of the largest gradient besides.
pub fn judge_small(golden: &Reference, run: &SmallRun) -> Verdict {
    let mut verdict = Verdict::default();
    for (i, (got, want)) in run.losses.iter().zip(&golden["f64.loss"].1).enumerate() {
        verdict.add((f64::from(*got) - want).abs(), 1e-5 * want.abs(), &format!("loss {i}"));
    }
    let largest = golden
        .iter()
        .filter(|(k, _)| k.starts_with("f64.grad."))
        .fold(0.0f64, |m, (_, v)| m.max(magnitude(&v.1)));
    for (key, (_, want)) in golden {
        let (got, atol) = if let Some(name) = key.strip_prefix("f64.grad.") {
            (run.gradients.get(name), 1e-6 * largest)
        } else if let Some(name) = key.strip_prefix("f64.step5.") {
            (run.last.get(name), 0.0)
        } else if let Some(name) = key.strip_prefix("f64.step1.") {
            (run.first.get(name), 0.0)
        } else {
            continue;
        };
        match got {
            Some(got) => verdict.add(difference(got.f32(), want), atol + 1e-4 * magnitude(want), key),
            None => verdict.fail(format!("there is no {key}")),
        }
    }
    if verdict.checks <= 10 {
        verdict.fail(format!("only {} comparisons", verdict.checks));
    }
    verdict
}

/// A full-size training step.
#[derive(Debug)]
pub struct FullStep {
    table: String,
    batch: u64,
    /// The network.
    pub imported: Imported,
    // Holds the files that the network's weights are mapped from.
    _skeleton: data::Skeleton,
}

/// A full-size step, if the data is there.
pub fn full_step(stem: &str) -> Option<FullStep> {
    let tsv = data::shared(&format!("golden/fulltrain/{stem}.tsv"))?;
    let folder = data::shared(FOLDERS[0])?;
    let table = std::fs::read_to_string(tsv).expect("the table");
    let batch = header(&table, 1).parse().expect("the batch");
    let skeleton = data::Skeleton::new(&folder, stem);
    let imported = harness::import(&skeleton.path(), Some(batch), true);
    Some(FullStep { table, batch, imported, _skeleton: skeleton })
}

fn header(table: &str, column: usize) -> &str {
    table.lines().next().and_then(|l| l.split('\t').nth(column)).expect("a header")
}

impl FullStep {
    /// Its batch.
    pub fn batch(&self) -> u64 {
        self.batch
    }

    /// Its inputs.
    pub fn inputs(&self, plan: &Plan) -> BTreeMap<String, Tensor> {
        let image = &plan.inputs[0];
        let dims: [u64; 4] = plan.buffers[image.buf].ty.dims.as_slice().try_into().expect("an image input");
        let inputs = BTreeMap::from([
            (image.name.clone(), data::image_input("train", dims)),
            ("labels".to_owned(), data::labels(self.batch, 1000, "labels:full")),
            ("vdnnc.hyper".to_owned(), harness::hyper(0.01, 0.0, 0.0)),
        ]);
        with_step(inputs, plan)
    }

    /// Loss within 1e-5, gradient norms within 2e-2 (golden/README.md says why probes and the
    /// second loss are not barred tightly).
    pub fn judge(&self, outputs: &BTreeMap<String, Tensor>) -> Verdict {
        let mut verdict = Verdict::default();
        let loss: f64 = header(&self.table, 3).parse().expect("the loss");
        verdict.add((f64::from(outputs["loss"].f32()[0]) - loss).abs(), 1e-5 * loss.abs(), "the loss");
        for line in self.table.lines().filter(|l| !l.starts_with('#')) {
            let c: Vec<&str> = line.split('\t').collect();
            let want: f64 = c[2].parse().expect("a norm");
            let got = outputs[&format!("grad:{}", c[0])].f32();
            let norm = got.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            verdict.add((norm - want).abs(), 2e-2 * want, &format!("|grad {}|", c[0]));
        }
        if verdict.checks <= 10 {
            verdict.fail(format!("only {} comparisons", verdict.checks));
        }
        verdict
    }
}

/// Imports a skeleton as its logits were computed: at the reference's batch, or the file's own
/// if that is fixed.
pub fn import_for_logits(skeleton: &data::Skeleton, batch: u64) -> Imported {
    let import = |batch| {
        let options = ImportOptions { batch, dims: BTreeMap::new(), training: false };
        onnx::import_file(&skeleton.path(), &options)
    };
    let at_batch = import(Some(batch));
    at_batch.or_else(|_| import(None)).unwrap_or_else(|e| panic!("{}: {e}", skeleton.path().display()))
}

/// The image that the reference logits are of.
pub fn logits_inputs(plan: &Plan) -> BTreeMap<String, Tensor> {
    let image = &plan.inputs[0];
    let dims: [u64; 4] = plan.buffers[image.buf].ty.dims.as_slice().try_into().expect("an image input");
    BTreeMap::from([(image.name.clone(), data::image_input("infer", dims))])
}

/// Compares logits: within 1e-5 of the largest, 2e-5 where batch statistics are used.
pub fn judge_logits(stem: &str, got: &Tensor, want: &[f64]) -> Verdict {
    let bar = if stem.ends_with("ts17_train") { 2e-5 } else { 1e-5 };
    let mut verdict = Verdict::default();
    verdict.add(difference(got.f32(), want), bar * magnitude(want), stem);
    verdict
}
