//! A model file with other weights and everything else as it was.

use super::external::ExternalFiles;
use super::mmap;
use super::model::Model;
use super::proto::tensor_proto::{DataLocation, DataType};
use super::proto::{GraphProto, TensorProto};
use super::sparse::{self, Room};
use super::tensor;
use crate::zoo::{self, ZooError};
use bytes::Bytes as Buf;
use half::{bf16, f16};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use vdnn_ir::{DType, Tensor};

/// Why a model could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The model to take everything else from cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    Read {
        /// The model.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A new weight does not fit the initializer it replaces.
    #[error("the new weight `{name}` is {found}, the model has {expected}")]
    Mismatch {
        /// Name of the initializer.
        name: String,
        /// Type of the new weight.
        found: String,
        /// Type of the old one.
        expected: String,
    },
    /// The result cannot be written.
    #[error(transparent)]
    Write(#[from] ZooError),
}

/// Writes the model `original` to `out` with the initializers named in `new` replaced, as a
/// whole or not at all.
///
/// New weights are f32 tensors of the initializer's shape and are stored in its element type.
/// A name that belongs to an Identity over an initializer becomes an initializer of its own
/// in place of that node: exporters merge equal tensors so, and training makes them differ.
/// External data becomes part of the file unless it is too large for one. Initializers that
/// were sparse stay so where that is smaller.
///
/// Returns the names in `new` that the model does not have; these are left out.
///
/// # Errors
/// If the original cannot be read, a weight does not fit, or the file cannot be written.
pub fn write_with_weights(
    original: &Path,
    new: &BTreeMap<String, Tensor>,
    out: &Path,
) -> Result<Vec<String>, ExportError> {
    write(original, new, out, false)
}

/// As [`write_with_weights`], with every initializer of floats of rank 2 or more whose zeros
/// make it worth it as a `sparse_initializer`: values and i64 offsets in row-major order take
/// fewer bytes than all elements do (f32: less than a third is not zero). A model of an older IR
/// version is written as version 6, the first to have them.
///
/// # Errors
/// As [`write_with_weights`].
pub fn write_with_sparse_weights(
    original: &Path,
    new: &BTreeMap<String, Tensor>,
    out: &Path,
) -> Result<Vec<String>, ExportError> {
    write(original, new, out, true)
}

/// First version of the format with sparse initializers.
const SPARSE_IR_VERSION: i64 = 6;

fn write(
    original: &Path,
    new: &BTreeMap<String, Tensor>,
    out: &Path,
    make_sparse: bool,
) -> Result<Vec<String>, ExportError> {
    let read = |reason: String| ExportError::Read { path: original.to_owned(), reason };
    let bytes = mmap::map(original).map_err(|e| read(e.to_string()))?;
    let mut model = Model::decode(bytes).map_err(|e| read(e.to_string()))?.proto;
    let mut external = ExternalFiles::new(Some(original.parent().unwrap_or(Path::new(""))));
    let ir_version = model.ir_version();
    let mut left: BTreeSet<&str> = new.keys().map(String::as_str).collect();
    if let Some(graph) = &mut model.graph {
        let were_sparse = densify(graph, &mut external).map_err(read)?;
        // Before IR version 4 initializers had to be inputs as well.
        if ir_version >= 4 {
            separate(graph, &left);
        }
        for t in &mut graph.initializer {
            if let Some((name, tensor)) = new.get_key_value(t.name()) {
                replace(t, tensor)?;
                left.remove(name.as_str());
            }
        }
        embed(graph, &mut external).map_err(read)?;
        sparsify(graph, |name| make_sparse || were_sparse.contains(name), &mut external).map_err(read)?;
        if !graph.sparse_initializer.is_empty() {
            model.ir_version = Some(ir_version.max(SPARSE_IR_VERSION));
        }
    }
    zoo::write(&model, out)?;
    Ok(left.into_iter().map(str::to_owned).collect())
}

/// Makes the sparse initializers dense; returns their names.
fn densify(graph: &mut GraphProto, external: &mut ExternalFiles) -> Result<BTreeSet<String>, String> {
    let mut room = Room::new();
    let mut names = BTreeSet::new();
    for s in std::mem::take(&mut graph.sparse_initializer) {
        let name = sparse::name(&s).to_owned();
        let dense = sparse::to_dense(&s, external, &mut room);
        graph.initializer.push(dense.map_err(|reason| format!("initializer `{name}`: {reason}"))?);
        names.insert(name);
    }
    Ok(names)
}

/// Makes the wanted initializers sparse where that is smaller.
fn sparsify(
    graph: &mut GraphProto,
    wanted: impl Fn(&str) -> bool,
    external: &mut ExternalFiles,
) -> Result<(), String> {
    let mut dense = Vec::new();
    for t in std::mem::take(&mut graph.initializer) {
        let made = if wanted(t.name()) { sparse::from_dense(&t, external) } else { Ok(None) };
        match made.map_err(|reason| format!("initializer `{}`: {reason}", t.name()))? {
            Some(s) => graph.sparse_initializer.push(s),
            None => dense.push(t),
        }
    }
    graph.initializer = dense;
    Ok(())
}

/// Turns Identity nodes over initializers into initializers, for the wanted names.
fn separate(graph: &mut GraphProto, wanted: &BTreeSet<&str>) {
    let sources: BTreeMap<String, TensorProto> =
        graph.initializer.iter().map(|t| (t.name().to_owned(), t.clone())).collect();
    let mut added = Vec::new();
    graph.node.retain(|node| {
        let ([from], [to]) = (node.input.as_slice(), node.output.as_slice()) else { return true };
        let identity = node.op_type() == "Identity" && node.domain().is_empty();
        if !identity || !wanted.contains(to.as_str()) {
            return true;
        }
        let Some(source) = sources.get(from) else { return true };
        added.push(TensorProto { name: Some(to.clone()), ..source.clone() });
        false
    });
    graph.initializer.extend(added);
}

fn replace(old: &mut TensorProto, new: &Tensor) -> Result<(), ExportError> {
    let dims = new.ty().dims.iter().map(|&d| d as i64);
    let values = (new.ty().dtype == DType::F32).then(|| new.f32());
    let raw: Option<Vec<u8>> = values.and_then(|v| match tensor::data_type(old.data_type()) {
        Ok(DataType::Float) => Some(v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Ok(DataType::Double) => Some(v.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect()),
        Ok(DataType::Float16) => Some(v.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect()),
        Ok(DataType::Bfloat16) => Some(v.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect()),
        _ => None,
    });
    let Some(raw) = raw.filter(|_| dims.eq(old.dims.iter().copied())) else {
        return Err(ExportError::Mismatch {
            name: old.name().to_owned(),
            found: new.ty().to_string(),
            expected: format!("{}{:?}", type_name(old.data_type()), old.dims),
        });
    };
    store(old, raw.into());
    Ok(())
}

fn type_name(code: i32) -> &'static str {
    DataType::try_from(code).map_or("unknown", |t| t.as_str_name())
}

fn store(t: &mut TensorProto, raw: Buf) {
    t.raw_data = Some(raw);
    t.float_data.clear();
    t.double_data.clear();
    t.int32_data.clear();
    t.data_location = None;
    t.external_data.clear();
}

/// Makes every external tensor refer to its data directly; recursion is as deep as subgraphs
/// nest, which the protobuf decoder bounds.
fn embed(graph: &mut GraphProto, external: &mut ExternalFiles) -> Result<(), String> {
    let sparse = graph.sparse_initializer.iter_mut().flat_map(|s| s.values.iter_mut().chain(&mut s.indices));
    for t in graph.initializer.iter_mut().chain(sparse) {
        embed_tensor(t, external)?;
    }
    for attribute in graph.node.iter_mut().flat_map(|n| &mut n.attribute) {
        let sparse = attribute.sparse_tensor.iter_mut().chain(&mut attribute.sparse_tensors);
        let sparse = sparse.flat_map(|s| s.values.iter_mut().chain(&mut s.indices));
        for t in attribute.t.iter_mut().chain(&mut attribute.tensors).chain(sparse) {
            embed_tensor(t, external)?;
        }
        for g in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            embed(g, external)?;
        }
    }
    Ok(())
}

fn embed_tensor(t: &mut TensorProto, external: &mut ExternalFiles) -> Result<(), String> {
    if t.data_location() != DataLocation::External {
        return Ok(());
    }
    let named = |reason: String| format!("initializer `{}`: {reason}", t.name());
    let ty = tensor::data_type(t.data_type()).map_err(named)?;
    let size = tensor::stored_size(ty)
        .ok_or_else(|| named(format!("element type {} is not supported", ty.as_str_name())))?;
    let (_, elements) = tensor::shape(t, size).map_err(named)?;
    let raw = external.load(t, elements * size).map_err(named)?;
    store(t, raw);
    Ok(())
}
