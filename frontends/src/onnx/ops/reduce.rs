//! Reductions over axes.

use super::super::constant::{Constant, Elem, Scalar, resolve_axes, row_major};
use super::super::error::{Fail, unsupported};
use super::super::import::{Importer, Item};
use super::super::node::Node;
use super::{Entry, axes_of, foldable, one};
use crate::onnx::fold;
use vdnn_ir::op::{BinaryKind, ReduceKind};
use vdnn_ir::{Dims, Op};

pub(super) const OPERATORS: &[Entry] = &[
    ("ReduceMean", 1, |cx, n| reduce(cx, n, Some(ReduceKind::Mean), None, 18)),
    ("ReduceSum", 1, |cx, n| reduce(cx, n, Some(ReduceKind::Sum), Some(BinaryKind::Add), 13)),
    ("ReduceMax", 1, |cx, n| reduce(cx, n, Some(ReduceKind::Max), Some(BinaryKind::Max), 18)),
    ("ReduceMin", 1, |cx, n| reduce(cx, n, None, Some(BinaryKind::Min), 18)),
    ("ReduceProd", 1, |cx, n| reduce(cx, n, None, Some(BinaryKind::Mul), 18)),
];

/// `kind` reduces values of the graph, `fold` known ones; `moved` is the opset from which
/// the axes are an input.
fn reduce(
    cx: &mut Importer<'_>,
    node: &Node<'_>,
    kind: Option<ReduceKind>,
    fold: Option<BinaryKind>,
    moved: i64,
) -> Result<Vec<Item>, Fail> {
    node.arity(1, if node.opset < moved { 1 } else { 2 })?;
    let item = node.input(0)?.clone();
    let rank = cx.dims(&item)?.len();
    let keepdims = node.flag("keepdims", true)?;
    let noop = node.opset >= moved && node.flag("noop_with_empty_axes", false)?;
    let axes = match axes_of(node, moved, 1)?.filter(|a| !a.is_empty()) {
        Some(axes) => resolve_axes(&axes, rank)?,
        None if noop => return one(item),
        None => (0..rank).collect(),
    };
    if let (Some(c), Some(fold)) = (foldable(&item), fold) {
        return one(Item::Const(known(cx, c, &axes, keepdims, fold)?));
    }
    let Some(kind) = kind else {
        return unsupported("it is computed at import only, but its operand is not a known constant");
    };
    let x = cx.value(&item)?;
    let axes = axes.into_iter().map(|a| a as u64).collect();
    one(cx.emit(node, Op::Reduce { kind, axes, keepdims }, &[x])?)
}

/// Reduces a constant: the reduced axes are moved behind the others, then runs are combined.
fn known(
    cx: &mut Importer<'_>,
    c: &Constant,
    axes: &[usize],
    keepdims: bool,
    kind: BinaryKind,
) -> Result<Constant, Fail> {
    let strides = row_major(&c.dims);
    let kept: Vec<usize> = (0..c.dims.len()).filter(|i| !axes.contains(i)).collect();
    let order: Vec<usize> = kept.iter().chain(axes).copied().collect();
    let moved = c.gather_strided(
        order.iter().map(|&i| c.dims[i]).collect(),
        &order.iter().map(|&i| strides[i]).collect::<Vec<_>>(),
        0,
        &mut cx.budget,
    )?;
    let dims: Dims = if keepdims {
        (0..c.dims.len()).map(|i| if axes.contains(&i) { 1 } else { c.dims[i] }).collect()
    } else {
        kept.iter().map(|&i| c.dims[i]).collect()
    };
    cx.budget.charge(&c.dims)?;
    let run: usize = axes.iter().map(|&a| c.dims[a] as usize).product();
    if run == 0 {
        let neutral = match (kind, c.elem()) {
            (BinaryKind::Mul, Elem::I64) => Scalar::I64(1),
            (BinaryKind::Add, Elem::I64) => Scalar::I64(0),
            (BinaryKind::Mul, Elem::F32) => Scalar::F32(1.0),
            (BinaryKind::Add, Elem::F32) => Scalar::F32(0.0),
            (BinaryKind::Max, Elem::F32) => Scalar::F32(f32::NEG_INFINITY),
            (BinaryKind::Min, Elem::F32) => Scalar::F32(f32::INFINITY),
            _ => return unsupported("a reduction of no elements"),
        };
        return Ok(Constant::uniform(dims, neutral));
    }
    let runs = kept.iter().map(|&a| c.dims[a] as usize).product::<usize>();
    let items = (0..runs).map(|r| {
        (1..run).try_fold(moved.get(r * run), |acc, i| fold::binary(kind, acc, moved.get(r * run + i)))
    });
    Constant::collect(dims, c.elem(), items)
}
