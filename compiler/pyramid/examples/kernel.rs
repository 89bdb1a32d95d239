//! Prints a pyramid as a tile program, or as CUDA C++ in strict f32:
//! `cargo run -p vdnn-pyramid --example kernel stem|pair|bottleneck "reuse 28x28 by 1" [cuda]`.

use vdnn_ir::Precision;
use vdnn_pyramid::cuda::{CudaOptions, cuda};
use vdnn_pyramid::machine::THREADS;
use vdnn_pyramid::{Chain, Kind, Layer, Pointwise, Program, Shape, Tiling, Window};

fn conv(out: u64, kernel: u64, stride: u64, padding: u64) -> Layer {
    let window = Window::square(kernel, stride, padding);
    Layer { kind: Kind::Conv { window, groups: 1, out, bias: true }, then: vec![Pointwise::Relu] }
}

fn pool(kernel: u64, stride: u64, padding: u64) -> Layer {
    Layer { kind: Kind::MaxPool { window: Window::square(kernel, stride, padding) }, then: vec![] }
}

#[expect(clippy::print_stdout, reason = "an example's result")]
fn main() -> Result<(), String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (channels, extent, layers) = match args.first().map(String::as_str) {
        // ResNet's first layers, VGG's, and a block of ResNet-50 without its residual.
        Some("stem") => (3, 224, vec![conv(64, 7, 2, 3), pool(3, 2, 1)]),
        Some("pair") => (3, 224, vec![conv(64, 3, 1, 1), conv(64, 3, 1, 1), pool(2, 2, 0)]),
        Some("bottleneck") => (256, 56, vec![conv(64, 1, 1, 0), conv(64, 3, 1, 1), conv(256, 1, 1, 0)]),
        _ => return Err("name stem, pair or bottleneck, then a tiling".to_owned()),
    };
    let tiling: Tiling = args.get(1).ok_or("give a tiling such as `recompute 8x8`")?.parse()?;
    let input = Shape { channels, height: extent, width: extent };
    let chain = Chain::new(input, vec![], layers).map_err(|e| e.to_string())?;
    let program = Program::new(&chain, tiling, Precision::F32).map_err(|e| e.to_string())?;
    if args.get(2).is_some_and(|a| a == "cuda") {
        let options = CudaOptions { threads: THREADS as u32, fma: true };
        print!("{}", cuda(&program, "pyramid", true, options).map_err(|e| e.to_string())?);
    } else {
        print!("{program}");
    }
    Ok(())
}
