//! Channels-last plans and plans with fused epilogues compute the bytes of the plain plan of
//! the same model: neither layouts, their conversions nor fused ops change a value.

use vdnn_cost::Precision;
use vdnn_ir::{Layout, Mode, Op};
use vdnn_passes::{AlgoMode, Fuse, Policy};
use vdnn_plan::{Command, Plan};
use vdnn_runtime::cpu::CpuOptions;
use vdnn_tests::arbitrary::{random_cnn, random_inputs, random_params};
use vdnn_tests::harness;

const GRAPHS: u64 = 60;

/// The first is what the others must equal.
const WAYS: [(Precision, Policy, Fuse); 5] = [
    (Precision::F32, Policy::None, Fuse::Off),
    (Precision::Tf32, Policy::None, Fuse::Off),
    (Precision::Tf32, Policy::All, Fuse::Off),
    (Precision::F32, Policy::Conv, Fuse::Epilogue),
    (Precision::Tf32, Policy::All, Fuse::Epilogue),
];

fn fused_launches(plan: &Plan) -> usize {
    let fused = |c: &&Command| matches!(c, Command::Launch { op, .. } if vdnn_ir::parts::is_fused(op));
    plan.commands.iter().filter(fused).count()
}

fn channels_last_launches(plan: &Plan) -> usize {
    let is_last = |b| plan.buffers[b].ty.layout == Layout::ChannelsLast;
    plan.commands
        .iter()
        .filter(|c| match c {
            Command::Launch { op, inputs, .. } => {
                !matches!(op, Op::Relayout { .. }) && inputs.iter().any(|&b| is_last(b))
            }
            _ => false,
        })
        .count()
}

#[test]
fn channels_last_plans_give_the_row_major_bytes() {
    let (mut launches, mut fused) = (0, 0);
    for seed in 0..GRAPHS {
        let graph = random_cnn(seed);
        let batch = graph.ty(graph.inputs()[0]).dims[0];
        let params = random_params(&graph, seed);
        for mode in [Mode::Train, Mode::Infer] {
            let mut results = Vec::new();
            for (precision, policy, fuse) in WAYS {
                let mut options = harness::options(mode, policy, AlgoMode::Dynamic);
                options.keep_gradients = seed.is_multiple_of(2);
                options.precision = precision;
                options.fuse = fuse;
                let plan = harness::compile(&graph, batch, &options).plan;
                if precision == Precision::Tf32 {
                    launches += channels_last_launches(&plan);
                } else {
                    assert_eq!(channels_last_launches(&plan), 0);
                }
                if fuse == Fuse::Epilogue {
                    fused += fused_launches(&plan);
                }
                let reread =
                    vdnn_plan::parse::parse_plan(&plan.to_string()).expect("the text of a plan parses");
                assert_eq!(reread, plan);
                let inputs = harness::step_inputs(&plan, random_inputs(&graph, seed));
                let mut executor =
                    harness::executor(plan, &params, CpuOptions { poison: true, ..CpuOptions::default() });
                let outputs = executor.step(&inputs).expect("the plan runs");
                let mut all = outputs;
                for p in executor.params().to_vec() {
                    // The folded parameters of inference have names of their own.
                    if mode == Mode::Train {
                        all.insert(
                            format!("param {}", p.name),
                            executor.read_param(&p.name).expect("it exists"),
                        );
                    }
                }
                results.push(all);
            }
            for (way, result) in WAYS.iter().zip(&results) {
                assert_eq!(result, &results[0], "graph {seed}, {mode}, {way:?}");
            }
        }
    }
    assert!(fused > 200, "only {fused} launches were fused");
    assert!(launches > 1000, "only {launches} launches were channels-last");
}
