//! Programs against chains: on thousands of random cases the interpreter gives the bits of the
//! layer-by-layer reference, and counts what the cost model says.

mod support;

use support::Source;
use vdnn_ir::Precision;
use vdnn_pyramid::interpret::{interpret, interpret_tile};
use vdnn_pyramid::{Geometry, Kind, Mode, Program, count, count_tile, reference};

const CASES: u64 = 20_000;

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// What the cases had, so that none of it is missing.
#[derive(Default)]
struct Seen {
    depth: [u64; 5],
    reuse: u64,
    strided: u64,
    dilated: u64,
    grouped: u64,
    max: u64,
    mean: u64,
    ceil: u64,
    padded: u64,
    uneven: u64,
    recomputed: u64,
    several_tiles: u64,
    several_steps: u64,
    gaps: u64,
}

impl Seen {
    fn note(&mut self, chain: &vdnn_pyramid::Chain, geometry: &Geometry) {
        self.depth[chain.layers().len()] += 1;
        self.reuse += u64::from(geometry.tiling.mode != Mode::Recompute);
        self.several_tiles += u64::from(geometry.grid != [1, 1]);
        self.several_steps += u64::from(geometry.steps.end - geometry.steps.start > 1);
        let any = |f: &dyn Fn(&Kind) -> bool| u64::from(chain.layers().iter().any(|l| f(&l.kind)));
        self.strided += any(&|k| k.window().strides != [1, 1]);
        self.dilated += any(&|k| k.window().dilations != [1, 1]);
        self.grouped += any(&|k| matches!(k, Kind::Conv { groups, .. } if *groups > 1));
        self.max += any(&|k| matches!(k, Kind::MaxPool { .. }));
        self.mean += any(&|k| matches!(k, Kind::AvgPool { .. }));
        self.ceil += any(&|k| k.window().ceil);
        self.padded += any(&|k| k.window().before != [0, 0]);
        self.uneven += any(&|k| k.window().before != k.window().after);
        self.gaps += any(&|k| k.window().strides[0] as i64 > k.window().span(0));
    }
}

/// One case; returns whether anything was computed more than once.
fn case(seed: u64, precision: Precision, seen: &mut Seen) {
    let mut s = Source::new(seed);
    let chain = support::chain(&mut s);
    let tiling = support::tiling(&mut s, &chain);
    let operands = support::operands(&mut s, &chain);
    let operands = support::slices(&operands);
    let geometry = Geometry::new(&chain, tiling).expect("a tiling of the chain");
    let program = Program::of(&chain, &geometry, precision);
    seen.note(&chain, &geometry);
    let name = || format!("case {seed}, {precision}, {tiling}, {chain:?}\n{program}");
    let (result, counted) = interpret(&program, &operands).unwrap_or_else(|e| panic!("{e}: {}", name()));
    let wanted = reference(&chain, &operands, precision).expect("operands of the right sizes");
    assert_eq!(bits(&result), bits(&wanted), "{}", name());
    assert_eq!(counted, count(&chain, &geometry, precision), "{}", name());
    assert_eq!(counted.shared, program.shared, "{}", name());
    assert_eq!(counted.accumulators, program.accumulators, "{}", name());
    seen.recomputed += u64::from(counted.recompute(&chain) > 1.0);
    // One tile by itself, too.
    let tile = [s.raw() % geometry.grid[0], s.raw() % geometry.grid[1]];
    let mut alone = interpret_tile(&program, &operands, tile).unwrap_or_else(|e| panic!("{e}: {}", name()));
    let said = count_tile(&chain, &geometry, precision, tile);
    // A tile at the border may leave part of the buffers untouched.
    assert!(alone.shared <= said.shared && alone.accumulators <= counted.accumulators, "{}", name());
    (alone.shared, alone.accumulators) = (said.shared, said.accumulators);
    assert_eq!(alone, said, "{}", name());
}

#[test]
fn programs_give_the_bits_of_the_layers_and_the_counts_of_the_model() {
    let mut seen = Seen::default();
    for seed in 0..CASES {
        case(seed, Precision::F32, &mut seen);
    }
    for (what, times) in [
        ("one layer", seen.depth[1]),
        ("two layers", seen.depth[2]),
        ("three layers", seen.depth[3]),
        ("four layers", seen.depth[4]),
        ("reuse", seen.reuse),
        ("strides", seen.strided),
        ("dilations", seen.dilated),
        ("groups", seen.grouped),
        ("maximum pools", seen.max),
        ("mean pools", seen.mean),
        ("ceil", seen.ceil),
        ("padding", seen.padded),
        ("uneven padding", seen.uneven),
        ("recomputation", seen.recomputed),
        ("several tiles", seen.several_tiles),
        ("several steps", seen.several_steps),
        ("strides beyond the kernel", seen.gaps),
    ] {
        assert!(times >= CASES / 20, "only {times} of {CASES} cases have {what}");
    }
}

#[test]
fn rounded_programs_round_where_the_layers_do() {
    let mut seen = Seen::default();
    for seed in 0..1_500 {
        case(100_000 + seed, Precision::Tf32, &mut seen);
        case(200_000 + seed, Precision::Bf16, &mut seen);
    }
}
