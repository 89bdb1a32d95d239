//! Reference results in strict f32, row-major: logits of exported models, training steps. Reads
//! `../shared/data`, or the folder that `VDNNC_TEST_DATA` names.

use crate::Row;
use crate::device::{Device, PLAIN};
use std::collections::BTreeMap;
use vdnn_ir::{Mode, Tensor};
use vdnn_passes::{AlgoMode, Policy};
use vdnn_tests::data::{self, Skeleton};
use vdnn_tests::golden::{self, Reference, SmallRun, Verdict};
use vdnn_tests::harness;

/// Runs every reference that is there. The CPU has tests of its own for these, so it runs them
/// here only when they are asked for.
pub fn run(device: Device, wanted: &dyn Fn(&str) -> bool, report: &mut dyn FnMut(Row)) {
    let mut judge = |suite: String, verdict: &mut dyn FnMut() -> Option<Result<Verdict, String>>| {
        if !wanted(&suite) {
            return;
        }
        match verdict() {
            Some(Ok(Verdict { checks, worst, failures })) => {
                report(Row { suite, checks, worst, limit: 1.0, failures });
            }
            Some(Err(e)) => report(Row { suite, checks: 0, worst: 0.0, limit: 1.0, failures: vec![e] }),
            None => {}
        }
    };
    for net in golden::SMALL_NETS {
        judge(format!("golden/train/{net}"), &mut || small(device, net));
    }
    for stem in golden::FULL_STEPS {
        judge(format!("golden/fulltrain/{stem}"), &mut || full(device, stem));
    }
    let Some(logits) = data::shared("golden/infer/logits.safetensors") else { return };
    let logits = data::golden(&logits);
    for folder in golden::FOLDERS {
        let Some(folder) = data::shared(folder) else { continue };
        for stem in data::stems(&folder).into_iter().filter(|s| logits.contains_key(s)) {
            judge(format!("golden/infer/{stem}"), &mut || {
                Some(infer(device, &Skeleton::new(&folder, &stem), &stem, &logits))
            });
        }
    }
}

fn small(device: Device, net: &str) -> Option<Result<Verdict, String>> {
    let reference = data::golden(&data::shared(&format!("golden/train/{net}.safetensors"))?);
    let imported = golden::small_net(net)?;
    let mut options = harness::options(Mode::Train, Policy::None, AlgoMode::Dynamic);
    options.keep_gradients = true;
    let plan = harness::compile(&imported.graph, golden::BATCH, &options).plan;
    let inputs = vec![golden::small_inputs(net, &plan); golden::STEPS];
    let mut run = SmallRun::default();
    let done = device.run_watched(plan, &harness::params(&imported), &inputs, PLAIN, &mut |step, state| {
        if step == 0 {
            run.first = state()?;
        }
        if step == golden::STEPS - 2 {
            run.last = state()?;
        }
        Ok(())
    });
    Some(done.map(|outcome| {
        run.losses = outcome.steps.iter().map(|outputs| outputs["loss"].f32()[0]).collect();
        run.gradients = golden::gradients(&outcome.steps[0]);
        golden::judge_small(&reference, &run)
    }))
}

fn full(device: Device, stem: &str) -> Option<Result<Verdict, String>> {
    let full = golden::full_step(stem)?;
    let mut options = harness::options(Mode::Train, Policy::None, AlgoMode::Dynamic);
    options.keep_gradients = true;
    let plan = harness::compile(&full.imported.graph, full.batch(), &options).plan;
    let inputs = full.inputs(&plan);
    let outcome = device.run(plan, &harness::params(&full.imported), &[inputs], PLAIN);
    Some(outcome.map(|outcome| full.judge(&outcome.steps[0])))
}

fn infer(device: Device, skeleton: &Skeleton, stem: &str, logits: &Reference) -> Result<Verdict, String> {
    let (dims, want) = &logits[stem];
    let imported = golden::import_for_logits(skeleton, dims[0]);
    let options = harness::options(Mode::Infer, Policy::None, AlgoMode::Dynamic);
    let plan = harness::compile(&imported.graph, imported.batch, &options).plan;
    let inputs = golden::logits_inputs(&plan);
    let output = plan.outputs[0].name.clone();
    let params: BTreeMap<String, Tensor> = harness::params(&imported);
    let outcome = device.run(plan, &params, &[inputs], PLAIN)?;
    Ok(golden::judge_logits(stem, &outcome.steps[0][&output], want))
}
