//! Walks over several strided layouts of one shape at once.

/// Row-major strides in elements.
pub(super) fn row_major(dims: &[usize]) -> Vec<isize> {
    let mut strides = vec![1isize; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i] * dims[i].max(1) as isize;
    }
    strides
}

/// Strides that read a tensor of shape `dims` as if broadcast (numpy) to `rank` dimensions:
/// zero along dimensions that are missing or 1.
pub(super) fn broadcast(dims: &[usize], rank: usize) -> Vec<isize> {
    let mut strides = vec![0; rank - dims.len()];
    let own = row_major(dims);
    strides.extend(dims.iter().zip(own).map(|(&d, s)| if d == 1 { 0 } else { s }));
    strides
}

/// Calls `row(offsets, n, steps)` for each row of the last dimension of `dims`, in
/// row-major order: layout `i` has its elements at `offsets[i] + k * steps[i]`, `k < n`.
pub(super) fn rows<const N: usize>(
    dims: &[usize],
    strides: [&[isize]; N],
    starts: [isize; N],
    mut row: impl FnMut([isize; N], usize, [isize; N]),
) {
    if dims.contains(&0) {
        return;
    }
    let Some((&n, outer)) = dims.split_last() else {
        return row(starts, 1, [1; N]);
    };
    let steps = strides.map(|s| s[outer.len()]);
    let mut index = vec![0; outer.len()];
    let mut at = starts;
    loop {
        row(at, n, steps);
        // Counts up like an odometer, the last of the outer dimensions fastest.
        let mut d = outer.len();
        loop {
            if d == 0 {
                return;
            }
            d -= 1;
            index[d] += 1;
            for (at, s) in at.iter_mut().zip(strides) {
                *at += s[d];
            }
            if index[d] < outer[d] {
                break;
            }
            for (at, s) in at.iter_mut().zip(strides) {
                *at -= s[d] * outer[d] as isize;
            }
            index[d] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_visit_every_element_once() {
        let mut seen = Vec::new();
        let (a, b) = (row_major(&[2, 3, 2]), broadcast(&[3, 1], 3));
        rows(&[2, 3, 2], [&a, &b], [0, 10], |at, n, steps| {
            seen.extend((0..n as isize).map(|k| (at[0] + k * steps[0], at[1] + k * steps[1])));
        });
        let expected: Vec<(isize, isize)> = (0..12).map(|i| (i, 10 + i / 2 % 3)).collect();
        assert_eq!(seen, expected);
        rows(&[2, 0], [&[1, 1]], [0], |_, _, _| panic!("empty"));
        let mut scalars = 0;
        rows(&[], [&[]], [5], |at, n, _| scalars += at[0] as usize * n);
        assert_eq!(scalars, 5);
    }
}
