//! Operators that move elements: transpose, expand, slice, gather, concat, split, pad.
//!
//! Each works on known tensors at import and on values of the graph by an op.

use super::super::constant::{
    Constant, Data, Elem, Scalar, broadcast_strides, check_extents, resolve_axes, resolve_axis, row_major,
};
use super::super::error::{Fail, invalid, unsupported};
use super::super::import::{Importer, Item};
use super::super::node::Node;
use super::constants::shape_from;
use super::{Entry, foldable, known, known_float, known_ints, one};
use smallvec::SmallVec;
use vdnn_ir::op::SliceAttrs;
use vdnn_ir::op::infer::broadcast_dims;
use vdnn_ir::{Dims, Op};

pub(super) const OPERATORS: &[Entry] = &[
    ("Transpose", 1, transpose),
    ("Expand", 8, expand),
    ("Slice", 1, slice),
    ("Gather", 1, gather),
    ("Concat", 4, concat),
    ("Split", 2, split),
    ("Pad", 2, pad),
];

/// The item in another shape of the same size.
pub(super) fn reshape_item(
    cx: &mut Importer<'_>,
    node: &Node<'_>,
    item: &Item,
    dims: Dims,
) -> Result<Item, Fail> {
    if cx.dims(item)? == dims {
        return Ok(item.clone());
    }
    if let Some(c) = foldable(item) {
        check_extents(&dims)?;
        return Ok(Item::Const(c.reshaped(dims)));
    }
    let x = cx.value(item)?;
    cx.emit(node, Op::Reshape { dims }, &[x])
}

fn transpose(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(1, 1)?;
    let item = node.input(0)?.clone();
    let dims = cx.dims(&item)?;
    let rank = dims.len();
    let perm: Vec<usize> = match node.ints("perm")? {
        None => (0..rank).rev().collect(),
        Some(perm) => {
            if perm.len() != rank {
                return invalid(format!("attribute perm {perm:?} does not fit rank {rank}"));
            }
            resolve_axes(perm, rank)?;
            perm.iter().map(|&p| resolve_axis(p, rank)).collect::<Result<_, _>>()?
        }
    };
    if perm.iter().enumerate().all(|(i, &p)| i == p) {
        return one(item);
    }
    if let Some(c) = foldable(&item) {
        let strides = row_major(&dims);
        let strides: Vec<i64> = perm.iter().map(|&p| strides[p]).collect();
        let to = perm.iter().map(|&p| dims[p]).collect();
        return one(Item::Const(c.gather_strided(to, &strides, 0, &mut cx.budget)?));
    }
    let x = cx.value(&item)?;
    one(cx.emit(node, Op::Transpose { perm: perm.iter().map(|&p| p as u64).collect() }, &[x])?)
}

fn expand(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(2, 2)?;
    let item = node.input(0)?.clone();
    let from = cx.dims(&item)?;
    let dims = broadcast_dims(&from, &shape_from(&known_ints(node.input(1)?, "the shape")?)?)?;
    if dims == from {
        return one(item);
    }
    if let Some(c) = foldable(&item) {
        let strides = broadcast_strides(&from, &dims);
        return one(Item::Const(c.gather_strided(dims, &strides, 0, &mut cx.budget)?));
    }
    let x = cx.value(&item)?;
    one(cx.emit(node, Op::Expand { dims }, &[x])?)
}

// ---- ranges --------------------------------------------------------------------------

/// The whole of a tensor as a slice.
fn whole(dims: &[u64]) -> SliceAttrs {
    SliceAttrs {
        starts: Dims::from_elem(0, dims.len()),
        steps: SmallVec::from_elem(1, dims.len()),
        lens: dims.into(),
    }
}

fn slice_item(cx: &mut Importer<'_>, node: &Node<'_>, item: &Item, range: SliceAttrs) -> Result<Item, Fail> {
    let dims = cx.dims(item)?;
    if range == whole(&dims) {
        return Ok(item.clone());
    }
    if let Some(c) = foldable(item) {
        let own = row_major(&dims);
        let start = own.iter().zip(&range.starts).map(|(&s, &at)| s * at as i64).sum();
        let strides: Vec<i64> = own.iter().zip(&range.steps).map(|(&s, &by)| s.saturating_mul(by)).collect();
        return Ok(Item::Const(c.gather_strided(range.lens, &strides, start, &mut cx.budget)?));
    }
    let x = cx.value(item)?;
    cx.emit(node, Op::Slice(range), &[x])
}

/// First index and number of elements of `start..end` by `step` in a dimension of extent
/// `n`, by numpy's rules: both ends count from the back if negative, then are clamped.
fn clamp_range(start: i64, end: i64, step: i64, n: u64) -> Result<(u64, u64), Fail> {
    let n = i64::try_from(n).unwrap_or(i64::MAX);
    let from_back = |x: i64| if x < 0 { x.saturating_add(n) } else { x };
    let (lo, hi) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let start = from_back(start).clamp(lo, hi);
    let end = from_back(end).clamp(lo, hi);
    let len = match step {
        0 => return invalid("a step is zero"),
        1.. => (end - start).max(0).unsigned_abs().div_ceil(step.unsigned_abs()),
        _ => (start - end).max(0).unsigned_abs().div_ceil(step.unsigned_abs()),
    };
    Ok((if len == 0 { 0 } else { start.unsigned_abs() }, len))
}

fn slice(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    let item = node.input(0)?.clone();
    let dims = cx.dims(&item)?;
    let (starts, ends, axes, steps);
    if node.opset < 10 {
        node.arity(1, 1)?;
        let (Some(s), Some(e)) = (node.ints("starts")?, node.ints("ends")?) else {
            return invalid("attribute starts or ends is missing");
        };
        (starts, ends, axes, steps) = (s.to_vec(), e.to_vec(), node.ints("axes")?.map(<[i64]>::to_vec), None);
    } else {
        node.arity(3, 5)?;
        let list = |i: usize, what: &str| node.optional(i).map(|x| known_ints(x, what)).transpose();
        starts = known_ints(node.input(1)?, "the list of starts")?;
        ends = known_ints(node.input(2)?, "the list of ends")?;
        (axes, steps) = (list(3, "the list of axes")?, list(4, "the list of steps")?);
    }
    let n = starts.len();
    let axes = axes.unwrap_or_else(|| (0..n as i64).collect());
    let steps = steps.unwrap_or_else(|| vec![1; n]);
    if ends.len() != n || axes.len() != n || steps.len() != n {
        return invalid("its starts, ends, axes and steps differ in number");
    }
    resolve_axes(&axes, dims.len())?;
    let mut range = whole(&dims);
    for i in 0..n {
        let axis = resolve_axis(axes[i], dims.len())?;
        let (start, len) = clamp_range(starts[i], ends[i], steps[i], dims[axis])?;
        range.starts[axis] = start;
        range.lens[axis] = len;
        range.steps[axis] = if len <= 1 { 1 } else { steps[i] };
    }
    one(slice_item(cx, node, &item, range)?)
}

/// Most indices that Gather takes one by one.
const MOST_SLICES: usize = 256;

/// On values of the graph, one index, an arithmetic progression of them, or a few slices.
fn gather(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(2, 2)?;
    let item = node.input(0)?.clone();
    let dims = cx.dims(&item)?;
    let axis = resolve_axis(node.int_or("axis", 0)?, dims.len())?;
    let indices = known(node.input(1)?, "the list of indices")?.clone();
    if indices.elem() != Elem::I64 {
        return invalid("its indices are not integers");
    }
    cx.budget.charge(&indices.dims)?;
    let at = (0..indices.len() as usize)
        .map(|i| match indices.get(i) {
            Scalar::I64(x) => resolve_axis(x, dims[axis] as usize),
            _ => Ok(0),
        })
        .collect::<Result<Vec<usize>, _>>()?;
    let out: Dims = dims[..axis].iter().chain(&indices.dims).chain(&dims[axis + 1..]).copied().collect();
    if let Some(c) = foldable(&item) {
        if let Data::Uniform(x) = c.data {
            check_extents(&out)?;
            return one(Item::Const(Constant::uniform(out, x)));
        }
        let inner = dims[axis + 1..].iter().product::<u64>() as usize;
        let outer = dims[..axis].iter().product::<u64>() as usize;
        let extent = dims[axis] as usize;
        cx.budget.charge(&out)?;
        let source = (0..outer).flat_map(|o| {
            at.iter().flat_map(move |&a| {
                let base = (o * extent + a) * inner;
                base..base + inner
            })
        });
        let items = source.map(|i| Ok(c.get(i)));
        return one(Item::Const(Constant::collect(out.clone(), c.elem(), items)?));
    }
    let (Some(&first), second) = (at.first(), at.get(1)) else {
        return unsupported("an empty list of indices");
    };
    let step = second.map_or(1, |&s| s as i64 - first as i64);
    let mut range = whole(&dims);
    range.starts[axis] = first as u64;
    if step != 0 && at.windows(2).all(|w| w[1] as i64 - w[0] as i64 == step) {
        range.steps[axis] = step;
        range.lens[axis] = at.len() as u64;
        let part = slice_item(cx, node, &item, range)?;
        return one(reshape_item(cx, node, &part, out)?);
    }
    if at.len() > MOST_SLICES {
        return unsupported(format!(
            "{} indices that are not evenly spaced, on a tensor not known at import",
            at.len()
        ));
    }
    range.lens[axis] = 1;
    let mut parts = Vec::with_capacity(at.len());
    for a in at {
        range.starts[axis] = a as u64;
        parts.push(slice_item(cx, node, &item, range.clone())?);
    }
    let joined = concat_items(cx, node, &parts, axis as i64)?;
    one(reshape_item(cx, node, &joined, out)?)
}

// ---- joining and dividing --------------------------------------------------------------

fn concat(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    let items = (0..node.inputs.len()).map(|i| node.input(i).cloned()).collect::<Result<Vec<_>, _>>()?;
    let Some(axis) = node.int("axis")? else { return invalid("attribute axis is missing") };
    one(concat_items(cx, node, &items, axis)?)
}

/// The items joined along an axis.
pub(super) fn concat_items(
    cx: &mut Importer<'_>,
    node: &Node<'_>,
    items: &[Item],
    axis: i64,
) -> Result<Item, Fail> {
    let Some(first) = items.first() else { return invalid("it joins nothing") };
    let mut dims = cx.dims(first)?;
    let axis = resolve_axis(axis, dims.len())?;
    if items.len() == 1 {
        return Ok(first.clone());
    }
    let Some(parts) = items.iter().map(foldable).collect::<Option<Vec<&Constant>>>() else {
        // A part without elements adds nothing.
        let empty = |i: &&Item| matches!(i, Item::Const(c) if c.len() == 0 && c.dims.len() == dims.len());
        let items: Vec<&Item> = items.iter().filter(|i| !empty(i)).collect();
        if let [only] = items[..] {
            return Ok(only.clone());
        }
        let values = items.iter().map(|i| cx.value(i)).collect::<Result<Vec<_>, _>>()?;
        return cx.emit(node, Op::Concat { axis: axis as u64 }, &values);
    };
    dims[axis] = 0;
    for part in &parts {
        let mut same = part.dims.clone();
        let extent = same.get(axis).copied().unwrap_or(0);
        if same.len() == dims.len() {
            same[axis] = dims[axis];
        }
        if same != dims || part.elem() != parts[0].elem() {
            return invalid(format!(
                "it joins a tensor of shape {:?} to others of shape {dims:?}",
                part.dims
            ));
        }
        dims[axis] = dims[axis].saturating_add(extent);
    }
    cx.budget.charge(&dims)?;
    let outer: u64 = dims[..axis].iter().product();
    let source = (0..outer as usize).flat_map(|o| {
        parts.iter().flat_map(move |part| {
            let run = part.dims[axis..].iter().product::<u64>() as usize;
            (o * run..(o + 1) * run).map(move |i| Ok(part.get(i)))
        })
    });
    Ok(Item::Const(Constant::collect(dims.clone(), parts[0].elem(), source)?))
}

/// A number of pieces that is small enough to make a value for each.
pub(super) fn piece_count(n: u64) -> Result<usize, Fail> {
    if n > 4096 { unsupported(format!("splitting into {n} parts")) } else { Ok(n as usize) }
}

/// The parts of an item of the given extents along an axis.
pub(super) fn split_item(
    cx: &mut Importer<'_>,
    node: &Node<'_>,
    item: &Item,
    axis: usize,
    split: &[i64],
) -> Result<Vec<Item>, Fail> {
    let dims = cx.dims(item)?;
    let sizes = shape_from(split)?;
    let sum = sizes.iter().try_fold(0u64, |n, &s| n.checked_add(s));
    if sum != Some(dims[axis]) || sizes.is_empty() {
        return invalid(format!("parts {split:?} do not make up the {} of axis {axis}", dims[axis]));
    }
    piece_count(sizes.len() as u64)?;
    if sizes.len() == 1 {
        return Ok(vec![item.clone()]);
    }
    if foldable(item).is_none() {
        // Parts without elements are known and stay out of the graph.
        let full: Dims = sizes.iter().copied().filter(|&s| s > 0).collect();
        let mut parts = match full.len() {
            0 | 1 => vec![item.clone(); full.len()],
            n => {
                let x = cx.value(item)?;
                cx.emit_many(node, Op::Split { axis: axis as u64, sizes: full }, &[x], n)?
            }
        }
        .into_iter();
        let zero = cx.zero(item)?;
        let empty = |axis: usize| {
            let mut dims = dims.clone();
            dims[axis] = 0;
            Item::Const(Constant::uniform(dims, zero))
        };
        let part = |size: &u64| if *size > 0 { parts.next() } else { Some(empty(axis)) };
        return Ok(sizes.iter().filter_map(part).collect());
    }
    let mut start = 0;
    let mut parts = Vec::new();
    for size in sizes {
        let mut range = whole(&dims);
        range.starts[axis] = start;
        range.lens[axis] = size;
        parts.push(slice_item(cx, node, item, range)?);
        start += size;
    }
    Ok(parts)
}

/// Sizes from the attribute (before opset 13) or input, else equal parts; since opset 18
/// the last part may be smaller.
fn split(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(1, if node.opset < 13 { 1 } else { 2 })?;
    let item = node.input(0)?.clone();
    let dims = cx.dims(&item)?;
    let axis = resolve_axis(node.int_or("axis", 0)?, dims.len())?;
    let given = if node.opset < 13 {
        node.ints("split")?.map(<[i64]>::to_vec)
    } else {
        node.optional(1).map(|s| known_ints(s, "the split")).transpose()?
    };
    let outputs = node.proto.output.len();
    let wanted = if node.opset >= 18 { node.int("num_outputs")? } else { None };
    if wanted.is_some_and(|n| n != outputs as i64) {
        return invalid(format!("attribute num_outputs differs from its {outputs} outputs"));
    }
    let sizes = match given {
        Some(sizes) => sizes,
        None => {
            let (extent, n) = (dims[axis], piece_count(outputs.max(1) as u64)? as u64);
            let part = extent.div_ceil(n);
            let last = extent.checked_sub(part * (n - 1));
            match last {
                Some(last) if last == part || node.opset >= 18 => {
                    let mut sizes = vec![part as i64; n as usize];
                    sizes[n as usize - 1] = last as i64;
                    sizes
                }
                _ => return invalid(format!("an extent of {extent} does not divide into {n} parts")),
            }
        }
    };
    if sizes.len() != outputs {
        return invalid(format!("it has {outputs} outputs for {} parts", sizes.len()));
    }
    split_item(cx, node, &item, axis, &sizes)
}

// ---- padding -----------------------------------------------------------------------------

fn pad(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    let mode = match node.string("mode")?.unwrap_or("constant") {
        "constant" => None,
        "edge" => Some(Mirror::Edge),
        "reflect" => Some(Mirror::Reflect),
        "wrap" => Some(Mirror::Wrap),
        other => return invalid(format!("attribute mode is `{other}`")),
    };
    let item = node.input(0)?.clone();
    let rank = cx.dims(&item)?.len();
    let (pads, value, axes);
    if node.opset < 11 {
        node.arity(1, 1)?;
        let Some(list) = node.ints("pads")? else { return invalid("attribute pads is missing") };
        (pads, value, axes) = (list.to_vec(), node.float_or("value", 0.0)?, None);
    } else {
        node.arity(2, if node.opset < 18 { 3 } else { 4 })?;
        pads = known_ints(node.input(1)?, "the padding")?;
        value = node.optional(2).map_or(Ok(0.0), |v| known_float(v, "the padding value"))?;
        axes = node.optional(3).map(|a| known_ints(a, "the list of axes")).transpose()?;
    }
    let axes = axes.unwrap_or_else(|| (0..rank as i64).collect());
    if pads.len() != 2 * axes.len() {
        return invalid(format!("it has {} paddings for {} axes", pads.len(), axes.len()));
    }
    resolve_axes(&axes, rank)?;
    let mut before = SmallVec::from_elem(0i64, rank);
    let mut after = before.clone();
    for (i, &axis) in axes.iter().enumerate() {
        let axis = resolve_axis(axis, rank)?;
        before[axis] = pads[i];
        after[axis] = pads[i + axes.len()];
    }
    if before.iter().chain(&after).all(|&p| p == 0) {
        return one(item);
    }
    if let Some(mirror) = mode {
        return one(pad_from_itself(cx, node, item, mirror, &before, &after)?);
    }
    let x = cx.value(&item)?;
    one(cx.emit(node, Op::Pad { before, after, value: value.into() }, &[x])?)
}

/// Where padding that is not constant comes from.
#[derive(Clone, Copy)]
enum Mirror {
    /// The outermost element, repeated.
    Edge,
    /// The elements behind the outermost one, in reverse.
    Reflect,
    /// The elements of the other end.
    Wrap,
}

/// Padding made of the tensor's own elements, axis by axis.
fn pad_from_itself(
    cx: &mut Importer<'_>,
    node: &Node<'_>,
    mut item: Item,
    mirror: Mirror,
    before: &[i64],
    after: &[i64],
) -> Result<Item, Fail> {
    for axis in 0..before.len() {
        // Negative amounts crop.
        let dims = cx.dims(&item)?;
        let mut range = whole(&dims);
        let crop = |pad: i64| pad.min(0).unsigned_abs();
        let (front, back) = (crop(before[axis]), crop(after[axis]));
        let Some(n) = dims[axis].checked_sub(front).and_then(|n| n.checked_sub(back)) else {
            return invalid(format!("padding {} and {} crops all of {dims:?}", before[axis], after[axis]));
        };
        (range.starts[axis], range.lens[axis]) = (front, n);
        item = slice_item(cx, node, &item, range)?;
        let dims = cx.dims(&item)?;
        let part = |cx: &mut Importer<'_>, pad: i64, behind: bool| -> Result<Option<Item>, Fail> {
            let pad = pad.max(0).unsigned_abs();
            if pad == 0 {
                return Ok(None);
            }
            let room = if matches!(mirror, Mirror::Reflect) { n.saturating_sub(1) } else { n };
            if room == 0 || (pad > room && !matches!(mirror, Mirror::Edge)) {
                return unsupported(format!("padding axis {axis} by {pad} out of {n} elements"));
            }
            let mut range = whole(&dims);
            let (start, step, len) = match (mirror, behind) {
                (Mirror::Edge, false) => (0, 1, 1),
                (Mirror::Edge, true) => (n - 1, 1, 1),
                (Mirror::Reflect, false) => (pad, -1, pad),
                (Mirror::Reflect, true) => (n - 2, -1, pad),
                (Mirror::Wrap, false) => (n - pad, 1, pad),
                (Mirror::Wrap, true) => (0, 1, pad),
            };
            range.starts[axis] = start;
            range.steps[axis] = if len == 1 { 1 } else { step };
            range.lens[axis] = len;
            let edge = slice_item(cx, node, &item, range)?;
            if !matches!(mirror, Mirror::Edge) || pad == 1 {
                return Ok(Some(edge));
            }
            let mut wide = dims.clone();
            wide[axis] = pad;
            if let Some(c) = foldable(&edge) {
                let strides = broadcast_strides(&c.dims, &wide);
                let repeated = c.gather_strided(wide, &strides, 0, &mut cx.budget)?;
                return Ok(Some(Item::Const(repeated)));
            }
            let x = cx.value(&edge)?;
            Ok(Some(cx.emit(node, Op::Expand { dims: wide }, &[x])?))
        };
        let front = part(cx, before[axis], false)?;
        let back = part(cx, after[axis], true)?;
        let parts: Vec<Item> = front.into_iter().chain([item.clone()]).chain(back).collect();
        item = concat_items(cx, node, &parts, axis as i64)?;
    }
    Ok(item)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_numpy() {
        let (min, max) = (i64::MIN, i64::MAX);
        for (start, end, step, n, want) in [
            (0, max, 1, 5, (0, 5)),
            (1, -1, 1, 5, (1, 3)),
            (-2, max, 1, 5, (3, 2)),
            (-9, 2, 1, 5, (0, 2)),
            (7, 9, 1, 5, (0, 0)),
            (3, 1, 1, 5, (0, 0)),
            (0, 5, 2, 5, (0, 3)),
            (4, 0, -2, 5, (4, 2)),
            (-1, min, -1, 5, (4, 5)),
            (9, min, -3, 5, (4, 2)),
            (max, min, min, 5, (4, 1)),
        ] {
            assert_eq!(clamp_range(start, end, step, n).unwrap(), want, "{start}..{end} by {step} in {n}");
        }
        assert!(clamp_range(0, 1, 0, 5).is_err());
    }
}
