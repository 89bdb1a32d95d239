//! Stages: their kernels, run by the emulator of tests/tensor, equal their layers.

use std::fmt::Write;
use std::process::Command;
use vdnn_ir::op::{ConvAttrs, PyramidAttrs, PyramidKind, PyramidLayer, PyramidStep};
use vdnn_ir::types::Layout;
use vdnn_ir::{Precision, TensorType};
use vdnn_pyramid::kernel::Config;
use vdnn_pyramid::machine::Machine;
use vdnn_pyramid::stage::{Stage, StageConfig, configs, counters, kernel, stage_of, workspace};

fn way(rings: &[u32], blocks: u32) -> StageConfig {
    StageConfig::new(rings, blocks).expect("not too many rings")
}

fn layer(kernel: u64, from: Option<u32>, then: &[PyramidStep]) -> PyramidLayer {
    let conv = ConvAttrs::square(kernel, 1, kernel / 2, 1);
    PyramidLayer { kind: PyramidKind::Conv { conv, bias: true }, from, then: then.iter().copied().collect() }
}

/// A stage and the types of its operands.
fn stage(blocks: u32, batch: u64, height: u64, width: u64) -> (PyramidAttrs, Vec<TensorType>) {
    use PyramidStep::{AddLayer, Relu};
    let mut layers = vec![
        layer(1, None, &[Relu]),
        layer(3, None, &[Relu]),
        layer(1, Some(0), &[]),
        layer(1, Some(2), &[AddLayer { of: 3 }, Relu]),
    ];
    let mut weights = vec![(64, 64, 1), (64, 64, 3), (256, 64, 1), (256, 64, 1)];
    for b in 1..blocks {
        let of = 3 * b + 1;
        layers.extend([
            layer(1, None, &[Relu]),
            layer(3, None, &[Relu]),
            layer(1, None, &[AddLayer { of }, Relu]),
        ]);
        weights.extend([(64, 256, 1), (64, 64, 3), (256, 64, 1)]);
    }
    let mut types = vec![format!("f32[{batch},64,{height},{width}]")];
    for (out, inner, k) in weights {
        types.extend([format!("f32[{out},{inner},{k},{k}]"), format!("f32[{out}]")]);
    }
    let types = types.iter().map(|t| t.parse().expect("a type")).collect();
    (PyramidAttrs { layers, config: String::new() }, types)
}

/// Small integers, so that every sum is exact: of images 0 to 2, of weights two of each filter that
/// are not 0.
struct Source(u64);

impl Source {
    fn draw(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }

    /// Channels-last.
    fn operand(&mut self, ty: &TensorType) -> Vec<f32> {
        let elements = ty.dims.iter().product::<u64>();
        match ty.dims.as_slice() {
            [_] => (0..elements).map(|_| self.draw(3) as f32 - 1.0).collect(),
            &[out, inner, ky, kx] if ky == kx && ky < 8 => {
                let row = inner * ky * kx;
                let mut all = vec![0.0; elements as usize];
                for o in 0..out {
                    for _ in 0..2 {
                        let sign = if self.draw(4) == 0 { -1.0 } else { 1.0 };
                        all[(o * row + self.draw(row)) as usize] = sign;
                    }
                }
                all
            }
            _ => (0..elements).map(|_| self.draw(3) as f32).collect(),
        }
    }
}

/// The layers one after the other, channels-last.
fn reference(attrs: &PyramidAttrs, types: &[TensorType], operands: &[Vec<f32>]) -> Vec<f32> {
    let &[n, channels, height, width] = types[0].dims.as_slice() else { panic!("an image") };
    let (n, height, width) = (n as usize, height as usize, width as usize);
    let mut values: Vec<(usize, Vec<f32>)> = vec![(channels as usize, operands[0].clone())];
    for (l, layer) in attrs.layers.iter().enumerate() {
        let (w, b) = (&operands[1 + 2 * l], &operands[2 + 2 * l]);
        let kernel = types[1 + 2 * l].dims[2] as usize;
        let (inner, x) = &values[layer.from.map_or(l, |f| f as usize)];
        let mut y = vec![0.0; n * height * width * b.len()];
        for p in 0..n * height * width {
            let (image, row, col) = (p / (height * width), p / width % height, p % width);
            for (o, bias) in b.iter().enumerate() {
                let mut sum = *bias;
                for (t, taps) in
                    w[o * kernel * kernel * inner..].chunks(*inner).take(kernel * kernel).enumerate()
                {
                    let (i, j) = (row + t / kernel, col + t % kernel);
                    let half = kernel / 2;
                    if i < half || j < half || i - half >= height || j - half >= width {
                        continue;
                    }
                    let at = ((image * height + i - half) * width + j - half) * inner;
                    sum += taps.iter().zip(&x[at..]).map(|(w, x)| w * x).sum::<f32>();
                }
                y[p * b.len() + o] = sum;
            }
        }
        for step in &layer.then {
            match step {
                PyramidStep::Relu => y.iter_mut().for_each(|y| *y = y.max(0.0)),
                PyramidStep::AddLayer { of } => {
                    y.iter_mut().zip(&values[*of as usize].1).for_each(|(y, r)| *y += r)
                }
                other => panic!("{other:?}"),
            }
        }
        values.push((b.len(), y));
    }
    values.pop().expect("a layer").1
}

#[test]
fn a_stage_and_its_configuration_are_recognised() {
    let (attrs, types) = stage(3, 4, 56, 56);
    assert_eq!(attrs, PyramidAttrs::stage(3, true));
    let refs: Vec<&TensorType> = types.iter().collect();
    let found = stage_of(&attrs, &refs).expect("a stage");
    assert_eq!(found, Stage { blocks: 3, height: 56, width: 56, side: true });
    let machine = Machine::named("h200").expect("a profile");
    let ways = configs(&found, Precision::Tf32, Layout::ChannelsLast, 4, &machine);
    assert!(!ways.is_empty());
    for way in ways {
        let config = Config::Stage(way);
        assert_eq!(config.to_string().parse(), Ok(config));
    }
    assert!(configs(&found, Precision::Tf32, Layout::RowMajor, 4, &machine).is_empty());
    assert!(configs(&found, Precision::Bf16, Layout::ChannelsLast, 4, &machine).is_empty());
    let refused = |config| kernel(&found, &config, Precision::Tf32, Layout::ChannelsLast, 4).is_err();
    let config = way(&[2, 4, 6, 4, 3, 5, 3, 3], 9);
    assert!(!refused(config));
    assert!(refused(way(&[2, 4, 6, 4, 1, 5, 3, 3], 9)));
    assert!(refused(way(&[2, 4, 6, 4, 3, 5, 3], 9)), "eight rings");
    assert!(refused(way(&[2, 4, 6, 4, 3, 5, 3, 3], 6)), "seven roles");
    assert_eq!(StageConfig::new(&[2; 15], 9), None);
    assert_eq!(counters(&found, 4).0, (4u64 * 7 * 4 * 7).next_multiple_of(256));
    let rings = 56 * 56 * 4 * ((6 + 5) * 256 + (2 + 4 + 4 + 3 + 3 + 3) * 64);
    assert_eq!(workspace(&found, &config, 4), counters(&found, 4) + vdnn_ir::Bytes(rings));
    // Not quite a stage.
    for wrong in 0..attrs.layers.len() {
        let mut other = attrs.clone();
        other.layers[wrong].then.clear();
        other.layers[wrong].then.push(PyramidStep::Clip { lo: vdnn_ir::Real(0.0), hi: vdnn_ir::Real(6.0) });
        assert_eq!(stage_of(&other, &refs), None, "layer {wrong}");
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "a skipped test must say so")]
fn kernels_of_stages_equal_their_layers() {
    let Some(compiler) = std::env::var_os("VDNNC_EMULATOR_CXX") else {
        eprintln!("skipped: needs a C++17 compiler named in VDNNC_EMULATOR_CXX");
        return;
    };
    // Images go round rings of two and three, blocks make several tiles of a band or of an image.
    for (k, (blocks, batch, height, width, config)) in
        [(2, 5, 8, 16, way(&[2, 3, 2, 2, 3], 5)), (3, 4, 24, 8, way(&[2, 2, 3, 3, 2, 2, 2, 3], 9))]
            .into_iter()
            .enumerate()
    {
        let (attrs, types) = stage(blocks, batch, height, width);
        let refs: Vec<&TensorType> = types.iter().collect();
        let found = stage_of(&attrs, &refs).expect("a stage");
        let kernel = kernel(&found, &config, Precision::Tf32, Layout::ChannelsLast, batch).expect("a kernel");
        let mut source = Source(7 + k as u64);
        let operands: Vec<Vec<f32>> = types.iter().map(|t| source.operand(t)).collect();
        let want = reference(&attrs, &types, &operands);
        let most = want.iter().fold(0.0f32, |m, w| m.max(w.abs()));
        assert!((50.0..2048.0).contains(&most), "{most}: nothing is rounded, nothing trivial");

        let folder = std::env::temp_dir().join(format!("vdnn-stage-{k}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let file = |name: &str| folder.join(name);
        std::fs::write(file("emulator.h"), include_str!("tensor/emulator.h")).expect("a file");
        std::fs::write(file("roles.h"), include_str!("tensor/roles.h")).expect("a file");
        let text = kernel.source.replace("extern \"C\" ", "");
        let mut main = String::new();
        for (i, operand) in operands.iter().enumerate() {
            let _ = writeln!(main, "  float* o{i} = take({});", operand.len());
        }
        let list: Vec<String> = (0..operands.len()).map(|i| format!("o{i}")).collect();
        let (room, zeros) = (workspace(&found, &config, batch).0, counters(&found, batch).0);
        let program = format!(
            "#include \"emulator.h\"\n#include \"roles.h\"\n{text}\nstatic FILE* in;\n\
             static float* take(size_t n) {{ float* p = (float*)aligned_alloc(64, (n * 4 + 63) / 64 * 64); \
             if (fread(p, 4, n, in) != n) fail(\"input\"); return p; }}\n\
             int main(int, char** args) {{\n  in = fopen(args[1], \"rb\"); FILE* out = fopen(args[2], \"wb\"); late = args[3][0] == '1';\n{main}  \
             const size_t n = {};\n  float* y = (float*)aligned_alloc(64, n * 4); memset(y, 0xff, n * 4);\n  \
             unsigned char* w = (unsigned char*)aligned_alloc(256, {}); memset(w, 0xff, {room}); memset(w, 0, {zeros});\n  \
             launch({}, {}, {}, [&] {{ {}({}, y, w); }}, true);\n  fwrite(y, 4, n, out); return fclose(out);\n}}\n",
            want.len(),
            room.next_multiple_of(256),
            kernel.grid[0],
            kernel.threads,
            kernel.shared.0,
            kernel.entry,
            list.join(", "),
        );
        std::fs::write(file("kernel.cpp"), program).expect("a file");
        let bytes: Vec<u8> = operands.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
        std::fs::write(file("in"), bytes).expect("a file");
        let mut build = Command::new(&compiler);
        build.args(["-std=c++17", "-O2", "-w", "-ffp-contract=off", "-I"]).arg(&folder);
        let built = build.arg(file("kernel.cpp")).arg("-o").arg(file("kernel")).status();
        assert!(built.is_ok_and(|s| s.success()), "the kernel does not build, see {}", folder.display());
        for late in ["0", "1"] {
            let ran = Command::new(file("kernel")).arg(file("in")).arg(file("out")).arg(late).status();
            assert!(ran.is_ok_and(|s| s.success()), "the kernel does not run, see {}", folder.display());
            let out = std::fs::read(file("out")).expect("results");
            let got: Vec<f32> =
                out.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            assert_eq!(got.len(), want.len());
            for (e, (got, want)) in got.iter().zip(&want).enumerate() {
                assert_eq!(got, want, "stage {k}, late {late}, element {e}, see {}", folder.display());
            }
        }
        let _ = std::fs::remove_dir_all(&folder);
    }
}
