//! Kernels for matrix units: executed on the CPU, matrix instructions and asynchronous copies by
//! their definitions, they give what the layers give one by one.
//!
//! `VDNNC_EMULATOR_CXX=g++ cargo test -p vdnn-pyramid --test tensor`

#[path = "support/source.rs"]
mod source;

use source::Source;
use std::fmt::Write;
use std::process::Command;
use vdnn_ir::types::{Layout, Real};
use vdnn_ir::{Precision, bf16};
use vdnn_pyramid::kernel::{Config, Kernel, configs, kernel};
use vdnn_pyramid::machine::Machine;
use vdnn_pyramid::tensor::{Tensor, Units};
use vdnn_pyramid::{Chain, Kind, Layer, OperandUse, Pointwise, Shape, Window, reference};

/// Random chains.
const CASES: u64 = 60;

/// A chain with its kernel and tensors.
struct Case {
    chain: Chain,
    config: Config,
    precision: Precision,
    kernel: Kernel,
    images: Vec<Vec<Vec<f32>>>,
    /// Nothing is rounded: results are equal bit for bit.
    exact: bool,
}

fn window(s: &mut Source) -> Window {
    let mut w = Window::square(s.within(1, 3), 1, 0);
    if s.once_in(4) {
        w.kernel[1] = s.within(1, 5);
    }
    for axis in 0..2 {
        w.strides[axis] = if s.once_in(4) { 2 } else { 1 };
        w.dilations[axis] = if s.once_in(6) { 2 } else { 1 };
        w.before[axis] = s.within(0, w.kernel[axis] / 2 + 1).min(w.kernel[axis]);
        w.after[axis] = if s.once_in(3) { 0 } else { w.before[axis] };
    }
    w
}

fn then(s: &mut Source, last: bool) -> Vec<Pointwise> {
    let mut list = Vec::new();
    if s.once_in(5) {
        list.push(Pointwise::Scale);
    }
    if last && s.once_in(2) {
        list.push(Pointwise::Add);
    }
    list.push(if s.once_in(3) { Pointwise::Clip { lo: Real(1.0), hi: Real(6.0) } } else { Pointwise::Relu });
    list
}

fn chain(s: &mut Source, per_chunk: u64) -> Chain {
    loop {
        let channels = match s.within(0, 3) {
            0 => s.within(1, per_chunk),
            n => per_chunk * [1, 2, 4, 8][(n + s.within(0, 1) - 1) as usize],
        };
        let input = Shape { channels, height: s.within(5, 20), width: s.within(5, 20) };
        let mut layers = Vec::new();
        let depth = s.within(1, 3);
        let pooled = s.once_in(2);
        for i in 0..depth {
            let out = [8, 16, 24, 32, 64][s.within(0, 4) as usize];
            let window = if i == 0 && s.once_in(3) { Window::square(1, 1, 0) } else { window(s) };
            let kind = Kind::Conv { window, groups: 1, out, bias: !s.once_in(4) };
            layers.push(Layer { kind, then: then(s, i + 1 == depth && !pooled) });
        }
        if pooled {
            let window = match s.within(0, 2) {
                0 => Window::square(2, 2, 0),
                1 => Window::square(3, 2, 1),
                _ => Window { ceil: true, ..Window::square(3, 2, 0) },
            };
            let then = if s.once_in(3) { vec![Pointwise::Relu] } else { vec![] };
            layers.push(Layer { kind: Kind::MaxPool { window }, then });
        }
        if let Ok(chain) = Chain::new(input, vec![], layers) {
            return chain;
        }
    }
}

/// Single positions at both ends.
fn bottleneck(s: &mut Source, per_chunk: u64) -> Chain {
    let single = |out, then| {
        let kind = Kind::Conv { window: Window::square(1, 1, 0), groups: 1, out, bias: true };
        Layer { kind, then }
    };
    loop {
        let input = Shape {
            channels: per_chunk * [4, 8, 16][s.within(0, 2) as usize],
            height: s.within(5, 20),
            width: s.within(5, 20),
        };
        let mut layers = vec![single([16, 32, 64][s.within(0, 2) as usize], then(s, false))];
        if !s.once_in(4) {
            let kind = Kind::Conv { window: window(s), groups: 1, out: 32, bias: true };
            layers.push(Layer { kind, then: then(s, false) });
        }
        layers.push(single([32, 64, 128][s.within(0, 2) as usize], then(s, true)));
        if let Ok(chain) = Chain::new(input, vec![], layers) {
            return chain;
        }
    }
}

/// Small integers where nothing is to be rounded.
fn tensors(s: &mut Source, chain: &Chain, exact: bool) -> Vec<Vec<f32>> {
    let number = |s: &mut Source, of: OperandUse| match of {
        OperandUse::Weight if !s.once_in(6) => 0.0,
        OperandUse::Scale => 1.0 + s.within(0, 1) as f32,
        _ => s.within(0, 4) as f32 - 2.0,
    };
    let tensor = |o: &vdnn_pyramid::Operand| {
        if !exact {
            return s.tensor(o.elements);
        }
        (0..o.elements).map(|_| number(s, o.of)).collect()
    };
    chain.operands().iter().map(tensor).collect()
}

fn case(
    chain: Chain,
    config: Config,
    precision: Precision,
    s: &mut Source,
    exact: bool,
    batch: u64,
) -> Option<Case> {
    let kernel = kernel(&chain, &config, precision, Layout::ChannelsLast, batch).ok()?;
    let first = tensors(s, &chain, exact);
    let mut images = vec![first.clone()];
    for _ in 1..batch {
        let mut next = tensors(s, &chain, exact);
        for ((tensor, operand), first) in next.iter_mut().zip(chain.operands()).zip(&first) {
            if !matches!(operand.of, OperandUse::Input | OperandUse::Residual) {
                tensor.clone_from(first);
            }
        }
        images.push(next);
    }
    Some(Case { chain, config, precision, kernel, images, exact })
}

fn random(seed: u64) -> Case {
    let mut s = Source::new(500_000 + seed);
    loop {
        let precision = if s.once_in(2) { Precision::Tf32 } else { Precision::Bf16 };
        let per_chunk = if precision == Precision::Tf32 { 4 } else { 8 };
        let streamed = s.once_in(3);
        let chain = if streamed { bottleneck(&mut s, per_chunk) } else { chain(&mut s, per_chunk) };
        let out = chain.output();
        let config = Config::Tensor(Tensor {
            rows: s.within(1, out.height.min(10)) as u32,
            cols: s.within(1, out.width.min(10)) as u32,
            workers: s.within(1, 2) as u32,
            groups: s.within(1, 2) as u32,
            slots: s.within(1, 4) as u32,
            slice: [2, 4, 8][s.within(0, 2) as usize],
            streamed,
            units: if s.once_in(4) { Units::Warp } else { Units::WarpGroup },
            blocks: s.within(1, 3) as u32,
        });
        let exact = !s.once_in(4);
        if let Some(case) = case(chain, config, precision, &mut s, exact, 2) {
            return case;
        }
    }
}

/// `[C,H,W]` to `[H,W,C]`, of a weight `[M,C,ky,kx]` to `[M,ky,kx,C]`.
fn channels_last(x: &[f32], outer: u64, channels: u64) -> Vec<f32> {
    let (outer, channels) = (outer as usize, channels as usize);
    let plane = x.len() / outer / channels;
    let at = |i: usize| {
        let (o, p, c) = (i / channels / plane, i / channels % plane, i % channels);
        x[(o * channels + c) * plane + p]
    };
    (0..x.len()).map(at).collect()
}

/// The operands of all images as the kernel reads them.
fn bytes(case: &Case) -> Vec<Vec<u8>> {
    let shapes = case.chain.shapes();
    let wide = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let own = |x: &[f32]| match case.precision {
        Precision::Bf16 => x.iter().flat_map(|&x| bf16::round(x).to_le_bytes()).collect(),
        _ => wide(x),
    };
    let all = case.chain.operands();
    let one = |(o, operand): (usize, &vdnn_pyramid::Operand)| {
        let first = &case.images[0][o];
        match operand.of {
            OperandUse::Input | OperandUse::Residual => {
                let shape = if operand.of == OperandUse::Input { shapes[0] } else { case.chain.output() };
                case.images.iter().flat_map(|i| own(&channels_last(&i[o], 1, shape.channels))).collect()
            }
            OperandUse::Weight => {
                let l = operand.layer.expect("a layer");
                own(&channels_last(first, shapes[l + 1].channels, shapes[l].channels))
            }
            _ => wide(first),
        }
    };
    all.iter().enumerate().map(one).collect()
}

fn source(cases: &[Case]) -> String {
    let mut text = String::from("#include \"emulator.h\"\n");
    let mut main = String::new();
    for (k, case) in cases.iter().enumerate() {
        let kernel = case
            .kernel
            .source
            .replace("extern \"C\" ", "")
            .replace("extern __shared__ __align__(128) unsigned char shared[];", "");
        let _ = writeln!(text, "namespace k{k} {{\n{kernel}}}\n#undef VDNN_WARP_TF32\n#undef VDNN_WARP_BF16");
        let element = if case.precision == Precision::Bf16 { "bf16" } else { "float" };
        let n = case.chain.operands().len();
        let args: Vec<String> = case
            .chain
            .operands()
            .iter()
            .enumerate()
            .map(|(o, operand)| match operand.of {
                OperandUse::Input | OperandUse::Weight | OperandUse::Residual => {
                    format!("({element}*)o[{o}]")
                }
                _ => format!("(float*)o[{o}]"),
            })
            .collect();
        let size = case.chain.output().elements()
            * case.images.len() as u64
            * if case.precision == Precision::Bf16 { 2 } else { 4 };
        let _ = writeln!(
            main,
            "  {{ auto o = read({n}); void* y = aligned_alloc(64, {}); memset(y, 0xff, {size}); is_bf16 = {};\n    \
             launch({}, {}, {}, [&] {{ k{k}::pyramid({}, ({element}*)y); }});\n    fwrite(y, 1, {size}, out); }}",
            size.next_multiple_of(64),
            case.precision == Precision::Bf16,
            case.kernel.grid[0],
            case.kernel.threads,
            case.kernel.shared.0,
            args.join(", "),
        );
    }
    let _ = write!(
        text,
        "static FILE *in, *out;\nstatic std::vector<void*> read(int n) {{\n  std::vector<void*> all;\n  \
         while (n--) {{ u64 size; if (fread(&size, 8, 1, in) != 1) fail(\"input\"); void* p = aligned_alloc(64, (size + 63) / 64 * 64);\n    \
         if (fread(p, 1, size, in) != size) fail(\"input\"); all.push_back(p); }}\n  return all;\n}}\n\
         int main(int, char** args) {{\n  in = fopen(args[1], \"rb\"); out = fopen(args[2], \"wb\"); late = args[3][0] == '1';\n{main}  return fclose(out);\n}}\n"
    );
    text
}

/// Builds and runs the kernels, and compares.
fn check(name: &str, cases: &[Case]) {
    let Some(compiler) = std::env::var_os("VDNNC_EMULATOR_CXX") else {
        skipped();
        return;
    };
    let folder = std::env::temp_dir().join(format!("vdnn-pyramid-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = |name: &str| folder.join(name);
    std::fs::write(file("emulator.h"), include_str!("tensor/emulator.h")).expect("a file");
    std::fs::write(file("kernels.cpp"), source(cases)).expect("a file");
    let mut input = Vec::new();
    for operand in cases.iter().flat_map(bytes) {
        input.extend((operand.len() as u64).to_le_bytes());
        input.extend(operand);
    }
    std::fs::write(file("in"), input).expect("a file");
    let mut build = Command::new(&compiler);
    build.args(["-std=c++17", "-O1", "-w", "-ffp-contract=off", "-I"]).arg(&folder);
    let built = build.arg(file("kernels.cpp")).arg("-o").arg(file("kernels")).status();
    assert!(built.is_ok_and(|s| s.success()), "the kernels do not build, see {}", folder.display());
    for late in ["0", "1"] {
        let ran = Command::new(file("kernels")).arg(file("in")).arg(file("out")).arg(late).status();
        assert!(ran.is_ok_and(|s| s.success()), "the kernels do not run, see {}", folder.display());
        let out = std::fs::read(file("out")).expect("results");
        let mut out = out.as_slice();
        for (k, case) in cases.iter().enumerate() {
            for (i, operands) in case.images.iter().enumerate() {
                let slices: Vec<&[f32]> = operands.iter().map(Vec::as_slice).collect();
                let want = reference(&case.chain, &slices, case.precision).expect("a result");
                let want = channels_last(&want, 1, case.chain.output().channels);
                let most = want.iter().fold(1.0f32, |m, w| m.max(w.abs()));
                for (e, want) in want.into_iter().enumerate() {
                    let (got, rest) = if case.precision == Precision::Bf16 {
                        (bf16::widen(u16::from_le_bytes([out[0], out[1]])), &out[2..])
                    } else {
                        (f32::from_le_bytes([out[0], out[1], out[2], out[3]]), &out[4..])
                    };
                    out = rest;
                    // What lies between layers can be rounded the other way.
                    let near = match case.precision {
                        Precision::Bf16 => 2e-2,
                        _ if case.chain.layers().len() == 1 => 1e-5,
                        _ => 2e-3,
                    };
                    let right = if case.exact { got == want } else { (got - want).abs() <= near * most };
                    assert!(
                        right,
                        "kernel {k}, late {late}, image {i}, element {e}: {got} for {want}\n{} {} {:?}, see {}",
                        case.config,
                        case.precision,
                        case.chain,
                        folder.display()
                    );
                }
            }
        }
        assert!(out.is_empty());
    }
    let _ = std::fs::remove_dir_all(&folder);
}

#[expect(clippy::print_stderr, reason = "a skipped test must say so")]
fn skipped() {
    eprintln!("skipped: needs a C++17 compiler named in VDNNC_EMULATOR_CXX");
}

#[test]
fn random_kernels_equal_layers() {
    check("random", &(0..CASES).map(random).collect::<Vec<_>>());
}

/// ResNet's stem, VGG's first pair, ResNet's first blocks, over small images.
#[test]
fn kernels_of_known_networks_equal_layers() {
    let conv = |out, kernel, stride, padding, then: &[Pointwise]| {
        let window = Window::square(kernel, stride, padding);
        Layer { kind: Kind::Conv { window, groups: 1, out, bias: true }, then: then.to_vec() }
    };
    let pool = |kernel, stride, padding| Layer {
        kind: Kind::MaxPool { window: Window::square(kernel, stride, padding) },
        then: vec![],
    };
    let relu = &[Pointwise::Relu][..];
    let block = || {
        let last = &[Pointwise::Add, Pointwise::Relu][..];
        vec![conv(64, 1, 1, 0, relu), conv(64, 3, 1, 1, relu), conv(256, 1, 1, 0, last)]
    };
    let machine = Machine::named("h200").expect("a profile");
    let mut cases = Vec::new();
    for (channels, extent, layers) in [
        (3, 34, vec![conv(64, 7, 2, 3, relu), pool(3, 2, 1)]),
        (3, 22, vec![conv(64, 3, 1, 1, relu), conv(64, 3, 1, 1, relu), pool(2, 2, 0)]),
        (64, 14, vec![conv(64, 3, 1, 1, relu), pool(2, 2, 0)]),
        (64, 11, block()),
        (256, 11, block()),
    ] {
        let input = Shape { channels, height: extent, width: extent + 1 };
        let chain = Chain::new(input, vec![], layers).expect("a chain");
        for precision in [Precision::Tf32, Precision::Bf16] {
            let mut s = Source::new(600_000 + channels);
            let ways = configs(&chain, precision, Layout::ChannelsLast, 1, &machine);
            assert!(!ways.is_empty(), "{chain:?} {precision}");
            for config in ways.into_iter().take(1) {
                let Config::Tensor(tensor) = config else { unreachable!() };
                // So that blocks go on with further tiles.
                let config = Config::Tensor(Tensor { blocks: 2, ..tensor });
                cases.push(case(chain.clone(), config, precision, &mut s, true, 1).expect("a kernel"));
            }
        }
    }
    check("known", &cases);
}

#[test]
fn what_has_no_kernel_is_refused() {
    let machine = Machine::named("h200").expect("a profile");
    let chain = |groups, then| {
        let kind = Kind::Conv { window: Window::square(3, 1, 1), groups, out: 16, bias: false };
        let pool = Layer { kind: Kind::MaxPool { window: Window::square(2, 2, 0) }, then };
        let input = Shape { channels: 16, height: 9, width: 9 };
        Chain::new(input, vec![], vec![Layer { kind, then: vec![] }, pool]).expect("a chain")
    };
    let some =
        |chain: &Chain, precision, layout| configs(chain, precision, layout, 1, &machine).first().copied();
    let plain = chain(1, vec![]);
    let config = some(&plain, Precision::Tf32, Layout::ChannelsLast).expect("a way");
    assert_eq!(config.to_string().parse(), Ok(config));
    let made = kernel(&plain, &config, Precision::Tf32, Layout::ChannelsLast, 1).expect("a kernel");
    assert_eq!(made.target, Some("sm_90a"));
    assert!(kernel(&plain, &config, Precision::Tf32, Layout::RowMajor, 1).is_err());
    assert!(kernel(&plain, &config, Precision::F32, Layout::ChannelsLast, 1).is_err());
    assert_eq!(some(&chain(4, vec![]), Precision::Bf16, Layout::ChannelsLast), None);
    assert_eq!(some(&chain(1, vec![Pointwise::Scale]), Precision::Bf16, Layout::ChannelsLast), None);
    assert_eq!(some(&plain, Precision::Tf32, Layout::RowMajor), None);
}
