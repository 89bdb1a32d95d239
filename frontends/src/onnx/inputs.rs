//! The model's inputs: element types, and extents once the symbolic ones are bound.

use super::error::ImportError;
use super::import::ImportOptions;
use super::proto::tensor_proto::DataType;
use super::proto::tensor_shape_proto::dimension;
use super::proto::{GraphProto, TensorShapeProto, ValueInfoProto, type_proto};
use super::sparse;
use super::tensor::data_type;
use std::collections::{BTreeSet, HashSet};
use vdnn_ir::op::infer::check_size;
use vdnn_ir::{DType, Dims, TensorType};

/// The inputs with their final types.
#[derive(Debug)]
pub(super) struct Bound<'m> {
    /// Name and type, in the file's order; initializers are not inputs.
    pub inputs: Vec<(&'m str, TensorType)>,
    /// First extent of the first input of rank 1 or more, else 1.
    pub batch: u64,
}

/// An extent as the file gives it.
enum Extent<'m> {
    Fixed(u64),
    Named(&'m str),
    Unknown,
}

fn extent(dim: &super::proto::tensor_shape_proto::Dimension) -> Extent<'_> {
    match &dim.value {
        // Some exporters write 0 or -1 for a dimension that is open.
        Some(dimension::Value::DimValue(n)) if *n > 0 => Extent::Fixed(*n as u64),
        Some(dimension::Value::DimParam(name)) if !name.is_empty() => Extent::Named(name),
        _ => Extent::Unknown,
    }
}

/// Binds every symbolic extent: the first dimension of an input to the batch, others by name.
///
/// # Errors
/// All inputs that cannot be bound.
pub(super) fn bind<'m>(
    graph: &'m GraphProto,
    options: &ImportOptions,
    warnings: &mut Vec<String>,
) -> Result<Bound<'m>, Vec<ImportError>> {
    let mut errors = Vec::new();
    let error = |text: String| ImportError::Graph(text);
    if options.batch == Some(0) || options.dims.values().any(|&n| n == 0) {
        return Err(vec![error("the batch and every bound dimension must be at least 1".into())]);
    }
    // Files of IR version 3 and older list every initializer among the inputs.
    let initializers: HashSet<&str> = sparse::initializer_names(graph).collect();
    let mut shapes = Vec::new();
    for info in graph.input.iter().filter(|i| !initializers.contains(i.name())) {
        match input_type(info) {
            Ok((stored, dtype, shape)) => {
                if dtype == DType::F32 && stored != DataType::Float {
                    let stored = stored.as_str_name();
                    warnings.push(format!("input `{}` of type {stored} is taken as f32", info.name()));
                }
                shapes.push((info.name(), dtype, shape));
            }
            Err(reason) => errors.push(error(format!("input `{}`: {reason}", info.name()))),
        }
    }

    let names: BTreeSet<&str> = shapes
        .iter()
        .flat_map(|(_, _, shape)| &shape.dim)
        .filter_map(|d| match extent(d) {
            Extent::Named(name) => Some(name),
            _ => None,
        })
        .collect();
    for name in options.dims.keys().filter(|n| !names.contains(n.as_str())) {
        let known = names.iter().copied().collect::<Vec<_>>().join(", ");
        errors.push(error(format!("no input has a dimension named `{name}`; there are: [{known}]")));
    }
    // The names that stand for the batch, wherever else they appear.
    let batch_names: BTreeSet<&str> = shapes
        .iter()
        .filter_map(|(_, _, shape)| match shape.dim.first().map(extent) {
            Some(Extent::Named(name)) => Some(name),
            _ => None,
        })
        .collect();

    let mut bound = Bound { inputs: Vec::new(), batch: 1 };
    let mut first = true;
    for (name, dtype, shape) in &shapes {
        let mut dims = Dims::new();
        for (axis, dim) in shape.dim.iter().enumerate() {
            let value = match extent(dim) {
                Extent::Fixed(n) => {
                    if axis == 0
                        && first
                        && let Some(b) = options.batch
                        && b != n
                    {
                        errors.push(error(format!(
                            "the file fixes the batch to {n} (input `{name}`), so batch {b} is impossible; \
                             leave the batch out or export the model with a dynamic one"
                        )));
                    }
                    n
                }
                Extent::Named(symbol) => match options.dims.get(symbol) {
                    Some(&n) => n,
                    None if batch_names.contains(symbol) => options.batch.unwrap_or(1),
                    None => {
                        errors.push(error(format!(
                            "dimension {axis} of input `{name}` is open; bind it with --dim {symbol}=N"
                        )));
                        1
                    }
                },
                Extent::Unknown if axis == 0 => options.batch.unwrap_or(1),
                Extent::Unknown => {
                    errors.push(error(format!(
                        "dimension {axis} of input `{name}` has neither a size nor a name in the file; \
                         export the model with one"
                    )));
                    1
                }
            };
            dims.push(value);
        }
        if first && let Some(&n) = dims.first() {
            bound.batch = n;
            first = false;
            if let Some(b) = options.batch
                && b != n
                && errors.is_empty()
            {
                errors
                    .push(error(format!("batch {b} contradicts the value {n} given for a named dimension")));
            }
        }
        let ty = TensorType::new(*dtype, dims);
        if let Err(e) = check_size(&ty) {
            errors.push(error(format!("input `{name}`: {e}")));
        }
        bound.inputs.push((name, ty));
    }
    if errors.is_empty() { Ok(bound) } else { Err(errors) }
}

/// Element type in the file, element type in the graph, and shape of an input.
fn input_type(info: &ValueInfoProto) -> Result<(DataType, DType, &TensorShapeProto), String> {
    let Some(type_proto::Value::TensorType(tensor)) = info.r#type.as_ref().and_then(|t| t.value.as_ref())
    else {
        return Err("it is not a tensor of known type".into());
    };
    let stored = data_type(tensor.elem_type())?;
    let dtype = match stored {
        DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double => DType::F32,
        DataType::Int64 => DType::I64,
        DataType::Int32 => DType::I32,
        DataType::Uint8 => DType::U8,
        DataType::Bool => DType::Bool,
        other => return Err(format!("element type {} is not supported", other.as_str_name())),
    };
    match &tensor.shape {
        Some(shape) => Ok((stored, dtype, shape)),
        None => Err("the file does not give its shape".into()),
    }
}
