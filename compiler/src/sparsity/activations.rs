//! The zeros of feature maps, by running a model.

use crate::commands::load::{self, FromWeights};
use crate::driver;
use crate::error::Failure;
use crate::options::CompileOptions;
use crate::progress::Progress;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use vdnn_cost::CostModel;
use vdnn_frontends::onnx::Imported;
use vdnn_ir::op::UnaryKind;
use vdnn_ir::{Graph, Op, Output, Tensor, ValueId, packed};
use vdnn_runtime::cpu::{CpuBackend, CpuOptions};
use vdnn_runtime::executor::Executor;

/// The zeros of one value: the result of a ReLU, or what a convolution reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activation {
    /// The node's name.
    pub name: String,
    /// Elements of all images.
    pub elements: usize,
    /// Of them zero.
    pub zeros: usize,
    /// Bytes that cross the link if they are offloaded packed ([`vdnn_ir::packed`]).
    pub packed: u64,
}

/// The results of every ReLU, by the node's name.
pub fn relus(graph: &Graph) -> Vec<(String, ValueId)> {
    graph
        .nodes()
        .filter(|(_, n)| matches!(n.op, Op::Unary(UnaryKind::Relu)))
        .map(|(_, n)| (n.name.clone(), n.outputs[0]))
        .collect()
}

/// Runs a model on its only input, in whole batches of the imported size, and counts the zeros
/// of `wanted` values, which have names. None of them may be the input or appear twice.
///
/// # Errors
/// If the model has another number of inputs, the input does not fit, or there is no plan.
pub fn measure(
    imported: &Imported,
    wanted: Vec<(String, ValueId)>,
    input: &Tensor,
    options: &CompileOptions,
    cost: &CostModel,
    threads: usize,
) -> Result<Vec<Activation>, Failure> {
    let mut graph = imported.graph.clone();
    let output =
        |(i, (_, value)): (usize, &(String, ValueId))| Output { name: format!("v{i}"), value: *value };
    graph.outputs = wanted.iter().enumerate().map(output).collect();
    let &[x] = graph.inputs() else { return Err(Failure::user("activations need a model of one input")) };
    if wanted.is_empty() {
        return Err(Failure::user("the model has no ReLU"));
    }
    let ty = graph.ty(x).clone();
    let name = graph.value(x).name.clone();
    let size = ty.bytes().0 as usize;
    // Whole batches of images of the model's shape.
    let given = input.ty();
    let images = given.rank() == ty.rank() && given.dims.get(1..) == ty.dims.get(1..);
    let whole = size > 0 && !input.bytes().is_empty() && input.bytes().len().is_multiple_of(size);
    if given.dtype != ty.dtype || !images || !whole {
        return Err(Failure::user(format!("the input is {given}, the model's `{name}` is {ty}")));
    }
    graph.remove_dead_nodes();
    let plan = driver::compile(graph, imported.batch, None, options, cost).map_err(load::over_budget)?.plan;
    let backend = CpuBackend::new(CpuOptions { threads, ..CpuOptions::default() });
    let mut executor =
        Executor::load(plan, &FromWeights(&imported.weights), backend).map_err(Failure::user)?;
    let none = |(name, _)| Activation { name, elements: 0, zeros: 0, packed: 0 };
    let mut found: Vec<Activation> = wanted.into_iter().map(none).collect();
    let progress = Progress::new((input.bytes().len() / size) as u64, "counting zeros");
    for batch in input.bytes().chunks_exact(size) {
        let batch = Tensor::from_bytes(ty.clone(), batch).ok_or_else(|| Failure::internal("a batch"))?;
        let outputs = executor.step(&BTreeMap::from([(name.clone(), batch)])).map_err(Failure::user)?;
        for (i, a) in found.iter_mut().enumerate() {
            let data = outputs[&format!("v{i}")].f32();
            let zeros = data.iter().filter(|v| v.to_bits() == 0).count();
            a.elements += data.len();
            a.zeros += zeros;
            let masks = (data.len() as u64).div_ceil(packed::CHUNK) * packed::MASK.0;
            a.packed += masks + 4 * (data.len() - zeros) as u64;
        }
        progress.tick("");
    }
    progress.finish();
    Ok(found)
}

impl Activation {
    /// Share of the elements that are zero.
    pub fn share(&self) -> f64 {
        self.zeros as f64 / self.elements.max(1) as f64
    }
}

fn ratio(a: &Activation) -> f64 {
    4.0 * a.elements as f64 / a.packed.max(1) as f64
}

/// All of them together.
pub fn total(all: &[Activation]) -> Activation {
    let mut sum = Activation { name: "all ReLUs".into(), elements: 0, zeros: 0, packed: 0 };
    for a in all {
        sum.elements += a.elements;
        sum.zeros += a.zeros;
        sum.packed += a.packed;
    }
    sum
}

/// A table of what was measured.
pub fn text(all: &[Activation]) -> String {
    let mut t = format!("\n{:<42}{:>14}{:>10}{:>14}\n", "ReLU", "elements", "zeros", "packed");
    for a in all.iter().chain([&total(all)]) {
        let _ =
            writeln!(t, "{:<42}{:>14}{:>8.1} %{:>11.2} x", a.name, a.elements, 100.0 * a.share(), ratio(a));
    }
    t
}

/// The same as JSON.
pub fn json(all: &[Activation]) -> Value {
    let row = |a: &Activation| {
        json!({
            "name": a.name, "elements": a.elements, "zeros": a.zeros, "packed_bytes": a.packed,
            "ratio": ratio(a),
        })
    };
    json!({ "relus": all.iter().map(row).collect::<Vec<_>>(), "all": row(&total(all)) })
}
