//! Writes a model as a protobuf stream, without building the encoded message in memory.
//!
//! Protobuf messages end at 2 GiB, so the weights of a larger model go to one file beside it
//! (ONNX: "external data").

use super::ZooError;
use crate::onnx::proto::tensor_proto::DataLocation;
use crate::onnx::proto::{ModelProto, StringStringEntryProto, TensorProto};
use crate::safe_file::{SafeFileError, StagedFile};
use prost::Message;
use std::io::{self, Write};
use std::path::Path;

/// Most weight bytes kept inside a model file: below the 2 GiB at which protobuf readers give
/// up, with room for the graph.
pub const INLINE_LIMIT: u64 = 1_900_000_000;

/// Tensors below this many bytes stay in the model file in any case.
const SMALL: u64 = 1024;

/// Alignment of tensors in an external file: a page, so that they can be mapped one by one.
const PAGE: u64 = 4096;

/// Keys of the fields written by hand: field number, then wire type 2 (length-delimited).
const MODEL_GRAPH: u8 = 7 << 3 | 2;
const GRAPH_INITIALIZER: u8 = 5 << 3 | 2;
const TENSOR_RAW_DATA: u8 = 9 << 3 | 2;

/// The raw data of initializers by index, made when it is written.
pub(super) struct Payloads<'a> {
    /// Size in bytes; `None` if the initializer has no raw data.
    pub(super) bytes: &'a dyn Fn(usize) -> Option<u64>,
    /// Writes exactly that many bytes.
    pub(super) write: &'a mut dyn FnMut(usize, &mut dyn Write) -> io::Result<()>,
}

/// Writes a model; with more than [`INLINE_LIMIT`] bytes of raw weights, these go to
/// `NAME.weights.bin` beside `NAME.onnx`.
///
/// # Errors
/// If a file cannot be written; an existing model is then unchanged.
pub fn write(model: &ModelProto, path: &Path) -> Result<(), ZooError> {
    write_with_limit(model, path, INLINE_LIMIT)
}

fn write_with_limit(model: &ModelProto, path: &Path, limit: u64) -> Result<(), ZooError> {
    // Cloning shares the raw data.
    let mut model = model.clone();
    let data: Vec<_> = initializers(&mut model).iter_mut().map(|t| t.raw_data.take()).collect();
    let mut payloads = Payloads {
        bytes: &|i| data[i].as_ref().map(|d| d.len() as u64),
        write: &mut |i, out| out.write_all(data[i].as_deref().unwrap_or_default()),
    };
    stream(model, path, &mut payloads, limit)?;
    Ok(())
}

/// The initializers of a model's graph.
pub(super) fn initializers(model: &mut ModelProto) -> &mut [TensorProto] {
    model.graph.as_mut().map_or(&mut [], |graph| &mut graph.initializer)
}

/// Writes a model whose initializers' raw data is in `payloads`; above `limit` bytes of it, to
/// an external file.
pub(super) fn stream(
    mut model: ModelProto,
    path: &Path,
    payloads: &mut Payloads<'_>,
    limit: u64,
) -> Result<(), SafeFileError> {
    let mut file = StagedFile::create(path)?;
    let sizes: Vec<_> = (0..initializers(&mut model).len()).map(payloads.bytes).collect();
    let total: u64 = sizes.iter().flatten().sum();
    if total <= limit {
        file.write_with(|out| encode(model, &sizes, payloads, out))?;
        return file.commit();
    }
    // Beside the file itself, should `path` be a link to it.
    let weights_path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let weights_path = weights_path.with_extension("weights.bin");
    let mut weights = StagedFile::create(&weights_path)?;
    let mut inline = sizes.clone();
    weights.write_with(|out| {
        let location = weights_path.file_name().and_then(|n| n.to_str());
        let location = location.ok_or_else(|| io::Error::other("the name must be UTF-8 to refer to it"))?;
        let mut end = 0;
        for (i, tensor) in initializers(&mut model).iter_mut().enumerate() {
            let Some(bytes) = sizes[i].filter(|&bytes| bytes >= SMALL) else { continue };
            let offset = u64::next_multiple_of(end, PAGE);
            out.write_all(&[0; PAGE as usize][..(offset - end) as usize])?;
            (payloads.write)(i, out)?;
            end = offset + bytes;
            inline[i] = None;
            let entry = |key: &str, value: String| StringStringEntryProto {
                key: Some(key.to_owned()),
                value: Some(value),
            };
            tensor.data_location = Some(DataLocation::External as i32);
            tensor.external_data = vec![
                entry("location", location.to_owned()),
                entry("offset", offset.to_string()),
                entry("length", bytes.to_string()),
            ];
        }
        Ok(())
    })?;
    file.write_with(|out| encode(model, &inline, payloads, out))?;
    // The weights first: the model must never refer to data that is not there.
    weights.commit()?;
    file.commit()
}

/// Encodes the model, with raw data of these sizes in its initializers. A graph comes after its
/// model's other fields, an initializer after its graph's, raw data after its tensor's:
/// protobuf leaves the order free.
fn encode(
    mut model: ModelProto,
    sizes: &[Option<u64>],
    payloads: &mut Payloads<'_>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let Some(mut graph) = model.graph.take() else {
        return out.write_all(&model.encode_to_vec());
    };
    let tensors = std::mem::take(&mut graph.initializer);
    let heads: Vec<_> = tensors.iter().map(Message::encode_to_vec).collect();
    let lengths: Vec<u64> =
        heads.iter().zip(sizes).map(|(head, size)| head.len() as u64 + size.map_or(0, field)).collect();
    let graph = graph.encode_to_vec();
    let graph_length = graph.len() as u64 + lengths.iter().map(|&n| field(n)).sum::<u64>();

    out.write_all(&model.encode_to_vec())?;
    write_key(MODEL_GRAPH, graph_length, out)?;
    out.write_all(&graph)?;
    for (i, head) in heads.iter().enumerate() {
        write_key(GRAPH_INITIALIZER, lengths[i], out)?;
        out.write_all(head)?;
        if let Some(bytes) = sizes[i] {
            write_key(TENSOR_RAW_DATA, bytes, out)?;
            (payloads.write)(i, out)?;
        }
    }
    Ok(())
}

/// Size of a length-delimited field with this many bytes and a key of one byte.
fn field(bytes: u64) -> u64 {
    1 + prost::length_delimiter_len(bytes as usize) as u64 + bytes
}

fn write_key(key: u8, bytes: u64, out: &mut dyn Write) -> io::Result<()> {
    let mut start = vec![key];
    prost::encode_length_delimiter(bytes as usize, &mut start)?;
    out.write_all(&start)
}

#[cfg(test)]
mod tests {
    use super::super::{ZooOptions, build};
    use super::*;
    use std::fs;

    #[test]
    fn the_stream_decodes_to_the_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        let mut model = build("lenet", &ZooOptions::default()).unwrap();
        // Typed data, no data at all, fields with larger numbers than those written by hand.
        model.doc_string = Some("doc".to_owned());
        let graph = model.graph.as_mut().unwrap();
        graph.doc_string = Some("graph doc".to_owned());
        let mut typed = graph.initializer[0].clone();
        typed.raw_data = None;
        typed.float_data = vec![1.0, 2.0];
        typed.doc_string = Some("tensor doc".to_owned());
        graph.initializer.push(typed);
        let mut empty = graph.initializer[0].clone();
        empty.raw_data = Some(Default::default());
        graph.initializer.push(empty);
        write(&model, &path).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), model.encoded_len());
        assert_eq!(ModelProto::decode(&bytes[..]).unwrap(), model);
        let none = ModelProto { graph: None, ..model };
        write(&none, &path).unwrap();
        assert_eq!(ModelProto::decode(&fs::read(&path).unwrap()[..]).unwrap(), none);
    }

    #[test]
    fn above_the_limit_the_weights_go_beside_the_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("big.v2.onnx");
        let model = build("lenet", &ZooOptions::default()).unwrap();
        write_with_limit(&model, &path, 100_000).unwrap();
        let external = fs::read(folder.path().join("big.v2.weights.bin")).unwrap();
        let read = ModelProto::decode(&fs::read(&path).unwrap()[..]).unwrap();
        let tensors = |m: &ModelProto| m.graph.as_ref().unwrap().initializer.clone();
        let mut outside = 0;
        for (before, after) in tensors(&model).into_iter().zip(tensors(&read)) {
            let expected = before.raw_data.clone().unwrap();
            if expected.len() < SMALL as usize {
                assert_eq!(after, before);
                continue;
            }
            outside += 1;
            assert_eq!((after.raw_data, after.data_location), (None, Some(DataLocation::External as i32)));
            let value = |key: &str| {
                let entry = after.external_data.iter().find(|e| e.key.as_deref() == Some(key));
                entry.unwrap().value.clone().unwrap()
            };
            assert_eq!(value("location"), "big.v2.weights.bin");
            let (offset, length): (usize, usize) =
                (value("offset").parse().unwrap(), value("length").parse().unwrap());
            assert_eq!(offset % PAGE as usize, 0);
            assert_eq!(external[offset..offset + length], expected);
        }
        assert_eq!(outside, 4);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
