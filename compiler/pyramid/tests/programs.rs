//! Programs as text, and what the interpreter refuses.

mod support;

use support::Source;
use vdnn_ir::Precision;
use vdnn_pyramid::interpret::{Fault, InterpretError, interpret};
use vdnn_pyramid::{
    Chain, Geometry, Instruction, Kind, Layer, Mode, Pointwise, Program, Shape, Tiling, Window, count,
    reference,
};

fn conv(out: u64, kernel: u64, stride: u64, padding: u64) -> Layer {
    let window = Window::square(kernel, stride, padding);
    Layer { kind: Kind::Conv { window, groups: 1, out, bias: true }, then: vec![Pointwise::Relu] }
}

/// The convolutions of the GPU seed: MNIST, 28 x 28.
fn mnist_convolutions() -> Chain {
    let input = Shape { channels: 1, height: 28, width: 28 };
    Chain::new(input, vec![], vec![conv(6, 5, 1, 2), conv(16, 4, 2, 0), conv(8, 3, 1, 1), conv(4, 3, 1, 0)])
        .expect("a chain")
}

/// The fault an interpretation ends with.
fn fault(program: &Program, operands: &[&[f32]]) -> Option<Fault> {
    match interpret(program, operands) {
        Err(InterpretError::Fault { fault, .. }) => Some(fault),
        Err(e) => panic!("{e}"),
        Ok(_) => None,
    }
}

#[test]
fn programs_print_and_parse_to_themselves() {
    for seed in 0..500 {
        let mut s = Source::new(seed);
        let chain = support::chain(&mut s);
        let tiling = support::tiling(&mut s, &chain);
        let program = Program::new(&chain, tiling, Precision::Bf16).expect("a program");
        let text = program.to_string();
        let parsed: Program = text.parse().unwrap_or_else(|e| panic!("{e}:\n{text}"));
        assert_eq!(parsed, program, "{text}");
        assert_eq!(parsed.to_string(), text);
    }
}

#[test]
fn the_text_form_is_what_the_documentation_shows() {
    let input = Shape { channels: 3, height: 8, width: 8 };
    let chain = Chain::new(input, vec![], vec![conv(4, 3, 1, 1), conv(2, 3, 1, 1)]).expect("a chain");
    let program = Program::new(&chain, Tiling::square(4), Precision::F32).expect("a program").to_string();
    let lines: Vec<&str> = program.lines().collect();
    assert_eq!(
        lines[0],
        "tile-program f32 input 3x8x8 output 2x8x8 grid 2x2 steps 0..1 shared 1164 accumulators 128"
    );
    assert_eq!(lines[1], "operands 192 108 4 72 2");
    assert_eq!(lines[5], "  load(to:0,then:[])");
    assert_eq!(lines[6], "  mask(buffer:0)");
    assert_eq!(lines[7], "  sync");
    assert_eq!(*lines.last().expect("lines"), "  store(from:2)");
}

/// Text that is damaged is refused, or is another program that may fail; nothing panics.
#[test]
fn damaged_programs_are_refused_in_words() {
    let mut refused = 0;
    for seed in 0..3_000 {
        let mut s = Source::new(seed);
        let chain = support::chain(&mut s);
        let tiling = support::tiling(&mut s, &chain);
        let mut text =
            Program::new(&chain, tiling, Precision::F32).expect("a program").to_string().into_bytes();
        for _ in 0..s.within(1, 3) {
            let at = s.raw() as usize % text.len();
            match s.within(0, 3) {
                0 => text[at] = b"0123456789-(),:"[s.raw() as usize % 15],
                1 => drop(text.remove(at)),
                2 => text.insert(at, b"0123456789-"[s.raw() as usize % 11]),
                _ => text.truncate(at),
            }
            if text.is_empty() {
                text.push(b' ');
            }
        }
        let parsed = String::from_utf8(text).expect("ASCII").parse::<Program>();
        let Ok(program) = parsed else {
            refused += 1;
            continue;
        };
        let small = program.shared.0 < 1 << 20
            && program.accumulators.0 < 1 << 20
            && program.steps.end - program.steps.start < 200
            && program.grid.iter().all(|&n| n < 200)
            && program.operands.iter().all(|&n| n < 1 << 16)
            && program.output.channels.max(program.output.height).max(program.output.width) < 1 << 7;
        if !small {
            continue;
        }
        let operands: Vec<Vec<f32>> = program.operands.iter().map(|&n| s.tensor(n)).collect();
        refused += usize::from(interpret(&program, &support::slices(&operands)).is_err());
    }
    assert!(refused > 1_500, "only {refused}");
}

#[test]
fn programs_without_masks_or_waits_or_with_small_buffers_are_caught() {
    let chain = mnist_convolutions();
    let mut s = Source::new(1);
    let operands = support::operands(&mut s, &chain);
    let operands = support::slices(&operands);
    for tiling in [Tiling::square(4), Tiling { rows: 11, cols: 11, mode: Mode::Reuse { step: 2 } }] {
        let whole = Program::new(&chain, tiling, Precision::F32).expect("a program");
        assert_eq!(fault(&whole, &operands), None);
        let mut dropped = [0; 3];
        for i in 0..whole.body.len() {
            let mut program = whole.clone();
            let (kind, wanted) = match program.body.remove(i) {
                Instruction::Mask { .. } => (0, Fault::Undefined),
                Instruction::Sync => (1, Fault::Race),
                Instruction::Conv { .. } => (2, Fault::Undefined),
                _ => continue,
            };
            assert_eq!(fault(&program, &operands), Some(wanted), "without {}", whole.body[i]);
            dropped[kind] += 1;
        }
        assert!(dropped[0] == 2 && dropped[1] == 4 && dropped[2] == 4, "{dropped:?}");
        for b in 0..whole.buffers.len() {
            let mut program = whole.clone();
            program.buffers[b].y.capacity -= 1;
            assert_eq!(fault(&program, &operands), Some(Fault::Bounds), "a row less in buffer {b}");
            let mut program = whole.clone();
            program.buffers[b].x.capacity -= 1;
            assert_eq!(fault(&program, &operands), Some(Fault::Bounds), "a column less in buffer {b}");
        }
        let mut program = whole.clone();
        program.shared.0 -= 4;
        assert!(matches!(interpret(&program, &operands), Err(InterpretError::Program(_))));
    }
}

/// A fused kernel that computes intermediate values outside their layer's domain, instead of
/// writing zeros there, is wrong in the whole border: 48 of 169 positions behind the third layer.
#[test]
fn inner_padding_is_written_not_computed() {
    let three = |first: u64, third: u64| {
        let input = Shape { channels: 1, height: 28, width: 28 };
        let layers = vec![conv(6, 5, 1, first), conv(16, 4, 2, 0), conv(8, 3, 1, third)];
        Chain::new(input, vec![], layers).expect("a chain")
    };
    let chain = three(2, 1);
    let mut s = Source::new(2);
    let operands = support::operands(&mut s, &chain);
    let operands = support::slices(&operands);
    let right = reference(&chain, &operands, Precision::F32).expect("a result");
    // The second layer over its domain and one position beyond it on every side, from a first
    // layer two positions beyond: what evaluating both out there gives.
    let computed = three(4, 0);
    assert_eq!((computed.shapes()[2].height, computed.output().height), (15, 13));
    let wrong = reference(&computed, &operands, Precision::F32).expect("a result");
    let differs = |at: &usize| (0..8).any(|c| right[c * 169 + at] != wrong[c * 169 + at]);
    let positions: Vec<usize> = (0..169).filter(differs).collect();
    let border = |at: &usize| [at / 13, at % 13].iter().any(|&i| i == 0 || i == 12);
    assert_eq!(positions, (0..169).filter(border).collect::<Vec<_>>());
    assert_eq!(positions.len(), 48);
    for tile in [1, 2, 3, 5, 13] {
        let program = Program::new(&chain, Tiling::square(tile), Precision::F32).expect("a program");
        let (result, _) = interpret(&program, &operands).expect("it runs");
        assert_eq!(result, right, "tiles of {tile}");
    }
}

/// Numbers as large as chains may have end in an error or in saturated counts.
#[test]
fn extreme_chains_do_not_overflow() {
    let target = vdnn_pyramid::machine::Target {
        machine: vdnn_pyramid::machine::Machine::named("h200").expect("a machine"),
        precision: Precision::F32,
        peak: 5e4,
        bandwidth: 4e3,
        launch: vdnn_ir::Nanos(2500),
    };
    let mut cut = 0;
    for seed in 0..3_000 {
        let mut s = Source::new(400_000 + seed);
        let mut extreme = || [1, 1, 2, 3, 7, 1000, 1 << 16, 1 << 20][s.raw() as usize % 8];
        let input = Shape { channels: extreme(), height: extreme(), width: extreme() };
        let layers = (0..3).map(|_| {
            let mut window = Window::square(1, 1, 0);
            for axis in 0..2 {
                window.kernel[axis] = extreme();
                window.strides[axis] = extreme();
                window.dilations[axis] = extreme();
                window.before[axis] = extreme() - 1;
                window.after[axis] = extreme() - 1;
            }
            Layer { kind: Kind::Conv { window, groups: 1, out: extreme(), bias: true }, then: vec![] }
        });
        let layers: Vec<Layer> = layers.collect();
        let Ok(chain) = Chain::new(input, vec![], layers) else { continue };
        let out = chain.output();
        // Every tile is looked at: not too many of them.
        let least = |n: u64| n.div_ceil(64);
        let tilings = [
            Tiling { rows: least(out.height), cols: least(out.width), mode: Mode::Recompute },
            Tiling { rows: out.height, cols: out.width, mode: Mode::Reuse { step: least(out.height) } },
        ];
        for tiling in tilings {
            let Ok(geometry) = Geometry::new(&chain, tiling) else { continue };
            cut += 1;
            let counts = count(&chain, &geometry, Precision::F32);
            assert!(counts.total_macs() > 0 && counts.recompute(&chain) > 0.0);
            let _ = Program::of(&chain, &geometry, Precision::F32).verify();
            let _ = vdnn_pyramid::search::estimate(&chain, tiling, &target, u64::MAX);
        }
    }
    assert!(cut > 50, "only {cut}");
}

/// A stem worked out by hand: 7x7 stride 2 and a 3x3 stride 2 pool, tiles of 2x2.
#[test]
fn a_stem_has_the_intervals_that_paper_and_pencil_give() {
    let input = Shape { channels: 3, height: 32, width: 32 };
    let pool = Layer { kind: Kind::MaxPool { window: Window::square(3, 2, 1) }, then: vec![] };
    let chain = Chain::new(input, vec![], vec![conv(8, 7, 2, 3), pool]).expect("a chain");
    assert_eq!((chain.shapes()[1].height, chain.output().height), (16, 8));
    let geometry = Geometry::new(&chain, Tiling::square(2)).expect("a geometry");
    // Pool rows 0..2 read convolution rows -1..4, of which 0..4 exist, of image rows -3..10.
    let interval = vdnn_pyramid::Interval::new;
    let [y, _] = geometry.tracks[1];
    assert_eq!((y.hull, y.held(0), y.live(0)), (interval(-1, 4), interval(-1, 4), interval(0, 4)));
    let [y, _] = geometry.tracks[0];
    assert_eq!((y.hull, y.held(0), y.live(0)), (interval(-5, 10), interval(-3, 10), interval(0, 10)));
    // The last tile: pool rows 6..8, convolution rows 11..16, image rows 19..34.
    assert_eq!((y.held(3), y.live(3)), (interval(19, 34), interval(19, 32)));
    let counts = count(&chain, &geometry, Precision::F32);
    // Rows of the convolution over the four tiles: 4, 5, 5, 5.
    assert_eq!(counts.macs, [19 * 19 * 8 * 3 * 49, 0]);
    // Interior tiles: 15 x 15 x 3 of the image beside 5 x 5 x 8.
    assert_eq!(counts.shared.0, 4 * (15 * 15 * 3 + 5 * 5 * 8));
    assert_eq!(counts.stored.0, 4 * 8 * 64);
}
