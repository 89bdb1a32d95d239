//! Batch normalisation (Ioffe and Szegedy, ICML 2015) and local response normalisation
//! (Krizhevsky et al., NIPS 2012), with gradients.

use super::dims;
use super::element::{Element, get, put};
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

pub(super) fn infer<E: Element>(eps: f32, x: &[TensorRef<'_>], y: &mut TensorMut<'_>) {
    let shape = Channels::new(x[0].ty);
    let [x, scale, bias, mean, var] = [0, 1, 2, 3, 4].map(|i| get::<E>(x[i]));
    let y = put::<E>(y);
    for c in 0..shape.c {
        let factor = scale[c].wide() / (var[c].wide() + f64::from(eps)).sqrt();
        for i in shape.of(c) {
            y[i] = E::round((x[i].wide() - mean[c].wide()) * factor + bias[c].wide());
        }
    }
}

pub(super) fn train<E: Element>(eps: f32, momentum: f32, x: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    let shape = Channels::new(x[0].ty);
    let [x, scale, bias, old_mean, old_var] = [0, 1, 2, 3, 4].map(|i| get::<E>(x[i]));
    let momentum = f64::from(momentum);
    for c in 0..shape.c {
        let mean = shape.of(c).map(|i| x[i].wide()).sum::<f64>() / shape.count();
        let var = shape.of(c).map(|i| (x[i].wide() - mean).powi(2)).sum::<f64>() / shape.count();
        let invstd = 1.0 / (var + f64::from(eps)).sqrt();
        let y = put::<E>(&mut outputs[0]);
        for i in shape.of(c) {
            let normal = (x[i].wide() - mean) * invstd;
            y[i] = E::round(normal * scale[c].wide() + bias[c].wide());
        }
        put::<E>(&mut outputs[1])[c] = E::round(old_mean[c].wide() * momentum + mean * (1.0 - momentum));
        put::<E>(&mut outputs[2])[c] = E::round(old_var[c].wide() * momentum + var * (1.0 - momentum));
        put::<E>(&mut outputs[3])[c] = E::round(mean);
        put::<E>(&mut outputs[4])[c] = E::round(invstd);
    }
}

/// With `h = (x - mean) * invstd` and N elements per channel:
/// `dbias = sum dy`, `dscale = sum dy*h`, `dx = scale*invstd*(dy - dbias/N - h*dscale/N)`.
pub(super) fn grad<E: Element>(x: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    let shape = Channels::new(x[0].ty);
    let [dy, x, scale, mean, invstd] = [0, 1, 2, 3, 4].map(|i| get::<E>(x[i]));
    for c in 0..shape.c {
        let (mean, invstd) = (mean[c].wide(), invstd[c].wide());
        let normal = |i: usize| (x[i].wide() - mean) * invstd;
        let dbias: f64 = shape.of(c).map(|i| dy[i].wide()).sum();
        let dscale: f64 = shape.of(c).map(|i| dy[i].wide() * normal(i)).sum();
        let dx = put::<E>(&mut outputs[0]);
        for i in shape.of(c) {
            let centred = dy[i].wide() - (dbias + normal(i) * dscale) / shape.count();
            dx[i] = E::round(scale[c].wide() * invstd * centred);
        }
        put::<E>(&mut outputs[1])[c] = E::round(dscale);
        put::<E>(&mut outputs[2])[c] = E::round(dbias);
    }
}

/// The same with constant statistics, so dx has only its direct term.
pub(super) fn infer_grad<E: Element>(eps: f32, x: &[TensorRef<'_>], outputs: &mut [TensorMut<'_>]) {
    let shape = Channels::new(x[0].ty);
    let [dy, x, scale, mean, var] = [0, 1, 2, 3, 4].map(|i| get::<E>(x[i]));
    for c in 0..shape.c {
        let mean = mean[c].wide();
        let invstd = 1.0 / (var[c].wide() + f64::from(eps)).sqrt();
        let dx = put::<E>(&mut outputs[0]);
        for i in shape.of(c) {
            dx[i] = E::round(dy[i].wide() * scale[c].wide() * invstd);
        }
        let dscale: f64 = shape.of(c).map(|i| dy[i].wide() * (x[i].wide() - mean) * invstd).sum();
        put::<E>(&mut outputs[1])[c] = E::round(dscale);
        put::<E>(&mut outputs[2])[c] = E::round(shape.of(c).map(|i| dy[i].wide()).sum());
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

pub(super) fn lrn<E: Element>(lrn: &LrnAttrs, x: TensorRef<'_>, y: &mut TensorMut<'_>) {
    let shape = Channels::new(x.ty);
    let (x, y) = (get::<E>(x), put::<E>(y));
    for n in 0..shape.n {
        for c in 0..shape.c {
            for i in 0..shape.inner {
                let at = |j: usize| (n * shape.c + j) * shape.inner + i;
                let base = lrn_base(lrn, c, shape.c, |j| x[at(j)].wide());
                y[at(c)] = E::round(x[at(c)].wide() * base.powf(-f64::from(lrn.beta.0)));
            }
        }
    }
}

/// With D the denominator's base: `dx[i] = dy[i] * D[i]^-beta
/// - 2*alpha*beta/size * x[i] * sum of dy[j]*y[j]/D[j] over the j whose window holds i`.
pub(super) fn lrn_grad<E: Element>(lrn: &LrnAttrs, operands: &[TensorRef<'_>], dx: &mut TensorMut<'_>) {
    let shape = Channels::new(operands[0].ty);
    let [dy, x, y] = [0, 1, 2].map(|i| get::<E>(operands[i]));
    let dx = put::<E>(dx);
    let beta = f64::from(lrn.beta.0);
    let factor = 2.0 * f64::from(lrn.alpha.0) * beta / lrn.size as f64;
    for n in 0..shape.n {
        for i in 0..shape.inner {
            let at = |c: usize| (n * shape.c + c) * shape.inner + i;
            let mut acc = vec![0.0; shape.c];
            for j in 0..shape.c {
                let base = lrn_base(lrn, j, shape.c, |k| x[at(k)].wide());
                let g = dy[at(j)].wide();
                acc[j] += g * base.powf(-beta);
                for c in lrn_window(lrn, j, shape.c) {
                    acc[c] -= factor * x[at(c)].wide() * g * y[at(j)].wide() / base;
                }
            }
            for (c, &a) in acc.iter().enumerate() {
                dx[at(c)] = E::round(a);
            }
        }
    }
}
