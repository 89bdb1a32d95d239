//! Pools with a window and over whole images.

use super::super::error::{Fail, invalid};
use super::super::import::{Importer, Item};
use super::super::node::Node;
use super::{Entry, one, window};
use vdnn_ir::op::{PoolAttrs, ReduceKind};
use vdnn_ir::{Dims, Op};

pub(super) const OPERATORS: &[Entry] = &[
    ("MaxPool", 1, max_pool),
    ("AveragePool", 1, average_pool),
    ("GlobalAveragePool", 1, global_average_pool),
    ("GlobalMaxPool", 1, global_max_pool),
];

fn attrs(cx: &Importer<'_>, node: &Node<'_>) -> Result<PoolAttrs, Fail> {
    node.arity(1, 1)?;
    let x_dims = cx.dims(node.input(0)?)?;
    let spatial = window::spatial(&x_dims)?;
    let n = spatial.len();
    if node.ints("kernel_shape")?.is_none() {
        return invalid("attribute kernel_shape is missing");
    }
    let kernel = node.extents("kernel_shape", n, 1, 1)?;
    let strides = node.extents("strides", n, 1, 1)?;
    let dilations = node.extents("dilations", n, 1, 1)?;
    let ceil_mode = node.flag("ceil_mode", false)?;
    let pad = window::padding(node, spatial, &kernel, &strides, &dilations)?;
    Ok(PoolAttrs {
        kernel,
        strides,
        dilations,
        // auto_pad fixes the output extents by itself.
        ceil_mode: ceil_mode && pad.explicit,
        before: pad.before,
        after: pad.after,
    })
}

fn max_pool(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    let pool = attrs(cx, node)?;
    // Only about the second output, which is not available: its indices count over the
    // whole tensor, those of the IR over the window.
    node.ignore("storage_order");
    let x = cx.value(node.input(0)?)?;
    one(cx.emit(node, Op::MaxPool(pool), &[x])?)
}

fn average_pool(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    let pool = attrs(cx, node)?;
    let count_include_pad = node.flag("count_include_pad", false)?;
    let x = cx.value(node.input(0)?)?;
    one(cx.emit(node, Op::AvgPool { pool, count_include_pad }, &[x])?)
}

fn global_average_pool(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(1, 1)?;
    let rank = cx.dims(node.input(0)?)?.len();
    if rank < 3 {
        return invalid(format!("its input has rank {rank} instead of [N, C, spatial..]"));
    }
    let x = cx.value(node.input(0)?)?;
    let axes = (2..rank as u64).collect();
    one(cx.emit(node, Op::Reduce { kind: ReduceKind::Mean, axes, keepdims: true }, &[x])?)
}

fn global_max_pool(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(1, 1)?;
    let x_dims = cx.dims(node.input(0)?)?;
    let kernel: Dims = window::spatial(&x_dims)?.into();
    let n = kernel.len();
    let pool = PoolAttrs {
        kernel,
        strides: Dims::from_elem(1, n),
        dilations: Dims::from_elem(1, n),
        before: Dims::from_elem(0, n),
        after: Dims::from_elem(0, n),
        ceil_mode: false,
    };
    let x = cx.value(node.input(0)?)?;
    one(cx.emit(node, Op::MaxPool(pool), &[x])?)
}
