//! The unit vectors of the seed's `test/dp.cpp` (3x3 convolution of 256 images, two made-up
//! kernels per size), more of the same model, and brute force.

use super::super::BatchSizes;
use super::*;
use vdnn_ir::random::splitmix64;

const MIB: u64 = 1 << 20;

/// A kernel that takes 0.1 ms an image and a MiB each, and one of 10 ms and a byte.
fn model(batch: u64, sizes: BatchSizes, below: u64) -> Vec<Kernel<bool>> {
    let mut all = Vec::new();
    for images in sizes.of(batch) {
        let mut push = |algo, time, workspace| {
            if workspace < below {
                all.push(Kernel { algo, images, workspace: Bytes(workspace), time: Nanos(time) });
            }
        };
        push(true, 100_000 * images + 10_000, images * MIB);
        push(false, 10_000_000 * images + 100_000, images);
    }
    all
}

/// Time in units of 10 us, workspace, launches; by time.
fn rows(front: &[Division<bool>]) -> Vec<(u64, u64, u64)> {
    front.iter().rev().map(|d| (d.time.0 / 10_000, d.workspace.0, d.launches())).collect()
}

const DP_CPP: [(u64, u64, u64); 15] = [
    (2568, 33_554_432, 8),
    (2576, 16_777_216, 16),
    (2592, 8_388_608, 32),
    (2624, 4_194_304, 64),
    (2688, 2_097_152, 128),
    (2816, 1_048_576, 256),
    (256_010, 256, 1),
    (256_020, 128, 2),
    (256_040, 64, 4),
    (256_080, 32, 8),
    (256_160, 16, 16),
    (256_320, 8, 32),
    (256_640, 4, 64),
    (257_280, 2, 128),
    (258_560, 1, 256),
];

#[test]
fn the_seeds_front_of_fifteen() {
    let kernels = model(256, BatchSizes::PowerOfTwo, 64 * MIB);
    assert_eq!(rows(&front(256, &kernels)), DP_CPP);
    let mut backwards = kernels.clone();
    backwards.reverse();
    assert_eq!(rows(&front(256, &backwards)), DP_CPP, "whatever the order");
    let best = divide(256, &kernels, Bytes(64 * MIB)).expect("a division");
    assert_eq!((best.time, best.workspace, best.launches()), (Nanos(25_680_000), Bytes(32 * MIB), 8));
    let inclusive = rows(&front(256, &model(256, BatchSizes::PowerOfTwo, 64 * MIB + 1)));
    assert_eq!((inclusive.len(), inclusive[0]), (16, (2564, 64 * MIB, 4)));
    assert_eq!(inclusive[1..], DP_CPP);
}

#[test]
fn other_sizes_and_batches() {
    let of = |batch, sizes| rows(&front(batch, &model(batch, sizes, 64 * MIB)));
    assert_eq!(of(256, BatchSizes::Undivided), [(256_010, 256, 1)]);
    let all = of(256, BatchSizes::All);
    assert_eq!(all.len(), 58, "sums of floats give more");
    let first = [(2565, 52 * MIB, 5), (2566, 43 * MIB, 6), (2567, 37 * MIB, 7), (2568, 32 * MIB, 8)];
    assert_eq!(all[..4], first);
    let best = divide(256, &model(256, BatchSizes::All, 64 * MIB), Bytes(64 * MIB)).expect("a division");
    assert_eq!((best.time.0 / 10_000, best.workspace.0, best.launches()), first[0]);
    // Not a power of two: the batch itself is a size all the same.
    let hundred = of(100, BatchSizes::PowerOfTwo);
    assert_eq!(hundred.len(), 14);
    assert_eq!(hundred[0], (1004, 32 * MIB, 4));
    assert!(hundred.contains(&(100_010, 100, 1)) && hundred.contains(&(100_030, 64, 3)));
    assert_eq!(
        of(5, BatchSizes::All),
        [
            (51, 5 * MIB, 1),
            (52, 3 * MIB, 2),
            (53, 2 * MIB, 3),
            (55, MIB, 5),
            (5010, 5, 1),
            (5020, 3, 2),
            (5030, 2, 3),
            (5050, 1, 5)
        ]
    );
}

/// Every multiset of kernels whose images add up to `batch`, as (time, workspace).
fn every(batch: u64, kernels: &[Kernel<usize>], from: usize, sum: (u64, u64), all: &mut Vec<(u64, u64)>) {
    if batch == 0 {
        all.push(sum);
        return;
    }
    for (i, k) in kernels.iter().enumerate().skip(from) {
        if k.images <= batch {
            let sum = (sum.0 + k.time.0, sum.1.max(k.workspace.0));
            every(batch - k.images, kernels, i, sum, all);
        }
    }
}

#[test]
fn random_instances_meet_brute_force() {
    for seed in 0..1500u64 {
        let draw = |i: u64, n: u64| splitmix64(seed, i) % n;
        let batch = 1 + draw(0, 8);
        let kernels: Vec<Kernel<usize>> = (0..1 + draw(1, 6))
            .map(|i| Kernel {
                algo: i as usize,
                images: 1 + draw(10 * i + 2, batch),
                workspace: Bytes(65_536 * draw(10 * i + 3, 6)),
                time: Nanos(1 + draw(10 * i + 4, 50)),
            })
            .collect();
        let mut all = Vec::new();
        every(batch, &kernels, 0, (0, 0), &mut all);
        let limit = 65_536 * draw(5, 6);
        let best = all.iter().filter(|s| s.1 <= limit).map(|s| s.0).min();
        let found = divide(batch, &kernels, Bytes(limit));
        assert_eq!(found.as_ref().map(|d| d.time.0), best, "seed {seed}");
        let mut expected: Vec<(u64, u64)> = all
            .iter()
            .filter(|a| !all.iter().any(|b| b.0 <= a.0 && b.1 <= a.1 && *b != **a))
            .copied()
            .collect();
        expected.sort_unstable_by_key(|e| e.1);
        expected.dedup();
        let front = front(batch, &kernels);
        let pairs: Vec<(u64, u64)> = front.iter().map(|d| (d.time.0, d.workspace.0)).collect();
        assert_eq!(pairs, expected, "seed {seed}");
        for d in front.iter().chain(&found) {
            let images: u64 = d.runs.iter().map(|(k, times)| k.images * times).sum();
            let time: u64 = d.runs.iter().map(|(k, times)| k.time.0 * times).sum();
            assert_eq!((images, time), (batch, d.time.0), "seed {seed}");
            assert!(d.runs.windows(2).all(|w| w[0].0.images > w[1].0.images));
        }
    }
}
