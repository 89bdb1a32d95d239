//! Local response normalisation across channels (Krizhevsky et al., NIPS 2012, section 3.3)
//! and its gradient.

use super::args::{Call, shape};
use super::par::{Disjoint, simd};
use super::scratch;
use std::ops::Range;
use vdnn_ir::kernel::{KernelError, TensorMut};
use vdnn_ir::op::LrnAttrs;

/// Positions per task.
const BLOCK: usize = 256;

/// `[N, C, ..]` seen as `[images, channels, plane]`, cut into blocks of positions.
struct Blocks {
    channels: usize,
    plane: usize,
    per_image: usize,
    tasks: usize,
    before: usize,
    after: usize,
}

impl Blocks {
    fn new(dims: &[usize], a: &LrnAttrs) -> Self {
        let plane: usize = dims[2..].iter().product();
        let per_image = plane.div_ceil(BLOCK);
        let reach = (a.size as usize).saturating_sub(1);
        Self {
            channels: dims[1],
            plane,
            per_image,
            tasks: dims[0] * per_image,
            before: reach / 2,
            after: reach.div_ceil(2),
        }
    }

    /// Offset of channel 0 and number of positions of a task.
    fn task(&self, i: usize) -> (usize, usize) {
        let (n, from) = (i / self.per_image, i % self.per_image * BLOCK);
        (n * self.channels * self.plane + from, BLOCK.min(self.plane - from))
    }

    fn work(&self) -> usize {
        self.tasks * BLOCK.min(self.plane) * self.channels * 16
    }

    /// Channels in the window of channel `c`.
    fn window(&self, c: usize) -> Range<usize> {
        c.saturating_sub(self.before)..(c + self.after + 1).min(self.channels)
    }

    /// Channels whose window holds `c`.
    fn mirrored(&self, c: usize) -> Range<usize> {
        c.saturating_sub(self.after)..(c + self.before + 1).min(self.channels)
    }

    /// `bias + alpha/size * sum of squares` of one channel's positions.
    #[inline(always)]
    fn base(&self, a: &LrnAttrs, x: &[f32], at: usize, c: usize, t: &mut [f32]) {
        t.fill(0.0);
        for j in self.window(c) {
            let x = &x[at + j * self.plane..][..t.len()];
            t.iter_mut().zip(x).for_each(|(t, &x)| *t += x * x);
        }
        let factor = (f64::from(a.alpha.0) / a.size as f64) as f32;
        t.iter_mut().for_each(|t| *t = a.bias.0 + factor * *t);
    }
}

/// `t^-beta`; the usual exponents need no call.
#[inline(always)]
fn inverse_power(t: f32, beta: f32) -> f32 {
    if beta == 0.75 {
        1.0 / (t.sqrt() * t.sqrt().sqrt())
    } else if beta == 0.5 {
        1.0 / t.sqrt()
    } else if beta == 1.0 {
        1.0 / t
    } else {
        t.powf(-beta)
    }
}

/// [`vdnn_ir::Op::Lrn`].
pub(super) fn forward(
    call: &Call<'_>,
    a: &LrnAttrs,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let blocks = Blocks::new(&shape(call.input(0)?.ty), a);
    let x = call.f32(0)?;
    let y = Disjoint::new(call.f32_out(call.one(outputs)?)?);
    call.par.run(blocks.tasks, blocks.work(), |i| {
        let (at, len) = blocks.task(i);
        scratch::with(len, |t| {
            for c in 0..blocks.channels {
                let from = at + c * blocks.plane;
                let x_c = &x[from..][..len];
                // SAFETY: the positions of a block belong to its task in every channel.
                #[expect(unsafe_code, reason = "a block's channels are not contiguous")]
                let y = unsafe { y.get(from..from + len) };
                simd(|| {
                    blocks.base(a, x, at, c, t);
                    for ((y, &x), &t) in y.iter_mut().zip(x_c).zip(&*t) {
                        *y = x * inverse_power(t, a.beta.0);
                    }
                });
            }
        });
    });
    Ok(())
}

/// [`vdnn_ir::Op::LrnGrad`]: with t the base of the power,
/// `dx_i = dy_i t_i^-beta - 2 alpha beta / size * x_i * sum over windows j holding i of
/// dy_j y_j / t_j`.
pub(super) fn grad(call: &Call<'_>, a: &LrnAttrs, outputs: &mut [TensorMut<'_>]) -> Result<(), KernelError> {
    let blocks = Blocks::new(&shape(call.input(1)?.ty), a);
    let (dy, x, y) = (call.f32(0)?, call.f32(1)?, call.f32(2)?);
    let dx = Disjoint::new(call.f32_out(call.one(outputs)?)?);
    let factor = (2.0 * f64::from(a.alpha.0) * f64::from(a.beta.0) / a.size as f64) as f32;
    call.par.run(blocks.tasks, 2 * blocks.work(), |i| {
        let (at, len) = blocks.task(i);
        scratch::with((blocks.channels + 2) * len, |buffer| {
            let (t, rest) = buffer.split_at_mut(len);
            let (sum, ratio) = rest.split_at_mut(len);
            for c in 0..blocks.channels {
                let from = at + c * blocks.plane;
                let (x_c, y, dy) = (&x[from..][..len], &y[from..][..len], &dy[from..][..len]);
                // SAFETY: the positions of a block belong to its task in every channel.
                #[expect(unsafe_code, reason = "a block's channels are not contiguous")]
                let dx = unsafe { dx.get(from..from + len) };
                let ratio = &mut ratio[c * len..][..len];
                simd(|| {
                    blocks.base(a, x, at, c, t);
                    for i in 0..x_c.len() {
                        ratio[i] = dy[i] * y[i] / t[i];
                        dx[i] = dy[i] * inverse_power(t[i], a.beta.0);
                    }
                });
            }
            for c in 0..blocks.channels {
                let from = at + c * blocks.plane;
                let x = &x[from..][..len];
                // SAFETY: as above.
                #[expect(unsafe_code, reason = "a block's channels are not contiguous")]
                let dx = unsafe { dx.get(from..from + len) };
                simd(|| {
                    sum.fill(0.0);
                    for j in blocks.mirrored(c) {
                        let ratio = &ratio[j * len..][..len];
                        sum.iter_mut().zip(ratio).for_each(|(s, &r)| *s += r);
                    }
                    for ((dx, &x), &s) in dx.iter_mut().zip(x).zip(&*sum) {
                        *dx -= factor * x * s;
                    }
                });
            }
        });
    });
    Ok(())
}
