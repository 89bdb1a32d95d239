//! Every zoo net under every policy, algorithm mode and mode: the plan is checked, the
//! arena is within 1.02 of its lower bound, the graph's text form round-trips.

use prost::Message;
use vdnn_frontends::onnx::{self, ImportOptions, Imported};
use vdnn_frontends::zoo::{self, ZooOptions};
use vdnn_ir::parse::parse_graph;
use vdnn_ir::{Mode, Phase};
use vdnn_passes::AlgoMode;
use vdnn_plan::{codec, parse::parse_plan};
use vdnn_tests::harness::{self, POLICIES};

/// Large enough that packing is not trivial, small enough that every net fits every device.
const BATCH: u64 = 16;

fn import(name: &str) -> Imported {
    let model =
        zoo::build_zeroed(name, &ZooOptions { batch: None, classes: None, seed: 0 }).expect("a zoo net");
    let options = ImportOptions { batch: Some(BATCH), dims: Default::default(), training: true };
    onnx::import_bytes(model.encode_to_vec().into(), None, &options).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn check(name: &str) {
    let imported = import(name);
    for mode in [Mode::Train, Mode::Infer] {
        for policy in POLICIES {
            for &algo in AlgoMode::ALL {
                let options = harness::options(mode, policy, algo);
                let compiled = harness::compile(&imported.graph, BATCH, &options);
                let (peak, bound) = (compiled.summary.peak, compiled.summary.lower_bound);
                assert!(
                    peak.as_f64() <= 1.02 * bound.as_f64(),
                    "{name} {mode} {policy} {algo}: arena {peak} is {:.4} of the bound {bound}",
                    peak.as_f64() / bound.as_f64()
                );
                if algo == AlgoMode::Dynamic {
                    let text = compiled.plan.to_string();
                    assert!(parse_plan(&text).as_ref() == Ok(&compiled.plan), "{name} {policy}: plan text");
                    let bytes = codec::encode(&compiled.plan);
                    assert!(
                        codec::load(&bytes).ok().as_ref() == Some(&compiled.plan),
                        "{name} {policy}: binary"
                    );
                    assert!(
                        harness::compile(&imported.graph, BATCH, &options).plan == compiled.plan,
                        "{name} {policy}: not deterministic"
                    );
                }
            }
        }
    }
    for mode in [Mode::Train, Mode::Infer] {
        for phase in Phase::ALL {
            let options = harness::options(mode, vdnn_passes::Policy::Conv, AlgoMode::Dynamic);
            let graph =
                vdnnc::driver::stop_after(imported.graph.clone(), phase, &options, &harness::cost(&options))
                    .expect("the phase");
            let text = graph.to_string();
            let parsed = parse_graph(&text).unwrap_or_else(|e| panic!("{name} {phase}: {e}"));
            assert_eq!(parsed.to_string(), text, "{name} {phase}");
            vdnn_ir::verify::verify(&parsed).unwrap_or_else(|e| panic!("{name} {phase}: {e}"));
        }
    }
}

macro_rules! zoo_tests {
    ($($test:ident $names:expr;)*) => {
        $(#[test] fn $test() { for name in $names { check(name); } })*

        #[test]
        fn every_zoo_net_is_tested() {
            let mut tested: Vec<&str> = Vec::new();
            $(tested.extend($names);)*
            for name in zoo::names() {
                assert!(tested.contains(&name), "{name} is in no test");
            }
        }
    };
}

zoo_tests! {
    small_nets ["lenet", "alexnet", "alexnet-seed", "overfeat", "overfeat-fast"];
    inception_nets ["googlenet", "googlenet-bn"];
    vgg_nets ["vgg11", "vgg13", "vgg16", "vgg19"];
    very_deep_vgg_nets ["vgg116", "vgg216", "vgg316", "vgg416"];
    small_residual_nets ["resnet18", "resnet34", "resnet50"];
    large_residual_nets ["resnet101", "resnet152"];
    small_dense_nets ["densenet121", "densenet161"];
    large_dense_nets ["densenet169", "densenet201"];
}
