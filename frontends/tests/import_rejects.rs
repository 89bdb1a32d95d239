//! Bad models end in one error that says where and why, quickly and without a panic.

mod support;

use prost::Message;
use std::path::Path;
use std::time::{Duration, Instant};
use support::build::{Attr, Dim, attr, floats, graph, import, import_graph, info, ints, model, node};
use vdnn_frontends::onnx::proto::tensor_proto::{DataLocation, DataType};
use vdnn_frontends::onnx::proto::{FunctionProto, StringStringEntryProto, TensorProto};
use vdnn_frontends::onnx::{ImportError, ImportOptions, import_bytes, import_file};

const X: [Dim<'static>; 4] = [Dim::N(2), Dim::N(3), Dim::N(8), Dim::N(8)];

fn error(opset: i64, g: vdnn_frontends::onnx::proto::GraphProto) -> String {
    import_graph(opset, g).expect_err("must be refused").to_string()
}

fn file_error(path: &Path) -> String {
    let start = Instant::now();
    let text = import_file(path, &ImportOptions::default()).expect_err("must be refused").to_string();
    // Generous: the bar is a second for the whole command, of an optimised build.
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(text.contains(&path.display().to_string()), "{text}");
    text
}

#[test]
fn files_that_are_no_models() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    assert!(file_error(&dir.path().join("none.onnx")).contains("No such file"));
    assert!(file_error(dir.path()).contains("not a regular file"));
    assert!(file_error(&file("empty.onnx", b"")).contains("the file is empty"));
    assert!(file_error(&file("text.onnx", b"this is not a model")).contains("not a usable ONNX model"));
    let whole = model(17, graph(&X, vec![], vec![node("Relu", &["x"], &["y"])], "y")).encode_to_vec();
    assert!(import_file(&file("whole.onnx", &whole), &ImportOptions::default()).is_ok());
    for cut in 1..whole.len() {
        // Cut between fields, what is left is a model without its end.
        if let Err(e) = import_bytes(whole[..cut].to_vec().into(), None, &ImportOptions::default()) {
            assert!(!e.errors.is_empty());
        }
    }
    assert!(file_error(&file("cut.onnx", &whole[..whole.len() - 7])).contains("not a usable ONNX model"));
}

#[test]
fn every_single_byte_change_of_a_real_model_is_survived() {
    let weights = vec![floats("w", &[4, 3, 3, 3], &[0.5; 108]), ints("s", &[2], &[0, -1])];
    let nodes = vec![
        attr(node("Conv", &["x", "w"], &["c"]), "pads", Attr::Ints(&[1, 1, 1, 1])),
        attr(node("MaxPool", &["c"], &["p"]), "kernel_shape", Attr::Ints(&[2, 2])),
        node("Reshape", &["p", "s"], &["y"]),
    ];
    let bytes = model(17, graph(&X, weights, nodes, "y")).encode_to_vec();
    assert!(import_bytes(bytes.clone().into(), None, &ImportOptions::default()).is_ok());
    for i in 0..bytes.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff, bytes[i] ^ 1, bytes[i] ^ 8] {
            let mut changed = bytes.clone();
            changed[i] = value;
            let _ = import_bytes(changed.into(), None, &ImportOptions::default());
        }
    }
}

/// Random edits of real exports: bytes changed, dropped and repeated. `VDNN_FUZZ` multiplies
/// their number.
#[test]
fn random_edits_of_exported_models_are_survived() {
    let Some(data) = support::data() else { return };
    let rounds = std::env::var("VDNN_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(1) * 150;
    let dir = tempfile::tempdir().unwrap();
    let stems = ["skel/alexnet_orig.ts13", "skel/resnet18.dy20_noopt", "light_seeded/squeezenet.c2op9"];
    for stem in stems {
        let path = support::with_holes(&data.join("onnx").join(format!("{stem}.onnx")), dir.path());
        let bytes = std::fs::read(&path).unwrap();
        let seed = support::fnv1a64(stem.as_bytes());
        let mut refused = 0;
        for round in 0..rounds {
            let mut random = (0..).map(|i| support::mix(seed ^ round, i));
            let mut edited = bytes.clone();
            for _ in 0..1 + random.next().unwrap() % 4 {
                let at = (random.next().unwrap() % edited.len() as u64) as usize;
                let value = random.next().unwrap();
                match value % 8 {
                    0 => drop(edited.remove(at)),
                    1 => edited.insert(at, edited[at]),
                    2 => edited[at] ^= 1 << (value >> 8 & 7),
                    _ => edited[at] = (value >> 8) as u8,
                }
            }
            refused +=
                u64::from(import_bytes(edited.into(), Some(dir.path()), &ImportOptions::default()).is_err());
        }
        assert!(refused > rounds / 4, "{stem}: {refused} of {rounds} refused");
    }
}

#[test]
fn every_unsupported_node_is_reported_at_once() {
    let mut custom = node("Magic", &["a"], &["b"]);
    custom.domain = Some("com.example".into());
    custom.name = Some("magic/1".into());
    let nodes = vec![node("Loop", &["x"], &["a"]), custom, node("Resize", &["b"], &["c"])];
    let errors = import_graph(17, graph(&X, vec![], nodes, "c")).unwrap_err();
    let sites: Vec<_> = errors
        .errors
        .iter()
        .map(|e| match e {
            ImportError::Unsupported { site, .. } => {
                (site.node.as_str(), site.op.as_str(), site.domain.as_str(), site.opset)
            }
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(
        sites,
        [
            ("a", "Loop", "ai.onnx", 17),
            ("magic/1", "Magic", "com.example", 0),
            ("c", "Resize", "ai.onnx", 17)
        ]
    );
    let text = errors.to_string();
    assert!(text.contains("node `magic/1` (Magic, com.example opset 0)"), "{text}");
}

#[test]
fn functions_of_the_model_are_refused_where_they_are_called() {
    let mut m = model(17, graph(&X, vec![], vec![node("Block", &["x"], &["y"])], "y"));
    m.functions.push(FunctionProto { name: Some("Block".into()), ..Default::default() });
    let text = import(&m, &ImportOptions::default()).unwrap_err().to_string();
    assert!(text.contains("function defined in the model"), "{text}");
}

#[test]
fn names_must_be_defined_once_and_before_use() {
    let relu = |i: &str, o: &str| node("Relu", &[i], &[o]);
    assert!(error(17, graph(&X, vec![], vec![relu("z", "y")], "y")).contains("`z` is used but nothing"));
    assert!(error(17, graph(&X, vec![], vec![], "y")).contains("`y` is used but nothing"));
    let twice = vec![relu("x", "y"), relu("x", "y")];
    assert!(error(17, graph(&X, vec![], twice, "y")).contains("`y` is defined twice"));
    let cycle = vec![node("Add", &["x", "b"], &["a"]), relu("a", "b")];
    assert!(error(17, graph(&X, vec![], cycle, "b")).contains("cycle through node"));
    let mut two = graph(&X, vec![], vec![relu("x", "y")], "y");
    two.input.push(info("x", DataType::Float, &[]));
    assert!(error(17, two).contains("two inputs are named `x`"));
}

#[test]
fn initializers_must_hold_what_they_claim() {
    let add = || vec![node("Add", &["x", "w"], &["y"])];
    let claim = |dims: &[i64]| TensorProto { dims: dims.to_vec(), ..floats("w", &[], &[0.0]) };
    assert!(error(17, graph(&X, vec![claim(&[512 << 20])], add(), "y")).contains("needs 2147483648"));
    assert!(error(17, graph(&X, vec![claim(&[i64::MAX, 9])], add(), "y")).contains("too large"));
    assert!(error(17, graph(&X, vec![claim(&[-3])], add(), "y")).contains("negative"));
    let text = TensorProto { data_type: Some(DataType::String.into()), ..claim(&[1]) };
    assert!(error(17, graph(&X, vec![text], add(), "y")).contains("STRING is not supported"));
    // What nobody reads does no harm.
    let unused = vec![node("Relu", &["x"], &["y"])];
    assert!(import_graph(17, graph(&X, vec![claim(&[-3])], unused, "y")).is_ok());
}

#[test]
fn external_data_stays_in_the_models_folder() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("model");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(dir.path().join("secret"), [0; 64]).unwrap();
    std::fs::write(home.join("w"), [0; 64]).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(dir.path().join("secret"), home.join("link")).unwrap();
    let attempt = |location: &str, offset: &str, length: &str| {
        let entry = |k: &str, v: &str| StringStringEntryProto { key: Some(k.into()), value: Some(v.into()) };
        let w = TensorProto {
            raw_data: None,
            data_location: Some(DataLocation::External.into()),
            external_data: vec![
                entry("location", location),
                entry("offset", offset),
                entry("length", length),
            ],
            ..floats("w", &[8], &[0.0; 8])
        };
        let m = model(17, graph(&X, vec![w], vec![node("Add", &["x", "w"], &["y"])], "y"));
        let path = home.join("m.onnx");
        std::fs::write(&path, m.encode_to_vec()).unwrap();
        import_file(&path, &ImportOptions::default()).map(|i| i.files.len()).map_err(|e| e.to_string())
    };
    assert_eq!(attempt("w", "32", "32"), Ok(2));
    assert_eq!(attempt("./w", "0", "32"), Ok(2));
    let absolute = dir.path().join("secret").display().to_string();
    for (location, offset, length, want) in [
        ("../secret", "0", "32", "outside the model's folder"),
        (absolute.as_str(), "0", "32", "outside the model's folder"),
        ("", "0", "32", "outside the model's folder"),
        #[cfg(unix)]
        ("link", "0", "32", "links to a file outside"),
        ("missing", "0", "32", "cannot be read"),
        ("w", "33", "32", "has 64 bytes"),
        ("w", "18446744073709551615", "32", "has 64 bytes"),
        ("w", "-1", "32", "is not a size"),
        ("w", "0", "64", "has 64 bytes, its type and shape need 32"),
    ] {
        let text = attempt(location, offset, length).expect_err(location);
        assert!(text.contains(want) && text.contains("initializer `w`"), "{text}");
    }
}

#[test]
fn skeletons_without_their_weights_are_refused_once_per_weight() {
    let Some(data) = support::data() else { return };
    for path in support::models(&data.join("onnx/skel")).into_iter().take(6) {
        let text = file_error(&path);
        assert!(text.contains("weights.bin cannot be read"), "{text}");
    }
}

#[test]
fn symbolic_dimensions_must_be_bound() {
    let dims = [Dim::Name("N"), Dim::N(3), Dim::Name("height"), Dim::Open];
    let g = graph(&dims, vec![], vec![node("Relu", &["x"], &["y"])], "y");
    let text = error(17, g.clone());
    assert!(text.contains("--dim height=N") && text.contains("dimension 3 of input `x`"), "{text}");

    let mut g = g;
    g.input[0] = info("x", DataType::Float, &dims[..3]);
    let m = model(17, g);
    let options = |batch: Option<u64>, dims: &[(&str, u64)]| ImportOptions {
        batch,
        dims: dims.iter().map(|&(k, v)| (k.to_owned(), v)).collect(),
        training: false,
    };
    let imported = import(&m, &options(Some(5), &[("height", 32)])).unwrap();
    assert_eq!(imported.graph.ty(imported.graph.inputs()[0]).dims.as_slice(), [5, 3, 32]);
    let imported = import(&m, &options(None, &[("height", 32), ("N", 4)])).unwrap();
    assert_eq!(imported.batch, 4);
    for (bad, want) in [
        (options(None, &[("height", 32), ("hight", 1)]), "no input has a dimension named `hight`"),
        (options(Some(0), &[("height", 32)]), "at least 1"),
        (options(Some(5), &[("height", 32), ("N", 4)]), "batch 5 contradicts the value 4"),
        (options(Some(1 << 62), &[("height", 32)]), "at most"),
    ] {
        let text = import(&m, &bad).unwrap_err().to_string();
        assert!(text.contains(want), "{text}");
    }
}

#[test]
fn a_fixed_batch_is_named_when_another_is_asked_for() {
    let m = model(17, graph(&X, vec![], vec![node("Relu", &["x"], &["y"])], "y"));
    let options = ImportOptions { batch: Some(3), ..Default::default() };
    let text = import(&m, &options).unwrap_err().to_string();
    assert!(text.contains("the file fixes the batch to 2") && text.contains("batch 3"), "{text}");
}

#[test]
fn attributes_are_checked() {
    let pool = |attrs: &[(&str, &[i64])]| {
        let mut n = node("MaxPool", &["x"], &["y"]);
        for &(name, list) in attrs {
            n = attr(n, name, Attr::Ints(list));
        }
        error(17, graph(&X, vec![], vec![n], "y"))
    };
    assert!(pool(&[]).contains("kernel_shape is missing"));
    assert!(pool(&[("kernel_shape", &[2])]).contains("has 1 entries where 2"));
    assert!(pool(&[("kernel_shape", &[0, 2])]).contains("value 0"));
    assert!(pool(&[("kernel_shape", &[2, 2]), ("strides", &[0, 1])]).contains("strides has the value 0"));
    assert!(pool(&[("kernel_shape", &[2, 2]), ("pads", &[-1, 0, 0, 0])]).contains("pads has the value -1"));
    assert!(pool(&[("kernel_shape", &[i64::MAX, 2])]).contains("kernel_shape has the value"));
    assert!(pool(&[("kernel_shape", &[99, 2])]).contains("kernel within"));
    let one = |n| error(17, graph(&X, vec![], vec![n], "y"));
    let relu = || node("Relu", &["x"], &["y"]);
    assert!(one(attr(relu(), "alpha", Attr::Float(1.0))).contains("attribute alpha is not known"));
    let flatten = || node("Flatten", &["x"], &["y"]);
    assert!(one(attr(flatten(), "axis", Attr::Int(5))).contains("axis 5 is outside"));
    assert!(one(attr(flatten(), "axis", Attr::Float(1.0))).contains("is of type FLOAT, not INT"));
    assert!(one(node("Add", &["x"], &["y"])).contains("it has 1 inputs"));
    assert!(one(node("Add", &["x", ""], &["y"])).contains("input 1 is missing"));
    assert!(one(node("MatMul", &["x", "x", "x"], &["y"])).contains("it has 3 inputs"));
    let auto = attr(
        attr(node("MaxPool", &["x"], &["y"]), "kernel_shape", Attr::Ints(&[2, 2])),
        "auto_pad",
        Attr::Text("HALF"),
    );
    assert!(one(auto).contains("auto_pad is `HALF`"));
}

#[test]
fn folding_is_bounded() {
    let big = ints("big", &[2], &[1 << 31, 1 << 31]);
    let nodes = vec![node("ConstantOfShape", &["big"], &["c"]), node("Add", &["x", "c"], &["y"])];
    assert!(error(17, graph(&X, vec![big.clone()], nodes, "y")).contains("too large for a constant"));
    let range = vec![
        node("Range", &["zero", "limit", "one"], &["r"]),
        node("Expand", &["r", "big"], &["e"]),
        node("Add", &["x", "e"], &["y"]),
    ];
    let scalars = vec![ints("zero", &[], &[0]), ints("limit", &[], &[i64::MAX]), ints("one", &[], &[1]), big];
    assert!(error(17, graph(&X, scalars, range, "y")).contains("is too large"));
}

#[test]
fn nesting_is_bounded() {
    let field = |number: u8, body: &[u8]| {
        let mut out = vec![number << 3 | 2];
        prost::encode_length_delimiter(body.len(), &mut out).unwrap();
        out.extend(body);
        out
    };
    // A graph's node's attribute's graph, and so on.
    let mut bytes = Vec::new();
    for _ in 0..10_000 {
        bytes = field(1, &field(5, &field(6, &bytes)));
    }
    let mut model = vec![8, 8];
    model.extend(field(7, &bytes));
    let error = import_bytes(model.into(), None, &ImportOptions::default()).unwrap_err();
    assert!(error.to_string().contains("recursion limit"), "{error}");
}

#[test]
fn an_open_condition_is_refused() {
    let branch = graph(&[], vec![], vec![node("Relu", &["x"], &["b"])], "b");
    let branch = vdnn_frontends::onnx::proto::GraphProto { input: vec![], ..branch };
    let n = attr(node("If", &["c"], &["y"]), "then_branch", Attr::Graph(branch.clone()));
    let n = attr(n, "else_branch", Attr::Graph(branch));
    let mut g = graph(&X, vec![], vec![n], "y");
    g.input.push(info("c", DataType::Bool, &[]));
    assert!(error(17, g).contains("the condition must be known at import"));
}

#[test]
fn opsets_outside_the_range_are_refused() {
    let g = || graph(&X, vec![], vec![node("Relu", &["x"], &["y"])], "y");
    assert!(error(5, g()).contains("opset 5"));
    assert!(error(29, g()).contains("opset 29"));
    assert!(import_graph(7, g()).is_ok());
    assert!(import_graph(28, g()).is_ok());
}
