//! Convolutions in micro-batches against the whole batch and against f64, at odd batch sizes,
//! with groups, dilation, strides, epilogues: through the plan, its checker and the executor.

use crate::Row;
use crate::device::{Device, Outcome, PLAIN, POISONED};
use std::collections::BTreeMap;
use std::time::Instant;
use vdnn_cost::Precision;
use vdnn_interp::interpret_f64;
use vdnn_ir::graph::{ConvAlgo, NodeSpec};
use vdnn_ir::op::ConvAttrs;
use vdnn_ir::slices::batch;
use vdnn_ir::{
    ConvRun, ConvSchedule, DType, Graph, Layout, Mode, NodeId, Op, Output, Phase, Tensor, TensorType,
};
use vdnn_passes::channels_last::ChannelsLast;
use vdnn_passes::pass::run_pass;
use vdnn_passes::{AlgoMode, PassCtx, Policy};
use vdnn_plan::Plan;
use vdnn_tests::arbitrary::Rng;
use vdnn_tests::harness;
use vdnnc::driver;
use vdnnc::timing::Timings;

const BATCHES: [u64; 4] = [1, 7, 100, 255];
/// Strict f32, forward and data gradients.
const F32_LIMIT: f64 = 1e-6;
/// Weight gradients: that, or so many times the whole batch's own error against f64.
const OWN_ERROR: f64 = 2.0;
/// TF32 products have operands of 11 significant bits.
const TF32_LIMIT: f64 = 2e-3;

/// Runs every batch size.
pub fn run(device: Device, poison: bool, wanted: &dyn Fn(&str) -> bool, report: &mut dyn FnMut(Row)) {
    for (precision, layout) in [
        (Precision::F32, Layout::RowMajor),
        (Precision::F32, Layout::ChannelsLast),
        (Precision::Tf32, Layout::ChannelsLast),
    ] {
        if device == Device::Cpu && layout != Layout::RowMajor {
            continue;
        }
        for n in BATCHES {
            let tag = if layout == Layout::ChannelsLast { "nhwc" } else { "nchw" };
            let suite = format!("micro/{precision}/{tag}/batch-{n}");
            if wanted(&suite) {
                report(judge(device, suite, n, precision, layout, poison));
            }
        }
    }
}

fn attrs(kernel: u64, stride: u64, dilation: u64, groups: u64) -> ConvAttrs {
    let pad = dilation * (kernel / 2);
    ConvAttrs { groups, ..ConvAttrs::square(kernel, stride, pad, dilation) }
}

/// Per case the forward pass, its epilogue, and both gradients, of 8 to 16 channels.
fn graph(n: u64) -> Graph {
    let mut g = Graph::new("micro");
    g.mode = Mode::Train;
    g.phase = Phase::Joint;
    let cases = [
        attrs(3, 1, 1, 1),
        attrs(3, 2, 1, 1),
        attrs(3, 1, 2, 1),
        attrs(5, 1, 1, 1),
        attrs(1, 1, 1, 1),
        attrs(3, 1, 1, 2),
        attrs(3, 1, 1, 8),
    ];
    for (i, conv) in cases.into_iter().enumerate() {
        let k = if conv.groups == 8 { 8 } else { 16 };
        let x = g.add_input(format!("x{i}"), TensorType::f32([n, 8, 8, 8]));
        let w = g.add_input(
            format!("w{i}"),
            TensorType::f32([k, 8 / conv.groups, conv.kernel[0], conv.kernel[1]]),
        );
        let b = g.add_input(format!("b{i}"), TensorType::f32([k]));
        let spec = |what: &str| NodeSpec::forward(format!("{what}{i}"));
        let y = g.add1(Op::Conv(conv.clone()), &[x, w, b], spec("y")).expect("a convolution");
        let dy = g.add_input(format!("dy{i}"), g.ty(y).clone());
        let fused = Op::ConvEpilogue { conv: conv.clone(), relu: true };
        let z = g.add1(fused, &[x, w, b, dy], spec("z")).expect("an epilogue");
        let dgrad = Op::ConvDgrad { conv: conv.clone(), x_dims: g.ty(x).dims.clone() };
        let dx = g.add1(dgrad, &[dy, w], spec("dx")).expect("a gradient");
        let wgrad = Op::ConvWgrad { conv, w_dims: g.ty(w).dims.clone() };
        let dw = g.add1(wgrad, &[x, dy], spec("dw")).expect("a gradient");
        for (name, value) in [("y", y), ("z", z), ("dx", dx), ("dw", dw)] {
            g.outputs.push(Output { name: format!("{name}{i}"), value });
        }
    }
    g
}

/// A random division of `n` images into one to four runs by two algorithms.
fn division(n: u64, rng: &mut Rng) -> ConvSchedule {
    let mut left = n;
    let mut runs = Vec::new();
    while left > 0 {
        let images = if runs.len() == 3 { left } else { rng.range(1, left.div_ceil(2)) };
        let times = if runs.len() == 3 { 1 } else { rng.range(1, left / images).min(3) };
        let algo = rng.pick(&[ConvAlgo::ImplicitGemm, ConvAlgo::ImplicitPrecompGemm]);
        runs.push(ConvRun { algo, images, times });
        left -= images * times;
    }
    ConvSchedule::divided(runs).expect("images in every run")
}

fn plan(
    graph: &Graph,
    kernels: BTreeMap<NodeId, ConvSchedule>,
    precision: Precision,
    layout: Layout,
) -> Result<Plan, String> {
    let mut options = harness::options(Mode::Train, Policy::None, AlgoMode::Performance);
    options.precision = precision;
    options.kernels = kernels;
    let cost = harness::cost(&options);
    let mut graph = graph.clone();
    if layout == Layout::ChannelsLast {
        run_pass(&ChannelsLast, &mut graph, &PassCtx { cost: &cost }).map_err(|e| e.to_string())?;
    }
    let compiled = driver::plan_joint(&graph, 1, None, &options, &cost, Instant::now(), Timings::default());
    compiled.map(|c| c.plan).map_err(|e| format!("{e:?}"))
}

fn distance(x: &[f32], reference: &[f64]) -> f64 {
    let difference: f64 = x.iter().zip(reference).map(|(&x, r)| (f64::from(x) - r).powi(2)).sum();
    let size: f64 = reference.iter().map(|r| r * r).sum();
    if difference == 0.0 { 0.0 } else { (difference / size.max(f64::MIN_POSITIVE)).sqrt() }
}

fn judge(device: Device, suite: String, n: u64, precision: Precision, layout: Layout, poison: bool) -> Row {
    let mut row = Row { suite, checks: 0, worst: 0.0, limit: 0.0, failures: Vec::new() };
    match compare(device, n, precision, layout, poison, &mut row) {
        Ok(()) => {}
        Err(why) => row.failures.push(why),
    }
    row
}

fn compare(
    device: Device,
    n: u64,
    precision: Precision,
    layout: Layout,
    poison: bool,
    row: &mut Row,
) -> Result<(), String> {
    let graph = graph(n);
    let mut rng = Rng::new(n);
    let mut inputs = BTreeMap::new();
    let mut wide = BTreeMap::new();
    for &v in graph.inputs() {
        let value = graph.value(v);
        // Ten bits of mantissa, so that TF32 takes them as they are.
        let round = |x: f32| f32::from_bits(x.to_bits() & !0x1fff);
        let data: Vec<f32> = (0..value.ty.elements()).map(|_| round(rng.unit())).collect();
        let double: Vec<f64> = data.iter().map(|&x| f64::from(x)).collect();
        let ty = TensorType { dtype: DType::F64, ..value.ty.clone() };
        let tensor = |ty, bytes: &[u8]| Tensor::from_bytes(ty, bytes).ok_or("a tensor of another size");
        inputs.insert(value.name.clone(), tensor(value.ty.clone(), bytemuck::cast_slice(&data))?);
        wide.insert(value.name.clone(), tensor(ty, bytemuck::cast_slice(&double))?);
    }
    let exact = interpret_f64(&graph, &wide, &BTreeMap::new()).map_err(|e| e.to_string())?.outputs;

    let mut kernels = BTreeMap::new();
    for (id, node) in graph.nodes().filter(|(_, node)| node.op.is_conv()) {
        let images = batch(&node.op, &[graph.ty(node.inputs[0])]).ok_or("no batch")?;
        kernels.insert(id, division(images, &mut rng));
    }
    let how = if poison { POISONED } else { PLAIN };
    let run = |plan: Plan| -> Result<Outcome, String> {
        // The division is part of what is written down.
        let again = vdnn_plan::codec::load(&vdnn_plan::codec::encode(&plan)).map_err(|e| e.to_string())?;
        if again != plan {
            return Err("the plan does not read back".to_owned());
        }
        device.run(plan, &BTreeMap::new(), std::slice::from_ref(&inputs), how)
    };
    let divided = plan(&graph, kernels, precision, layout)?;
    if n > 1 && !divided.to_string().contains("x2") {
        return Err("no run of several micro-batches".to_owned());
    }
    let divided = run(divided)?;
    let whole = run(plan(&graph, BTreeMap::new(), precision, layout)?)?;
    for (name, reference) in &exact {
        let reference: &[f64] = bytemuck::cast_slice(reference.bytes());
        let (d, w) = (divided.steps[0][name].f32(), whole.steps[0][name].f32());
        let own = distance(w, reference);
        let base = if precision == Precision::F32 { F32_LIMIT } else { TF32_LIMIT };
        let (found, limit) = if name.starts_with("dw") {
            (distance(d, reference), base.max(OWN_ERROR * own))
        } else {
            let wide: Vec<f64> = w.iter().map(|&x| f64::from(x)).collect();
            (distance(d, &wide), base)
        };
        row.checks += 1;
        if found / limit > row.worst / row.limit.max(f64::MIN_POSITIVE) || row.limit == 0.0 {
            (row.worst, row.limit) = (found, limit);
        }
        if found.is_nan() || found > limit {
            row.failures.push(format!("{name}: {found:e}, limit {limit:e}; the whole batch {own:e}"));
        }
    }
    Ok(())
}
