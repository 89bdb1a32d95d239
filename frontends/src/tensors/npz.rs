//! NumPy's `.npz`: a zip archive of `.npy` members.

use super::{DEFLATE_GROWTH, Source, TensorFileError, npy};
use crate::safe_file;
use std::collections::BTreeMap;
use std::io::{self, BufReader};
use std::path::Path;
use vdnn_ir::Tensor;
use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// How [`write()`] stores the members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// As they are, like `numpy.savez`.
    #[default]
    Stored,
    /// Deflated, like `numpy.savez_compressed`.
    Deflate,
}

/// Sizes from which zip needs its 64-bit records.
const ZIP64_FROM: u64 = 0xffff_ffff;

/// Reads every array, by name without `.npy`.
///
/// # Errors
/// Names the file and the member: damage, a member that is no array, compression other than
/// deflate, two members of one name.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, TensorFileError> {
    let archive = Source::file(path);
    let (file, length) = archive.open()?;
    let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|e| zip_error(&archive, e))?;
    if zip.has_duplicate_names() {
        return Err(archive.damaged("two members have the same name"));
    }
    // Members that share bytes would let a small file claim any amount in total.
    let mut unclaimed = length;
    let mut tensors = BTreeMap::new();
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).map_err(|e| zip_error(&archive, e))?;
        let name = entry.name().map_err(|e| zip_error(&archive, e))?.into_owned();
        let source = archive.member(&name);
        let Some(key) = name.strip_suffix(".npy") else {
            return Err(
                source.unsupported("this member is no .npy array", "write the archive with numpy.savez")
            );
        };
        let compressed = entry.compressed_size();
        unclaimed = unclaimed
            .checked_sub(compressed)
            .ok_or_else(|| source.damaged("its members claim more bytes than the file has"))?;
        let available = match entry.compression() {
            CompressionMethod::Stored => compressed,
            _ => entry.size().min(compressed.saturating_mul(DEFLATE_GROWTH)),
        };
        let tensor = npy::read_from(&source, &mut entry, available)?;
        tensors.insert(key.to_owned(), tensor);
    }
    Ok(tensors)
}

/// Writes the arrays in order of name; equal tensors give equal bytes (no time stamps).
///
/// # Errors
/// If the file cannot be written, or an element type is bf16, which NumPy lacks.
pub fn write(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    compression: Compression,
) -> Result<(), TensorFileError> {
    let archive = Source::file(path);
    let method = match compression {
        Compression::Stored => CompressionMethod::Stored,
        Compression::Deflate => CompressionMethod::Deflated,
    };
    let mut members = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        members.push((name, npy::header(&archive.member(name), tensor.ty())?, tensor));
    }
    safe_file::write_atomic(path, |file| {
        let mut zip = ZipWriter::new(file);
        for (name, header, tensor) in members {
            let bytes = tensor.ty().bytes().0.saturating_add(header.len() as u64);
            let options =
                SimpleFileOptions::default().compression_method(method).large_file(bytes >= ZIP64_FROM);
            zip.start_file(format!("{name}.npy"), options)?;
            npy::write_to(&mut zip, &header, tensor)?;
        }
        zip.finish()?;
        Ok(())
    })?;
    Ok(())
}

fn zip_error(source: &Source, error: ZipError) -> TensorFileError {
    match error {
        ZipError::Io(e) if e.kind() != io::ErrorKind::UnexpectedEof => source.io(e),
        ZipError::UnsupportedArchive(what) => {
            source.unsupported(what, "write it with numpy.savez or numpy.savez_compressed")
        }
        other => source.damaged(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use vdnn_ir::{DType, TensorType};

    fn sample() -> BTreeMap<String, Tensor> {
        BTreeMap::from([
            ("a".to_owned(), Tensor::from_f32([2, 3], &[0.0, 1.0, -2.0, 3.5, f32::MIN_POSITIVE, 1e30])),
            ("/fc/Gemm_output_0".to_owned(), Tensor::from_i64([3], &[i64::MIN, 0, i64::MAX])),
            ("empty".to_owned(), Tensor::zeros(TensorType::f32([0, 4]))),
            ("scalar".to_owned(), Tensor::from_f32([], &[2.5])),
            (
                "u".to_owned(),
                Tensor::from_bytes(TensorType::new(DType::U8, [5]), &[1, 2, 3, 4, 255]).unwrap(),
            ),
        ])
    }

    #[test]
    fn round_trips_stored_and_deflated_with_equal_bytes_each_time() {
        let folder = tempfile::tempdir().unwrap();
        for compression in [Compression::Stored, Compression::Deflate] {
            let (a, b) = (folder.path().join("a.npz"), folder.path().join("b.npz"));
            write(&a, &sample(), compression).unwrap();
            write(&b, &sample(), compression).unwrap();
            assert_eq!(read(&a).unwrap(), sample());
            assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
        }
    }

    #[test]
    fn a_highly_compressible_array_is_within_the_deflate_bound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zeros.npz");
        let zeros = BTreeMap::from([("x".to_owned(), Tensor::zeros(TensorType::f32([1 << 18])))]);
        write(&path, &zeros, Compression::Deflate).unwrap();
        assert!(fs::metadata(&path).unwrap().len() < 4096);
        assert_eq!(read(&path).unwrap(), zeros);
    }

    #[test]
    fn damage_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.npz");
        write(&path, &sample(), Compression::Deflate).unwrap();
        let good = fs::read(&path).unwrap();
        for cut in [0, 1, good.len() / 2, good.len() - 1] {
            fs::write(&path, &good[..cut]).unwrap();
            let error = read(&path).unwrap_err();
            assert!(error.to_string().contains("d.npz"), "{error}");
        }
        // Any single damaged byte gives an error or the same tensors (fields nobody reads).
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            fs::write(&path, &bad).unwrap();
            if let Ok(tensors) = read(&path) {
                for (name, tensor) in tensors {
                    assert!(sample().values().any(|t| *t == tensor), "byte {at} changed `{name}` unnoticed");
                }
            }
        }
    }

    #[test]
    fn a_member_that_is_no_array_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.npz");
        safe_file::write_atomic(&path, |file| {
            let mut zip = ZipWriter::new(file);
            zip.start_file("readme.txt", SimpleFileOptions::default())?;
            zip.finish()?;
            Ok(())
        })
        .unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("readme.txt") && error.contains("numpy.savez"), "{error}");
    }

    #[test]
    fn a_member_claiming_gigabytes_is_refused_before_allocating() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bomb.npz");
        let header = npy::header(&Source::file(&path), &TensorType::f32([1 << 40])).unwrap();
        safe_file::write_atomic(&path, |file| {
            let mut zip = ZipWriter::new(file);
            zip.start_file("x.npy", SimpleFileOptions::default())?;
            io::Write::write_all(&mut zip, &header)?;
            zip.finish()?;
            Ok(())
        })
        .unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("claims") && error.contains("x.npy"), "{error}");
    }
}
