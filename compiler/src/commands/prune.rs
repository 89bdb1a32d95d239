//! `vdnnc prune MODEL`: a model with fewer weights.

use super::load;
use crate::cli::{Cli, PruneArgs, Scope};
use crate::error::Failure;
use crate::sparsity::mask::{self, Method};
use crate::sparsity::{self, Layer};
use clap::Parser;
use std::collections::{BTreeMap, BTreeSet};
use vdnn_frontends::onnx;
use vdnn_ir::{Graph, Op, Tensor, ValueId};

/// Runs the command.
///
/// # Errors
/// What the user should read.
pub fn run(args: &PruneArgs) -> Result<(), Failure> {
    if args.finetune.is_none() && !args.with.is_empty() {
        return Err(Failure::user("--with is for --finetune"));
    }
    let method = match (args.method, args.block) {
        (Method::Block(_), Some(block)) => Method::Block(block),
        (_, Some(_)) => return Err(Failure::user("--block is for --method block")),
        (method, None) => method,
    };
    let sparsity = match (method, args.sparsity) {
        (Method::TwoOfFour, None) => 0.5,
        (Method::TwoOfFour, Some(_)) => return Err(Failure::user("2:4 keeps a half; leave out --sparsity")),
        (_, Some(s)) => s,
        (_, None) => return Err(Failure::user(format!("--method {method} needs --sparsity"))),
    };
    let dims: BTreeMap<String, u64> = args.dims.iter().cloned().collect();
    let model = load::model(&args.model, None, &dims, true)?;
    let graph = &model.imported.graph;
    let all = sparsity::layers(graph);
    let global = args.scope == Scope::Global;
    if global && method != Method::Magnitude {
        return Err(Failure::user("--scope is for --method magnitude"));
    }
    let mut data: Vec<(&Layer, Vec<f32>)> = Vec::new();
    for layer in all.iter().filter(|l| chosen(args, l)) {
        if method == Method::Channel && makes_output(graph, layer) {
            continue;
        }
        let weight = model.imported.weights.tensors.get(&layer.weight);
        data.extend(weight.and_then(|w| w.to_f32()).map(|w| (layer, w)));
    }
    if global {
        let mut slices: Vec<&mut [f32]> = data.iter_mut().map(|(_, w)| &mut w[..]).collect();
        mask::smallest_weights(&mut slices, sparsity);
    }
    let (mut changed, mut rows, mut shared) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
    for (layer, mut data) in data {
        let gone = if global { Vec::new() } else { mask::prune(layer, &mut data, method, sparsity) };
        let zeros = data.iter().filter(|v| **v == 0.0).count();
        rows.push((layer.name.clone(), data.len(), zeros));
        let dims = model.imported.weights.tensors[&layer.weight].ty.dims.clone();
        changed.insert(layer.weight.clone(), Tensor::from_f32(dims, &data));
        shared.extend(silence(&model, layer, &gone, &mut changed));
    }
    if rows.is_empty() {
        let names: Vec<&str> = all.iter().map(|l| l.name.as_str()).collect();
        return Err(Failure::user("no layer is chosen").hint(format!("layers are {}", names.join(", "))));
    }
    let write =
        if args.sparse_initializers { onnx::write_with_sparse_weights } else { onnx::write_with_weights };
    write(&args.model, &changed, &args.output)
        .map_err(|e| Failure::user(format!("{}: {e}", args.output.display())))?;
    for vector in &shared {
        super::warn(&format!(
            "`{vector}` is left as it is, since several layers use it: the channels of filters that are gone hold \
             what it gives them, not zeros"
        ));
    }
    report(args, method, &rows);
    match &args.finetune {
        Some(data) => finetune(args, data),
        None => Ok(()),
    }
}

fn chosen(args: &PruneArgs, layer: &Layer) -> bool {
    let matches = |list: &[String]| list.iter().any(|p| layer.name.contains(p) || layer.weight.contains(p));
    (args.layers.is_empty() || matches(&args.layers)) && !matches(&args.keep)
}

/// True if results of the layer reach an output of the model past no other weights: its filters
/// are classes then.
fn makes_output(graph: &Graph, layer: &Layer) -> bool {
    let weighs = |n: &vdnn_ir::Node| matches!(n.op, Op::Conv(_) | Op::Gemm { .. } | Op::MatMul { .. });
    let own =
        |(_, n): &(_, &vdnn_ir::Node)| n.inputs.get(1).is_some_and(|&w| graph.value(w).name == layer.weight);
    let mut reached: Vec<ValueId> = graph.nodes().filter(own).map(|(_, n)| n.outputs[0]).collect();
    let mut at = 0;
    while let Some(&v) = reached.get(at) {
        at += 1;
        let users = graph.value(v).users().iter().map(|&u| graph.node(u)).filter(|n| !weighs(n));
        let more: Vec<ValueId> = users.flat_map(|n| n.outputs.iter().copied()).collect();
        reached.extend(more.into_iter().filter(|v| !reached.contains(v)).collect::<Vec<_>>());
    }
    graph.outputs.iter().any(|o| reached.contains(&o.value))
}

/// Makes what follows filters that are gone zero, too: their biases, and factor and shift of a
/// batch norm that alone reads them, so that nothing is left of their channels. Vectors that other
/// nodes use, too, are left as they are; their names are returned.
fn silence(
    model: &load::Model,
    layer: &Layer,
    gone: &[usize],
    changed: &mut BTreeMap<String, Tensor>,
) -> BTreeSet<String> {
    let (graph, weights) = (&model.imported.graph, &model.imported.weights);
    let mut shared = BTreeSet::new();
    let of_layer =
        |(_, n): &(_, &vdnn_ir::Node)| n.inputs.get(1).is_some_and(|&w| graph.value(w).name == layer.weight);
    let Some((_, node)) = graph.nodes().find(of_layer).filter(|_| !gone.is_empty()) else { return shared };
    let mut vectors: Vec<ValueId> = node.inputs.get(2).copied().into_iter().collect();
    vectors.extend(norm_behind(graph, node.outputs[0]));
    for v in vectors {
        let name = &graph.value(v).name;
        let Some(mut data) = sparsity::values(weights, graph, v) else { continue };
        if graph.value(v).users().len() > 1 {
            shared.insert(name.clone());
            continue;
        }
        let dims = graph.ty(v).dims.clone();
        gone.iter().for_each(|&m| {
            if let Some(x) = data.get_mut(m) {
                *x = 0.0;
            }
        });
        changed.insert(name.clone(), Tensor::from_f32(dims, &data));
    }
    shared
}

fn norm_behind(graph: &Graph, v: ValueId) -> Vec<ValueId> {
    let &[user] = graph.value(v).users() else { return Vec::new() };
    let node = graph.node(user);
    match node.op {
        Op::BatchNormInfer { .. } | Op::BatchNormTrain { .. } => node.inputs[1..3].to_vec(),
        _ => Vec::new(),
    }
}

fn report(args: &PruneArgs, method: Method, rows: &[(String, usize, usize)]) {
    let (total, zeros) = rows.iter().fold((0, 0), |(n, z), r| (n + r.1, z + r.2));
    if args.json {
        let layers: Vec<_> = rows
            .iter()
            .map(|(name, n, z)| serde_json::json!({"name": name, "elements": n, "zeros": z}))
            .collect();
        super::print(
            &serde_json::json!({
                "model": args.model, "method": method.to_string(), "elements": total, "zeros": zeros,
                "layers": layers,
            })
            .to_string(),
        );
        return;
    }
    super::print(&format!(
        "{} layers, {zeros} of {total} weights are zero ({:.2} %): {}",
        rows.len(),
        100.0 * zeros as f64 / total.max(1) as f64,
        args.output.display()
    ));
}

/// Trains the pruned model on, its zeros kept: `vdnnc train --keep-zeros`.
fn finetune(args: &PruneArgs, data: &std::path::Path) -> Result<(), Failure> {
    let mut words: Vec<std::ffi::OsString> = ["vdnnc", "train"].map(Into::into).to_vec();
    words.push(args.output.clone().into());
    words.extend(["--data".into(), data.as_os_str().to_owned(), "--keep-zeros".into()]);
    words.extend(["-o".into(), args.output.clone().into_os_string()]);
    if args.json {
        words.push("--json".into());
    }
    let more = args.with.iter().flat_map(|w| w.split_whitespace());
    words.extend(more.map(Into::into));
    let cli = Cli::try_parse_from(words).map_err(|e| Failure::user(format!("--with: {e}")))?;
    match cli.command {
        Some(crate::cli::Command::Train(train)) => super::train::run(&train),
        _ => Err(Failure::internal("the words of a training run")),
    }
}
