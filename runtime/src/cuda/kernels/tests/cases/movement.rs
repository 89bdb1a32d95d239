//! Ops that move elements, and reductions.

use super::{Case, Rng, list, naive, numbered, whole};
use vdnn_ir::op::{Op, ReduceKind, SliceAttrs};
use vdnn_ir::{DType, Layout, Real, Tensor};

const TYPES: [DType; 5] = [DType::U8, DType::F16, DType::F32, DType::I64, DType::Bool];

pub(super) fn movement(rng: &mut Rng, out: &mut Vec<Case>) {
    for dtype in TYPES {
        let mut push = |op: Op, inputs: Vec<Tensor>| out.push(Case::new(op, inputs, 0.0));
        push(Op::Reshape { dims: list(&[21, 1]) }, vec![numbered(dtype, &[7, 3])]);
        let perms: [(&[u64], &[u64]); 9] = [
            (&[2, 3, 4, 5], &[0, 2, 3, 1]),
            (&[2, 30, 40], &[0, 2, 1]),
            (&[37, 53], &[1, 0]),
            (&[3, 20, 4, 50], &[3, 0, 2, 1]),
            (&[2, 3, 4, 8], &[0, 2, 1, 3]),
            (&[2, 3, 4, 5], &[1, 3, 0, 2]),
            (&[64, 32], &[1, 0]),
            (&[2, 1, 3], &[2, 1, 0]),
            (&[], &[]),
        ];
        for (dims, perm) in perms {
            push(Op::Transpose { perm: list(perm) }, vec![numbered(dtype, dims)]);
        }
        for (dims, to) in [
            (&[3, 1][..], &[2, 3, 4][..]),
            (&[], &[5, 2]),
            (&[1, 4, 1, 3], &[2, 4, 6, 3]),
            (&[7], &[7]),
            (&[1], &[5000]),
            (&[4, 8], &[3, 4, 8]),
        ] {
            push(Op::Expand { dims: list(to) }, vec![numbered(dtype, dims)]);
        }
        for to in [Layout::ChannelsLast, Layout::RowMajor] {
            for dims in
                [[2, 3, 5, 7], [2, 40, 8, 9], [1, 64, 32, 32], [2, 1, 4, 4], [3, 5, 1, 1], [2, 16, 4, 4]]
            {
                for from in [Layout::ChannelsLast, Layout::RowMajor] {
                    push(Op::Relayout { to }, vec![numbered(dtype, &dims).to_layout(from)]);
                }
            }
        }
    }
    for dtype in [DType::U8, DType::F32, DType::I64] {
        for shape in [[2u64, 3, 5, 7], [2, 8, 4, 4], [1, 4, 3, 3]] {
            for axis in 0..4usize {
                let mut dims = shape;
                let parts: Vec<Tensor> = [1, 4, 8]
                    .iter()
                    .map(|&n| {
                        dims[axis] = n;
                        numbered(dtype, &dims)
                    })
                    .collect();
                let op = Op::Concat { axis: axis as u64 };
                let y = naive(&op, &parts, 1).remove(0);
                out.push(Case::new(op, parts, 0.0));
                let op = Op::Split { axis: axis as u64, sizes: list(&[1, 4, 8]) };
                out.push(Case { op, inputs: vec![y], outputs: 3, tolerance: 0.0 });
            }
        }
    }
    // More than one launch joins.
    let parts: Vec<Tensor> = (0..70).map(|n| numbered(DType::F32, &[2, n % 3, 4, 5])).collect();
    out.push(Case::new(Op::Concat { axis: 1 }, parts, 0.0));
    type Range<'a> = (&'a [u64], &'a [u64], &'a [i64], &'a [u64]);
    let ranges: [Range<'_>; 8] = [
        (&[2, 24, 6, 6], &[0, 0, 0, 0], &[1, 1, 1, 1], &[2, 16, 6, 6]),
        (&[2, 24, 3, 3], &[0, 16, 0, 0], &[1, 1, 1, 1], &[2, 8, 3, 3]),
        (&[4, 6, 5], &[1, 0, 2], &[1, 1, 1], &[2, 6, 3]),
        (&[4, 6, 5], &[3, 5, 4], &[-1, -2, -3], &[4, 3, 2]),
        (&[2, 4, 6, 8], &[0, 1, 0, 4], &[1, 1, 2, 1], &[2, 2, 3, 4]),
        (&[2, 4, 6, 8], &[1, 3, 5, 7], &[-1, -1, -1, -1], &[2, 4, 6, 8]),
        (&[4, 6], &[0, 2], &[1, 1], &[4, 0]),
        (&[5000], &[4999], &[-1], &[5000]),
    ];
    for (dims, starts, steps, lens) in ranges {
        let slice = SliceAttrs { starts: list(starts), steps: steps.into(), lens: list(lens) };
        out.push(Case::new(Op::Slice(slice.clone()), vec![numbered(DType::F32, dims)], 0.0));
        out.push(Case::new(Op::Slice(slice.clone()), vec![numbered(DType::U8, dims)], 0.0));
        let (a, x) = (rng.tensor(lens, -1.0, 1.0), rng.tensor(dims, -1.0, 1.0));
        out.push(Case::new(Op::AddSlice(slice.clone()), vec![a, x], 1e-7));
        let op = Op::SliceGrad { slice, x_dims: list(dims) };
        out.push(Case::new(op, vec![rng.tensor(lens, -1.0, 1.0)], 0.0));
    }
    let pads: [(&[u64], &[i64], &[i64]); 6] = [
        (&[3, 4, 5], &[1, 0, 2], &[0, 2, 1]),
        (&[3, 4, 5], &[-1, 2, 0], &[1, -3, 0]),
        (&[2, 4, 6, 8], &[0, 0, 1, 2], &[0, 0, 3, 2]),
        (&[3, 4], &[0, -4], &[0, 2]),
        (&[2, 3], &[-2, 0], &[4, 0]),
        (&[7], &[3], &[-6]),
    ];
    for (dims, before, after) in pads {
        for dtype in [DType::F32, DType::I64, DType::U8, DType::I32] {
            let op = Op::Pad { before: before.into(), after: after.into(), value: Real(2.0) };
            out.push(Case::new(op, vec![numbered(dtype, dims)], 0.0));
        }
        let op = Op::Pad { before: before.into(), after: after.into(), value: Real(0.0) };
        out.push(Case::new(op, vec![numbered(DType::F16, dims)], 0.0));
    }
}

pub(super) fn reductions(rng: &mut Rng, out: &mut Vec<Case>) {
    let mut shapes: Vec<(Vec<u64>, Vec<u64>)> = Vec::new();
    for dims in [[2u64, 3, 4, 5], [3, 8, 2, 6], [2, 1, 4, 3], [5, 4, 1, 1]] {
        for mask in 0..16u64 {
            shapes.push((dims.to_vec(), (0..4).filter(|a| mask >> a & 1 == 1).collect()));
        }
    }
    for (dims, axes) in [
        (&[100, 300][..], &[0][..]),
        (&[9, 5000], &[1]),
        (&[20_000], &[0]),
        (&[20_001], &[0]),
        (&[6, 3, 50, 50], &[0, 2, 3]),
        (&[6, 12, 31, 33], &[0, 2, 3]),
        (&[3000, 12], &[0]),
        (&[2000, 5], &[0]),
        (&[2, 600, 9], &[1]),
        (&[3, 7, 7, 64], &[1, 2]),
        (&[], &[]),
        (&[2, 0], &[1]),
        (&[0, 2], &[1]),
        (&[2, 2, 2, 2, 2, 2], &[0, 2, 4]),
    ] {
        shapes.push((dims.to_vec(), axes.to_vec()));
    }
    for (dims, axes) in shapes {
        let x = rng.tensor(&dims, -0.5, 1.0);
        for keepdims in [false, true] {
            for kind in [ReduceKind::Sum, ReduceKind::Mean, ReduceKind::Max] {
                let op = Op::Reduce { kind, axes: list(&axes), keepdims };
                out.push(Case::new(op, vec![x.clone()], 1e-6));
            }
        }
    }
    for dtype in [DType::F64, DType::I32, DType::I64] {
        for kind in [ReduceKind::Sum, ReduceKind::Mean, ReduceKind::Max] {
            let op = Op::Reduce { kind, axes: list(&[1]), keepdims: false };
            out.push(Case::new(op, vec![whole(dtype, &[3, 4, 5])], 0.0));
        }
    }
    for kind in [ReduceKind::Sum, ReduceKind::Max] {
        for axes in [&[0][..], &[1], &[0, 1]] {
            let op = Op::Reduce { kind, axes: list(axes), keepdims: false };
            out.push(Case::new(op, vec![rng.special(&[20, 40])], 1e-6));
        }
    }
}
