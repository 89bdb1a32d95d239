//! Writes kernels of some pyramids on the matrix units to a folder, many ways of each, and a list of
//! how to run them, for tests/gpu/pyramids.py:
//! `cargo run -p vdnn-pyramid --example tensor -- FOLDER [BATCH [NAME CONFIG]]`.

use std::fmt::Write;
use vdnn_ir::Precision;
use vdnn_ir::types::Layout;
use vdnn_pyramid::kernel::{Config, configs, kernel};
use vdnn_pyramid::machine::Machine;
use vdnn_pyramid::tensor::{Tensor, Units};
use vdnn_pyramid::{Chain, Kind, Layer, Pointwise, Shape, Window};

fn conv(out: u64, kernel: u64, stride: u64, padding: u64) -> Layer {
    let window = Window::square(kernel, stride, padding);
    Layer { kind: Kind::Conv { window, groups: 1, out, bias: true }, then: vec![Pointwise::Relu] }
}

fn pool(kernel: u64, stride: u64, padding: u64) -> Layer {
    Layer { kind: Kind::MaxPool { window: Window::square(kernel, stride, padding) }, then: vec![] }
}

fn residual(mut layer: Layer) -> Layer {
    layer.then = vec![Pointwise::Add, Pointwise::Relu];
    layer
}

/// Most ways per chain.
const WAYS: usize = 14;

/// ResNet's first layers, VGG's, ResNet-50's blocks of the first stage.
fn chains() -> Vec<(&'static str, u64, u64, Vec<Layer>)> {
    let bottleneck = || vec![conv(64, 1, 1, 0), conv(64, 3, 1, 1), residual(conv(256, 1, 1, 0))];
    vec![
        ("stem", 3, 224, vec![conv(64, 7, 2, 3), pool(3, 2, 1)]),
        ("vgg1", 3, 224, vec![conv(64, 3, 1, 1), conv(64, 3, 1, 1), pool(2, 2, 0)]),
        ("vgg1b", 64, 224, vec![conv(64, 3, 1, 1), pool(2, 2, 0)]),
        ("block1", 64, 56, bottleneck()),
        ("block2", 256, 56, bottleneck()),
        ("tail2", 64, 56, vec![conv(64, 3, 1, 1), residual(conv(256, 1, 1, 0))]),
    ]
}

fn main() -> Result<(), String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let folder = std::path::Path::new(args.first().ok_or("name a folder")?);
    let batch: u64 = args.get(1).map_or(Ok(64), |b| b.parse()).map_err(|_| "a batch is a number")?;
    let machine = Machine::named("h200").ok_or("no profile")?;
    let mut list = String::new();
    for (name, channels, extent, layers) in chains() {
        let input = Shape { channels, height: extent, width: extent };
        let chain = Chain::new(input, vec![], layers).map_err(|e| e.to_string())?;
        for precision in [Precision::Tf32, Precision::Bf16] {
            let wanted: Vec<Config> = match args.get(3) {
                Some(config) if args.get(2).is_some_and(|n| n == name) => vec![config.parse()?],
                Some(_) => vec![],
                // The best tiles of every other way.
                None => {
                    let mut all = vdnn_pyramid::tensor::configs(&chain, precision, batch, &machine);
                    all.sort();
                    let mut ways = Vec::new();
                    all.retain(|(_, t)| {
                        let way = (t.workers, t.groups, t.slots, t.slice, t.streamed);
                        let new = ways.iter().filter(|w| **w == way).count() < 1;
                        ways.push(way);
                        new
                    });
                    let all = all.into_iter().take(WAYS).map(|(_, t)| Config::Tensor(t)).collect::<Vec<_>>();
                    let first = configs(&chain, precision, Layout::ChannelsLast, batch, &machine);
                    let rest = first.into_iter().filter(|c| !all.contains(c)).take(4).collect::<Vec<_>>();
                    let mut ways: Vec<Config> = all.into_iter().chain(rest).collect();
                    // The same by the instructions of a warp, to tell faults of one from the other's.
                    if let Some(&Config::Tensor(first)) = ways.first() {
                        ways.push(Config::Tensor(Tensor { units: Units::Warp, ..first }));
                    }
                    ways
                }
            };
            for (i, config) in wanted.iter().enumerate() {
                let k = kernel(&chain, config, precision, Layout::ChannelsLast, batch)
                    .map_err(|e| e.to_string())?;
                let file = format!("{name}-{precision}-{i}.cu");
                std::fs::write(folder.join(&file), &k.source).map_err(|e| e.to_string())?;
                let _ = writeln!(
                    list,
                    "{name} {precision} {file} {} {} {} {batch} {config}",
                    k.grid[0], k.threads, k.shared.0
                );
            }
        }
    }
    std::fs::write(folder.join("list"), list).map_err(|e| e.to_string())
}
