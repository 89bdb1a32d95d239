//! Predicted times of kernels for matrix units beside measured ones.

use std::collections::BTreeMap;
use vdnn_ir::Precision;
use vdnn_ir::types::Layout;
use vdnn_pyramid::kernel::{Config, configs};
use vdnn_pyramid::machine::Machine;
use vdnn_pyramid::{Chain, Kind, Layer, Pointwise, Shape, Window, tensor};

const BATCH: u64 = 64;

fn conv(out: u64, kernel: u64, stride: u64, padding: u64) -> Layer {
    let window = Window::square(kernel, stride, padding);
    Layer { kind: Kind::Conv { window, groups: 1, out, bias: true }, then: vec![Pointwise::Relu] }
}

fn pool(kernel: u64, stride: u64, padding: u64) -> Layer {
    Layer { kind: Kind::MaxPool { window: Window::square(kernel, stride, padding) }, then: vec![] }
}

/// The chains of `examples/tensor.rs`.
fn chain(name: &str) -> Chain {
    let added = || Layer { then: vec![Pointwise::Add, Pointwise::Relu], ..conv(256, 1, 1, 0) };
    let (channels, extent, layers) = match name {
        "stem" => (3, 224, vec![conv(64, 7, 2, 3), pool(3, 2, 1)]),
        "vgg1" => (3, 224, vec![conv(64, 3, 1, 1), conv(64, 3, 1, 1), pool(2, 2, 0)]),
        "vgg1b" => (64, 224, vec![conv(64, 3, 1, 1), pool(2, 2, 0)]),
        "block1" => (64, 56, vec![conv(64, 1, 1, 0), conv(64, 3, 1, 1), added()]),
        "block2" => (256, 56, vec![conv(64, 1, 1, 0), conv(64, 3, 1, 1), added()]),
        "tail2" => (64, 56, vec![conv(64, 3, 1, 1), added()]),
        _ => panic!("a chain called {name}"),
    };
    Chain::new(Shape { channels, height: extent, width: extent }, vec![], layers).expect("a chain")
}

/// Times of one chain, in microseconds.
struct Measured {
    chain: Chain,
    precision: Precision,
    unfused: f64,
    kernels: BTreeMap<Config, f64>,
}

fn measured() -> Vec<Measured> {
    let mut all: Vec<Measured> = Vec::new();
    for line in include_str!("h200.measured").lines().filter(|l| !l.starts_with('#')) {
        let time = |text: &str| text.parse::<f64>().expect("a time");
        let words: Vec<&str> = line.splitn(2, ' ').collect();
        if let Some((precision, unfused)) = words[1].split_once(" unfused ") {
            let precision = precision.parse().expect("a precision");
            let (chain, kernels) = (chain(words[0]), BTreeMap::new());
            all.push(Measured { chain, precision, unfused: time(unfused), kernels });
        } else {
            let config = words[1].parse().expect("a configuration");
            all.last_mut().expect("a chain first").kernels.insert(config, time(words[0]));
        }
    }
    all
}

fn predicted(m: &Measured, config: &Config) -> f64 {
    let Config::Tensor(config) = config else { panic!("{config}") };
    tensor::predict(&m.chain, config, m.precision, BATCH).expect("a kernel").as_f64() / 1e3
}

#[test]
fn predictions_are_near_what_was_measured() {
    let mut errors = Vec::new();
    for m in measured() {
        for (config, time) in &m.kernels {
            let error = predicted(&m, config) / time - 1.0;
            assert!(error.abs() < 0.26, "{config}: {error:+.2} of {time}");
            errors.push(error.abs());
        }
    }
    errors.sort_by(f64::total_cmp);
    assert_eq!(errors.len(), 172);
    assert!(errors[errors.len() / 2] < 0.05, "median {}", errors[errors.len() / 2]);
}

#[test]
fn the_first_choice_is_near_the_best_that_was_measured() {
    let machine = Machine::named("h200").expect("a machine");
    for m in measured() {
        let best = m.kernels.values().copied().fold(f64::INFINITY, f64::min);
        let first =
            *configs(&m.chain, m.precision, Layout::ChannelsLast, BATCH, &machine).first().expect("a way");
        // One chain has a way of the same predicted time in front that was not measured.
        if let Some(time) = m.kernels.get(&first) {
            assert!(*time <= 1.08 * best, "{first}: {time}, best {best}");
        }
        let expected = predicted(&m, &first);
        let rule = |fused: f64| m.unfused >= 1.15 * fused;
        assert_eq!(rule(expected), rule(best), "{first}: predicted {expected}, {best} of {}", m.unfused);
    }
}
