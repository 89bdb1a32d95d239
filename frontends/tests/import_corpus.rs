//! Every model of the test data imports, with the right shapes at every batch.

mod support;

use std::path::Path;
use vdnn_frontends::onnx::{ImportOptions, Imported, import_file, import_model};
use vdnn_frontends::zoo;
use vdnn_ir::parse::parse_graph;
use vdnn_ir::{ParamRole, ValueId, verify};

fn at(batch: Option<u64>) -> ImportOptions {
    ImportOptions { batch, ..Default::default() }
}

fn import(path: &Path, options: &ImportOptions) -> Imported {
    let imported = import_file(path, options).unwrap_or_else(|e| panic!("{e}"));
    check(path, &imported);
    imported
}

/// What holds of every import: the graph verifies and every parameter has a weight of its type.
fn check(path: &Path, imported: &Imported) {
    let graph = &imported.graph;
    verify::verify(graph).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let size = |v: ValueId| graph.ty(v).bytes().0;
    for &p in graph.params() {
        let weight = &imported.weights.tensors[&graph.value(p).name];
        assert_eq!(weight.ty, *graph.ty(p), "{}", path.display());
        assert_eq!(weight.data.len() as u64, size(p), "{}: {}", path.display(), graph.value(p).name);
    }
    assert_eq!(imported.weights.tensors.len(), graph.params().len());
}

/// The text of an imported graph reads back as itself.
fn check_text(path: &Path, imported: &Imported) {
    let text = imported.graph.to_string();
    let again = parse_graph(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(again.to_string(), text, "{}", path.display());
}

/// The batch a file is made for, if it is fixed: another one must be refused by naming it.
fn fixed_batch(path: &Path) -> Option<u64> {
    match import_file(path, &at(Some(7))) {
        Ok(_) => None,
        Err(e) => {
            let text = e.to_string();
            let (_, rest) =
                text.split_once("the file fixes the batch to ").unwrap_or_else(|| panic!("{text}"));
            Some(rest.split(' ').next().unwrap().parse().unwrap())
        }
    }
}

#[test]
fn exported_networks_import_at_every_batch() {
    let Some(data) = support::data() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut count = 0;
    let mut paths = support::models(&data.join("onnx/skel"));
    paths.extend(support::models(&data.join("onnx/light_seeded")));
    for path in &paths {
        let path = support::with_holes(path, dir.path());
        let batches = fixed_batch(&path).map_or(vec![1, 3, 8], |b| vec![b]);
        for batch in batches {
            let imported = import(&path, &at(Some(batch)));
            assert_eq!(imported.batch, batch);
            let [output] = imported.graph.outputs.as_slice() else { panic!("{}", path.display()) };
            let dims = &imported.graph.ty(output.value).dims;
            assert_eq!(dims[..2], [batch, 1000], "{}", path.display());
            assert!(dims[2..].iter().all(|&d| d == 1), "{}", path.display());
        }
        let imported = import(&path, &at(None));
        assert_eq!(imported.batch, 1, "{}", path.display());
        check_text(&path, &imported);
        count += 1;
    }
    assert!(count >= 77, "only {count} models");
}

#[test]
fn every_network_of_the_zoo_imports() {
    for name in zoo::names() {
        let model = zoo::build_zeroed(name, &zoo::ZooOptions::default()).unwrap();
        let imported = import_model(model, None, &at(Some(256))).unwrap_or_else(|e| panic!("{name}: {e}"));
        check(Path::new(name), &imported);
        check_text(Path::new(name), &imported);
        let classes = if name == "lenet" { 10 } else { 1000 };
        let output = imported.graph.outputs[0].value;
        assert_eq!(imported.graph.ty(output).dims.as_slice(), [256, classes], "{name}");
    }
}

/// Their weights are one value each, written as ConstantOfShape.
#[test]
fn light_models_import_at_their_batch() {
    let Some(data) = support::data() else { return };
    let paths = support::models(&data.join("onnx/light"));
    assert_eq!(paths.len(), 9);
    for path in paths {
        assert_eq!(fixed_batch(&path), Some(1), "{}", path.display());
        let imported = import(&path, &at(None));
        let output = imported.graph.outputs[0].value;
        assert_eq!(imported.graph.ty(output).dims[..2], [1, 1000], "{}", path.display());
        // The large ones are filled when needed, not stored.
        let stored: u64 = imported.weights.tensors.values().map(|w| w.data.len() as u64).sum();
        assert!(stored < 1 << 20, "{}: {stored}", path.display());
    }
}

#[test]
fn small_networks_and_single_operators_import() {
    let Some(data) = support::data() else { return };
    let train = support::models(&data.join("golden/train"));
    let single = support::models(&data.join("golden/opgrad"));
    assert_eq!((train.len(), single.len()), (4, 59));
    for path in &train {
        for batch in [1, 3, 8] {
            assert_eq!(import(path, &at(Some(batch))).batch, batch);
        }
    }
    for path in &single {
        import(path, &at(None));
    }
}

#[test]
fn trained_backbones_import_with_their_real_weights() {
    let Some(data) = support::data() else { return };
    for (name, weights) in [("densenet169", 12_600_000), ("resnet50-conv4", 8_600_000)] {
        let imported = import(&data.join("pretrained").join(name).with_extension("onnx"), &at(Some(4)));
        let output = imported.graph.outputs[0].value;
        assert_eq!(imported.graph.ty(output).dims.as_slice(), [4, 21]);
        let elements: u64 = imported.weights.tensors.values().map(|w| w.ty.elements()).sum();
        assert!(elements.abs_diff(weights) < weights / 50, "{name}: {elements} parameters");
    }
}

#[test]
fn external_weights_are_read_where_the_file_says() {
    let Some(data) = support::data() else { return };
    let dir = tempfile::tempdir().unwrap();
    let source = data.join("onnx/skel/squeezenet1_1.dy18.onnx");
    let path = support::with_weights(&source, dir.path());
    let imported = import(&path, &at(None));
    assert_eq!(imported.files, [path.clone(), path.with_extension("weights.bin")]);
    let tensors = support::recipe(&source);
    assert!(!tensors.is_empty());
    for t in tensors {
        let weight = imported.weights.tensors[&t.name].to_f32().unwrap();
        let last = weight.len() - 1;
        assert_eq!(weight[0], support::uniform(t.seed, 0, t.amp, t.bias), "{}", t.name);
        assert_eq!(weight[last], support::uniform(t.seed, last as u64, t.amp, t.bias), "{}", t.name);
    }
}

#[test]
fn roles_follow_the_operators() {
    let Some(data) = support::data() else { return };
    let imported = import(&data.join("golden/train/resnet_small.onnx"), &at(None));
    let graph = &imported.graph;
    for (_, node) in graph.nodes() {
        if node.op.name() == "batch_norm_infer" {
            let role = |i: usize| graph.value(node.inputs[i]).def.clone();
            assert_eq!(role(1), vdnn_ir::Def::Param(ParamRole::Trainable));
            assert_eq!(role(3), vdnn_ir::Def::Param(ParamRole::Statistic));
            assert_eq!(role(4), vdnn_ir::Def::Param(ParamRole::Statistic));
        }
    }
    let trainable: u64 = graph
        .params()
        .iter()
        .filter(|&&p| graph.value(p).def == vdnn_ir::Def::Param(ParamRole::Trainable))
        .map(|&p| graph.ty(p).elements())
        .sum();
    assert_eq!(trainable, 4_626);
}
