//! The dynamic program against all divisions, and what the model says of well-known chains.

use super::*;
use crate::machine::Machine;
use crate::{Layer, Pointwise, Shape, Window};
use vdnn_ir::random::splitmix64;
use vdnn_ir::{Bytes, Precision};

fn target(precision: Precision) -> Target {
    let peak = match precision {
        Precision::F32 => 50_600.0,
        Precision::Tf32 => 397_000.0,
        Precision::Bf16 => 790_000.0,
    };
    let machine = Machine::named("h200").expect("a machine");
    Target { machine, precision, peak, bandwidth: 4200.0, launch: Nanos(2500) }
}

fn conv(out: u64, kernel: u64, stride: u64, padding: u64) -> Layer {
    let window = Window::square(kernel, stride, padding);
    Layer { kind: Kind::Conv { window, groups: 1, out, bias: true }, then: vec![Pointwise::Relu] }
}

fn pool(kernel: u64, stride: u64, padding: u64) -> Layer {
    Layer { kind: Kind::MaxPool { window: Window::square(kernel, stride, padding) }, then: vec![] }
}

fn chain(channels: u64, extent: u64, layers: Vec<Layer>) -> Chain {
    Chain::new(Shape { channels, height: extent, width: extent }, vec![], layers).expect("a chain")
}

fn fused(time: u64) -> Fused {
    let estimate = Estimate {
        recompute: 1.0,
        shared: Bytes::ZERO,
        registers: 0,
        blocks: 1,
        utilisation: 1.0,
        memory: Bytes::ZERO,
        cache: Bytes::ZERO,
        time: Nanos(time),
    };
    Fused { tiling: Tiling::square(1), estimate }
}

#[test]
fn no_other_division_is_faster() {
    for seed in 0..400 {
        let random = |i: u64| splitmix64(seed, i);
        let layers = 1 + random(0) as usize % 8;
        let alone: Vec<Nanos> = (0..layers as u64).map(|l| Nanos(1 + random(1 + l) % 100)).collect();
        let price = |r: Range<usize>| {
            let x = random(100 + (r.start * 16 + r.end) as u64);
            (!x.is_multiple_of(3)).then(|| fused(1 + x % (90 * r.len() as u64)))
        };
        let found = divide(layers, &alone, &price);
        let ends: Vec<usize> = found.groups.iter().map(|g| g.layers.end).collect();
        assert_eq!(ends.last(), Some(&layers));
        assert!(found.groups.windows(2).all(|g| g[0].layers.end == g[1].layers.start));
        // Every subset of the inner borders is a division.
        let least = (0..1u32 << (layers - 1)).filter_map(|cuts| {
            let mut start = 0;
            let mut sum = 0;
            for end in 1..=layers {
                if end < layers && cuts >> (end - 1) & 1 == 0 {
                    continue;
                }
                sum += match end - start {
                    1 => alone[start].0,
                    _ => price(start..end)?.estimate.time.0,
                };
                start = end;
            }
            Some(sum)
        });
        assert_eq!(Some(found.time().0), least.min(), "seed {seed}");
    }
}

#[test]
fn a_stem_is_fused_and_a_deep_pair_is_not() {
    let limits = Limits::default();
    for precision in [Precision::Tf32, Precision::Bf16] {
        let target = target(precision);
        let stem = chain(3, 224, vec![conv(64, 7, 2, 3), pool(3, 2, 1)]);
        let found = search(&stem, &unfused(&stem, &target, 32), &target, 32, limits);
        assert_eq!(found.groups.len(), 1, "{precision}");
        let estimate = &found.groups[0].fused.as_ref().expect("fused").estimate;
        assert!(estimate.shared <= target.machine.shared && estimate.recompute < 1.5);
        assert!(found.groups[0].gain() >= limits.gain && found.time() < found.unfused());
        // As much arithmetic per byte as the machine has, before any fusion.
        let pair = chain(256, 56, vec![conv(256, 3, 1, 1), conv(256, 3, 1, 1)]);
        let found = search(&pair, &unfused(&pair, &target, 32), &target, 32, limits);
        assert!(found.groups.iter().all(|g| g.fused.is_none()), "{precision}");
        assert_eq!(found.time(), found.unfused());
    }
}

#[test]
fn depth_and_shared_memory_bound_the_groups() {
    let mut target = target(Precision::Bf16);
    let layers = vec![conv(16, 1, 1, 0), conv(16, 3, 1, 1), conv(16, 1, 1, 0), conv(16, 3, 1, 1)];
    let chain = chain(16, 112, layers);
    let alone = unfused(&chain, &target, 256);
    for depth in 1..=3 {
        let found = search(&chain, &alone, &target, 256, Limits { depth, gain: 1.0 });
        assert!(found.groups.iter().all(|g| g.layers.len() <= depth));
        assert_eq!(found.groups.iter().any(|g| g.fused.is_some()), depth > 1);
    }
    target.machine.shared = Bytes(512);
    let found = search(&chain, &alone, &target, 256, Limits::default());
    assert!(found.groups.iter().all(|g| g.fused.is_none()));
}

#[test]
fn few_blocks_leave_multiprocessors_idle() {
    let target = target(Precision::Tf32);
    assert_eq!(target.utilisation(132), 1.0);
    assert_eq!(target.utilisation(66), 0.5);
    assert_eq!(target.utilisation(133), 133.0 / 264.0);
    let chain = chain(64, 14, vec![conv(64, 3, 1, 1), conv(64, 3, 1, 1)]);
    let one = estimate(&chain, Tiling::square(14), &target, 1).expect("an estimate");
    assert_eq!((one.blocks, one.utilisation), (1, 1.0 / 132.0));
    assert_eq!(one.recompute, 1.0);
    assert_eq!(one.registers, 40 + 64 * 14 * 14 / 256);
    assert_eq!(one.shared, Bytes(64 * 16 * 16 * 4 * 2));
    // The image and the result once, two kernels and biases.
    assert_eq!(one.memory, Bytes(4 * (2 * 64 * 14 * 14 + 2 * 64 * 64 * 9 + 2 * 64)));
}
