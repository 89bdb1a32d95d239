//! A chain layer by layer, each layer's whole result before the next: what programs must equal.
//!
//! Written for nothing but to be read: no tile, no buffer, no interval. Positions outside an
//! image contribute nothing.

use crate::chain::{Chain, Kind, Pointwise, Shape, Window};
use crate::rounding::{factor, stored};
use vdnn_ir::Precision;

/// The result of a chain on one image. `operands` are [`Chain::operands`] in order; `None` if
/// there are more or fewer, or one has another number of elements.
///
/// Each element of a convolution is summed in f32 in the order bias, channels, kernel rows,
/// kernel columns.
pub fn reference(chain: &Chain, operands: &[&[f32]], precision: Precision) -> Option<Vec<f32>> {
    let wanted = chain.operands();
    let fits = |(have, want): (&&[f32], &crate::Operand)| have.len() as u64 == want.elements;
    if operands.len() != wanted.len() || !operands.iter().zip(&wanted).all(fits) {
        return None;
    }
    let mut rest = operands.iter().copied();
    let mut x: Vec<f32> = rest.next()?.iter().map(|&x| stored(precision, x)).collect();
    pointwise(&mut x, chain.prologue(), chain.input(), &mut rest)?;
    x.iter_mut().for_each(|x| *x = stored(precision, *x));
    for (i, layer) in chain.layers().iter().enumerate() {
        let (from, to) = (chain.shapes()[i], chain.shapes()[i + 1]);
        x = match &layer.kind {
            Kind::Conv { window, groups, bias, .. } => {
                let weight = rest.next()?;
                let bias = if *bias { Some(rest.next()?) } else { None };
                convolve(&x, from, to, window, *groups, weight, bias, precision)
            }
            Kind::MaxPool { window } => pool(&x, from, to, window, |taps, _| {
                taps.iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m })
            }),
            Kind::AvgPool { window, count_include_pad } => pool(&x, from, to, window, |taps, padded| {
                let n = if *count_include_pad { padded } else { taps.len() };
                taps.iter().fold(0.0, |sum, &v| sum + v) / n as f32
            }),
        };
        pointwise(&mut x, &layer.then, to, &mut rest)?;
        x.iter_mut().for_each(|x| *x = stored(precision, *x));
    }
    Some(x)
}

fn pointwise<'a>(
    x: &mut [f32],
    list: &[Pointwise],
    shape: Shape,
    operands: &mut impl Iterator<Item = &'a [f32]>,
) -> Option<()> {
    let plane = (shape.height * shape.width) as usize;
    for p in list {
        match *p {
            Pointwise::Relu => x.iter_mut().for_each(|x| *x = if *x < 0.0 { 0.0 } else { *x }),
            Pointwise::Clip { lo, hi } => {
                for x in x.iter_mut() {
                    *x = if *x < lo.0 { lo.0 } else { *x };
                    *x = if *x > hi.0 { hi.0 } else { *x };
                }
            }
            Pointwise::Scale => {
                let (scale, shift) = (operands.next()?, operands.next()?);
                for (i, x) in x.iter_mut().enumerate() {
                    *x = *x * scale[i / plane] + shift[i / plane];
                }
            }
            Pointwise::Add => {
                let r = operands.next()?;
                x.iter_mut().zip(r).for_each(|(x, r)| *x += r);
            }
        }
    }
    Some(())
}

/// The position a tap reads, if it is inside.
fn inside(window: &Window, axis: usize, output: u64, tap: u64, extent: u64) -> Option<u64> {
    let at = output * window.strides[axis] + tap * window.dilations[axis];
    at.checked_sub(window.before[axis]).filter(|&at| at < extent)
}

#[expect(clippy::too_many_arguments, reason = "the operands of a convolution")]
fn convolve(
    x: &[f32],
    from: Shape,
    to: Shape,
    window: &Window,
    groups: u64,
    weight: &[f32],
    bias: Option<&[f32]>,
    precision: Precision,
) -> Vec<f32> {
    let (per_group, out_per_group) = (from.channels / groups, to.channels / groups);
    let [ky, kx] = window.kernel;
    let mut y = Vec::with_capacity(to.elements() as usize);
    for m in 0..to.channels {
        for oy in 0..to.height {
            for ox in 0..to.width {
                let mut sum = bias.map_or(0.0, |b| b[m as usize]);
                for c in 0..per_group {
                    let channel = m / out_per_group * per_group + c;
                    for (i, j) in (0..ky).flat_map(|i| (0..kx).map(move |j| (i, j))) {
                        let row = inside(window, 0, oy, i, from.height);
                        let column = inside(window, 1, ox, j, from.width);
                        let (Some(row), Some(column)) = (row, column) else { continue };
                        let w = weight[(((m * per_group + c) * ky + i) * kx + j) as usize];
                        let v = x[((channel * from.height + row) * from.width + column) as usize];
                        sum += factor(precision, w) * factor(precision, v);
                    }
                }
                y.push(sum);
            }
        }
    }
    y
}

/// `f` of the taps inside the image, in row-major order, and of the number of those inside the
/// padded image.
fn pool(x: &[f32], from: Shape, to: Shape, window: &Window, f: impl Fn(&[f32], usize) -> f32) -> Vec<f32> {
    let mut y = Vec::with_capacity(to.elements() as usize);
    let mut taps = Vec::new();
    for c in 0..to.channels {
        for oy in 0..to.height {
            for ox in 0..to.width {
                taps.clear();
                let mut padded = 0;
                for i in 0..window.kernel[0] {
                    for j in 0..window.kernel[1] {
                        let within = |axis: usize, output: u64, tap: u64| {
                            let at = output * window.strides[axis] + tap * window.dilations[axis];
                            at < window.before[axis] + from.extent(axis) + window.after[axis]
                        };
                        padded += usize::from(within(0, oy, i) && within(1, ox, j));
                        let row = inside(window, 0, oy, i, from.height);
                        let column = inside(window, 1, ox, j, from.width);
                        if let (Some(row), Some(column)) = (row, column) {
                            taps.push(x[((c * from.height + row) * from.width + column) as usize]);
                        }
                    }
                }
                y.push(f(&taps, padded));
            }
        }
    }
    y
}
