//! Rules and refusals of shape inference.

use super::*;
use crate::op::{LossReduction, LrnAttrs, PoolAttrs, ReduceKind, SliceAttrs};
use crate::types::Real;

fn d(dims: &[u64]) -> Dims {
    dims.into()
}
fn t(text: &str) -> TensorType {
    text.parse().unwrap()
}
fn run(op: &str, inputs: &[&str], n: usize) -> Result<String, String> {
    let op: Op = op.parse().unwrap();
    let types: Vec<TensorType> = inputs.iter().map(|s| t(s)).collect();
    let refs: Vec<&TensorType> = types.iter().collect();
    let out = infer(&op, &refs, n).map_err(|e| e.0)?;
    Ok(out.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
}
fn ok(op: &str, inputs: &[&str], n: usize) -> String {
    run(op, inputs, n).unwrap()
}
fn err(op: &str, inputs: &[&str]) -> String {
    run(op, inputs, 1).unwrap_err()
}

const CONV: &str = "conv(kernel:[3,3],strides:[2,2],before:[1,1],after:[1,1],dilations:[1,1],groups:2)";
const POOL: &str = "kernel:[3,3],strides:[2,2],before:[0,0],after:[0,0],dilations:[1,1]";

#[test]
fn conv_shapes_and_errors() {
    assert_eq!(ok(CONV, &["f32[8,4,7,9]", "f32[6,2,3,3]", "f32[6]"], 1), "f32[8,6,4,5]");
    assert!(err(CONV, &["f32[8,4,7]", "f32[6,2,3,3]"]).contains("expected 1 kernel extents, found [3,3]"));
    assert!(err(CONV, &["f32[8,4,0,9]", "f32[6,2,3,3]"]).contains("zero extents"));
    assert!(err(CONV, &["f32[8,5,7,9]", "f32[6,2,3,3]"]).contains("groups dividing 5 input"));
    assert!(err(CONV, &["f32[8,4,7,9]", "f32[6,4,3,3]"]).contains("2 input channels per group"));
    assert!(err(CONV, &["f32[8,4,7,9]", "f32[6,2,3,5]"]).contains("kernel [3,3]"));
    assert!(
        err(CONV, &["f32[8,4,7,9]", "f32[6,2,3,3]", "f32[4]"]).contains("b of type f32[6], found f32[4]")
    );
    assert!(err(CONV, &["i64[8,4,7,9]", "f32[6,2,3,3]"]).contains("x of type f32"));
    assert!(err(CONV, &["f32[8,4,7,9]"]).contains("2 to 3 inputs, found 1"));
    let huge = "conv(kernel:[2],strides:[1],before:[18446744073709551615],after:[1],dilations:[1],groups:1)";
    assert!(err(huge, &["f32[1,1,4]", "f32[1,1,2]"]).contains("padding in 0..="));
    let far = "conv(kernel:[2],strides:[1],before:[0],after:[0],dilations:[9],groups:1)";
    assert!(err(far, &["f32[1,1,4]", "f32[1,1,2]"]).contains("within the padded extent 4, found 10"));
}

#[test]
fn any_spatial_rank() {
    let one = "conv(kernel:[4],strides:[1],before:[2],after:[1],dilations:[1],groups:1)";
    assert_eq!(ok(one, &["f32[1,1,5]", "f32[1,1,4]"], 1), "f32[1,1,5]");
    let three =
        "conv(kernel:[1,2,3],strides:[1,1,1],before:[0,0,0],after:[0,0,0],dilations:[1,1,2],groups:1)";
    assert_eq!(ok(three, &["f32[1,2,5,5,5]", "f32[7,2,1,2,3]"], 1), "f32[1,7,5,4,1]");
}

#[test]
fn pool_ceil_mode_drops_windows_in_the_end_padding() {
    let pool = |ceil, x: &str, n| ok(&format!("max_pool({POOL},ceil_mode:{ceil})"), &[x], n);
    assert_eq!(pool(false, "f32[1,2,6,8]", 1), "f32[1,2,2,3]");
    assert_eq!(pool(true, "f32[1,2,6,8]", 2), "f32[1,2,3,4] u8[1,2,3,4]");
    let attrs = |k: u64, s: u64, b: u64, a: u64| PoolAttrs {
        kernel: d(&[k]),
        strides: d(&[s]),
        before: d(&[b]),
        after: d(&[a]),
        dilations: d(&[1]),
        ceil_mode: true,
    };
    // Padded extent 6, kernel 2, stride 3: the third window would start at 6 = in + before.
    assert_eq!(pool_out_dims(&attrs(2, 3, 1, 1), &[1, 1, 5]), Ok(d(&[1, 1, 3 - 1])));
    // Kernel 3, stride 2: the third window starts at 4 < 5, so it stays.
    assert_eq!(pool_out_dims(&attrs(3, 2, 1, 1), &[1, 1, 4]), Ok(d(&[1, 1, 3])));
    assert!(pool_out_dims(&attrs(2, 1, 2, 0), &[1, 1, 5]).unwrap_err().0.contains("padding smaller"));
    assert_eq!(pool_index_dtype(&attrs(256, 1, 0, 0)), Ok(DType::U8));
    assert_eq!(pool_index_dtype(&attrs(257, 1, 0, 0)), Ok(DType::I32));
}

#[test]
fn pool_never_leaves_an_empty_window() {
    for k in 1..4u64 {
        for s in 1..4u64 {
            for (b, a, dil, input) in itertools4(3, 3, 3, 6) {
                for ceil_mode in [false, true] {
                    let pool = PoolAttrs {
                        kernel: d(&[k]),
                        strides: d(&[s]),
                        before: d(&[b]),
                        after: d(&[a]),
                        dilations: d(&[dil + 1]),
                        ceil_mode,
                    };
                    let x = [1, 1, input + 1];
                    let Ok(out) = pool_out_dims(&pool, &x) else { continue };
                    for o in 0..out[2] {
                        let held = (0..k).any(|j| {
                            let at = (o * s + j * (dil + 1)).checked_sub(b);
                            at.is_some_and(|at| at <= input)
                        });
                        assert!(held, "window {o} of {pool:?} over {x:?} is empty");
                    }
                }
            }
        }
    }
}

fn itertools4(a: u64, b: u64, c: u64, e: u64) -> impl Iterator<Item = (u64, u64, u64, u64)> {
    (0..a * b * c * e).map(move |i| (i % a, i / a % b, i / a / b % c, i / a / b / c))
}

#[test]
fn norms() {
    let v = "f32[3]";
    let train = "batch_norm_train(eps:0.1,momentum:0.9)";
    assert_eq!(ok(train, &["f32[2,3,4]", v, v, v, v], 5), "f32[2,3,4] f32[3] f32[3] f32[3] f32[3]");
    let infer = "batch_norm_infer(eps:0.1,momentum:0.9)";
    assert_eq!(ok(infer, &["f32[2,3]", v, v, v, v], 1), "f32[2,3]");
    assert!(err(infer, &["f32[2,3]", v, v, "f32[2]", v]).contains("mean of type f32[3], found f32[2]"));
    assert!(err(infer, &["f32[3]", v, v, v, v]).contains("[N,C,..]"));
    assert_eq!(ok("batch_norm_grad", &["f32[2,3]", "f32[2,3]", v, v, v], 3), "f32[2,3] f32[3] f32[3]");
    let lrn = Op::Lrn(LrnAttrs { size: 0, alpha: Real(1.0), beta: Real(1.0), bias: Real(1.0) });
    assert!(infer_one(&lrn, "f32[1,2,3]").is_err());
}

fn infer_one(op: &Op, x: &str) -> Result<Types, InferError> {
    infer(op, &[&t(x)], 1)
}

#[test]
fn matrices() {
    let gemm = "gemm(trans_a:false,trans_b:true,alpha:1.0,beta:1.0)";
    assert_eq!(ok(gemm, &["f32[2,3]", "f32[5,3]", "f32[5]"], 1), "f32[2,5]");
    assert_eq!(ok(gemm, &["f32[2,3]", "f32[5,3]", "f32[]"], 1), "f32[2,5]");
    assert!(err(gemm, &["f32[2,3]", "f32[5,3]", "f32[2]"]).contains("broadcasts to [2,5]"));
    assert!(err(gemm, &["f32[1,3]", "f32[5,3]", "f32[2,5]"]).contains("broadcasts to [1,5]"));
    assert!(err(gemm, &["f32[2,3]", "f32[3,5]"]).contains("3 rows"));
    let matmul = "mat_mul(trans_a:true,trans_b:false)";
    assert_eq!(ok(matmul, &["f32[4,1,3,2]", "f32[7,3,5]"], 1), "f32[4,7,2,5]");
    assert!(err(matmul, &["f32[3]", "f32[3,5]"]).contains("rank 2 or more"));
}

#[test]
fn movement_keeps_the_element_type() {
    assert_eq!(ok("concat(axis:1)", &["u8[2,3]", "u8[2,4]"], 1), "u8[2,7]");
    assert!(err("concat(axis:1)", &["u8[2,3]", "u8[3,4]"]).contains("except in axis 1"));
    assert!(err("concat(axis:2)", &["u8[2,3]"]).contains("axis below the rank"));
    assert_eq!(ok("split(axis:0,sizes:[1,2])", &["i64[3,2]"], 2), "i64[1,2] i64[2,2]");
    assert!(err("split(axis:0,sizes:[1,1])", &["i64[3,2]"]).contains("add up to 3, found [1,1]"));
    assert_eq!(ok("slice(starts:[4],steps:[-2],lens:[3])", &["bool[5]"], 1), "bool[3]");
    assert!(err("slice(starts:[4],steps:[-2],lens:[4])", &["bool[5]"]).contains("inside 0..5"));
    assert!(err("slice(starts:[0],steps:[0],lens:[1])", &["bool[5]"]).contains("other than zero"));
    assert_eq!(ok("pad(before:[1,-1],after:[0,2],value:0.0)", &["f16[2,3]"], 1), "f16[3,4]");
    assert!(err("pad(before:[-3],after:[2],value:0.0)", &["f32[2]"]).contains("-3 before"));
    assert_eq!(ok("reshape(dims:[6,0])", &["f32[0,6]"], 1), "f32[6,0]");
    assert!(err("reshape(dims:[5])", &["f32[6]"]).contains("as many elements as f32[6], found [5]"));
    assert_eq!(ok("transpose(perm:[2,0,1])", &["f32[2,3,4]"], 1), "f32[4,2,3]");
    assert!(err("transpose(perm:[2,0,0])", &["f32[2,3,4]"]).contains("permutation"));
    assert_eq!(ok("expand(dims:[2,3,4])", &["f32[3,1]"], 1), "f32[2,3,4]");
    assert!(err("expand(dims:[1,4])", &["f32[3,1]"]).contains("broadcasts to"));
}

#[test]
fn elementwise_and_reductions() {
    assert_eq!(ok("binary(add)", &["i64[3,1]", "i64[2]"], 1), "i64[3,2]");
    assert!(err("binary(add)", &["f32[3]", "i64[3]"]).contains("element type f32, found i64[3]"));
    assert!(err("unary(relu)", &["i64[3]"]).contains("x of type f32"));
    assert_eq!(ok("unary(neg)", &["i64[3]"], 1), "i64[3]");
    let reduce = |axes: &[u64], keepdims| {
        infer_one(&Op::Reduce { kind: ReduceKind::Mean, axes: d(axes), keepdims }, "f32[2,3,4]")
    };
    assert_eq!(reduce(&[0, 2], false).unwrap()[0], t("f32[3]"));
    assert_eq!(reduce(&[0, 2], true).unwrap()[0], t("f32[1,3,1]"));
    assert!(reduce(&[2, 0], true).is_err());
    assert!(reduce(&[3], true).is_err());
    assert_eq!(broadcast_dims(&[0], &[1]), Ok(d(&[0])));
    assert!(broadcast_dims(&[0], &[2]).is_err());
}

#[test]
fn losses_and_updates() {
    let loss = |reduction, ignore_index| Op::SoftmaxCrossEntropy { reduction, ignore_index };
    let types = [t("f32[2,5,3]"), t("i64[2,3]"), t("f32[5]")];
    let refs: Vec<_> = types.iter().collect();
    let out = infer(&loss(LossReduction::Mean, None), &refs, 1).unwrap();
    assert_eq!(out[..], [t("f32[]"), t("f32[2,5,3]")]);
    let out = infer(&loss(LossReduction::None, Some(0)), &refs[..2], 2).unwrap();
    assert_eq!(out[..], [t("f32[2,3]"), t("f32[2,5,3]")]);
    let grad = "softmax_cross_entropy_grad(reduction:mean,ignore_index:None)";
    assert_eq!(ok(grad, &["f32[]", "f32[2,5]", "i32[2]"], 1), "f32[2,5]");
    assert!(err(grad, &["f32[]", "f32[2,5]", "i64[3]"]).contains("labels of type i64[2], found i64[3]"));
    let nll = "negative_log_likelihood(reduction:none,ignore_index:Some(2))";
    assert_eq!(ok(nll, &["f32[2,5,3]", "i64[2,3]", "f32[5]"], 1), "f32[2,3]");
    assert!(err(nll, &["f32[2,5,3]", "i64[2,3]", "f32[4]"]).contains("weight of type f32[5]"));
    let grad = "negative_log_likelihood_grad(reduction:mean,ignore_index:None,x_dims:[2,5])";
    assert_eq!(ok(grad, &["f32[]", "i64[2]"], 1), "f32[2,5]");
    assert!(err(grad, &["f32[2]", "i64[2]"]).contains("dloss of type f32[]"));
    assert_eq!(ok("sgd_update", &["f32[4]", "f32[4]", "f32[4]", "f32[3]"], 2), "f32[4] f32[4]");
    assert!(err("sgd_update", &["f32[4]", "f32[4]", "f32[4]", "f32[2]"]).contains("hyper"));
    assert!(err("dropout(ratio:1.0,seed:1)", &["f32[4]", "i64[]"]).contains("ratio"));
}

#[test]
fn gradients_check_the_forward_shape() {
    let dgrad = format!("conv_dgrad(conv:({}),x_dims:[8,4,7,9])", &CONV[5..CONV.len() - 1]);
    assert_eq!(ok(&dgrad, &["f32[8,6,4,5]", "f32[6,2,3,3]"], 1), "f32[8,4,7,9]");
    assert!(err(&dgrad, &["f32[8,6,4,4]", "f32[6,2,3,3]"]).contains("dy of type f32[8,6,4,5]"));
    let wgrad = format!("conv_wgrad(conv:({}),w_dims:[6,2,3,3])", &CONV[5..CONV.len() - 1]);
    assert_eq!(ok(&wgrad, &["f32[8,4,7,9]", "f32[8,6,4,5]"], 1), "f32[6,2,3,3]");
    let pool = format!("max_pool_grad(pool:({POOL},ceil_mode:false),x_dims:[1,2,6,8])");
    assert_eq!(ok(&pool, &["f32[1,2,2,3]", "u8[1,2,2,3]"], 1), "f32[1,2,6,8]");
    assert!(err(&pool, &["f32[1,2,2,3]", "i32[1,2,2,3]"]).contains("idx of type u8"));
    let slice = Op::SliceGrad {
        slice: SliceAttrs { starts: d(&[1]), steps: smallvec![2], lens: d(&[2]) },
        x_dims: d(&[4]),
    };
    assert_eq!(infer_one(&slice, "f32[2]").unwrap()[0], t("f32[4]"));
    assert!(infer_one(&slice, "f32[3]").is_err());
}

#[test]
fn oversized_tensors_are_refused() {
    assert!(err("expand(dims:[4294967296,65536])", &["f32[]"]).contains("at most"));
    assert!(err("expand(dims:[0,18446744073709551615])", &["f32[]"]).contains("at most"));
    assert!(err("fill(value:1.0,dims:[0,18446744073709551615,4])", &[]).contains("at most"));
}

#[test]
fn feature_maps_may_be_bf16_and_parameters_may_not() {
    let conv = "kernel:[3,3],strides:[1,1],before:[1,1],after:[1,1],dilations:[1,1],groups:1";
    let (x, w, y) = ("bf16[2,4,5,5]", "bf16[6,4,3,3]", "bf16[2,6,5,5]");
    let forward = format!("conv({conv})");
    assert_eq!(ok(&forward, &[x, w, "bf16[6]"], 1), y);
    assert!(err(&forward, &[x, "f32[6,4,3,3]"]).contains("element type bf16"));
    assert!(err(&forward, &[x, w, "f32[6]"]).contains("b of type bf16[6]"));
    assert_eq!(ok(&format!("conv_dgrad(conv:({conv}),x_dims:[2,4,5,5])"), &[y, w], 1), x);
    assert_eq!(ok(&format!("conv_wgrad(conv:({conv}),w_dims:[6,4,3,3])"), &[x, y], 1), w);
    let gemm = "gemm(trans_a:false,trans_b:true,alpha:1.0,beta:1.0)";
    assert_eq!(ok(gemm, &["bf16[2,3]", "bf16[5,3]", "f32[5]"], 1), "f32[2,5]");
    let v = "f32[3]";
    let train = "batch_norm_train(eps:0.1,momentum:0.9)";
    assert_eq!(ok(train, &["bf16[2,3,4]", v, v, v, v], 5), "bf16[2,3,4] f32[3] f32[3] f32[3] f32[3]");
    assert_eq!(ok("batch_norm_grad", &["bf16[2,3]", "bf16[2,3]", v, v, v], 3), "bf16[2,3] f32[3] f32[3]");
    assert!(err("batch_norm_grad", &["f32[2,3]", "bf16[2,3]", v, v, v]).contains("input 1"));
    assert_eq!(ok("reduce(kind:sum,axes:[0],keepdims:false)", &["bf16[2,3]"], 1), v);
    assert!(err("softmax(axis:0)", &["bf16[2]"]).contains("f32"));
    assert_eq!(ok("cast(to:f32)", &["bf16[1,2,3,4]nhwc"], 1), "f32[1,2,3,4]nhwc");
    assert!(err("cast(to:i64)", &["f32[2]"]).contains("f32 or bf16"));
    assert!(err("cast(to:bf16)", &["i64[2]"]).contains("f32 or bf16"));
}
