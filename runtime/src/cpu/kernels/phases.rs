//! Planes whose rows are split by stride, so that the inputs of neighbouring outputs are
//! neighbours in memory and loops over them vectorise.

use super::scratch;

/// The rows of a plane; element `i` of a row is at `i / stride` of run `i % stride`.
#[derive(Clone, Copy)]
pub(super) struct Phases<'a> {
    data: &'a [f32],
    stride: usize,
    /// Elements per run.
    pitch: usize,
}

impl Phases<'_> {
    /// Elements `first, first + stride, ..` of a row, `n` of them.
    #[inline(always)]
    pub(super) fn run(&self, row: usize, first: usize, n: usize) -> &[f32] {
        let (phase, at) =
            if self.stride == 1 { (0, first) } else { (first % self.stride, first / self.stride) };
        &self.data[(row * self.stride + phase) * self.pitch + at..][..n]
    }
}

/// Calls `f` with the plane `x`, of rows of `width` elements, split by `stride`.
pub(super) fn with<R>(x: &[f32], width: usize, stride: usize, f: impl FnOnce(Phases<'_>) -> R) -> R {
    if stride == 1 || width == 0 {
        return f(Phases { data: x, stride: 1, pitch: width });
    }
    let pitch = width.div_ceil(stride);
    scratch::with(x.len() / width * stride * pitch, |data| {
        for (x, runs) in x.chunks_exact(width).zip(data.chunks_exact_mut(stride * pitch)) {
            if stride == 2 {
                let (even, odd) = runs.split_at_mut(pitch);
                let (pairs, last) = x.as_chunks::<2>();
                for ((pair, even), odd) in pairs.iter().zip(&mut *even).zip(odd) {
                    (*even, *odd) = (pair[0], pair[1]);
                }
                even[pairs.len()..].copy_from_slice(last);
                continue;
            }
            for (phase, run) in runs.chunks_exact_mut(pitch).enumerate() {
                run.iter_mut().zip(x.iter().skip(phase).step_by(stride)).for_each(|(r, &x)| *r = x);
            }
        }
        f(Phases { data, stride, pitch })
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn runs_are_strided_elements() {
        for width in 1..9usize {
            let x: Vec<f32> = (0..3 * width).map(|i| i as f32).collect();
            for stride in 1..5 {
                super::with(&x, width, stride, |phases| {
                    for row in 0..3 {
                        for first in 0..width {
                            let want: Vec<f32> = x[row * width..(row + 1) * width][first..]
                                .iter()
                                .copied()
                                .step_by(stride)
                                .collect();
                            assert_eq!(phases.run(row, first, want.len()), want);
                        }
                    }
                });
            }
        }
    }
}
