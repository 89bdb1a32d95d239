//! What happens when a device fails or a loss is no number: which words the user reads, with which
//! exit status, and that no file is touched.

use assert_cmd::Command;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vdnn_frontends::onnx::{self, ImportOptions};
use vdnn_frontends::tensors::npz::{self, Compression};
use vdnn_ir::id::EntityId;
use vdnn_ir::kernel::Kernels;
use vdnn_ir::{Bytes, DType, Mode, Tensor, TensorType};
use vdnn_passes::{AlgoMode, Policy};
use vdnn_plan::print::command_text;
use vdnn_plan::{CmdId, Command as PlanCommand, Plan};
use vdnn_runtime::backend::Backend;
use vdnn_runtime::cpu::{CpuBackend, CpuOptions};
use vdnn_runtime::cuda::CudaError;
use vdnn_runtime::executor::{Executor, RunError};
use vdnn_runtime::program::{Program, Span};
use vdnn_tests::{data, harness};
use vdnnc::commands::load::FromTensors;

/// Where a device fails.
#[derive(Clone, Debug)]
enum Fails {
    Preparing(CudaError),
    Issuing(CmdId, CudaError),
    Waiting(CudaError),
}

/// The CPU's arithmetic on a device that fails like a GPU.
struct Failing {
    cpu: CpuBackend,
    how: Fails,
}

impl Backend for Failing {
    fn prepare(&mut self, program: Arc<Program>) -> Result<(), RunError> {
        match &self.how {
            Fails::Preparing(error) => Err(error.clone().into()),
            _ => self.cpu.prepare(program),
        }
    }
    fn begin(&mut self) -> Result<(), RunError> {
        self.cpu.begin()
    }
    fn write(&mut self, span: Span, bytes: &[u8]) -> Result<(), RunError> {
        self.cpu.write(span, bytes)
    }
    fn read(&self, span: Span, into: &mut [u8]) -> Result<(), RunError> {
        self.cpu.read(span, into)
    }
    fn issue(&mut self, at: CmdId) -> Result<(), RunError> {
        self.cpu.issue(at)
    }
    fn synchronize(&mut self) -> Result<(), RunError> {
        self.cpu.synchronize()
    }
    fn run(&mut self, program: &Program) -> Result<(), RunError> {
        match &self.how {
            Fails::Issuing(at, error) => {
                let command = command_text(*at, &program.plan().commands[at.index()]);
                Err(RunError::Command { at: *at, command, error: error.clone() })
            }
            Fails::Waiting(error) => Err(RunError::Step { error: error.clone() }),
            Fails::Preparing(_) => self.cpu.run(program),
        }
    }
    fn host_kernels(&self) -> &dyn Kernels {
        self.cpu.host_kernels()
    }
}

fn lenet(dir: &Path) -> PathBuf {
    let path = dir.join("lenet.onnx");
    vdnnc().args(["zoo", "lenet", "-o"]).arg(&path).assert().success();
    path
}

fn vdnnc() -> Command {
    Command::new(data::vdnnc_binary())
}

/// A small plan that moves something, and its parameters.
fn plan() -> (Plan, BTreeMap<String, Tensor>) {
    use prost::Message;
    let options = vdnn_frontends::zoo::ZooOptions { batch: None, classes: None, seed: 0 };
    let model = vdnn_frontends::zoo::build("lenet", &options).expect("a zoo net");
    let options = ImportOptions { batch: Some(2), dims: BTreeMap::new(), training: true };
    let imported = onnx::import_bytes(model.encode_to_vec().into(), None, &options).expect("it imports");
    let options = harness::options(Mode::Train, Policy::All, AlgoMode::Memory);
    (harness::compile(&imported.graph, 2, &options).plan, harness::params(&imported))
}

fn load(how: Fails) -> Result<Executor<Failing>, Box<RunError>> {
    let (plan, params) = plan();
    Executor::load(plan, &FromTensors(&params), Failing { cpu: CpuBackend::new(CpuOptions::default()), how })
        .map_err(Box::new)
}

fn inputs(plan: &Plan) -> BTreeMap<String, Tensor> {
    let zeros = |ty: &TensorType| Tensor::zeros(ty.clone());
    plan.inputs.iter().map(|i| (i.name.clone(), zeros(&plan.buffers[i.buf].ty))).collect()
}

#[test]
fn a_device_without_room_says_for_what_how_much_and_what_to_do() {
    let what = "the plan's device arena".to_owned();
    let full = CudaError::OutOfMemory { what, bytes: Bytes(9 << 30), free: Some(Bytes(2 << 30)) };
    let Err(error) = load(Fails::Preparing(full)) else { panic!("it cannot load") };
    let text = error.to_string();
    for part in ["the plan's device arena", "9.00GiB", "2.00GiB free", "lower --memory or the batch"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn a_host_that_does_not_pin_is_told_of_before_the_first_step() {
    let what = "the plan's pinned host arena".to_owned();
    let text = "out of memory (CUDA_ERROR_OUT_OF_MEMORY)".to_owned();
    let Err(error) = load(Fails::Preparing(CudaError::CannotPin { what, bytes: Bytes(5 << 30), text }))
    else {
        panic!("it cannot load")
    };
    let text = error.to_string();
    for part in ["cannot pin 5.00GiB", "pinned host arena", "raise --memory"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn a_command_that_fails_is_named_and_ends_the_run() {
    let (plan, _) = plan();
    let at = plan.commands.iter().position(|c| matches!(c, PlanCommand::Copy { .. })).expect("a copy");
    let error = CudaError::Driver { call: "cuMemcpyDtoHAsync", text: "unknown error".to_owned() };
    let mut executor = load(Fails::Issuing(CmdId::from_index(at), error)).expect("it loads");
    let inputs = inputs(&plan);
    let text = executor.step(&inputs).expect_err("the command fails").to_string();
    for part in
        [format!("c{at} "), "copy".to_owned(), "cuMemcpyDtoHAsync".to_owned(), "unknown error".to_owned()]
    {
        assert!(text.contains(&part), "{part} is not in: {text}");
    }
    let again = executor.step(&inputs).expect_err("parameters are undefined");
    assert!(
        matches!(again, RunError::Poisoned) && again.to_string().contains("load the plan again"),
        "{again}"
    );
}

#[test]
fn what_fails_after_it_was_queued_says_how_to_find_the_command() {
    let (plan, _) = plan();
    let error = CudaError::Driver { call: "cuCtxSynchronize", text: "unspecified launch failure".to_owned() };
    let mut executor = load(Fails::Waiting(error)).expect("it loads");
    let text = executor.step(&inputs(&plan)).expect_err("the step fails").to_string();
    assert!(text.contains("unspecified launch failure") && text.contains("--no-graph"), "{text}");
}

/// Files of a folder with their content.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("the folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.insert(path.clone(), std::fs::read(&path).expect("the file"));
        }
    }
    all
}

/// Runs a command that must exit with 1 and leave every file as it is; what it says.
fn refused(dir: &Path, command: &mut Command) -> String {
    let before = files(dir);
    let output = command.output().expect("the command runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(before == files(dir), "files changed: {text}");
    text
}

#[test]
fn training_ends_at_the_step_whose_loss_is_no_number_and_leaves_files_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = lenet(dir.path());
    let set = dir.path().join("set.npz");
    let pixels: Vec<u8> = (0..200 * 784u64).map(|i| data::mix(3, i) as u8).collect();
    let images = Tensor::from_bytes(TensorType::new(DType::U8, [200, 28, 28]), &pixels).expect("pixels");
    let labels = data::labels(200, 10, "labels");
    npz::write(
        &set,
        &BTreeMap::from([("x".to_owned(), images), ("y".to_owned(), labels)]),
        Compression::Deflate,
    )
    .expect("disk");
    let (output, checkpoint) = (dir.path().join("trained.onnx"), dir.path().join("checkpoint"));
    let train = |lr: &str, epochs: &str, resume: bool| {
        let mut c = vdnnc();
        c.arg("train").arg(&model).arg("--data").arg(&set).arg("-o").arg(&output).arg("--checkpoint");
        c.arg(&checkpoint).args(["--batch", "16", "--schedule", "constant", "--lr", lr, "--epochs", epochs]);
        if resume {
            c.arg("--resume");
        }
        c
    };
    train("0.001", "1", false).assert().success();
    // The first epoch had ten steps.
    let text = refused(dir.path(), &mut train("1e30", "3", true));
    assert!(text.contains("the loss is") && text.contains("at step 1") && text.contains("--lr"), "{text}");
}

#[test]
fn run_and_bench_end_at_the_step_whose_loss_is_no_number() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = lenet(dir.path());
    let weights = dir.path().join("weights.safetensors");
    std::fs::write(&weights, "kept").expect("disk");
    let mut run = vdnnc();
    run.arg("run").arg(&model).args(["--mode", "train", "--synthetic", "--batch", "4", "--steps", "9"]);
    run.args(["--lr", "1e30", "--save-weights"]).arg(&weights);
    let text = refused(dir.path(), &mut run);
    assert!(text.contains("the loss is") && text.contains("at step "), "{text}");

    let imported = harness::import(&model, Some(4), true);
    let huge: BTreeMap<String, Tensor> = harness::params(&imported)
        .into_iter()
        .filter(|(_, t)| t.ty().dtype == DType::F32 && t.ty().rank() == 4)
        .map(|(name, t)| {
            let data: Vec<f32> = t.f32().iter().map(|x| x * 1e25).collect();
            (name, Tensor::from_f32(t.ty().dims.iter().copied(), &data))
        })
        .collect();
    let broken = dir.path().join("broken.onnx");
    onnx::write_with_weights(&model, &huge, &broken).expect("disk");
    let mut bench = vdnnc();
    bench.arg("bench").arg(&broken).args([
        "--backend",
        "cpu",
        "--batch",
        "4",
        "--steps",
        "1",
        "--warmup",
        "2",
    ]);
    let text = refused(dir.path(), &mut bench);
    assert!(text.contains("the loss is") && text.contains("at step 0"), "{text}");
}
