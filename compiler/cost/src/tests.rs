//! Tests of the cost model.

use super::*;
use vdnn_ir::op::{ConvAttrs, UnaryKind};
use vdnn_ir::{DType, Real};

/// A 2-D convolution: (batch, in channels, extent, out channels, kernel, stride, padding).
type Layer = (u64, u64, u64, u64, u64, u64, u64);

fn attrs(k: u64, stride: u64, pad: u64, groups: u64) -> ConvAttrs {
    ConvAttrs { groups, ..ConvAttrs::square(k, stride, pad, 1) }
}

fn layer_types((n, c, h, k, r, s, p): Layer) -> (TensorType, TensorType, TensorType) {
    let out = (h + 2 * p - r) / s + 1;
    (TensorType::f32([n, c, h, h]), TensorType::f32([k, c, r, r]), TensorType::f32([n, k, out, out]))
}

/// The options of the three directions: forward, backward data, backward filter.
fn options(cost: &CostModel, layer: Layer) -> [Vec<ConvOption>; 3] {
    let (x, w, y) = layer_types(layer);
    let conv = attrs(layer.4, layer.5, layer.6, 1);
    let dgrad = Op::ConvDgrad { conv: conv.clone(), x_dims: x.dims.clone() };
    let wgrad = Op::ConvWgrad { conv: conv.clone(), w_dims: w.dims.clone() };
    [
        cost.conv_options(&Op::Conv(conv), &[&x, &w], &[&y]),
        cost.conv_options(&dgrad, &[&y, &w], &[&x]),
        cost.conv_options(&wgrad, &[&x, &y], &[&w]),
    ]
}

fn option(options: &[ConvOption], algo: ConvAlgo) -> Option<ConvOption> {
    options.iter().copied().find(|o| o.algo == algo)
}

fn f32_model(device: &str) -> CostModel {
    CostModel::named(device, Precision::F32).expect("shipped profile")
}

#[test]
fn shipped_profiles_load_under_their_names() {
    assert_eq!(profile::SHIPPED.map(|(name, _)| name).as_slice(), CostModel::names());
    for &name in CostModel::names() {
        for precision in Precision::ALL {
            let cost = CostModel::named(name, precision).expect("shipped profile");
            assert_eq!(cost.device_name(), name);
            assert!(cost.capacity() >= Bytes(8 << 30), "{name}");
            assert!(cost.link_share() <= PPM && cost.link_share() >= PPM / 2, "{name}");
            assert!(cost.kernel_share(2) <= cost.kernel_share(1) && cost.kernel_share(0) == PPM, "{name}");
        }
    }
    assert!(CostModel::named("gtx-9000", Precision::F32).is_none());
}

#[test]
fn precisions_parse_and_print() {
    for p in Precision::ALL {
        assert_eq!(p.to_string().parse(), Ok(p));
    }
    assert!("fp8".parse::<Precision>().is_err_and(|e| e.contains("tf32")));
}

#[test]
fn bad_profiles_are_refused_by_name_of_the_field() {
    let good = profile::SHIPPED[0].1;
    let try_with = |from: &str, to: &str| {
        assert!(good.contains(from), "the test edits `{from}`");
        CostModel::from_toml(&good.replace(from, to), Precision::F32).map(|_| ()).unwrap_err().to_string()
    };
    assert!(try_with("bandwidth_gbps = 4200.0", "bandwidth_gbps = nan").contains("memory.bandwidth_gbps"));
    assert!(try_with("bandwidth_gbps = 4200.0", "bandwidth_gbps = 0.0").contains("memory.bandwidth_gbps"));
    assert!(try_with("both_ways = 0.914", "both_ways = 1.5").contains("copy.both_ways"));
    assert!(try_with("reduction_tile = 32", "reduction_tile = 0").contains("conv.tf32.reduction_tile"));
    assert!(try_with("139GiB", "lots").contains("memory.capacity"));
    assert!(try_with("latency_us", "latency_ns").contains("latency_ns"));
    assert!(try_with("implicit_gemm = 0.09", "gemm = 0.09").contains("conv.tf32.wgrad"));
    assert!(try_with("implicit_gemm = 0.09", "implicit_gemm = 0.09\nfft = 0.1").contains("f32 only"));
    assert!(CostModel::from_toml("", Precision::F32).is_err());
}

#[test]
fn workspaces_meet_what_cudnn_asks_for() {
    let h200 = f32_model("h200");
    // Layers 3 and 2 of one-tower AlexNet at batch 256, measured with cuDNN 9.19.
    let conv3 = options(&h200, (256, 192, 13, 384, 3, 1, 1));
    let ws = option(&conv3[0], ConvAlgo::WinogradNonfused).expect("legal").workspace;
    assert_eq!(ws, Bytes(4 * 36 * (4 * 4 * 256 * (192 + 384) + 192 * 384)));
    assert_eq!(ws.0 / (1 << 20), 334);
    let conv2 = options(&h200, (256, 64, 27, 192, 5, 1, 2));
    let ws = option(&conv2[0], ConvAlgo::FftTiling).expect("legal").workspace;
    assert_eq!(ws, Bytes(8 * 32 * 17 * (256 * (64 + 192) + 64 * 192)));
    assert_eq!(ws.0 / (1 << 20), 323);
    // The same library, more than one tile to an image, forward and backward data. Of another
    // profile: the H200's own would say what was measured.
    let v100 = f32_model("v100");
    for (layer, bytes) in [
        ((64, 64, 56, 64, 3, 1, 1), 89_128_960),
        ((64, 64, 224, 64, 3, 1, 1), 89_128_960),
        ((64, 64, 112, 128, 3, 1, 1), 142_606_336),
        ((64, 128, 112, 128, 3, 1, 1), 213_909_504),
        ((64, 128, 56, 256, 3, 1, 1), 356_515_840),
        ((64, 256, 56, 256, 3, 1, 1), 570_425_344),
    ] {
        for direction in &options(&v100, layer)[..2] {
            let ws = option(direction, ConvAlgo::FftTiling).expect("legal").workspace;
            assert_eq!(ws, Bytes(bytes), "{layer:?}");
        }
    }
    // VGG conv2_2, 3_2 and 4_2 at batch 256: 7.1, 3.5 and 1.8 GiB.
    for (layer, gib) in [
        ((256, 128, 112, 128, 3, 1, 1), 7.1),
        ((256, 256, 56, 256, 3, 1, 1), 3.5),
        ((256, 512, 28, 512, 3, 1, 1), 1.8),
    ] {
        let ws = option(&options(&h200, layer)[0], ConvAlgo::WinogradNonfused).expect("legal").workspace;
        assert!((ws.as_f64() / Bytes::GIB.as_f64() / gib - 1.0).abs() < 0.05, "{ws} for {gib} GiB");
    }
    // Hand-computed small ones.
    let [fwd, _, wgrad] = options(&v100, (2, 3, 14, 8, 3, 1, 1));
    let ws = |o: &[ConvOption], a| option(o, a).expect("legal").workspace.0;
    assert_eq!(ws(&fwd, ConvAlgo::ImplicitGemm), 0);
    assert_eq!(ws(&fwd, ConvAlgo::ImplicitPrecompGemm), 4 * (3 * 9 + 14 * 14));
    assert_eq!(ws(&wgrad, ConvAlgo::ImplicitPrecompGemm), 4 * (3 * 9 + 14 * 14 + 8 * 3 * 9));
    assert_eq!(ws(&fwd, ConvAlgo::Gemm), 4 * 3 * 9 * 14 * 14);
    assert_eq!(ws(&fwd, ConvAlgo::Winograd), 4 * 16 * 3 * 8);
    // 14 + 2 is 16 already: half spectra of 16x9.
    assert_eq!(ws(&fwd, ConvAlgo::Fft), 8 * 16 * 9 * (2 * (3 + 8) + 3 * 8));
}

#[test]
fn legality_follows_stride_kernel_groups_and_direction() {
    let v100 = f32_model("v100");
    let algos = |o: &[ConvOption]| {
        let mut a: Vec<_> = o.iter().map(|o| o.algo).collect();
        a.sort();
        a
    };
    let [fwd, dgrad, wgrad] = options(&v100, (4, 16, 28, 16, 3, 1, 1));
    assert_eq!(fwd.len(), 7);
    assert!(option(&dgrad, ConvAlgo::Gemm).is_none() && option(&dgrad, ConvAlgo::Winograd).is_some());
    assert!(option(&wgrad, ConvAlgo::Gemm).is_none() && option(&wgrad, ConvAlgo::Winograd).is_none());
    let plain = [ConvAlgo::ImplicitGemm, ConvAlgo::ImplicitPrecompGemm, ConvAlgo::Gemm];
    assert_eq!(algos(&options(&v100, (4, 16, 28, 16, 3, 2, 1))[0]), plain, "strided");
    let with_fft = [plain.as_slice(), &[ConvAlgo::Fft]].concat();
    assert_eq!(algos(&options(&v100, (4, 16, 28, 16, 1, 1, 0))[0]), with_fft, "1x1 has no overlap to tile");
    let five = algos(&options(&v100, (4, 16, 28, 16, 5, 1, 2))[0]);
    assert!(five.contains(&ConvAlgo::WinogradNonfused) && !five.contains(&ConvAlgo::Winograd));
    let large = algos(&options(&v100, (1, 4, 300, 4, 3, 1, 1))[0]);
    assert!(!large.contains(&ConvAlgo::Fft) && large.contains(&ConvAlgo::FftTiling));
    // Padding as wide as the kernel, and groups.
    assert_eq!(algos(&options(&v100, (4, 16, 28, 16, 1, 1, 3))[0]), plain);
    let (x, w, y) =
        (TensorType::f32([4, 16, 28, 28]), TensorType::f32([16, 4, 3, 3]), TensorType::f32([4, 16, 28, 28]));
    assert_eq!(algos(&v100.conv_options(&Op::Conv(attrs(3, 1, 1, 4)), &[&x, &w], &[&y])), plain);
    // Transforms are f32 only, and Hopper has no fused Winograd.
    let h200 = CostModel::named("h200", Precision::Tf32).expect("shipped");
    assert_eq!(algos(&options(&h200, (4, 16, 28, 16, 3, 1, 1))[0]), plain[..2]);
    assert!(option(&options(&f32_model("h200"), (4, 16, 28, 16, 3, 1, 1))[0], ConvAlgo::Winograd).is_none());
}

#[test]
fn options_are_sorted_and_agree_with_kernel() {
    let layers: [Layer; 6] = [
        (32, 3, 224, 64, 7, 2, 3),
        (32, 64, 56, 64, 3, 1, 1),
        (32, 256, 14, 1024, 1, 1, 0),
        (1, 1, 1, 1, 1, 1, 0),
        (128, 192, 28, 32, 5, 1, 2),
        (64, 512, 7, 4096, 7, 1, 0),
    ];
    for &name in CostModel::names() {
        for precision in Precision::ALL {
            let cost = CostModel::named(name, precision).expect("shipped");
            for layer in layers {
                let (x, w, y) = layer_types(layer);
                let op = Op::Conv(attrs(layer.4, layer.5, layer.6, 1));
                for opts in options(&cost, layer) {
                    assert!(opts.is_sorted_by_key(|o| (o.time, o.workspace, o.algo)));
                    assert!(opts.iter().any(|o| o.workspace == Bytes::ZERO), "{name} {layer:?}");
                }
                for o in cost.conv_options(&op, &[&x, &w], &[&y]) {
                    assert_eq!(cost.kernel(&op, &[&x, &w], &[&y], Some(o.algo)), o.time);
                }
            }
        }
    }
}

#[test]
fn malformed_operands_are_priced_without_panic() {
    let cost = f32_model("h200");
    let (x, huge) = (TensorType::f32([4]), TensorType::f32([u64::MAX, u64::MAX, 3, 3]));
    let op = Op::Conv(attrs(3, 1, 1, 1));
    for inputs in [&[] as &[&TensorType], &[&x], &[&x, &x], &[&huge, &huge]] {
        for outputs in [&[] as &[&TensorType], &[&huge]] {
            let opts = cost.conv_options(&op, inputs, outputs);
            assert!(opts.iter().any(|o| o.workspace == Bytes::ZERO));
        }
    }
}

#[test]
fn times_never_decrease_with_the_batch() {
    for &name in CostModel::names() {
        let cost = f32_model(name);
        let mut last = [Nanos::ZERO; 10];
        for n in 1..40 {
            let mut now = Vec::new();
            let [f, d, w] = options(&cost, (n, 24, 30, 40, 3, 1, 1));
            now.extend([&f, &d, &w].map(|o| option(o, ConvAlgo::ImplicitGemm).expect("listed").time));
            // The cpu profile lists no other algorithm.
            now.extend(
                [&f, &d, &w]
                    .map(|o| option(o, ConvAlgo::ImplicitPrecompGemm).map_or(Nanos::ZERO, |o| o.time)),
            );
            let (x, c) = (TensorType::f32([n, 24, 30, 30]), TensorType::f32([24]));
            now.push(cost.kernel(&Op::Unary(UnaryKind::Relu), &[&x], &[&x], None));
            let bn = Op::BatchNormTrain { eps: Real(1e-5), momentum: Real(0.9) };
            now.push(cost.kernel(&bn, &[&x, &c, &c, &c, &c], &[&x, &c, &c, &c, &c], None));
            now.push(cost.copy(CopyDir::D2h, x.bytes()));
            now.push(cost.copy(CopyDir::H2d, x.bytes()));
            for (a, b) in last.iter().zip(&now) {
                assert!(a <= b, "{name} batch {n}: {a} then {b}");
            }
            last.copy_from_slice(&now);
        }
    }
}

#[test]
fn memory_bound_ops_cost_their_passes_over_memory() {
    let cost = f32_model("h200");
    let x = TensorType::f32([256, 64, 112, 112]);
    let c = TensorType::f32([64]);
    let ns = |passes: f64| 2500.0 + passes * x.bytes().as_f64() / 4200.0;
    let close = |t: Nanos, want: f64| assert!((t.as_f64() / want - 1.0).abs() < 1e-3, "{t} for {want} ns");
    close(cost.kernel(&Op::Unary(UnaryKind::Relu), &[&x], &[&x], None), ns(2.0));
    let bn = Op::BatchNormTrain { eps: Real(1e-5), momentum: Real(0.9) };
    close(cost.kernel(&bn, &[&x, &c, &c, &c, &c], &[&x, &c, &c, &c, &c], None), ns(3.0));
    close(cost.kernel(&Op::BatchNormGrad, &[&x, &x, &c, &c, &c], &[&x, &c, &c], None), ns(5.0));
    // Views and transfers launch nothing.
    let flat = TensorType::f32([x.elements()]);
    assert_eq!(cost.kernel(&Op::Reshape { dims: flat.dims.clone() }, &[&x], &[&flat], None), Nanos::ZERO);
    assert_eq!(cost.kernel(&Op::OffloadStart, &[&x], &[&x], None), Nanos::ZERO);
    let labels = TensorType::new(DType::I64, [8]);
    assert!(cost.kernel(&Op::Unary(UnaryKind::Relu), &[&labels], &[&labels], None) >= Nanos(2500));
}

#[test]
fn copies_take_latency_and_bandwidth() {
    let cost = f32_model("titan-x-maxwell");
    assert_eq!(cost.copy(CopyDir::D2h, Bytes::ZERO), Nanos(10_000));
    assert_eq!(cost.copy(CopyDir::H2d, Bytes(12_800_000)), Nanos(10_000 + 1_000_000));
}

/// Time of a network's convolutions, forward and backward, fastest and without workspace.
fn network(cost: &CostModel, layers: &[Layer]) -> (f64, f64) {
    let (mut fastest, mut memory) = (0.0, 0.0);
    for (i, &layer) in layers.iter().enumerate() {
        for (direction, opts) in options(cost, layer).iter().enumerate() {
            if i == 0 && direction == 1 {
                continue; // the network's input needs no gradient
            }
            fastest += opts[0].time.as_f64();
            memory += option(opts, ConvAlgo::ImplicitGemm).expect("listed").time.as_f64();
        }
    }
    (fastest, memory)
}

fn vgg(n: u64, per_stage: [u64; 5]) -> Vec<Layer> {
    let mut layers = Vec::new();
    let mut c = 3;
    for (stage, &count) in per_stage.iter().enumerate() {
        let k = 64 << stage.min(3);
        for _ in 0..count {
            layers.push((n, c, 224 >> stage, k, 3, 1, 1));
            c = k;
        }
    }
    layers
}

/// vDNN, MICRO 2016, figure 14: base(m) over base(p). Fully connected layers and pools, the
/// same in both, are not in these sums, so the tolerance is wide.
#[test]
fn implicit_gemm_on_titan_x_is_as_slow_as_in_the_paper() {
    let cost = f32_model("titan-x-maxwell");
    let alexnet = [
        (128, 3, 224, 64, 11, 4, 2),
        (128, 64, 27, 192, 5, 1, 2),
        (128, 192, 13, 384, 3, 1, 1),
        (128, 384, 13, 256, 3, 1, 1),
        (128, 256, 13, 256, 3, 1, 1),
    ];
    let overfeat = [
        (128, 3, 221, 96, 7, 2, 0),
        (128, 96, 36, 256, 7, 1, 0),
        (128, 256, 15, 512, 3, 1, 1),
        (128, 512, 15, 512, 3, 1, 1),
        (128, 512, 15, 1024, 3, 1, 1),
        (128, 1024, 15, 1024, 3, 1, 1),
    ];
    let nets = [
        ("AlexNet", alexnet.to_vec(), 0.40),
        ("OverFeat", overfeat.to_vec(), 0.57),
        ("VGG 64", vgg(64, [2, 2, 4, 4, 4]), 0.47),
        ("VGG 128", vgg(128, [2, 2, 4, 4, 4]), 0.42),
        ("VGG 256", vgg(256, [2, 2, 4, 4, 4]), 0.38),
    ];
    for (name, layers, paper) in nets {
        let (fastest, memory) = network(&cost, &layers);
        let ratio = fastest / memory;
        assert!((ratio - paper).abs() < 0.10, "{name}: {ratio:.2} for {paper}");
    }
    // About 6 TFLOP/s on VGG (three directions of 2 x 19.5 G multiply-adds per image).
    let (fastest, _) = network(&cost, &vgg(64, [2, 2, 4, 4, 4]));
    let tflops = 64.0 * 3.0 * 2.0 * 19.5e9 / fastest / 1e3;
    assert!((5.0..7.0).contains(&tflops), "{tflops:.2} TFLOP/s");
}

fn resnet50(n: u64) -> Vec<Layer> {
    let mut layers = vec![(n, 3, 224, 64, 7, 2, 3)];
    let mut c = 64;
    for (stage, blocks) in [3, 4, 6, 3].into_iter().enumerate() {
        let width = 64 << stage;
        for block in 0..blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let (out, h) = (56 >> stage, (56 >> stage) * stride);
            layers.push((n, c, h, width, 1, 1, 0));
            layers.push((n, width, h, width, 3, stride, 1));
            layers.push((n, width, out, 4 * width, 1, 1, 0));
            if block == 0 {
                layers.push((n, c, h, 4 * width, 1, stride, 0));
            }
            c = 4 * width;
        }
    }
    layers
}

/// The convolutions of a network at batch 256, measured on one H200 with cuDNN 9.19, in
/// milliseconds of forward, backward data and backward filter together. bf16 was measured on
/// bf16 tensors; ours are f32, which memory-bound ResNet-50 feels, so it is not compared.
#[test]
fn h200_convolutions_are_near_the_measured_ones() {
    let vgg16 = vgg(256, [2, 2, 3, 3, 3]);
    assert_eq!(resnet50(256).len(), 53);
    for (precision, layers, ms) in [
        (Precision::Tf32, &vgg16, 95.21),
        (Precision::Tf32, &resnet50(256), 36.91),
        (Precision::Bf16, &vgg16, 37.59),
    ] {
        let cost = CostModel::named("h200", precision).expect("shipped");
        let (fastest, _) = network(&cost, layers);
        let ratio = fastest / 1e6 / ms;
        assert!((0.85..1.15).contains(&ratio), "{precision}: {:.1} ms for {ms}", fastest / 1e6);
    }
}

#[test]
fn fft_workspace_and_passes_scale_the_ffts_and_nothing_else() {
    let text = profile::SHIPPED[1].1;
    let spectra_once = text.replace("fft_workspace = 1.47", "").replace("fft_passes = 4.35", "");
    assert!(!spectra_once.contains("fft_passes ="), "the test edits the profile");
    assert!(!spectra_once.contains("fft_workspace ="), "the test edits the profile");
    let plain = CostModel::from_toml(&spectra_once, Precision::F32).expect("both have defaults");
    let layer = (128, 64, 112, 128, 3, 1, 1);
    for (plain, scaled) in options(&plain, layer).iter().zip(&options(&f32_model("titan-x-maxwell"), layer)) {
        for &p in plain {
            let s = option(scaled, p.algo).expect("the same algorithms");
            match p.algo {
                ConvAlgo::Fft => {
                    assert_eq!(s.workspace, Bytes((p.workspace.as_f64() * 1.47).ceil() as u64));
                    assert!(s.time >= p.time);
                }
                ConvAlgo::FftTiling => {
                    assert_eq!(s.workspace, p.workspace, "tiles are held as they are");
                    assert!(s.time >= p.time);
                }
                _ => assert_eq!(s, p),
            }
        }
    }
}

#[test]
fn a_large_fft_passes_through_memory_between_rows_and_columns() {
    let titan = f32_model("titan-x-maxwell");
    // Few channels, so that memory is the limit: half spectra of 32x17 and of 64x33, and the
    // larger ones written and read once more.
    let (small, large) = ((64, 4, 30, 4, 3, 1, 1), (64, 4, 62, 4, 3, 1, 1));
    let of = |layer: Layer| {
        let o = option(&options(&titan, layer)[2], ConvAlgo::Fft).expect("legal");
        let operands = 4 * (2 * 64 * 4 * layer.2 * layer.2 + 4 * 4 * 9);
        (o.time.as_f64() - 4.0 * 5_000.0) * 0.8 * 269.0 - operands as f64
    };
    let spectra = |values: u64| (8 * values * (2 * 64 * 4 + 4 * 4)) as f64;
    let (small, large) = (of(small) / spectra(32 * 17), of(large) / spectra(64 * 33));
    assert!((small - 4.35).abs() < 0.01, "{small}");
    assert!((large - 6.35).abs() < 0.01, "{large}");
}
