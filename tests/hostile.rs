//! Hostile input through the command: every broken file, model, budget and plan ends in exit
//! status 1 with one clear message, at once, and touches nothing.

use prost::Message;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};
use vdnn_frontends::onnx::proto::tensor_proto::DataLocation;
use vdnn_frontends::onnx::proto::{GraphProto, StringStringEntryProto, TensorProto};
use vdnn_tests::build::{Attr, Dim, attr, floats, graph, model, node};
use vdnn_tests::data::vdnnc_binary;

const X: [Dim<'static>; 4] = [Dim::N(2), Dim::N(3), Dim::N(8), Dim::N(8)];

/// What an existing output file holds before and after.
const UNTOUCHED: &[u8] = b"an earlier result";

/// A folder and the ways to call the command in it.
struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("a file is written");
        path
    }

    fn model(&self, name: &str, graph: GraphProto) -> PathBuf {
        self.write(name, model(17, graph).encode_to_vec())
    }

    fn zoo(&self, name: &str) -> PathBuf {
        let path = self.path(&format!("{name}.onnx"));
        let out = self.run(&["zoo", name, "-o", text(&path)]).0;
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        path
    }

    /// LeNet's training plan at batch 4, and its model.
    fn plan(&self, name: &str) -> (PathBuf, PathBuf) {
        let (model, plan) = (self.zoo("lenet"), self.path(name));
        let args = [text(&model), "--policy", "all", "--batch", "4", "-o", text(&plan)];
        let out = self.run(&args).0;
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        (model, plan)
    }

    fn run(&self, args: &[&str]) -> (Output, Duration) {
        let mut command = std::process::Command::new(vdnnc_binary());
        command.current_dir(self.0.path()).args(args);
        let start = Instant::now();
        let out = command.output().expect("the command starts");
        (out, start.elapsed())
    }

    /// The message of a command that must fail because of its input.
    fn refused(&self, args: &[&str]) -> String {
        // The bar is a second; only the fastest of three counts, because other tests run too.
        let mut best = Duration::MAX;
        let mut message = String::new();
        for _ in 0..3 {
            let (out, time) = self.run(args);
            message = String::from_utf8(out.stderr).expect("UTF-8");
            assert_eq!(out.status.code(), Some(1), "{args:?}: {message}");
            assert!(message.starts_with("error: "), "{args:?}: {message}");
            assert_eq!(message.matches("error: ").count(), 1, "{args:?}: {message}");
            assert!(!message.contains("panicked"), "{args:?}: {message}");
            best = best.min(time);
            if best < Duration::from_secs(1) {
                break;
            }
        }
        assert!(best < Duration::from_secs(1), "{args:?} took {best:?}");
        message
    }

    /// As [`Self::refused`] for a command that would write a file; `short` unless the message
    /// is a list.
    fn compile_refused(&self, path: &Path, more: &[&str], what: &str) -> String {
        let plan = self.write("earlier.vplan", UNTOUCHED);
        let report = self.write("earlier.html", UNTOUCHED);
        let before = files(self.0.path());
        let mut args = vec![text(path), "-o", text(&plan), "--report", text(&report)];
        args.extend(more);
        let message = self.refused(&args);
        assert!(message.contains(what), "no `{what}` in: {message}");
        assert_eq!(files(self.0.path()), before, "after: {message}");
        for file in [plan, report] {
            assert_eq!(std::fs::read(file).expect("the earlier file"), UNTOUCHED);
        }
        message
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path is UTF-8")
}

/// Names of the files in a folder.
fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .expect("the folder")
        .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn is_short(message: &str) {
    assert!(message.lines().count() <= 3 && message.len() < 600, "too long: {message}");
}

/// A way to damage a file.
type Edit = dyn Fn(&[u8]) -> Vec<u8>;

#[test]
fn files_that_are_no_models() {
    let room = Room::new();
    let good = std::fs::read(room.zoo("lenet")).expect("the model");
    for (path, what) in [
        (room.path("absent.onnx"), "No such file"),
        (room.0.path().to_owned(), "not a regular file"),
        (room.write("empty.onnx", b""), "the file is empty"),
        (room.write("text.onnx", "not a model\n"), "not a usable ONNX model"),
        (room.write("noise.onnx", [0xff; 1000]), "not a usable ONNX model"),
        (room.write("half.onnx", &good[..good.len() / 2]), "not a usable ONNX model"),
        (room.write("last.onnx", &good[..good.len() - 1]), "not a usable ONNX model"),
        (room.write("zeros.onnx", vec![0; 1 << 20]), "not a usable ONNX model"),
    ] {
        let message = room.compile_refused(&path, &[], what);
        assert!(message.contains(text(&path)), "the file is not named: {message}");
        is_short(&message);
        is_short(&room.refused(&["inspect", text(&path)]));
        is_short(&room.refused(&["run", text(&path), "--synthetic"]));
    }
}

#[test]
fn tensors_that_claim_more_than_there_is() {
    let room = Room::new();
    let add = || vec![node("Add", &["x", "w"], &["y"])];
    let claim = |dims: &[i64]| TensorProto { dims: dims.to_vec(), ..floats("w", &[], &[0.0]) };
    for (dims, what) in [
        (&[512 << 20][..], "needs 2147483648"),
        (&[1 << 40, 1 << 40], "too large"),
        (&[i64::MAX], "too large"),
        (&[-1], "negative"),
    ] {
        let path = room.model("claim.onnx", graph(&X, vec![claim(dims)], add(), "y"));
        let message = room.compile_refused(&path, &[], what);
        assert!(message.contains("initializer `w`"), "{message}");
        is_short(&message);
    }
    // The same of an input, which has no data to compare with, and of a constant made on import.
    let huge = [Dim::N(1 << 40), Dim::N(1 << 40)];
    let path = room.model("input.onnx", graph(&huge, vec![], vec![node("Relu", &["x"], &["y"])], "y"));
    is_short(&room.compile_refused(&path, &["--mode", "infer"], "input `x`"));
    let large = [Dim::N(1), Dim::N(1 << 20), Dim::N(1 << 10), Dim::N(1 << 9)];
    let path = room.model("large.onnx", graph(&large, vec![], vec![node("Relu", &["x"], &["y"])], "y"));
    is_short(&room.compile_refused(&path, &["--mode", "infer"], "the smallest that fits"));
    is_short(&room.refused(&["run", text(&path), "--synthetic", "--plain"]));
}

#[test]
fn graphs_that_are_no_graphs() {
    let room = Room::new();
    let relu = |i: &str, o: &str| node("Relu", &[i], &[o]);
    for (nodes, what) in [
        (vec![node("Add", &["x", "b"], &["a"]), relu("a", "b"), relu("b", "y")], "cycle through node"),
        (vec![relu("y", "y")], "cycle through node `y`"),
        (vec![relu("nowhere", "y")], "`nowhere` is used but nothing defines it"),
        (vec![relu("x", "y"), relu("x", "y")], "`y` is defined twice"),
        (vec![], "`y` is used but nothing defines it"),
    ] {
        let path = room.model("graph.onnx", graph(&X, vec![], nodes, "y"));
        is_short(&room.compile_refused(&path, &[], what));
    }
}

#[test]
fn every_unsupported_operator_is_listed_with_node_name_and_opset() {
    let room = Room::new();
    let mut custom = node("Magic", &["a"], &["b"]);
    custom.domain = Some("com.example".into());
    custom.name = Some("magic/1".into());
    let nodes = vec![
        node("NonMaxSuppression", &["x"], &["a"]),
        custom,
        node("Relu", &["b"], &["c"]),
        attr(node("Conv", &["c", "w"], &["d"]), "auto_pad", Attr::Text("SIDEWAYS")),
        node("Det\u{1b}[2J", &["d"], &["y"]),
    ];
    let path = room.model("ops.onnx", graph(&X, vec![floats("w", &[1, 3, 1, 1], &[1.0; 3])], nodes, "y"));
    let message = room.compile_refused(&path, &[], "problems");
    for site in
        ["node `a` (NonMaxSuppression, ai.onnx opset 17)", "node `magic/1` (Magic, com.example opset 0)"]
    {
        assert!(message.contains(site), "{message}");
    }
    assert!(message.contains("Det\\u{1b}[2J") && !message.contains('\u{1b}'), "{message}");
    assert!(!message.contains("(Relu,"), "only causes are reported: {message}");
}

#[test]
fn names_that_training_needs_are_refused_or_work() {
    let room = Room::new();
    let gemm = |x: &str, w: &str| {
        let dims = [Dim::N(2), Dim::N(3)];
        let mut g =
            graph(&dims, vec![floats(w, &[3, 4], &[0.5; 12])], vec![node("MatMul", &[x, w], &["y"])], "y");
        g.input[0].name = Some(x.to_owned());
        g
    };
    for (x, w) in
        [("labels", "w"), ("x", "labels"), ("x", "momentum:w"), ("vdnnc.hyper", "w"), ("x", "vdnnc.step")]
    {
        let path = room.model("names.onnx", gemm(x, w));
        is_short(&room.compile_refused(&path, &["--mode", "train"], "rename it"));
    }
    // Inference needs no labels, so a model may call its image so.
    let path = room.model("names.onnx", gemm("labels", "w"));
    let (out, _) = room.run(&["run", text(&path), "--synthetic"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    // And a tensor file of another shape is refused, not read beyond its end.
    let npy = room.path("x.npy");
    vdnn_frontends::tensors::npy::write(&npy, &vdnn_ir::Tensor::from_f32([2, 2], &[0.0; 4])).expect("a file");
    is_short(&room.refused(&["run", text(&path), "--input", text(&npy)]));
    let bytes = std::fs::read(&npy).expect("the file");
    for broken in [&bytes[..3], &bytes[..40], &bytes[..bytes.len() - 1], &[]] {
        let file = room.write("broken.npy", broken);
        is_short(&room.refused(&["run", text(&path), "--input", text(&file)]));
        let file = room.write("broken.npz", broken);
        is_short(&room.refused(&["run", text(&path), "--input", text(&file)]));
    }
}

/// A model of one Add whose weight `w` of 8 floats lies at an external location.
fn external(location: &str, offset: &str) -> GraphProto {
    let entry = |k: &str, v: &str| StringStringEntryProto { key: Some(k.into()), value: Some(v.into()) };
    let w = TensorProto {
        raw_data: None,
        data_location: Some(DataLocation::External.into()),
        external_data: vec![entry("location", location), entry("offset", offset)],
        ..floats("w", &[8], &[0.0; 8])
    };
    graph(&X, vec![w], vec![node("Add", &["x", "w"], &["y"])], "y")
}

#[test]
fn external_data_that_is_absent_short_or_elsewhere() {
    let room = Room::new();
    std::fs::create_dir(room.path("home")).expect("a folder");
    let secret = room.write("secret.bin", [1; 64]);
    room.write("home/short.bin", [1; 31]);
    #[cfg(unix)]
    std::os::unix::fs::symlink(&secret, room.path("home/link.bin")).expect("a link");
    for (location, offset, what) in [
        ("missing.bin", "0", "cannot be read"),
        ("../secret.bin", "0", "outside the model's folder"),
        ("sub/../../secret.bin", "0", "outside the model's folder"),
        (text(&secret), "0", "outside the model's folder"),
        ("/dev/zero", "0", "outside the model's folder"),
        #[cfg(unix)]
        ("link.bin", "0", "outside the model's folder"),
        ("", "0", "outside the model's folder"),
        ("nul\0.bin", "0", "cannot be read"),
        (".", "0", "cannot be read"),
        ("short.bin", "0", "32 bytes at offset 0 are wanted"),
        ("short.bin", "18446744073709551600", "are wanted"),
        ("short.bin", "-1", "is not a size in bytes"),
    ] {
        let path = room.model("home/m.onnx", external(location, offset));
        let message = room.compile_refused(&path, &["--mode", "infer"], what);
        assert!(message.contains("initializer `w`"), "{message}");
        is_short(&message);
    }
}

#[test]
fn a_budget_too_small_names_the_smallest_that_fits() {
    let room = Room::new();
    let path = room.zoo("lenet");
    for memory in ["1", "256", "1MiB"] {
        let message =
            room.compile_refused(&path, &["--batch", "64", "--memory", memory], "the smallest that fits is ");
        is_short(&message);
        assert!(message.contains("--policy "), "no way out: {message}");
        let args = ["--mode", "train", "--batch", "64", "--memory", memory, "--synthetic"];
        is_short(&room.refused(&[&["run", text(&path)][..], &args].concat()));
    }
    for memory in ["-1", "1 banana", "99999999999999999999GiB", ""] {
        let (out, _) = room.run(&[text(&path), "--memory", memory]);
        assert_eq!(out.status.code(), Some(1), "--memory {memory:?}");
    }
}

#[test]
fn batches_and_dimensions_beyond_reason() {
    let room = Room::new();
    let path = room.zoo("lenet");
    for batch in ["0", "18446744073709551615", "9223372036854775807", "1099511627776", "4294967296"] {
        let (out, _) = room.run(&[text(&path), "--batch", batch]);
        let message = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "--batch {batch}: {message}");
        assert!(!message.contains("panicked") && !message.contains("internal"), "--batch {batch}: {message}");
    }
}

/// Both forms of a plan, each broken in `edit`'s way.
fn broken_plans(room: &Room, edit: impl Fn(&[u8]) -> Vec<u8>) -> Vec<PathBuf> {
    ["m.vplan", "m.vplanb"]
        .into_iter()
        .map(|name| {
            let (_, plan) = room.plan(name);
            let bytes = edit(&std::fs::read(plan).expect("the plan"));
            room.write(&format!("broken.{}", name.split('.').next_back().unwrap_or_default()), bytes)
        })
        .collect()
}

#[test]
fn plans_that_are_cut_or_garbled() {
    let room = Room::new();
    let garbled = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let n = bytes.len();
        bytes[n / 2..n / 2 + 8].fill(b'#');
        bytes
    };
    let edits: [&Edit; 4] =
        [&|b| b[..b.len() / 2].to_vec(), &|b| b[..7].to_vec(), &garbled, &|b| [b, b].concat()];
    for edit in edits {
        for plan in broken_plans(&room, edit) {
            for args in [&["check", text(&plan)][..], &["run", text(&plan), "--synthetic"]] {
                let message = room.refused(args);
                // What still parses gives the checker's list.
                if !message.contains("is not a valid plan") {
                    is_short(&message);
                }
            }
        }
    }
}

#[test]
fn a_plan_whose_model_changed_or_went_away() {
    let room = Room::new();
    let (model, plan) = room.plan("m.vplan");
    let output = room.write("weights.safetensors", UNTOUCHED);
    let args = ["run", text(&plan), "--synthetic", "--save-weights", text(&output)];
    let mut bytes = std::fs::read(&model).expect("the model");
    // Inside the largest weight: still a valid model, but another one.
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&model, &bytes).expect("the changed model");
    let message = room.refused(&args);
    is_short(&message);
    assert!(message.contains("is not the model the plan was made from"), "{message}");
    std::fs::remove_file(&model).expect("the model goes");
    let message = room.refused(&args);
    is_short(&message);
    assert!(message.contains("is not there"), "{message}");
    assert_eq!(std::fs::read(output).expect("the earlier file"), UNTOUCHED);
}

/// The text with the number after the last `before` on a line that starts with `line` replaced.
fn with_number(plan: &str, line: &str, before: &str, number: u64) -> String {
    let mut done = false;
    let lines = plan.lines().map(|l| {
        if done || !l.starts_with(line) {
            return l.to_owned();
        }
        done = true;
        let at = l.find(before).expect("the word") + before.len();
        let rest = l[at..].trim_start_matches(|c: char| c.is_ascii_digit());
        format!("{}{number}{rest}", &l[..at])
    });
    let text = lines.collect::<Vec<_>>().join("\n") + "\n";
    assert!(done && text != plan, "nothing changed at `{line}`");
    text
}

#[test]
fn plans_edited_by_hand_are_not_run() {
    let room = Room::new();
    let (_, path) = room.plan("m.vplan");
    let plan = std::fs::read_to_string(&path).expect("the plan");
    let line = |start: &str, has: &str| {
        plan.lines().find(|l| l.starts_with(start) && l.contains(has)).expect("such a line").to_owned()
    };
    let buffer = |line: &str| line.split_whitespace().nth(1).expect("an id").to_owned();
    // A weight's buffer moved over its neighbour, out of the arena, off its alignment, beyond 64 bits.
    let weight = buffer(&line("buffer", "\"fc2.weight\""));
    let head = format!("buffer {weight} ");
    let without = |what: &str| {
        let victim = plan.lines().find(|l| l.starts_with('c') && l.contains(what)).expect("such a command");
        // Ids count up, so the command is replaced by a harmless one.
        plan.replace(
            &format!("{victim}\n"),
            &format!("{} s0 free {weight}\n", victim.split(' ').next().expect("id")),
        )
    };
    let edits = [
        with_number(&plan, &head, " device ", 0),
        with_number(&plan, &head, " device ", 1 << 50),
        with_number(&plan, &head, " device ", 100),
        with_number(&plan, &head, " device ", u64::MAX - 255),
        with_number(&plan, "arena device", "device ", 256),
        without(" copy "),
        without(" wait "),
        without(" launch "),
    ];
    let output = room.write("weights.safetensors", UNTOUCHED);
    for (i, edited) in edits.iter().enumerate() {
        let file = room.write("edited.vplan", edited);
        for args in [
            &["check", text(&file)][..],
            &["run", text(&file), "--synthetic", "--save-weights", text(&output)],
        ] {
            let message = room.refused(args);
            assert!(
                message.contains("is not a valid plan") || message.contains("does not parse"),
                "edit {i}: {message}"
            );
        }
    }
    // A sound plan with more arena than any machine has: nothing is wrong until it is run.
    for edited in [
        with_number(&plan, "arena device", "device ", u64::MAX),
        with_number(&plan, "arena device", "device ", 1 << 60),
        with_number(&plan, "arena host", "host ", 1 << 60),
    ] {
        let file = room.write("edited.vplan", edited);
        let message = room.refused(&["run", text(&file), "--synthetic", "--save-weights", text(&output)]);
        assert!(message.contains("cannot allocate"), "{message}");
    }
    assert_eq!(std::fs::read(output).expect("the earlier file"), UNTOUCHED);
}
