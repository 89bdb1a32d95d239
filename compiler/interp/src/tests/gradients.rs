//! Gradient ops against central differences of the forward ops: with L = sum of y*dy and a
//! fixed random dy, dL/dx[i] = (L(x + h*e_i) - L(x - h*e_i)) / 2h.

use super::*;

const H: f32 = 1.0 / 64.0;

fn objective(forward: &Op, inputs: &[Tensor], n_outputs: usize, dy: &Tensor) -> f64 {
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let y = launch(forward, &inputs, n_outputs).unwrap().swap_remove(0);
    y.f32().iter().zip(dy.f32()).map(|(&y, &d)| f64::from(y) * f64::from(d)).sum()
}

/// Compares `gradient` with differences of `forward` in operand `wrt`.
#[track_caller]
fn check(forward: &str, inputs: &[&Tensor], wrt: usize, n_outputs: usize, dy: &Tensor, gradient: &Tensor) {
    let forward = op(forward);
    assert_eq!(gradient.ty(), inputs[wrt].ty());
    let mut inputs: Vec<Tensor> = inputs.iter().map(|&t| t.clone()).collect();
    let largest = gradient.f32().iter().fold(0f32, |m, g| m.max(g.abs()));
    for i in 0..gradient.f32().len() {
        let mut at = |step: f32| {
            let original = inputs[wrt].clone();
            let place = &mut inputs[wrt].bytes_mut()[4 * i..4 * i + 4];
            place.copy_from_slice(&(original.f32()[i] + step).to_ne_bytes());
            let value = objective(&forward, &inputs, n_outputs, dy);
            inputs[wrt] = original;
            value
        };
        let numeric = ((at(H) - at(-H)) / f64::from(2.0 * H)) as f32;
        let analytic = gradient.f32()[i];
        assert!(
            (numeric - analytic).abs() <= 4e-3 * largest.max(1.0),
            "operand {wrt}, element {i}: {analytic}, differences say {numeric}"
        );
    }
}

#[test]
fn conv_gradients() {
    let mut rng = Rng(1);
    for (attrs, x, w) in [
        (
            "kernel:[3,2],strides:[2,1],before:[1,0],after:[0,2],dilations:[1,2],groups:2",
            &[2, 4, 5, 4][..],
            &[6, 2, 3, 2][..],
        ),
        ("kernel:[3],strides:[3],before:[2],after:[1],dilations:[2],groups:1", &[2, 2, 9], &[3, 2, 3]),
        (
            "kernel:[1,1],strides:[2,2],before:[0,0],after:[0,0],dilations:[1,1],groups:1",
            &[1, 2, 4, 5],
            &[2, 2, 1, 1],
        ),
        (
            "kernel:[2,2,2],strides:[1,2,1],before:[0,1,1],after:[1,0,0],dilations:[1,1,1],groups:3",
            &[1, 3, 2, 3, 3],
            &[3, 1, 2, 2, 2],
        ),
    ] {
        let forward = format!("conv({attrs})");
        let (x, w) = (rng.tensor(x), rng.tensor(w));
        let dy = rng.tensor(&run1(&forward, &[&x, &w]).ty().dims);
        let dx = run1(&format!("conv_dgrad(conv:({attrs}),x_dims:{:?})", x.ty().dims), &[&dy, &w]);
        check(&forward, &[&x, &w], 0, 1, &dy, &dx);
        let dw = run1(&format!("conv_wgrad(conv:({attrs}),w_dims:{:?})", w.ty().dims), &[&x, &dy]);
        check(&forward, &[&x, &w], 1, 1, &dy, &dw);
    }
}

#[test]
fn pool_gradients() {
    let mut rng = Rng(2);
    for attrs in [
        "kernel:[3,3],strides:[2,2],before:[1,1],after:[1,1],dilations:[1,1],ceil_mode:true",
        "kernel:[2,3],strides:[1,2],before:[0,2],after:[1,0],dilations:[2,1],ceil_mode:false",
    ] {
        let x = rng.spaced(&[2, 2, 5, 6]);
        let forward = format!("max_pool({attrs})");
        let y = run(&forward, &[&x], 2);
        let dy = rng.tensor(&y[0].ty().dims);
        let dx = run1(&format!("max_pool_grad(pool:({attrs}),x_dims:[2,2,5,6])"), &[&dy, &y[1]]);
        check(&forward, &[&x], 0, 2, &dy, &dx);
        for include in [false, true] {
            let tail = format!("pool:({attrs}),count_include_pad:{include}");
            let dx = run1(&format!("avg_pool_grad({tail},x_dims:[2,2,5,6])"), &[&dy]);
            check(&format!("avg_pool({tail})"), &[&x], 0, 1, &dy, &dx);
        }
    }
}

#[test]
fn batch_norm_gradients() {
    let mut rng = Rng(3);
    let (x, dy) = (rng.spaced(&[3, 2, 4]), rng.tensor(&[3, 2, 4]));
    let (scale, bias, mean) = (rng.tensor(&[2]), rng.tensor(&[2]), rng.tensor(&[2]));
    let var = f32s(&[2], &[0.5, 1.5]);
    let operands = [&x, &scale, &bias, &mean, &var];
    let train = "batch_norm_train(eps:0.125,momentum:0.9)";
    let y = run(train, &operands, 5);
    let grads = run("batch_norm_grad", &[&dy, &x, &scale, &y[3], &y[4]], 3);
    for (wrt, g) in grads.iter().enumerate() {
        check(train, &operands, wrt, 5, &dy, g);
    }
    let infer = "batch_norm_infer(eps:0.125,momentum:0.9)";
    let grads = run("batch_norm_infer_grad(eps:0.125)", &[&dy, &x, &scale, &mean, &var], 3);
    for (wrt, g) in grads.iter().enumerate() {
        check(infer, &operands, wrt, 1, &dy, g);
    }
}

#[test]
fn lrn_gradient() {
    let mut rng = Rng(4);
    for size in [1, 2, 3, 5] {
        let attrs = format!("size:{size},alpha:0.8,beta:0.75,bias:1.5");
        let (x, dy) = (rng.tensor(&[2, 4, 3]), rng.tensor(&[2, 4, 3]));
        let forward = format!("lrn({attrs})");
        let y = run1(&forward, &[&x]);
        let dx = run1(&format!("lrn_grad({attrs})"), &[&dy, &x, &y]);
        check(&forward, &[&x], 0, 1, &dy, &dx);
    }
}

#[test]
fn unary_gradients() {
    use vdnn_ir::op::{SavedOperand, UnaryKind};
    let mut rng = Rng(5);
    let any = rng.spaced(&[24]);
    // In 0.7..1.9, where every function is smooth.
    let positive = f32s(&[24], &any.f32().iter().map(|x| x + 1.3).collect::<Vec<_>>());
    let dy = rng.tensor(&[24]);
    for (kind, x) in [
        ("relu", &any),
        ("leaky_relu(alpha:0.2)", &any),
        ("clip(lo:-0.3,hi:0.4)", &any),
        ("sigmoid", &any),
        ("hard_sigmoid(alpha:1.0,beta:0.45)", &any),
        ("hard_swish", &any),
        ("tanh", &any),
        ("elu(alpha:1.3)", &any),
        ("exp", &any),
        ("log", &positive),
        ("sqrt", &positive),
        ("neg", &any),
        ("abs", &any),
        ("reciprocal", &positive),
        ("affine(scale:-2.0,shift:1.0)", &any),
        ("pow_const(exponent:2.5)", &positive),
        ("pow_const(exponent:2.0)", &any),
    ] {
        let forward = format!("unary({kind})");
        let Op::Unary(parsed) = op(&forward) else { panic!("{forward}") };
        let parsed: UnaryKind = parsed;
        let y = run1(&forward, &[x]);
        let saved = if parsed.saves() == SavedOperand::X { x } else { &y };
        check(&forward, &[x], 0, 1, &dy, &run1(&format!("unary_grad({kind})"), &[&dy, saved]));
    }
}

#[test]
fn softmax_gradients() {
    let mut rng = Rng(6);
    let (x, dy) = (rng.tensor(&[2, 3, 2]), rng.tensor(&[2, 3, 2]));
    for kind in ["softmax", "log_softmax"] {
        let forward = format!("{kind}(axis:1)");
        let y = run1(&forward, &[&x]);
        check(&forward, &[&x], 0, 1, &dy, &run1(&format!("{kind}_grad(axis:1)"), &[&dy, &y]));
    }
}

#[test]
fn cross_entropy_gradient() {
    let mut rng = Rng(7);
    let logits = rng.tensor(&[2, 3, 2]);
    let labels = Tensor::from_i64([2, 2], &[0, 2, 1, 2]);
    let weight = f32s(&[3], &[0.5, 2.0, 1.0]);
    for reduction in ["mean", "sum", "none"] {
        let attrs = format!("(reduction:{reduction},ignore_index:Some(1))");
        let forward = format!("softmax_cross_entropy{attrs}");
        for weighted in [false, true] {
            let mut operands = vec![&logits, &labels];
            if weighted {
                operands.push(&weight);
            }
            let y = run(&forward, &operands, 2);
            let dloss = rng.tensor(&y[0].ty().dims);
            let mut back = vec![&dloss, &y[1], &labels];
            back.extend(weighted.then_some(&weight));
            let dx = run1(&format!("softmax_cross_entropy_grad{attrs}"), &back);
            check(&forward, &operands, 0, 2, &dloss, &dx);
        }
    }
}

#[test]
fn slice_gradient() {
    let mut rng = Rng(8);
    let attrs = "(starts:[0,4],steps:[1,-2],lens:[2,3])";
    let (x, dy) = (rng.tensor(&[3, 5]), rng.tensor(&[2, 3]));
    let dx = run1(&format!("slice_grad(slice:{attrs},x_dims:[3,5])"), &[&dy]);
    check(&format!("slice{attrs}"), &[&x], 0, 1, &dy, &dx);
}
