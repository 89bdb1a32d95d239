//! Training matches the f64 references of `golden/train` and `golden/fulltrain` through
//! the whole compiler, under every policy, bit for bit the same under all of them.

use std::collections::BTreeMap;
use vdnn_ir::{Mode, Tensor};
use vdnn_passes::AlgoMode;
use vdnn_runtime::cpu::CpuOptions;
use vdnn_tests::data;
use vdnn_tests::golden::{self, SmallRun};
use vdnn_tests::harness::{self, POLICIES};

fn train(net: &str, policy: vdnn_passes::Policy) -> Option<SmallRun> {
    let imported = golden::small_net(net)?;
    let mut options = harness::options(Mode::Train, policy, AlgoMode::Dynamic);
    options.keep_gradients = true;
    let compiled = harness::compile(&imported.graph, golden::BATCH, &options);
    let inputs = golden::small_inputs(net, &compiled.plan);
    let names: Vec<String> = compiled
        .plan
        .params
        .iter()
        .filter(|p| p.role != vdnn_ir::ParamRole::Frozen && p.role != vdnn_ir::ParamRole::Momentum)
        .map(|p| p.name.clone())
        .collect();
    let cpu = CpuOptions { poison: true, ..CpuOptions::default() };
    let mut executor = harness::executor(compiled.plan, &harness::params(&imported), cpu);
    let mut run = SmallRun::default();
    for step in 0..golden::STEPS {
        let outputs = executor.step(&inputs).expect("a step");
        run.losses.push(outputs["loss"].f32()[0]);
        let state = || names.iter().map(|n| (n.clone(), executor.read_param(n).expect("a param"))).collect();
        if step == 0 {
            run.gradients = golden::gradients(&outputs);
            run.first = state();
        }
        if step == golden::STEPS - 2 {
            run.last = state();
        }
    }
    Some(run)
}

fn check_small_net(net: &str) {
    let Some(reference) = data::shared(&format!("golden/train/{net}.safetensors")) else { return };
    let reference = data::golden(&reference);
    let mut first: Option<SmallRun> = None;
    for policy in POLICIES {
        let run = train(net, policy).expect("the model is beside the golden file");
        if let Some(first) = &first {
            assert_eq!(bits(&first.losses), bits(&run.losses), "{net} {policy}: losses");
            assert_eq!(first.gradients, run.gradients, "{net} {policy}: gradients");
            assert_eq!(first.last, run.last, "{net} {policy}: parameters");
            continue;
        }
        let failures = golden::judge_small(&reference, &run).failures;
        assert!(failures.is_empty(), "{net}: {}", failures.join("\n"));
        first = Some(run);
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn vgg_small_trains_as_the_reference_under_every_policy() {
    check_small_net("vgg_small");
}

#[test]
fn resnet_small_trains_as_the_reference_under_every_policy() {
    check_small_net("resnet_small");
}

#[test]
fn densenet_small_trains_as_the_reference_under_every_policy() {
    check_small_net("densenet_small");
}

#[test]
fn alexnet_small_trains_as_the_reference_under_every_policy() {
    check_small_net("alexnet_small");
}

/// One full-size step, bit-identical across policies.
fn check_full_step(stem: &str) {
    let Some(full) = golden::full_step(stem) else { return };
    let params = harness::params(&full.imported);
    let mut first: Option<BTreeMap<String, Tensor>> = None;
    for policy in POLICIES {
        let mut options = harness::options(Mode::Train, policy, AlgoMode::Dynamic);
        options.keep_gradients = true;
        let plan = harness::compile(&full.imported.graph, full.batch(), &options).plan;
        let inputs = full.inputs(&plan);
        let mut executor = harness::executor(plan, &params, CpuOptions::default());
        let outputs = executor.step(&inputs).expect("a step");
        if let Some(first) = &first {
            assert!(first == &outputs, "{stem} {policy}: not the bytes of the first policy");
            continue;
        }
        let failures = full.judge(&outputs).failures;
        assert!(failures.is_empty(), "{stem}: {}", failures.join("\n"));
        first = Some(outputs);
    }
}

#[test]
fn alexnet_full_size_step_matches_the_reference() {
    check_full_step("alexnet.ts17");
}

#[test]
fn vgg16_full_size_step_matches_the_reference() {
    check_full_step("vgg16.ts17");
}

#[test]
fn resnet50_full_size_step_matches_the_reference() {
    check_full_step("resnet50.ts17_preserve");
}

#[test]
fn densenet121_full_size_step_matches_the_reference() {
    check_full_step("densenet121.ts17_preserve");
}
