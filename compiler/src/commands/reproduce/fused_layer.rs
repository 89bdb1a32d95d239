//! `vdnnc reproduce fused-layer`: traffic, buffers and recomputation of fused-layer accelerators
//! (Alwani, Chen, Ferdman and Milder, MICRO 2016) from our geometry, and the inner border of the
//! MNIST network of a student project that brought the idea to a GPU.
//!
//! The paper's figures are of one image in f32 on an FPGA. The rules by which ours are counted:
//!
//! - Fused, the input is read and the last result written, once each; weights are not counted.
//! - Reuse buffers are the rows that the buffer in front of each layer keeps from one row of its
//!   result to the next, kernel less stride, over the padded width.
//! - Unfused, every layer reads its input and writes its result once. The paper's 77 MB lies
//!   between pools merged into the convolution in front of them and pools by themselves.
//! - Recomputation is of pyramids of one size, not cut off at the image's borders: what hardware
//!   with fixed buffers does. Ours cut off, which is reported beside.

use super::Report;
use super::table::{Figure, Tolerance};
use crate::error::Failure;
use vdnn_ir::random::splitmix64;
use vdnn_ir::{Bytes, Precision};
use vdnn_pyramid::interpret::interpret;
use vdnn_pyramid::{
    Chain, Geometry, Kind, Layer, Mode, Pointwise, Program, Shape, Tiling, Window, count, reference,
};

/// Bytes of an f32.
const ELEMENT: Bytes = Bytes(4);

const REMARKS: &str = "\
derived: counted by hand from the layers' shapes
  fused traffic       4 * (3 * 224^2 + 256 * 56^2) bytes
  reuse buffers       4 * 2 * (3 * 226 + 64 * 226 + 64 * 114 + 128 * 114 + 128 * 58) bytes
The paper's buffers (362 KB) hold columns, too, which a GPU's block computes side by side.
";

fn conv(out: u64, kernel: u64, stride: u64, padding: u64) -> Layer {
    let window = Window::square(kernel, stride, padding);
    Layer { kind: Kind::Conv { window, groups: 1, out, bias: true }, then: vec![Pointwise::Relu] }
}

/// VGG-E up to its fifth convolution, with the pools in between. `divide` makes it narrower:
/// every channel count but the image's is divided.
///
/// # Errors
/// None but our own bugs.
pub fn vgg_e(divide: u64) -> Result<Chain, Failure> {
    let pool = || Layer { kind: Kind::MaxPool { window: Window::square(2, 2, 0) }, then: vec![] };
    let conv = |out: u64| conv(out / divide, 3, 1, 1);
    let layers = vec![conv(64), conv(64), pool(), conv(128), conv(128), pool(), conv(256)];
    let input = Shape { channels: 3, height: 224, width: 224 };
    Chain::new(input, vec![], layers).map_err(Failure::internal)
}

/// The tables.
///
/// # Errors
/// None but our own bugs.
pub fn report() -> Result<Report, Failure> {
    let chain = vgg_e(1)?;
    let figures = vec![traffic(&chain)?, buffers(&chain)?, recomputation(&chain)?, border()?];
    Ok(Report { figures, remarks: REMARKS.to_owned() })
}

/// One block that walks down the whole width, a row of the result at a time.
fn walk(chain: &Chain) -> Result<Geometry, Failure> {
    let Shape { height, width, .. } = chain.output();
    let tiling = Tiling { rows: height, cols: width, mode: Mode::Reuse { step: 1 } };
    Geometry::new(chain, tiling).map_err(Failure::internal)
}

/// Bytes that layers move by themselves; a pool merged into the convolution in front of it
/// neither reads nor is its input written.
fn unfused(chain: &Chain, merge_pools: bool) -> Bytes {
    let shapes = chain.shapes();
    let layers = chain.layers().iter().enumerate();
    let each = layers.map(|(l, layer)| {
        if merge_pools && !matches!(layer.kind, Kind::Conv { .. }) {
            // The convolution writes this result instead of its own.
            let (own, pooled) = (shapes[l].bytes(ELEMENT), shapes[l + 1].bytes(ELEMENT));
            return (pooled, own);
        }
        (shapes[l].bytes(ELEMENT) + shapes[l + 1].bytes(ELEMENT), Bytes::ZERO)
    });
    each.fold(Bytes::ZERO, |sum, (more, less)| sum + more - less)
}

fn traffic(chain: &Chain) -> Result<Figure, Failure> {
    let counts = count(chain, &walk(chain)?, Precision::F32);
    let fused = counts.loaded + counts.stored;
    let mut f =
        Figure::new("fused-traffic", "Feature maps moved per image, VGG-E conv1_1 to conv3_1", "MiB", 2);
    let derived = 4.0 * f64::from(3 * 224 * 224 + 256 * 56 * 56) / 1_048_576.0;
    f.cell("derived", "fused", derived, fused.mib(), Tolerance::Within(0.0));
    f.cell("derived", "pools merged", 49.6, unfused(chain, true).mib(), Tolerance::Within(0.05));
    f.cell("derived", "layers", 86.3, unfused(chain, false).mib(), Tolerance::Within(0.05));
    f.cell("paper", "fused", 3.6, fused.mib(), Tolerance::Within(0.05));
    f.cell("paper", "layers", 77.0, unfused(chain, false).mib(), Tolerance::Reported);
    f.notes.push("the paper says 77 MB and 3.6 MB, but not whether these are MiB");
    Ok(f)
}

fn buffers(chain: &Chain) -> Result<Figure, Failure> {
    let geometry = walk(chain)?;
    let kept: u64 = (0..chain.layers().len())
        .map(|b| chain.shapes()[b].channels * geometry.kept_rows(b) * geometry.tracks[b][1].capacity)
        .sum();
    let ours = (kept * ELEMENT.0) as f64 / 1e3;
    let whole = count(chain, &geometry, Precision::F32).shared;
    let mut f = Figure::new("fused-buffers", "Reuse buffers, VGG-E conv1_1 to conv3_1", "KB", 1);
    f.cell("derived", "kept rows", 355.632, ours, Tolerance::Within(0.0));
    f.cell("paper", "buffers", 362.0, ours, Tolerance::Share(0.02));
    f.cell("paper", "all of ours", 362.0, whole.as_f64() / 1e3, Tolerance::Reported);
    f.notes.push("all of ours: with the rows being computed, one row of the result at a time");
    Ok(f)
}

fn recomputation(chain: &Chain) -> Result<Figure, Failure> {
    let mut f = Figure::new(
        "fused-recompute",
        "Operations of pyramids without reuse over those of the layers, VGG-E conv1_1 to conv3_1",
        "",
        2,
    );
    let once: u64 = (0..chain.layers().len()).map(|l| chain.macs(l)).sum();
    for (tile, derived) in [(1, 14.4), (4, 2.79), (8, 1.76), (14, 1.40), (28, 1.19)] {
        let geometry = Geometry::new(chain, Tiling::square(tile)).map_err(Failure::internal)?;
        let uncut: u64 = (0..chain.layers().len())
            .map(|l| {
                let per_position = chain.shapes()[l + 1].channels * chain.macs_per_element(l);
                geometry.uncut_positions(l + 1) * per_position
            })
            .sum();
        let row = format!("tip {tile}x{tile}");
        f.cell(&row, "one size", derived, uncut as f64 / once as f64, Tolerance::Share(0.01));
        let cut = count(chain, &geometry, Precision::F32).recompute(chain);
        f.cell(&row, "cut off", derived, cut, Tolerance::Reported);
    }
    Ok(f)
}

/// Convolutions of the MNIST network: 1 to 6 channels 5x5 padding 2, to 16 4x4 stride 2, to 8 3x3
/// padding 1.
fn mnist(first_padding: u64, third_padding: u64) -> Result<Chain, Failure> {
    let input = Shape { channels: 1, height: 28, width: 28 };
    let layers = vec![conv(6, 5, 1, first_padding), conv(16, 4, 2, 0), conv(8, 3, 1, third_padding)];
    Chain::new(input, vec![], layers).map_err(Failure::internal)
}

/// Positions that differ from the layers' results, of programs and of kernels that compute
/// intermediate values outside their layer's domain.
fn border() -> Result<Figure, Failure> {
    let chain = mnist(2, 1)?;
    let random = |o: usize, i: u64| (splitmix64(o as u64, i) >> 40) as f32 / 8_388_608.0 - 1.0;
    let tensor = |(o, operand): (usize, &vdnn_pyramid::Operand)| -> Vec<f32> {
        (0..operand.elements).map(|i| random(o, i)).collect()
    };
    let operands: Vec<Vec<f32>> = chain.operands().iter().enumerate().map(tensor).collect();
    let operands: Vec<&[f32]> = operands.iter().map(Vec::as_slice).collect();
    let layers = |chain: &Chain| {
        reference(chain, &operands, Precision::F32)
            .ok_or_else(|| Failure::internal("operands of other sizes than their chain's"))
    };
    let right = layers(&chain)?;
    let plane = (chain.output().height * chain.output().width) as usize;
    let wrong = |result: &[f32]| {
        let differs = |at: &usize| (0..right.len()).skip(*at).step_by(plane).any(|i| result[i] != right[i]);
        (0..plane).filter(differs).count() as f64
    };
    let mut f = Figure::new(
        "fused-border",
        "MNIST network, three layers fused: wrong positions of 169 in the third layer",
        "",
        0,
    );
    // Each layer over its domain and as far beyond as the next ones reach.
    let computed = layers(&mnist(4, 0)?)?;
    f.cell("computed", "halo", 48.0, wrong(&computed), Tolerance::Within(0.0));
    for tile in [1, 2, 3] {
        let program =
            Program::new(&chain, Tiling::square(tile), Precision::F32).map_err(Failure::internal)?;
        let (result, _) = interpret(&program, &operands).map_err(Failure::internal)?;
        let column = format!("tiles {tile}x{tile}");
        f.cell("written", &column, 0.0, wrong(&result), Tolerance::Within(0.0));
    }
    f.notes.push("computed: what that project's kernels do outside a layer's domain; written: our programs");
    Ok(f)
}
