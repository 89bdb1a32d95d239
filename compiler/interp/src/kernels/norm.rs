//! Batch normalisation (Ioffe and Szegedy, ICML 2015) and local response normalisation
//! (Krizhevsky et al., NIPS 2012), with gradients.

use super::dims;
use vdnn_ir::TensorType;
use vdnn_ir::kernel::{TensorMut, TensorRef};
use vdnn_ir::op::LrnAttrs;

/// A tensor as `[batch, channels, inner]`.
#[derive(Clone, Copy)]
struct Channels {
    n: usize,
    c: usize,
    inner: usize,
}

impl Channels {
    fn new(ty: &TensorType) -> Self {
        let d = dims(ty);
        Self { n: d[0], c: d[1], inner: d[2..].iter().product() }
    }
    /// Indices of the elements of channel `c`.
    fn of(self, c: usize) -> impl Iterator<Item = usize> {
        (0..self.n).flat_map(move |n| {
            let at = (n * self.c + c) * self.inner;
            at..at + self.inner
        })
    }
    fn count(self) -> f64 {
        (self.n * self.inner) as f64
    }
}

pub(super) fn infer(eps: f32, x: &[TensorRef<'_>], y: &mut TensorMut<'_>) {
    let shape = Channels::new(x[0].ty);
    let [x, scale, bias, mean, var] = [0, 1, 2, 3, 4].map(|i| x[i].f32());
    let y = y.f32();
    for c in 0..shape.c {
        let factor = f64::from(scale[c]) / (f64::from(var[c]) + f64::from(eps)).sqrt();
        for i in shape.of(c) {
            y[i] = ((f64::from(x[i]) - f64::from(mean[c])) * factor + f64::from(bias[c])) as f32;
        }
    }
}

pub(super) fn train(eps: f32, momentum: f32, x: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    let shape = Channels::new(x[0].ty);
    let [x, scale, bias, old_mean, old_var] = [0, 1, 2, 3, 4].map(|i| x[i].f32());
    let momentum = f64::from(momentum);
    for c in 0..shape.c {
        let mean = shape.of(c).map(|i| f64::from(x[i])).sum::<f64>() / shape.count();
        let var = shape.of(c).map(|i| (f64::from(x[i]) - mean).powi(2)).sum::<f64>() / shape.count();
        let invstd = 1.0 / (var + f64::from(eps)).sqrt();
        let y = outputs[0].f32();
        for i in shape.of(c) {
            let normal = (f64::from(x[i]) - mean) * invstd;
            y[i] = (normal * f64::from(scale[c]) + f64::from(bias[c])) as f32;
        }
        outputs[1].f32()[c] = (f64::from(old_mean[c]) * momentum + mean * (1.0 - momentum)) as f32;
        outputs[2].f32()[c] = (f64::from(old_var[c]) * momentum + var * (1.0 - momentum)) as f32;
        outputs[3].f32()[c] = mean as f32;
        outputs[4].f32()[c] = invstd as f32;
    }
}

/// With `h = (x - mean) * invstd` and N elements per channel:
/// `dbias = sum dy`, `dscale = sum dy*h`, `dx = scale*invstd*(dy - dbias/N - h*dscale/N)`.
pub(super) fn grad(x: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    let shape = Channels::new(x[0].ty);
    let [dy, x, scale, mean, invstd] = [0, 1, 2, 3, 4].map(|i| x[i].f32());
    for c in 0..shape.c {
        let (mean, invstd) = (f64::from(mean[c]), f64::from(invstd[c]));
        let normal = |i: usize| (f64::from(x[i]) - mean) * invstd;
        let dbias: f64 = shape.of(c).map(|i| f64::from(dy[i])).sum();
        let dscale: f64 = shape.of(c).map(|i| f64::from(dy[i]) * normal(i)).sum();
        let dx = outputs[0].f32();
        for i in shape.of(c) {
            let centred = f64::from(dy[i]) - (dbias + normal(i) * dscale) / shape.count();
            dx[i] = (f64::from(scale[c]) * invstd * centred) as f32;
        }
        outputs[1].f32()[c] = dscale as f32;
        outputs[2].f32()[c] = dbias as f32;
    }
}

/// The same with constant statistics, so dx has only its direct term.
pub(super) fn infer_grad(eps: f32, x: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    let shape = Channels::new(x[0].ty);
    let [dy, x, scale, mean, var] = [0, 1, 2, 3, 4].map(|i| x[i].f32());
    for c in 0..shape.c {
        let mean = f64::from(mean[c]);
        let invstd = 1.0 / (f64::from(var[c]) + f64::from(eps)).sqrt();
        let dx = outputs[0].f32();
        for i in shape.of(c) {
            dx[i] = (f64::from(dy[i]) * f64::from(scale[c]) * invstd) as f32;
        }
        let dscale: f64 = shape.of(c).map(|i| f64::from(dy[i]) * (f64::from(x[i]) - mean) * invstd).sum();
        outputs[1].f32()[c] = dscale as f32;
        outputs[2].f32()[c] = shape.of(c).map(|i| f64::from(dy[i])).sum::<f64>() as f32;
    }
}

/// The channels whose squares enter the denominator of channel `c`.
fn lrn_window(lrn: &LrnAttrs, c: usize, channels: usize) -> std::ops::Range<usize> {
    let size = usize::try_from(lrn.size).unwrap_or(usize::MAX);
    let (before, after) = ((size - 1) / 2, size / 2);
    c.saturating_sub(before)..c.saturating_add(after).saturating_add(1).min(channels)
}

/// `bias + alpha/size * sum of x^2 over the window` at channel `c` of one position; `x(j)`
/// is channel j there.
fn lrn_base(lrn: &LrnAttrs, c: usize, channels: usize, x: impl Fn(usize) -> f64) -> f64 {
    let squares: f64 = lrn_window(lrn, c, channels).map(|j| x(j) * x(j)).sum();
    f64::from(lrn.bias.0) + f64::from(lrn.alpha.0) / lrn.size as f64 * squares
}

pub(super) fn lrn(lrn: &LrnAttrs, x: TensorRef<'_>, y: &mut TensorMut<'_>) {
    let shape = Channels::new(x.ty);
    let (x, y) = (x.f32(), y.f32());
    for n in 0..shape.n {
        for c in 0..shape.c {
            for i in 0..shape.inner {
                let at = |j: usize| (n * shape.c + j) * shape.inner + i;
                let base = lrn_base(lrn, c, shape.c, |j| f64::from(x[at(j)]));
                y[at(c)] = (f64::from(x[at(c)]) * base.powf(-f64::from(lrn.beta.0))) as f32;
            }
        }
    }
}

/// With D the denominator's base: `dx[i] = dy[i] * D[i]^-beta
/// - 2*alpha*beta/size * x[i] * sum of dy[j]*y[j]/D[j] over the j whose window holds i`.
pub(super) fn lrn_grad(lrn: &LrnAttrs, operands: &[TensorRef<'_>], dx: &mut TensorMut<'_>) {
    let shape = Channels::new(operands[0].ty);
    let [dy, x, y] = [0, 1, 2].map(|i| operands[i].f32());
    let dx = dx.f32();
    let beta = f64::from(lrn.beta.0);
    let factor = 2.0 * f64::from(lrn.alpha.0) * beta / lrn.size as f64;
    for n in 0..shape.n {
        for i in 0..shape.inner {
            let at = |c: usize| (n * shape.c + c) * shape.inner + i;
            let mut acc = vec![0.0; shape.c];
            for j in 0..shape.c {
                let base = lrn_base(lrn, j, shape.c, |k| f64::from(x[at(k)]));
                let g = f64::from(dy[at(j)]);
                acc[j] += g * base.powf(-beta);
                for c in lrn_window(lrn, j, shape.c) {
                    acc[c] -= factor * f64::from(x[at(c)]) * g * f64::from(y[at(j)]) / base;
                }
            }
            for (c, &a) in acc.iter().enumerate() {
                dx[at(c)] = a as f32;
            }
        }
    }
}
