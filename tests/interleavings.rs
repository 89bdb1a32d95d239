//! Random graphs x policies x interleavings on the CPU executor give the interpreter's
//! bytes; mutated plans that change meaning are rejected by the checker.

use std::collections::BTreeMap;
use vdnn_interp::interpret;
use vdnn_ir::{Graph, Mode, Tensor};
use vdnn_passes::streams::Streams;
use vdnn_passes::{AlgoMode, Fuse, Policy, SyncMode};
use vdnn_plan::{Command, Plan};
use vdnn_runtime::cpu::kernels::CpuKernels;
use vdnn_runtime::cpu::{CpuMode, CpuOptions};
use vdnn_runtime::executor::Executor;
use vdnn_tests::arbitrary::{random_cnn, random_inputs, random_params};
use vdnn_tests::harness::{self, POLICIES};
use vdnn_tests::mutate::mutate;

/// Graphs in the matrix; each runs under every policy in several interleavings.
const GRAPHS: u64 = 120;
/// Mutations tried in all.
const MUTATIONS: u64 = 1500;
/// Interleavings a mutant is run in, besides issue order.
const INTERLEAVINGS: u64 = 8;

fn inputs(plan: &Plan, graph: &Graph, seed: u64) -> BTreeMap<String, Tensor> {
    let mut inputs = random_inputs(graph, seed);
    for binding in &plan.inputs {
        let ty = &plan.buffers[binding.buf].ty;
        match binding.name.as_str() {
            "labels" => {
                let labels: Vec<i64> = (0..ty.elements()).map(|i| (i % 2) as i64).collect();
                inputs.insert("labels".to_owned(), Tensor::from_i64(ty.dims.iter().copied(), &labels));
            }
            "vdnnc.hyper" => {
                inputs.insert("vdnnc.hyper".to_owned(), harness::hyper(0.05, 0.9, 1e-3));
            }
            "vdnnc.step" => {
                inputs.insert("vdnnc.step".to_owned(), Tensor::from_i64([], &[3]));
            }
            _ => {}
        }
    }
    inputs
}

/// Outputs and parameters of one step, as bytes.
fn step(
    mut executor: Executor<vdnn_runtime::cpu::CpuBackend>,
    plan: &Plan,
    inputs: &BTreeMap<String, Tensor>,
) -> Option<BTreeMap<String, Vec<u8>>> {
    let outputs = executor.step(inputs).ok()?;
    let mut all: BTreeMap<String, Vec<u8>> =
        outputs.into_iter().map(|(n, t)| (format!("output {n}"), t.bytes().to_vec())).collect();
    for p in &plan.params {
        all.insert(format!("param {}", p.name), executor.read_param(&p.name).ok()?.bytes().to_vec());
    }
    Some(all)
}

fn compiled(seed: u64, policy: Policy, sync: SyncMode) -> (Graph, Plan) {
    let graph = random_cnn(seed);
    let batch = graph.ty(graph.inputs()[0]).dims[0];
    let mut options = harness::options(Mode::Train, policy, AlgoMode::Dynamic);
    options.keep_gradients = seed.is_multiple_of(2);
    options.sync = sync;
    let plan = harness::compile(&graph, batch, &options).plan;
    (graph, plan)
}

#[test]
fn random_graphs_give_the_interpreters_bytes_under_every_policy_and_interleaving() {
    let mut runs = 0;
    for seed in 0..GRAPHS {
        let graph = random_cnn(seed);
        let params = random_params(&graph, seed);
        let cost = harness::cost(&harness::options(Mode::Train, Policy::None, AlgoMode::Dynamic));
        let mut joint = graph.clone();
        vdnnc::pipeline::to_joint(
            &mut joint,
            Mode::Train,
            seed.is_multiple_of(2),
            Fuse::Off,
            &cost,
            &mut vdnnc::timing::Timings::default(),
        )
        .expect("the joint graph");
        let mut want: Option<BTreeMap<String, Vec<u8>>> = None;
        for (i, policy) in POLICIES.into_iter().enumerate() {
            let sync = if (seed + i as u64).is_multiple_of(3) { SyncMode::Layer } else { SyncMode::Event };
            let (_, plan) = compiled(seed, policy, sync);
            let inputs = inputs(&plan, &graph, seed);
            let want = want.get_or_insert_with(|| {
                let e = interpret(&joint, &inputs, &params, &CpuKernels::new(1)).expect("the oracle");
                let outputs = e.outputs.into_iter().map(|(n, t)| (format!("output {n}"), t.bytes().to_vec()));
                let params = e.params.into_iter().map(|(n, t)| (format!("param {n}"), t.bytes().to_vec()));
                outputs.chain(params).collect()
            });
            let modes = [
                CpuMode::Serial,
                CpuMode::Interleaved { seed },
                CpuMode::Interleaved { seed: seed + 7919 },
                CpuMode::Threads,
            ];
            for mode in modes {
                let cpu = CpuOptions { threads: 1, mode, poison: true };
                let executor = harness::executor(plan.clone(), &params, cpu);
                let got = step(executor, &plan, &inputs).expect("a step");
                for (name, bytes) in &got {
                    // Literals of the graph become parameters of the plan that the oracle does not list.
                    if let Some(w) = want.get(name) {
                        assert!(w == bytes, "graph {seed}, {policy}, {sync}, {mode:?}: {name} differs");
                    }
                }
                assert!(
                    want.keys().all(|k| got.contains_key(k)),
                    "graph {seed}, {policy}: something is missing"
                );
                runs += 1;
            }
        }
    }
    assert!(runs >= 1000, "only {runs} runs");
}

/// An inference of a random network on several compute streams.
fn spread(seed: u64, streams: u32) -> (Graph, Plan) {
    let graph = random_cnn(seed);
    let batch = graph.ty(graph.inputs()[0]).dims[0];
    let mut options = harness::options(Mode::Infer, Policy::None, AlgoMode::Dynamic);
    options.streams = Streams::Count(streams);
    options.elide_waits = !seed.is_multiple_of(4);
    options.fuse = [Fuse::Off, Fuse::Epilogue][(seed % 2) as usize];
    let plan = harness::compile(&graph, batch, &options).plan;
    (graph, plan)
}

#[test]
fn branches_on_several_compute_streams_give_the_bytes_of_one() {
    let (mut several, mut waits) = (0, 0);
    for seed in 0..GRAPHS {
        let params = random_params(&random_cnn(seed), seed);
        let mut want = None;
        for streams in [1, 2, 4] {
            let (graph, plan) = spread(seed, streams);
            let inputs = random_inputs(&graph, seed);
            several += u64::from(plan.compute_streams() > 1);
            waits += plan.commands.iter().filter(|c| matches!(c, Command::Wait { .. })).count();
            let text = plan.to_string();
            assert_eq!(vdnn_plan::parse_plan(&text).expect("own text"), plan);
            let modes = (0..3).map(|i| CpuMode::Interleaved { seed: seed + 7919 * i });
            for mode in [CpuMode::Serial, CpuMode::Threads].into_iter().chain(modes) {
                let cpu = CpuOptions { threads: 1, mode, poison: true };
                let executor = harness::executor(plan.clone(), &params, cpu);
                let got = step(executor, &plan, &inputs).expect("a step");
                let want = want.get_or_insert_with(|| got.clone());
                assert!(*want == got, "graph {seed} on {streams} streams, {mode:?}: other bytes");
            }
        }
    }
    assert!(several > GRAPHS / 4 && waits > 100, "only {several} plans on several streams, {waits} waits");
}

/// A mutation changes meaning if any interleaving alters an output byte (poison included).
#[test]
#[expect(clippy::print_stderr, reason = "the counts are the result")]
fn every_mutation_that_changes_meaning_is_rejected() {
    let (mut mutated, mut changing, mut rejected, mut needless) = (0u64, 0u64, 0u64, 0u64);
    let mut missed = Vec::new();
    let mut attempt = 0u64;
    while mutated < MUTATIONS && attempt < 4 * MUTATIONS {
        let seed = attempt % 40;
        let policy = [Policy::All, Policy::Conv, Policy::None][(attempt % 3) as usize];
        let (graph, plan) = match attempt % 4 {
            3 => spread(seed, 2 + (attempt % 3) as u32),
            _ => compiled(seed, policy, SyncMode::Event),
        };
        attempt += 1;
        let params = random_params(&graph, seed);
        let inputs = inputs(&plan, &graph, seed);
        let reference = step(
            harness::executor(
                plan.clone(),
                &params,
                CpuOptions { threads: 1, mode: CpuMode::Serial, poison: true },
            ),
            &plan,
            &inputs,
        )
        .expect("the plan runs");
        for k in 0..12 {
            let Some((mutant, what)) = mutate(&plan, attempt * 1000 + k) else { continue };
            mutated += 1;
            let accepted = vdnn_plan::check::check(&mutant).is_ok();
            let modes = std::iter::once(CpuMode::Serial)
                .chain((0..INTERLEAVINGS).map(|i| CpuMode::Interleaved { seed: 1000 * k + i }));
            let changes = modes.into_iter().any(|mode| {
                let backend =
                    vdnn_runtime::cpu::CpuBackend::new(CpuOptions { threads: 1, mode, poison: true });
                let loader = vdnnc::commands::load::FromTensors(&params);
                match Executor::load_unchecked_for_tests(mutant.clone(), &loader, backend) {
                    Ok(e) => step(e, &mutant, &inputs).is_none_or(|got| got != reference),
                    Err(_) => true,
                }
            });
            changing += u64::from(changes);
            rejected += u64::from(!accepted);
            needless += u64::from(!accepted && !changes);
            if accepted && changes {
                missed.push(format!("graph {seed}, {policy}: {what}"));
            }
        }
    }
    eprintln!(
        "plan mutations: {mutated} mutated, {changing} change meaning, {rejected} rejected, {needless} needlessly \
         rejected"
    );
    assert!(missed.is_empty(), "accepted though they change meaning:\n{}", missed.join("\n"));
    assert!(mutated >= 1000 && changing >= 200, "too few: {mutated} mutated, {changing} changing");
}
