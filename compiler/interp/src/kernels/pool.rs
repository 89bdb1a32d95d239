//! Pools and their gradients.

use super::dims;
use super::element::{Element, get, put};
use super::window::Window;
use vdnn_ir::DType;
use vdnn_ir::kernel::{TensorMut, TensorRef};
use vdnn_ir::op::PoolAttrs;

/// Maximum per window; the first of equals wins, and NaN beats everything.
pub(super) fn max<E: Element>(pool: &PoolAttrs, x: TensorRef<'_>, outputs: &mut [TensorMut<'_>]) {
    const NONE: u32 = u32::MAX;
    let window = Window::of_pool(pool, &dims(x.ty), &dims(outputs[0].ty));
    let (y, index) = outputs.split_at_mut(1);
    let y = put::<E>(&mut y[0]);
    let mut index = index.first_mut();
    let mut at = vec![NONE; window.output];
    let planes = get::<E>(x).chunks_exact(window.input).zip(y.chunks_exact_mut(window.output));
    for (p, (x, y)) in planes.enumerate() {
        at.fill(NONE);
        for (t, tap) in window.taps.iter().enumerate() {
            for &(o, i) in &tap.rows {
                for k in 0..tap.n {
                    let (new, old) = (x[i + k * window.stride].wide(), y[o + k].wide());
                    let larger = new > old || (new.is_nan() && !old.is_nan());
                    if at[o + k] == NONE || larger {
                        y[o + k] = x[i + k * window.stride];
                        at[o + k] = t as u32;
                    }
                }
            }
        }
        let here = p * window.output..(p + 1) * window.output;
        match index.as_mut() {
            Some(idx) if idx.ty.dtype == DType::U8 => {
                for (i, &t) in idx.bytes[here].iter_mut().zip(&at) {
                    *i = t as u8;
                }
            }
            Some(idx) => {
                let idx: &mut [i32] = bytemuck::cast_slice_mut(idx.bytes);
                for (i, &t) in idx[here].iter_mut().zip(&at) {
                    *i = t as i32;
                }
            }
            None => {}
        }
    }
}

/// Adds each dy to the element that was the maximum of its window.
pub(super) fn max_grad<E: Element>(pool: &PoolAttrs, operands: &[TensorRef<'_>], dx: &mut TensorMut<'_>) {
    let window = Window::of_pool(pool, &dims(dx.ty), &dims(operands[0].ty));
    let index: Vec<u32> = match operands[1].ty.dtype {
        DType::U8 => operands[1].bytes.iter().map(|&t| u32::from(t)).collect(),
        _ => bytemuck::cast_slice(operands[1].bytes).iter().map(|&t: &i32| t as u32).collect(),
    };
    let planes = get::<E>(operands[0]).chunks_exact(window.output).zip(index.chunks_exact(window.output));
    let mut acc = vec![0.0f64; window.input];
    for ((dy, index), dx) in planes.zip(put::<E>(dx).chunks_exact_mut(window.input)) {
        acc.fill(0.0);
        for (t, tap) in window.taps.iter().enumerate() {
            for &(o, i) in &tap.rows {
                for k in 0..tap.n {
                    if index[o + k] == t as u32 {
                        acc[i + k * window.stride] += dy[o + k].wide();
                    }
                }
            }
        }
        for (dx, &a) in dx.iter_mut().zip(&acc) {
            *dx = E::round(a);
        }
    }
}

/// Mean per window; see [`Window::divisors`] for what it divides by.
pub(super) fn average<E: Element>(
    pool: &PoolAttrs,
    include_pad: bool,
    x: TensorRef<'_>,
    y: &mut TensorMut<'_>,
) {
    let window = Window::of_pool(pool, &dims(x.ty), &dims(y.ty));
    let divisors = window.divisors(include_pad);
    let mut acc = vec![0.0; window.output];
    for (x, y) in get::<E>(x).chunks_exact(window.input).zip(put::<E>(y).chunks_exact_mut(window.output)) {
        acc.fill(0.0);
        for tap in &window.taps {
            for &(o, i) in &tap.rows {
                for k in 0..tap.n {
                    acc[o + k] += x[i + k * window.stride].wide();
                }
            }
        }
        for ((y, &a), &d) in y.iter_mut().zip(&acc).zip(&divisors) {
            *y = E::round(a / d);
        }
    }
}

/// Spreads each dy evenly over its window.
pub(super) fn average_grad<E: Element>(
    pool: &PoolAttrs,
    include_pad: bool,
    dy: TensorRef<'_>,
    dx: &mut TensorMut<'_>,
) {
    let window = Window::of_pool(pool, &dims(dx.ty), &dims(dy.ty));
    let divisors = window.divisors(include_pad);
    let mut acc = vec![0.0; window.input];
    for (dy, dx) in get::<E>(dy).chunks_exact(window.output).zip(put::<E>(dx).chunks_exact_mut(window.input))
    {
        acc.fill(0.0);
        for tap in &window.taps {
            for &(o, i) in &tap.rows {
                for k in 0..tap.n {
                    acc[i + k * window.stride] += dy[o + k].wide() / divisors[o + k];
                }
            }
        }
        for (dx, &a) in dx.iter_mut().zip(&acc) {
            *dx = E::round(a);
        }
    }
}
