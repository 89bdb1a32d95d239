//! Whole networks: training steps against the CPU kernels, and the same bytes from every
//! policy, with steps replayed from a graph, and under random delays on every stream.

use crate::Row;
use crate::device::{Device, How, Outcome, PLAIN, POISONED};
use prost::Message;
use std::collections::BTreeMap;
use vdnn_cost::Precision;
use vdnn_frontends::onnx::{self, ImportOptions};
use vdnn_frontends::zoo::{self, ZooOptions};
use vdnn_ir::{Graph, Mode, Tensor, TensorType};
use vdnn_passes::{AlgoMode, Policy};
use vdnn_plan::{Command, Plan};
use vdnn_tests::harness;
use vdnnc::commands::synthetic;

/// Relative difference of the first loss from that of the CPU kernels.
const LOSS_LIMIT: f64 = 2e-6;
/// What a step multiplies it by: weights differ then, and batch norm over the few pixels of
/// the last layers magnifies it.
const GROWTH: f64 = 20.0;
/// Losses below this are compared as if they were this.
const SMALL_LOSS: f64 = 0.1;
/// And with TF32 products, of which one may be 2e-3 off and a network has many.
const TF32_LOSS_LIMIT: f64 = 4e-3;
/// Steps that are compared.
const STEPS: usize = 3;
/// Seeds of random delays tried per plan.
const DELAYS: u64 = 3;

/// Networks whose waits are left out one by one, with the waits tried and the seeds for each.
const CONTROLS: [(&str, usize, u64); 2] = [("lenet", 12, 5), ("resnet18", 8, 6)];
/// Waits that nothing notices the lack of, as a share of those left out: the moment in which one
/// matters may be short.
const UNNOTICED: f64 = 0.6;

/// Networks, and the batch they are tried at.
const NETS: [(&str, u64); 5] =
    [("lenet", 16), ("resnet18", 4), ("densenet121", 2), ("googlenet", 2), ("alexnet", 2)];

struct Net {
    graph: Graph,
    params: BTreeMap<String, Tensor>,
    batch: u64,
}

fn net(name: &str, batch: u64) -> Net {
    let model = zoo::build(name, &ZooOptions { batch: None, classes: Some(10), seed: 1 }).expect("a zoo net");
    let options = ImportOptions { batch: Some(batch), dims: BTreeMap::new(), training: true };
    let imported = onnx::import_bytes(model.encode_to_vec().into(), None, &options).expect("it imports");
    let params = harness::params(&imported);
    Net { graph: imported.graph, params, batch }
}

impl Net {
    fn plan(&self, policy: Policy, precision: Precision) -> Plan {
        let mut options = harness::options(Mode::Train, policy, AlgoMode::Memory);
        options.precision = precision;
        harness::compile(&self.graph, self.batch, &options).plan
    }

    fn inputs(plan: &Plan) -> Vec<BTreeMap<String, Tensor>> {
        let wanted: Vec<(String, TensorType)> =
            plan.inputs.iter().map(|i| (i.name.clone(), plan.buffers[i.buf].ty.clone())).collect();
        (0..STEPS as i64)
            .map(|step| {
                let mut inputs = synthetic::inputs(&wanted).expect("small inputs");
                for (name, _) in &wanted {
                    match name.as_str() {
                        "vdnnc.hyper" => {
                            inputs.insert(name.clone(), harness::hyper(1e-3, 0.9, 1e-4));
                        }
                        "vdnnc.step" => {
                            inputs.insert(name.clone(), Tensor::from_i64([], &[step]));
                        }
                        _ => {}
                    }
                }
                inputs
            })
            .collect()
    }

    fn run(&self, device: Device, policy: Policy, precision: Precision, how: How) -> Result<Outcome, String> {
        let plan = self.plan(policy, precision);
        let inputs = Self::inputs(&plan);
        device.run(plan, &self.params, &inputs, how)
    }
}

/// Runs every network.
pub fn run(device: Device, wanted: &dyn Fn(&str) -> bool, report: &mut dyn FnMut(Row)) {
    for (name, batch) in NETS {
        // On the CPU these are the golden tests' business.
        if device == Device::Cpu && name != "lenet" {
            continue;
        }
        for precision in [Precision::F32, Precision::Tf32] {
            let suite = format!("nets/{precision}/{name}");
            if wanted(&suite) && (device == Device::Cuda || precision == Precision::F32) {
                report(judge(device, suite, &net(name, batch), precision));
            }
        }
    }
}

/// Leaves waits out, which must be noticed: else the suites above prove nothing.
pub fn run_controls(device: Device, wanted: &dyn Fn(&str) -> bool, report: &mut dyn FnMut(Row)) {
    for (name, waits, seeds) in CONTROLS {
        let suite = format!("control/{name}");
        // The host's streams have no delays.
        if device == Device::Cuda && wanted(&suite) {
            let (_, batch) = NETS.into_iter().find(|n| n.0 == name).expect("one of the networks");
            report(control(device, suite, &net(name, batch), waits, seeds));
        }
    }
}

fn control(device: Device, suite: String, net: &Net, waits: usize, seeds: u64) -> Row {
    let mut row = Row { suite, checks: 0, worst: 0.0, limit: UNNOTICED, failures: Vec::new() };
    let run = |how| net.run(device, Policy::All, Precision::F32, how);
    let whole = match run(POISONED) {
        Ok(whole) => whole,
        Err(e) => {
            row.failures.push(e);
            return row;
        }
    };
    let plan = net.plan(Policy::All, Precision::F32);
    let present = plan.commands.iter().filter(|c| matches!(c, Command::Wait { .. })).count();
    let mut unnoticed = Vec::new();
    for i in 0..waits.min(present) {
        // Evenly over the plan.
        let wait = i * present / waits.min(present);
        let differs = |seed| {
            run(How { delay: Some(seed), drop_wait: Some(wait), ..POISONED })
                .is_ok_and(|found| found != whole)
        };
        row.checks += 1;
        if !(1..=seeds).any(differs) {
            unnoticed.push(wait.to_string());
        }
    }
    row.worst = unnoticed.len() as f64 / row.checks.max(1) as f64;
    if row.checks == 0 || row.worst > row.limit {
        row.failures
            .push(format!("nothing noticed that these waits were left out: {}", unnoticed.join(", ")));
    }
    row
}

fn judge(device: Device, suite: String, net: &Net, precision: Precision) -> Row {
    let mut row = Row { suite, checks: 0, worst: 0.0, limit: LOSS_LIMIT, failures: Vec::new() };
    if precision != Precision::F32 {
        row.limit = TF32_LOSS_LIMIT;
    }
    let first = match net.run(device, Policy::None, precision, POISONED) {
        Ok(outcome) => outcome,
        Err(e) => {
            row.failures.push(e);
            return row;
        }
    };
    match net.run(Device::Cpu, Policy::None, Precision::F32, PLAIN) {
        Ok(cpu) => {
            for (step, (found, peer)) in first.steps.iter().zip(&cpu.steps).enumerate() {
                let (found, peer) = (f64::from(found["loss"].f32()[0]), f64::from(peer["loss"].f32()[0]));
                // Random data is soon learnt by heart; then the rest of the loss says little.
                let error = (found - peer).abs() / peer.abs().max(SMALL_LOSS);
                row.checks += 1;
                row.worst = row.worst.max(error);
                if error.is_nan() || error > row.limit * GROWTH.powi(step as i32) {
                    row.failures.push(format!("step {step}: loss {found}, on the CPU {peer}"));
                }
            }
        }
        Err(e) => row.failures.push(format!("on the CPU: {e}")),
    }
    // Some command by command and poisoned, some replayed from a graph.
    let delays =
        (1..=DELAYS).map(|seed| How { delay: Some(seed), ..if seed % 2 == 0 { PLAIN } else { POISONED } });
    for policy in harness::POLICIES {
        for how in [PLAIN, POISONED].into_iter().chain(delays.clone()) {
            let moves = matches!(policy, Policy::All | Policy::Conv);
            if how.delay.is_some() && !(device == Device::Cuda && moves) {
                continue;
            }
            // Each run of a large network sets its kernels up anew.
            let large = net.graph.order().len() > 100;
            if large && (how == POISONED || !matches!(policy, Policy::None | Policy::All)) {
                continue;
            }
            row.checks += 1;
            match net.run(device, policy, precision, how) {
                Ok(outcome) if outcome == first => {}
                Ok(_) => row.failures.push(format!("{policy}, {how:?}: other bytes than policy none")),
                Err(e) => row.failures.push(format!("{policy}, {how:?}: {e}")),
            }
        }
    }
    row
}
