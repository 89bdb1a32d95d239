//! Tests of lanes, lifetimes and spreading.

use super::order::{Accesses, At};
use super::*;
use crate::Policy;
use crate::SyncMode;
use crate::elide::{ElideOptions, elide};
use crate::memory::testnet::*;
use crate::memory::{LayoutOptions, layout, layout_on};
use vdnn_ir::id::EntityId;
use vdnn_plan::check::check;
use vdnn_plan::{Command, Plan};

fn nets() -> Vec<Graph> {
    vec![vgg(1, 32, &[(4, 2), (8, 2)]), resnet(1, 32, &[2, 1]), densenet(1, 32, &[3, 2]), inception(1, 32, 4)]
}

fn infer(net: Graph) -> Scheduled {
    scheduled(selected(net, false, true), Policy::None, SyncMode::Event)
}

/// Every assignment of three lanes that a counter makes.
fn arbitrary(graph: &Graph, seed: u64) -> Lanes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    Lanes::from_nodes(graph.order().iter().map(|&id| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (id, (state >> 40) as u32 % 3)
    }))
}

fn edges(plan: &Plan) -> usize {
    plan.commands.iter().filter(|c| matches!(c, Command::Wait { .. })).count()
}

#[test]
fn any_lanes_on_any_layout_give_a_sound_plan_and_lifetimes_spare_it_waits() {
    let (mut plain, mut spared) = (0, 0);
    for net in nets() {
        let name = net.name.clone();
        let s = infer(net);
        for seed in 0..12 {
            let lanes = arbitrary(&s.graph, seed);
            let options = LayoutOptions::default();
            let tight = layout(&s.graph, &options).expect("a layout");
            let wide = layout_on(&s.graph, &options, &lanes).expect("a layout");
            assert!(wide.lower_bound >= tight.lower_bound);
            for (layout, count) in [(tight, &mut plain), (wide, &mut spared)] {
                let mut plan = s.plan(&layout);
                let frees = plan.commands.iter().filter(|c| matches!(c, Command::Free { .. })).count();
                let done = spread(&mut plan, &lanes);
                check(&plan).unwrap_or_else(|e| panic!("{name}, lanes {seed}:\n{e}"));
                assert_eq!(edges(&plan) as u64, done.waits);
                assert_eq!(plan.streams.len(), lanes.count() as usize);
                let freed = plan.commands.iter().filter(|c| matches!(c, Command::Free { .. })).count();
                assert_eq!(freed, frees, "{name}: every free stays");
                for command in &plan.commands {
                    if let Command::Launch { stream, node, .. } = command {
                        assert_eq!(stream.index(), lanes.of(*node) as usize);
                    }
                }
                elide(&mut plan, &ElideOptions::default());
                check(&plan).unwrap_or_else(|e| panic!("{name}, lanes {seed}, elided:\n{e}"));
                *count += edges(&plan);
            }
        }
    }
    assert!(spared < plain, "{spared} waits with longer lifetimes, {plain} without");
}

#[test]
fn one_lane_changes_nothing() {
    let s = infer(inception(1, 32, 4));
    let options = LayoutOptions::default();
    let single = Lanes::single();
    let (a, b) = (layout(&s.graph, &options), layout_on(&s.graph, &options, &single));
    let (a, b) = (a.expect("a layout"), b.expect("a layout"));
    assert_eq!(a.table(&s.graph), b.table(&s.graph));
    let mut plan = s.plan(&a);
    let before = plan.clone();
    assert_eq!(spread(&mut plan, &single), Spread::default());
    assert_eq!(plan, before);
}

#[test]
fn branches_get_lanes_of_their_own_and_chains_do_not() {
    let cost = CostModel::named("h200", vdnn_cost::Precision::F32).expect("a profile");
    let chain = infer(vgg(1, 32, &[(4, 2), (8, 2)]));
    assert_eq!(assign(&chain.graph, &cost, 4).count(), 1);
    let branches = infer(inception(1, 32, 4));
    for limit in 1..=4 {
        let lanes = assign(&branches.graph, &cost, limit);
        assert!(lanes.count() <= limit && (limit == 1 || lanes.count() > 1), "{} of {limit}", lanes.count());
    }
    // Kernels of a device that each fills.
    let cost = CostModel::named("cpu", vdnn_cost::Precision::F32).expect("a profile");
    assert_eq!(assign(&branches.graph, &cost, 4).count(), 1);
    // Transfers stay with one stream.
    let training = selected(inception(1, 32, 4), true, true);
    let moving = scheduled(training, Policy::All, SyncMode::Event);
    let cost = CostModel::named("h200", vdnn_cost::Precision::F32).expect("a profile");
    assert_eq!(assign(&moving.graph, &cost, 4).count(), 1);
}

/// Accesses by range against one list per byte.
#[test]
fn accesses_agree_with_a_byte_array() {
    const N: u64 = 40;
    let mut state = 11u64;
    let mut next = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    for _ in 0..100 {
        let mut map = Accesses::default();
        let mut bytes: Vec<(Option<At>, Vec<At>)> = vec![(None, Vec::new()); N as usize];
        for count in 1..30 {
            let start = next(N - 1);
            let range = start..start + 1 + next(N - start - 1).min(9);
            let writes = next(2) == 0;
            let mut needed = vec![0; 3];
            map.conflicts(&range, writes, &mut needed);
            let mut want = vec![0; 3];
            for (write, reads) in &bytes[range.start as usize..range.end as usize] {
                for at in write.iter().chain(reads.iter().filter(|_| writes)) {
                    want[at.lane] = want[at.lane].max(at.count);
                }
            }
            assert_eq!(needed, want);
            let at = At { lane: next(3) as usize, count };
            map.note(&range, writes, at);
            for (write, reads) in &mut bytes[range.start as usize..range.end as usize] {
                if writes {
                    (*write, *reads) = (Some(at), Vec::new());
                } else {
                    reads.push(at);
                }
            }
        }
    }
}

#[test]
fn numbers_of_streams_parse_and_print() {
    for text in ["auto", "1", "4"] {
        assert_eq!(text.parse::<Streams>().map(|s| s.to_string()).as_deref(), Ok(text));
    }
    for text in ["0", "5", "", "Auto", "-1", "2.0"] {
        assert!(text.parse::<Streams>().is_err(), "{text}");
    }
    assert_eq!(Streams::Count(1).candidates().count(), 0);
    assert_eq!(Streams::Count(3).candidates().collect::<Vec<_>>(), [3]);
    assert_eq!(Streams::Auto.candidates().collect::<Vec<_>>(), [2, 3, 4]);
}
