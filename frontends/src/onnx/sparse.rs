//! `SparseTensorProto`: sparse tensors made dense, and dense ones made sparse.
//!
//! A sparse tensor names the elements that are not zero, by their offsets in row-major order
//! or by their coordinates. A few bytes can stand for any size, so what all of a model's may
//! take is bounded ([`Room`]).

use super::external::ExternalFiles;
use super::proto::tensor_proto::{DataLocation, DataType};
use super::proto::{GraphProto, SparseTensorProto, TensorProto};
use super::tensor;
use bytes::Bytes as Buf;
use vdnn_ir::Bytes;

/// Dense bytes that a model's sparse tensors may take beyond [`PER_VALUE`].
const FREE: Bytes = Bytes(256 << 20);
/// Dense elements that come with every stored value: real weights keep more than one of these.
const PER_VALUE: u64 = 256;

/// What is left for the dense forms of a model's sparse tensors.
#[derive(Debug)]
pub(super) struct Room {
    bytes: u64,
}

impl Room {
    pub(super) fn new() -> Self {
        Self { bytes: FREE.0 }
    }

    /// Pays for `elements` of `size` bytes of which `values` are stored.
    fn charge(&mut self, elements: u64, values: u64, size: u64) -> Result<(), String> {
        let beyond = elements.saturating_sub(values.saturating_mul(PER_VALUE)).saturating_mul(size);
        self.bytes = self.bytes.checked_sub(beyond).ok_or_else(|| {
            format!("its {values} values stand for {elements} elements, which is more than is plausible")
        })?;
        Ok(())
    }
}

/// The name of a sparse initializer: that of its values.
pub(super) fn name(sparse: &SparseTensorProto) -> &str {
    sparse.values.as_ref().map_or("", TensorProto::name)
}

/// The names of a graph's initializers, dense ones first.
pub(super) fn initializer_names(graph: &GraphProto) -> impl Iterator<Item = &str> {
    graph.initializer.iter().map(TensorProto::name).chain(graph.sparse_initializer.iter().map(name))
}

/// The dense tensor of the same name and stored type, its data raw.
///
/// Values are of shape `[n]`; indices, i64, of shape `[n]` (offsets) or `[n, rank]`
/// (coordinates), in any order, none twice.
pub(super) fn to_dense(
    sparse: &SparseTensorProto,
    external: &mut ExternalFiles,
    room: &mut Room,
) -> Result<TensorProto, String> {
    let values = sparse.values.as_ref().ok_or("a sparse tensor without values")?;
    let ty = tensor::data_type(values.data_type())?;
    let Some(size) = tensor::stored_size(ty) else {
        return Err(format!("element type {} is not supported", ty.as_str_name()));
    };
    let dense = TensorProto {
        name: values.name.clone(),
        doc_string: values.doc_string.clone(),
        dims: sparse.dims.clone(),
        data_type: values.data_type,
        ..TensorProto::default()
    };
    let (dims, elements) = tensor::shape(&dense, size)?;
    if dims.is_empty() {
        return Err("a sparse tensor needs a shape of rank 1 or more".into());
    }
    let (shape, n) = tensor::shape(values, size)?;
    if shape.len() != 1 {
        return Err(format!("the values of a sparse tensor have shape {:?}, not [n]", values.dims));
    }
    let raw = raw_data(values, ty, n, external)?;
    let offsets = match &sparse.indices {
        Some(indices) => offsets(indices, n, &dims, elements, external)?,
        None if n == 0 => Vec::new(),
        None => return Err("a sparse tensor without indices".into()),
    };
    let bytes = usize::try_from(elements * size).map_err(|_| format!("its shape {dims:?} is too large"))?;
    room.charge(elements, n, size)?;
    let mut data = vec![0; bytes];
    let size = size as usize;
    for (value, at) in raw.chunks_exact(size).zip(offsets) {
        data[at * size..][..size].copy_from_slice(value);
    }
    Ok(TensorProto { raw_data: Some(data.into()), ..dense })
}

/// Offsets of the `n` values in a tensor of `elements` elements.
fn offsets(
    indices: &TensorProto,
    n: u64,
    dims: &[u64],
    elements: u64,
    external: &mut ExternalFiles,
) -> Result<Vec<usize>, String> {
    if indices.data_type() != DataType::Int64 as i32 {
        return Err("the indices of a sparse tensor are not of type INT64".into());
    }
    let (shape, count) = tensor::shape(indices, 8)?;
    let rank = dims.len() as u64;
    let by_offset = match shape[..] {
        [m] if m == n => true,
        [m, r] if m == n && r == rank => false,
        _ => {
            return Err(format!(
                "the indices of a sparse tensor have shape {:?}, not [{n}] or [{n}, {rank}]",
                indices.dims
            ));
        }
    };
    let raw = raw_data(indices, DataType::Int64, count, external)?;
    let numbers = raw.chunks_exact(8).map(|c| i64::from_le_bytes(c.try_into().unwrap_or([0; 8])));
    let below = |x: i64, end: u64| u64::try_from(x).ok().filter(|&x| x < end);
    let outside = |what: String| format!("index {what} of a sparse tensor is outside its shape {dims:?}");
    let mut found: Vec<usize> = Vec::new();
    if by_offset {
        for x in numbers {
            found.push(below(x, elements).ok_or_else(|| outside(x.to_string()))? as usize);
        }
    } else {
        let numbers: Vec<i64> = numbers.collect();
        for place in numbers.chunks_exact(dims.len()) {
            let offset = place.iter().zip(dims).try_fold(0, |at, (&x, &d)| Some(at * d + below(x, d)?));
            found.push(offset.ok_or_else(|| outside(format!("{place:?}")))? as usize);
        }
    }
    if !found.is_sorted_by(|a, b| a < b) {
        let mut sorted = found.clone();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|w| w[0] == w[1]) {
            return Err(format!("a sparse tensor has two values at offset {}", twice[0]));
        }
    }
    Ok(found)
}

/// The data of a tensor of `elements` elements as raw bytes, from wherever it is stored.
fn raw_data(
    t: &TensorProto,
    ty: DataType,
    elements: u64,
    external: &mut ExternalFiles,
) -> Result<Buf, String> {
    if t.segment.is_some() {
        return Err("tensors in segments are not supported".into());
    }
    let bytes = elements.saturating_mul(tensor::stored_size(ty).unwrap_or(0));
    let raw: Buf = if t.data_location() == DataLocation::External {
        external.load(t, bytes)?
    } else if let Some(raw) = t.raw_data.as_ref().filter(|raw| !raw.is_empty()) {
        raw.clone()
    } else {
        // Small integers and 16-bit floats share `int32_data`.
        let small = &t.int32_data;
        let typed: Vec<u8> = match ty {
            DataType::Float => t.float_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            DataType::Double => t.double_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            DataType::Int64 => t.int64_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            DataType::Int32 => small.iter().flat_map(|x| x.to_le_bytes()).collect(),
            DataType::Int8 | DataType::Uint8 | DataType::Bool => small.iter().map(|&x| x as u8).collect(),
            _ => small.iter().flat_map(|&x| (x as u16).to_le_bytes()).collect(),
        };
        typed.into()
    };
    if raw.len() as u64 != bytes {
        return Err(format!(
            "a part of a sparse tensor has {} bytes of data, but shape {:?} of {} needs {bytes}",
            raw.len(),
            t.dims,
            ty.as_str_name()
        ));
    }
    Ok(raw)
}

/// The sparse form of a tensor of floats of rank 2 or more, with offsets for indices; `None`
/// for others and where it would not be smaller. A negative zero counts as a value, so that
/// every bit comes back.
pub(super) fn from_dense(
    t: &TensorProto,
    external: &mut ExternalFiles,
) -> Result<Option<SparseTensorProto>, String> {
    let ty = tensor::data_type(t.data_type())?;
    let float = matches!(ty, DataType::Float | DataType::Double | DataType::Float16 | DataType::Bfloat16);
    let Some(size) = tensor::stored_size(ty).filter(|_| float && t.dims.len() > 1) else { return Ok(None) };
    let (_, elements) = tensor::shape(t, size)?;
    let raw = raw_data(t, ty, elements, external)?;
    let kept = || raw.chunks_exact(size as usize).enumerate().filter(|(_, x)| x.iter().any(|&b| b != 0));
    let n = kept().count();
    if n as u64 * (size + 8) >= elements * size {
        return Ok(None);
    }
    let part = |name: Option<String>, ty: DataType, data: Vec<u8>| TensorProto {
        name,
        dims: vec![n as i64],
        data_type: Some(ty.into()),
        raw_data: Some(data.into()),
        ..TensorProto::default()
    };
    let values = part(t.name.clone(), ty, kept().flat_map(|(_, x)| x.iter().copied()).collect());
    let places = kept().flat_map(|(i, _)| (i as u64).to_le_bytes()).collect();
    let indices = part(None, DataType::Int64, places);
    Ok(Some(SparseTensorProto { values: Some(values), indices: Some(indices), dims: t.dims.clone() }))
}
