//! Normalisations, softmax and its loss, dropout.

use super::super::constant::{Constant, Scalar, resolve_axis};
use super::super::error::{Fail, invalid, unsupported};
use super::super::import::{Importer, Item};
use super::super::node::{Node, extent};
use super::{Entry, known_bool, known_float, one};
use vdnn_ir::op::{LossReduction, LrnAttrs};
use vdnn_ir::{Dims, Op, ValueId};

pub(super) const OPERATORS: &[Entry] = &[
    ("BatchNormalization", 6, batch_normalization),
    ("LRN", 1, lrn),
    ("Softmax", 1, softmax),
    ("LogSoftmax", 1, log_softmax),
    ("SoftmaxCrossEntropyLoss", 12, softmax_cross_entropy),
    ("NegativeLogLikelihoodLoss", 12, negative_log_likelihood),
    ("Dropout", 6, dropout),
];

/// Batch statistics if the node trains: by its attribute since opset 14, before that by
/// having more outputs than one, before opset 7 by another attribute.
fn batch_normalization(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(5, 5)?;
    let eps = node.float_or("epsilon", 1e-5)?.into();
    let momentum = node.float_or("momentum", 0.9)?.into();
    let train = if node.opset >= 14 {
        node.flag("training_mode", false)?
    } else {
        if node.opset < 9 && !node.flag("spatial", true)? {
            return unsupported("statistics per activation (spatial = 0)");
        }
        let test = if node.opset < 7 { node.flag("is_test", false)? } else { false };
        !test && node.proto.output.iter().skip(1).any(|o| !o.is_empty())
    };
    let mut inputs = Vec::with_capacity(5);
    for i in 0..3 {
        inputs.push(cx.value(node.input(i)?)?);
    }
    inputs.push(cx.statistic(node.input(3)?, &format!("{}.mean", node.name))?);
    inputs.push(cx.statistic(node.input(4)?, &format!("{}.var", node.name))?);
    if !train {
        return one(cx.emit(node, Op::BatchNormInfer { eps, momentum }, &inputs)?);
    }
    let mut outputs = cx.emit_many(node, Op::BatchNormTrain { eps, momentum }, &inputs, 5)?;
    outputs.truncate(3);
    Ok(outputs)
}

fn lrn(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(1, 1)?;
    let Some(size) = node.int("size")? else { return invalid("attribute size is missing") };
    let attrs = LrnAttrs {
        size: extent("size", size, 1)?,
        alpha: node.float_or("alpha", 1e-4)?.into(),
        beta: node.float_or("beta", 0.75)?.into(),
        bias: node.float_or("bias", 1.0)?.into(),
    };
    let x = cx.value(node.input(0)?)?;
    one(cx.emit(node, Op::Lrn(attrs), &[x])?)
}

fn softmax(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    along_axis(cx, node, |axis| Op::Softmax { axis })
}

fn log_softmax(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    along_axis(cx, node, |axis| Op::LogSoftmax { axis })
}

/// Before opset 13 the axis split the tensor into a matrix whose rows were normalised.
fn along_axis(cx: &mut Importer<'_>, node: &Node<'_>, op: impl Fn(u64) -> Op) -> Result<Vec<Item>, Fail> {
    node.arity(1, 1)?;
    let x = cx.value(node.input(0)?)?;
    let dims = cx.graph.ty(x).dims.clone();
    let coerced = node.opset < 13;
    let axis = resolve_axis(node.int_or("axis", if coerced { 1 } else { -1 })?, dims.len())?;
    let (outer, inner) = dims.split_at(axis);
    if !coerced || inner[1..].iter().all(|&d| d == 1) {
        return one(cx.emit(node, op(axis as u64), &[x])?);
    }
    let matrix = Dims::from_slice(&[outer.iter().product(), inner.iter().product()]);
    let rows = cx.emit_part(node, "rows", Op::Reshape { dims: matrix }, &[x])?;
    let Item::Value(y) = cx.emit(node, op(1), &[rows])? else { return unsupported("its operand") };
    one(Item::Value(cx.emit_part(node, "shape", Op::Reshape { dims }, &[y])?))
}

fn softmax_cross_entropy(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    let loss = loss(cx, node)?;
    let op = Op::SoftmaxCrossEntropy { reduction: loss.reduction, ignore_index: loss.ignore_index };
    cx.emit_many(node, op, &loss.inputs, 2)
}

fn negative_log_likelihood(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    let loss = loss(cx, node)?;
    let op = Op::NegativeLogLikelihood { reduction: loss.reduction, ignore_index: loss.ignore_index };
    one(cx.emit(node, op, &loss.inputs)?)
}

/// What the two losses over class indices have in common.
struct Loss {
    reduction: LossReduction,
    ignore_index: Option<i64>,
    inputs: Vec<ValueId>,
}

fn loss(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Loss, Fail> {
    node.arity(2, 3)?;
    let reduction = match node.string("reduction")?.unwrap_or("mean") {
        "mean" => LossReduction::Mean,
        "sum" => LossReduction::Sum,
        "none" => LossReduction::None,
        other => return invalid(format!("attribute reduction is `{other}`")),
    };
    let ignore_index = node.int("ignore_index")?;
    let mut inputs = vec![cx.value(node.input(0)?)?, cx.value(node.input(1)?)?];
    if let Some(weight) = node.optional(2) {
        inputs.push(cx.value(weight)?);
    }
    Ok(Loss { reduction, ignore_index, inputs })
}

/// The identity, unless the import is for training and the ratio is not zero. As with batch
/// normalisation, training changes the mode of a node exported for inference.
fn dropout(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    const DEFAULT_RATIO: f32 = 0.5;
    let ratio = if node.opset < 12 {
        node.arity(1, 1)?;
        if node.opset < 7 {
            node.ignore("is_test");
        }
        node.float_or("ratio", DEFAULT_RATIO)?
    } else {
        node.arity(1, 3)?;
        if let Some(mode) = node.optional(2) {
            known_bool(mode, "the training mode")?;
        }
        // Masks are derived from the node's name and the step, not from this seed.
        node.ignore("seed");
        node.optional(1).map_or(Ok(DEFAULT_RATIO), |r| known_float(r, "the ratio"))?
    };
    if !(0.0..1.0).contains(&ratio) {
        return invalid(format!("its ratio is {ratio}, outside [0, 1)"));
    }
    let x = node.input(0)?.clone();
    if ratio == 0.0 || !cx.options.training {
        let mask = Constant::uniform(cx.dims(&x)?, Scalar::Bool(true));
        return Ok(vec![x, Item::Const(mask)]);
    }
    let op = Op::Dropout { ratio: ratio.into(), seed: fnv1a64(node.name.as_bytes()), first: 0 };
    let inputs = [cx.value(&x)?, cx.step()];
    one(cx.emit(node, op, &inputs)?)
}

/// FNV-1a, 64 bits (Fowler, Noll, Vo; draft-eastlake-fnv).
fn fnv1a64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::fnv1a64;

    #[test]
    fn fnv_matches_its_published_vectors() {
        assert_eq!(fnv1a64(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a64(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
