//! `--verify-equivalence`: every divided convolution of a plan, alone and on random operands,
//! against the same convolution in one piece, on the executor that is to run the plan.
//!
//! The distance is `|divided - whole| / |whole|` (Euclidean), and what is allowed depends on
//! the arithmetic: TF32 and bf16 round their operands alike in both, so that little more than
//! the order of sums differs there too, but engines may keep partial sums differently.

use super::backend::Choice;
use super::load::FromTensors;
use super::note;
use crate::error::Failure;
use std::collections::BTreeMap;
use vdnn_ir::graph::{ConvAlgo, NodeSpec};
use vdnn_ir::random::splitmix64;
use vdnn_ir::{Bytes, ConvSchedule, DType, Graph, Op, Output, Phase, Precision, Tensor, TensorType, bf16};
use vdnn_passes::lower::{LowerOptions, expected_terms, lower};
use vdnn_passes::memory::{LayoutOptions, layout};
use vdnn_plan::plan::Header;
use vdnn_plan::{Command, Plan};
use vdnn_runtime::executor::Executor;

/// A divided convolution.
#[derive(Clone, Debug, PartialEq)]
struct Divided {
    op: Op,
    inputs: Vec<TensorType>,
    output: TensorType,
    schedule: ConvSchedule,
    workspace: Bytes,
    name: String,
}

/// Compares every different divided convolution of a plan with the whole one.
///
/// # Errors
/// If one differs by more than its arithmetic explains, or cannot be run.
pub fn verify(plan: &Plan, executor: &Choice<'_>) -> Result<(), Failure> {
    let mut all: Vec<Divided> = Vec::new();
    for command in &plan.commands {
        let Command::Launch { op, inputs, outputs, workspace, algo: Some(schedule), name, .. } = command
        else {
            continue;
        };
        if !schedule.is_divided() {
            continue;
        }
        let ty = |b: &vdnn_plan::BufId| plan.buffers[*b].ty.clone();
        let Some(output) = outputs.first().map(ty) else { continue };
        let divided = Divided {
            op: op.clone(),
            inputs: inputs.iter().map(ty).collect(),
            output,
            schedule: schedule.clone(),
            workspace: workspace.map_or(Bytes::ZERO, |w| plan.buffers[w].ty.bytes()),
            name: name.clone(),
        };
        let known =
            |d: &Divided| d.op == divided.op && d.inputs == divided.inputs && d.schedule == divided.schedule;
        if !all.iter().any(known) {
            all.push(divided);
        }
    }
    let mut worst: f64 = 0.0;
    for d in &all {
        let inputs = operands(d);
        let whole = Divided {
            schedule: ConvSchedule::Whole(ConvAlgo::ImplicitGemm),
            workspace: Bytes::ZERO,
            ..d.clone()
        };
        let [whole, divided] = [run(&whole, plan, executor, &inputs)?, run(d, plan, executor, &inputs)?];
        let (distance, limit) = (distance(&divided, &whole), tolerance(d, plan.header.precision));
        worst = worst.max(distance / limit);
        if distance.is_nan() || distance > limit {
            return Err(Failure::internal(format!(
                "`{}`: {} as {} differs from the whole batch by {distance:.2e}, more than {limit:.2e}",
                d.name, d.op, d.schedule
            )));
        }
    }
    note(&format!(
        "{} divided convolutions equal the whole ones, at most {:.1} % of the tolerance apart",
        all.len(),
        100.0 * worst
    ));
    Ok(())
}

/// What two ways to compute the same may differ by. Strict f32: a few roundings for direct
/// algorithms, more for transforms, which an engine may be of; for sums over a batch also what
/// adding up so many products of random sign in f32 may cost.
fn tolerance(d: &Divided, precision: Precision) -> f64 {
    let direct = |algo: ConvAlgo| {
        matches!(algo, ConvAlgo::ImplicitGemm | ConvAlgo::ImplicitPrecompGemm | ConvAlgo::Gemm)
    };
    let exact = d.schedule.runs(0).iter().all(|r| direct(r.algo));
    let base = match precision {
        Precision::F32 if exact => 1e-6,
        Precision::F32 => 1e-5,
        Precision::Tf32 => 2e-3,
        Precision::Bf16 => 1e-2,
    };
    if !matches!(d.op, Op::ConvWgrad { .. }) {
        return base;
    }
    let terms: f64 = d.inputs.get(1).map_or(1.0, |dy| {
        let pixels: u64 = dy.dims.iter().enumerate().filter(|(i, _)| *i != 1).map(|(_, &n)| n).product();
        pixels as f64
    });
    base.max(f64::from(f32::EPSILON) / 2.0 * terms.sqrt() / 4.0)
}

/// Random numbers of both signs.
fn operands(d: &Divided) -> BTreeMap<String, Tensor> {
    let number = |seed: u64, i: u64| (splitmix64(seed, i) >> 40) as f32 / 8_388_608.0 - 1.0;
    let tensor = |(i, ty): (usize, &TensorType)| {
        let numbers = (0..ty.elements()).map(|j| number(i as u64, j));
        let bytes: Vec<u8> = match ty.dtype {
            DType::BF16 => numbers.flat_map(|x| bf16::round(x).to_le_bytes()).collect(),
            _ => numbers.flat_map(f32::to_le_bytes).collect(),
        };
        Some((format!("x{i}"), Tensor::from_bytes(ty.clone(), &bytes)?))
    };
    d.inputs.iter().enumerate().filter_map(tensor).collect()
}

/// The convolution as a plan of its own, run once.
fn run(
    d: &Divided,
    of: &Plan,
    executor: &Choice<'_>,
    inputs: &BTreeMap<String, Tensor>,
) -> Result<Vec<f64>, Failure> {
    let mut graph = Graph::new("equivalence");
    let values: Vec<_> =
        d.inputs.iter().enumerate().map(|(i, ty)| graph.add_input(format!("x{i}"), ty.clone())).collect();
    graph.phase = Phase::Scheduled;
    let node = graph
        .add(d.op.clone(), &values, NodeSpec::forward(d.name.as_str()))
        .map_err(|e| Failure::internal(e.0))?;
    let value = graph.node(node).outputs[0];
    graph.outputs.push(Output { name: "y".to_owned(), value });
    let notes = graph.annotate(node);
    *notes.algo = Some(d.schedule.clone());
    *notes.workspace = d.workspace;
    let place = layout(&graph, &LayoutOptions::default()).map_err(Failure::internal)?;
    let options = LowerOptions {
        header: Header { model: None, model_name: "equivalence".to_owned(), ..of.header.clone() },
        device_budget: None,
        host_budget: None,
    };
    let plan = lower(&graph, &place, &expected_terms(&graph), &options).map_err(Failure::internal)?;
    let none = BTreeMap::new();
    let mut executor = Executor::load(plan, &FromTensors(&none), executor.open()?).map_err(Failure::user)?;
    let mut outputs = executor.step(inputs).map_err(Failure::user)?;
    let y = outputs.remove("y").ok_or_else(|| Failure::internal("the plan of one convolution has no y"))?;
    Ok(match y.ty().dtype {
        DType::BF16 => y
            .bytes()
            .chunks_exact(2)
            .map(|b| f64::from(bf16::widen(u16::from_le_bytes([b[0], b[1]]))))
            .collect(),
        _ => y.f32().iter().map(|&x| f64::from(x)).collect(),
    })
}

fn distance(x: &[f64], reference: &[f64]) -> f64 {
    let difference: f64 = x.iter().zip(reference).map(|(x, r)| (x - r).powi(2)).sum();
    let size: f64 = reference.iter().map(|r| r * r).sum();
    if difference == 0.0 { 0.0 } else { (difference / size.max(f64::MIN_POSITIVE)).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_and_what_is_allowed() {
        assert!((distance(&[3.0, 4.0], &[3.0, 3.0]) - (1.0f64 / 18.0).sqrt()).abs() < 1e-12);
        assert!(distance(&[f64::NAN], &[1.0]).is_nan());
        let conv = vdnn_ir::op::ConvAttrs::square(3, 1, 1, 1);
        let schedule = |text: &str| text.parse::<ConvSchedule>().expect("a schedule");
        let y = TensorType::f32([256, 64, 224, 224]);
        let mut d = Divided {
            op: Op::Conv(conv.clone()),
            inputs: vec![y.clone(), y.clone()],
            output: y,
            schedule: schedule("gemm@128x2"),
            workspace: Bytes::ZERO,
            name: String::new(),
        };
        assert_eq!(tolerance(&d, Precision::F32), 1e-6);
        d.schedule = schedule("gemm@128+eng3@128");
        assert_eq!(tolerance(&d, Precision::F32), 1e-5, "an engine may be a transform");
        d.op = Op::ConvWgrad { conv, w_dims: [64, 64, 3, 3].as_slice().into() };
        let sums = tolerance(&d, Precision::F32);
        assert!((2e-5..1e-4).contains(&sums), "{sums}");
        assert_eq!(tolerance(&d, Precision::Bf16), 1e-2);
    }
}
