//! Elementwise functions of one tensor, their gradients, and dropout.

use super::args::Call;
use super::loops;
use super::math;
use super::par::{CHUNK, Par, simd_fn};
use vdnn_ir::kernel::{KernelError, TensorMut};
use vdnn_ir::op::UnaryKind;
use vdnn_ir::random::splitmix64;

/// Work of an element whose function needs an exponential or a library call.
const SLOW: usize = 8;

/// `y[i] = f(x[i])`, where no `x` means that y holds its values.
fn map(
    par: &Par,
    weight: usize,
    x: Option<&[f32]>,
    y: &mut [f32],
    f: impl Fn(f32) -> f32 + Copy + Send + Sync,
) {
    par.chunks(y, CHUNK, weight, |i, y| match x {
        Some(x) => {
            let x = &x[i * CHUNK..][..y.len()];
            loops::map(x, y, f);
        }
        None => loops::map_in_place(y, f),
    });
}

/// `dx[i] = f(dy[i], s[i])`, where no `dy` means that dx holds its values.
fn map_grad(
    par: &Par,
    weight: usize,
    dy: Option<&[f32]>,
    s: &[f32],
    dx: &mut [f32],
    f: impl Fn(f32, f32) -> f32 + Copy + Send + Sync,
) {
    par.chunks(dx, CHUNK, weight, |i, dx| {
        let s = &s[i * CHUNK..][..dx.len()];
        match dy {
            Some(dy) => {
                let dy = &dy[i * CHUNK..][..dx.len()];
                loops::map2(dy, s, dx, f);
            }
            None => loops::map2_in_place(s, dx, f),
        }
    });
}

/// Limits `x`; keeps NaN.
#[inline(always)]
fn clip(x: f32, lo: f32, hi: f32) -> f32 {
    let x = if x < lo { lo } else { x };
    if x > hi { hi } else { x }
}

/// What is done with a function of one element: the loop that runs it.
pub(super) trait Map {
    /// Runs the function, one evaluation of which is `weight` element visits.
    fn by<F: Fn(f32) -> f32 + Copy + Send + Sync>(self, weight: usize, f: F);
}

/// As [`Map`], of a function of two elements.
pub(super) trait Map2 {
    /// As [`Map::by`].
    fn by<F: Fn(f32, f32) -> f32 + Copy + Send + Sync>(self, weight: usize, f: F);
}

/// [`map`] over a whole tensor.
struct Whole<'a>(&'a Par, Option<&'a [f32]>, &'a mut [f32]);

impl Map for Whole<'_> {
    fn by<F: Fn(f32) -> f32 + Copy + Send + Sync>(self, weight: usize, f: F) {
        map(self.0, weight, self.1, self.2, f);
    }
}

/// [`map_grad`] over a whole tensor.
struct WholeGrad<'a>(&'a Par, Option<&'a [f32]>, &'a [f32], &'a mut [f32]);

impl Map2 for WholeGrad<'_> {
    fn by<F: Fn(f32, f32) -> f32 + Copy + Send + Sync>(self, weight: usize, f: F) {
        map_grad(self.0, weight, self.1, self.2, self.3, f);
    }
}

/// [`vdnn_ir::Op::Unary`].
pub(super) fn unary(
    call: &Call<'_>,
    kind: UnaryKind,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let x = call.f32_or_in_place(0)?;
    let y = call.f32_out(call.one(outputs)?)?;
    with_unary(kind, Whole(call.par, x, y));
    Ok(())
}

/// Hands a function to a loop.
pub(super) fn with_unary<M: Map>(kind: UnaryKind, m: M) {
    match kind {
        // Not `f32::max`, which turns NaN into zero.
        UnaryKind::Relu => m.by(1, |x| if x <= 0.0 { 0.0 } else { x }),
        UnaryKind::LeakyRelu { alpha } => {
            m.by(1, move |x| if x < 0.0 { alpha.0 * x } else { x });
        }
        UnaryKind::Clip { lo, hi } => m.by(1, move |x| clip(x, lo.0, hi.0)),
        UnaryKind::Sigmoid => m.by(SLOW, math::sigmoid),
        UnaryKind::HardSigmoid { alpha, beta } => {
            m.by(1, move |x| clip(alpha.0 * x + beta.0, 0.0, 1.0));
        }
        UnaryKind::HardSwish => m.by(1, |x| x * clip(x * (1.0 / 6.0) + 0.5, 0.0, 1.0)),
        UnaryKind::Tanh => m.by(SLOW, math::tanh),
        UnaryKind::Elu { alpha } => {
            m.by(SLOW, move |x| if x < 0.0 { alpha.0 * math::exp_m1(x) } else { x });
        }
        UnaryKind::Exp => m.by(SLOW, math::exp),
        UnaryKind::Log => m.by(SLOW, f32::ln),
        UnaryKind::Sqrt => m.by(1, f32::sqrt),
        UnaryKind::Neg => m.by(1, |x| -x),
        UnaryKind::Abs => m.by(1, f32::abs),
        UnaryKind::Reciprocal => m.by(1, |x| 1.0 / x),
        UnaryKind::Affine { scale, shift } => m.by(1, move |x| scale.0 * x + shift.0),
        UnaryKind::PowConst { exponent } => match exponent.0 {
            2.0 => m.by(1, |x| x * x),
            3.0 => m.by(1, |x| x * x * x),
            e => m.by(SLOW, move |x| x.powf(e)),
        },
    }
}

/// [`vdnn_ir::Op::UnaryGrad`].
pub(super) fn unary_grad(
    call: &Call<'_>,
    kind: UnaryKind,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let g = call.f32_or_in_place(0)?;
    let s = call.f32(1)?;
    let dx = call.f32_out(call.one(outputs)?)?;
    with_unary_grad(kind, WholeGrad(call.par, g, s, dx));
    Ok(())
}

/// Hands a derivative, a function of dy and what was saved, to a loop. Where a function has a
/// kink, the derivative is PyTorch's: zero at 0 for ReLU, the left slope for LeakyRelu and ELU, 1
/// on both bounds of a clip.
pub(super) fn with_unary_grad<M: Map2>(kind: UnaryKind, m: M) {
    match kind {
        UnaryKind::Relu => m.by(1, |g, y| if y > 0.0 { g } else { 0.0 }),
        UnaryKind::LeakyRelu { alpha } => {
            m.by(1, move |g, x| if x > 0.0 { g } else { alpha.0 * g });
        }
        UnaryKind::Clip { lo, hi } => {
            m.by(1, move |g, x| if x >= lo.0 && x <= hi.0 { g } else { 0.0 });
        }
        UnaryKind::Sigmoid => m.by(1, |g, y| g * (y * (1.0 - y))),
        UnaryKind::HardSigmoid { alpha, beta } => m.by(1, move |g, x| {
            let t = alpha.0 * x + beta.0;
            if (0.0..=1.0).contains(&t) { alpha.0 * g } else { 0.0 }
        }),
        UnaryKind::HardSwish => m.by(1, |g, x| {
            let t = x * (1.0 / 6.0) + 0.5;
            let slope = if (0.0..=1.0).contains(&t) { x * (1.0 / 6.0) } else { 0.0 };
            g * (clip(t, 0.0, 1.0) + slope)
        }),
        UnaryKind::Tanh => m.by(1, |g, y| g * (1.0 - y * y)),
        UnaryKind::Elu { alpha } => {
            m.by(SLOW, move |g, x| if x > 0.0 { g } else { g * (alpha.0 * math::exp(x)) })
        }
        UnaryKind::Exp => m.by(1, |g, y| g * y),
        UnaryKind::Log => m.by(1, |g, x| g / x),
        UnaryKind::Sqrt => m.by(1, |g, y| g / (2.0 * y)),
        UnaryKind::Neg => m.by(1, |g, _| -g),
        UnaryKind::Abs => m.by(1, |g, x| {
            let sign = if x < 0.0 { -1.0 } else { 1.0 };
            if x == 0.0 { 0.0 } else { g * sign }
        }),
        UnaryKind::Reciprocal => m.by(1, |g, y| -g * (y * y)),
        UnaryKind::Affine { scale, .. } => m.by(1, move |g, _| g * scale.0),
        UnaryKind::PowConst { exponent } => match exponent.0 {
            1.0 => m.by(1, |g, _| g),
            2.0 => m.by(1, |g, x| g * (2.0 * x)),
            e => m.by(SLOW, move |g, x| g * (e * x.powf(e - 1.0))),
        },
    }
}

/// [`vdnn_ir::Op::Dropout`]: element i is kept if `U >= ratio`, U being the top 24 bits of
/// splitmix64(splitmix64(seed, step), first + i) as a fraction.
pub(super) fn dropout(
    call: &Call<'_>,
    ratio: f32,
    [seed, first]: [u64; 2],
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let x = call.f32_or_in_place(0)?;
    let step = call.i64(1)?;
    let step = *step.first().ok_or_else(|| call.unsupported("an empty step"))?;
    let y = call.f32_out(call.one(outputs)?)?;
    let stream = splitmix64(seed, step as u64);
    call.par.chunks(y, CHUNK, 4, |i, y| {
        if let Some(x) = x {
            y.copy_from_slice(&x[i * CHUNK..][..y.len()]);
        }
        drop_some(y, stream, first.wrapping_add((i * CHUNK) as u64), ratio);
    });
    Ok(())
}

simd_fn! {
    /// Drops out elements of `y`, the first of which is number `base` of the stream.
    fn drop_some(y: &mut [f32], stream: u64, base: u64, ratio: f32) {
        let keep = 1.0 - ratio;
        for (i, y) in y.iter_mut().enumerate() {
            let u = (splitmix64(stream, base.wrapping_add(i as u64)) >> 40) as i32 as f32 * (1.0 / 16_777_216.0);
            *y = if u >= ratio { *y / keep } else { 0.0 };
        }
    }
}
