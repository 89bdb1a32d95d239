//! The optimizers of `ai.onnx.preview.training`, as arithmetic on their operands.
//!
//! Operands are the learning rate R, the update count T, then all tensors X, all gradients G
//! and the optimizer's states; results are the new X and the new states, in the same order.
//! Formulas: ONNX operator specification, ai.onnx.preview.training version 1.

use super::super::constant::{Constant, Scalar};
use super::super::error::{Fail, invalid};
use super::super::import::{Importer, Item};
use super::super::node::Node;
use super::elementwise::combine;
use super::{Entry, known_int};
use vdnn_ir::op::{BinaryKind, UnaryKind};
use vdnn_ir::{Op, Real};

pub(super) const OPERATORS: &[Entry] =
    &[("Adagrad", 1, adagrad), ("Adam", 1, adam), ("Momentum", 1, momentum)];

/// The arithmetic of one tensor's update; every result is named after the node.
struct Update<'a, 'm> {
    cx: &'a mut Importer<'m>,
    node: &'a Node<'m>,
}

impl Update<'_, '_> {
    fn binary(&mut self, kind: BinaryKind, a: &Item, b: &Item) -> Result<Item, Fail> {
        combine(self.cx, self.node, kind, a, b, Some(kind_name(kind)))
    }
    fn add(&mut self, a: &Item, b: &Item) -> Result<Item, Fail> {
        self.binary(BinaryKind::Add, a, b)
    }
    fn sub(&mut self, a: &Item, b: &Item) -> Result<Item, Fail> {
        self.binary(BinaryKind::Sub, a, b)
    }
    fn mul(&mut self, a: &Item, b: &Item) -> Result<Item, Fail> {
        self.binary(BinaryKind::Mul, a, b)
    }
    fn div(&mut self, a: &Item, b: &Item) -> Result<Item, Fail> {
        self.binary(BinaryKind::Div, a, b)
    }
    /// `scale * x + shift`.
    fn affine(&mut self, x: &Item, scale: f32, shift: f32) -> Result<Item, Fail> {
        if scale == 1.0 && shift == 0.0 {
            return Ok(x.clone());
        }
        let kind = UnaryKind::Affine { scale: Real(scale), shift: Real(shift) };
        let x = self.cx.value(x)?;
        Ok(Item::Value(self.cx.emit_part(self.node, "affine", Op::Unary(kind), &[x])?))
    }
    fn sqrt(&mut self, x: &Item) -> Result<Item, Fail> {
        let x = self.cx.value(x)?;
        Ok(Item::Value(self.cx.emit_part(self.node, "sqrt", Op::Unary(UnaryKind::Sqrt), &[x])?))
    }
    /// `norm * x + g`: the gradient with that of the regularisation.
    fn regularised(&mut self, x: &Item, g: &Item, norm: f32) -> Result<Item, Fail> {
        if norm == 0.0 {
            return Ok(g.clone());
        }
        let decay = self.affine(x, norm, 0.0)?;
        self.add(&decay, g)
    }
}

fn kind_name(kind: BinaryKind) -> &'static str {
    match kind {
        BinaryKind::Add => "add",
        BinaryKind::Sub => "sub",
        BinaryKind::Mul => "mul",
        _ => "div",
    }
}

/// Operand `part` (0: X, 1: G, then states) of each tensor, `parts` per tensor.
fn groups<const PARTS: usize>(node: &Node<'_>) -> Result<Vec<[Item; PARTS]>, Fail> {
    let rest = node.inputs.len().saturating_sub(2);
    if rest == 0 || !rest.is_multiple_of(PARTS) {
        return invalid(format!("it has {} operands instead of 2 and {PARTS} for each tensor", rest + 2));
    }
    let n = rest / PARTS;
    (0..n)
        .map(|i| {
            let mut group = std::array::from_fn(|_| Item::Failed);
            for (part, item) in group.iter_mut().enumerate() {
                *item = node.input(2 + part * n + i)?.clone();
            }
            Ok(group)
        })
        .collect()
}

/// Results of all tensors, the new X first, then each state.
fn in_order<const N: usize>(results: &[[Item; N]]) -> Vec<Item> {
    (0..N).flat_map(|part| results.iter().map(move |r| r[part].clone())).collect()
}

fn update_count(node: &Node<'_>) -> Result<i64, Fail> {
    known_int(node.input(1)?, "the update count")
}

fn momentum<'m>(cx: &mut Importer<'m>, node: &Node<'m>) -> Result<Vec<Item>, Fail> {
    let required = |name: &'static str| match node.float(name)? {
        Some(x) => Ok(x),
        None => invalid(format!("attribute {name} is missing")),
    };
    let (alpha, beta, norm) = (required("alpha")?, required("beta")?, required("norm_coefficient")?);
    let nesterov = match node.string("mode")? {
        Some("standard") => false,
        Some("nesterov") => true,
        other => return invalid(format!("attribute mode is {other:?}")),
    };
    // The first update takes the gradient whole.
    let beta = if beta == 1.0 || update_count(node)? > 0 { beta } else { 1.0 };
    let rate = node.input(0)?.clone();
    let mut results = Vec::new();
    for [x, g, v] in groups::<3>(node)? {
        let mut u = Update { cx: &mut *cx, node };
        let g = u.regularised(&x, &g, norm)?;
        let (old, new) = (u.affine(&v, alpha, 0.0)?, u.affine(&g, beta, 0.0)?);
        let v = u.add(&old, &new)?;
        let mut step = v.clone();
        if nesterov {
            let ahead = u.affine(&v, alpha, 0.0)?;
            step = u.add(&g, &ahead)?;
        }
        let step = u.mul(&step, &rate)?;
        results.push([u.sub(&x, &step)?, v]);
    }
    Ok(in_order(&results))
}

fn adagrad<'m>(cx: &mut Importer<'m>, node: &Node<'m>) -> Result<Vec<Item>, Fail> {
    let (epsilon, norm) = (node.float_or("epsilon", 1e-6)?, node.float_or("norm_coefficient", 0.0)?);
    let decay = node.float_or("decay_factor", 0.0)?;
    let mut rate = node.input(0)?.clone();
    if decay != 0.0 {
        let divisor = 1.0 + update_count(node)? as f32 * decay;
        let divisor = Item::Const(Constant::scalar(Scalar::F32(divisor)));
        rate = Update { cx: &mut *cx, node }.div(&rate, &divisor)?;
    }
    let mut results = Vec::new();
    for [x, g, h] in groups::<3>(node)? {
        let mut u = Update { cx: &mut *cx, node };
        let g = u.regularised(&x, &g, norm)?;
        let square = u.mul(&g, &g)?;
        let h = u.add(&h, &square)?;
        let root = u.sqrt(&h)?;
        let root = u.affine(&root, 1.0, epsilon)?;
        let step = u.mul(&g, &rate)?;
        let step = u.div(&step, &root)?;
        results.push([u.sub(&x, &step)?, h]);
    }
    Ok(in_order(&results))
}

fn adam<'m>(cx: &mut Importer<'m>, node: &Node<'m>) -> Result<Vec<Item>, Fail> {
    let (alpha, beta) = (node.float_or("alpha", 0.9)?, node.float_or("beta", 0.999)?);
    let (epsilon, norm) = (node.float_or("epsilon", 1e-6)?, node.float_or("norm_coefficient", 0.0)?);
    let shrink = node.float_or("norm_coefficient_post", 0.0)?;
    let count = update_count(node)?;
    let mut rate = node.input(0)?.clone();
    if count > 0 {
        // Corrects the bias that the states have from starting at zero.
        let power = |x: f32| f64::from(x).powf(count as f64);
        let correction = ((1.0 - power(beta)).sqrt() / (1.0 - power(alpha))) as f32;
        let correction = Item::Const(Constant::scalar(Scalar::F32(correction)));
        rate = Update { cx: &mut *cx, node }.mul(&rate, &correction)?;
    }
    let mut results = Vec::new();
    for [x, g, v, h] in groups::<4>(node)? {
        let mut u = Update { cx: &mut *cx, node };
        let g = u.regularised(&x, &g, norm)?;
        let (old, new) = (u.affine(&v, alpha, 0.0)?, u.affine(&g, 1.0 - alpha, 0.0)?);
        let v = u.add(&old, &new)?;
        let square = u.mul(&g, &g)?;
        let (old, new) = (u.affine(&h, beta, 0.0)?, u.affine(&square, 1.0 - beta, 0.0)?);
        let h = u.add(&old, &new)?;
        let root = u.sqrt(&h)?;
        let root = u.affine(&root, 1.0, epsilon)?;
        let step = u.mul(&v, &rate)?;
        let step = u.div(&step, &root)?;
        let x = u.sub(&x, &step)?;
        results.push([u.affine(&x, 1.0 - shrink, 0.0)?, v, h]);
    }
    Ok(in_order(&results))
}
