//! Each invariant, broken.

use super::*;
use crate::graph::{NodeSpec, Output, Update};
use crate::op::{Op, UnaryKind};
use crate::parse::parse_graph;

fn graph(header: &str, body: &str) -> Graph {
    parse_graph(&format!("graph \"g\" {header} {{\n{body}\n}}")).unwrap()
}

fn errors(header: &str, body: &str) -> Vec<String> {
    verify(&graph(header, body)).map_or_else(|e| e.0, |()| Vec::new())
}

#[track_caller]
fn expect(header: &str, body: &str, wanted: &[&str]) {
    let found = errors(header, body);
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
    for (f, w) in found.iter().zip(wanted) {
        assert!(f.contains(w), "expected `{w}` in `{f}`");
    }
}

const IMPORTED: &str = "phase=imported mode=infer";
const SCHEDULED: &str = "phase=scheduled mode=infer";
const TRAINED: &str = "phase=scheduled mode=train";

#[test]
fn a_good_graph_passes() {
    expect(
        IMPORTED,
        r#"input %0 "x" : f32[2]
           n0: %1 : f32[2] = unary(relu) (%0) forward "r"
           output "y" = %1"#,
        &[],
    );
}

#[test]
fn definitions_precede_uses() {
    expect(
        IMPORTED,
        r#"input %0 "x" : f32[2]
           n1: %2 : f32[2] = unary(relu) (%1) forward "b"
           n0: %1 : f32[2] = unary(relu) (%0) forward "a""#,
        &["n1: reads %1 before it is computed\n    n1: %2 : f32[2] = unary(relu) (%1) forward \"b\""],
    );
}

#[test]
fn names_are_unique() {
    expect(
        IMPORTED,
        r#"input %0 "x" : f32[2]
           param %1 "x" frozen : f32[2]
           param %2 "" frozen : f32[2]
           n0: %3 : f32[2] = unary(relu) (%0) forward "a"
           output "y" = %3
           output "y" = %0
           output "" = %3"#,
        &["%1 \"x\": another input", "%2: an input", "output \"y\": another", "output %3: has no name"],
    );
}

#[test]
fn phases_and_algorithms() {
    let conv = |stage, tail| {
        format!(
            r#"param %0 "x" frozen : f32[1,1,2]
               param %1 "w" frozen : f32[1,1,1]
               n0: %2 : f32[1,1,2] = conv(kernel:[1],strides:[1],before:[0],after:[0],dilations:[1],groups:1) (%0, %1) {stage} "c" {tail}"#
        )
    };
    expect(IMPORTED, &conv("forward", ""), &[]);
    expect(IMPORTED, &conv("forward", "algo=gemm"), &["before phase selected"]);
    expect("phase=selected mode=infer", &conv("forward", "algo=gemm"), &[]);
    expect("phase=selected mode=infer", &conv("forward", ""), &["without an algorithm"]);
    expect("phase=selected mode=infer", &conv("forward", "algo=gemm@1"), &[]);
    expect("phase=selected mode=infer", &conv("forward", "algo=gemm@1+fft@1x2"), &["micro-batches"]);
    expect("phase=selected mode=infer", &conv("setup", ""), &[]);
    expect(
        "phase=selected mode=train",
        &conv("setup", ""),
        &["training graph", "%0 \"x\", which is not", "%1"],
    );
    let body = r#"input %0 "x" : f32[2]
                  n0: %1 : f32[2] = unary_grad(relu) (%0, %0) backward "g" algo=fft"#;
    expect(IMPORTED, body, &["before phase joint", "only a convolution"]);
}

const PAIRS: &str = r#"input %0 "x" : f32[2]
    n0: %1 : f32[2] = unary(relu) (%0) forward "r"
    n1: %2 : f32[2] host = offload_start (%1) forward "os"
    n2: %3 : f32[2] host = offload_done (%2, %1) forward "od"
    n3: %4 : f32[2] = prefetch_start (%3) backward "ps"
    n4: %5 : f32[2] = prefetch_done (%4, %3) backward "pd"
    output "y" = %5"#;

#[test]
fn transfers_come_in_pairs() {
    let placed = "phase=placed mode=train";
    expect(placed, PAIRS, &[]);
    expect("phase=joint mode=train", PAIRS, &["phase placed"; 4]);
    let cut = |from: &str, to: &str| {
        assert!(PAIRS.contains(from));
        PAIRS.replace(from, to)
    };
    expect(placed, &cut("(%2, %1)", "(%2, %0)"), &["operand 1 is not what its offload_start read"]);
    expect(
        placed,
        &cut("(%3) backward \"ps\"", "(%2) backward \"ps\""),
        &["n1: exactly one offload_done", "n3: a prefetch must read", "n4: operand 1 is not what"],
    );
    expect(placed, &cut("= %5", "= %3"), &["output y: %3 is on the host"]);
    expect(
        placed,
        &cut("\"y\" = %5", "\"y\" = %5 n5: %6 : f32[2] = unary(exp) (%4) forward \"e\""),
        &["n3: exactly one prefetch_done"],
    );
    expect(
        placed,
        &cut("%2 : f32[2] host", "%2 : f32[2]"),
        &["n1: output 0 is on the device", "operand 0, %2"],
    );
    expect(placed, &cut("%5 : f32[2]", "%5 : f32[2] host"), &["n4: output 0 is on the host", "output y"]);
    let no_done: String =
        PAIRS.lines().filter(|l| !l.contains("n4:") && !l.contains("output")).collect::<Vec<_>>().join("\n");
    expect(
        placed,
        &no_done,
        &["n3: exactly one prefetch_done must read its result, and nothing else; read by []"],
    );
}

#[test]
fn in_place_needs_a_right_and_a_dead_input() {
    let two = |first: &str, rest: &str| {
        format!(
            "input %0 \"x\" : f32[2,2]\nconst %9 : f32[1] = 0x00000000\nn0: %1 : f32[2,2] = unary(exp) (%0) forward \"a\"\n{first}\n{rest}"
        )
    };
    let relu = "n1: %2 : f32[2,2] = unary(relu) (%1) forward \"r\" inplace=0:0";
    expect(SCHEDULED, &two(relu, ""), &[]);
    expect(SCHEDULED, &two(relu, "output \"y\" = %1"), &["the bytes of %1 are read later"]);
    expect(
        SCHEDULED,
        &two(relu, "n2: %3 : f32[2,2] = unary(exp) (%1) forward \"l\""),
        &["%1 are read later"],
    );
    let view = "n3: %4 : f32[4] = reshape(dims:[4]) (%1) forward \"v\"\n";
    expect(
        SCHEDULED,
        &two(&format!("{view}{relu}"), "output \"y\" = %4"),
        &["n1: in place 0:0: the bytes of %1"],
    );
    let both = "n1: %2 : f32[2,2] = binary(add) (%1, %1) forward \"r\" inplace=0:0";
    expect(SCHEDULED, &two(both, ""), &["another operand reads"]);
    let wide = "n1: %2 : f32[2,2] = binary(add) (%9, %1) forward \"r\" inplace=0:0";
    expect(SCHEDULED, &two(wide, ""), &["f32[2,2] and f32[1] differ", "the bytes of %9 are a literal"]);
    let none = "n1: %2 : f32[2,2] = softmax(axis:0) (%1) forward \"r\" inplace=0:0";
    expect(SCHEDULED, &two(none, ""), &["the op does not grant this"]);
    let all = "n1: %2 : f32[2,2] = binary(add) (%1, %0) forward \"r\" inplace=0:0,0:1,1:0";
    expect(
        SCHEDULED,
        &two(all, ""),
        &["0:1: the output or the input is in another pair", "1:0: the op does not"],
    );
    // Before it is scheduled the order means nothing yet.
    expect("phase=placed mode=infer", &two(relu, "output \"y\" = %1"), &[]);
}

const STEP: &str = r#"input %0 "g" : f32[2]
    input %1 "vdnnc.hyper" : f32[3]
    param %2 "w" trainable : f32[2]
    param %3 "momentum:w" momentum : f32[2]
    n0: %4 : f32[2] = binary(mul) (%0, %2) forward "m"
    n1: %5 : f32[2], %6 : f32[2] = sgd_update (%2, %3, %4, %1) update "u"
    output "y" = %4
    update %2 = %5
    update %3 = %6"#;

#[test]
fn updates_take_the_parameters_bytes() {
    expect(TRAINED, STEP, &[]);
    expect(TRAINED, &STEP.replace("\"u\"", "\"u\" inplace=0:0,1:1"), &[]);
    expect("phase=joint mode=infer", STEP, &["an update in an inference graph"; 2]);
    let edit = |from: &str, to: &str| {
        assert!(STEP.contains(from));
        STEP.replace(from, to)
    };
    expect(
        TRAINED,
        &edit("update %2 = %5", "update %3 = %5"),
        &[
            "update %3 \"momentum:w\" = %6: the parameter is updated twice",
            "its output 0 cannot take the bytes of %3",
        ],
    );
    expect(
        TRAINED,
        &edit("update %3 = %6", "update %0 = %6"),
        &["the target is not a parameter", "n1: its output 1 cannot take"],
    );
    let late = format!("{STEP}\nn2: %7 : f32[2] = unary(exp) (%2) forward \"late\"");
    expect(TRAINED, &late, &["n1: in place 0:0: the bytes of %2 \"w\" are read later"]);
    expect("phase=placed mode=train", &late, &[]);
    let relu = format!(
        "{STEP}\nparam %8 \"p\" frozen : f32[2] n2: %7 : f32[2] = unary(exp) (%8) forward \"e\" inplace=0:0"
    );
    expect(TRAINED, &relu, &["a parameter that this does not update"]);
}

#[test]
fn broken_ids_stop_the_check() {
    let mut g = graph(
        IMPORTED,
        r#"input %0 "x" : f32[2]
           n0: %1 : f32[2] = unary(relu) (%0) forward "r""#,
    );
    g.outputs.push(Output { name: "y".into(), value: ValueId(77) });
    g.updates.push(Update { param: ValueId(1), value: ValueId(78) });
    g.set_order(vec![NodeId(5)]);
    let e = verify(&g).unwrap_err().to_string();
    for text in ["n5: in the", "n0: live, but not", "output \"y\": %77 is not", "%78 is not a live value"] {
        assert!(e.contains(text), "{text} in {e}");
    }
}

#[test]
fn a_value_of_a_removed_node_is_not_live() {
    let mut g = Graph::new("g");
    let x = g.add_input("x", TensorType::f32([2]));
    let node = g.add(Op::Unary(UnaryKind::Relu), &[x], NodeSpec::forward("r")).unwrap();
    let y = g.node(node).outputs[0];
    g.remove(node);
    g.outputs.push(Output { name: "y".into(), value: y });
    assert!(verify(&g).unwrap_err().to_string().contains("%1 is not a live value"));
}

#[test]
fn a_long_chain_is_checked_and_read_in_linear_time() {
    let mut g = Graph::new("chain");
    let mut v = g.add_input("x", TensorType::f32([2]));
    for i in 0..3000 {
        v = g.add1(Op::Unary(UnaryKind::Relu), &[v], NodeSpec::forward(format!("r{i}"))).unwrap();
    }
    g.outputs.push(Output { name: "y".into(), value: v });
    g.phase = Phase::Scheduled;
    verify(&g).unwrap();
    let text = g.to_string();
    assert_eq!(parse_graph(&text).unwrap().to_string(), text);
}

#[test]
fn rows_share_bytes_that_are_nobody_elses() {
    let two = |concat: &str, rest: &str| {
        format!(
            r#"input %0 "x" : f32[4,64]
               param %9 "w" frozen : f32[4,64]
               n0: %1 : f32[2,64] = slice(starts:[0,0],steps:[1,1],lens:[2,64]) (%0) forward "s0" inplace=0:0
               n1: %2 : f32[2,64] = slice(starts:[2,0],steps:[1,1],lens:[2,64]) (%0) forward "s1" inplace=0:0
               n2: %3 : f32[2,64] = unary(exp) (%1) forward "a"
               n3: %4 : f32[2,64] = unary(exp) (%2) forward "b"
               n4: %5 : f32[4,64] = concat(axis:0) {concat}
               {rest}"#
        )
    };
    let both = "(%3, %4) forward \"c\" inplace=0:0,0:1";
    expect(SCHEDULED, &two(both, ""), &[]);
    let relu = "n5: %6 : f32[4,64] = unary(relu) (%5) forward \"r\" inplace=0:0";
    expect(SCHEDULED, &two(both, relu), &[]);
    let late = format!("{relu}\nn6: %7 : f32[2,64] = unary(exp) (%3) forward \"l\"");
    expect(SCHEDULED, &two(both, &late), &["n5: in place 0:0: the bytes of %5 are read later"]);
    let part = "n5: %6 : f32[2,64] = unary(relu) (%3) forward \"r\" inplace=0:0";
    expect(SCHEDULED, &two(both, part), &[]);
    let read = format!("{part}\nn6: %7 : f32[4,64] = unary(exp) (%5) forward \"l\"");
    expect(SCHEDULED, &two(both, &read), &["n5: in place 0:0: the bytes of %3 are read later"]);
    let neighbour = format!("{part}\nn6: %7 : f32[2,64] = unary(exp) (%4) forward \"l\"");
    expect(SCHEDULED, &two(both, &neighbour), &["n5: in place 0:0: the bytes of %3 are read later"]);
    let not_its_own = |operands: &str, error: &str| {
        let error = format!("n4: in place {error} has not its bytes for itself");
        expect(SCHEDULED, &two(&format!("{operands} forward \"c\" inplace=0:0,0:1"), ""), &[&error]);
    };
    not_its_own("(%1, %4)", "0:0: %1");
    not_its_own("(%3, %3)", "0:1: %3");
    let twice = "(%3, %3) forward \"c\" inplace=0:0";
    expect(SCHEDULED, &two(twice, ""), &["%3 lies in the result at another operand's place"]);
    let again = "n5: %6 : f32[4,64] = concat(axis:0) (%4, %3) forward \"c\" inplace=0:0";
    expect(SCHEDULED, &two(both, again), &["n5: in place 0:0: %4 has not its bytes"]);
    let out = "(%3, %4) forward \"c\" inplace=1:0,0:0,0:0,0:2";
    expect(SCHEDULED, &two(out, ""), &["1:0: the op does not", "0:0: the output or", "0:2: the op does not"]);
    let weight =
        "n5: %6 : f32[2,64] = slice(starts:[2,0],steps:[1,1],lens:[2,64]) (%9) forward \"s\" inplace=0:0";
    expect(SCHEDULED, &two(both, weight), &["the bytes of %9 \"w\" are kept from step to step"]);
    let columns =
        "n5: %6 : f32[4,8] = slice(starts:[0,8],steps:[1,1],lens:[4,8]) (%5) forward \"s\" inplace=0:0";
    expect(SCHEDULED, &two(both, columns), &["n5: in place 0:0: the op does not grant this"]);
}
