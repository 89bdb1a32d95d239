//! Measured times as a user meets them: the database, its tables, replays, and plans for the
//! GPU at hand, with a timer that makes times up in place of one.

mod engines;
mod tables;

use assert_cmd::Command;
use clap::Parser;
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use vdnn_benchdb::BenchDb;
use vdnn_cost::{CostModel, Measured, MeasuredOn, MeasuredRow, Precision};
use vdnn_frontends::onnx::{self, ImportOptions, Imported};
use vdnn_frontends::zoo::{self, ZooOptions};
use vdnn_ir::graph::{ConvAlgo, EngineConfig};
use vdnn_ir::random::splitmix64;
use vdnn_ir::{Bytes, Layout, Mode, Nanos, Op};
use vdnn_passes::sparsify::{Facts, ParamFacts, Sparse, SparseMode};
use vdnn_passes::{AlgoMode, Fuse, Policy, Recompute};
use vdnn_plan::EngineOrigin;
use vdnn_tests::harness;
use vdnnc::cli::SharedArgs;
use vdnnc::commands::target::Target;
use vdnnc::commands::{load, replan};
use vdnnc::driver;
use vdnnc::error::Failure;
use vdnnc::measuring::{Kernel, KernelTimer, TimerError};
use vdnnc::options::CompileOptions;

/// Makes times up from the kernel's text: convolutions have two engines that run and one that
/// does not, anything else one kernel.
struct Fake {
    asked: Rc<Cell<usize>>,
    /// Fails at this call, as a lost device does.
    lost_at: usize,
    /// What packed weights take on row-major feature maps and on others, and kernels that leave out
    /// zeros of their input.
    packed: [Nanos; 2],
}

impl KernelTimer for Fake {
    fn time(&mut self, kernel: &Kernel, _: Precision) -> Result<Vec<MeasuredRow>, TimerError> {
        self.asked.set(self.asked.get() + 1);
        if self.asked.get() == self.lost_at {
            return Err(TimerError::Device(Failure::user("the device is lost")));
        }
        let text = kernel.describe();
        let time = |i: u64| {
            let hash = text.bytes().fold(i, |h, b| splitmix64(h, u64::from(b)));
            Some(Nanos(1_000 + hash % 100_000))
        };
        let last = usize::from(kernel.inputs.first().is_some_and(|x| x.layout == Layout::ChannelsLast));
        let row = |algo, workspace, time| MeasuredRow { algo, workspace, time, flags: Vec::new() };
        match &kernel.op {
            // Packed weights of which most are left take long.
            Op::SparseConv { w_dims, .. } if kernel.inputs[1].elements() > w_dims.iter().product() => {
                return Ok(vec![row(None, Bytes::ZERO, Some(Nanos(1_000_000)))]);
            }
            Op::SparseConv { .. } | Op::SparseInputConv { .. } => {
                return Ok(vec![row(None, Bytes::ZERO, Some(self.packed[last]))]);
            }
            // So that whatever keeps layers out of them costs something.
            Op::Pyramid(_) => return Ok(vec![row(None, Bytes::ZERO, Some(Nanos(1_000)))]),
            _ => {}
        }
        if !kernel.op.is_conv() {
            return Ok(vec![row(None, Bytes::ZERO, time(0))]);
        }
        let engine = |n| Some(ConvAlgo::Engine(EngineConfig::new(n, &[(2, 1)]).expect("one knob")));
        Ok(vec![
            row(engine(1), Bytes::ZERO, time(1)),
            row(engine(2), Bytes(1 << 16), time(2)),
            row(engine(3), Bytes::ZERO, None),
        ])
    }
}

fn on(cudnn: &str) -> MeasuredOn {
    MeasuredOn {
        device: "Made-up GPU".to_owned(),
        capability: "9.0".to_owned(),
        driver: "13.0".to_owned(),
        cudnn: cudnn.to_owned(),
        date: "2026-11-21".to_owned(),
    }
}

fn resnet18() -> Imported {
    let network =
        zoo::build("resnet18", &ZooOptions { batch: None, classes: None, seed: 0 }).expect("a network");
    let options = ImportOptions { batch: Some(4), training: true, ..ImportOptions::default() };
    onnx::import_model(network, None, &options).expect("the zoo's networks import")
}

fn options(precision: Precision) -> CompileOptions {
    CompileOptions {
        precision,
        fuse: Fuse::Epilogue,
        ..harness::options(Mode::Train, Policy::Dyn, AlgoMode::Dynamic)
    }
}

/// Compiles as `--device cuda:0` does; the plan and how many kernels were timed.
fn compile(db: &Path, cudnn: &str, precision: Precision) -> (vdnn_plan::Plan, usize) {
    let (model, options) = (resnet18(), options(precision));
    let asked = Rc::new(Cell::new(0));
    let cost = CostModel::named("h200", precision).expect("a shipped profile");
    let timer = Box::new(Fake { asked: Rc::clone(&asked), lost_at: 0, packed: [Nanos(1); 2] });
    let mut target = Target::measured(cost, on(cudnn), db.to_owned(), timer);
    let cost = target.cost(&model.graph, &options).expect("times");
    let compiled = driver::compile(model.graph, model.batch, None, &options, &cost).expect("a plan");
    (compiled.plan, asked.get())
}

#[test]
fn the_second_plan_for_a_gpu_measures_nothing_and_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("cache/bench.sqlite");
    let (first, timed) = compile(&db, "9.19.0", Precision::Tf32);
    assert!(timed > 20, "{timed}");
    let engines = first.to_string().matches("algo=eng").count();
    assert!(engines > 50, "every convolution runs by a measured engine: {engines}");
    assert!(!first.to_string().contains("algo=eng3"), "one that does not run was chosen");
    let (second, again) = compile(&db, "9.19.0", Precision::Tf32);
    assert_eq!(again, 0, "everything was known");
    assert_eq!(first.to_string(), second.to_string());
    // What else the database holds does not show: another precision, another cuDNN.
    let (_, products) = compile(&db, "9.19.0", Precision::F32);
    assert!(products > 0);
    assert_eq!(compile(&db, "9.20.0", Precision::Tf32).1, timed);
    assert_eq!(compile(&db, "9.19.0", Precision::Tf32).0.to_string(), first.to_string());
    // And a fresh database gives the same, too.
    assert_eq!(
        compile(&dir.path().join("other"), "9.19.0", Precision::Tf32).0.to_string(),
        first.to_string()
    );
}

#[test]
fn weights_are_packed_for_a_gpu_where_that_was_measured_to_be_faster() {
    let dir = tempfile::tempdir().unwrap();
    let model = resnet18();
    // One weight of twenty is left in the 3x3 filters of these stages.
    let facts_of = |stages: &str| {
        let facts = model.graph.params().iter().filter_map(|&v| {
            let value = model.graph.value(v);
            let few = value.name.starts_with(stages) && value.ty.dims.get(2) == Some(&3);
            let data: Vec<f32> =
                (0..value.ty.elements()).map(|i| if few && i % 20 != 0 { 0.0 } else { 1.0 }).collect();
            (value.ty.rank() > 1).then(|| (value.name.clone(), ParamFacts::of(&value.ty.dims, &data)))
        });
        Rc::new(Facts::new(facts.collect::<Vec<_>>()))
    };
    let plan_of = |name: &str, stages: &str, mode: SparseMode, packed: [Nanos; 2]| {
        let facts = facts_of(stages);
        let mut options = options(Precision::Tf32);
        options.mode = Mode::Infer;
        options.sparse = Sparse { mode, facts: Rc::clone(&facts), ..Sparse::default() };
        let cost = CostModel::named("h200", Precision::Tf32).expect("a shipped profile");
        let timer = Box::new(Fake { asked: Rc::default(), lost_at: 0, packed });
        let mut target = Target::measured(cost, on("9.19.0"), dir.path().join(name), timer);
        let cost = target.cost(&model.graph, &options).expect("times");
        let compile = |cost| {
            let found = driver::compile(model.graph.clone(), model.batch, None, &options, cost);
            found.expect("a plan").plan.to_string()
        };
        // Who has these times already comes to the same: dense kernels that others take the place
        // of are known, too.
        let timer = Box::new(Fake { asked: Rc::default(), lost_at: 0, packed });
        let mut again = Target::measured(cost.clone(), on("9.19.0"), dir.path().join(name), timer);
        let plan = compile(&cost);
        assert_eq!(compile(&again.cost(&model.graph, &options).expect("times")), plan, "{name} {mode}");
        plan
    };
    let plan = |name: &str, mode, packed| plan_of(name, "layer3", mode, [packed; 2]);
    let count = |plan: &str| plan.matches("sparse_conv(").count();
    let skipping = |plan: &str| plan.matches("sparse_input_conv(").count();
    let plan_of_fast = plan("fast", SparseMode::Auto, Nanos(1));
    assert_eq!(count(&plan_of_fast), 4, "the third stage's");
    // Of the other layers those behind a ReLU leave out its zeros, which takes no longer for what
    // follows them.
    assert!((8..20).contains(&skipping(&plan_of_fast)), "{}", skipping(&plan_of_fast));
    let slow = plan("slow", SparseMode::Auto, Nanos(1_000_000));
    assert_eq!((count(&slow), skipping(&slow)), (0, 0));
    let forced = plan("slow", SparseMode::Activations, Nanos(1_000_000));
    assert_eq!((count(&forced), skipping(&forced)), (0, 16), "all 3x3 layers");
    assert_eq!(count(&plan("slow", SparseMode::Csr, Nanos(1_000_000))), 21);
    assert_eq!(count(&plan("fast", SparseMode::Off, Nanos(1))), 0);
    // Where most of the time is in packed weights, the layout is the one in which they are faster.
    let layers = |name: &str, packed| {
        let plan = plan_of(name, "layer", SparseMode::Auto, packed);
        (count(&plan), plan.contains("nhwc"))
    };
    let long = Nanos(500_000);
    assert_eq!(layers("rows", [Nanos(1), long]), (16, false));
    assert_eq!(layers("last", [long, Nanos(1)]), (16, true));
    assert_eq!(layers("neither", [long; 2]).0, 0);
}

#[test]
fn weights_of_two_of_four_are_packed_for_a_gpu_where_that_was_measured_to_be_faster() {
    let (dir, model) = (tempfile::tempdir().unwrap(), resnet18());
    // The 3x3 filters of the third stage are two of four, all others dense.
    let facts = model.graph.params().iter().filter_map(|&v| {
        let value = model.graph.value(v);
        let taps = value.ty.dims[2.min(value.ty.rank())..].iter().product::<u64>();
        let zeros = value.name.starts_with("layer3") && taps == 9;
        let channel = |i: u64| i / taps % value.ty.dims.get(1).copied().unwrap_or(1);
        let data: Vec<f32> = (0..value.ty.elements())
            .map(|i| if zeros && (channel(i) + i % taps) % 4 < 2 { 0.0 } else { 1.0 })
            .collect();
        (value.ty.rank() > 1).then(|| (value.name.clone(), ParamFacts::of(&value.ty.dims, &data)))
    });
    let facts = Rc::new(Facts::new(facts.collect::<Vec<_>>()));
    for (precision, time, packed) in [
        (Precision::Bf16, Nanos(1), 4),
        (Precision::Bf16, Nanos(1_000_000), 0),
        // Tensor cores know the pattern in bf16 only.
        (Precision::Tf32, Nanos(1), 0),
    ] {
        let sparse = Sparse { mode: SparseMode::Auto, facts: Rc::clone(&facts), ..Sparse::default() };
        let options = CompileOptions { mode: Mode::Infer, sparse, ..options(precision) };
        let cost = CostModel::named("h200", precision).expect("a shipped profile");
        let timer = Box::new(Fake { asked: Rc::default(), lost_at: 0, packed: [time; 2] });
        let db = dir.path().join(format!("{precision}{}", time.0));
        let mut target = Target::measured(cost, on("9.19.0"), db, timer);
        let cost = target.cost(&model.graph, &options).expect("times");
        let plan = driver::compile(model.graph.clone(), model.batch, None, &options, &cost).expect("a plan");
        let form = vdnn_ir::sparse::SparseForm::TwoFourBf16;
        let is = |c: &&vdnn_plan::Command| matches!(c, vdnn_plan::Command::Launch { op: Op::SparseConv { form: f, .. }, .. } if *f == form);
        let found = plan.plan.commands.iter().filter(is).count();
        assert_eq!(found, packed, "{precision}, {time}");
    }
}

#[test]
fn sparse_kernels_never_make_a_plan_slower_than_dense_ones() {
    let dir = tempfile::tempdir().unwrap();
    let model = resnet18();
    let facts = model.graph.params().iter().filter_map(|&v| {
        let value = model.graph.value(v);
        // Of the first convolution, which with the pool behind it is a pyramid.
        let few = value.ty.dims.get(1) == Some(&3);
        let data: Vec<f32> =
            (0..value.ty.elements()).map(|i| if few && i % 20 != 0 { 0.0 } else { 1.0 }).collect();
        (value.ty.rank() > 1).then(|| (value.name.clone(), ParamFacts::of(&value.ty.dims, &data)))
    });
    let facts = Rc::new(Facts::new(facts.collect::<Vec<_>>()));
    for packed in [1, 5_000, 50_000] {
        let [auto, off] = [SparseMode::Auto, SparseMode::Off].map(|mode| {
            let sparse = Sparse { mode, facts: Rc::clone(&facts), ..Sparse::default() };
            let options =
                CompileOptions { mode: Mode::Infer, fuse: Fuse::All, sparse, ..options(Precision::Tf32) };
            let cost = CostModel::named("h200", Precision::Tf32).expect("a shipped profile");
            let times = [Nanos(1_000_000), Nanos(packed)];
            let timer = Box::new(Fake { asked: Rc::default(), lost_at: 0, packed: times });
            let db = dir.path().join(packed.to_string());
            let mut target = Target::measured(cost, on("9.19.0"), db, timer);
            let cost = target.cost(&model.graph, &options).expect("times");
            driver::compile(model.graph.clone(), model.batch, None, &options, &cost).expect("a plan").plan
        });
        assert!(auto.predicted.step <= off.predicted.step, "packed weights take {packed} ns");
    }
}

#[test]
fn the_kernels_of_every_graph_that_a_compilation_may_try_are_timed() {
    use vdnnc::measuring::kernels_of;
    use vdnnc::slicing::Slices;
    let model = resnet18();
    let cost = CostModel::named("h200", Precision::Tf32).expect("a shipped profile");
    let kernels = |options: &CompileOptions| kernels_of(&model.graph, options, &cost).expect("kernels");
    // Nothing is recomputed for a step that fits, but if the plan has gaps, what is cheap is.
    let with = |recompute| kernels(&CompileOptions { recompute, ..options(Precision::Tf32) });
    let (auto, cheap) = (with(Recompute::Auto), with(Recompute::Cheap));
    let again = |k: &&Kernel| matches!(k.op, Op::BatchNormApplyRelu { .. });
    assert!(cheap.iter().filter(again).count() > 1);
    for kernel in &cheap {
        assert!(auto.contains(kernel), "{} is not timed", kernel.describe());
    }
    // Packed weights on a part of the batch.
    let facts = model.graph.params().iter().filter_map(|&v| {
        let value = model.graph.value(v);
        let data = vec![0.0; value.ty.elements() as usize];
        (value.ty.rank() > 1).then(|| (value.name.clone(), ParamFacts::of(&value.ty.dims, &data)))
    });
    let facts = Rc::new(Facts::new(facts.collect::<Vec<_>>()));
    let sparse = Sparse { mode: SparseMode::Auto, facts, ..Sparse::default() };
    let sliced =
        CompileOptions { mode: Mode::Infer, slices: Slices::Count(2), sparse, ..options(Precision::Tf32) };
    let batches = |k: &Kernel| matches!(k.op, Op::SparseConv { .. }).then(|| k.inputs[0].dims[0]);
    let batches: std::collections::BTreeSet<u64> = kernels(&sliced).iter().filter_map(batches).collect();
    assert_eq!(batches.into_iter().collect::<Vec<_>>(), [2, 4]);
}

#[test]
fn what_was_measured_before_the_device_was_lost_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("bench.sqlite");
    let (model, options) = (resnet18(), options(Precision::Tf32));
    let cost = CostModel::named("h200", Precision::Tf32).expect("a shipped profile");
    let timer = Box::new(Fake { asked: Rc::default(), lost_at: 11, packed: [Nanos(1); 2] });
    let failure = Target::measured(cost, on("9.19.0"), db.clone(), timer)
        .cost(&model.graph, &options)
        .expect_err("the device is lost");
    assert!(failure.message.contains("the device is lost"), "{failure}");
    let all = compile(&dir.path().join("other"), "9.19.0", Precision::Tf32).1;
    assert_eq!(compile(&db, "9.19.0", Precision::Tf32).1, all - 10);
}

/// The shared options of a command line.
fn shared(args: &[&str]) -> SharedArgs {
    let line = [&["vdnnc", "run", "m.onnx", "--synthetic"], args].concat();
    match vdnnc::cli::Cli::try_parse_from(line).expect("a command line").command {
        Some(vdnnc::cli::Command::Run(args)) => args.shared,
        other => panic!("{other:?}"),
    }
}

fn vdnnc(args: &[&str]) -> std::process::Output {
    Command::new(vdnn_tests::data::vdnnc_binary()).args(args).output().expect("the command runs")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a name in UTF-8")
}

/// Runs the command; its stdout.
fn works(args: &[&str]) -> String {
    let out = vdnnc(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text")
}

/// Runs the command, which must exit with 1; its stderr.
fn fails(args: &[&str]) -> String {
    let out = vdnnc(args);
    let message = String::from_utf8(out.stderr).expect("text");
    assert_eq!(out.status.code(), Some(1), "{args:?}: {message}");
    message
}
