//! Pyramids of graphs: the chains that are found mean what the graph means, and the command
//! reports what the search finds.

use serde_json::Value;
use std::collections::BTreeMap;
use vdnn_cost::CostModel;
use vdnn_interp::{NaiveKernels, interpret};
use vdnn_ir::{Graph, Layout, Op, Precision, Tensor, TensorType};
use vdnn_passes::fuse_pyramids::{Found, chains};
use vdnn_pyramid::kernel::{Config, configs, kernel};
use vdnn_pyramid::machine::Machine;
use vdnn_pyramid::search::tilings;
use vdnn_pyramid::{Chain, Pointwise, Program, chain_of, stage};
use vdnn_tests::{data, op_cases};

/// A stem with a pool, then a bottleneck with its residual, read once more at the end.
const GRAPH: &str = r#"graph "g" phase=joint mode=infer {
  input %0 "x" : f32[1,3,19,23]
  param %1 "w1" trainable : f32[8,3,5,3]
  param %2 "b1" trainable : f32[8]
  param %3 "w2" trainable : f32[4,8,1,1]
  param %4 "w3" trainable : f32[4,1,3,3]
  param %5 "b3" trainable : f32[4]
  param %6 "w4" trainable : f32[8,4,1,1]
  param %7 "b4" trainable : f32[8]
  n0: %8 : f32[1,8,10,12] = conv(kernel:[5,3],strides:[2,2],before:[1,2],after:[3,1],dilations:[1,1],groups:1) (%0, %1, %2) forward "stem"
  n1: %9 : f32[1,8,10,12] = unary(clip(lo:0.25,hi:2.0)) (%8) forward "clip"
  n2: %10 : f32[1,8,5,6] = max_pool(kernel:[3,3],strides:[2,2],before:[1,1],after:[1,1],dilations:[1,1],ceil_mode:false) (%9) forward "pool"
  n3: %11 : f32[1,4,5,6] = conv(kernel:[1,1],strides:[1,1],before:[0,0],after:[0,0],dilations:[1,1],groups:1) (%10, %3) forward "reduce"
  n4: %12 : f32[1,4,5,6] = unary(relu) (%11) forward "relu"
  n5: %13 : f32[1,4,5,6] = conv_epilogue(conv:(kernel:[3,3],strides:[1,1],before:[2,2],after:[2,2],dilations:[2,2],groups:4),relu:true) (%12, %4, %5) forward "depthwise"
  n6: %14 : f32[1,8,5,6] = conv_epilogue(conv:(kernel:[1,1],strides:[1,1],before:[0,0],after:[0,0],dilations:[1,1],groups:1),relu:true) (%13, %6, %7, %10) forward "expand"
  n7: %15 : f32[1,8,5,6] = unary(tanh) (%14) forward "end"
  output "y" = %15
}
"#;

/// The tensors of a chain's operands, in order, by the graph's names.
const OPERANDS: [&[&str]; 2] = [&["x", "w1", "b1"], &["%10", "w2", "w3", "b3", "w4", "b4", "%10"]];

fn cost() -> CostModel {
    CostModel::named("h200", Precision::Tf32).expect("a profile")
}

/// A chain of one image.
fn chain(graph: &Graph, found: &Found) -> Chain {
    let (pyramid, operands) = found.pyramid(0..found.layers.len());
    let types: Vec<TensorType> = operands.into_iter().map(|o| o.ty(graph)).collect();
    chain_of(&pyramid, &types.iter().collect::<Vec<_>>()).expect("a chain")
}

#[test]
fn chains_of_a_graph_compute_what_the_graph_computes() {
    let mut graph: Graph = vdnn_ir::parse::parse_graph(GRAPH).expect("a graph");
    // Everything the chains begin and end with.
    for (name, at) in [("%10", 2), ("%14", 6)] {
        let value = graph.node(graph.order()[at]).outputs[0];
        let end = vdnn_ir::Output { name: name.to_owned(), value };
        graph.outputs.push(end);
    }
    let found = chains(&graph, &cost());
    let names: Vec<Vec<String>> = found.iter().map(|f| f.names(&graph)).collect();
    assert_eq!(names, [&["stem", "pool"][..], &["reduce", "depthwise", "expand"]]);
    let made: Vec<Chain> = found.iter().map(|f| chain(&graph, f)).collect();
    let then = &made[1].layers()[2].then;
    assert_eq!(then, &[Pointwise::Add, Pointwise::Relu]);
    assert_eq!(found[1].interior(&graph, 0..3).0, 2 * 4 * 4 * 5 * 6);

    let mut values: BTreeMap<String, Tensor> = BTreeMap::new();
    for &v in graph.inputs().iter().chain(graph.params()) {
        let dims = graph.ty(v).dims.clone();
        values.insert(graph.value(v).name.clone(), data::model_input(&graph.value(v).name, &dims));
    }
    let evaluation = interpret(&graph, &values, &values, &NaiveKernels).expect("it runs");
    for name in ["%10", "%14"] {
        values.insert(name.to_owned(), evaluation.outputs[name].clone());
    }
    for ((chain, operands), result) in made.iter().zip(OPERANDS).zip(["%10", "%14"]) {
        let operands: Vec<Vec<f32>> = operands.iter().map(|name| values[*name].f32().to_vec()).collect();
        let operands: Vec<&[f32]> = operands.iter().map(Vec::as_slice).collect();
        let wanted: Vec<f64> = values[result].f32().iter().map(|&x| f64::from(x)).collect();
        for tiling in tilings(chain) {
            let program = Program::new(chain, tiling, Precision::F32).expect("a program");
            let (got, _) = vdnn_pyramid::interpret::interpret(&program, &operands)
                .unwrap_or_else(|e| panic!("{tiling}: {e}"));
            let off = data::difference(&got, &wanted);
            assert!(off <= 1e-5 * data::magnitude(&wanted), "{result}, {tiling}: {off}");
        }
    }
}

#[test]
fn what_is_no_layer_of_the_elements_that_kernels_have_ends_a_chain() {
    let conv = "conv(kernel:[1,1],strides:[1,1],before:[0,0],after:[0,0],dilations:[1,1],groups:1)";
    let text = format!(
        "graph \"g\" phase=joint mode=infer {{\n  input %0 \"x\" : f32[2,4,9,9]\n  param %1 \"s\" frozen : f32[4]\n  \
         param %2 \"w\" frozen : f32[4,4,1,1]\n  n0: %3 : f32[2,4,9,9] = {conv} (%0, %2) forward \"one\"\n  \
         n1: %4 : f32[2,4,9,9] = {conv} (%3, %2) forward \"two\"\n  n2: %5 : f32[2,4,9,9] = \
         batch_norm_infer_relu(eps:1e-5) (%1, %1, %1, %1, %4) forward \"bn\"\n  \
         n3: %6 : f32[2,4,9,9] = {conv} (%5, %2) forward \"three\"\n  output \"y\" = %6\n}}\n"
    );
    let graph = vdnn_ir::parse::parse_graph(&text).expect("a graph");
    let found = chains(&graph, &cost());
    assert_eq!(found.iter().map(|f| f.names(&graph)).collect::<Vec<_>>(), [["one", "two"]]);
    // With bf16 kernels these are none of theirs.
    let bf16 = CostModel::named("h200", Precision::Bf16).expect("a profile");
    assert!(chains(&graph, &bf16).is_empty());
}

fn vdnnc() -> assert_cmd::Command {
    assert_cmd::Command::new(data::vdnnc_binary())
}

#[test]
fn the_command_reports_pyramids_and_draws_them() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, svg) = (dir.path().join("m.onnx"), dir.path().join("m.svg"));
    vdnnc().args(["zoo", "googlenet-bn", "-o"]).arg(&model).assert().success();
    let emit = |more: &[&str]| {
        let mut c = vdnnc();
        c.arg(&model).args(["--emit", "pyramids", "--batch", "32", "--precision", "bf16"]).args(more);
        c
    };
    let out = emit(&["--mode", "infer", "--json", "--svg"]).arg(&svg).assert().success();
    let report: Value = serde_json::from_slice(&out.get_output().stdout).expect("JSON");
    let pyramids = report["pyramids"].as_array().expect("a list");
    assert!(!pyramids.is_empty(), "{report}");
    for p in pyramids {
        assert!(p["gain"].as_f64().is_some_and(|g| g >= 1.15), "{p}");
        assert!(p["shared_bytes"].as_u64().is_some_and(|b| b <= 227 << 10), "{p}");
        assert!(p["predicted_ns"].as_u64().is_some_and(|t| t > 0) && p["measured_ns"].is_null(), "{p}");
    }
    let step = |key: &str| report[key].as_u64().expect("a number");
    assert!(step("saved_ns") > 0 && step("saved_ns") < step("step_ns") && step("interior_bytes") > 0);
    let picture = std::fs::read_to_string(&svg).expect("a picture");
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
    assert!(picture.matches("<rect").count() >= 8 * pyramids.len());

    let depth = |n: &str| {
        let out = emit(&["--mode", "infer", "--json", "--fuse-depth", n]).assert().success();
        let report: Value = serde_json::from_slice(&out.get_output().stdout).expect("JSON");
        report["pyramids"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(depth("3"), pyramids.len());
    assert_eq!(depth("1"), 1, "one convolution and a pool");
    assert!(pyramids.len() > 1, "{report}");
    let text = emit(&["--mode", "infer"]).assert().success();
    let text = String::from_utf8_lossy(&text.get_output().stdout).into_owned();
    assert!(text.contains("predicted") && text.contains("tensor"), "{text}");
}

#[test]
fn what_cannot_be_reported_is_refused_with_a_way_out() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = dir.path().join("m.onnx");
    vdnnc().args(["zoo", "lenet", "-o"]).arg(&model).assert().success();
    let refused = |args: &[&str], hint: &str| {
        let out = vdnnc().arg(&model).args(args).assert().code(1);
        let text = String::from_utf8_lossy(&out.get_output().stderr).into_owned();
        assert!(text.contains(hint), "{args:?}: {text}");
    };
    refused(&["--emit", "pyramids"], "add --mode infer");
    refused(&["--emit", "pyramids", "--mode", "infer", "--device", "cpu"], "h200");
    refused(&["--svg", "x.svg"], "add --emit pyramids");
    vdnnc().arg(&model).args(["--emit", "pyramids", "--fuse-depth", "0"]).assert().code(1);
}

/// What the suites of `tests/backends` ask of a GPU.
#[test]
fn every_case_of_the_backend_suites_has_a_kernel() {
    let machine = Machine::named("h200").expect("a machine");
    let (mut kernels, mut stages) = (0, 0);
    for case in op_cases::layers() {
        let Op::Pyramid(pyramid) = &case.op else { continue };
        let types: Vec<TensorType> = case.operands.iter().map(|o| o.ty()).collect();
        if !pyramid.is_chain() {
            let stage = stage::stage_of(pyramid, &types.iter().collect::<Vec<_>>()).expect("a stage");
            let Ok(Config::Stage(config)) = pyramid.config.parse() else { panic!("{}", case.op) };
            let printed =
                |precision, layout| stage::kernel(&stage, &config, precision, layout, types[0].dims[0]);
            assert!(printed(Precision::Tf32, Layout::ChannelsLast).is_ok(), "{}", case.op);
            assert!(printed(Precision::Tf32, Layout::RowMajor).is_err());
            assert!(printed(Precision::F32, Layout::RowMajor).is_err());
            stages += 1;
            continue;
        }
        let chain = chain_of(pyramid, &types.iter().collect::<Vec<_>>()).expect("a chain");
        let batch = types[0].dims[0];
        for precision in Precision::ALL {
            let layout = if precision == Precision::F32 { Layout::RowMajor } else { Layout::ChannelsLast };
            if precision != Precision::F32 && !op_cases::is_plain(pyramid) {
                continue;
            }
            let ways = configs(&chain, precision, layout, batch, &machine);
            let prints = |c: &Config| kernel(&chain, c, precision, layout, batch).is_ok();
            assert!(ways.iter().any(prints), "{precision}: {} of {types:?}", case.op);
            for way in ways {
                assert_eq!(way.to_string().parse(), Ok(way));
                let named = Op::Pyramid(pyramid.with_config(way.to_string()));
                assert_eq!(named.to_string().parse::<Op>(), Ok(named.clone()));
                assert!(vdnn_ir::op::infer::infer(&named, &types.iter().collect::<Vec<_>>(), 1).is_ok());
                kernels += 1;
            }
        }
    }
    assert!(kernels > 100 && stages > 0, "{kernels} {stages}");
}
