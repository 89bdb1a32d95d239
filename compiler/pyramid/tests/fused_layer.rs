//! The chain of the fused-layer paper, narrower, executed: VGG-E's first five convolutions with
//! their pools, a sixteenth of the channels, as one program that walks down the whole width.

use vdnn_ir::Precision;
use vdnn_ir::random::splitmix64;
use vdnn_pyramid::interpret::interpret;
use vdnn_pyramid::{Chain, Geometry, Kind, Layer, Mode, Program, Shape, Tiling, Window, count, reference};

#[test]
fn five_convolutions_read_the_image_once_and_write_the_result_once() {
    let conv = |out| {
        let window = Window::square(3, 1, 1);
        Layer { kind: Kind::Conv { window, groups: 1, out, bias: false }, then: vec![] }
    };
    let pool = || Layer { kind: Kind::MaxPool { window: Window::square(2, 2, 0) }, then: vec![] };
    let layers = vec![conv(4), conv(4), pool(), conv(8), conv(8), pool(), conv(16)];
    let input = Shape { channels: 3, height: 224, width: 224 };
    let chain = Chain::new(input, vec![], layers).expect("a chain");
    let tiling = Tiling { rows: 56, cols: 56, mode: Mode::Reuse { step: 1 } };
    let geometry = Geometry::new(&chain, tiling).expect("a geometry");
    let program = Program::of(&chain, &geometry, Precision::F32);
    let tensor = |(t, o): (usize, &vdnn_pyramid::Operand)| -> Vec<f32> {
        let unit = |i| (splitmix64(t as u64, i) >> 40) as f32 / 8_388_608.0 - 1.0;
        (0..o.elements).map(unit).collect()
    };
    let operands: Vec<Vec<f32>> = chain.operands().iter().enumerate().map(tensor).collect();
    let operands: Vec<&[f32]> = operands.iter().map(Vec::as_slice).collect();
    let (result, counts) = interpret(&program, &operands).expect("it runs");
    assert!(Some(result) == reference(&chain, &operands, Precision::F32), "other numbers");
    assert_eq!(counts, count(&chain, &geometry, Precision::F32));
    assert_eq!(counts.loaded.0, 4 * 3 * 224 * 224);
    assert_eq!(counts.stored.0, 4 * 16 * 56 * 56);
    assert_eq!(counts.recompute(&chain), 1.0);
    let kept: Vec<u64> = (0..7).map(|b| geometry.kept_rows(b)).collect();
    assert_eq!(kept, [2, 2, 0, 2, 2, 0, 2]);
    let widths: Vec<u64> = (0..7).map(|b| geometry.tracks[b][1].capacity).collect();
    assert_eq!(widths, [226, 226, 224, 114, 114, 112, 58]);
}
