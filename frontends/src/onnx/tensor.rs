//! `TensorProto` to constants: sizes checked against the data, element types normalised.

use super::constant::{Constant, Data, Scalar, check_extents};
use super::external::ExternalFiles;
use super::proto::TensorProto;
use super::proto::tensor_proto::{DataLocation, DataType};
use bytes::Bytes as Buf;
use half::{bf16, f16};
use vdnn_ir::Dims;

/// Element types that can be read, as stored.
pub(super) fn data_type(code: i32) -> Result<DataType, String> {
    DataType::try_from(code).map_err(|_| format!("element type {code} is unknown"))
}

/// Bytes of one stored element; `None` for types that are not read.
pub(super) fn stored_size(ty: DataType) -> Option<u64> {
    Some(match ty {
        DataType::Double | DataType::Int64 => 8,
        DataType::Float | DataType::Int32 => 4,
        DataType::Float16 | DataType::Bfloat16 | DataType::Int16 | DataType::Uint16 => 2,
        DataType::Int8 | DataType::Uint8 | DataType::Bool => 1,
        _ => return None,
    })
}

/// The shape of a tensor, its element count and stored size checked against overflow.
pub(super) fn shape(tensor: &TensorProto, size: u64) -> Result<(Dims, u64), String> {
    let dims: Dims = tensor
        .dims
        .iter()
        .map(|&d| u64::try_from(d).map_err(|_| format!("its shape {:?} has a negative extent", tensor.dims)))
        .collect::<Result<_, _>>()?;
    let elements = dims.iter().fold(1u64, |n, &d| n.saturating_mul(d));
    match (check_extents(&dims), elements.checked_mul(size)) {
        (Ok(()), Some(_)) => Ok((dims, elements)),
        _ => Err(format!("its shape {:?} is too large", tensor.dims)),
    }
}

/// Reads a tensor. f32 data stays a slice of where it is; everything else is copied.
///
/// The constant has no origin; the caller knows whether the tensor may be trained.
pub(super) fn decode(tensor: &TensorProto, external: &mut ExternalFiles) -> Result<Constant, String> {
    let ty = data_type(tensor.data_type())?;
    let Some(size) = stored_size(ty) else {
        return Err(format!("element type {} is not supported", ty.as_str_name()));
    };
    if tensor.segment.is_some() {
        return Err("tensors in segments are not supported".into());
    }
    let (dims, elements) = shape(tensor, size)?;
    let bytes = elements * size;
    let raw = if tensor.data_location() == DataLocation::External {
        Some(external.load(tensor, bytes)?)
    } else {
        tensor.raw_data.clone().filter(|b| !b.is_empty() || elements == 0)
    };
    let data = match raw {
        Some(raw) if raw.len() as u64 != bytes => {
            return Err(format!(
                "it has {} bytes of data, but shape {:?} of {} needs {bytes}",
                raw.len(),
                tensor.dims,
                ty.as_str_name()
            ));
        }
        Some(raw) => from_raw(ty, raw),
        None => from_fields(ty, tensor, elements)?,
    };
    Ok(Constant::new(dims, data))
}

fn floats(items: impl Iterator<Item = f32>) -> Data {
    Data::F32(items.flat_map(f32::to_le_bytes).collect::<Vec<u8>>().into())
}

/// `raw` has been checked to hold whole elements.
fn from_raw(ty: DataType, raw: Buf) -> Data {
    fn words<const N: usize>(raw: &Buf) -> impl Iterator<Item = [u8; N]> {
        raw.chunks_exact(N).map(|c| c.try_into().unwrap_or([0; N]))
    }
    match ty {
        DataType::Float => Data::F32(raw),
        DataType::Double => floats(words(&raw).map(|w| f64::from_le_bytes(w) as f32)),
        DataType::Float16 => floats(words(&raw).map(|w| f16::from_le_bytes(w).to_f32())),
        DataType::Bfloat16 => floats(words(&raw).map(|w| bf16::from_le_bytes(w).to_f32())),
        DataType::Int64 => Data::I64(words(&raw).map(i64::from_le_bytes).collect()),
        DataType::Int32 => Data::I64(words(&raw).map(|w| i32::from_le_bytes(w).into()).collect()),
        DataType::Int16 => Data::I64(words(&raw).map(|w| i16::from_le_bytes(w).into()).collect()),
        DataType::Uint16 => Data::I64(words(&raw).map(|w| u16::from_le_bytes(w).into()).collect()),
        DataType::Int8 => Data::I64(words(&raw).map(|w| i8::from_le_bytes(w).into()).collect()),
        DataType::Bool => Data::Bool(raw.iter().map(|&b| b != 0).collect()),
        _ => Data::I64(raw.iter().map(|&b| b.into()).collect()),
    }
}

/// The typed fields: small integers and 16-bit floats share `int32_data`.
fn from_fields(ty: DataType, tensor: &TensorProto, elements: u64) -> Result<Data, String> {
    let small = &tensor.int32_data;
    let found = match ty {
        DataType::Float => tensor.float_data.len(),
        DataType::Double => tensor.double_data.len(),
        DataType::Int64 => tensor.int64_data.len(),
        _ => small.len(),
    };
    if found as u64 != elements {
        return Err(format!("it has {found} elements of data, but shape {:?} needs {elements}", tensor.dims));
    }
    Ok(match ty {
        DataType::Float => floats(tensor.float_data.iter().copied()),
        DataType::Double => floats(tensor.double_data.iter().map(|&x| x as f32)),
        DataType::Float16 => floats(small.iter().map(|&x| f16::from_bits(x as u16).to_f32())),
        DataType::Bfloat16 => floats(small.iter().map(|&x| bf16::from_bits(x as u16).to_f32())),
        DataType::Int64 => Data::I64(tensor.int64_data.as_slice().into()),
        DataType::Bool => Data::Bool(small.iter().map(|&x| x != 0).collect()),
        _ => Data::I64(small.iter().map(|&x| x.into()).collect()),
    })
}

/// The value of a one-element tensor.
pub(super) fn decode_scalar(tensor: &TensorProto, external: &mut ExternalFiles) -> Result<Scalar, String> {
    decode(tensor, external)?.single().ok_or_else(|| "a tensor of one element is needed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::constant::Elem;
    use super::*;

    fn tensor(ty: DataType, dims: &[i64]) -> TensorProto {
        TensorProto { data_type: Some(ty.into()), dims: dims.to_vec(), ..Default::default() }
    }
    fn read(t: &TensorProto) -> Result<Constant, String> {
        decode(t, &mut ExternalFiles::new(None))
    }

    #[test]
    fn every_float_type_reads_as_f32_from_raw_and_typed_fields() {
        let mut t = tensor(DataType::Float16, &[2]);
        t.raw_data = Some(Buf::from_static(&[0x00, 0x3c, 0x00, 0xc0]));
        assert_eq!(read(&t).unwrap().get(1), Scalar::F32(-2.0));
        t.raw_data = None;
        t.int32_data = vec![0x3c00, 0xc000];
        assert_eq!(read(&t).unwrap().get(0), Scalar::F32(1.0));
        let mut t = tensor(DataType::Bfloat16, &[1]);
        t.raw_data = Some(Buf::from_static(&[0x80, 0x3f]));
        assert_eq!(read(&t).unwrap().get(0), Scalar::F32(1.0));
        let mut t = tensor(DataType::Double, &[]);
        t.double_data = vec![0.5];
        assert_eq!(read(&t).unwrap().single(), Some(Scalar::F32(0.5)));
    }

    #[test]
    fn integers_widen_and_booleans_stay() {
        let mut t = tensor(DataType::Int8, &[1]);
        t.raw_data = Some(Buf::from_static(&[0xff]));
        assert_eq!(read(&t).unwrap().get(0), Scalar::I64(-1));
        t.data_type = Some(DataType::Uint8.into());
        assert_eq!(read(&t).unwrap().get(0), Scalar::I64(255));
        t.data_type = Some(DataType::Bool.into());
        assert_eq!(read(&t).unwrap().elem(), Elem::Bool);
    }

    #[test]
    fn unaligned_f32_is_a_slice_of_the_buffer() {
        let whole = Buf::from(vec![9, 0, 0, 128, 63]);
        let mut t = tensor(DataType::Float, &[1]);
        t.raw_data = Some(whole.slice(1..));
        let c = read(&t).unwrap();
        assert_eq!(c.get(0), Scalar::F32(1.0));
        assert!(matches!(&c.data, Data::F32(b) if b.as_ptr() == whole[1..].as_ptr()));
    }

    #[test]
    fn sizes_are_checked_against_the_data() {
        let mut t = tensor(DataType::Float, &[1 << 29]);
        t.raw_data = Some(Buf::from_static(&[0; 4]));
        assert!(read(&t).unwrap_err().contains("has 4 bytes"));
        t.raw_data = None;
        assert!(read(&t).unwrap_err().contains("has 0 elements"));
        assert!(read(&tensor(DataType::Float, &[-1])).unwrap_err().contains("negative"));
        assert!(read(&tensor(DataType::Float, &[i64::MAX, 4])).unwrap_err().contains("too large"));
        assert!(read(&tensor(DataType::Float, &[i64::MAX / 2])).unwrap_err().contains("too large"));
        assert!(read(&tensor(DataType::String, &[])).unwrap_err().contains("STRING"));
        assert!(read(&TensorProto { data_type: Some(99), ..Default::default() }).is_err());
    }

    #[test]
    fn external_data_needs_a_folder() {
        let mut t = tensor(DataType::Float, &[1]);
        t.data_location = Some(DataLocation::External.into());
        assert!(read(&t).unwrap_err().contains("without a location"));
        t.external_data.push(super::super::proto::StringStringEntryProto {
            key: Some("location".into()),
            value: Some("w".into()),
        });
        assert!(read(&t).unwrap_err().contains("not read from a file"));
    }
}
