//! Input gradients of convolutions as convolutions of dy.
//!
//! With stride 1, dx is dy convolved with the weights flipped and their channels swapped.
//! With stride s, the elements of dx whose index has the same remainder modulo s are such a
//! convolution with every s-th tap; the s results (per dimension) interleave (the
//! decomposition of a transposed convolution into stride-1 ones; see Shi et al., "Is the
//! deconvolution layer the same as a convolutional layer?", 2016).

#![cfg(target_arch = "x86_64")]

use super::geometry::{Conv, Dim, Space, tap_at};
use super::implicit;
use super::par::{Disjoint, Par};
use super::scratch;
use super::transpose;
use smallvec::SmallVec;

/// One remainder along one dimension: the convolution that gives its elements.
#[derive(Clone, Copy, Debug)]
struct Phase {
    /// Geometry from dy to these elements; a kernel of 0 taps gives zeros.
    dim: Dim,
    /// First of the taps used; the others follow at distance `stride`.
    first: usize,
}

impl Phase {
    /// The elements `r, r + stride, ..` of dx along `d`, whose dilation is 1 or stride is 1.
    fn new(d: &Dim, r: usize) -> Self {
        let s = d.stride;
        let output = d.input.saturating_sub(r).div_ceil(s);
        if s == 1 {
            let reach = ((d.kernel.max(1) - 1) * d.dilation) as isize;
            let dim = Dim { input: d.output, output, before: reach - d.before, after: 0, ..*d };
            return Self { dim, first: 0 };
        }
        let first = (r as isize + d.before).rem_euclid(s as isize);
        // Element `r + s q` reads dy at `q + shift - j` for the taps `first + s j`.
        let shift = (r as isize + d.before - first) / s as isize;
        let kernel = d.kernel.saturating_sub(first as usize).div_ceil(s);
        let before = kernel as isize - 1 - shift;
        let dim = Dim { input: d.output, output, kernel, stride: 1, dilation: 1, before, after: 0 };
        Self { dim, first: first as usize }
    }
}

/// True if [`input_grad`] is for this processor and convolution.
pub(super) fn applies(par: &Par, g: &Conv) -> bool {
    implicit::applies(par, g)
        && g.transposed_fits()
        && g.space.iter().all(|d| d.stride == 1 || d.dilation == 1)
}

/// dx of the convolution `g` with weights `[M, C/g, taps]`.
pub(super) fn input_grad(par: &Par, g: &Conv, dy: &[f32], w: &[f32], dx: &mut [f32]) {
    let strides = g.space.map(|d| d.stride);
    if strides == [1; 3] {
        let phases = g.space.map(|d| Phase::new(&d, 0));
        return one(par, g, phases, dy, w, dx);
    }
    let across = strides[2];
    for (rd, rh) in (0..strides[0]).flat_map(|d| (0..strides[1]).map(move |h| (d, h))) {
        let phases = |rw: usize| {
            let [d, h, w] = &g.space;
            [Phase::new(d, rd), Phase::new(h, rh), Phase::new(w, rw)]
        };
        // No element of a phase without taps is stored; they are zero.
        let size = |rw: usize| match phases(rw) {
            p if p.iter().any(|p| p.dim.kernel == 0) => 0,
            p => g.images * g.c * p.iter().map(|p| p.dim.output).product::<usize>(),
        };
        let starts: SmallVec<[usize; 5]> = (0..=across).map(|r| (0..r).map(size).sum()).collect();
        scratch::with(starts[across], |parts| {
            for rw in 0..across {
                let part = &mut parts[starts[rw]..starts[rw + 1]];
                if !part.is_empty() {
                    one(par, g, phases(rw), dy, w, part);
                }
            }
            interleave(par, g, [rd, rh], parts, &starts, dx);
        });
    }
}

/// Writes the results of one remainder of depth and height, of all remainders of width, to
/// their rows of dx.
fn interleave(par: &Par, g: &Conv, [rd, rh]: [usize; 2], parts: &[f32], starts: &[usize], dx: &mut [f32]) {
    let [d, h, w] = g.space;
    let count = |d: &Dim, r: usize| d.input.saturating_sub(r).div_ceil(d.stride);
    let (lines, rows) = (count(&d, rd), count(&h, rh));
    par.chunks(dx, d.input * h.input * w.input, 1, |plane, dx| {
        for line in 0..lines {
            for row in 0..rows {
                let at = ((rd + line * d.stride) * h.input + rh + row * h.stride) * w.input;
                let dx = &mut dx[at..][..w.input];
                let source = |rw: usize| {
                    let part = &parts[starts[rw]..starts[rw + 1]];
                    let n = if part.is_empty() { 0 } else { count(&w, rw) };
                    &part[((plane * lines + line) * rows + row) * n..][..n]
                };
                if starts[w.stride] == 0 {
                    dx.fill(0.0);
                    continue;
                }
                if let ([_, odd, end], true) = (starts, w.stride == 2 && w.input > 1)
                    && *odd < *end
                    && *odd > 0
                {
                    let (even, odd) = (source(0), source(1));
                    let (pairs, last) = dx.as_chunks_mut::<2>();
                    for ((pair, &a), &b) in pairs.iter_mut().zip(even).zip(odd) {
                        *pair = [a, b];
                    }
                    last.copy_from_slice(&even[odd.len()..]);
                    continue;
                }
                if starts.windows(2).any(|s| s[0] == s[1]) {
                    dx.fill(0.0);
                }
                for rw in 0..w.stride {
                    dx.iter_mut().skip(rw).step_by(w.stride).zip(source(rw)).for_each(|(d, &s)| *d = s);
                }
            }
        }
    });
}

/// The convolution of one phase, into a tensor of its own.
fn one(par: &Par, g: &Conv, phases: [Phase; 3], dy: &[f32], w: &[f32], out: &mut [f32]) {
    let space: Space = phases.map(|p| p.dim);
    let conv = Conv { c: g.m, m: g.c, space, ..*g };
    // Taps of the forward kernel, in the order in which the phase's kernel has them.
    let taps: SmallVec<[usize; 25]> = (0..conv.taps())
        .map(|t| {
            let at = tap_at(&space, t);
            let k = |i: usize| phases[i].first + (space[i].kernel - 1 - at[i]) * g.space[i].stride;
            (k(0) * g.space[1].kernel + k(1)) * g.space[2].kernel + k(2)
        })
        .collect();
    scratch::with(w.len() / g.taps() * taps.len(), |flipped| {
        flip(par, g, &taps, w, flipped);
        implicit::forward(par, &conv, dy, flipped, None, out);
    });
}

/// Weights `[M, C/g, taps]` as `[C, M/g, some taps]`.
fn flip(par: &Par, g: &Conv, taps: &[usize], w: &[f32], out: &mut [f32]) {
    let (mg, cg, all, n) = (g.m_group(), g.c_group(), g.taps(), taps.len());
    let out = Disjoint::new(out);
    // Input channels per task: what is read of each output channel is a run.
    let block = if all == 1 { 64 } else { 16 };
    let blocks = cg.div_ceil(block);
    par.run(blocks * g.groups, 2 * w.len(), |i| {
        let (group, first) = (i / blocks, i % blocks * block);
        let count = block.min(cg - first);
        let from = (group * cg + first) * mg * n;
        // SAFETY: this task alone writes these input channels.
        #[expect(unsafe_code, reason = "blocks of channels need not divide the channels")]
        let out = unsafe { out.get(from..from + count * mg * n) };
        let w = &w[(group * mg * cg + first) * all..];
        if all == 1 {
            return transpose::matrix(w, cg, mg, count, out, mg);
        }
        for m in 0..mg {
            let from = &w[m * cg * all..][..count * all];
            // The next output channel's run is far away.
            transpose::prefetch(&w[m * cg * all..], 2 * cg * all, from.len());
            for (w, out) in from.chunks_exact(all).zip(out.chunks_exact_mut(mg * n)) {
                let out = &mut out[m * n..][..n];
                out.iter_mut().zip(taps).for_each(|(out, &tap)| *out = w[tap]);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_pair_inputs_with_the_outputs_that_read_them() {
        for kernel in 1..5 {
            for stride in 1..4 {
                for before in -1isize..3 {
                    let d = Dim { input: 9, output: 5, kernel, stride, dilation: 1, before, after: 1 };
                    let mut forward: Vec<_> = (0..5)
                        .flat_map(|o| (0..kernel).filter_map(move |k| d.at(o, k).map(|i| (i, o, k))))
                        .collect();
                    let mut phased = Vec::new();
                    for r in 0..stride {
                        let p = Phase::new(&d, r);
                        for q in 0..p.dim.output {
                            for t in 0..p.dim.kernel {
                                let tap = p.first + (p.dim.kernel - 1 - t) * stride;
                                phased.extend(p.dim.at(q, t).map(|o| (r + q * stride, o, tap)));
                            }
                        }
                    }
                    forward.sort_unstable();
                    phased.sort_unstable();
                    assert_eq!(forward, phased, "{d:?}");
                }
            }
        }
    }
}
