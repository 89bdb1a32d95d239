//! Broadcast batch dimensions as strided batches.

/// One strided batch of products: elements to skip in a, b and y.
pub(super) type Skip = [u64; 3];

/// How broadcast batch dimensions fall into strided batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batches {
    /// Products per batch.
    pub count: u64,
    /// Matrices from one product to the next, in a and b: 1 or 0.
    pub step: [u64; 2],
    /// First matrix of each batch, in a, b and y.
    pub starts: Vec<Skip>,
}

/// Splits the batch dimensions `y`, to which `a` and `b` broadcast: neighbours that broadcast
/// alike are one; the last such run is the strided batch, the rest are enumerated.
pub(super) fn batches(a: &[u64], b: &[u64], y: &[u64]) -> Batches {
    let at = |list: &[u64], i: usize| {
        let missing = y.len() - list.len();
        if i < missing { 1 } else { list[i - missing] }
    };
    // Extent of y, and whether a and b have it too.
    let mut runs: Vec<(u64, [bool; 2])> = Vec::new();
    for (i, &extent) in y.iter().enumerate() {
        if extent == 1 {
            continue;
        }
        let has = [at(a, i) != 1, at(b, i) != 1];
        match runs.last_mut() {
            Some(last) if last.1 == has => last.0 *= extent,
            _ => runs.push((extent, has)),
        }
    }
    let (count, has) = runs.pop().unwrap_or((1, [true, true]));
    let own = |has: bool, extent: u64| if has { extent } else { 1 };
    let mut starts: Vec<Skip> = vec![[0, 0, 0]];
    // From the innermost run outwards; matrices that the runs inside span.
    let mut span = [own(has[0], count), own(has[1], count), count];
    for (extent, has) in runs.into_iter().rev() {
        starts = (0..extent)
            .flat_map(|i| {
                let step =
                    [if has[0] { i * span[0] } else { 0 }, if has[1] { i * span[1] } else { 0 }, i * span[2]];
                starts
                    .iter()
                    .map(move |s| [s[0] + step[0], s[1] + step[1], s[2] + step[2]])
                    .collect::<Vec<_>>()
            })
            .collect();
        span = [span[0] * own(has[0], extent), span[1] * own(has[1], extent), span[2] * extent];
    }
    Batches { count, step: has.map(u64::from), starts }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the batches say, product by product: matrices of a and b for each of y.
    fn listed(b: &Batches) -> Vec<(u64, u64, u64)> {
        let of = |s: &Skip, i: u64| (s[2] + i, s[0] + i * b.step[0], s[1] + i * b.step[1]);
        let mut all: Vec<_> = b.starts.iter().flat_map(|s| (0..b.count).map(move |i| of(s, i))).collect();
        all.sort_unstable();
        all
    }

    /// The same by the definition of broadcasting.
    fn expected(a: &[u64], b: &[u64], y: &[u64]) -> Vec<(u64, u64, u64)> {
        let total: u64 = y.iter().product();
        let index = |list: &[u64], flat: u64| {
            let (mut rest, mut at, mut step) = (flat, 0, 1);
            for i in 0..y.len() {
                let position = rest % y[y.len() - 1 - i];
                rest /= y[y.len() - 1 - i];
                if i < list.len() {
                    let extent = list[list.len() - 1 - i];
                    at += if extent == 1 { 0 } else { position * step };
                    step *= extent;
                }
            }
            at
        };
        (0..total).map(|f| (f, index(a, f), index(b, f))).collect()
    }

    #[test]
    fn batches_are_those_of_broadcasting() {
        let cases: [(&[u64], &[u64], &[u64]); 9] = [
            (&[], &[], &[]),
            (&[5], &[5], &[5]),
            (&[5], &[], &[5]),
            (&[2, 3], &[3], &[2, 3]),
            (&[2, 1], &[1, 3], &[2, 3]),
            (&[2, 1, 4], &[3, 4], &[2, 3, 4]),
            (&[1, 6], &[7, 1], &[7, 6]),
            (&[2, 3, 1, 5], &[1, 3, 4, 1], &[2, 3, 4, 5]),
            (&[1, 1], &[3, 2], &[3, 2]),
        ];
        for (a, b, y) in cases {
            assert_eq!(listed(&batches(a, b, y)), expected(a, b, y), "{a:?} {b:?} -> {y:?}");
        }
        let one = batches(&[2, 3], &[2, 3], &[2, 3]);
        assert_eq!((one.count, one.starts.len()), (6, 1), "equal batches are one strided batch");
        assert_eq!(batches(&[2, 3], &[3], &[2, 3]).starts.len(), 2);
    }
}
