//! Whole networks with divided convolutions: the bounds hold, the plan's own bound is the best
//! of them, and a training step gives what it gives undivided.

use std::collections::BTreeMap;
use vdnn_ir::id::EntityId as _;
use vdnn_ir::{Bytes, ConvSchedule, Graph, Mode, Nanos, Tensor, TensorType};
use vdnn_passes::{AlgoMode, BatchSizes, Policy, Workspace};
use vdnn_plan::{Command, Plan};
use vdnn_runtime::cpu::CpuOptions;
use vdnn_tests::arbitrary::Rng;
use vdnn_tests::harness;
use vdnnc::driver::Compiled;
use vdnnc::options::CompileOptions;

const MIB: u64 = 1 << 20;

fn zoo(name: &str, batch: u64) -> vdnn_frontends::onnx::Imported {
    use vdnn_frontends::{onnx, zoo};
    let options = zoo::ZooOptions { batch: Some(batch), ..zoo::ZooOptions::default() };
    let model = zoo::build_zeroed(name, &options).expect("a network of the zoo");
    let options = onnx::ImportOptions { batch: Some(batch), dims: BTreeMap::new(), training: true };
    onnx::import_model(model, None, &options).expect("imports")
}

/// Predicted without measured times, which the shipped table has of whole batches only.
fn options(workspace: Workspace, sizes: BatchSizes) -> CompileOptions {
    let mut options = harness::options(Mode::Train, Policy::None, AlgoMode::Dynamic);
    options.device = "v100".to_owned();
    (options.workspace, options.micro_batch) = (workspace, sizes);
    options
}

fn compile(graph: &Graph, batch: u64, options: &CompileOptions) -> Compiled {
    harness::compile(graph, batch, options)
}

/// Workspaces of the convolutions, and how many are divided.
fn workspaces(plan: &Plan) -> (Vec<u64>, usize) {
    let mut divided = 0;
    let mut of = |c: &Command| match c {
        Command::Launch { workspace, algo: Some(algo), .. } => {
            divided += usize::from(algo.is_divided());
            Some(workspace.map_or(0, |w| plan.buffers[w].ty.bytes().0))
        }
        _ => None,
    };
    let all = plan.commands.iter().filter_map(&mut of).collect();
    (all, divided)
}

#[test]
fn bounds_hold_and_the_plans_own_is_the_best_of_them() {
    for (name, batch) in [("alexnet", 256), ("resnet18", 128)] {
        let imported = zoo(name, batch);
        let with = |workspace, sizes| compile(&imported.graph, batch, &options(workspace, sizes));
        let limit = Bytes(64 * MIB);
        let total = Bytes(512 * MIB);
        let whole = with(Workspace::Limit(limit), BatchSizes::Undivided);
        let reuse = with(Workspace::Limit(limit), BatchSizes::PowerOfTwo);
        let shared = with(Workspace::Total(total), BatchSizes::PowerOfTwo);
        let (spaces, divided) = workspaces(&reuse.plan);
        assert!(spaces.iter().all(|&w| w <= limit.0) && divided > 0, "{name}: {divided} divided");
        assert_eq!(workspaces(&whole.plan).1, 0, "{name}");
        assert!(workspaces(&shared.plan).0.iter().sum::<u64>() <= total.0, "{name}");
        let compute = |c: &Compiled| c.summary.compute;
        assert!(compute(&reuse) < compute(&whole), "{name}");
        // In the memory that the bounded plan takes, the plan's own bound is no slower.
        for bounded in [&reuse, &shared] {
            let mut own = options(Workspace::Planned, BatchSizes::PowerOfTwo);
            own.memory = Some(bounded.summary.peak);
            let planned = compile(&imported.graph, batch, &own);
            assert!(planned.summary.peak <= bounded.summary.peak, "{name}");
            let (p, b): (Nanos, Nanos) = (compute(&planned), compute(bounded));
            assert!(p <= b, "{name}: {p} planned, {b} bounded in {}", bounded.summary.peak);
        }
        // The plan's text and binary forms carry the divisions.
        let again = vdnn_plan::parse_plan(&reuse.plan.to_string()).expect("it parses");
        assert_eq!(again, reuse.plan);
        let text = reuse.graph.to_string();
        let graph = vdnn_ir::parse::parse_graph(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(graph.to_string(), text);
    }
}

fn inputs(plan: &Plan, seed: u64) -> BTreeMap<String, Tensor> {
    let mut rng = Rng::new(seed);
    let fill = |name: &str, ty: &TensorType, rng: &mut Rng| match name {
        "hyper" => harness::hyper(0.01, 0.9, 0.0),
        _ if ty.dtype == vdnn_ir::DType::F32 => {
            let data: Vec<f32> = (0..ty.elements()).map(|_| rng.unit()).collect();
            Tensor::from_bytes(ty.clone(), bytemuck::cast_slice(&data)).expect("an element per place")
        }
        _ => Tensor::zeros(ty.clone()),
    };
    let all = plan.inputs.iter();
    all.map(|i| (i.name.clone(), fill(&i.name, &plan.buffers[i.buf].ty, &mut rng))).collect()
}

#[test]
fn a_training_step_in_micro_batches_gives_what_it_gives_undivided() {
    for (batch, division) in [
        (7u64, "implicit_gemm@3+implicit_precomp_gemm@2x2"),
        (20, "implicit_precomp_gemm@8x2+implicit_gemm@4"),
    ] {
        let (graph, params) = small_net(batch);
        let mut of = Vec::new();
        let mut options = options(Workspace::Planned, BatchSizes::Undivided);
        options.keep_gradients = true;
        for divide in [false, true] {
            let compiled = compile(&graph, batch, &options);
            let (all, divided) = workspaces(&compiled.plan);
            // Three layers, the first without a gradient of its input.
            assert_eq!((all.len(), divided), (8, if divide { 8 } else { 0 }));
            options.kernels = algos(&compiled.plan);
            let division: ConvSchedule = division.parse().expect("a division");
            options.kernels.values_mut().for_each(|k| *k = division.clone());
            let inputs = inputs(&compiled.plan, batch);
            let cpu = CpuOptions { poison: true, ..CpuOptions::default() };
            let mut executor = harness::executor(compiled.plan, &params, cpu);
            of.push(executor.step(&inputs).expect("a step"));
        }
        for (name, whole) in &of[0] {
            let divided = &of[1][name];
            let (mut d, mut n) = (0f64, 0f64);
            for (a, b) in divided.f32().iter().zip(whole.f32()) {
                d += f64::from(a - b).powi(2);
                n += f64::from(*b).powi(2);
            }
            let distance = (d / n.max(f64::MIN_POSITIVE)).sqrt();
            assert!(distance <= 1e-5, "{name}: {distance:e}");
        }
    }
}

/// Algorithms and divisions by node.
fn algos(plan: &Plan) -> BTreeMap<vdnn_ir::NodeId, ConvSchedule> {
    let of = |c: &Command| match c {
        Command::Launch { node, algo: Some(algo), .. } => Some((*node, algo.clone())),
        _ => None,
    };
    plan.commands.iter().filter_map(of).collect()
}

/// Three convolutions, the last a classifier.
fn small_net(batch: u64) -> (Graph, BTreeMap<String, Tensor>) {
    use vdnn_ir::graph::NodeSpec;
    use vdnn_ir::op::{ConvAttrs, UnaryKind};
    use vdnn_ir::{Op, Output, ParamRole};
    let two = |v: u64| [v, v].as_slice().into();
    let conv = |kernel: u64| ConvAttrs::square(kernel, 1, kernel / 2, 1);
    let mut g = Graph::new("small");
    let x = g.add_input("x", TensorType::f32([batch, 4, 16, 16]));
    let mut rng = Rng::new(3);
    let mut params = BTreeMap::new();
    let mut param = |g: &mut Graph, name: &str, dims: [u64; 4]| {
        let data: Vec<f32> = (0..dims.iter().product::<u64>()).map(|_| rng.unit() * 0.2).collect();
        params.insert(name.to_owned(), Tensor::from_f32(dims, &data));
        g.add_param(name, TensorType::f32(dims), ParamRole::Trainable)
    };
    let a = param(&mut g, "a", [32, 4, 5, 5]);
    let b = param(&mut g, "b", [32, 32, 3, 3]);
    let c = param(&mut g, "c", [10, 32, 16, 16]);
    let add = |g: &mut Graph, op, inputs: &[vdnn_ir::ValueId], name: &str| {
        g.add1(op, inputs, NodeSpec::forward(name)).expect("a legal node")
    };
    let y = add(&mut g, Op::Conv(conv(5)), &[x, a], "a");
    let y = add(&mut g, Op::Unary(UnaryKind::Relu), &[y], "r");
    let y = add(&mut g, Op::Conv(conv(3)), &[y, b], "b");
    let classes = ConvAttrs { before: two(0), after: two(0), kernel: two(16), ..conv(1) };
    let y = add(&mut g, Op::Conv(classes), &[y, c], "c");
    let y = add(&mut g, Op::Reshape { dims: [batch, 10].as_slice().into() }, &[y], "flat");
    g.outputs.push(Output { name: "logits".to_owned(), value: y });
    (g, params)
}

#[test]
fn the_kernels_of_a_plan_can_be_taken_by_another() {
    let imported = zoo("alexnet", 64);
    let limit = Workspace::Limit(Bytes(16 * MIB));
    let first = compile(&imported.graph, 64, &options(limit, BatchSizes::PowerOfTwo));
    let mut taken = options(Workspace::Planned, BatchSizes::Undivided);
    taken.kernels = algos(&first.plan);
    taken.policy = Policy::All;
    let second = compile(&imported.graph, 64, &taken);
    assert_eq!(algos(&second.plan), taken.kernels);
    assert!(taken.kernels.values().any(ConvSchedule::is_divided));
}

#[test]
fn a_list_of_convolutions_is_compared_under_limits() {
    let dir = tempfile::tempdir().expect("a folder");
    let list = dir.path().join("list.csv");
    let rows = "set,idx,source,w,h,c,n,k,filter_w,filter_h,pad_w,pad_h,stride_w,stride_h\n\
                a,0,conv2,27,27,64,256,192,5,5,2,2,1,1\na,1,conv3,13,13,192,256,384,3,3,1,1,1,1\n\
                b,0,other,56,56,64,32,64,1,1,0,0,1,1\n";
    std::fs::write(&list, rows).expect("the list is written");
    let vdnnc = || assert_cmd::Command::new(vdnn_tests::data::vdnnc_binary());
    let (csv, svg) = (dir.path().join("o.csv"), dir.path().join("o.svg"));
    let mut command = vdnnc();
    command.arg("bench-conv").arg(&list).args(["--set", "a", "--device", "v100", "--json"]);
    command.args(["--limits", "8MiB,64MiB", "--csv"]).arg(&csv).arg("--svg").arg(&svg);
    let out = command.output().expect("it runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let v: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let cells = v["cells"].as_array().expect("cells");
    assert_eq!(cells.len(), 2 * 3 * 2, "layers, directions, limits");
    for cell in cells {
        assert!(cell["gain"].as_f64().is_some_and(|g| g >= 1.0), "{cell}");
        let best = &cell["best"];
        assert!(best["workspace"].as_u64() <= cell["limit"].as_u64(), "{cell}");
        let schedule: ConvSchedule = best["schedule"].as_str().expect("text").parse().expect("a schedule");
        assert!(schedule.covers(256));
    }
    assert!(v["summaries"][1]["geomean"].as_f64().is_some_and(|g| g > 1.2), "{v}");
    let read = |path| std::fs::read_to_string(path).expect("it was written");
    assert_eq!(read(&csv).lines().count(), 13);
    assert_eq!(read(&svg).matches("<title>").count(), 12);
    for (args, word) in [
        (vec!["--set", "c"], "no layer is left"),
        (vec!["--run"], "needs a GPU"),
        (vec!["--micro-batch", "some"], "power-of-two"),
        (vec!["--limits", "many"], "many"),
    ] {
        let out = vdnnc().arg("bench-conv").arg(&list).args(args).output().expect("it runs");
        let error = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(1) && error.contains(word), "{error}");
    }
}

/// The largest hole of the device arena, ends included, while each command runs, the command's
/// own workspace counting as free.
fn holes(plan: &Plan, memory: Bytes) -> Vec<u64> {
    let count = plan.commands.len();
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; plan.buffers.len()];
    for (at, command) in plan.commands.iter().enumerate() {
        let used: Vec<_> = match command {
            Command::Launch { inputs, outputs, .. } => inputs.iter().chain(outputs).copied().collect(),
            Command::Copy { src, dst, .. } => vec![*src, *dst],
            Command::Free { buf, .. } => vec![*buf],
            Command::Record { .. } | Command::Wait { .. } => continue,
        };
        for buf in used {
            // What a step begins with, such as a parameter, is there all the time.
            let kept = !matches!(command, Command::Launch { outputs, .. } if outputs.contains(&buf));
            let life = lives[buf.index()].get_or_insert((if kept { 0 } else { at }, count));
            if matches!(command, Command::Free { .. }) {
                life.1 = at;
            }
        }
    }
    let hole = |at: usize| {
        let mut taken: Vec<(u64, u64)> = lives
            .iter()
            .zip(plan.buffers.iter())
            .filter(|(life, (_, b))| {
                b.space == vdnn_ir::Space::Device && life.is_some_and(|l| l.0 <= at && at <= l.1)
            })
            .map(|(_, (_, b))| (b.offset.0, b.offset.0 + b.ty.bytes().0))
            .collect();
        taken.sort_unstable();
        taken.push((memory.0, memory.0));
        let (mut end, mut largest) = (0, 0);
        for (from, to) in taken {
            largest = largest.max(from.saturating_sub(end));
            end = end.max(to);
        }
        largest
    };
    (0..count).map(hole).collect()
}

#[test]
fn where_the_plan_has_room_convolutions_run_as_without_a_limit() {
    use vdnn_passes::micro_batch::Menu;
    let precision = vdnn_cost::Precision::F32;
    let cost = vdnnc::commands::load::cost_model("h200", precision).expect("a profile");
    for (name, shares) in [("vgg16", [100, 80, 70].as_slice()), ("resnet50", &[100])] {
        let imported = zoo(name, 64);
        let mut options = options(Workspace::Planned, BatchSizes::PowerOfTwo);
        (options.device, options.precision) = ("h200".to_owned(), precision);
        let free = compile(&imported.graph, 64, &options).summary.peak;
        for share in shares {
            let memory = Bytes(free.0 / 100 * share);
            options.memory = Some(memory);
            let compiled = compile(&imported.graph, 64, &options);
            let (menu, holes) = (Menu::new(options.micro_batch), holes(&compiled.plan, memory));
            let (mut with_room, mut all) = (0, 0);
            for (at, command) in compiled.plan.commands.iter().enumerate() {
                let Command::Launch { node, algo: Some(algo), name: label, .. } = command else { continue };
                let node = compiled.graph.node(*node);
                let choices = menu.choices(&compiled.graph, &cost, node);
                let fastest = choices.first().expect("an engine");
                let chosen = menu.price(&compiled.graph, &cost, node, algo).expect("a price");
                all += 1;
                if fastest.workspace.0 <= holes[at] {
                    with_room += 1;
                    let (c, f) = (chosen.time.0, fastest.time.0);
                    let text = || format!("{algo} {c} ns, {} {f} ns", fastest.schedule);
                    assert!(c * 100 <= f * 105, "{name} in {share} %, {label}: {}", text());
                }
            }
            assert!(with_room * 10 >= all * 8, "{name} in {share} %: {with_room} of {all} have room");
        }
    }
}

/// Times a convolution by its size: one engine whose workspace grows with the images, and one
/// without any.
struct BySize(u64);

impl vdnnc::measuring::KernelTimer for BySize {
    fn time(
        &mut self,
        kernel: &vdnnc::measuring::Kernel,
        _: vdnn_cost::Precision,
    ) -> Result<Vec<vdnn_cost::MeasuredRow>, vdnnc::measuring::TimerError> {
        use vdnn_ir::graph::{ConvAlgo, EngineConfig};
        let images = kernel.inputs.first().and_then(|t| t.dims.first().copied()).unwrap_or(1);
        let size = images * kernel.outputs[0].dims.iter().skip(1).product::<u64>();
        let row = |engine: Option<u16>, workspace, time| vdnn_cost::MeasuredRow {
            algo: engine.and_then(|e| EngineConfig::new(e, &[])).map(ConvAlgo::Engine),
            workspace: Bytes(workspace),
            time: Some(Nanos(time)),
            flags: vec![format!("device-{}", self.0)],
        };
        Ok(match kernel.op.is_conv() {
            true => vec![row(Some(1), images * MIB, 100 + size), row(Some(2), 0, 100 + 3 * size)],
            false => vec![row(None, 0, 100 + size)],
        })
    }
}

#[test]
fn several_devices_measure_what_one_does() {
    use vdnnc::several::{Work, fill_on_several};
    let imported = zoo("alexnet", 64);
    let options = options(Workspace::Limit(Bytes(16 * MIB)), BatchSizes::PowerOfTwo);
    let cost = vdnnc::commands::load::cost_model("v100", options.precision).expect("a profile");
    let kernels = vdnnc::measuring::kernels_of(&imported.graph, &options, &cost).expect("kernels");
    let on =
        vdnn_cost::MeasuredOn { device: "one".to_owned(), cudnn: "9.0".to_owned(), ..Default::default() };
    let dir = tempfile::tempdir().expect("a folder");
    let mut tables = Vec::new();
    for devices in [1, 3] {
        let db = dir.path().join(format!("{devices}.sqlite"));
        let work = Work {
            kernels: &kernels,
            precision: options.precision,
            sizes: options.micro_batch,
            enough: Bytes(16 * MIB),
            known: &[],
            on: &on,
            db: &db,
        };
        let timed = fill_on_several(work, devices, &|i| Ok(BySize(i as u64))).expect("times");
        assert!(timed > kernels.len(), "no micro-batch among {timed}");
        let table = vdnn_benchdb::BenchDb::open_to_read(&db).and_then(|db| db.times(&on)).expect("rows");
        let text = table.to_string();
        for i in 0..3 {
            assert_eq!(text.contains(&format!("device-{i}")), i < devices);
        }
        tables.push((1..3).fold(text, |t, i| t.replace(&format!("device-{i}"), "device-0")));
    }
    assert_eq!(tables[0], tables[1]);
    let lost = |i: usize| if i == 1 { Err(vdnnc::error::Failure::user("lost")) } else { Ok(BySize(0)) };
    let db = dir.path().join("lost.sqlite");
    let work = Work {
        kernels: &kernels,
        precision: options.precision,
        sizes: BatchSizes::Undivided,
        enough: Bytes::ZERO,
        known: &[],
        on: &on,
        db: &db,
    };
    assert_eq!(fill_on_several(work, 2, &lost).expect_err("a device is lost").message, "lost");
    let kept = vdnn_benchdb::BenchDb::open_to_read(&db).and_then(|db| db.times(&on)).expect("rows");
    assert!(!kept.is_empty(), "the other device's times are kept");
}

/// What the table of the H200 says of a training step in strict f32 within 512 MiB of workspace.
#[test]
fn divided_convolutions_keep_their_speed_within_a_limit() {
    let imported = zoo("vgg16", 256);
    let time = |workspace, sizes| {
        let mut options = options(workspace, sizes);
        (options.device, options.precision) = ("h200".to_owned(), vdnn_cost::Precision::F32);
        let compiled = compile(&imported.graph, 256, &options);
        (compiled.summary.compute.0, workspaces(&compiled.plan))
    };
    let limit = Workspace::Limit(Bytes(512 * MIB));
    let (whole, _) = time(limit, BatchSizes::Undivided);
    let (divided, (spaces, count)) = time(limit, BatchSizes::PowerOfTwo);
    let (unlimited, _) = time(Workspace::Planned, BatchSizes::Undivided);
    assert!(spaces.iter().all(|&w| w <= 512 * MIB) && count > 20, "{count} divided");
    assert!(
        divided * 2 < whole && divided < unlimited,
        "{divided} ns, {whole} undivided, {unlimited} unlimited"
    );
}

/// With tensor cores the fastest engines need little: what the table of the H200 has.
#[test]
fn a_small_workspace_leaves_nearly_all_of_the_speed_on_tensor_cores() {
    let table = concat!(env!("CARGO_MANIFEST_DIR"), "/../compiler/cost/devices/h200.times");
    let nets = ["vgg16", "resnet50", "densenet121"];
    for precision in ["tf32", "bf16"] {
        let mut command = assert_cmd::Command::new(vdnn_tests::data::vdnnc_binary());
        command.arg("profile").args(nets).args([
            "--batch",
            "256",
            "--precision",
            precision,
            "--replay",
            table,
        ]);
        let out = command.args(["--workspace-limit", "64MiB"]).output().expect("it runs");
        let text = String::from_utf8_lossy(&out.stdout);
        // Times of other kernels may be missing, which is an error.
        let lines: Vec<&str> =
            text.lines().filter_map(|l| l.trim().strip_prefix("within 64.0MiB ")).collect();
        assert_eq!(lines.len(), nets.len(), "{text}");
        for line in lines {
            let numbers: Vec<u64> = line.split(' ').filter_map(|w| w.parse().ok()).take(2).collect();
            let [near, all] = numbers[..] else { panic!("{line}") };
            assert!(all >= 26 && near * 10 >= all * 9, "{precision}: {line}");
        }
    }
}

#[test]
fn equivalence_is_checked_before_a_plan_runs() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = dir.path().join("m.onnx");
    let vdnnc = || assert_cmd::Command::new(vdnn_tests::data::vdnnc_binary());
    vdnnc().args(["zoo", "alexnet", "-o"]).arg(&model).assert().success();
    let plan = dir.path().join("m.vplan");
    let mut command = vdnnc();
    command.arg(&model).args(["--mode", "infer", "--batch", "4", "--device", "v100", "-o"]).arg(&plan);
    command.args(["--micro-batch", "all", "--workspace-limit", "1MiB"]).assert().success();
    // A division by hand, of a convolution that is whole.
    let text = std::fs::read_to_string(&plan).expect("a plan");
    let divided = text.replacen("algo=implicit_precomp_gemm ", "algo=implicit_gemm@3+gemm@1 ", 1);
    let expected = vdnn_plan::parse_plan(&divided).map(|p| workspaces(&p).1).expect("it still parses");
    assert!(expected > 0, "{text}");
    std::fs::write(&plan, &divided).expect("the plan is written");
    let mut command = vdnnc();
    command.arg("run").arg(&plan).args(["--synthetic", "--verify-equivalence", "--json"]);
    let out = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    let count = said.split(" divided convolutions equal").next().and_then(|s| s.split_whitespace().last());
    let count: usize = count.and_then(|n| n.parse().ok()).expect("a number");
    assert!((1..=expected).contains(&count), "{said}; {expected} launches");
}
