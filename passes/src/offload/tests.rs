//! Tests of offload and prefetch.

use super::{InsertOffload, selection};
use crate::memory::testnet::*;
use crate::pass::{PassCtx, PassError, run_pass};
use crate::{Policy, SyncMode};
use std::collections::{BTreeMap, BTreeSet};
use vdnn_ir::{Bytes, Graph, NodeId, Op, Stage, ValueId};

fn place(graph: &Graph, policy: Policy, sync: SyncMode) -> (Graph, crate::Stats) {
    let mut graph = graph.clone();
    let cost = cost();
    let outcome = run_pass(&InsertOffload::new(policy, sync), &mut graph, &PassCtx { cost: &cost });
    (graph, outcome.expect("insert").stats)
}

fn names(graph: &Graph, policy: Policy) -> Vec<String> {
    let chosen = selection(graph, policy);
    chosen.offloaded.iter().map(|o| graph.node(o.layer).name.clone()).collect()
}

#[test]
fn all_takes_every_x_of_the_feature_extractor_and_conv_only_those_of_convolutions() {
    let g = selected(vgg(2, 16, &[(4, 2), (8, 1)]), true, false);
    assert_eq!(names(&g, Policy::All), ["conv1", "conv3", "pool5", "conv6", "pool8"]);
    assert_eq!(names(&g, Policy::Conv), ["conv1", "conv3", "conv6"]);
    assert!(names(&g, Policy::None).is_empty());
    assert!(names(&g, Policy::Baseline).is_empty());
    // The network input, three ReLU outputs before conv or pool, one pool output.
    let map = |n: u64, c: u64, s: u64| 4 * n * c * s * s;
    let bytes = map(2, 3, 16) + 2 * map(2, 4, 16) + map(2, 4, 8) + map(2, 8, 8);
    assert_eq!(selection(&g, Policy::All).bytes(&g), Bytes(bytes));
}

#[test]
fn batch_norm_and_global_average_pooling_count_as_layers_of_all() {
    let g = selected(resnet(2, 32, &[1]), true, false);
    let chosen = names(&g, Policy::All);
    assert!(chosen.iter().any(|n| n.starts_with("bn")));
    assert!(chosen.iter().any(|n| n.starts_with("gap")));
    assert!(!chosen.iter().any(|n| n.starts_with("fc") || n.starts_with("add") || n.starts_with("relu")));
    assert!(names(&g, Policy::Conv).iter().all(|n| n.starts_with("conv")));
}

#[test]
fn a_tensor_shared_by_branches_or_reached_through_a_reshape_is_offloaded_once() {
    let g = selected(inception(2, 32, 2), true, false);
    let chosen = selection(&g, Policy::All);
    let distinct: BTreeSet<ValueId> = chosen.offloaded.iter().map(|o| o.value).collect();
    assert_eq!(distinct.len(), chosen.offloaded.len());
    assert!(chosen.layers.len() > chosen.offloaded.len(), "branches share X");

    let mut n = Net::new("views");
    let x = n.input([2, 4, 6, 6]);
    let a = n.conv(x, 4, 3, 1, 1);
    let r = n.reshape(x, [2, 4, 4, 9]);
    let b = n.conv(r, 4, 3, 1, 1);
    let b = n.reshape(b, [2, 4, 6, 6]);
    let y = n.sum(a, b);
    let y = n.global_pool(y);
    let g = selected(n.finish(y), true, false);
    assert_eq!(names(&g, Policy::Conv), ["conv1"]);
    let (placed, stats) = place(&g, Policy::Conv, SyncMode::Event);
    assert_eq!((stats["offloads"], stats["prefetches"]), (1, 1));
    // Both weight gradients read the fetched bytes, one of them in the other shape.
    let back: BTreeSet<ValueId> =
        placed.nodes().filter(|(_, n)| n.op == Op::PrefetchDone).map(|(_, n)| n.outputs[0]).collect();
    let wgrads: Vec<ValueId> = placed
        .nodes()
        .filter(|(_, n)| matches!(n.op, Op::ConvWgrad { .. }))
        .map(|(_, n)| super::policy::view_root(&placed, n.inputs[0]))
        .collect();
    assert_eq!(wgrads.len(), 2);
    for root in wgrads {
        assert!(back.contains(&root), "{root} is not the fetched copy");
    }
}

#[test]
fn inference_moves_nothing_and_dyn_must_be_resolved() {
    let g = selected(vgg(2, 16, &[(4, 1)]), false, false);
    let (placed, stats) = place(&g, Policy::All, SyncMode::Event);
    assert_eq!(placed.order().len(), g.order().len());
    assert_eq!(stats["offload_bytes"], 0);
    let cost = cost();
    let pass = InsertOffload::new(Policy::Dyn, SyncMode::Event);
    let error = run_pass(&pass, &mut g.clone(), &PassCtx { cost: &cost });
    assert!(matches!(error, Err(PassError::Unsupported(_))));
}

/// For each started prefetch, the forward layer whose X it brings and the forward layer
/// whose backward pass it opens.
fn prefetches(g: &Graph) -> Vec<(String, String)> {
    let nodes: Vec<_> = g.nodes().collect();
    let mut out = Vec::new();
    for (p, (_, node)) in nodes.iter().enumerate() {
        if node.op == Op::PrefetchStart {
            let next = nodes[p..].iter().find(|(_, n)| !n.op.is_transfer()).expect("a reader follows");
            let name = |id: Option<NodeId>| g.node(id.expect("an origin")).name.clone();
            out.push((name(node.origin), name(next.1.origin)));
        }
    }
    out
}

#[test]
fn the_search_window_ends_at_the_next_convolution() {
    // MICRO 2016, figure 10. Under conv each X comes one convolution early; the deepest
    // already at the loss, because fully connected layers do not close the window.
    let g = selected(vgg(2, 32, &[(4, 2), (8, 2)]), true, false);
    let (placed, stats) = place(&g, Policy::Conv, SyncMode::Event);
    let expect = [("conv8", "loss"), ("conv6", "conv8"), ("conv3", "conv6"), ("conv1", "conv3")];
    let loss = |(a, b): (String, String)| (a, if b.contains("loss") { "loss".to_owned() } else { b });
    let got: Vec<(String, String)> = prefetches(&placed).into_iter().map(loss).collect();
    assert_eq!(got, expect.map(|(a, b)| (a.to_owned(), b.to_owned())));
    assert_eq!(stats["demand_prefetches"], 0);
    // Under all the distance is one layer with an X.
    let (placed, stats) = place(&g, Policy::All, SyncMode::Event);
    let order: Vec<String> = prefetches(&placed).into_iter().map(|(a, _)| a).collect();
    assert_eq!(order, ["pool10", "conv8", "conv6", "pool5", "conv3", "conv1"]);
    assert_eq!(stats["demand_prefetches"], 0);
}

#[test]
fn what_backward_makes_again_does_not_leave_the_device() {
    let net = || densenet(2, 32, &[3, 2]);
    let (kept, again) = (joined(net()), recomputed(net()));
    for policy in [Policy::Conv, Policy::All] {
        let (_, stats) = place(&again, policy, SyncMode::Event);
        assert_eq!(stats["offload_bytes"], stats["prefetch_bytes"], "{policy}: nothing leaves for nothing");
        assert!(4 * stats["demand_prefetches"] < stats["prefetches"], "{policy}: {stats:?}");
        let before = selection(&kept, policy).bytes(&kept).0;
        assert!(stats["offload_bytes"] < before, "{policy}: {} of {before}", stats["offload_bytes"]);
    }
}

#[test]
fn the_pieces_that_a_batch_norm_joins_are_fetched_together_a_layer_ahead() {
    let g = joined(densenet(2, 32, &[3, 2]));
    let (placed, stats) = place(&g, Policy::All, SyncMode::Event);
    let chosen = selection(&g, Policy::All);
    let of = |layer: NodeId| chosen.layers.iter().filter(move |l| l.0 == layer).map(|l| l.1);
    let most = chosen.layers.iter().map(|l| of(l.0).count()).max();
    assert_eq!(most, Some(4), "what the second block's batch norm joins");
    assert_eq!(stats["demand_prefetches"], 0);
    check_order(&placed, SyncMode::Event);
    // All but the loss's neighbours come while a convolution's gradients are computed.
    let nodes: Vec<_> = placed.nodes().map(|(_, n)| n).collect();
    let joins: Vec<usize> = nodes
        .iter()
        .enumerate()
        .filter(|(_, n)| matches!(n.op, Op::BatchNormReluGradJoined { .. }))
        .map(|(p, _)| p)
        .collect();
    assert!(joins.len() >= 5);
    for p in joins {
        for x in &nodes[p].inputs {
            let Some(done) = placed.def_node(*x).filter(|d| placed.node(*d).op == Op::PrefetchDone) else {
                continue;
            };
            let start = placed.def_node(placed.node(done).inputs[0]).expect("a start");
            let start = nodes.iter().position(|n| std::ptr::eq(*n, placed.node(start))).expect("a place");
            let between = nodes[start..p].iter().filter(|n| !n.op.is_transfer()).count();
            assert!(between > 0, "{} waits for a copy that has just started", nodes[p].name);
        }
    }
}

/// Positions of start, done, first forward layer and readers of each offloaded tensor.
fn check_order(g: &Graph, sync: SyncMode) {
    let at = g.positions();
    let pos = |n: NodeId| at[n.0 as usize];
    let mut done_of: BTreeMap<ValueId, NodeId> = BTreeMap::new();
    let mut starts = 0;
    for (id, node) in g.nodes() {
        match node.op {
            Op::OffloadStart => {
                starts += 1;
                let x = node.inputs[0];
                let done = g
                    .value(node.outputs[0])
                    .users()
                    .iter()
                    .copied()
                    .find(|&u| g.node(u).op == Op::OffloadDone);
                let done = done.expect("every start has a done");
                done_of.insert(x, done);
                let next = g.order()[pos(id) as usize + 1];
                assert!(!g.node(next).op.is_transfer() || g.node(next).op == Op::OffloadDone);
                for &reader in g.value(x).users() {
                    let reader = g.node(reader);
                    assert!(
                        matches!(reader.stage, Stage::Forward),
                        "{} reads an offloaded tensor in backward",
                        reader.name
                    );
                }
                if sync == SyncMode::Layer {
                    assert_eq!(pos(done), pos(id) + 2, "start, the layer, done");
                }
            }
            Op::PrefetchStart => {
                let done = g.value(node.outputs[0]).users();
                assert_eq!(done.len(), 1);
                let back = g.node(done[0]).outputs[0];
                for &reader in g.value(back).users() {
                    assert!(pos(reader) > pos(done[0]) && pos(done[0]) > pos(id));
                }
            }
            _ => {}
        }
    }
    assert_eq!(starts, done_of.len());
}

#[test]
fn starts_and_dones_enclose_what_they_must() {
    for net in
        [vgg(2, 32, &[(4, 2), (8, 2)]), resnet(2, 32, &[2, 1]), densenet(2, 32, &[3, 2]), inception(2, 32, 3)]
    {
        let g = selected(net, true, false);
        for policy in [Policy::All, Policy::Conv] {
            for sync in [SyncMode::Event, SyncMode::Layer] {
                let (placed, stats) = place(&g, policy, sync);
                check_order(&placed, sync);
                assert_eq!(stats["offload_bytes"], selection(&g, policy).bytes(&g).0);
            }
        }
    }
}

#[test]
fn event_sync_waits_for_a_copy_only_after_the_next_has_started() {
    let g = selected(vgg(2, 32, &[(4, 2), (8, 2)]), true, false);
    let (placed, _) = place(&g, Policy::Conv, SyncMode::Event);
    let transfers: Vec<String> = placed
        .nodes()
        .filter(|(_, n)| matches!(n.op, Op::OffloadStart | Op::OffloadDone))
        .map(|(_, n)| n.name.clone())
        .collect();
    assert_eq!(
        transfers,
        [
            "conv1/offload",
            "conv3/offload",
            "conv1/offloaded",
            "conv6/offload",
            "conv3/offloaded",
            "conv8/offload",
            "conv6/offloaded",
            "conv8/offloaded"
        ]
    );
}

#[test]
fn a_skip_connection_keeps_its_tensor_until_the_last_forward_reader() {
    let mut n = Net::new("skip");
    let x = n.input([2, 4, 8, 8]);
    let x = n.conv(x, 4, 3, 1, 1);
    let x = n.relu(x);
    let mut y = x;
    for _ in 0..3 {
        y = n.conv(y, 4, 3, 1, 1);
        y = n.relu(y);
    }
    let y = n.sum(y, x);
    let y = n.conv(y, 4, 3, 1, 1);
    let y = n.global_pool(y);
    let g = selected(n.finish(y), true, false);
    let (placed, _) = place(&g, Policy::Conv, SyncMode::Event);
    let names: Vec<&str> = placed.nodes().map(|(_, n)| n.name.as_str()).collect();
    let at = |name: &str| names.iter().position(|n| *n == name).expect(name);
    assert!(at("conv3/offload") < at("conv3"));
    assert_eq!(at("conv3/offloaded"), at("add9") + 1, "{names:?}");
}
