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

/// [`vdnn_ir::Op::Unary`].
pub(super) fn unary(
    call: &Call<'_>,
    kind: UnaryKind,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let x = call.f32_or_in_place(0)?;
    let y = call.f32_out(call.one(outputs)?)?;
    let par = call.par;
    match kind {
        // Not `f32::max`, which turns NaN into zero.
        UnaryKind::Relu => map(par, 1, x, y, |x| if x <= 0.0 { 0.0 } else { x }),
        UnaryKind::LeakyRelu { alpha } => {
            map(par, 1, x, y, move |x| if x < 0.0 { alpha.0 * x } else { x });
        }
        UnaryKind::Clip { lo, hi } => map(par, 1, x, y, move |x| clip(x, lo.0, hi.0)),
        UnaryKind::Sigmoid => map(par, SLOW, x, y, math::sigmoid),
        UnaryKind::HardSigmoid { alpha, beta } => {
            map(par, 1, x, y, move |x| clip(alpha.0 * x + beta.0, 0.0, 1.0));
        }
        UnaryKind::HardSwish => map(par, 1, x, y, |x| x * clip(x * (1.0 / 6.0) + 0.5, 0.0, 1.0)),
        UnaryKind::Tanh => map(par, SLOW, x, y, math::tanh),
        UnaryKind::Elu { alpha } => {
            map(par, SLOW, x, y, move |x| if x < 0.0 { alpha.0 * math::exp_m1(x) } else { x });
        }
        UnaryKind::Exp => map(par, SLOW, x, y, math::exp),
        UnaryKind::Log => map(par, SLOW, x, y, f32::ln),
        UnaryKind::Sqrt => map(par, 1, x, y, f32::sqrt),
        UnaryKind::Neg => map(par, 1, x, y, |x| -x),
        UnaryKind::Abs => map(par, 1, x, y, f32::abs),
        UnaryKind::Reciprocal => map(par, 1, x, y, |x| 1.0 / x),
        UnaryKind::Affine { scale, shift } => map(par, 1, x, y, move |x| scale.0 * x + shift.0),
        UnaryKind::PowConst { exponent } => match exponent.0 {
            2.0 => map(par, 1, x, y, |x| x * x),
            3.0 => map(par, 1, x, y, |x| x * x * x),
            e => map(par, SLOW, x, y, move |x| x.powf(e)),
        },
    }
    Ok(())
}

/// [`vdnn_ir::Op::UnaryGrad`]. Where a function has a kink, the derivative is PyTorch's:
/// zero at 0 for ReLU, the left slope for LeakyRelu and ELU, 1 on both bounds of a clip.
pub(super) fn unary_grad(
    call: &Call<'_>,
    kind: UnaryKind,
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let g = call.f32_or_in_place(0)?;
    let s = call.f32(1)?;
    let dx = call.f32_out(call.one(outputs)?)?;
    let par = call.par;
    match kind {
        UnaryKind::Relu => map_grad(par, 1, g, s, dx, |g, y| if y > 0.0 { g } else { 0.0 }),
        UnaryKind::LeakyRelu { alpha } => {
            map_grad(par, 1, g, s, dx, move |g, x| if x > 0.0 { g } else { alpha.0 * g });
        }
        UnaryKind::Clip { lo, hi } => {
            map_grad(par, 1, g, s, dx, move |g, x| if x >= lo.0 && x <= hi.0 { g } else { 0.0 });
        }
        UnaryKind::Sigmoid => map_grad(par, 1, g, s, dx, |g, y| g * (y * (1.0 - y))),
        UnaryKind::HardSigmoid { alpha, beta } => map_grad(par, 1, g, s, dx, move |g, x| {
            let t = alpha.0 * x + beta.0;
            if (0.0..=1.0).contains(&t) { alpha.0 * g } else { 0.0 }
        }),
        UnaryKind::HardSwish => map_grad(par, 1, g, s, dx, |g, x| {
            let t = x * (1.0 / 6.0) + 0.5;
            let slope = if (0.0..=1.0).contains(&t) { x * (1.0 / 6.0) } else { 0.0 };
            g * (clip(t, 0.0, 1.0) + slope)
        }),
        UnaryKind::Tanh => map_grad(par, 1, g, s, dx, |g, y| g * (1.0 - y * y)),
        UnaryKind::Elu { alpha } => {
            map_grad(par, SLOW, g, s, dx, move |g, x| if x > 0.0 { g } else { g * (alpha.0 * math::exp(x)) })
        }
        UnaryKind::Exp => map_grad(par, 1, g, s, dx, |g, y| g * y),
        UnaryKind::Log => map_grad(par, 1, g, s, dx, |g, x| g / x),
        UnaryKind::Sqrt => map_grad(par, 1, g, s, dx, |g, y| g / (2.0 * y)),
        UnaryKind::Neg => map_grad(par, 1, g, s, dx, |g, _| -g),
        UnaryKind::Abs => map_grad(par, 1, g, s, dx, |g, x| {
            let sign = if x < 0.0 { -1.0 } else { 1.0 };
            if x == 0.0 { 0.0 } else { g * sign }
        }),
        UnaryKind::Reciprocal => map_grad(par, 1, g, s, dx, |g, y| -g * (y * y)),
        UnaryKind::Affine { scale, .. } => map_grad(par, 1, g, s, dx, move |g, _| g * scale.0),
        UnaryKind::PowConst { exponent } => match exponent.0 {
            1.0 => map_grad(par, 1, g, s, dx, |g, _| g),
            2.0 => map_grad(par, 1, g, s, dx, |g, x| g * (2.0 * x)),
            e => map_grad(par, SLOW, g, s, dx, move |g, x| g * (e * x.powf(e - 1.0))),
        },
    }
    Ok(())
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
