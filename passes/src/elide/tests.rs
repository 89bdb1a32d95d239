//! Tests of the elisions.

use super::*;
use crate::memory::testnet::*;
use crate::{Policy, SyncMode};
use vdnn_plan::check::check;

fn plan_of(net: vdnn_ir::Graph, policy: Policy, sync: SyncMode) -> Plan {
    let s = scheduled(selected(net, true, false), policy, sync);
    s.plan(&s.layout(policy))
}

fn count(plan: &Plan, f: impl Fn(&Command) -> bool) -> usize {
    plan.commands.iter().filter(|c| f(c)).count()
}

#[test]
fn elided_plans_still_pass_the_checker_with_as_many_waits_less() {
    for net in
        [vgg(2, 32, &[(4, 2), (8, 2)]), resnet(2, 32, &[2, 2]), densenet(2, 32, &[3, 2]), inception(2, 32, 4)]
    {
        for policy in [Policy::All, Policy::Conv] {
            for sync in [SyncMode::Event, SyncMode::Layer] {
                let full = plan_of(net.clone(), policy, sync);
                let mut short = full.clone();
                let gone = elide(&mut short, &ElideOptions::default());
                check(&short).unwrap_or_else(|e| panic!("{} {policy} {sync}:\n{e}", net.name));
                let waits = |p: &Plan| count(p, |c| matches!(c, Command::Wait { .. })) as u64;
                let records = |p: &Plan| count(p, |c| matches!(c, Command::Record { .. })) as u64;
                assert_eq!(waits(&full) - waits(&short), gone.waits);
                assert_eq!(records(&full) - records(&short), gone.records);
                assert_eq!(u64::from(short.n_events), records(&short));
                assert_eq!(gone.copies, 0, "the offload pass copies nothing twice");
                assert_eq!(elide(&mut short.clone(), &ElideOptions::default()), Elided::default());
            }
        }
    }
}

#[test]
fn nothing_is_removed_when_switched_off() {
    let full = plan_of(resnet(2, 32, &[2, 2]), Policy::All, SyncMode::Event);
    let mut same = full.clone();
    let gone = elide(&mut same, &ElideOptions { waits: false, copies: false });
    assert_eq!((gone, &same), (Elided::default(), &full));
    let gone = elide(&mut same, &ElideOptions { waits: true, copies: false });
    assert!(gone.waits > 0, "a residual net has tensors whose copies are awaited together");
}

#[test]
fn every_wait_of_compute_that_stays_is_needed() {
    // Those of the copy streams may happen to be unnecessary: the network's input needs no
    // kernel to be ready, and some fetched tensors come into bytes nobody used before.
    let mut plan = plan_of(resnet(2, 32, &[1, 1]), Policy::All, SyncMode::Event);
    elide(&mut plan, &ElideOptions::default());
    let (mut waits, mut unneeded) = (0, 0);
    for at in 0..plan.commands.len() {
        let Command::Wait { stream, .. } = plan.commands[at] else { continue };
        let mut mutant = plan.clone();
        mutant.commands.remove(at);
        let caught = check(&mutant).is_err();
        assert!(caught || stream != StreamId(0), "wait {at} of compute");
        waits += 1;
        unneeded += usize::from(!caught);
    }
    assert!(unneeded * 10 < waits, "{unneeded} of {waits}");
}

#[test]
fn a_wait_implied_through_another_stream_goes_and_its_record_with_it() {
    let mut plan = plan_of(vgg(2, 16, &[(4, 1)]), Policy::Conv, SyncMode::Event);
    let before = plan.clone();
    // Compute waits again for what it has waited for, under a new event.
    let (at, stream, event) = plan
        .commands
        .iter()
        .enumerate()
        .find_map(|(i, c)| match c {
            Command::Wait { stream, event } if *stream == StreamId(0) => Some((i, *stream, *event)),
            _ => None,
        })
        .expect("a wait");
    let record = plan
        .commands
        .iter()
        .position(|c| matches!(c, Command::Record { event: e, .. } if *e == event))
        .expect("its record");
    let copier = plan.commands[record].stream();
    let again = EventId(plan.n_events);
    plan.n_events += 1;
    plan.commands.insert(at + 1, Command::Wait { stream, event: again });
    plan.commands.insert(record + 1, Command::Record { stream: copier, event: again });
    let gone = elide(&mut plan, &ElideOptions { waits: true, copies: false });
    assert_eq!((gone.waits, gone.records), (1, 1));
    check(&plan).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(plan.commands.len(), before.commands.len());
}

#[test]
fn a_copy_into_a_place_that_holds_the_value_goes() {
    let mut plan = plan_of(vgg(2, 16, &[(4, 1)]), Policy::Conv, SyncMode::Event);
    let before = plan.clone();
    let at = plan.commands.iter().position(|c| matches!(c, Command::Copy { .. })).expect("a copy");
    plan.commands.insert(at + 1, plan.commands[at].clone());
    let gone = elide(&mut plan, &ElideOptions { waits: false, copies: true });
    assert_eq!(gone.copies, 1);
    assert!(gone.copied_bytes > Bytes::ZERO);
    assert_eq!(plan, before);
}
