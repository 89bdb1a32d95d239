//! The dynamic program against all divisions, and what the model says of a chain.

use super::*;
use crate::machine::{Machine, Target};
use crate::{Kind, Layer, Pointwise, Shape, Window};
use vdnn_ir::random::splitmix64;
use vdnn_ir::{Bytes, Nanos, Precision};

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

fn chain(channels: u64, extent: u64, layers: Vec<Layer>) -> Chain {
    Chain::new(Shape { channels, height: extent, width: extent }, vec![], layers).expect("a chain")
}

#[test]
fn no_other_division_is_cheaper() {
    for seed in 0..400 {
        let random = |i: u64| splitmix64(seed, i);
        let layers = 1 + random(0) as usize % 8;
        // Any layer by itself, and some groups.
        let price = |r: Range<usize>| {
            let x = random(100 + (r.start * 16 + r.end) as u64);
            (r.len() == 1 || !x.is_multiple_of(3)).then(|| 1 + x % (90 * r.len() as u64))
        };
        let found = least_division(layers, 0, |a, b| a + b, |r| Some((price(r.clone())?, r)));
        assert_eq!(found.last().map(|r| r.end), Some(layers));
        assert!(found.windows(2).all(|g| g[0].end == g[1].start) && found[0].start == 0);
        // Every subset of the inner borders is a division.
        let least = (0..1u32 << (layers - 1)).filter_map(|cuts| {
            let mut start = 0;
            let mut sum = 0;
            for end in 1..=layers {
                if end < layers && cuts >> (end - 1) & 1 == 0 {
                    continue;
                }
                sum += price(start..end)?;
                start = end;
            }
            Some(sum)
        });
        assert_eq!(found.into_iter().map(price).sum::<Option<u64>>(), least.min(), "seed {seed}");
    }
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
