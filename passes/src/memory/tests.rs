//! Tests of the memory layout.

use super::pack::{Block, pack};
use super::testnet::*;
use super::{Layout, LayoutError, LayoutOptions, StorageKind, layout};
use crate::{Policy, SyncMode};
use vdnn_ir::graph::Update;
use vdnn_ir::{Bytes, Graph, Op, ParamRole, Space, TensorType};
use vdnn_plan::plan::ALIGNMENT;

/// A small deterministic generator (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

fn random_blocks(r: &mut Random, n: u64, times: u64) -> Vec<Block> {
    (0..n)
        .map(|_| {
            let start = r.below(times) as u32;
            let longest = if r.below(4) == 0 { times } else { 6 };
            let len = 1 + r.below(longest) as u32;
            let pages = r.below(9) * (1 + r.below(50));
            let size = Bytes(pages * ALIGNMENT);
            Block { size, live: start..start + len }
        })
        .collect()
}

fn disjoint(a: (Bytes, Bytes), b: (Bytes, Bytes)) -> bool {
    a.1 <= b.0 || b.1 <= a.0
}

#[test]
fn random_blocks_live_together_never_share_bytes() {
    let mut r = Random(1);
    for round in 0..60 {
        let (n, times) = (r.below(80), 1 + r.below(60));
        let blocks = random_blocks(&mut r, n, times);
        let p = pack(&blocks);
        assert_eq!(p, pack(&blocks), "the same input gives the same packing");
        assert!(p.lower_bound <= p.height, "round {round}");
        let range = |i: usize| (p.offsets[i], p.offsets[i] + blocks[i].size);
        for i in 0..blocks.len() {
            assert!(range(i).1 <= p.height && p.offsets[i].0.is_multiple_of(ALIGNMENT));
            for j in 0..i {
                let (a, b) = (&blocks[i], &blocks[j]);
                let together = a.live.start < b.live.end && b.live.start < a.live.end;
                let empty = a.size.0 == 0 || b.size.0 == 0;
                assert!(!together || empty || disjoint(range(i), range(j)), "round {round}: {i} and {j}");
            }
        }
        // The bound by its definition.
        let live = |t: u32| blocks.iter().filter(|b| b.live.contains(&t)).map(|b| b.size.0).sum::<u64>();
        assert_eq!(p.lower_bound.0, (0..200).map(live).max().unwrap_or(0));
    }
}

#[test]
fn blocks_cut_from_a_rectangle_are_put_back_together() {
    // Every moment is full, so a packing at the bound exists and leaves no gap anywhere.
    let mut r = Random(7);
    for round in 0..40 {
        let (height, times) = (64, 40);
        let mut parts = vec![(height, 0u32..times)];
        while parts.len() < 24 {
            let at = r.below(parts.len() as u64) as usize;
            let (size, live) = parts.swap_remove(at);
            let (t, by_time) = ((live.end - live.start) as u64, r.below(2) == 0);
            if by_time && t > 1 {
                let cut = live.start + 1 + r.below(t - 1) as u32;
                parts.extend([(size, live.start..cut), (size, cut..live.end)]);
            } else if !by_time && size > 1 {
                let cut = 1 + r.below(size - 1);
                parts.extend([(cut, live.clone()), (size - cut, live)]);
            } else {
                parts.push((size, live));
            }
        }
        let block = |(size, live)| Block { size: Bytes(size * ALIGNMENT), live };
        let p = pack(&parts.into_iter().map(block).collect::<Vec<_>>());
        assert_eq!(p.lower_bound, Bytes(height * ALIGNMENT));
        assert_eq!(p.height, p.lower_bound, "round {round}");
    }
}

#[test]
fn nothing_to_pack_takes_nothing() {
    let p = pack(&[]);
    assert_eq!((p.height, p.lower_bound), (Bytes::ZERO, Bytes::ZERO));
    let p = pack(&[Block { size: Bytes::ZERO, live: 0..3 }, Block { size: Bytes(256), live: 1..1 }]);
    assert_eq!(p.height, Bytes::ZERO);
}

/// Checks a layout against the definition: all storages live at a position are disjoint.
fn assert_sound(l: &Layout) {
    let all: Vec<_> = l.storages.values().collect();
    for (i, a) in all.iter().enumerate() {
        let end = |s: &super::Storage| s.offset + s.bytes;
        let arena = if a.space == Space::Host { l.host_bytes } else { l.device_bytes };
        assert!(end(a) <= arena && a.offset.0.is_multiple_of(ALIGNMENT), "{a:?}");
        for b in &all[..i] {
            let together = a.live.start < b.live.end && b.live.start < a.live.end;
            let meet = a.space == b.space && !disjoint((a.offset, end(a)), (b.offset, end(b)));
            assert!(!(together && meet), "{a:?} and {b:?}");
        }
    }
    assert!(l.live_profile.iter().all(|&b| b <= l.lower_bound));
    assert_eq!(l.live_profile[l.peak_position as usize], l.lower_bound);
}

fn nets() -> Vec<(&'static str, Graph)> {
    vec![
        ("vgg", vgg(64, 64, &[(64, 2), (128, 2), (256, 3)])),
        ("resnet", resnet(64, 128, &[3, 4, 6, 3])),
        ("densenet", densenet(64, 128, &[6, 12, 24, 16])),
        ("inception", inception(64, 128, 9)),
    ]
}

#[test]
fn arenas_are_sound_and_within_two_percent_of_the_bound() {
    for (name, net) in nets() {
        for fastest in [false, true] {
            let net = selected(net.clone(), true, fastest);
            for policy in [Policy::None, Policy::Baseline, Policy::All, Policy::Conv] {
                for sync in [SyncMode::Event, SyncMode::Layer] {
                    let l = scheduled(net.clone(), policy, sync).layout(policy);
                    let ratio = l.device_bytes.as_f64() / l.lower_bound.as_f64();
                    assert!(ratio <= 1.02, "{name} {policy} {sync}: {ratio}");
                    assert!(l.host_bytes.as_f64() <= 1.02 * l.host_lower_bound.as_f64());
                    if sync == SyncMode::Event {
                        assert_sound(&l);
                    }
                }
            }
        }
    }
}

#[test]
fn an_offloaded_tensor_lives_until_compute_has_waited_for_the_copy() {
    let net = selected(vgg(4, 32, &[(8, 2), (16, 2)]), true, false);
    let s = scheduled(net, Policy::All, SyncMode::Event);
    let l = s.layout(Policy::All);
    let at = s.graph.positions();
    let mut dones = 0;
    for (id, node) in s.graph.nodes() {
        let p = at[id.0 as usize];
        let live = |operand: usize| {
            let storage = l.storage_of[node.inputs[operand]].expect("a storage");
            &l.storages[storage].live
        };
        match node.op {
            Op::OffloadDone => assert!(live(1).contains(&p), "the source is there until the wait"),
            Op::PrefetchDone => assert!(live(1).contains(&p), "the host copy is there until the wait"),
            _ => continue,
        }
        dones += 1;
    }
    assert!(dones > 4);
}

#[test]
fn the_baseline_of_a_chain_has_two_gradient_buffers_and_one_workspace() {
    let net = selected(vgg(8, 32, &[(16, 2), (32, 2)]), true, true);
    let s = scheduled(net, Policy::Baseline, SyncMode::Event);
    let l = s.layout(Policy::Baseline);
    assert_sound(&l);
    let of = |kind: StorageKind| l.storages.values().filter(move |s| s.kind == kind);
    let mut offsets: Vec<Bytes> = of(StorageKind::Gradient).map(|s| s.offset).collect();
    offsets.sort_unstable();
    offsets.dedup();
    assert_eq!(offsets.len(), 2, "dY and dX");
    assert!(
        of(StorageKind::Workspace)
            .map(|s| s.offset)
            .all(|o| o == { of(StorageKind::Workspace).next().expect("a workspace").offset })
    );
    let size = |kind| of(kind).map(|s| s.bytes.align_up(ALIGNMENT)).sum::<Bytes>();
    let largest = |kind| of(kind).map(|s| s.bytes.align_up(ALIGNMENT)).max().unwrap_or_default();
    let fixed = l.persistent_bytes
        + size(StorageKind::Input)
        + size(StorageKind::Activation)
        + size(StorageKind::WeightGradient);
    let shared = largest(StorageKind::Gradient) + largest(StorageKind::Workspace);
    assert!(l.device_bytes >= fixed + shared);
    assert!(l.device_bytes <= fixed + shared + largest(StorageKind::Gradient));
    assert_eq!(l.device_bytes, l.lower_bound);
    assert!(l.live_profile.iter().all(|&b| b == l.device_bytes));
}

#[test]
fn offloading_needs_less_memory_than_keeping_and_keeping_less_than_the_baseline() {
    let net = selected(resnet(32, 64, &[2, 2]), true, false);
    let peak = |policy| scheduled(net.clone(), policy, SyncMode::Event).layout(policy).device_bytes;
    let [all, none, base] = [Policy::All, Policy::None, Policy::Baseline].map(peak);
    assert!(all < none && none < base, "{all} {none} {base}");
}

#[test]
fn updates_and_views_share_the_bytes_they_stand_for() {
    let net = selected(vgg(4, 32, &[(8, 1)]), true, false);
    let s = scheduled(net, Policy::None, SyncMode::Event);
    let l = s.layout(Policy::None);
    for u in &s.graph.updates {
        assert_eq!(l.storage_of[u.param], l.storage_of[u.value]);
        let storage = &l.storages[l.storage_of[u.param].expect("a storage")];
        assert_eq!(storage.kind, StorageKind::Persistent);
        assert!(storage.kept && storage.offset < l.persistent_bytes);
    }
    for (_, node) in s.graph.nodes() {
        if matches!(node.op, Op::Reshape { .. }) {
            assert_eq!(l.place(node.inputs[0]), l.place(node.outputs[0]));
        }
    }
}

#[test]
fn the_peak_is_explained_by_its_largest_parts() {
    let net = selected(vgg(16, 64, &[(16, 2), (32, 2)]), true, false);
    let s = scheduled(net, Policy::None, SyncMode::Event);
    let l = s.layout(Policy::None);
    let all = l.peak_contributors(&s.graph, usize::MAX);
    assert_eq!(all.iter().map(|c| c.bytes).sum::<Bytes>(), l.lower_bound);
    assert!(all.windows(2).all(|w| w[0].bytes >= w[1].bytes));
    assert_eq!(all[0].name, "parameters");
    assert!(all.iter().any(|c| c.name == "conv1"), "{all:?}");
    assert_eq!(l.peak_contributors(&s.graph, 2), all[..2]);
}

#[test]
fn an_inference_net_keeps_its_output_and_reuses_the_rest() {
    let net = selected(vgg(4, 64, &[(16, 4)]), false, false);
    let s = scheduled(net, Policy::All, SyncMode::Event);
    let l = s.layout(Policy::All);
    assert_sound(&l);
    assert_eq!(l.host_bytes, Bytes::ZERO);
    let map = TensorType::f32([4, 16, 64, 64]).bytes();
    assert_eq!(l.lower_bound - l.persistent_bytes, map + map, "X and Y of one convolution");
    let out = l.storage_of[s.graph.outputs[0].value].expect("a storage");
    assert_eq!(l.storages[out].live.end as usize, s.graph.order().len());
    assert!(l.storages[out].kept);
}

#[test]
fn an_empty_graph_has_an_empty_layout() {
    let l = layout(&Graph::new("empty"), &LayoutOptions::default()).expect("a layout");
    assert_eq!((l.device_bytes, l.host_bytes, l.live_profile.len()), (Bytes::ZERO, Bytes::ZERO, 1));
}

#[test]
fn impossible_layouts_say_why() {
    let mut g = Graph::new("huge");
    for i in 0..3 {
        g.add_input(format!("x{i}"), TensorType::f32([1 << 60]));
    }
    assert_eq!(layout(&g, &LayoutOptions::default()).err(), Some(LayoutError::TooLarge));

    let mut g = Graph::new("swap");
    let p = g.add_param("p", TensorType::f32([4]), ParamRole::Trainable);
    let q = g.add_param("q", TensorType::f32([4]), ParamRole::Trainable);
    g.updates.push(Update { param: p, value: q });
    let error = layout(&g, &LayoutOptions::default()).expect_err("two parameters, one place");
    assert!(error.to_string().contains("`p` and `q`"), "{error}");
}
