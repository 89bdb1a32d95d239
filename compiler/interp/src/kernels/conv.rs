//! Convolution and its two gradients, tap by tap.
//!
//! The element sums stay in f64 for a whole channel plane and are rounded when it is done.
//! Operands are widened once, so the inner loops only multiply and add.

use super::dims;
use super::element::{Element, get, put};
use super::window::{Window, dot, gather, scatter};
use vdnn_ir::kernel::{TensorMut, TensorRef};
use vdnn_ir::op::ConvAttrs;

fn wide<E: Element>(x: TensorRef<'_>) -> Vec<f64> {
    get::<E>(x).iter().map(|&x| x.wide()).collect()
}

/// Extents shared by the three directions.
struct Shape {
    window: Window,
    batch: usize,
    groups: usize,
    /// Input channels per group.
    c: usize,
    /// Output channels per group.
    m: usize,
}

impl Shape {
    fn new(conv: &ConvAttrs, x: &[usize], y: &[usize]) -> Self {
        let groups = conv.groups as usize;
        Self { window: Window::of_conv(conv, x, y), batch: x[0], groups, c: x[1] / groups, m: y[1] / groups }
    }
    /// Range of the plane of input channel `c` of group `g`.
    fn x(&self, n: usize, g: usize, c: usize) -> std::ops::Range<usize> {
        let at = ((n * self.groups + g) * self.c + c) * self.window.input;
        at..at + self.window.input
    }
    /// Range of the plane of output channel `m` of group `g`.
    fn y(&self, n: usize, g: usize, m: usize) -> std::ops::Range<usize> {
        let at = ((n * self.groups + g) * self.m + m) * self.window.output;
        at..at + self.window.output
    }
    /// Position of the first tap between two channels of a group.
    fn w(&self, g: usize, m: usize, c: usize) -> usize {
        ((g * self.m + m) * self.c + c) * self.window.taps.len()
    }
}

/// `y[n,m,o] = b[m] + sum over c, k of w[m,c,k] * x[n,c,o*stride + k*dilation - before]`.
pub(super) fn forward<E: Element>(conv: &ConvAttrs, operands: &[TensorRef<'_>], y: &mut TensorMut<'_>) {
    let shape = Shape::new(conv, &dims(operands[0].ty), &dims(y.ty));
    let (x, w) = (wide::<E>(operands[0]), get::<E>(operands[1]));
    let bias = operands.get(2).map(|&b| get::<E>(b));
    let y = put::<E>(y);
    let mut acc = vec![0.0; shape.window.output];
    for n in 0..shape.batch {
        for g in 0..shape.groups {
            for m in 0..shape.m {
                acc.fill(bias.map_or(0.0, |b| b[g * shape.m + m].wide()));
                for c in 0..shape.c {
                    let plane = &x[shape.x(n, g, c)];
                    let w = &w[shape.w(g, m, c)..];
                    for (tap, &w) in shape.window.taps.iter().zip(w) {
                        for &(o, i) in &tap.rows {
                            gather(&mut acc[o..o + tap.n], w.wide(), &plane[i..], shape.window.stride);
                        }
                    }
                }
                for (y, &a) in y[shape.y(n, g, m)].iter_mut().zip(&acc) {
                    *y = E::round(a);
                }
            }
        }
    }
}

/// `dx[n,c,i] = sum of w[m,c,k] * dy[n,m,o]` over all m, k, o at which w met x[n,c,i].
pub(super) fn dgrad<E: Element>(conv: &ConvAttrs, operands: &[TensorRef<'_>], dx: &mut TensorMut<'_>) {
    let shape = Shape::new(conv, &dims(dx.ty), &dims(operands[0].ty));
    let (dy, w) = (wide::<E>(operands[0]), get::<E>(operands[1]));
    let dx = put::<E>(dx);
    let mut acc = vec![0.0; shape.window.input];
    for n in 0..shape.batch {
        for g in 0..shape.groups {
            for c in 0..shape.c {
                acc.fill(0.0);
                for m in 0..shape.m {
                    let plane = &dy[shape.y(n, g, m)];
                    let w = &w[shape.w(g, m, c)..];
                    for (tap, &w) in shape.window.taps.iter().zip(w) {
                        for &(o, i) in &tap.rows {
                            scatter(&mut acc[i..], w.wide(), &plane[o..o + tap.n], shape.window.stride);
                        }
                    }
                }
                for (dx, &a) in dx[shape.x(n, g, c)].iter_mut().zip(&acc) {
                    *dx = E::round(a);
                }
            }
        }
    }
}

/// `dw[m,c,k] = sum of dy[n,m,o] * x[n,c,i]` over all n, o at which w met x[n,c,i].
pub(super) fn wgrad<E: Element>(conv: &ConvAttrs, operands: &[TensorRef<'_>], dw: &mut TensorMut<'_>) {
    let shape = Shape::new(conv, &dims(operands[0].ty), &dims(operands[1].ty));
    let (x, dy) = (wide::<E>(operands[0]), wide::<E>(operands[1]));
    let dw = put::<E>(dw);
    for g in 0..shape.groups {
        for m in 0..shape.m {
            for c in 0..shape.c {
                let w = shape.w(g, m, c);
                for (t, tap) in shape.window.taps.iter().enumerate() {
                    let mut sum = 0.0;
                    for n in 0..shape.batch {
                        let (x, dy) = (&x[shape.x(n, g, c)], &dy[shape.y(n, g, m)]);
                        for &(o, i) in &tap.rows {
                            sum += dot(&dy[o..o + tap.n], &x[i..], shape.window.stride);
                        }
                    }
                    dw[w + t] = E::round(sum);
                }
            }
        }
    }
}
