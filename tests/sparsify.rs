//! Sparse plans compute what dense ones do, on random networks full of zeros and on a real one.

use std::collections::BTreeMap;
use std::rc::Rc;
use vdnn_frontends::tensors::npz;
use vdnn_interp::{NaiveKernels, interpret};
use vdnn_ir::graph::Def;
use vdnn_ir::{Graph, Mode, Op, Tensor};
use vdnn_passes::pass::run_pass;
use vdnn_passes::simplify::Simplify;
use vdnn_passes::sparsify::{Facts, ParamFacts, Sparse, SparseMode, Sparsify};
use vdnn_passes::{AlgoMode, PassCtx, Policy, Stats};
use vdnn_plan::Command;
use vdnn_runtime::cpu::CpuOptions;
use vdnn_tests::arbitrary::{Rng, random_cnn, random_inputs, random_params};
use vdnn_tests::{data, harness};
use vdnnc::commands::load;

const GRAPHS: u64 = 120;

/// Weights with zeros of every kind: batch norms without a factor, filters and channels without
/// weights, and single ones.
fn zeroed_params(graph: &Graph, seed: u64) -> BTreeMap<String, Tensor> {
    let mut params = random_params(graph, seed);
    let mut rng = Rng::named(seed, "zeros");
    let mut change = |v, f: &mut dyn FnMut(&mut Rng, usize, &mut f32), rng: &mut Rng| {
        let name = &graph.value(v).name;
        let Some(t) = params.get(name) else { return };
        let mut values = t.f32().to_vec();
        values.iter_mut().enumerate().for_each(|(i, x)| f(rng, i, x));
        let new = Tensor::from_f32(t.ty().dims.iter().copied(), &values);
        params.insert(name.clone(), new);
    };
    for (_, node) in graph.nodes() {
        let is_param = |v| matches!(graph.value(v).def, Def::Param(_));
        match &node.op {
            Op::BatchNormInfer { .. } if node.inputs[1..].iter().all(|&v| is_param(v)) => {
                let dead: Vec<bool> = (0..graph.ty(node.inputs[1]).dims[0]).map(|_| rng.one_in(3)).collect();
                let kind = rng.range(0, 2);
                change(node.inputs[1], &mut |_, i, x| *x = if dead[i] { 0.0 } else { *x }, &mut rng);
                change(
                    node.inputs[2],
                    &mut |rng, i, x| {
                        if dead[i] {
                            *x = match kind {
                                0 => -x.abs(),
                                1 => 0.0,
                                _ => {
                                    if rng.one_in(2) {
                                        -0.5
                                    } else {
                                        0.25
                                    }
                                }
                            }
                        }
                    },
                    &mut rng,
                );
            }
            Op::Conv(_) | Op::Gemm { .. } if is_param(node.inputs[1]) => {
                let dims = &graph.ty(node.inputs[1]).dims;
                let slice = dims[2..].iter().product::<u64>() as usize;
                let channels = dims[1] as usize;
                let (m, c) = (rng.range(0, dims[0] - 1) as usize, rng.range(0, dims[1] - 1) as usize);
                change(
                    node.inputs[1],
                    &mut |rng, i, x| {
                        let (at_m, at_c) = (i / slice / channels, i / slice % channels);
                        if at_m == m || at_c == c || rng.one_in(2) {
                            *x = 0.0;
                        }
                    },
                    &mut rng,
                );
            }
            _ => {}
        }
    }
    params
}

fn sparse(params: &BTreeMap<String, Tensor>, mode: SparseMode) -> Sparse {
    let of = |(name, t): (&String, &Tensor)| {
        let float = t.ty().dtype == vdnn_ir::DType::F32;
        float.then(|| (name.clone(), ParamFacts::of(&t.ty().dims, t.f32())))
    };
    let facts = Rc::new(Facts::new(params.iter().filter_map(of)));
    Sparse { mode, facts, on_host: true, ..Sparse::default() }
}

fn total(stats: &[Stats], name: &str) -> u64 {
    stats.iter().filter_map(|s| s.get(name)).sum()
}

/// The largest difference, relative to the largest value.
fn distance(a: &Tensor, b: &Tensor) -> f32 {
    let scale = b.f32().iter().fold(1e-30f32, |m, x| m.max(x.abs()));
    a.f32().iter().zip(b.f32()).fold(0.0, |m: f32, (x, y)| m.max((x - y).abs())) / scale
}

#[test]
fn removing_channels_changes_no_value() {
    let cost = harness::cost(&harness::options(Mode::Infer, Policy::None, AlgoMode::Memory));
    let cx = PassCtx { cost: &cost };
    let (mut all, mut exact) = (Vec::new(), 0);
    for seed in 0..GRAPHS {
        let mut dense = random_cnn(seed);
        run_pass(&Simplify, &mut dense, &cx).expect("it simplifies");
        let (inputs, params) = (random_inputs(&dense, seed), zeroed_params(&dense, seed));
        let expected = interpret(&dense, &inputs, &params, &NaiveKernels).expect("dense").outputs;
        for mode in [SparseMode::Auto, SparseMode::Channels] {
            let mut graph = dense.clone();
            let pass = Sparsify(sparse(&params, mode));
            let outcome = run_pass(&pass, &mut graph, &cx).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            let found = interpret(&graph, &inputs, &params, &NaiveKernels).expect("sparse").outputs;
            let folded = outcome.stats["folded_constants"];
            for (name, want) in &expected {
                let got = &found[name];
                assert_eq!(got.ty(), want.ty());
                if folded == 0 {
                    // As numbers: a sum may lose the sign of its zero.
                    assert_eq!(got.f32(), want.f32(), "seed {seed}, {mode}\n{dense}\n{graph}");
                    exact += 1;
                } else {
                    assert!(distance(got, want) < 2e-6, "seed {seed}, {mode}: {}", distance(got, want));
                }
            }
            let again = run_pass(&pass, &mut graph, &cx).expect("a second time").stats;
            assert!(again["removed_macs"] <= outcome.stats["removed_macs"]);
            all.push(outcome.stats);
        }
    }
    assert!(exact > 100, "only {exact} without constants");
    for (what, least) in [("removed_channels", 500), ("gathers", 20), ("folded_constants", 20)] {
        assert!(total(&all, what) >= least, "{what}: {}", total(&all, what));
    }
}

#[test]
fn sparse_plans_give_what_dense_plans_give() {
    let (mut packed, mut gathers, mut skipping) = (0, 0, 0);
    let (auto, channels) = (SparseMode::Auto, SparseMode::Channels);
    let modes =
        [SparseMode::Off, auto, channels, SparseMode::Csr, SparseMode::Block, SparseMode::Activations];
    for seed in 0..GRAPHS / 2 {
        let graph = random_cnn(seed);
        let batch = graph.ty(graph.inputs()[0]).dims[0];
        let params = zeroed_params(&graph, seed);
        let mut results: Vec<BTreeMap<String, Tensor>> = Vec::new();
        for mode in modes {
            for threads in [1, 2] {
                let mut options = harness::options(Mode::Infer, Policy::None, AlgoMode::Memory);
                options.sparse = sparse(&params, mode);
                let plan = harness::compile(&graph, batch, &options).plan;
                let reread =
                    vdnn_plan::parse::parse_plan(&plan.to_string()).expect("the text of a plan parses");
                assert_eq!(reread, plan);
                for command in &plan.commands {
                    if let Command::Launch { op, .. } = command {
                        packed += u64::from(matches!(op, Op::SparseConv { .. }));
                        gathers += u64::from(matches!(op, Op::Gather { .. }));
                        skipping += u64::from(matches!(op, Op::SparseInputConv { .. }));
                    }
                }
                let inputs = harness::step_inputs(&plan, random_inputs(&graph, seed));
                let cpu = CpuOptions { poison: true, threads, ..CpuOptions::default() };
                let outputs = harness::executor(plan, &params, cpu).step(&inputs).expect("the plan runs");
                if threads == 2 {
                    assert_eq!(
                        results.last(),
                        Some(&outputs),
                        "seed {seed}, {mode}: another number of threads"
                    );
                }
                results.push(outputs);
            }
        }
        for result in &results {
            for (name, want) in &results[0] {
                let error = distance(&result[name], want);
                assert!(error < 1e-5, "seed {seed}, `{name}`: {error}");
            }
        }
    }
    assert!(packed > 200 && gathers > 20, "{packed} packed, {gathers} gathers");
    assert!(skipping > 40, "{skipping} leave out zeros of inputs");
}

/// Random weights of which of every four channels two others are kept.
fn two_of_four(graph: &Graph, seed: u64) -> BTreeMap<String, Tensor> {
    let mut params = random_params(graph, seed);
    for (_, node) in graph.nodes() {
        let turned = match &node.op {
            Op::Conv(_) => false,
            Op::Gemm { trans_b, .. } => !trans_b,
            _ => continue,
        };
        let Some(t) = params.get_mut(&graph.value(node.inputs[1]).name) else { continue };
        let dims = t.ty().dims.clone();
        let (c, taps) = (dims[1] as usize, dims[2..].iter().product::<u64>() as usize);
        let kept = |i: usize| {
            let (m, c) = if turned { (i % c, i / c) } else { (i / taps / c, i / taps % c) };
            let first = m + c / 4 + i % taps;
            c % 4 == first % 4 || c % 4 == (first + 1 + first % 3) % 4
        };
        let values = t.f32().iter().enumerate().map(|(i, &x)| if kept(i) { x } else { 0.0 });
        *t = Tensor::from_f32(dims.iter().copied(), &values.collect::<Vec<_>>());
    }
    params
}

#[test]
fn weights_of_two_of_four_give_what_dense_ones_give() {
    let (mut packed, mut layers) = (0, 0);
    for seed in 0..GRAPHS / 4 {
        let graph = random_cnn(seed);
        let batch = graph.ty(graph.inputs()[0]).dims[0];
        let params = two_of_four(&graph, seed);
        let run = |mode| {
            let mut options = harness::options(Mode::Infer, Policy::None, AlgoMode::Memory);
            options.precision = vdnn_ir::Precision::Bf16;
            options.sparse = sparse(&params, mode);
            let plan = harness::compile(&graph, batch, &options).plan;
            let count = |wanted: fn(&Op) -> bool| {
                let is = |c: &&Command| matches!(c, Command::Launch { op, .. } if wanted(op));
                plan.commands.iter().filter(is).count()
            };
            let counts = [
                count(|op| {
                    let form = vdnn_ir::sparse::SparseForm::TwoFourBf16;
                    matches!(op, Op::SparseConv { form: f, .. } if *f == form)
                }),
                count(|op| op.is_conv() || matches!(op, Op::Gemm { .. })),
            ];
            let inputs = harness::step_inputs(&plan, random_inputs(&graph, seed));
            let cpu = CpuOptions { poison: true, threads: 1, ..CpuOptions::default() };
            (harness::executor(plan, &params, cpu).step(&inputs).expect("the plan runs"), counts)
        };
        let (dense, _) = run(SparseMode::Off);
        let (got, [here, left]) = run(SparseMode::TwoFour);
        packed += here;
        layers += here + left;
        for (name, want) in &dense {
            let error = distance(&got[name], want);
            // Sums in another order round to other bf16 numbers.
            assert!(error < 3e-2, "seed {seed}, `{name}`: {error}");
        }
    }
    assert!(packed > 40 && 2 * packed > layers, "{packed} of {layers} layers packed");
}

#[test]
fn the_dead_channels_of_a_trained_densenet_are_found_and_removed() {
    let Some(model) = data::shared("pretrained/densenet169.onnx") else { return };
    let Some(reference) = data::shared("pretrained/densenet169.reference.npz") else { return };
    let imported = harness::import(&model, Some(1), false);
    let mut images = npz::read(&reference).expect("a reference").remove("input").expect("images");
    let first = images.bytes().len() / 4;
    images = Tensor::from_bytes(vdnn_ir::TensorType::f32([1, 3, 224, 224]), &images.bytes()[..first])
        .expect("one");
    let params = harness::params(&imported);
    let run = |sparse: Sparse| {
        let mut options = harness::options(Mode::Infer, Policy::None, AlgoMode::Memory);
        options.sparse = sparse;
        let compiled = harness::compile(&imported.graph, 1, &options);
        let rows = &compiled.summary.timings.rows;
        let stats = rows.iter().find(|r| r.name == "sparsify").map(|r| r.stats.clone());
        let name = compiled.plan.inputs[0].name.clone();
        let inputs = BTreeMap::from([(name, images.clone())]);
        let cpu = CpuOptions { threads: 2, ..CpuOptions::default() };
        let outputs = harness::executor(compiled.plan, &params, cpu).step(&inputs).expect("the plan runs");
        (outputs, stats.unwrap_or_default())
    };
    let facts = Rc::new(load::facts(&imported.weights));
    let mode = SparseMode::Channels;
    let (dense, _) = run(Sparse::default());
    let (lossless, none) = run(Sparse { mode, facts: Rc::clone(&facts), on_host: true, ..Sparse::default() });
    assert_eq!(none["dead_channels"], 0, "no factor is exactly zero");
    let (sparse, stats) =
        run(Sparse { mode, facts, on_host: true, dead_tolerance: 1e-6, ..Sparse::default() });
    assert_eq!(stats["dead_channels"], 8026);
    let share = stats["removed_macs"] as f64 / stats["macs"] as f64;
    assert!((0.039..0.042).contains(&share), "{share} of the multiply-adds are removed");
    for (name, want) in &dense {
        assert_eq!(&lossless[name], want, "nothing is lost, nothing changes");
        let error = distance(&sparse[name], want);
        assert!(error <= 1e-6, "`{name}`: {error}");
    }
}
