//! Operators that ask for or change the shape and leave the elements where they are.

use super::super::constant::{Constant, Scalar, resolve_axes, resolve_axis};
use super::super::error::{Fail, invalid};
use super::super::import::{Importer, Item};
use super::super::node::Node;
use super::movement::reshape_item;
use super::{Entry, axes_of, known_ints, one};
use vdnn_ir::Dims;

pub(super) const OPERATORS: &[Entry] = &[
    ("Shape", 1, shape),
    ("Size", 1, size),
    ("Reshape", 5, reshape),
    ("Flatten", 1, flatten),
    ("Squeeze", 1, squeeze),
    ("Unsqueeze", 1, unsqueeze),
];

/// All of the shape, or since opset 15 a range of it, clamped to what there is.
fn shape(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(1, 1)?;
    let dims = cx.dims(node.input(0)?)?;
    let rank = dims.len() as i64;
    let clamp = |x: i64| (if x < 0 { x.saturating_add(rank) } else { x }).clamp(0, rank) as usize;
    let start = clamp(node.int_or("start", 0)?);
    let end = clamp(node.int_or("end", rank)?).max(start);
    one(Item::Const(Constant::ints(dims[start..end].iter().map(|&d| d as i64).collect())))
}

fn size(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(1, 1)?;
    let dims = cx.dims(node.input(0)?)?;
    let n = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).and_then(|n| i64::try_from(n).ok());
    match n {
        Some(n) => one(Item::Const(Constant::scalar(Scalar::I64(n)))),
        None => invalid("the number of elements overflows"),
    }
}

/// The shape a Reshape asks for: 0 copies an extent, -1 takes what is left.
fn resolve(request: &[i64], from: &[u64], allow_zero: bool) -> Result<Dims, Fail> {
    let mut open = None;
    let mut dims = Dims::new();
    for (i, &d) in request.iter().enumerate() {
        dims.push(match d {
            0 if !allow_zero => match from.get(i) {
                Some(&d) => d,
                None => return invalid(format!("the shape {request:?} copies extent {i} of {from:?}")),
            },
            0.. => d as u64,
            -1 if open.is_none() => {
                open = Some(i);
                1
            }
            _ => return invalid(format!("the shape {request:?} cannot be resolved")),
        });
    }
    let count = |dims: &[u64]| dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
    let (Some(have), Some(rest)) = (count(from), count(&dims)) else {
        return invalid("the number of elements overflows");
    };
    if let Some(i) = open {
        if rest == 0 || !have.is_multiple_of(rest) {
            return invalid(format!("the shape {request:?} does not fit {have} elements"));
        }
        dims[i] = have / rest;
    } else if rest != have {
        return invalid(format!("the shape {request:?} does not fit a tensor of shape {from:?}"));
    }
    Ok(dims)
}

fn reshape(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(2, 2)?;
    let request = known_ints(node.input(1)?, "the shape")?;
    let allow_zero = node.opset >= 14 && node.flag("allowzero", false)?;
    let item = node.input(0)?.clone();
    let dims = resolve(&request, &cx.dims(&item)?, allow_zero)?;
    one(reshape_item(cx, node, &item, dims)?)
}

fn flatten(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(1, 1)?;
    let item = node.input(0)?.clone();
    let dims = cx.dims(&item)?;
    let axis = node.int_or("axis", 1)?;
    // Unlike elsewhere the rank itself is allowed: everything becomes one column.
    let at = if axis == dims.len() as i64 { dims.len() } else { resolve_axis(axis, dims.len())? };
    let count = |dims: &[u64]| dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
    let (Some(rows), Some(columns)) = (count(&dims[..at]), count(&dims[at..])) else {
        return invalid("the number of elements overflows");
    };
    one(reshape_item(cx, node, &item, Dims::from_slice(&[rows, columns]))?)
}

fn squeeze(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(1, if node.opset < 13 { 1 } else { 2 })?;
    let item = node.input(0)?.clone();
    let dims = cx.dims(&item)?;
    let axes = match axes_of(node, 13, 1)? {
        Some(axes) => resolve_axes(&axes, dims.len())?,
        None => (0..dims.len()).filter(|&i| dims[i] == 1).collect(),
    };
    if let Some(&axis) = axes.iter().find(|&&a| dims[a] != 1) {
        return invalid(format!("axis {axis} of a tensor of shape {dims:?} is not 1"));
    }
    let kept = (0..dims.len()).filter(|i| !axes.contains(i)).map(|i| dims[i]).collect();
    one(reshape_item(cx, node, &item, kept)?)
}

fn unsqueeze(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(1, if node.opset < 13 { 1 } else { 2 })?;
    let item = node.input(0)?.clone();
    let dims = cx.dims(&item)?;
    let Some(axes) = axes_of(node, 13, 1)? else { return invalid("its axes are missing") };
    let rank = dims.len() + axes.len();
    let axes = resolve_axes(&axes, rank)?;
    let mut old = dims.iter();
    let new =
        (0..rank).map(|i| if axes.contains(&i) { 1 } else { old.next().copied().unwrap_or(1) }).collect();
    one(reshape_item(cx, node, &item, new)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reshape_requests() {
        let ok = |r: &[i64], f: &[u64], z| resolve(r, f, z).unwrap().to_vec();
        assert_eq!(ok(&[0, -1], &[8, 3, 4], false), [8, 12]);
        assert_eq!(ok(&[-1], &[], false), [1]);
        assert_eq!(ok(&[], &[1, 1], false), [0u64; 0]);
        assert_eq!(ok(&[0, 5], &[0, 5], true), [0, 5]);
        for (r, f, z) in [
            (&[-1, -1][..], &[4u64][..], false),
            (&[-2], &[4], false),
            (&[3], &[4], false),
            (&[4, 0], &[4], false),
            (&[0, -1], &[0, 4], true),
            (&[i64::MAX, i64::MAX], &[4], false),
        ] {
            assert!(resolve(r, f, z).is_err(), "{r:?} of {f:?}");
        }
    }
}
