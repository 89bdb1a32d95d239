//! `.safetensors`: named tensors with a JSON header.
//!
//! Format: <https://github.com/huggingface/safetensors>: the header's length (u64), the header
//! (name to `dtype`, `shape`, `data_offsets`), then the tensors without gaps.

use super::{Source, TensorFileError};
use crate::safe_file;
use ::safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::path::Path;
use vdnn_ir::{DType, Tensor, TensorType};

/// Longest header read: the limit of the reference implementation.
const HEADER_LIMIT: u64 = 100_000_000;

/// Writes the tensors: widest element type first (which aligns all of them), then by name.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<(), TensorFileError> {
    let source = Source::file(path);
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(name, tensor)| (std::cmp::Reverse(tensor.ty().dtype.bytes()), *name));
    let mut infos = Vec::with_capacity(order.len());
    let mut end = 0;
    for (name, tensor) in &order {
        let start = end;
        end += tensor.bytes().len();
        let shape: Option<Vec<usize>> = tensor.ty().dims.iter().map(|&d| usize::try_from(d).ok()).collect();
        let shape =
            shape.ok_or_else(|| source.unsupported("a dimension beyond the address space", "split it"))?;
        let dtype = to_file(tensor.ty().dtype);
        infos.push(((*name).clone(), TensorInfo { dtype, shape, data_offsets: (start, end) }));
    }
    let header = Metadata::new(None, infos)
        .map_err(|e| e.to_string())
        .and_then(|m| serde_json::to_vec(&m).map_err(|e| e.to_string()))
        .map_err(|problem| source.unsupported(problem, "rename or reshape the tensor"))?;
    // Spaces after the JSON keep the data 8-byte aligned in the file.
    let padding = header.len().next_multiple_of(8) - header.len();
    safe_file::write_atomic(path, |w| {
        w.write_all(&((header.len() + padding) as u64).to_le_bytes())?;
        w.write_all(&header)?;
        w.write_all(&b"       "[..padding])?;
        order.iter().try_for_each(|(_, tensor)| w.write_all(tensor.bytes()))
    })?;
    Ok(())
}

/// Reads every tensor, by name.
///
/// # Errors
/// Names the file and what is wrong: damage, or element types the IR lacks.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, TensorFileError> {
    let source = Source::file(path);
    let (file, length) = source.open()?;
    read_from(&source, &mut BufReader::new(file), length)
}

fn read_from(
    source: &Source,
    reader: &mut impl Read,
    length: u64,
) -> Result<BTreeMap<String, Tensor>, TensorFileError> {
    let mut header_length = [0; 8];
    reader.read_exact(&mut header_length).map_err(|e| source.io(e))?;
    let header_length = u64::from_le_bytes(header_length);
    if header_length > length.saturating_sub(8).min(HEADER_LIMIT) {
        return Err(source.damaged(format!("its header claims {header_length} bytes")));
    }
    let mut header = vec![0; header_length as usize];
    reader.read_exact(&mut header).map_err(|e| source.io(e))?;
    // Deserializing also checks that the offsets tile the data and match the shapes.
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| source.damaged(e.to_string()))?;
    let available = length - 8 - header_length;
    if metadata.data_len() as u64 != available {
        let problem =
            format!("its header claims {} bytes of data, but {available} follow", metadata.data_len());
        return Err(source.damaged(problem));
    }
    let mut tensors = BTreeMap::new();
    for name in metadata.offset_keys() {
        let member = source.member(&name);
        let info = metadata.info(&name).ok_or_else(|| member.damaged("its header contradicts itself"))?;
        let dtype = from_file(info.dtype).ok_or_else(|| {
            let fix = "save it as F32, F64, F16, BF16, I32, I64, U8 or BOOL";
            member.unsupported(format!("element type {:?}", info.dtype), fix)
        })?;
        let ty = TensorType::new(dtype, info.shape.iter().map(|&d| d as u64));
        member.sized(&ty, available)?;
        tensors.insert(name, member.fill(ty, reader)?);
    }
    Ok(tensors)
}

fn to_file(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::U8 => Dtype::U8,
        DType::Bool => Dtype::BOOL,
    }
}

fn from_file(dtype: Dtype) -> Option<DType> {
    DType::ALL.into_iter().find(|&d| to_file(d) == dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn sample() -> BTreeMap<String, Tensor> {
        let mut tensors: BTreeMap<String, Tensor> = DType::ALL
            .into_iter()
            .map(|d| {
                let ty = TensorType::new(d, [3, 1]);
                let bytes = vec![1; ty.bytes().0 as usize];
                (format!("of.{d}"), Tensor::from_bytes(ty, &bytes).unwrap())
            })
            .collect();
        tensors.insert("scalar".to_owned(), Tensor::from_f32([], &[2.5]));
        tensors.insert("empty \"quoted\"".to_owned(), Tensor::zeros(TensorType::f32([0])));
        tensors
    }

    #[test]
    fn round_trips_every_type_and_the_reference_reader_agrees() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        for tensors in [sample(), BTreeMap::new()] {
            write(&path, &tensors).unwrap();
            assert_eq!(read(&path).unwrap(), tensors);
            let bytes = fs::read(&path).unwrap();
            let reference = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(reference.len(), tensors.len());
            for (name, tensor) in &tensors {
                assert_eq!(reference.tensor(name).unwrap().data(), tensor.bytes());
            }
        }
    }

    #[test]
    fn equal_tensors_give_equal_files() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        write(&a, &sample()).unwrap();
        write(&b, &sample()).unwrap();
        assert_eq!(fs::read(a).unwrap(), fs::read(b).unwrap());
    }

    #[test]
    fn damage_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        write(&path, &sample()).unwrap();
        let good = fs::read(&path).unwrap();
        let source = Source::file(Path::new("w.safetensors"));
        for cut in 0..good.len() {
            assert!(read_from(&source, &mut &good[..cut], cut as u64).is_err(), "cut at {cut}");
        }
        let huge = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
        let error = read_from(&source, &mut &huge[..], huge.len() as u64).unwrap_err().to_string();
        assert!(error.contains("w.safetensors") && error.contains("claims"), "{error}");
        let text = br#"{"x":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,8]}}"#;
        let lie = [&(text.len() as u64).to_le_bytes()[..], text, &[0; 8]].concat();
        assert!(read_from(&source, &mut &lie[..], lie.len() as u64).is_err());
        let text = br#"{"x":{"dtype":"I16","shape":[4],"data_offsets":[0,8]}}"#;
        let other = [&(text.len() as u64).to_le_bytes()[..], text, &[0; 8]].concat();
        let error = read_from(&source, &mut &other[..], other.len() as u64).unwrap_err().to_string();
        assert!(error.contains("I16") && error.contains("F32"), "{error}");
    }
}
