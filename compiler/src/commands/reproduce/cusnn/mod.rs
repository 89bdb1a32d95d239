//! `vdnnc reproduce cusnn`: the zeros of feature maps, and what a GPU gains by leaving them out of
//! 3x3 convolutions (cuSNN, PACT 2022, and its artifact).
//!
//! The artifact's setting is one image, f32, cuDNN's IMPLICIT_GEMM for every convolution with batch
//! norms, biases and ReLUs as kernels of their own, against the same with the 3x3 convolutions of
//! stride 1 on the zeros of their input; its layer times are against the fastest of IMPLICIT_GEMM,
//! IMPLICIT_PRECOMP_GEMM and GEMM. Ours differs where the artifact would mislead: images are
//! preprocessed as the networks were trained (the artifact feeds pixels as they are, which
//! `--preprocess raw` does, too, and which makes DenseNets lose their classes); both sides run as
//! captured graphs, while the artifact copies a count to the host in every layer; batch norms are
//! folded into convolutions on both sides where that can be; and the fastest dense kernels stand
//! beside the three.

mod gpu;
mod images;
mod report;
mod zeros;

use super::Artefact;
use crate::cli::{ComputeBackend, CusnnArgs, ReproduceArgs, SharedArgs};
use crate::commands::{bench, load};
use crate::error::Failure;
use gpu::{Device, Timed, Way};
use images::Images;
use std::io::Write;
use std::path::Path;
use vdnn_frontends::safe_file::write_atomic;
use vdnn_ir::{Mode, Precision};
use zeros::Zeros;

/// The trained models that `--data` has.
const TRAINED: [&str; 2] = ["densenet169", "resnet50-conv4"];

/// Results of other kernels may differ by this, relative to the largest.
const TOLERANCE: f64 = 1e-5;

/// What is known of one model.
#[derive(Debug)]
struct Case {
    model: String,
    preprocess: &'static str,
    images: u64,
    zeros: Zeros,
    /// Or why nothing was timed.
    timed: Result<Timed, String>,
}

/// Runs the command.
///
/// # Errors
/// If a model or the images cannot be read, or the sparse plan's results are not those of the
/// baseline.
pub(super) fn run(args: &ReproduceArgs) -> Result<(), Failure> {
    let own = &args.cusnn;
    let targets = targets(own)?;
    let images = match (&own.images, &own.data) {
        (Some(path), _) => Images::read(path)?,
        (None, Some(data)) => Images::read(&data.join("images.npz"))?,
        (None, None) => Images::Random,
    };
    let device = Device::new(own);
    let gpu = match own.backend {
        ComputeBackend::Cpu => Err("--backend cpu".to_owned()),
        ComputeBackend::Cuda => device.probe().map_err(|f| f.message),
    };
    if let Err(why) = &gpu {
        crate::commands::note(&format!("times and energy are skipped: {why}"));
    }
    let mut cases = Vec::new();
    for target in &targets {
        cases.push(case(own, target, &images, gpu.clone().map(|()| &device))?);
    }
    if let Some(dir) = &args.svg {
        let fail = |e: &dyn std::fmt::Display| Failure::user(format!("{}: {e}", dir.display()));
        std::fs::create_dir_all(dir).map_err(|e| fail(&e))?;
        for case in &cases {
            let path = dir.join(format!("cusnn-{}.svg", case.model));
            let text = report::svg(case);
            write_atomic(&path, |f| f.write_all(text.as_bytes())).map_err(Failure::user)?;
        }
    }
    if args.json {
        let models: Vec<_> = cases.iter().map(report::json).collect();
        let object = serde_json::json!({ "artefact": Artefact::Cusnn.name(), "models": models });
        crate::commands::print(&object.to_string());
    } else {
        let text: Vec<String> = cases.iter().map(report::text).collect();
        crate::commands::print(&text.join("\n"));
    }
    let wrong: Vec<String> = cases.iter().flat_map(wrong).collect();
    if wrong.is_empty() { Ok(()) } else { Err(Failure::user(wrong.join("; "))) }
}

/// What was asked for, as paths or names of the zoo.
fn targets(args: &CusnnArgs) -> Result<Vec<String>, Failure> {
    let in_data = |name: &str| {
        let path = args.data.as_ref()?.join(format!("{name}.onnx"));
        path.exists().then(|| path.display().to_string())
    };
    if !args.models.is_empty() {
        let found = |m: &String| in_data(m).filter(|_| !Path::new(m).exists()).unwrap_or_else(|| m.clone());
        return Ok(args.models.iter().map(found).collect());
    }
    let found: Vec<String> = TRAINED.iter().filter_map(|name| in_data(name)).collect();
    if found.is_empty() {
        return Err(Failure::user("reproduce cusnn needs models").hint(format!(
            "name models or networks of the zoo, or a folder with {} in --data",
            TRAINED.map(|t| format!("{t}.onnx")).join(" or ")
        )));
    }
    Ok(found)
}

fn case(
    args: &CusnnArgs,
    target: &str,
    images: &Images,
    device: Result<&Device<'_>, String>,
) -> Result<Case, Failure> {
    let stem = Path::new(target).file_stem().map_or(target.into(), |s| s.to_string_lossy());
    let shared = SharedArgs::of(["--batch", "1"])?;
    let options = shared.options_on_cpu(Mode::Infer);
    let model = bench::open(target, Mode::Infer, 0, &options)?;
    let graph = &model.imported.graph;
    let &[x] = graph.inputs() else {
        return Err(Failure::user(format!("{target}: images need a model of one input")));
    };
    let (input, preprocess) = images.for_model(graph.ty(x), &stem, args.preprocess, args.limit)?;
    // Any profile will do: nothing here depends on times.
    let cost = load::cost_model("cpu", Precision::F32)?;
    let zeros = zeros::count(&model.imported, &input, &options, &cost)?;
    let timed = device.and_then(|device| {
        device.time(&model, &input, &zeros.layers).map_err(|f| {
            let why = f.message;
            crate::commands::warn(&format!("{target}: nothing was timed: {why}"));
            why
        })
    });
    Ok(Case {
        model: stem.into_owned(),
        preprocess,
        images: input.ty().dims.first().copied().unwrap_or(0),
        zeros,
        timed,
    })
}

/// What sparse plans got wrong. Dense ones may use transforms, whose rounding is their own.
fn wrong(case: &Case) -> Vec<String> {
    let rows = case.timed.iter().flat_map(|t| &t.steps);
    rows.filter(|r| r.way == Way::Sparse)
        .filter(|r| r.deviation.is_nan() || r.deviation > TOLERANCE)
        .map(|r| format!("{}: results of `{}` are off by {:.1e}", case.model, r.way.text(), r.deviation))
        .collect()
}
