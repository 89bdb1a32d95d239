//! Plans that run their batch in slices compute what the plain plan of the same model does, up
//! to the rounding of sums over the batch.

use std::collections::BTreeMap;
use vdnn_ir::{Graph, Mode, Tensor};
use vdnn_passes::{AlgoMode, Fuse, Policy};
use vdnn_runtime::cpu::CpuOptions;
use vdnn_tests::arbitrary::{random_cnn_of, random_inputs, random_params};
use vdnn_tests::harness;
use vdnnc::driver::{self, NoPlan};
use vdnnc::options::CompileOptions;
use vdnnc::slicing::Slices;

const GRAPHS: u64 = 80;

/// Of the largest number of a tensor.
const TOLERANCE: f32 = 2e-5;

/// Results, and in training the parameters after the step.
fn run(graph: &Graph, batch: u64, options: &CompileOptions, seed: u64) -> Option<BTreeMap<String, Tensor>> {
    let plan = match driver::compile(graph.clone(), batch, None, options, &harness::cost(options)) {
        Ok(compiled) => compiled.plan,
        Err(NoPlan::Failed(f)) => {
            assert!(f.to_string().contains("needs the whole batch"), "{}: {f}", graph.name);
            return None;
        }
        Err(NoPlan::TooLarge { .. }) => panic!("{}: there is no budget", graph.name),
    };
    let mut inputs = random_inputs(graph, seed);
    for binding in &plan.inputs {
        let ty = &plan.buffers[binding.buf].ty;
        let tensor = match binding.name.as_str() {
            "labels" => {
                let labels: Vec<i64> = (0..ty.elements()).map(|i| (i % 2) as i64).collect();
                Tensor::from_i64(ty.dims.iter().copied(), &labels)
            }
            "vdnnc.hyper" => harness::hyper(0.05, 0.9, 1e-3),
            "vdnnc.step" => Tensor::from_i64([], &[3]),
            _ => continue,
        };
        inputs.insert(binding.name.clone(), tensor);
    }
    let cpu = CpuOptions { poison: true, ..CpuOptions::default() };
    let mut executor = harness::executor(plan, &random_params(graph, seed), cpu);
    let mut all = executor.step(&inputs).expect("the plan runs");
    if options.mode == Mode::Train {
        // Literals, such as the share of a slice, are parameters of the plan.
        for p in executor.params().to_vec().into_iter().filter(|p| !p.name.starts_with("const:")) {
            all.insert(format!("param {}", p.name), executor.read_param(&p.name).expect("it exists"));
        }
    }
    Some(all)
}

fn differs(a: &Tensor, b: &Tensor) -> bool {
    let scale = a.f32().iter().fold(0f32, |m, x| m.max(x.abs()));
    a.ty() != b.ty() || a.f32().iter().zip(b.f32()).any(|(a, b)| (a - b).abs() > TOLERANCE * scale)
}

#[test]
fn slices_of_every_size_give_the_results_of_the_whole_batch() {
    let (mut sliced, mut barriers) = (0, 0);
    for seed in 0..GRAPHS {
        let batch = [2, 3, 5, 7, 8][seed as usize % 5];
        let graph = random_cnn_of(seed, batch);
        for mode in [Mode::Train, Mode::Infer] {
            let mut options = harness::options(mode, Policy::None, AlgoMode::Dynamic);
            options.keep_gradients = seed.is_multiple_of(2);
            let whole = run(&graph, batch, &options, seed).expect("the whole batch always runs");
            for (slices, policy, fuse) in [
                (Slices::Count(2), Policy::None, Fuse::Off),
                (Slices::Count(3), Policy::All, Fuse::Epilogue),
                (Slices::Count(100), Policy::Conv, Fuse::Epilogue),
                (Slices::On, Policy::None, Fuse::Epilogue),
            ] {
                let options = CompileOptions { slices, policy, fuse, ..options.clone() };
                let Some(found) = run(&graph, batch, &options, seed) else {
                    barriers += 1;
                    continue;
                };
                assert_eq!(found.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
                for (name, tensor) in &found {
                    assert!(
                        !differs(&whole[name], tensor),
                        "graph {seed}, {mode}, {slices}: {name} differs: {:?} {:?}",
                        whole[name],
                        tensor
                    );
                }
                sliced += 1;
            }
        }
    }
    assert!(sliced > 300, "only {sliced} plans ran in slices");
    assert!(barriers > 20, "only {barriers} training steps were refused");
}
