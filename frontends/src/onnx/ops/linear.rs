//! Conv, Gemm, MatMul.

use super::super::error::{Fail, invalid, unsupported};
use super::super::import::{Importer, Item};
use super::super::node::{Node, extent};
use super::{Entry, one, window};
use vdnn_ir::op::ConvAttrs;
use vdnn_ir::{Dims, Op};

pub(super) const OPERATORS: &[Entry] = &[("Conv", 1, conv), ("Gemm", 1, gemm), ("MatMul", 1, matmul)];

fn conv(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(2, 3)?;
    let x_dims = cx.dims(node.input(0)?)?;
    let w_dims = cx.dims(node.input(1)?)?;
    let spatial = window::spatial(&x_dims)?;
    let kernel: Dims = window::spatial(&w_dims)?.into();
    let n = spatial.len();
    if kernel.len() != n {
        return invalid(format!("its weights have shape {w_dims:?}, its input has shape {x_dims:?}"));
    }
    if node.ints("kernel_shape")?.is_some() && node.extents("kernel_shape", n, 1, 1)? != kernel {
        return invalid(format!("attribute kernel_shape differs from its weights' shape {w_dims:?}"));
    }
    let strides = node.extents("strides", n, 1, 1)?;
    let dilations = node.extents("dilations", n, 1, 1)?;
    let groups = extent("group", node.int_or("group", 1)?, 1)?;
    let pad = window::padding(node, spatial, &kernel, &strides, &dilations)?;
    let attrs = ConvAttrs { kernel, strides, before: pad.before, after: pad.after, dilations, groups };
    let mut inputs = vec![cx.value(node.input(0)?)?, cx.value(node.input(1)?)?];
    if let Some(bias) = node.optional(2) {
        inputs.push(cx.value(bias)?);
    }
    one(cx.emit(node, Op::Conv(attrs), &inputs)?)
}

fn gemm(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(2, 3)?;
    let op = Op::Gemm {
        trans_a: node.flag("transA", false)?,
        trans_b: node.flag("transB", false)?,
        alpha: node.float_or("alpha", 1.0)?.into(),
        beta: node.float_or("beta", 1.0)?.into(),
    };
    if node.opset < 7 {
        // The operands' shapes say it, too.
        node.ignore("broadcast");
    }
    let mut inputs = vec![cx.value(node.input(0)?)?, cx.value(node.input(1)?)?];
    if let Some(c) = node.optional(2) {
        inputs.push(cx.value(c)?);
    }
    one(cx.emit(node, op, &inputs)?)
}

/// Vectors become matrices of one row or column, whose extent of 1 leaves the result again.
fn matmul(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(2, 2)?;
    let a_dims = cx.dims(node.input(0)?)?;
    let b_dims = cx.dims(node.input(1)?)?;
    if a_dims.is_empty() || b_dims.is_empty() {
        return invalid("an operand is a scalar");
    }
    let (mut a, mut b) = (cx.value(node.input(0)?)?, cx.value(node.input(1)?)?);
    if a_dims.len() == 1 {
        let dims = Dims::from_slice(&[1, a_dims[0]]);
        a = cx.emit_part(node, "row", Op::Reshape { dims }, &[a])?;
    }
    if b_dims.len() == 1 {
        let dims = Dims::from_slice(&[b_dims[0], 1]);
        b = cx.emit_part(node, "column", Op::Reshape { dims }, &[b])?;
    }
    let product = cx.emit(node, Op::MatMul { trans_a: false, trans_b: false }, &[a, b])?;
    if a_dims.len() > 1 && b_dims.len() > 1 {
        return one(product);
    }
    let Item::Value(product) = product else { return unsupported("its operands") };
    let mut dims = cx.graph.ty(product).dims.clone();
    if b_dims.len() == 1 {
        dims.pop();
    }
    if a_dims.len() == 1 {
        dims.remove(if b_dims.len() == 1 { dims.len() - 1 } else { dims.len() - 2 });
    }
    one(Item::Value(cx.emit_part(node, "vector", Op::Reshape { dims }, &[product])?))
}
