//! Whole graphs.

use super::*;
use crate::{InterpError, interpret};
use std::collections::BTreeMap;
use vdnn_ir::parse::parse_graph;

const STEP: &str = r#"graph "step" phase=joint mode=train {
    input %0 "x" : f32[2]
    input %1 "vdnnc.hyper" : f32[3]
    param %2 "w" trainable : f32[2]
    param %3 "momentum:w" momentum : f32[2]
    const %7 : f32[1] = 0x00000040
    n0: %4 : f32[2] = binary(mul) (%0, %7) forward "double"
    n1: %5 : f32[2], %6 : f32[2] = sgd_update (%2, %3, %4, %1) update "sgd"
    n2: %8 : f32[2] = binary(mul) (%4, %4) forward "square"
    output "square" = %8
    output "x" = %0
    update %2 = %5
    update %3 = %6
}"#;

fn tensors(list: &[(&str, Tensor)]) -> BTreeMap<String, Tensor> {
    list.iter().map(|(n, t)| ((*n).to_owned(), t.clone())).collect()
}

fn inputs() -> BTreeMap<String, Tensor> {
    tensors(&[("x", f32s(&[2], &[1.0, 2.0])), ("vdnnc.hyper", f32s(&[3], &[0.5, 0.0, 0.0]))])
}

#[test]
fn a_step_gives_outputs_and_new_parameters() {
    let graph = parse_graph(STEP).unwrap();
    let params = tensors(&[("w", f32s(&[2], &[10.0, 10.0])), ("unused", f32s(&[1], &[0.0]))]);
    let e = interpret(&graph, &inputs(), &params, &NaiveKernels).unwrap();
    assert_eq!(e.outputs.keys().collect::<Vec<_>>(), ["square", "x"]);
    close(&e.outputs["square"], &[4.0, 16.0]);
    close(&e.outputs["x"], &[1.0, 2.0]);
    assert_eq!(e.params.keys().collect::<Vec<_>>(), ["momentum:w", "w"]);
    close(&e.params["w"], &[9.0, 8.0]);
    close(&e.params["momentum:w"], &[2.0, 4.0]);
}

#[test]
fn errors_name_what_is_missing() {
    let graph = parse_graph(STEP).unwrap();
    let error = interpret(&graph, &BTreeMap::new(), &BTreeMap::new(), &NaiveKernels).unwrap_err();
    assert_eq!(error.to_string(), "no tensor for input `x`; pass one of type f32[2]");
    let error = interpret(&graph, &inputs(), &BTreeMap::new(), &NaiveKernels).unwrap_err();
    assert_eq!(error.to_string(), "no tensor for parameter `w`; pass one of type f32[2]");
    let params = tensors(&[("w", f32s(&[3], &[0.0; 3]))]);
    let error = interpret(&graph, &inputs(), &params, &NaiveKernels).unwrap_err();
    assert_eq!(error.to_string(), "the tensor for `w` is f32[3]; the graph needs f32[2]");
}

#[test]
fn errors_name_the_node() {
    let graph = parse_graph(
        r#"graph "g" phase=imported mode=infer {
        input %0 "i" : i64[1]
        n3: %1 : i64[1] = binary(div) (%0, %0) forward "quotient"
        output "y" = %1
    }"#,
    )
    .unwrap();
    let inputs = tensors(&[("i", Tensor::from_i64([1], &[0]))]);
    let error = interpret(&graph, &inputs, &BTreeMap::new(), &NaiveKernels).unwrap_err();
    assert!(error.to_string().starts_with("node n3 \"quotient\": binary(div): an integer division by zero"));
    let mut broken = graph;
    broken.outputs[0].name.clear();
    let error = interpret(&broken, &inputs, &BTreeMap::new(), &NaiveKernels).unwrap_err();
    assert!(matches!(error, InterpError::Invalid(_)));
}
