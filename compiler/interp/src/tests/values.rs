//! Small cases worked out by hand.

use super::*;

const CONV1: &str = "conv(kernel:[2],strides:[2],before:[1],after:[0],dilations:[2],groups:1)";

#[test]
fn conv_one_dimension_strided_dilated_padded() {
    let x = f32s(&[1, 1, 5], &[1.0, 2.0, 3.0, 4.0, 5.0]);
    let w = f32s(&[1, 1, 2], &[10.0, 1.0]);
    let b = f32s(&[1], &[100.0]);
    // Padded x: 0 1 2 3 4 5; outputs at 0 and 2 read (0, 2) and (2, 4).
    close(&run1(CONV1, &[&x, &w, &b]), &[102.0, 124.0]);
}

#[test]
fn conv_two_dimensions_with_groups() {
    let conv = "conv(kernel:[2,1],strides:[1,1],before:[0,1],after:[0,0],dilations:[1,1],groups:2)";
    let x = f32s(&[1, 2, 2, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let w = f32s(&[2, 1, 2, 1], &[1.0, 10.0, 2.0, 1.0]);
    close(&run1(conv, &[&x, &w]), &[0.0, 31.0, 42.0, 0.0, 17.0, 20.0]);
}

#[test]
fn conv_three_dimensions_is_a_sum_over_the_box() {
    let conv = "conv(kernel:[2,2,2],strides:[1,1,1],before:[0,0,0],after:[0,0,0],dilations:[1,1,1],groups:1)";
    let x: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let x = f32s(&[1, 1, 2, 2, 3], &x);
    let w = f32s(&[1, 1, 2, 2, 2], &[1.0; 8]);
    close(&run1(conv, &[&x, &w]), &[40.0, 48.0]);
}

#[test]
fn a_kernel_tap_that_only_meets_padding_adds_nothing() {
    let conv = "conv(kernel:[3],strides:[1],before:[4],after:[4],dilations:[4],groups:1)";
    let (x, w) = (f32s(&[1, 1, 1], &[3.0]), f32s(&[1, 1, 3], &[5.0, 7.0, 11.0]));
    close(&run1(conv, &[&x, &w]), &[21.0]);
}

fn pool(ceil: bool) -> String {
    format!("kernel:[2,2],strides:[2,2],before:[1,0],after:[0,0],dilations:[1,1],ceil_mode:{ceil}")
}

#[test]
fn max_pool_gives_the_first_maximum() {
    // Rows are padded in front; ceil mode adds a last column of windows.
    let x = f32s(&[1, 1, 3, 3], &[1.0, 1.0, -1.0, 5.0, 4.0, -3.0, 2.0, 5.0, -2.0]);
    let text = format!("max_pool({})", pool(true));
    let y = run(&text, &[&x], 2);
    close(&y[0], &[1.0, -1.0, 5.0, -2.0]);
    assert_eq!(y[1].bytes(), [2, 2, 0, 2]);
    let dy = f32s(&[1, 1, 2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let grad = format!("max_pool_grad(pool:({}),x_dims:[1,1,3,3])", pool(true));
    close(&run1(&grad, &[&dy, &y[1]]), &[1.0, 0.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0, 4.0]);
    let nan = f32s(&[1, 1, 1, 2], &[f32::NAN, f32::INFINITY]);
    close(&run1(&format!("max_pool({})", pool(false)), &[&nan]), &[f32::NAN]);
    let low = f32s(&[1, 1, 1, 2], &[f32::NEG_INFINITY; 2]);
    let y = run(&format!("max_pool({})", pool(false)), &[&low], 2);
    assert_eq!((y[0].f32()[0], y[1].bytes()[0]), (f32::NEG_INFINITY, 2));
}

#[test]
fn max_pool_of_a_large_window_counts_in_i32() {
    let text = "max_pool(kernel:[300],strides:[1],before:[0],after:[0],dilations:[1],ceil_mode:false)";
    let x: Vec<f32> = (0..301).map(|i| i as f32).collect();
    let y = run(text, &[&f32s(&[1, 1, 301], &x)], 2);
    close(&y[0], &[299.0, 300.0]);
    assert_eq!(bytemuck::cast_slice::<u8, i32>(y[1].bytes()), [299, 299]);
}

#[test]
fn average_pool_divisors() {
    let x = f32s(&[1, 1, 3, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
    let average =
        |include| run1(&format!("avg_pool(pool:({}),count_include_pad:{include})", pool(true)), &[&x]);
    close(&average(false), &[1.5, 3.0, 6.0, 7.5]);
    // The row of padding counts, the column beyond the input that ceil mode adds does not.
    close(&average(true), &[0.75, 1.5, 6.0, 7.5]);
}

#[test]
fn batch_norm_by_hand() {
    let x = f32s(&[2, 1, 2], &[1.0, 2.0, 3.0, 6.0]);
    let v = |x: f32| f32s(&[1], &[x]);
    let y = run1("batch_norm_infer(eps:1.0,momentum:0.5)", &[&x, &v(2.0), &v(1.0), &v(2.0), &v(3.0)]);
    close(&y, &[0.0, 1.0, 2.0, 5.0]);
    // Mean 3, biased variance 3.5.
    let y = run("batch_norm_train(eps:0.5,momentum:0.75)", &[&x, &v(2.0), &v(1.0), &v(7.0), &v(1.5)], 5);
    close(&y[0], &[-1.0, 0.0, 1.0, 4.0]);
    let stats: Vec<f32> = y[1..].iter().map(|t| t.f32()[0]).collect();
    assert_eq!(stats, [6.0, 2.0, 3.0, 0.5]);
}

#[test]
fn lrn_window_is_longer_behind() {
    let x = f32s(&[1, 3, 1], &[1.0, 2.0, 3.0]);
    let y = run1("lrn(size:2,alpha:2.0,beta:1.0,bias:1.0)", &[&x]);
    close(&y, &[1.0 / 6.0, 2.0 / 14.0, 3.0 / 10.0]);
}

#[test]
fn matrix_products() {
    let a = f32s(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let b = f32s(&[2, 3], &[1.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
    let c = f32s(&[2, 1], &[10.0, 20.0]);
    let y = run1("gemm(trans_a:false,trans_b:true,alpha:2.0,beta:0.5)", &[&a, &b, &c]);
    close(&y, &[13.0, 9.0, 30.0, 20.0]);
    let y = run1("gemm(trans_a:true,trans_b:false,alpha:1.0,beta:0.0)", &[&a, &b]);
    close(&y, &[1.0, 4.0, 1.0, 2.0, 5.0, 2.0, 3.0, 6.0, 3.0]);
    let a = f32s(&[2, 1, 1, 2], &[1.0, 2.0, 3.0, 4.0]);
    let b = f32s(&[2, 2, 1], &[1.0, 10.0, 100.0, 1000.0]);
    let y = run1("mat_mul(trans_a:false,trans_b:false)", &[&a, &b]);
    assert_eq!(y.ty().dims[..], [2, 2, 1, 1]);
    close(&y, &[21.0, 2100.0, 43.0, 4300.0]);
}

#[test]
fn unary_functions() {
    let x = f32s(&[4], &[-2.0, -0.0, 1.0, 8.0]);
    let cases: [(&str, [f32; 4]); 9] = [
        ("relu", [0.0, 0.0, 1.0, 8.0]),
        ("leaky_relu(alpha:0.5)", [-1.0, 0.0, 1.0, 8.0]),
        ("clip(lo:-1.0,hi:6.0)", [-1.0, 0.0, 1.0, 6.0]),
        ("hard_sigmoid(alpha:0.25,beta:0.5)", [0.0, 0.5, 0.75, 1.0]),
        ("hard_swish", [-1.0 / 3.0, 0.0, 2.0 / 3.0, 8.0]),
        ("elu(alpha:2.0)", [2.0 * ((-2f32).exp() - 1.0), 0.0, 1.0, 8.0]),
        ("neg", [2.0, 0.0, -1.0, -8.0]),
        ("affine(scale:3.0,shift:1.0)", [-5.0, 1.0, 4.0, 25.0]),
        ("pow_const(exponent:3.0)", [-8.0, 0.0, 1.0, 512.0]),
    ];
    for (kind, expected) in cases {
        close(&run1(&format!("unary({kind})"), &[&x]), &expected);
    }
    close(&run1("unary(sigmoid)", &[&f32s(&[2], &[0.0, f32::NEG_INFINITY])]), &[0.5, 0.0]);
    close(&run1("unary(relu)", &[&f32s(&[1], &[f32::NAN])]), &[f32::NAN]);
    let ints = bytes("i32[2]", bytemuck::cast_slice(&[-5i32, 4]));
    assert_eq!(run1("unary(abs)", &[&ints]).bytes(), bytemuck::cast_slice::<i32, u8>(&[5, 4]));
}

#[test]
fn binary_functions_broadcast() {
    let a = f32s(&[2, 1, 2], &[1.0, -2.0, 3.0, -4.0]);
    let b = f32s(&[3, 1], &[2.0, 0.0, -1.0]);
    let y = run1("binary(mul)", &[&a, &b]);
    assert_eq!(y.ty().dims[..], [2, 3, 2]);
    close(&y, &[2.0, -4.0, 0.0, 0.0, -1.0, 2.0, 6.0, -8.0, 0.0, 0.0, -3.0, 4.0]);
    close(&run1("binary(p_relu)", &[&a, &f32s(&[], &[0.5])]), &[1.0, -1.0, 3.0, -2.0]);
    close(&run1("binary(gate)", &[&a, &f32s(&[2], &[0.0, 1.0])]), &[0.0, -2.0, 0.0, -4.0]);
    close(&run1("binary(max)", &[&a, &f32s(&[1], &[f32::NAN])]), &[f32::NAN; 4]);
    let i = Tensor::from_i64([2], &[7, -7]);
    assert_eq!(run1("binary(div)", &[&i, &Tensor::from_i64([1], &[2])]).i64(), [3, -3]);
    let error = launch(&op("binary(div)"), &[&i, &Tensor::from_i64([1], &[0])], 1).unwrap_err();
    assert!(error.to_string().contains("division by zero"));
    let bools = bytes("bool[1]", &[1]);
    assert!(matches!(launch(&op("binary(add)"), &[&bools, &bools], 1), Err(KernelError::Unsupported { .. })));
}

#[test]
fn reductions() {
    let x = f32s(&[2, 2, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    close(&run1("reduce(kind:sum,axes:[0,2],keepdims:false)", &[&x]), &[14.0, 22.0]);
    close(&run1("reduce(kind:mean,axes:[1],keepdims:true)", &[&x]), &[2.0, 3.0, 6.0, 7.0]);
    close(&run1("reduce(kind:max,axes:[0,1,2],keepdims:false)", &[&x]), &[8.0]);
    let i = Tensor::from_i64([3], &[-5, 2, 2]);
    assert_eq!(run1("reduce(kind:max,axes:[0],keepdims:false)", &[&i]).i64(), [2]);
}

#[test]
fn softmax_along_an_inner_axis() {
    let ln3 = 3f32.ln();
    let x = f32s(&[2, 2], &[0.0, 1000.0, ln3, 1000.0]);
    close(&run1("softmax(axis:0)", &[&x]), &[0.25, 0.5, 0.75, 0.5]);
    close(&run1("log_softmax(axis:0)", &[&x]), &[0.25f32.ln(), 0.5f32.ln(), 0.75f32.ln(), 0.5f32.ln()]);
}

#[test]
fn movement_of_any_type() {
    let x = bytes("u8[2,3]", &[1, 2, 3, 4, 5, 6]);
    assert_eq!(run1("transpose(perm:[1,0])", &[&x]).bytes(), [1, 4, 2, 5, 3, 6]);
    let y = bytes("u8[2,1]", &[7, 8]);
    assert_eq!(run1("concat(axis:1)", &[&x, &y]).bytes(), [1, 2, 3, 7, 4, 5, 6, 8]);
    let parts = run("split(axis:1,sizes:[1,2])", &[&x], 2);
    assert_eq!((parts[0].bytes(), parts[1].bytes()), (&[1, 4][..], &[2, 3, 5, 6][..]));
    assert_eq!(run1("slice(starts:[1,2],steps:[-1,-2],lens:[2,2])", &[&x]).bytes(), [6, 4, 3, 1]);
    assert_eq!(run1("pad(before:[1,-1],after:[0,1],value:9.0)", &[&x]).bytes(), [9, 9, 9, 2, 3, 9, 5, 6, 9]);
    assert_eq!(run1("pad(before:[0,1],after:[-1,-2],value:9.0)", &[&x]).bytes(), [9, 1]);
    assert_eq!(run1("expand(dims:[2,2,1])", &[&y]).bytes(), [7, 8, 7, 8]);
    assert_eq!(run1("reshape(dims:[6])", &[&x]).bytes(), x.bytes());
    assert_eq!(run1("offload_start", &[&x]), x);
    let dy = f32s(&[2], &[1.0, 2.0]);
    let grad = "slice_grad(slice:(starts:[3],steps:[-2],lens:[2]),x_dims:[4])";
    close(&run1(grad, &[&dy]), &[0.0, 2.0, 0.0, 1.0]);
    close(&run1("fill(value:2.5,dims:[2])", &[]), &[2.5, 2.5]);
    let empty = bytes("u8[0,3]", &[]);
    assert_eq!(run1("concat(axis:0)", &[&empty, &x]).bytes(), x.bytes());
}

#[test]
fn losses() {
    let loss = |r: &str| format!("softmax_cross_entropy(reduction:{r},ignore_index:Some(-1))");
    let x = f32s(&[3, 2], &[0.0, 3f32.ln(), 0.0, 0.0, 5.0, 1.0]);
    let labels = Tensor::from_i64([3], &[1, 0, -1]);
    let weight = f32s(&[2], &[3.0, 1.0]);
    let (a, b) = (-(0.75f32.ln()), -3.0 * 0.5f32.ln());
    close(&run(&loss("none"), &[&x, &labels, &weight], 2)[0], &[a, b, 0.0]);
    close(&run(&loss("sum"), &[&x, &labels, &weight], 2)[0], &[a + b]);
    close(&run(&loss("mean"), &[&x, &labels, &weight], 2)[0], &[(a + b) / 4.0]);
    let i32s = bytes("i32[3]", bytemuck::cast_slice(&[1i32, 0, -1]));
    close(&run(&loss("sum"), &[&x, &i32s], 2)[0], &[a + b / 3.0]);
    let wrong = Tensor::from_i64([3], &[1, 2, 0]);
    let error = launch(&op(&loss("sum")), &[&x, &wrong], 2).unwrap_err();
    assert!(error.to_string().contains("label 2 at position 1 is outside the 2 classes"));
}

#[test]
fn dropout_masks_by_position_and_step() {
    let x = f32s(&[1000], &[1.0; 1000]);
    let mask = |step: i64, seed: u64| {
        run1(&format!("dropout(ratio:0.25,seed:{seed})"), &[&x, &Tensor::from_i64([], &[step])])
    };
    let y = mask(3, 7);
    assert!(y.f32().iter().all(|&v| v == 0.0 || v == (1.0 / 0.75) as f32));
    let kept = y.f32().iter().filter(|&&v| v > 0.0).count();
    assert!((700..800).contains(&kept), "{kept}");
    assert_eq!(mask(3, 7), y);
    assert_ne!(mask(4, 7), y);
    assert_ne!(mask(3, 8), y);
}

#[test]
fn sgd_step_also_in_place() {
    let (w, v, g) = (f32s(&[2], &[1.0, 2.0]), f32s(&[2], &[4.0, 0.0]), f32s(&[2], &[3.0, -1.0]));
    let hyper = f32s(&[3], &[0.5, 0.25, 2.0]);
    let expected = ([-2.0f32, 0.5], [6.0f32, 3.0]);
    let y = run("sgd_update", &[&w, &v, &g, &hyper], 2);
    assert_eq!((y[0].f32(), y[1].f32()), (&expected.0[..], &expected.1[..]));
    let (mut a, mut b) = (w.clone(), v.clone());
    let mut outputs =
        [TensorMut { ty: w.ty(), bytes: a.bytes_mut() }, TensorMut { ty: v.ty(), bytes: b.bytes_mut() }];
    let operands =
        [Operand::InPlace(0), Operand::InPlace(1), Operand::Ref(g.view()), Operand::Ref(hyper.view())];
    NaiveKernels.launch(&op("sgd_update"), &operands, &mut outputs).unwrap();
    assert_eq!((a, b), (y[0].clone(), y[1].clone()));
}
