//! `vdnnc bench-conv LIST.csv --sparsity 50,90`: forward convolutions with packed weights against
//! the fastest dense ones, from measured or predicted times; each in the layout it is faster in, where the
//! device's dense kernels want channels last.

use super::list::Layer;
use super::plot::{self, Group};
use super::write;
use crate::cli::BenchConvArgs;
use crate::commands::target::Target;
use crate::error::Failure;
use crate::measuring::Kernel;
use crate::micro;
use crate::options::CompileOptions;
use serde_json::{Value, json};
use std::fmt::Write as _;
use vdnn_cost::CostModel;
use vdnn_ir::op::ConvAttrs;
use vdnn_ir::sparse::SparseForm;
use vdnn_ir::{Bytes, DType, Layout, Nanos, Op, TensorType};
use vdnn_passes::BatchSizes;
use vdnn_passes::micro_batch::Menu;

/// A layer with so many of its weights zero.
struct Cell<'a> {
    layer: &'a Layer,
    /// Percent.
    zeros: u64,
    dense: (Nanos, Layout),
    packed: Option<(Nanos, Layout)>,
}

impl Cell<'_> {
    /// What `--sparse auto` takes.
    fn chosen(&self) -> Nanos {
        self.packed.map_or(self.dense.0, |t| t.0.min(self.dense.0))
    }

    fn is_packed(&self) -> bool {
        self.packed.is_some_and(|t| t.0 < self.dense.0)
    }

    /// Dense time over that of packed weights.
    fn gain(&self) -> Option<f64> {
        Some(self.dense.0.0 as f64 / self.packed?.0.0.max(1) as f64)
    }

    fn json(&self) -> Value {
        json!({
            "layer": self.layer.name, "shape": self.layer.shape(), "zeros_percent": self.zeros,
            "dense_ns": self.dense.0.0, "packed_ns": self.packed.map(|t| t.0.0), "gain": self.gain(),
            "packed": self.is_packed(), "dense_layout": name(self.dense.1),
            "packed_layout": self.packed.map(|t| name(t.1)),
        })
    }
}

/// Runs the command on layers that were read.
///
/// # Errors
/// What the user should read.
pub(super) fn run(
    args: &BenchConvArgs,
    layers: &[Layer],
    target: &mut Target,
    options: &CompileOptions,
) -> Result<(), Failure> {
    let fail = |layer: &Layer, why: String| Failure::user(format!("{}: {why}", layer.name));
    let layouts: &[Layout] = match target.base().layout() {
        Layout::RowMajor => &[Layout::RowMajor],
        Layout::ChannelsLast => &[Layout::ChannelsLast, Layout::RowMajor],
    };
    // Each in every layout, the one first that the device wants.
    let mut all: Vec<(&Layer, u64, Vec<Kernel>, Vec<Kernel>)> = Vec::new();
    for layer in layers {
        let mut dense = Vec::new();
        for &layout in layouts {
            let [conv, ..] = layer.kernels(options.precision, layout).map_err(|e| fail(layer, e))?;
            if layer.is_product() {
                dense = vec![product(layer, conv.inputs[0].dtype)];
            } else {
                dense.push(conv);
            }
        }
        for &zeros in &args.sparsity {
            let packed = dense.iter().map(|dense| packed(dense, zeros, &args.method));
            let packed = packed.collect::<Result<_, _>>().map_err(|why| fail(layer, why))?;
            all.push((layer, zeros, dense.clone(), packed));
        }
    }
    let mut different: Vec<Kernel> = Vec::new();
    for kernel in all.iter().flat_map(|(_, _, dense, packed)| dense.iter().chain(packed)) {
        if !different.contains(kernel) {
            different.push(kernel.clone());
        }
    }
    let cost = target.cost_of((&different, &[]), options, Bytes::ZERO)?;
    // Nothing is guessed beside what was measured.
    let known = |kernel: &Kernel| {
        let (inputs, outputs) = kernel.types();
        cost.measured().is_empty() || cost.is_measured(&kernel.op, &inputs, &outputs)
    };
    let mut cells = Vec::new();
    for (layer, zeros, dense, packed) in &all {
        let others = dense.iter().enumerate().filter(|(i, kernel)| *i == 0 || known(kernel));
        let dense = others.filter_map(|(_, kernel)| Some((fastest(kernel, &cost)?, kernel.inputs[0].layout)));
        let dense = dense.min_by_key(|t| t.0).ok_or_else(|| fail(layer, "no kernel runs it".to_owned()))?;
        let packed = packed.iter().filter(|kernel| known(kernel)).map(|kernel| {
            let (inputs, outputs) = kernel.types();
            (cost.kernel(&kernel.op, &inputs, &outputs, None), kernel.inputs[0].layout)
        });
        cells.push(Cell { layer, zeros: *zeros, dense, packed: packed.min_by_key(|t| t.0) });
    }
    report(args, &cells, &cost)
}

/// How reports call a layout.
fn name(layout: Layout) -> &'static str {
    match layout {
        Layout::RowMajor => "row-major",
        Layout::ChannelsLast => "channels-last",
    }
}

/// A fully connected layer: a 1x1 filter on one position.
fn product(layer: &Layer, dtype: DType) -> Kernel {
    let op = Op::Gemm { trans_a: false, trans_b: true, alpha: 1.0.into(), beta: 1.0.into() };
    let (x, w) = ([layer.n, layer.c], [layer.k, layer.c]);
    let inputs = [x, w].map(|dims| TensorType::new(dtype, dims)).to_vec();
    Kernel { op, inputs, outputs: vec![TensorType::f32([layer.n, layer.k])] }
}

/// The same with weights of which so many percent, or of whose blocks, are zero; or two of four.
fn packed(dense: &Kernel, zeros: u64, method: &str) -> Result<Kernel, String> {
    let (x, w) = (&dense.inputs[0], &dense.inputs[1]);
    let conv = match &dense.op {
        Op::Conv(conv) => conv.clone(),
        _ => ConvAttrs::without_axes(),
    };
    let form = match (method, x.dtype) {
        ("2:4", DType::BF16) => SparseForm::TwoFourBf16,
        ("2:4", _) => return Err("weights of two of four are bf16; use --precision bf16".to_owned()),
        ("block", DType::BF16) => SparseForm::BlockBf16,
        ("block", _) => SparseForm::Block,
        (_, DType::F32) => SparseForm::Csr,
        _ => return Err("weights packed row by row are f32; use --precision f32 or tf32".to_owned()),
    };
    if !form.is_csr() && conv.groups != 1 {
        return Err("weights in blocks or of two of four know no groups".to_owned());
    }
    let most = form.most(&w.dims).unwrap_or(0);
    let entries = match form {
        SparseForm::TwoFourBf16 if zeros != 50 => return Err("two of four are 50 % zeros".to_owned()),
        SparseForm::TwoFourBf16 => most,
        _ => most * (100 - zeros.min(100)) / 100,
    };
    let words = TensorType::new(DType::I32, [form.packed_len(w.dims[0], entries)]);
    Ok(Kernel {
        op: Op::SparseConv { conv, w_dims: w.dims.clone(), form, relu: false },
        inputs: vec![x.clone(), words],
        outputs: dense.outputs.clone(),
    })
}

fn fastest(dense: &Kernel, cost: &CostModel) -> Option<Nanos> {
    if !dense.op.is_conv() {
        let (inputs, outputs) = dense.types();
        return Some(cost.kernel(&dense.op, &inputs, &outputs, None));
    }
    let graph = micro::alone(dense).ok()?;
    let (_, node) = graph.nodes().next()?;
    Menu::new(BatchSizes::Undivided).choices(&graph, cost, node).first().map(|c| c.time)
}

/// What a share of zeros comes to over all layers.
fn summary(zeros: u64, cells: &[Cell<'_>]) -> Value {
    let cells: Vec<&Cell<'_>> = cells.iter().filter(|c| c.zeros == zeros).collect();
    let gains: Vec<f64> = cells.iter().filter_map(|c| c.gain()).collect();
    let auto = cells.iter().map(|c| c.dense.0.0 as f64 / c.chosen().0.max(1) as f64);
    let packed: Vec<f64> = cells.iter().filter(|c| c.is_packed()).filter_map(|c| c.gain()).collect();
    let least = |of: &[f64]| of.iter().copied().fold(f64::INFINITY, f64::min);
    json!({
        "zeros_percent": zeros, "layers": cells.len(), "packed": packed.len(),
        "geomean_of_packed_weights": geomean(&gains), "least": least(&gains),
        "geomean_where_packed": geomean(&packed), "geomean_auto": geomean(&auto.collect::<Vec<_>>()),
    })
}

fn geomean(of: &[f64]) -> Option<f64> {
    (!of.is_empty()).then(|| (of.iter().map(|g| g.ln()).sum::<f64>() / of.len() as f64).exp())
}

fn report(args: &BenchConvArgs, cells: &[Cell<'_>], cost: &CostModel) -> Result<(), Failure> {
    if let Some(path) = &args.csv {
        write(path, &csv(cells))?;
    }
    if let Some(path) = &args.svg {
        let series: Vec<String> = args.sparsity.iter().map(|z| format!("{z} %")).collect();
        let groups: Vec<Group> = cells
            .chunks(series.len().max(1))
            .map(|of| Group {
                name: format!("{} {}", of[0].layer.name, of[0].layer.shape()),
                bars: of.iter().map(Cell::gain).collect(),
            })
            .collect();
        let title =
            format!("{}: dense time over that of packed weights, {}", cost.device_name(), cost.precision());
        write(path, &plot::bars(&title, &series, &groups))?;
    }
    let summaries: Vec<Value> = args.sparsity.iter().map(|&z| summary(z, cells)).collect();
    if args.json {
        let object = json!({
            "device": cost.device_name(), "precision": cost.precision().to_string(), "summaries": summaries,
            "cells": cells.iter().map(Cell::json).collect::<Vec<_>>(),
        });
        crate::commands::print(&object.to_string());
        return Ok(());
    }
    let mut t = String::new();
    for c in cells {
        let _ = writeln!(
            t,
            "{:<58} {:>3} % zeros {:>10} {:<13} -> {:>10} {:<13} {:>7}  {}",
            format!("{} {}", c.layer.name, c.layer.shape()),
            c.zeros,
            c.dense.0.to_string(),
            name(c.dense.1),
            c.packed.map_or_else(|| "-".to_owned(), |p| p.0.to_string()),
            c.packed.map_or("", |p| name(p.1)),
            c.gain().map_or_else(String::new, |g| format!("{g:.2}x")),
            if c.is_packed() { "packed" } else { "dense" }
        );
    }
    for s in &summaries {
        let _ = writeln!(t, "{s}");
    }
    crate::commands::print(&t);
    Ok(())
}

fn csv(cells: &[Cell<'_>]) -> String {
    let mut t =
        "layer,shape,zeros_percent,dense_ns,packed_ns,gain,chosen,dense_layout,packed_layout\n".to_owned();
    for c in cells {
        let _ = writeln!(
            t,
            "{},\"{}\",{},{},{},{},{},{},{}",
            c.layer.name,
            c.layer.shape(),
            c.zeros,
            c.dense.0.0,
            c.packed.map(|p| p.0.0.to_string()).unwrap_or_default(),
            c.gain().map(|g| format!("{g:.4}")).unwrap_or_default(),
            if c.is_packed() { "packed" } else { "dense" },
            name(c.dense.1),
            c.packed.map(|p| name(p.1)).unwrap_or_default()
        );
    }
    t
}
