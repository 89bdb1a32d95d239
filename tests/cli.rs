//! The command as a user meets it: exit status, messages, files.

use assert_cmd::Command;
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

fn vdnnc() -> Command {
    let mut c = Command::new(vdnn_tests::data::vdnnc_binary());
    c.timeout(Duration::from_secs(120));
    c
}

fn zoo(dir: &Path, name: &str) -> std::path::PathBuf {
    let path = dir.join(format!("{name}.onnx"));
    vdnnc().args(["zoo", name, "-o"]).arg(&path).assert().success();
    path
}

/// Runs what is to take less than `limit`. One run in time is enough: others may have the machine.
fn soon(what: &str, limit: Duration, mut run: impl FnMut()) {
    let mut times = Vec::new();
    while times.len() < 5 && times.last().is_none_or(|t| *t >= limit) {
        let start = Instant::now();
        run();
        times.push(start.elapsed());
    }
    assert!(times.iter().any(|t| *t < limit), "{what} took {times:?}");
}

fn json(c: &mut Command) -> Value {
    let out = c.output().expect("the command runs");
    serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out.stderr)))
}

#[test]
fn compiling_prints_every_promised_key() {
    let dir = tempfile::tempdir().unwrap();
    let model = zoo(dir.path(), "lenet");
    let v = json(vdnnc().arg(&model).args(["--policy", "conv", "--batch", "16", "--json"]));
    for key in ["model", "mode", "batch", "policy", "algo", "device", "fits", "compile_ns"] {
        assert!(!v[key].is_null(), "{key} is missing from {v}");
    }
    let memory = ["peak_bytes", "average_bytes", "lower_bound_bytes", "baseline_peak_bytes"];
    for key in memory.into_iter().chain(["weights_bytes", "workspace_bytes", "host_bytes"]) {
        assert!(v["memory"][key].is_u64(), "memory.{key}");
    }
    assert!(v["transfer"]["offload_bytes"].is_u64() && v["transfer"]["prefetch_bytes"].is_u64());
    for key in ["step_ns", "compute_ns", "stall_ns"] {
        assert!(v["time"][key].is_u64(), "time.{key}");
    }
    assert!(
        v["passes"].as_array().is_some_and(|p| p.iter().all(|r| r["name"].is_string() && r["ns"].is_u64()))
    );
    assert_eq!(v["batch"], 16);
    // LeNet's convolutions read the image and the first pool's output.
    assert_eq!(v["transfer"]["offload_bytes"], 16 * 4 * (28 * 28 + 6 * 14 * 14));
}

#[test]
fn a_plan_is_written_checked_described_and_run() {
    let dir = tempfile::tempdir().unwrap();
    let model = zoo(dir.path(), "lenet");
    for name in ["m.vplan", "m.vplanb"] {
        let plan = dir.path().join(name);
        vdnnc().arg(&model).args(["--policy", "all", "--batch", "4", "-o"]).arg(&plan).assert().success();
        vdnnc().arg("check").arg(&plan).assert().success();
        vdnnc().arg("inspect").arg(&plan).assert().success();
        let v = json(vdnnc().arg("run").arg(&plan).args(["--synthetic", "--steps", "3", "--json"]));
        let losses: Vec<f64> = v["loss"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect();
        assert_eq!(losses.len(), 3);
        assert!(losses[2] < losses[0], "the same batch again must be easier: {losses:?}");
    }
    vdnnc().arg("inspect").arg(&model).assert().success();
}

#[test]
fn what_describes_a_plan_is_for_people_unless_json_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let model = zoo(dir.path(), "lenet");
    let plan = dir.path().join("m.vplan");
    vdnnc().arg(&model).args(["--batch", "4", "--recompute", "cheap", "-o"]).arg(&plan).assert().success();
    let printed =
        |c: &mut Command| String::from_utf8(c.assert().success().get_output().stdout.clone()).expect("UTF-8");
    let sim = printed(vdnnc().arg("run").arg(&plan).args(["--synthetic", "--backend", "sim"]));
    assert!(sim.starts_with("on h200: predicted step "), "{sim}");
    let v = json(vdnnc().arg("run").arg(&plan).args(["--synthetic", "--backend", "sim", "--json"]));
    assert!(v["step_ns"].as_u64().is_some_and(|t| t > 0), "{v}");
    // The options that the plan carries, and the work of a small network.
    let text = printed(vdnnc().arg("inspect").arg(&plan));
    assert!(text.contains("  made with sync=event ") && text.contains(" recompute=cheap "), "{text}");
    let v = json(vdnnc().arg("inspect").arg(&plan).arg("--json"));
    assert!(v["options"].as_array().unwrap().iter().any(|o| o == "recompute=cheap"), "{v}");
    let text = printed(vdnnc().arg("inspect").arg(&model));
    assert!(text.contains("852.37KFLOP forward") && !text.contains(" 0.00"), "{text}");
}

#[test]
fn options_that_nothing_would_come_of_are_refused_or_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let model = zoo(dir.path(), "lenet");
    let plan = dir.path().join("m.vplan");
    let output = plan.to_str().expect("UTF-8");
    for (arguments, message) in [
        (vec!["--stop-after", "joint"], "add --emit graph"),
        (vec!["--stop-after", "joint", "--emit", "plan"], "add --emit graph"),
        (vec!["--svg", "p.svg", "--emit", "graph"], "add --emit pyramids"),
        (vec!["--emit", "graph", "-o", output], "make no plan"),
        (vec!["--emit", "pyramids", "--mode", "infer", "--report", output], "make no plan"),
        (vec!["--algo", "only=implicit_gemm", "--workspace-limit", "1MiB"], "leave out --micro-batch"),
        (vec!["--algo", "only=implicit_gemm", "--micro-batch", "all"], "leave out --micro-batch"),
    ] {
        let out = vdnnc().arg(&model).args(&arguments).output().unwrap();
        assert_eq!(out.status.code(), Some(1), "{arguments:?}");
        assert!(String::from_utf8_lossy(&out.stderr).contains(message), "{arguments:?}");
        assert!(!plan.exists());
    }
    // Blocks are for tensor cores, zeros of inputs for f32.
    let warned = |arguments: &[&str]| {
        let out = vdnnc().arg(&model).args(["--mode", "infer", "--sparse"]).args(arguments).output().unwrap();
        assert!(out.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&out.stderr).contains("no layer of the plan is of that kind")
    };
    assert!(warned(&["force=two-four"]) && warned(&["force=two-four", "--precision", "bf16"]));
    assert!(warned(&["force=block"]) && warned(&["force=activations", "--precision", "bf16"]));
    assert!(!warned(&["force=block", "--precision", "tf32"]) && !warned(&["force=activations"]));
    assert!(!warned(&["auto"]));
}

#[test]
fn policies_and_the_interpreter_agree_on_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let model = zoo(dir.path(), "lenet");
    let loss = |extra: &[&str]| {
        let v = json(
            vdnnc()
                .arg("run")
                .arg(&model)
                .args(["--mode", "train", "--batch", "4", "--synthetic", "--steps", "3", "--json"])
                .args(extra),
        );
        v["loss"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect::<Vec<_>>()
    };
    let none = loss(&["--policy", "none"]);
    for policy in ["baseline", "all", "conv", "dyn"] {
        assert_eq!(none, loss(&["--policy", policy, "--poison"]), "{policy}");
    }
    for (a, b) in none.iter().zip(loss(&["--plain"])) {
        assert!((a - b).abs() < 1e-4, "{a} against the interpreter's {b}");
    }
}

#[test]
fn a_budget_too_small_names_the_smallest_that_fits_and_writes_no_plan() {
    let dir = tempfile::tempdir().unwrap();
    let model = zoo(dir.path(), "lenet");
    let plan = dir.path().join("m.vplan");
    let run = |memory: &str| {
        let mut c = vdnnc();
        c.arg(&model).args(["--batch", "64", "--memory", memory, "--json", "-o"]).arg(&plan);
        c
    };
    let out = run("1MiB").assert().code(1).get_output().clone();
    let v: Value = serde_json::from_slice(&out.stdout).expect("the JSON is still printed");
    assert_eq!(v["fits"], false);
    assert!(!plan.exists());
    let message = String::from_utf8(out.stderr).unwrap();
    let smallest: u64 = message
        .split("smallest that fits is ")
        .nth(1)
        .and_then(|t| t.split('(').nth(1)?.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("no size in: {message}"));
    run(&smallest.to_string()).assert().success();
    run(&(smallest - 256).to_string()).assert().code(1);
}

/// Every kind of bad input: exit 1, one message, under a second.
#[test]
fn bad_input_exits_1_with_one_clear_message_under_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let good = std::fs::read(zoo(dir.path(), "lenet")).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let cases = [
        ("absent", dir.path().join("absent.onnx")),
        ("empty", write("empty.onnx", b"")),
        ("truncated", write("truncated.onnx", &good[..good.len() / 2])),
        ("garbage", write("garbage.onnx", &[0xff; 1000])),
        ("a folder", dir.path().to_owned()),
    ];
    for (what, path) in cases {
        soon(what, Duration::from_secs(1), || {
            let out = vdnnc().arg(&path).assert().code(1).get_output().clone();
            let text = String::from_utf8(out.stderr).unwrap();
            assert!(text.starts_with("error: ") && text.lines().count() <= 4, "{what}: {text}");
            assert!(!text.contains("panicked"), "{what}: {text}");
        });
    }
}

#[test]
fn usage_errors_exit_1_and_help_exits_0() {
    vdnnc().arg("--policy").assert().code(1);
    vdnnc().args(["m.onnx", "--policy", "some"]).assert().code(1);
    vdnnc().assert().code(1);
    vdnnc().args(["zoo", "no-such-net", "-o", "x.onnx"]).assert().code(1);
    vdnnc().arg("--help").assert().success();
    vdnnc().arg("--version").assert().success();
}

/// True if this machine has a GPU the command can use.
fn has_gpu() -> bool {
    let v = json(vdnnc().args(["devices", "--json"]));
    !v["devices"].as_array().expect("a list").is_empty()
}

#[test]
fn devices_answers_on_every_machine() {
    let out = vdnnc().arg("devices").assert().success().get_output().clone();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    for library in ["NVIDIA driver", "NVRTC", "cuBLASLt", "cuDNN"] {
        assert!(text.contains(library), "{text}");
    }
    let v = json(vdnnc().args(["devices", "--json"]));
    assert_eq!(v["libraries"].as_array().map(Vec::len), Some(4), "{v}");
    assert_eq!(v["error"].is_null(), has_gpu(), "{v}");
    if !has_gpu() {
        assert!(text.starts_with("no CUDA GPU"), "{text}");
    }
}

#[test]
fn without_a_gpu_the_cuda_backend_is_refused_before_any_work() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let model = zoo(dir.path(), "lenet");
    if !has_gpu() {
        let none = dir.path().join("no-libraries");
        let runs: [Vec<&str>; 3] = [
            vec!["bench", "vgg16", "--batch", "256"],
            vec!["run", "--synthetic", "--backend", "cuda"],
            vec!["train", "--data", "missing", "--backend", "cuda"],
        ];
        for args in runs {
            soon(&format!("{args:?}"), Duration::from_secs(2), || {
                let mut c = vdnnc();
                c.args(&args).arg("--cuda-libs").arg(&none);
                if args[0] != "bench" {
                    c.arg(&model);
                }
                let out = c.assert().code(1).get_output().clone();
                let text = String::from_utf8_lossy(&out.stderr).into_owned();
                assert!(text.starts_with("error: the CUDA backend is not available: "), "{args:?}: {text}");
                assert!(out.stdout.is_empty(), "{args:?}");
            });
        }
    }
    for bad in ["first", "-1", "GPU-12"] {
        vdnnc().args(["run", "--synthetic", "--backend", "cuda", "--cuda-device", bad]).assert().code(1);
    }
}

#[test]
fn bench_predicts_before_it_measures() {
    let out = vdnnc()
        .args([
            "bench",
            "lenet",
            "--backend",
            "cpu",
            "--batch",
            "4",
            "--policy",
            "all",
            "--steps",
            "3",
            "--json",
        ])
        .assert()
        .success()
        .get_output()
        .clone();
    let lines: Vec<Value> = String::from_utf8_lossy(&out.stdout)
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON lines"))
        .collect();
    assert_eq!(lines.len(), 2);
    let (prediction, result) = (&lines[0], &lines[1]);
    assert_eq!((&prediction["kind"], &result["kind"]), (&"prediction".into(), &"result".into()));
    assert_eq!(prediction["step_ns"], result["predicted_step_ns"]);
    assert_eq!(result["steps"], 3);
    assert!(result["offload_bytes"].as_u64() > Some(0), "{result}");
    let of = |key: &str| result["step_ms"][key].as_f64().expect("a number");
    assert!(of("min") <= of("median") && of("median") <= of("max") && of("min") > 0.0, "{result}");
    // A target that is nothing does not keep the others from being measured.
    let out = vdnnc()
        .args(["bench", "no-such-net", "lenet", "--backend", "cpu", "--batch", "1", "--steps", "1"])
        .assert()
        .code(1)
        .get_output()
        .clone();
    assert!(String::from_utf8_lossy(&out.stdout).contains("lenet train batch 1"));
    assert!(String::from_utf8_lossy(&out.stderr).contains("no-such-net"));
    vdnnc().args(["bench", "lenet", "--backend", "cpu", "--trace", "t.json"]).assert().code(1);
}

#[test]
fn pruning_leaves_its_pattern_and_plans_use_it() {
    let dir = tempfile::tempdir().unwrap();
    let model = zoo(dir.path(), "resnet18");
    let pruned = dir.path().join("pruned.onnx");
    let prune = |more: &[&str]| {
        let mut c = vdnnc();
        c.arg("prune").arg(&model).args(more).arg("-o").arg(&pruned);
        c.assert().success();
        json(vdnnc().arg("inspect").arg(&pruned).args(["--sparsity", "--json"]))
    };
    let share = |v: &Value| v["zeros"].as_f64().unwrap() / v["elements"].as_f64().unwrap();
    let v = prune(&["--method", "2:4"]);
    assert!(v["layers"].as_array().unwrap().iter().all(|l| l["two_of_four"] == 1.0), "{v}");
    let plan = |sparse: &[&str]| {
        let mut c = vdnnc();
        c.arg(&pruned)
            .args(["--mode", "infer", "--device", "cpu", "--precision", "bf16", "--json"])
            .args(sparse);
        json(&mut c)
    };
    let bytes = |v: &Value| v["memory"]["weights_bytes"].as_u64().unwrap();
    let (dense, packed) = (plan(&["--sparse", "off"]), plan(&["--sparse", "force=two-four"]));
    let pass = packed["passes"].as_array().unwrap().iter().find(|p| p["name"] == "pack-weights");
    assert_eq!(pass.expect("it ran")["stats"]["packed"], 20, "all but the first");
    // Half of the values, and two bits for each.
    let part = bytes(&packed) as f64 / bytes(&dense) as f64;
    assert!((0.55..0.6).contains(&part), "{part}");
    let v = prune(&["--method", "block", "--sparsity", "0.5"]);
    assert!(v["layers"][5]["zero_blocks_16x16"].as_f64().unwrap() >= 0.4, "{v}");
    let v = prune(&["--method", "magnitude", "--sparsity", "0.9", "--layers", "layer1,layer2"]);
    assert!(share(&v) > 0.03 && share(&v) < 0.06, "only the first blocks: {}", share(&v));
    // Filters that are gone make the convolutions behind them smaller.
    let v = prune(&["--method", "channel", "--sparsity", "0.5", "--layers", "conv1"]);
    assert!(v["removable_macs_share"].as_f64().unwrap() > 0.3, "{v}");
    let svg = dir.path().join("map.svg");
    vdnnc().arg("inspect").arg(&pruned).arg("--sparsity").arg("--svg").arg(&svg).assert().success();
    assert!(std::fs::read_to_string(&svg).unwrap().contains("% zeros"));

    prune(&["--sparsity", "0.9"]);
    let plan = |sparse: &str| {
        let mut c = vdnnc();
        c.arg(&pruned).args(["--mode", "infer", "--device", "cpu", "--json", "--sparse", sparse]);
        json(&mut c)
    };
    let (off, auto) = (plan("off"), plan("auto"));
    let passes = auto["passes"].as_array().unwrap();
    let packed = passes.iter().find(|p| p["name"] == "pack-weights").expect("it ran");
    assert!(packed["stats"]["packed"].as_u64().unwrap() > 15, "{packed}");
    let weights = |v: &Value| v["memory"]["weights_bytes"].as_u64().unwrap();
    assert!(weights(&auto) * 4 < weights(&off), "an entry is two words for ten weights");

    for (arguments, message) in [
        (vec!["--sparsity", "2"], "not a share"),
        (vec!["--method", "3:4"], "not magnitude, 2:4, block or channel"),
        (vec!["--sparsity", "0.5", "--layers", "nothing"], "no layer is chosen"),
        (vec!["--method", "block"], "needs --sparsity"),
        (vec!["--sparsity", "0.5", "--block", "4"], "not a block"),
    ] {
        let out = vdnnc().arg("prune").arg(&model).args(&arguments).arg("-o").arg(&pruned).output().unwrap();
        assert_eq!(out.status.code(), Some(1), "{arguments:?}");
        assert!(String::from_utf8_lossy(&out.stderr).contains(message), "{arguments:?}");
    }
    // As many bytes as an image, and none.
    let turned = dir.path().join("turned.npy");
    let zeros = vdnn_ir::Tensor::from_f32([1, 224, 224, 3], &vec![0.0; 224 * 224 * 3]);
    vdnn_frontends::tensors::npy::write(&turned, &zeros).expect("a file");
    let out =
        vdnnc().arg("inspect").arg(&model).args(["--sparsity", "--input"]).arg(&turned).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("1,224,224,3"));
    for tolerance in ["nan", "-1"] {
        let mut c = vdnnc();
        c.arg("inspect").arg(&model).args(["--sparsity", &format!("--dead-tolerance={tolerance}")]);
        let out = c.output().unwrap();
        assert_eq!(out.status.code(), Some(1), "{tolerance}");
        assert!(String::from_utf8_lossy(&out.stderr).contains("not a number from 0 on"), "{tolerance}");
    }
    let out = vdnnc().arg(&model).args(["--sparse", "force=magic"]).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stderr).contains("force=csr"));
}
