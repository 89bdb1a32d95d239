//! Ops that move data, for every element size.

use super::*;
use vdnn_ir::op::SliceAttrs;

/// A tensor whose elements are all different, as far as their size allows.
fn numbered(dtype: DType, dims: &[u64]) -> Tensor {
    let ty = TensorType::new(dtype, dims.iter().copied());
    let size = dtype.bytes() as usize;
    let bytes: Vec<u8> =
        (0..ty.elements()).flat_map(|i| (i + 1).to_le_bytes().into_iter().take(size)).collect();
    Tensor::from_bytes(ty, &bytes).unwrap()
}

/// Asserts that output element i is input element `from[i]`, or all `filler` bytes.
#[track_caller]
fn moved(y: &Tensor, x: &Tensor, from: impl Iterator<Item = Option<usize>>, filler: &[u8], what: &str) {
    let size = x.ty().dtype.bytes() as usize;
    let want: Vec<u8> = from
        .flat_map(|at| at.map_or_else(|| &filler[..size], |i| &x.bytes()[i * size..(i + 1) * size]).to_vec())
        .collect();
    assert!(y.bytes() == want, "{what}: {y:?} is not {want:?}");
}

const TYPES: [DType; 5] = [DType::U8, DType::F16, DType::F32, DType::I64, DType::Bool];

#[test]
fn transpose() {
    let cases: [(&[u64], &[u64]); 9] = [
        (&[2, 3, 4, 5], &[0, 2, 3, 1]),
        (&[2, 30, 40], &[0, 2, 1]),
        (&[37, 53], &[1, 0]),
        (&[2, 3, 4, 5], &[3, 2, 1, 0]),
        (&[2, 3, 4, 5], &[0, 2, 1, 3]),
        (&[2, 3, 4, 5], &[1, 3, 0, 2]),
        (&[200, 300], &[1, 0]),
        (&[2, 1, 3], &[2, 1, 0]),
        (&[], &[]),
    ];
    for dtype in TYPES {
        for (dims, perm) in cases {
            let x = numbered(dtype, dims);
            let y = run(&Op::Transpose { perm: list(perm) }, from_ref(&x));
            let (xd, out) = (sizes(dims), sizes(&y.ty().dims));
            let from = indices(&out).map(|at| {
                let mut source = vec![0; at.len()];
                perm.iter().zip(&at).for_each(|(&p, &i)| source[p as usize] = i);
                Some(flat(&xd, &source))
            });
            moved(&y, &x, from, &[], &format!("{dims:?} by {perm:?}"));
        }
    }
}

#[test]
fn slice_and_its_gradient() {
    type Case<'a> = (&'a [u64], &'a [u64], &'a [i64], &'a [u64]);
    let cases: [Case<'_>; 6] = [
        (&[4, 6, 5], &[1, 0, 2], &[1, 1, 1], &[2, 6, 3]),
        (&[4, 6, 5], &[3, 5, 4], &[-1, -2, -3], &[4, 3, 2]),
        (&[4, 6, 50], &[0, 1, 0], &[2, 3, 7], &[2, 2, 8]),
        (&[4, 6, 5], &[0, 3, 0], &[1, 1, 1], &[4, 1, 5]),
        (&[4, 6], &[0, 2], &[1, 1], &[4, 0]),
        (&[20_000], &[19_999], &[-1], &[20_000]),
    ];
    for dtype in TYPES {
        for (dims, starts, steps, lens) in cases {
            let a = SliceAttrs { starts: list(starts), steps: steps.into(), lens: list(lens) };
            let x = numbered(dtype, dims);
            let y = run(&Op::Slice(a.clone()), from_ref(&x));
            let source = |at: &[usize]| {
                let at: Vec<usize> =
                    (0..at.len()).map(|i| (starts[i] as i64 + at[i] as i64 * steps[i]) as usize).collect();
                flat(&sizes(dims), &at)
            };
            moved(&y, &x, indices(&sizes(lens)).map(|at| Some(source(&at))), &[], &format!("{a:?}"));
            if dtype == DType::F32 {
                let dx = run(&Op::SliceGrad { slice: a.clone(), x_dims: list(dims) }, &[y]);
                let mut from = vec![None; x.f32().len()];
                indices(&sizes(lens)).for_each(|at| from[source(&at)] = Some(source(&at)));
                moved(&dx, &x, from.into_iter(), &[0; 8], &format!("gradient of {a:?}"));
            }
        }
    }
}

#[test]
fn pad_and_crop() {
    let cases: [(&[u64], &[i64], &[i64]); 5] = [
        (&[3, 4, 5], &[1, 0, 2], &[0, 2, 1]),
        (&[3, 4, 5], &[-1, 2, 0], &[1, -3, 0]),
        (&[3, 4], &[0, -4], &[0, 2]),
        (&[2, 3], &[-2, 0], &[4, 0]),
        (&[7], &[3], &[-6]),
    ];
    for (dims, before, after) in cases {
        let x = numbered(DType::F32, dims);
        let op = Op::Pad { before: before.into(), after: after.into(), value: 2.5.into() };
        let y = run(&op, from_ref(&x));
        let from = indices(&sizes(&y.ty().dims)).map(|at| {
            let at: Option<Vec<usize>> = (0..at.len())
                .map(|i| usize::try_from(at[i] as i64 - before[i]).ok().filter(|&j| j < dims[i] as usize))
                .collect();
            at.map(|at| flat(&sizes(dims), &at))
        });
        moved(&y, &x, from, &2.5f32.to_le_bytes(), &format!("{op}"));
    }
}

#[test]
fn concat_and_split() {
    for dtype in TYPES {
        for axis in 0..3usize {
            let mut dims = [2u64, 3, 40];
            let parts: Vec<Tensor> = [1u64, 4, 2]
                .iter()
                .map(|&n| {
                    dims[axis] = n;
                    numbered(dtype, &dims)
                })
                .collect();
            let y = run(&Op::Concat { axis: axis as u64 }, &parts);
            let out = sizes(&y.ty().dims);
            let size = dtype.bytes() as usize;
            for (at, bytes) in indices(&out).zip(y.bytes().chunks(size)) {
                let (part, i) = match at[axis] {
                    0 => (0, 0),
                    i @ 1..5 => (1, i - 1),
                    i => (2, i - 5),
                };
                let mut at = at.clone();
                at[axis] = i;
                let from = flat(&sizes(&parts[part].ty().dims), &at);
                assert_eq!(bytes, &parts[part].bytes()[from * size..(from + 1) * size]);
            }
            let back = run_n(&Op::Split { axis: axis as u64, sizes: list(&[1, 4, 2]) }, &[y], 3);
            assert_eq!(back, parts);
        }
    }
}

#[test]
fn expand() {
    let cases: [(&[u64], &[u64]); 6] = [
        (&[3, 1], &[2, 3, 4]),
        (&[], &[5, 2]),
        (&[1, 4, 1, 3], &[2, 4, 6, 3]),
        (&[7], &[7]),
        (&[1], &[40_000]),
        (&[3, 4], &[3, 4]),
    ];
    for dtype in TYPES {
        for (dims, to) in cases {
            let x = numbered(dtype, dims);
            let y = run(&Op::Expand { dims: list(to) }, from_ref(&x));
            let d = sizes(dims);
            let from = indices(&sizes(to)).map(|at| {
                let at: Vec<usize> = at[at.len() - d.len()..]
                    .iter()
                    .zip(&d)
                    .map(|(&i, &n)| if n == 1 { 0 } else { i })
                    .collect();
                Some(flat(&d, &at))
            });
            moved(&y, &x, from, &[], &format!("{dims:?} to {to:?}"));
        }
    }
}

#[test]
fn fill_and_copies() {
    let y = run(&Op::Fill { value: (-1.5).into(), dims: list(&[3, 5]) }, &[]);
    assert_eq!(y.f32(), [-1.5; 15]);
    for dtype in TYPES {
        let x = numbered(dtype, &[4, 6]);
        let y = run(&Op::Reshape { dims: list(&[3, 8]) }, from_ref(&x));
        assert_eq!(y.bytes(), x.bytes());
        let host = run(&Op::OffloadStart, from_ref(&x));
        assert_eq!(host, x);
        assert_eq!(run(&Op::OffloadDone, &[host.clone(), numbered(dtype, &[4, 6])]), x);
        assert_eq!(run(&Op::PrefetchStart, from_ref(&host)), x);
        assert_eq!(run(&Op::PrefetchDone, &[x.clone(), host]), x);
    }
}
