//! Rules of ops that move or combine elements without looking at them.

use super::{InferError, Rule, Types, list};
use crate::op::SliceAttrs;
use crate::types::{DType, Dims};

/// The numpy broadcast of two shapes.
///
/// # Errors
/// If a pair of extents differs and neither is 1.
pub fn broadcast_dims(a: &[u64], b: &[u64]) -> Result<Dims, InferError> {
    let rank = a.len().max(b.len());
    (0..rank)
        .map(|i| {
            let at = |dims: &[u64]| (i + dims.len()).checked_sub(rank).map_or(1, |j| dims[j]);
            match (at(a), at(b)) {
                (x, y) if x == y => Ok(x),
                (1, y) => Ok(y),
                (x, 1) => Ok(x),
                _ => Err(InferError(format!(
                    "expected shapes that broadcast together, found {} and {}",
                    list(a),
                    list(b)
                ))),
            }
        })
        .collect()
}

/// The shape left by reducing `axes` (strictly ascending) of `dims`.
///
/// # Errors
/// If the axes are out of order or out of range.
pub fn reduce_dims(dims: &[u64], axes: &[u64], keepdims: bool) -> Result<Dims, InferError> {
    let ascending = axes.windows(2).all(|w| w[0] < w[1]);
    if !ascending || axes.last().is_some_and(|&a| a >= dims.len() as u64) {
        return Err(InferError(format!(
            "expected ascending axes below {}, found {}",
            dims.len(),
            list(axes)
        )));
    }
    let mut out = Dims::new();
    for (i, &d) in dims.iter().enumerate() {
        if !axes.contains(&(i as u64)) {
            out.push(d);
        } else if keepdims {
            out.push(1);
        }
    }
    Ok(out)
}

pub(super) fn gather(cx: &Rule<'_>, axis: u64) -> Result<Types, InferError> {
    cx.arity(2, 2)?;
    let axis = cx.axis(axis, 0)?;
    let indices = cx.inputs[1];
    if indices.dtype != DType::I32 || indices.rank() != 1 {
        return cx.fail("indices of type i32 and rank 1", indices);
    }
    let mut dims = cx.inputs[0].dims.clone();
    if dims[axis] == 0 && indices.dims[0] > 0 {
        return cx.fail("something to gather from", cx.inputs[0]);
    }
    dims[axis] = indices.dims[0];
    cx.one(cx.inputs[0].dtype, dims)
}

pub(super) fn concat(cx: &Rule<'_>, axis: u64) -> Result<Types, InferError> {
    cx.arity(1, usize::MAX)?;
    let axis = cx.axis(axis, 0)?;
    let dims = joined(cx, 0, axis)?;
    cx.one(cx.inputs[0].dtype, dims)
}

/// The shape of the operands from number `start` on, one behind the other along an axis.
pub(super) fn joined(cx: &Rule<'_>, start: usize, axis: usize) -> Result<Dims, InferError> {
    let first = cx.inputs[start];
    let mut dims = first.dims.clone();
    for (i, ty) in cx.inputs.iter().enumerate().skip(start + 1) {
        cx.equal_dtypes(start, i)?;
        let fits = ty.rank() == first.rank()
            && ty.dims.iter().zip(&first.dims).enumerate().all(|(d, (a, b))| d == axis || a == b);
        if !fits {
            return cx.fail(format_args!("input {i} to match {first} except in axis {axis}"), ty);
        }
        match dims[axis].checked_add(ty.dims[axis]) {
            Some(sum) => dims[axis] = sum,
            None => return cx.fail("an extent that fits 64 bits", ty),
        }
    }
    Ok(dims)
}

pub(super) fn split(cx: &Rule<'_>, axis: u64, sizes: &[u64]) -> Result<Types, InferError> {
    cx.arity(1, 1)?;
    let axis = cx.axis(axis, 0)?;
    let x = cx.inputs[0];
    let sum = sizes.iter().try_fold(0u64, |n, &s| n.checked_add(s));
    if sizes.is_empty() || sum != Some(x.dims[axis]) {
        return cx.fail(format_args!("sizes that add up to {}", x.dims[axis]), list(sizes));
    }
    sizes
        .iter()
        .map(|&size| {
            let mut dims = x.dims.clone();
            dims[axis] = size;
            cx.ty(x.dtype, dims)
        })
        .collect()
}

/// Checks that a slice stays inside a tensor of shape `dims`.
pub(super) fn slice(cx: &Rule<'_>, slice: &SliceAttrs, dims: &[u64]) -> Result<(), InferError> {
    let rank = dims.len();
    let (starts, steps, lens) = (&slice.starts, &slice.steps, &slice.lens);
    if starts.len() != rank || steps.len() != rank || lens.len() != rank {
        return cx.fail(
            format_args!("{rank} starts, steps and lens"),
            format_args!("{}, {} and {}", starts.len(), steps.len(), lens.len()),
        );
    }
    for i in 0..rank {
        if steps[i] == 0 {
            return cx.fail("steps other than zero", 0);
        }
        if lens[i] == 0 {
            continue;
        }
        let last = i128::from(starts[i]) + i128::from(steps[i]) * i128::from(lens[i] - 1);
        if starts[i] >= dims[i] || last < 0 || last >= i128::from(dims[i]) {
            return cx.fail(
                format_args!("a range inside 0..{} of dimension {i}", dims[i]),
                format_args!("{} elements from {} by {}", lens[i], starts[i], steps[i]),
            );
        }
    }
    Ok(())
}

pub(super) fn pad(cx: &Rule<'_>, before: &[i64], after: &[i64]) -> Result<Types, InferError> {
    cx.arity(1, 1)?;
    let x = cx.inputs[0];
    if before.len() != x.rank() || after.len() != x.rank() {
        return cx.fail(
            format_args!("{} paddings before and after", x.rank()),
            format_args!("{} and {}", before.len(), after.len()),
        );
    }
    let mut dims = Dims::new();
    for (i, &d) in x.dims.iter().enumerate() {
        let (b, a, d) = (i128::from(before[i]), i128::from(after[i]), i128::from(d));
        // Cropping more than there is at one end would eat padding of the other end.
        match u64::try_from(d + a + b) {
            Ok(extent) if d + a >= 0 && d + b >= 0 => dims.push(extent),
            _ => {
                return cx.fail(
                    format_args!("padding that leaves an extent of dimension {i}, which has {d} elements"),
                    format_args!("{b} before and {a} after"),
                );
            }
        }
    }
    cx.one(x.dtype, dims)
}

pub(super) fn reshape(cx: &Rule<'_>, dims: &Dims) -> Result<Types, InferError> {
    cx.arity(1, 1)?;
    let x = cx.inputs[0];
    let types = cx.one(x.dtype, dims.clone())?;
    if x.checked_elements() != types[0].checked_elements() {
        return cx.fail(format_args!("a shape with as many elements as {x}"), list(dims));
    }
    Ok(types)
}

pub(super) fn transpose(cx: &Rule<'_>, perm: &[u64]) -> Result<Types, InferError> {
    cx.arity(1, 1)?;
    let x = cx.inputs[0];
    let mut sorted: Dims = perm.into();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..x.rank() as u64) {
        return cx.fail(format_args!("a permutation of 0..{}", x.rank()), list(perm));
    }
    cx.one(x.dtype, perm.iter().map(|&p| x.dims[p as usize]).collect())
}

pub(super) fn expand(cx: &Rule<'_>, dims: &Dims) -> Result<Types, InferError> {
    cx.arity(1, 1)?;
    let x = cx.inputs[0];
    if broadcast_dims(&x.dims, dims).ok().as_ref() != Some(dims) {
        return cx.fail(format_args!("a shape that {x} broadcasts to"), list(dims));
    }
    cx.one(x.dtype, dims.clone())
}
