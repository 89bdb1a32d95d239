//! Batch normalisation (Ioffe and Szegedy, ICML 2015) and its gradients. Sums run in f64,
//! one task per channel.

use super::args::{Call, shape};
use super::loops;
use super::par::Disjoint;
use super::sums;
use vdnn_ir::kernel::{KernelError, TensorMut};

/// A tensor `[N, C, ..]` seen as `[images, channels, plane]`.
#[derive(Clone, Copy)]
struct View {
    images: usize,
    channels: usize,
    plane: usize,
}

impl View {
    fn new(dims: &[usize]) -> Self {
        let channels = dims.get(1).copied().unwrap_or(1);
        let images = dims.first().copied().unwrap_or(1);
        Self { images, channels, plane: dims.iter().skip(2).product() }
    }

    fn len(self) -> usize {
        self.images * self.channels * self.plane
    }

    /// Elements per channel.
    fn count(self) -> usize {
        self.images * self.plane
    }

    /// Element ranges of channel `c`, image by image.
    fn planes(self, c: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        (0..self.images).map(move |n| {
            let at = (n * self.channels + c) * self.plane;
            at..at + self.plane
        })
    }
}

/// Factor of `x - mean` in the output.
fn gain(scale: f32, var: f32, eps: f32) -> f32 {
    (f64::from(scale) / (f64::from(var) + f64::from(eps)).sqrt()) as f32
}

/// [`vdnn_ir::Op::BatchNormInfer`].
pub(super) fn infer(call: &Call<'_>, eps: f32, outputs: &mut [TensorMut<'_>]) -> Result<(), KernelError> {
    let x = call.f32_or_in_place(0)?;
    let (scale, bias, mean, var) = (call.f32(1)?, call.f32(2)?, call.f32(3)?, call.f32(4)?);
    let out = call.one(outputs)?;
    let view = View::new(&shape(out.ty));
    let y = call.f32_out(out)?;
    let planes = (8192 / view.plane.max(1)).max(1);
    call.par.chunks(y, planes * view.plane, 1, |i, y| {
        let base = i * planes;
        for (p, y) in y.chunks_exact_mut(view.plane).enumerate() {
            let c = (base + p) % view.channels;
            let (m, a, b) = (mean[c], gain(scale[c], var[c], eps), bias[c]);
            match x {
                Some(x) => {
                    let x = &x[(base + p) * view.plane..][..view.plane];
                    loops::map(x, y, |x| (x - m) * a + b);
                }
                None => loops::map_in_place(y, |x| (x - m) * a + b),
            }
        }
    });
    Ok(())
}

/// [`vdnn_ir::Op::BatchNormTrain`].
pub(super) fn train(
    call: &Call<'_>,
    eps: f32,
    momentum: f32,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let view = View::new(&shape(call.input(0)?.ty));
    let x = call.f32(0)?;
    let (scale, bias) = (call.f32(1)?, call.f32(2)?);
    let (old_mean, old_var) = (call.f32_or_in_place(3)?, call.f32_or_in_place(4)?);
    let [y, new_mean, new_var, mean, invstd] = outputs else {
        return Err(call.unsupported(format!("{} outputs", outputs.len())));
    };
    let (new_mean, new_var) = (call.f32_out(new_mean)?, call.f32_out(new_var)?);
    if let Some(old) = old_mean {
        new_mean.copy_from_slice(old);
    }
    if let Some(old) = old_var {
        new_var.copy_from_slice(old);
    }
    let y = Disjoint::new(call.f32_out(y)?);
    let new_mean = Disjoint::new(new_mean);
    let new_var = Disjoint::new(new_var);
    let mean = Disjoint::new(call.f32_out(mean)?);
    let invstd = Disjoint::new(call.f32_out(invstd)?);
    call.par.run(view.channels, 4 * view.len(), |c| {
        let count = view.count() as f64;
        // Deviations from the channel's first value: no cancellation in the squares.
        let first = f64::from(view.planes(c).next().and_then(|r| x.get(r.start).copied()).unwrap_or(0.0));
        let (mut s, mut q) = (0f64, 0f64);
        for range in view.planes(c) {
            let x = &x[range];
            let (a, b) = sums::moments(call.par, x, first, x, first);
            s += a;
            q += b;
        }
        let shift = s / count;
        let m = (first + shift) as f32;
        let var = (q / count - shift * shift).max(if q.is_nan() { f64::NAN } else { 0.0 });
        let inv = 1.0 / (var + f64::from(eps)).sqrt();
        // What rounding the mean to f32 lost goes into the bias.
        let a = f64::from(scale[c]) * inv;
        let b = (f64::from(bias[c]) - a * (first + shift - f64::from(m))) as f32;
        let a = a as f32;
        for range in view.planes(c) {
            let x = &x[range.clone()];
            // SAFETY: the planes of channel c are written by task c alone.
            #[expect(unsafe_code, reason = "a channel's planes are not contiguous")]
            let y = unsafe { y.get(range) };
            loops::map(x, y, |x| (x - m) * a + b);
        }
        // SAFETY: element c of each is written by task c alone.
        #[expect(unsafe_code, reason = "several outputs written by the same tasks")]
        let [new_mean, new_var, mean, invstd] =
            [&new_mean, &new_var, &mean, &invstd].map(|s| unsafe { &mut s.get(c..c + 1)[0] });
        let blend = |old: f32, new: f64| {
            (f64::from(old) * f64::from(momentum) + new * (1.0 - f64::from(momentum))) as f32
        };
        *new_mean = blend(*new_mean, first + shift);
        *new_var = blend(*new_var, var);
        *mean = m;
        *invstd = inv as f32;
    });
    Ok(())
}

/// How `dx` follows from dy and x in one channel: `dx = a (dy - b - (x - mean) c)`.
struct Slope {
    mean: f32,
    a: f32,
    b: f32,
    c: f32,
}

/// Shared by both gradients: per channel, sums `dy` and `dy (x - mean)`, lets `slope` turn
/// them into a [`Slope`], dscale and dbias, and writes dx.
fn grads(
    call: &Call<'_>,
    outputs: &mut [TensorMut<'_>],
    slope: impl Fn(usize, f64, f64, f64) -> (Slope, f64) + Send + Sync,
) -> Result<(), KernelError> {
    let dy = call.f32_or_in_place(0)?;
    let view = View::new(&shape(call.input(1)?.ty));
    let (x, mean) = (call.f32(1)?, call.f32(3)?);
    let [dx, dscale, dbias] = outputs else {
        return Err(call.unsupported(format!("{} outputs", outputs.len())));
    };
    let dx = Disjoint::new(call.f32_out(dx)?);
    let dscale = Disjoint::new(call.f32_out(dscale)?);
    let dbias = Disjoint::new(call.f32_out(dbias)?);
    call.par.run(view.channels, 4 * view.len(), |c| {
        let m = f64::from(mean[c]);
        let (mut s, mut q) = (0f64, 0f64);
        for range in view.planes(c) {
            let x = &x[range.clone()];
            // SAFETY: the planes of channel c are touched by task c alone.
            #[expect(unsafe_code, reason = "a channel's planes are not contiguous")]
            let dy = dy.map_or_else(|| &*unsafe { dx.get(range.clone()) }, |dy| &dy[range.clone()]);
            let (a, b) = sums::moments(call.par, dy, 0.0, x, m);
            s += a;
            q += b;
        }
        let (Slope { mean, a, b, c: k }, ds) = slope(c, s, q, view.count() as f64);
        let f = move |dy: f32, x: f32| a * ((dy - b) - (x - mean) * k);
        for range in view.planes(c) {
            let x = &x[range.clone()];
            // SAFETY: as above; the shared view of dx has ended.
            #[expect(unsafe_code, reason = "a channel's planes are not contiguous")]
            let dx = unsafe { dx.get(range.clone()) };
            match dy {
                Some(dy) => {
                    loops::map2(&dy[range], x, dx, f);
                }
                None => loops::map2_in_place(x, dx, f),
            }
        }
        // SAFETY: element c of each is written by task c alone.
        #[expect(unsafe_code, reason = "several outputs written by the same tasks")]
        let [dscale, dbias] = [&dscale, &dbias].map(|s| unsafe { &mut s.get(c..c + 1)[0] });
        *dscale = ds as f32;
        *dbias = s as f32;
    });
    Ok(())
}

/// [`vdnn_ir::Op::BatchNormGrad`].
pub(super) fn train_grad(call: &Call<'_>, outputs: &mut [TensorMut<'_>]) -> Result<(), KernelError> {
    let (scale, mean, invstd) = (call.f32(2)?, call.f32(3)?, call.f32(4)?);
    grads(call, outputs, |c, s, q, count| {
        let inv = f64::from(invstd[c]);
        let slope = Slope {
            mean: mean[c],
            a: (f64::from(scale[c]) * inv) as f32,
            b: (s / count) as f32,
            c: (q * inv * inv / count) as f32,
        };
        (slope, q * inv)
    })
}

/// [`vdnn_ir::Op::BatchNormInferGrad`].
pub(super) fn infer_grad(
    call: &Call<'_>,
    eps: f32,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let (scale, mean, var) = (call.f32(2)?, call.f32(3)?, call.f32(4)?);
    grads(call, outputs, |c, _, q, _| {
        let inv = 1.0 / (f64::from(var[c]) + f64::from(eps)).sqrt();
        let slope = Slope { mean: mean[c], a: gain(scale[c], var[c], eps), b: 0.0, c: 0.0 };
        (slope, q * inv)
    })
}
