//! Constants and conversions between element types.

use super::super::constant::{Constant, Data, Elem, Scalar, check_extents};
use super::super::error::{Fail, invalid, unsupported};
use super::super::import::{Importer, Item};
use super::super::node::Node;
use super::super::proto::tensor_proto::DataType;
use super::super::tensor;
use super::{Entry, known, known_ints, one};
use vdnn_ir::Dims;

pub(super) const OPERATORS: &[Entry] = &[
    ("Constant", 1, constant),
    ("ConstantOfShape", 9, constant_of_shape),
    ("Range", 11, range),
    ("Identity", 1, identity),
    ("Cast", 6, cast),
    ("CastLike", 15, cast_like),
];

fn constant(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(0, 0)?;
    let value = if let Some(t) = node.tensor("value")? {
        tensor::decode(t, &mut cx.external).map_err(Fail::Invalid)?
    } else if let Some(s) = node.sparse_tensor("sparse_value")? {
        cx.decode_sparse(s).map_err(Fail::Invalid)?
    } else if let Some(x) = node.float("value_float")? {
        Constant::scalar(Scalar::F32(x))
    } else if let Some(x) = node.int("value_int")? {
        Constant::scalar(Scalar::I64(x))
    } else if let Some(v) = node.ints("value_ints")? {
        Constant::ints(v.to_vec())
    } else if let Some(v) = node.floats("value_floats")? {
        let dims = Dims::from_slice(&[v.len() as u64]);
        Constant::collect(dims, Elem::F32, v.iter().map(|&x| Ok(Scalar::F32(x))))?
    } else {
        return unsupported("a constant that is neither a tensor nor numbers");
    };
    one(Item::Const(value))
}

/// A shape from integers that are known at import.
pub(super) fn shape_from(ints: &[i64]) -> Result<Dims, Fail> {
    ints.iter()
        .map(|&d| match u64::try_from(d) {
            Ok(d) => Ok(d),
            Err(_) => invalid(format!("the shape {ints:?} has a negative extent")),
        })
        .collect()
}

fn constant_of_shape(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(1, 1)?;
    let dims = shape_from(&known_ints(node.input(0)?, "the shape")?)?;
    let value = match node.tensor("value")? {
        Some(t) => tensor::decode_scalar(t, &mut cx.external).map_err(Fail::Invalid)?,
        None => Scalar::F32(0.0),
    };
    check_extents(&dims)?;
    one(Item::Const(Constant::uniform(dims, value)))
}

fn range(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(3, 3)?;
    let part = |i: usize| -> Result<Scalar, Fail> {
        match known(node.input(i)?, "its operand")?.single() {
            Some(x) => Ok(x),
            None => invalid("an operand is not a scalar"),
        }
    };
    match (part(0)?, part(1)?, part(2)?) {
        (Scalar::I64(start), Scalar::I64(limit), Scalar::I64(delta)) if delta != 0 => {
            let (s, l, d) = (i128::from(start), i128::from(limit), i128::from(delta));
            let n = ((l - s + d - d.signum()) / d).max(0);
            let n = u64::try_from(n).unwrap_or(u64::MAX);
            cx.budget.charge(&[n])?;
            // Every element lies between start and limit.
            one(Item::Const(Constant::ints((0..n as i64).map(|i| start + i * delta).collect())))
        }
        (Scalar::F32(start), Scalar::F32(limit), Scalar::F32(delta)) if delta != 0.0 => {
            let n = ((f64::from(limit) - f64::from(start)) / f64::from(delta)).ceil().max(0.0) as u64;
            let dims = Dims::from_slice(&[n]);
            cx.budget.charge(&dims)?;
            let items = (0..n).map(|i| Ok(Scalar::F32(start + i as f32 * delta)));
            one(Item::Const(Constant::collect(dims, Elem::F32, items)?))
        }
        _ => invalid("its operands are not three numbers of one type, the last not zero"),
    }
}

/// The same item. Over an initializer the output's name is remembered: exporters merge equal
/// tensors and give the others their names this way.
fn identity(_: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(1, 1)?;
    let mut item = node.input(0)?.clone();
    if let Item::Const(Constant { origin: Some(origin), .. }) = &mut item
        && let Some(name) = node.proto.output.first()
    {
        origin.alias.clone_from(name);
    }
    one(item)
}

fn class(code: i64) -> Result<Elem, Fail> {
    let code = i32::try_from(code).unwrap_or(-1);
    match tensor::data_type(code).map_err(Fail::Invalid)? {
        DataType::Float | DataType::Double | DataType::Float16 | DataType::Bfloat16 => Ok(Elem::F32),
        DataType::Int64 | DataType::Int32 | DataType::Int16 | DataType::Int8 => Ok(Elem::I64),
        DataType::Bool => Ok(Elem::Bool),
        other => unsupported(format!("casting to {}", other.as_str_name())),
    }
}

fn cast(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(1, 1)?;
    let Some(to) = node.int("to")? else { return invalid("attribute to is missing") };
    // Both only concern 8-bit floats.
    node.ignore("saturate");
    node.ignore("round_mode");
    one(convert(cx, node.input(0)?, class(to)?)?)
}

fn cast_like(cx: &mut Importer<'_>, node: &Node<'_>) -> Result<Vec<Item>, Fail> {
    node.arity(2, 2)?;
    node.ignore("saturate");
    node.ignore("round_mode");
    let to = cx.elem(node.input(1)?)?;
    one(convert(cx, node.input(0)?, to)?)
}

/// All floats are f32, so that casts between float types are the identity.
fn convert(cx: &mut Importer<'_>, item: &Item, to: Elem) -> Result<Item, Fail> {
    if cx.elem(item)? == to {
        return Ok(item.clone());
    }
    match item {
        Item::Const(c) if c.len() == 0 => {
            Ok(Item::Const(Constant::collect(c.dims.clone(), to, std::iter::empty())?))
        }
        Item::Const(c) => Ok(Item::Const(match c.data {
            Data::Uniform(x) => Constant::uniform(c.dims.clone(), x.cast(to)),
            _ => c.map(&mut cx.budget, |x| Ok(x.cast(to)))?,
        })),
        _ => unsupported("casting between integers, booleans and floats of values not known at import"),
    }
}
