//! What the fuzz targets do with their bytes. Each function takes any bytes and panics only
//! if vdnnc does something wrong: `tests/fuzz` hands them to libFuzzer, `tests/fuzz_smoke.rs`
//! runs each for a moment, and the cases found so far lie under `tests/corpus`.
//!
//! A target either takes its bytes as they are or as a list of edits of a small well-formed
//! seed (see [`edit`]); the first byte decides.

pub mod edit;
pub mod seeds;

use crate::arbitrary::{random_cnn, random_inputs, random_params};
use crate::harness;
use edit::{Choices, edit_bytes, edit_model, edit_text};
use flate2::{Compression, write::DeflateEncoder};
use prost::Message;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;
use vdnn_cost::Precision;
use vdnn_frontends::onnx::proto::tensor_proto::{DataLocation, DataType};
use vdnn_frontends::onnx::proto::{StringStringEntryProto, TensorProto};
use vdnn_frontends::onnx::{ImportOptions, Imported, import_bytes};
use vdnn_interp::interpret;
use vdnn_ir::parse::parse_graph;
use vdnn_ir::verify::verify;
use vdnn_ir::{Bytes, Graph, Mode, Phase, Tensor, TensorType};
use vdnn_passes::streams::Streams;
use vdnn_passes::{AlgoMode, Fuse, Policy, SyncMode};
use vdnn_plan::parse::parse_plan;
use vdnn_plan::plan::{FORMAT_VERSION, ParamSource};
use vdnn_plan::{Plan, check, codec};
use vdnn_runtime::cpu::kernels::CpuKernels;
use vdnn_runtime::cpu::{CpuBackend, CpuMode, CpuOptions};
use vdnn_runtime::executor::Executor;
use vdnnc::commands::load::FromTensors;
use vdnnc::driver::{self, NoPlan};
use vdnnc::error::Blame;
use vdnnc::options::CompileOptions;

/// A named body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 6] = [
    ("onnx_import", onnx_import),
    ("graph_parse", graph_parse),
    ("plan_parse", plan_parse),
    ("plan_load", plan_load),
    ("external_data", external_data),
    ("pipeline", pipeline),
];

/// An input that does the same to a target without the seeds, which may change: what is kept
/// under `tests/corpus`.
pub fn standalone(target: &str, data: &[u8]) -> Vec<u8> {
    let mut choices = Choices::new(data);
    let kind = choices.byte();
    let bytes = match target {
        "onnx_import" => model_bytes(&mut choices, kind),
        "graph_parse" => graph_text(&mut choices, kind).into_bytes(),
        "plan_parse" => plan_text(&mut choices, kind).into_bytes(),
        "plan_load" => {
            return [&[0], plan_bytes(&mut choices, kind).as_slice()].concat();
        }
        _ => return data.to_vec(),
    };
    [&[kind % 128], bytes.as_slice()].concat()
}

/// Larger programs are compiled and checked, but not run.
const MAX_RUN_BYTES: Bytes = Bytes(1 << 20);
/// Likewise, in floating-point operations of all nodes.
const MAX_RUN_FLOPS: u64 = 2_000_000;
/// Larger graphs are imported, but not compiled.
const MAX_NODES: usize = 300;

/// ONNX bytes to a graph; what imports must verify, print, compile and run.
pub fn onnx_import(data: &[u8]) {
    let mut choices = Choices::new(data);
    let kind = choices.byte();
    let bytes = model_bytes(&mut choices, kind);
    let batch = [None, Some(1), Some(3), Some(u64::MAX)][usize::from(kind / 8 % 4)];
    let options = ImportOptions { batch, dims: BTreeMap::new(), training: kind.is_multiple_of(2) };
    match import_bytes(bytes.into(), None, &options) {
        Ok(imported) => after_import(&imported, u64::from(kind)),
        Err(e) => assert!(!e.errors.is_empty() && !e.to_string().is_empty()),
    }
}

/// A seed with edits, or the bytes themselves.
fn model_bytes(choices: &mut Choices<'_>, kind: u8) -> Vec<u8> {
    if kind < 128 {
        return choices.rest().to_vec();
    }
    let mut model = seeds::models()[usize::from(kind) % seeds::models().len()].clone();
    edit_model(&mut model, choices);
    model.encode_to_vec()
}

fn after_import(imported: &Imported, seed: u64) {
    let graph = &imported.graph;
    verify(graph).unwrap_or_else(|e| panic!("an imported graph must verify: {e}\n{graph}"));
    for &p in graph.params() {
        let value = graph.value(p);
        let weights = imported.weights.tensors.get(&value.name);
        assert_eq!(weights.map(|w| &w.ty), Some(&value.ty), "{}", value.name);
    }
    if graph.node_bound() > MAX_NODES || weight_bytes(graph) > MAX_RUN_BYTES {
        return;
    }
    let text = graph.to_string();
    let back = parse_graph(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(back.to_string(), text);
    let params = vdnnc::commands::load::tensors(&imported.weights);
    for mode in [Mode::Infer, Mode::Train] {
        let mut options = harness::options(mode, harness::POLICIES[(seed % 5) as usize], AlgoMode::Dynamic);
        options.sync = [SyncMode::Event, SyncMode::Layer][(seed / 8 % 2) as usize];
        options.precision = [Precision::F32, Precision::Tf32][(seed / 16 % 2) as usize];
        options.fuse = [Fuse::Off, Fuse::Epilogue][(seed / 32 % 2) as usize];
        compile_and_run(graph, imported.batch, &params, &options, seed);
    }
}

fn weight_bytes(graph: &Graph) -> Bytes {
    graph.params().iter().fold(Bytes::ZERO, |n, &p| n.saturating_add(graph.ty(p).bytes()))
}

/// Compiles; failures must be the user's, plans must be accepted and give the interpreter's
/// bytes under the interleaving of `seed`. Returns the plan's arena.
fn compile_and_run(
    graph: &Graph,
    batch: u64,
    params: &BTreeMap<String, Tensor>,
    options: &CompileOptions,
    seed: u64,
) -> Option<Bytes> {
    let cost = harness::cost(options);
    let compiled = match driver::compile(graph.clone(), batch, None, options, &cost) {
        Ok(compiled) => compiled,
        Err(NoPlan::Failed(f)) if f.blame == Blame::User => return None,
        Err(NoPlan::Failed(f)) => panic!("{f}\n{graph}"),
        Err(NoPlan::TooLarge { smallest: (bytes, policy), summary }) => {
            let (options, budget) = (lean(options, policy, bytes), summary.budget);
            let fits = driver::compile(graph.clone(), batch, None, &options, &cost);
            assert!(fits.is_ok(), "{bytes} under {policy} is promised to fit, asked for {budget}\n{graph}");
            return None;
        }
    };
    check::check(&compiled.plan).unwrap_or_else(|e| panic!("{e}\n{graph}"));
    let plan = compiled.plan;
    assert!(options.memory.is_none_or(|m| plan.device.bytes <= m), "over budget\n{graph}");
    let mut joint = graph.clone();
    let timings = &mut vdnnc::timing::Timings::default();
    // What the model means does not depend on layouts and fused ops.
    let plain = harness::cost(&CompileOptions { precision: Precision::F32, ..options.clone() });
    vdnnc::pipeline::to_joint(&mut joint, options.mode, options.keep_gradients, Fuse::Off, &plain, timings)
        .expect("it was compiled");
    if plan.device.bytes > MAX_RUN_BYTES || plan.host.bytes > MAX_RUN_BYTES || flops(&joint) > MAX_RUN_FLOPS {
        return Some(plan.device.bytes);
    }
    let inputs = random_inputs(&joint, seed);
    let kernels = CpuKernels::new(1);
    let cpu = CpuOptions { threads: 1, mode: CpuMode::Interleaved { seed }, poison: true };
    let want = interpret(&joint, &inputs, params, &kernels);
    let mut executor = harness::executor(plan, params, cpu);
    let got = executor.step(&inputs);
    let (want, got) = match (want, got) {
        (Ok(want), Ok(got)) => (want, got),
        // Labels outside the classes, say: then both must say so.
        (Err(_), Err(_)) => return Some(executor.plan().device.bytes),
        (want, got) => panic!("only one runs: {:?}, {:?}\n{graph}", want.err(), got.err()),
    };
    assert!(want.outputs.keys().eq(got.keys()), "outputs\n{graph}");
    for (name, t) in &got {
        assert!(same(t, &want.outputs[name]), "output {name} differs\n{graph}");
    }
    for (name, t) in &want.params {
        if let Ok(now) = executor.read_param(name) {
            assert!(same(&now, t), "parameter {name} differs\n{graph}");
        }
    }
    Some(executor.plan().device.bytes)
}

/// Options under which a compilation is promised to fit.
fn lean(options: &CompileOptions, policy: Policy, memory: Bytes) -> CompileOptions {
    CompileOptions { policy, algo: AlgoMode::Memory, memory: Some(memory), ..options.clone() }
}

/// Equal bytes, except that any NaN equals any other: which operand's payload an addition of
/// two NaNs keeps is the processor's business.
fn same(a: &Tensor, b: &Tensor) -> bool {
    let nan = |bytes: &[u8]| bytes.try_into().is_ok_and(|w| f32::from_le_bytes(w).is_nan());
    a.ty() == b.ty()
        && (a.bytes() == b.bytes()
            || a.ty().dtype.is_float()
                && a.bytes()
                    .chunks_exact(4)
                    .zip(b.bytes().chunks_exact(4))
                    .all(|(x, y)| x == y || nan(x) && nan(y)))
}

fn flops(graph: &Graph) -> u64 {
    graph.nodes().fold(0u64, |n, (_, node)| {
        let types =
            |list: &[vdnn_ir::ValueId]| -> Vec<&TensorType> { list.iter().map(|&v| graph.ty(v)).collect() };
        let (inputs, outputs) = (types(&node.inputs), types(&node.outputs));
        let elements = inputs.iter().chain(&outputs).fold(0u64, |n, t| n.saturating_add(t.elements()));
        n.saturating_add(vdnn_ir::op::work::flops(&node.op, &inputs, &outputs).0).saturating_add(elements)
    })
}

/// Graph text: whatever parses prints the same, and verifying it does not panic; what
/// verifies as imported compiles or is refused.
pub fn graph_parse(data: &[u8]) {
    let mut choices = Choices::new(data);
    let kind = choices.byte();
    let text = graph_text(&mut choices, kind);
    let graph = match parse_graph(&text) {
        Ok(graph) => graph,
        Err(e) => {
            assert!(!e.to_string().is_empty());
            return;
        }
    };
    let printed = graph.to_string();
    let back = parse_graph(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
    assert_eq!(back.to_string(), printed);
    if verify(&graph).is_err() || graph.phase != Phase::Imported || graph.node_bound() > MAX_NODES {
        return;
    }
    let (mode, policy) =
        if kind.is_multiple_of(2) { (Mode::Train, Policy::All) } else { (Mode::Infer, Policy::None) };
    let options = harness::options(mode, policy, AlgoMode::Dynamic);
    // Verified graphs of the imported phase need not be ones a frontend makes, so a refusal
    // may name any reason.
    let _ = driver::compile(graph, 1, None, &options, &harness::cost(&options));
}

/// A graph text with edits, or the bytes themselves.
fn graph_text(choices: &mut Choices<'_>, kind: u8) -> String {
    if kind < 128 {
        return String::from_utf8_lossy(choices.rest()).into_owned();
    }
    edit_text(&seeds::graphs()[usize::from(kind) % seeds::graphs().len()], choices)
}

/// A plan text with edits, or the bytes themselves.
fn plan_text(choices: &mut Choices<'_>, kind: u8) -> String {
    static TEXTS: OnceLock<Vec<String>> = OnceLock::new();
    let texts = TEXTS.get_or_init(|| seeds::plans().iter().map(ToString::to_string).collect());
    if kind < 128 {
        return String::from_utf8_lossy(choices.rest()).into_owned();
    }
    edit_text(&texts[usize::from(kind) % texts.len()], choices)
}

/// Plan text: whatever parses prints the same; checking it does not panic; what the checker
/// accepts loads and runs.
pub fn plan_parse(data: &[u8]) {
    let mut choices = Choices::new(data);
    let kind = choices.byte();
    let text = plan_text(&mut choices, kind);
    match parse_plan(&text) {
        Ok(plan) => {
            let printed = plan.to_string();
            let back = parse_plan(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
            assert!(back == plan && back.to_string() == printed, "{printed}");
            survives(&plan);
        }
        Err(e) => assert!(!e.to_string().is_empty()),
    }
}

/// Checks a plan and, if that accepts it, simulates and runs it with parameters of zero.
fn survives(plan: &Plan) {
    if let Err(e) = check::check(plan) {
        assert!(!e.to_string().is_empty());
        return;
    }
    let stats = vdnn_plan::stats::stats(plan);
    assert!(stats.offload_bytes.0 < u64::MAX);
    let cost = harness::cost(&harness::options(plan.header.mode, Policy::None, AlgoMode::Memory));
    let _ = vdnn_runtime::sim::simulate(plan, &cost);
    let setup = plan.setup.iter().flat_map(|op| &op.outputs).map(|(_, ty)| ty);
    let loads = plan.setup_loads.iter().map(|l| &l.ty);
    let outside = setup.chain(loads).fold(Bytes::ZERO, |n, ty| n.saturating_add(ty.bytes()));
    let work = plan.commands.iter().fold(0, |n: u64, c| n.saturating_add(command_flops(plan, c)));
    let large = plan.device.bytes.max(plan.host.bytes).max(outside) > MAX_RUN_BYTES || work > MAX_RUN_FLOPS;
    if large || !plan.setup.is_empty() && outside > MAX_RUN_BYTES {
        return;
    }
    let params: BTreeMap<String, Tensor> = (plan.params.iter())
        .filter(|p| matches!(p.source, ParamSource::Initializer))
        .map(|p| (p.name.clone(), plan.buffers[p.buf].ty.clone()))
        .chain(plan.setup_loads.iter().map(|l| (l.name.clone(), l.ty.clone())))
        .map(|(name, ty)| (name, Tensor::zeros(ty)))
        .collect();
    let inputs: BTreeMap<String, Tensor> = (plan.inputs.iter())
        .map(|b| (b.name.clone(), Tensor::zeros(plan.buffers[b.buf].ty.clone())))
        .collect();
    let cpu = CpuOptions { threads: 1, mode: CpuMode::Interleaved { seed: 1 }, poison: true };
    if let Ok(mut executor) = Executor::load(plan.clone(), &FromTensors(&params), CpuBackend::new(cpu)) {
        let _ = executor.step(&inputs);
    }
}

fn command_flops(plan: &Plan, command: &vdnn_plan::Command) -> u64 {
    let vdnn_plan::Command::Launch { op, inputs, outputs, .. } = command else { return 0 };
    let types = |list: &[vdnn_plan::BufId]| -> Vec<&TensorType> {
        list.iter().map(|&b| &plan.buffers[b].ty).collect()
    };
    vdnn_ir::op::work::flops(op, &types(inputs), &types(outputs)).0
}

/// Plan files, both forms: what loads survives the checker, and encoding it loads equal.
pub fn plan_load(data: &[u8]) {
    let mut choices = Choices::new(data);
    let kind = choices.byte();
    let bytes = plan_bytes(&mut choices, kind);
    match codec::load(&bytes) {
        Ok(plan) => {
            assert_eq!(codec::load(&codec::encode(&plan)).expect("our own encoding"), plan);
            survives(&plan);
        }
        Err(e) => assert!(!e.to_string().is_empty()),
    }
}

/// A plan file: any bytes, a right header over any content, or an edited plan.
fn plan_bytes(choices: &mut Choices<'_>, kind: u8) -> Vec<u8> {
    static BINARIES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    let binaries = BINARIES.get_or_init(|| seeds::plans().iter().map(codec::encode).collect());
    match kind {
        0..64 => choices.rest().to_vec(),
        // Right headers over any text, over any deflate stream.
        64..96 => {
            let length = choices.below(4) as u64;
            packed(choices.rest(), length)
        }
        96..128 => {
            let mut bytes = packed(b"", u64::from(choices.byte()) << 20);
            bytes.extend_from_slice(choices.rest());
            bytes
        }
        128..192 => edit_bytes(&binaries[usize::from(kind) % binaries.len()], choices),
        _ => {
            let text = plan_text(choices, kind);
            packed(text.as_bytes(), 0)
        }
    }
}

/// The binary form of a text, which states `lie` bytes more than there are.
fn packed(text: &[u8], lie: u64) -> Vec<u8> {
    let mut out = b"VPLAN\0".to_vec();
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    out.extend_from_slice(&(text.len() as u64 + lie).to_le_bytes());
    out.extend_from_slice(&Sha256::digest(text));
    let mut deflate = DeflateEncoder::new(out, Compression::fast());
    deflate.write_all(text).and_then(|()| deflate.finish()).expect("writing to memory")
}

/// The file with external data that [`external_data`]'s models may find, and its length.
const DATA: (&str, u64) = ("data.bin", 1000);

/// A folder with [`DATA`], where byte `i` is `i % 251`, and a file beside it that no model may read.
fn data_folder() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let make = || {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let home = dir.path().join("home");
        std::fs::create_dir_all(home.join("sub")).expect("a folder");
        let bytes: Vec<u8> = (0..DATA.1).map(|i| (i % 251) as u8).collect();
        std::fs::write(home.join(DATA.0), &bytes).expect("the data");
        std::fs::write(home.join("sub").join(DATA.0), &bytes).expect("the data");
        std::fs::write(home.join("empty"), b"").expect("an empty file");
        std::fs::write(dir.path().join("secret"), [7; 1000]).expect("the secret");
        #[cfg(unix)]
        std::os::unix::fs::symlink(dir.path().join("secret"), home.join("link")).expect("a link");
        dir
    };
    // The folder's name goes on living with the static.
    let dir = FOLDER.get_or_init(make);
    static HOME: OnceLock<std::path::PathBuf> = OnceLock::new();
    HOME.get_or_init(|| dir.path().join("home"))
}

/// External tensors at any location, offset and length: what loads is exactly those bytes of
/// a file in the model's folder.
pub fn external_data(data: &[u8]) {
    let mut choices = Choices::new(data);
    let entry = |k: &str, v: String| StringStringEntryProto { key: Some(k.into()), value: Some(v) };
    let dims: Vec<i64> = (0..choices.below(4)).map(|_| choices.number()).collect();
    let mut w = TensorProto { dims, ..crate::build::floats("w", &[], &[]) };
    w.raw_data = None;
    w.data_location = Some(DataLocation::External.into());
    if choices.byte().is_multiple_of(8) {
        w.data_type = Some(choices.number() as i32);
    }
    let offset = if choices.byte() < 128 { u64::from(choices.byte()) * 4 } else { choices.word() };
    let kind = choices.byte();
    let location = match kind % 16 {
        0..6 => DATA.0.to_owned(),
        6 => "./sub/data.bin".into(),
        7 => "link".into(),
        8 => "../secret".into(),
        9 => "sub/../../secret".into(),
        10 => "empty".into(),
        11 => data_folder().join("../secret").display().to_string(),
        _ => String::new(),
    };
    if kind & 16 == 0 {
        w.external_data.push(entry("offset", offset.to_string()));
    }
    if kind & 32 != 0 {
        w.external_data.push(entry("length", choices.word().to_string()));
    }
    // What is left is part of the location: any text at all.
    let location = location + &String::from_utf8_lossy(choices.rest());
    w.external_data.push(entry("location", location.clone()));
    let data_type = w.data_type();
    let mut graph =
        crate::build::graph(&[], vec![w], vec![crate::build::node("Add", &["x", "w"], &["y"])], "y");
    graph.input[0] = crate::build::info("x", DataType::Float, &[]);
    let bytes = crate::build::model(17, graph).encode_to_vec();
    let Ok(imported) = import_bytes(bytes.into(), Some(data_folder()), &ImportOptions::default()) else {
        return;
    };
    assert!(!location.contains("secret") && !location.contains("link"), "{location} was read");
    // Other element types are converted, so their bytes are not those of the file.
    if data_type == DataType::Float as i32 {
        let offset = if kind & 16 == 0 { offset } else { 0 };
        for weight in imported.weights.tensors.values().filter(|w| !w.ty.dims.is_empty()) {
            assert!(offset + weight.data.len() as u64 <= DATA.1, "{location}: outside the file");
            assert!(
                (offset..).zip(&weight.data).all(|(i, &b)| b == (i % 251) as u8),
                "{location}: other bytes"
            );
        }
    }
}

/// Any options on a random network: compile, check, run in a random interleaving.
pub fn pipeline(data: &[u8]) {
    let mut choices = Choices::new(data);
    let (seed, bits) = (choices.word() % 100_000, choices.word());
    let pick = |shift: u32, n: u64| ((bits >> shift) % n) as usize;
    let graph = random_cnn(seed);
    let batch = graph.ty(graph.inputs()[0]).dims[0];
    let mut options = harness::options(
        [Mode::Train, Mode::Train, Mode::Infer][pick(0, 3)],
        harness::POLICIES[pick(8, 5)],
        [AlgoMode::Memory, AlgoMode::Performance, AlgoMode::Dynamic][pick(16, 3)],
    );
    options.sync = [SyncMode::Event, SyncMode::Layer][pick(24, 2)];
    options.keep_gradients = pick(25, 2) == 0;
    options.elide_waits = pick(26, 4) != 0;
    options.elide_copies = pick(28, 4) != 0;
    options.device = ["h200", "titan-x-maxwell", "cpu"][pick(30, 3)].to_owned();
    options.precision = [Precision::F32, Precision::Tf32][pick(36, 2)];
    options.fuse = [Fuse::Off, Fuse::Epilogue][pick(38, 2)];
    if options.mode == Mode::Infer {
        options.streams = Streams::Count(1 + pick(52, 4) as u32);
    }
    let params = random_params(&graph, seed);
    let Some(peak) = compile_and_run(&graph, batch, &params, &options, bits) else { return };
    // Again with less memory than it took: another policy or algorithm, or a true refusal.
    options.memory = Some(Bytes(peak.0 / 64 * (24 + pick(40, 41) as u64)));
    compile_and_run(&graph, batch, &params, &options, bits >> 7);
}
