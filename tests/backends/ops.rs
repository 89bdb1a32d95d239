//! Every op and its gradients, many options and shapes, against the interpreter in f64.
//!
//! The cases of one op make one graph, so that a device is set up once per op. Operands are
//! rounded to the precision first: the error is that of the arithmetic alone. The limit of
//! strict f32 is 1e-6, or what our CPU kernels reach where cancellation leaves them more. In bf16
//! the graph is brought into mixed precision: operands and results are f32, which is exact for
//! operands, and everything between is as in training.

use crate::Row;
use crate::device::{Device, PLAIN, POISONED};
use std::collections::BTreeMap;
use std::time::Instant;
use vdnn_cost::Precision;
use vdnn_interp::interpret_f64;
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::sparse::SparseForm;
use vdnn_ir::{DType, Graph, Layout, Mode, Op, Output, Phase, Tensor, TensorType, ValueId, bf16};
use vdnn_passes::autodiff::gradients;
use vdnn_passes::channels_last::ChannelsLast;
use vdnn_passes::mixed_precision::MixedPrecision;
use vdnn_passes::pass::run_pass;
use vdnn_passes::{AlgoMode, PassCtx, Policy};
use vdnn_plan::Plan;
use vdnn_tests::arbitrary::Rng;
use vdnn_tests::harness;
use vdnn_tests::op_cases::{self, Case, Operand};
use vdnnc::driver;
use vdnnc::timing::Timings;

/// Strict f32.
const F32_LIMIT: f64 = 1e-6;
/// TF32 products have operands of 11 significant bits.
const TF32_LIMIT: f64 = 2e-3;
/// bf16 has 8 significant bits.
const BF16_LIMIT: f64 = 2e-2;
/// Over the error of our own f32 kernels.
const PEER_FACTOR: f64 = 1.5;
/// Theirs, where a gradient is the difference of nearly equal numbers.
const CANCELLATION: f64 = 1e-5;
/// On a GPU, every so many of the convolutions: each sets up engines of its own.
const CONVOLUTIONS: usize = 3;

/// Suite of the pyramids that have no kernel for matrix units.
const LOOPS: &str = "pyramid-loops";

/// Suite of stages of blocks, which have a kernel for TF32 over channels-last images alone.
const STAGE: &str = "pyramid-stage";

/// Suites of packed weights that have no kernel for other precisions.
const BLOCKS: [&str; 3] = ["sparse-block", "sparse-block-bf16", "sparse-two-four"];

/// The cases of one op, as one graph.
struct Group {
    name: String,
    graph: Graph,
    inputs: BTreeMap<String, Tensor>,
    wide: BTreeMap<String, Tensor>,
    /// What each output is, for people.
    cases: BTreeMap<String, String>,
}

/// Ways a backend can be asked to compute.
const VARIANTS: [(Precision, Layout); 5] = [
    (Precision::F32, Layout::RowMajor),
    (Precision::F32, Layout::ChannelsLast),
    (Precision::Tf32, Layout::ChannelsLast),
    (Precision::Bf16, Layout::RowMajor),
    (Precision::Bf16, Layout::ChannelsLast),
];

/// Runs every op.
pub fn run(device: Device, poison: bool, wanted: &dyn Fn(&str) -> bool, report: &mut dyn FnMut(Row)) {
    let mut by_op: BTreeMap<String, Vec<Case>> = BTreeMap::new();
    for case in op_cases::all(5).into_iter().chain(op_cases::layers()) {
        let kind = match &case.op {
            Op::Unary(_) => "unary".to_owned(),
            Op::Pyramid(pyramid) if !pyramid.is_chain() => STAGE.to_owned(),
            Op::Pyramid(pyramid) if !op_cases::is_plain(pyramid) => LOOPS.to_owned(),
            Op::SparseConv { form: SparseForm::Block, .. } => BLOCKS[0].to_owned(),
            Op::SparseConv { form: SparseForm::BlockBf16, .. } => BLOCKS[1].to_owned(),
            Op::SparseConv { form: SparseForm::TwoFourBf16, .. } => BLOCKS[2].to_owned(),
            op => op.name(),
        };
        by_op.entry(kind).or_default().push(case);
    }
    for (precision, layout) in VARIANTS {
        for (name, cases) in &by_op {
            let tag = if layout == Layout::ChannelsLast { "nhwc" } else { "nchw" };
            let suite = format!("ops/{precision}/{tag}/{name}");
            if wanted(&suite) && applies(device, name, precision, layout) {
                let every = if device == Device::Cuda && name == "conv" { CONVOLUTIONS } else { 1 };
                let cases: Vec<&Case> = cases.iter().rev().step_by(every).collect();
                let group = group(name, &cases, precision);
                report(judge(device, suite, &group, precision, layout, poison));
            }
        }
    }
}

/// The CPU has no TF32, and one layout where it computes in f32; only products have a TF32 form.
fn applies(device: Device, op: &str, precision: Precision, layout: Layout) -> bool {
    let product = matches!(op, "conv" | "gemm" | "mat_mul");
    match device {
        Device::Cpu => {
            precision == Precision::Bf16 || precision == Precision::F32 && layout == Layout::RowMajor
        }
        Device::Cuda if op == BLOCKS[0] => precision == Precision::Tf32,
        Device::Cuda if BLOCKS[1..].contains(&op) => precision == Precision::Bf16,
        Device::Cuda if op == STAGE => (precision, layout) == (Precision::Tf32, Layout::ChannelsLast),
        // There is a kernel for each layout that a device wants.
        Device::Cuda if op == LOOPS => (precision, layout) == (Precision::F32, Layout::RowMajor),
        Device::Cuda if op == "pyramid" => {
            let wanted = if precision == Precision::F32 { Layout::RowMajor } else { Layout::ChannelsLast };
            layout == wanted
        }
        Device::Cuda => precision != Precision::Tf32 || product,
    }
}

/// The nearest f32 with so many explicit mantissa bits as the precision keeps.
fn rounded(x: f64, precision: Precision) -> f32 {
    let x = x as f32;
    match precision {
        _ if !x.is_finite() => return x,
        Precision::F32 => return x,
        Precision::Bf16 => return bf16::widen(bf16::round(x)),
        Precision::Tf32 => {}
    }
    let dropped = 23 - 10;
    let half = 1u32 << (dropped - 1);
    f32::from_bits((x.to_bits() + half) & !((1 << dropped) - 1))
}

fn wide(ty: &TensorType, data: &[f32]) -> Tensor {
    let data: Vec<f64> = data.iter().map(|&x| f64::from(x)).collect();
    let ty = TensorType { dtype: DType::F64, ..ty.clone() };
    Tensor::from_bytes(ty, bytemuck::cast_slice(&data)).expect("an element per place")
}

fn group(name: &str, cases: &[&Case], precision: Precision) -> Group {
    let mut rng = Rng::new(7);
    let mut group = Group {
        name: name.to_owned(),
        graph: Graph::new(name),
        inputs: BTreeMap::new(),
        wide: BTreeMap::new(),
        cases: BTreeMap::new(),
    };
    let mut results = Vec::new();
    for (n, &case) in cases.iter().enumerate() {
        if let Some(found) = group.forward(n, case, &mut rng, precision) {
            results.push((n, case, found));
        }
    }
    for (n, case, (inputs, seeds, outputs)) in results {
        let text: Vec<String> = case.operands.iter().map(|x| x.ty().to_string()).collect();
        let text = format!("{} of {}", case.op, text.join(", "));
        // Before the gradients, which may give a node more outputs and move the names.
        for (i, value) in outputs.into_iter().enumerate() {
            group.output(format!("c{n}.y{i}"), &text, value);
        }
        let found = gradients(&mut group.graph, &seeds, &inputs).expect("a differentiable op");
        for (i, value) in found.into_iter().enumerate() {
            if let Some(value) = value {
                group.output(format!("c{n}.g{i}"), &text, value);
            }
        }
    }
    group.graph.phase = Phase::Joint;
    group.graph.mode = Mode::Train;
    group.graph.remove_dead_nodes();
    group
}

/// Operands, cotangents by result, and results of one case.
type Forward = (Vec<ValueId>, Vec<(ValueId, ValueId)>, Vec<ValueId>);

impl Group {
    /// Names a result that is computed and in f32.
    fn output(&mut self, name: String, text: &str, value: ValueId) {
        if self.graph.ty(value).dtype == DType::F32 && self.graph.def_node(value).is_some() {
            self.cases.insert(name.clone(), text.to_owned());
            self.graph.outputs.push(Output { name, value });
        }
    }

    fn bind(&mut self, name: String, ty: &TensorType, data: &[f32]) {
        self.inputs.insert(name.clone(), Tensor::from_f32(ty.dims.iter().copied(), data));
        self.wide.insert(name, wide(ty, data));
    }

    /// Adds the op of a case; `None` if a tensor is empty, which no plan can hold.
    fn forward(&mut self, n: usize, case: &Case, rng: &mut Rng, precision: Precision) -> Option<Forward> {
        if case.operands.iter().any(|x| x.ty().elements() == 0) {
            return None;
        }
        let types: Vec<TensorType> = case.operands.iter().map(Operand::ty).collect();
        let types: Vec<&TensorType> = types.iter().collect();
        let results = vdnn_ir::op::infer::infer(&case.op, &types, case.outputs).expect("a legal op");
        if results.iter().any(|t| t.elements() == 0) {
            return None;
        }
        let mut inputs = Vec::new();
        for (i, operand) in case.operands.iter().enumerate() {
            let name = format!("c{n}.x{i}");
            inputs.push(self.graph.add_input(name.clone(), operand.ty()));
            match operand {
                Operand::Real { ty, data, .. } => {
                    let data: Vec<f32> = data.iter().map(|&x| rounded(x, precision)).collect();
                    self.bind(name, ty, &data);
                }
                Operand::Integer(t) => {
                    self.inputs.insert(name.clone(), t.clone());
                    self.wide.insert(name, t.clone());
                }
            }
        }
        let spec = NodeSpec { n_outputs: case.outputs, ..NodeSpec::forward(format!("c{n}")) };
        let node = self.graph.add(case.op.clone(), &inputs, spec).expect("a legal op");
        let results = self.graph.node(node).outputs.to_vec();
        let mut seeds = Vec::new();
        for &i in &case.sources {
            let ty = self.graph.ty(results[i]).clone();
            let name = format!("c{n}.dy{i}");
            let dy: Vec<f32> =
                (0..ty.elements()).map(|_| rounded(f64::from(rng.unit()), precision)).collect();
            seeds.push((results[i], self.graph.add_input(name.clone(), ty.clone())));
            self.bind(name, &ty, &dy);
        }
        Some((inputs, seeds, results))
    }

    fn plan(&self, precision: Precision, layout: Layout) -> Result<Plan, String> {
        let mut options = harness::options(Mode::Train, Policy::None, AlgoMode::Performance);
        options.precision = precision;
        let cost = harness::cost(&options);
        let mut graph = self.graph.clone();
        if precision == Precision::Bf16 {
            run_pass(&MixedPrecision, &mut graph, &PassCtx { cost: &cost }).map_err(|e| e.to_string())?;
        }
        if layout == Layout::ChannelsLast {
            run_pass(&ChannelsLast, &mut graph, &PassCtx { cost: &cost }).map_err(|e| e.to_string())?;
        }
        driver::plan_joint(&graph, 1, None, &options, &cost, Instant::now(), Timings::default())
            .map(|c| c.plan)
            .map_err(|e| format!("{}: {e:?}", self.name))
    }
}

/// `|x - reference| / |reference|`, Euclidean; NaN and infinities have to be where the reference has
/// them, else it is no number.
fn error(x: &[f32], reference: &[f64]) -> f64 {
    let difference = |(&x, &r): (&f32, &f64)| {
        let x = f64::from(x);
        if x == r || x.is_nan() && r.is_nan() { 0.0 } else { (x - r).powi(2) }
    };
    let difference: f64 = x.iter().zip(reference).map(difference).sum();
    let size: f64 = reference.iter().filter(|r| r.is_finite()).map(|r| r * r).sum();
    if difference == 0.0 { 0.0 } else { (difference / size.max(f64::MIN_POSITIVE)).sqrt() }
}

fn judge(
    device: Device,
    suite: String,
    group: &Group,
    precision: Precision,
    layout: Layout,
    poison: bool,
) -> Row {
    let mut row = Row { suite, checks: 0, worst: 0.0, limit: 0.0, failures: Vec::new() };
    let how = if poison { POISONED } else { PLAIN };
    let run = |device: Device, precision, layout| {
        let plan = group.plan(precision, layout)?;
        let outcome = device.run(plan, &BTreeMap::new(), std::slice::from_ref(&group.inputs), how)?;
        Ok::<_, String>(outcome.steps.into_iter().next().expect("one step"))
    };
    let (found, peer) =
        match (run(device, precision, layout), run(Device::Cpu, Precision::F32, Layout::RowMajor)) {
            (Ok(found), Ok(peer)) => (found, peer),
            (Err(e), _) | (_, Err(e)) => {
                row.failures.push(e);
                return row;
            }
        };
    let reference =
        interpret_f64(&group.graph, &group.wide, &BTreeMap::new()).expect("the oracle runs").outputs;
    let mut margin = f64::NEG_INFINITY;
    for (name, reference) in &reference {
        let reference: &[f64] = bytemuck::cast_slice(reference.bytes());
        let e = error(found[name].f32(), reference);
        let own = match device {
            Device::Cpu => CANCELLATION,
            Device::Cuda => PEER_FACTOR * error(peer[name].f32(), reference),
        };
        let limit = match precision {
            Precision::F32 => F32_LIMIT.max(own),
            Precision::Tf32 => TF32_LIMIT,
            Precision::Bf16 => BF16_LIMIT,
        };
        row.checks += 1;
        if e / limit > margin {
            (margin, row.worst, row.limit) = (e / limit, e, limit);
        }
        if e.is_nan() || e > limit {
            row.failures.push(format!("{name}: {e:.2e} over {limit:.2e}: {}", group.cases[name]));
        }
    }
    row
}
