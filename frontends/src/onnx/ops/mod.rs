//! Importers, one function per operator, one file per family.
//!
//! Where versions of an operator differ, the importer asks [`Node::opset`]; attributes moved
//! to inputs over the years are read from wherever the version has them.

mod constants;
mod control;
mod elementwise;
mod linear;
mod movement;
mod norm;
mod optimizer;
mod pool;
mod reduce;
mod shape;
mod window;

use super::constant::{Constant, Elem, Scalar};
use super::error::{Fail, invalid, unsupported};
use super::import::{Importer, Item};
use super::node::Node;

/// Turns a node into items for its outputs; missing trailing items are outputs that are not
/// available.
pub(super) type Operator = for<'m> fn(&mut Importer<'m>, &Node<'m>) -> Result<Vec<Item>, Fail>;

type Entry = (&'static str, i64, Operator);

/// The importer of an operator.
pub(super) fn find(domain: &str, op: &str, opset: i64) -> Result<Operator, Fail> {
    let Some((_, families)) = DOMAINS.iter().find(|d| d.0 == domain) else {
        return unsupported(format!("operators of the domain {domain} are unknown"));
    };
    match families.iter().copied().flatten().find(|e| e.0 == op) {
        Some(&(_, since, operator)) if opset >= since => Ok(operator),
        Some((_, since, _)) => invalid(format!("the operator exists from opset {since} on")),
        None => unsupported("the operator is unknown"),
    }
}

/// Every operator that has an importer: its domain (`ai.onnx` for the default one), its name
/// and the first opset it exists in or is understood from. A listed operator may still be
/// refused where its element types or the operands it needs at import are not supported.
pub fn operators() -> impl Iterator<Item = (&'static str, &'static str, i64)> {
    DOMAINS.iter().flat_map(|(domain, families)| {
        families.iter().copied().flatten().map(move |&(name, since, _)| (*domain, name, since))
    })
}

/// The families of operators of each domain.
const DOMAINS: &[(&str, &[&[Entry]])] =
    &[("ai.onnx", FAMILIES), ("ai.onnx.preview.training", &[optimizer::OPERATORS])];

/// Name, first opset, importer.
const FAMILIES: &[&[Entry]] = &[
    constants::OPERATORS,
    control::OPERATORS,
    elementwise::OPERATORS,
    linear::OPERATORS,
    movement::OPERATORS,
    norm::OPERATORS,
    pool::OPERATORS,
    reduce::OPERATORS,
    shape::OPERATORS,
];

fn one(item: Item) -> Result<Vec<Item>, Fail> {
    Ok(vec![item])
}

/// The constant of an item, initializers included.
fn known<'a>(item: &'a Item, what: &str) -> Result<&'a Constant, Fail> {
    match item {
        Item::Const(c) => Ok(c),
        Item::Failed => Err(Fail::Reported),
        _ => unsupported(format!("{what} must be known at import, but depends on the model's inputs")),
    }
}

/// A short list of integers known at import.
fn known_ints(item: &Item, what: &str) -> Result<Vec<i64>, Fail> {
    const MOST: u64 = 4096;
    let c = known(item, what)?;
    if c.elem() != Elem::I64 || c.dims.len() > 1 || c.len() > MOST {
        return invalid(format!("{what} must be a list of integers"));
    }
    Ok((0..c.len() as usize)
        .map(|i| match c.get(i) {
            Scalar::I64(x) => x,
            _ => 0,
        })
        .collect())
}

/// An integer known at import.
fn known_int(item: &Item, what: &str) -> Result<i64, Fail> {
    match known(item, what)?.single() {
        Some(Scalar::I64(x)) => Ok(x),
        _ => invalid(format!("{what} must be one integer")),
    }
}

/// A float known at import.
fn known_float(item: &Item, what: &str) -> Result<f32, Fail> {
    match known(item, what)?.single() {
        Some(x @ (Scalar::F32(_) | Scalar::I64(_))) => Ok(x.as_f32()),
        _ => invalid(format!("{what} must be one number")),
    }
}

/// A truth value known at import.
fn known_bool(item: &Item, what: &str) -> Result<bool, Fail> {
    match known(item, what)?.single() {
        Some(Scalar::Bool(x)) => Ok(x),
        _ => invalid(format!("{what} must be one boolean")),
    }
}

/// The constant of an item if import may compute with it.
fn foldable(item: &Item) -> Option<&Constant> {
    match item {
        Item::Const(c) if c.foldable() => Some(c),
        _ => None,
    }
}

/// Axes from an attribute before opset `moved`, from input `index` since.
fn axes_of(node: &Node<'_>, moved: i64, index: usize) -> Result<Option<Vec<i64>>, Fail> {
    if node.opset < moved {
        return Ok(node.ints("axes")?.map(<[i64]>::to_vec));
    }
    node.optional(index).map(|item| known_ints(item, "the list of axes")).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_has_one_importer() {
        let mut names: Vec<&str> = FAMILIES.iter().copied().flatten().map(|e| e.0).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|w| w[0] != w[1]));
    }

    #[test]
    fn operators_have_a_domain_and_a_first_version() {
        assert!(find("ai.onnx", "HardSwish", 14).is_ok());
        assert!(matches!(find("ai.onnx", "HardSwish", 13), Err(Fail::Invalid(_))));
        assert!(matches!(find("ai.onnx.ml", "Conv", 17), Err(Fail::Unsupported(_))));
        assert!(matches!(find("ai.onnx", "Loop", 17), Err(Fail::Unsupported(_))));
    }
}
