//! If, with a condition known at import, and sequences of known length.

use super::super::constant::{Constant, Scalar, resolve_axis};
use super::super::error::{Fail, invalid, unsupported};
use super::super::import::{Importer, Item};
use super::super::node::Node;
use super::{Entry, known_bool, known_int, known_ints, movement, one};

pub(super) const OPERATORS: &[Entry] = &[
    ("If", 1, branch),
    ("SplitToSequence", 11, split_to_sequence),
    ("SequenceConstruct", 11, sequence_construct),
    ("SequenceAt", 11, sequence_at),
    ("SequenceLength", 11, sequence_length),
    ("ConcatFromSequence", 11, concat_from_sequence),
];

/// The branch that the known condition takes, in place of the node.
fn branch<'m>(cx: &mut Importer<'m>, node: &Node<'m>) -> Result<Vec<Item>, Fail> {
    node.arity(1, 1)?;
    let (then_branch, else_branch) = (node.graph("then_branch")?, node.graph("else_branch")?);
    let taken = known_bool(node.input(0)?, "the condition")?;
    let items = cx.import_branch(if taken { then_branch } else { else_branch })?;
    if items.len() != node.proto.output.len() {
        return invalid("its branches have another number of outputs than the node");
    }
    Ok(items)
}

fn sequence(item: &Item) -> Result<&[Item], Fail> {
    match item {
        Item::Sequence(items) => Ok(items),
        Item::Failed => Err(Fail::Reported),
        _ => invalid("a tensor stands where a sequence is expected"),
    }
}

fn split_to_sequence(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(1, 2)?;
    let keepdims = node.flag("keepdims", true)?;
    let item = node.input(0)?.clone();
    let dims = cx.dims(&item)?;
    let axis = resolve_axis(node.int_or("axis", 0)?, dims.len())?;
    let extent = dims[axis];
    let mut squeeze = false;
    let split = match node.optional(1) {
        None => {
            squeeze = !keepdims;
            vec![1; movement::piece_count(extent)?]
        }
        Some(split) if !cx.dims(split)?.is_empty() => known_ints(split, "the split")?,
        Some(chunk) => match u64::try_from(known_int(chunk, "the chunk size")?) {
            Ok(chunk) if chunk > 0 => {
                let n = movement::piece_count(extent.div_ceil(chunk))? as u64;
                (0..n).map(|i| chunk.min(extent - i * chunk) as i64).collect()
            }
            _ => return invalid("the chunk size is not positive"),
        },
    };
    cx.budget.charge(&[split.len() as u64])?;
    let mut parts = movement::split_item(cx, node, &item, axis, &split)?;
    if squeeze {
        let mut flat = dims.clone();
        flat.remove(axis);
        for part in &mut parts {
            *part = movement::reshape_item(cx, node, part, flat.clone())?;
        }
    }
    one(Item::Sequence(parts.into()))
}

fn sequence_construct(_: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    let items = (0..node.inputs.len()).map(|i| node.input(i).cloned()).collect::<Result<Vec<_>, _>>()?;
    if items.iter().any(|i| matches!(i, Item::Sequence(_))) {
        return unsupported("sequences of sequences");
    }
    one(Item::Sequence(items.into()))
}

fn sequence_at(_: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(2, 2)?;
    let items = sequence(node.input(0)?)?;
    let at = resolve_axis(known_int(node.input(1)?, "the position")?, items.len())?;
    one(items[at].clone())
}

fn sequence_length(_: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(1, 1)?;
    let n = sequence(node.input(0)?)?.len();
    one(Item::Const(Constant::scalar(Scalar::I64(n as i64))))
}

fn concat_from_sequence(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(1, 1)?;
    let mut items = sequence(node.input(0)?)?.to_vec();
    let Some(axis) = node.int("axis")? else { return invalid("attribute axis is missing") };
    if node.flag("new_axis", false)? {
        for item in &mut items {
            let mut dims = cx.dims(item)?;
            let at = resolve_axis(axis, dims.len() + 1)?;
            dims.insert(at, 1);
            *item = movement::reshape_item(cx, node, item, dims)?;
        }
    }
    one(movement::concat_items(cx, node, &items, axis)?)
}
