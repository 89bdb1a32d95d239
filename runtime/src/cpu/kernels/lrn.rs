//! Local response normalisation across channels (Krizhevsky et al., NIPS 2012, section 3.3)
//! and its gradient.

use super::args::{Call, shape};
use super::loops;
use super::par::Disjoint;
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
    fn base(&self, a: &LrnAttrs, x: &[f32], at: usize, c: usize, t: &mut [f32]) {
        t.fill(0.0);
        for j in self.window(c) {
            let x = &x[at + j * self.plane..][..t.len()];
            loops::map2_in_place(x, t, |t, x| t + x * x);
        }
        let factor = (f64::from(a.alpha.0) / a.size as f64) as f32;
        let bias = a.bias.0;
        loops::map_in_place(t, |t| bias + factor * t);
    }
}

/// `y = x t^-beta`; the usual exponents need no library call.
fn scale(x: &[f32], t: &[f32], beta: f32, y: &mut [f32]) {
    if beta == 0.75 {
        loops::map2(x, t, y, |x, t| x / (t.sqrt() * t.sqrt().sqrt()));
    } else if beta == 0.5 {
        loops::map2(x, t, y, |x, t| x / t.sqrt());
    } else if beta == 1.0 {
        loops::map2(x, t, y, |x, t| x / t);
    } else {
        loops::map2(x, t, y, |x, t| x * t.powf(-beta));
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
                blocks.base(a, x, at, c, t);
                scale(x_c, t, a.beta.0, y);
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
                let (y, dy) = (&y[from..][..len], &dy[from..][..len]);
                // SAFETY: the positions of a block belong to its task in every channel.
                #[expect(unsafe_code, reason = "a block's channels are not contiguous")]
                let dx = unsafe { dx.get(from..from + len) };
                let ratio = &mut ratio[c * len..][..len];
                blocks.base(a, x, at, c, t);
                scale(dy, t, a.beta.0, dx);
                loops::map2(dy, y, ratio, |dy, y| dy * y);
                loops::map2_in_place(t, ratio, |r, t| r / t);
            }
            for c in 0..blocks.channels {
                let from = at + c * blocks.plane;
                let x = &x[from..][..len];
                // SAFETY: as above.
                #[expect(unsafe_code, reason = "a block's channels are not contiguous")]
                let dx = unsafe { dx.get(from..from + len) };
                sum.fill(0.0);
                for j in blocks.mirrored(c) {
                    loops::map2_in_place(&ratio[j * len..][..len], sum, |s, r| s + r);
                }
                loops::map2_in_place(x, sum, |s, x| factor * x * s);
                loops::map2_in_place(sum, dx, |dx, s| dx - s);
            }
        });
    });
    Ok(())
}
