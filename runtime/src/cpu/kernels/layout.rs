//! Strides, and the merging of dimensions that are walked as one.

use smallvec::SmallVec;

/// Row-major strides in elements.
pub(super) fn strides(dims: &[usize]) -> SmallVec<[usize; 6]> {
    let mut out: SmallVec<[usize; 6]> = SmallVec::from_elem(1, dims.len());
    for i in (1..dims.len()).rev() {
        out[i - 1] = out[i] * dims[i];
    }
    out
}

/// Strides of an operand of shape `from` read as shape `to` by numpy broadcasting: zero
/// along broadcast dimensions.
pub(super) fn broadcast_strides(from: &[usize], to: &[usize]) -> SmallVec<[usize; 6]> {
    let own = strides(from);
    let lead = to.len() - from.len();
    (0..to.len())
        .map(|i| if i < lead || (from[i - lead] == 1 && to[i] != 1) { 0 } else { own[i - lead] })
        .collect()
}

/// One dimension of a walk: its extent and the steps of `N` operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Axis<const N: usize> {
    pub(super) extent: usize,
    pub(super) steps: [isize; N],
}

/// Axes of a walk, outermost first.
pub(super) type Axes<const N: usize> = SmallVec<[Axis<N>; 6]>;

/// Drops dimensions of extent 1 and merges neighbours that every operand walks as one.
pub(super) fn collapse<const N: usize>(axes: impl IntoIterator<Item = Axis<N>>) -> Axes<N> {
    let mut out: Axes<N> = SmallVec::new();
    for axis in axes {
        if axis.extent == 1 {
            continue;
        }
        if let Some(last) = out.last_mut() {
            let whole = axis.extent as isize;
            if (0..N).all(|i| last.steps[i] == axis.steps[i] * whole) {
                *last = Axis { extent: last.extent * axis.extent, steps: axis.steps };
                continue;
            }
        }
        out.push(axis);
    }
    out
}

/// Offsets of `N` operands at the `index`th step of a row-major walk.
pub(super) fn offsets<const N: usize>(axes: &[Axis<N>], index: usize) -> [isize; N] {
    let mut at = [0isize; N];
    let mut rest = index;
    for axis in axes.iter().rev() {
        let i = (rest % axis.extent) as isize;
        rest /= axis.extent;
        for (at, step) in at.iter_mut().zip(axis.steps) {
            *at += i * step;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn per_channel_broadcast_collapses_to_three_axes() {
        let to = [2usize, 3, 4, 5];
        let full = strides(&to);
        let channel = broadcast_strides(&[3, 1, 1], &to);
        let axes =
            collapse((0..4).map(|i| Axis { extent: to[i], steps: [full[i] as isize, channel[i] as isize] }));
        let parts: Vec<_> = axes.iter().map(|a| (a.extent, a.steps)).collect();
        assert_eq!(parts, [(2, [60, 0]), (3, [20, 1]), (20, [1, 0])]);
        assert_eq!(offsets(&axes, 2 * 20 + 7), [47, 2]);
    }

    #[test]
    fn equal_shapes_collapse_to_one_axis_and_scalars_to_none() {
        let to = [2usize, 1, 4];
        let s = strides(&to);
        let axes = collapse((0..3).map(|i| Axis { extent: to[i], steps: [s[i] as isize; 2] }));
        assert_eq!(axes.as_slice(), [Axis { extent: 8, steps: [1, 1] }]);
        assert!(collapse::<1>([Axis { extent: 1, steps: [1] }]).is_empty());
    }
}
