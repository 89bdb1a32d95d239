//! Tests of lowering.

use super::*;
use crate::memory::testnet::*;
use crate::{Policy, SyncMode};
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::{BinaryKind, UnaryKind};
use vdnn_ir::{Mode, Phase};
use vdnn_plan::check::check;

fn nets() -> Vec<Graph> {
    vec![vgg(2, 32, &[(4, 2), (8, 2)]), resnet(2, 32, &[2, 1]), densenet(2, 32, &[3, 2]), inception(2, 32, 4)]
}

#[test]
fn every_plan_passes_the_checker_and_copies_what_the_pass_says() {
    for net in nets() {
        for train in [false, true] {
            let net = selected(net.clone(), train, true);
            for policy in [Policy::None, Policy::Baseline, Policy::All, Policy::Conv] {
                for sync in [SyncMode::Event, SyncMode::Layer] {
                    let s = scheduled(net.clone(), policy, sync);
                    let layout = s.layout(policy);
                    let plan = s.plan(&layout);
                    let stats = check(&plan).unwrap_or_else(|e| panic!("{} {policy} {sync}:\n{e}", net.name));
                    assert_eq!(stats.bytes_copied_d2h.0, s.offload["offload_bytes"]);
                    assert_eq!(stats.bytes_copied_h2d.0, s.offload["prefetch_bytes"]);
                    assert_eq!(plan.predicted.lower_bound, layout.lower_bound);
                    let moves = s.offload["offloads"] > 0;
                    assert_eq!(plan.streams.len(), if moves { 3 } else { 1 });
                }
            }
        }
    }
}

#[test]
fn policies_agree_on_the_terms_and_the_terms_see_what_is_computed() {
    let plan = |g: &Graph, policy| {
        let s = scheduled(g.clone(), policy, SyncMode::Event);
        s.plan(&s.layout(policy))
    };
    let g = selected(resnet(2, 32, &[1]), true, false);
    let terms = |p: &Plan| (p.outputs[0].expect, p.params.iter().map(|p| p.expect).collect::<Vec<_>>());
    let none = terms(&plan(&g, Policy::None));
    assert_eq!(none, terms(&plan(&g, Policy::All)));
    assert_eq!(none, terms(&plan(&g, Policy::Baseline)));
    let other = selected(resnet(2, 32, &[2]), true, false);
    assert_ne!(none.0, terms(&plan(&other, Policy::None)).0);
}

#[test]
fn transfers_become_record_wait_copy_record_and_wait() {
    let g = selected(vgg(2, 16, &[(4, 1)]), true, false);
    let s = scheduled(g, Policy::Conv, SyncMode::Layer);
    let plan = s.plan(&s.layout(Policy::Conv));
    let copy = plan.commands.iter().position(|c| matches!(c, Command::Copy { .. })).expect("a copy");
    let [d2h, compute] = [StreamId(1), StreamId(0)];
    assert_eq!(plan.streams, [StreamKind::Compute, StreamKind::D2h, StreamKind::H2d]);
    let around = &plan.commands[copy - 2..copy + 2];
    let Command::Record { stream, event: ready } = around[0] else { panic!("{around:?}") };
    assert_eq!(stream, compute);
    assert_eq!(around[1], Command::Wait { stream: d2h, event: ready });
    let Command::Record { stream, event: copied } = around[3] else { panic!("{around:?}") };
    assert_eq!(stream, d2h);
    // Then the layer, then compute waits and the source is free.
    assert!(matches!(&plan.commands[copy + 2], Command::Launch { name, .. } if name == "conv1"));
    assert_eq!(plan.commands[copy + 3], Command::Wait { stream: compute, event: copied });
    let Command::Copy { src, .. } = plan.commands[copy] else { unreachable!() };
    let freed = plan.commands[copy + 4..].iter().take_while(|c| matches!(c, Command::Free { .. }));
    assert!(freed.into_iter().any(|c| *c == Command::Free { stream: compute, buf: src }));
}

#[test]
fn every_transient_is_freed_once_and_nothing_that_is_kept() {
    let g = selected(resnet(2, 32, &[1]), true, false);
    let s = scheduled(g, Policy::All, SyncMode::Event);
    let layout = s.layout(Policy::All);
    let plan = s.plan(&layout);
    let frees = plan.commands.iter().filter(|c| matches!(c, Command::Free { .. })).count();
    let transient = layout.storages.values().filter(|s| !s.kept && s.kind != StorageKind::Workspace).count();
    assert_eq!(frees, transient);
    let kept: Vec<BufId> =
        plan.params.iter().map(|p| p.buf).chain(plan.outputs.iter().map(|o| o.buf)).collect();
    for c in &plan.commands {
        assert!(!matches!(c, Command::Free { buf, .. } if kept.contains(buf)));
    }
}

#[test]
fn constants_and_setup_results_become_parameters() {
    // y = relu(x + (w + c) reshaped) + c, the sum of parameters computed at load.
    let mut g = Graph::new("setup");
    g.phase = Phase::Imported;
    let x = g.add_input("x", TensorType::f32([4]));
    let w = g.add_param("const:odd", TensorType::f32([4]), ParamRole::Trainable);
    let unused = g.add_param("unused", TensorType::f32([4]), ParamRole::Frozen);
    let c = g.add_const_f32([4], &[1.0, 2.0, 3.0, 4.0]);
    let setup = |name: &str| NodeSpec { stage: Stage::Setup, ..NodeSpec::forward(name) };
    let add = Op::Binary(BinaryKind::Add);
    let s = g.add1(add.clone(), &[w, c], setup("w+c")).expect("w+c");
    let s2 = g.add1(Op::Reshape { dims: [2, 2].as_slice().into() }, &[s], setup("2x2")).expect("2x2");
    let s3 = g.add1(Op::Reshape { dims: [4].as_slice().into() }, &[s2], setup("4")).expect("4");
    let y = g.add1(add.clone(), &[x, s3], NodeSpec::forward("y")).expect("y");
    let y = g.add1(Op::Unary(UnaryKind::Relu), &[y], NodeSpec::forward("relu")).expect("relu");
    let y = g.add1(add, &[y, c], NodeSpec::forward("z")).expect("z");
    g.outputs.push(vdnn_ir::Output { name: "y".into(), value: y });
    g.outputs.push(vdnn_ir::Output { name: "folded".into(), value: s });
    let _ = unused;
    let g = selected(g, false, false);
    let s = scheduled(g, Policy::None, SyncMode::Event);
    let plan = s.plan(&s.layout(Policy::None));
    check(&plan).unwrap_or_else(|e| panic!("{e}"));
    let params: Vec<(&str, ParamRole)> = plan.params.iter().map(|p| (p.name.as_str(), p.role)).collect();
    // The weight itself is needed only at load; its name forces another mark.
    assert_eq!(
        params,
        [
            ("const':%3", ParamRole::Frozen),
            ("setup':%4", ParamRole::Frozen),
            ("setup':%6", ParamRole::Frozen)
        ]
    );
    assert!(matches!(&plan.params[0].source, ParamSource::Inline(b) if b.len() == 16));
    let loads: Vec<(u32, &str)> = plan.setup_loads.iter().map(|l| (l.id.0, l.name.as_str())).collect();
    assert_eq!(loads, [(0, "const:odd"), (1, "")]);
    assert_eq!(plan.params[1].source, ParamSource::Setup(SetupId(2)));
    assert_eq!(plan.params[2].source, ParamSource::Setup(SetupId(4)));
    assert_eq!(plan.setup.len(), 3);
    assert_eq!(plan.outputs[1].expect, vdnn_plan::Sig::param("setup':%4"));
}

#[test]
fn terms_of_another_model_are_refused() {
    let g = selected(vgg(2, 16, &[(4, 1)]), true, false);
    let s = scheduled(g, Policy::None, SyncMode::Event);
    let layout = s.layout(Policy::None);
    let header = Header {
        model_name: "m".into(),
        mode: Mode::Train,
        batch: 1,
        policy: "none".into(),
        algo: "memory".into(),
        device: "h200".into(),
        precision: vdnn_ir::Precision::F32,
        engines: None,
        model: None,
        options: Vec::new(),
    };
    let options = LowerOptions { header, device_budget: None, host_budget: None };
    let error = lower(&s.graph, &layout, &ExpectedTerms::default(), &options);
    assert!(matches!(error, Err(LowerError::NoTerm(_))));
}
