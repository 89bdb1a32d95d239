//! IDX, the format of MNIST and its relatives, plain or gzipped.
//!
//! Format (Y. LeCun, "The MNIST database"): two zero bytes, the element type (8 for u8), the
//! number of dimensions, each extent as a big-endian u32, then the elements row-major.

use super::{DEFLATE_GROWTH, Source, TensorFileError};
use flate2::read::MultiGzDecoder;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use vdnn_ir::{DType, Dims, Tensor, TensorType};

/// The files of one set of images in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdxPair {
    /// What stands before `-images-idx3-ubyte`, such as `train` or `t10k`.
    pub name: String,
    /// The image file.
    pub images: PathBuf,
    /// The label file.
    pub labels: PathBuf,
}

/// A set of labelled images.
#[derive(Clone, Debug, PartialEq)]
pub struct IdxSet {
    /// u8 `[N,H,W]`, 0 to 255.
    pub images: Tensor,
    /// i64 `[N]`.
    pub labels: Tensor,
}

/// Finds the image and label files of a folder: `*-images-idx3-ubyte` with
/// `*-labels-idx1-ubyte`, either `.gz` or not (a dot before `idx` is taken too). Training sets
/// (`train`, `*-train`) come first, the others follow by name.
///
/// # Errors
/// If the folder cannot be read, holds no such files, or lacks one of a pair.
pub fn find(folder: &Path) -> Result<Vec<IdxPair>, TensorFileError> {
    let source = Source::file(folder);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| source.io(e))? {
        let name = entry.map_err(|e| source.io(e))?.file_name();
        names.extend(name.into_string().ok());
    }
    // An unpacked file comes before its `.gz` and is preferred.
    names.sort();
    let matching = |part: &str, idx: &str| -> Vec<(String, PathBuf)> {
        let mut found: Vec<(String, PathBuf)> = Vec::new();
        for name in &names {
            let stem = name.strip_suffix(".gz").unwrap_or(name);
            let prefix = [format!("-{part}-{idx}-ubyte"), format!("-{part}.{idx}-ubyte")]
                .iter()
                .find_map(|suffix| stem.strip_suffix(suffix.as_str()));
            if let Some(prefix) = prefix
                && !found.iter().any(|(p, _)| p == prefix)
            {
                found.push((prefix.to_owned(), folder.join(name)));
            }
        }
        found
    };
    let mut labels = matching("labels", "idx1");
    let mut pairs = Vec::new();
    for (name, images) in matching("images", "idx3") {
        let Some(at) = labels.iter().position(|(prefix, _)| *prefix == name) else {
            return Err(source.unsupported(
                format!("`{name}` has images but no labels"),
                format!("put `{name}-labels-idx1-ubyte.gz` beside them"),
            ));
        };
        let labels = labels.remove(at).1;
        pairs.push(IdxPair { name, images, labels });
    }
    if pairs.is_empty() {
        return Err(source.unsupported(
            "no IDX images in this folder",
            "it should hold `train-images-idx3-ubyte.gz` and `train-labels-idx1-ubyte.gz`",
        ));
    }
    pairs.sort_by_key(|pair| !(pair.name == "train" || pair.name.ends_with("-train")));
    Ok(pairs)
}

/// Reads a set of labelled images.
///
/// # Errors
/// As [`read`]; also if there are more or fewer labels than images.
pub fn load(pair: &IdxPair) -> Result<IdxSet, TensorFileError> {
    let images = read(&pair.images)?;
    let bytes = read(&pair.labels)?;
    if images.ty().rank() != 3 {
        return Err(Source::file(&pair.images).damaged(format!("images are {}, not u8[N,H,W]", images.ty())));
    }
    if bytes.ty().dims[..] != images.ty().dims[..1] {
        let problem = format!("labels are {} for {} images", bytes.ty(), images.ty().dims[0]);
        return Err(Source::file(&pair.labels).damaged(problem));
    }
    let labels: Vec<i64> = bytes.bytes().iter().map(|&b| i64::from(b)).collect();
    Ok(IdxSet { labels: Tensor::from_i64(bytes.ty().dims.iter().copied(), &labels), images })
}

/// Reads one file of bytes; gzip is recognised by its first bytes, whatever the name.
///
/// # Errors
/// Names the file and what is wrong: damage, or elements other than u8.
pub fn read(path: &Path) -> Result<Tensor, TensorFileError> {
    let source = Source::file(path);
    let (mut file, length) = source.open()?;
    let mut magic = [0; 2];
    file.read_exact(&mut magic).map_err(|e| source.io(e))?;
    let start = std::io::Cursor::new(magic);
    let mut whole = start.chain(BufReader::new(file));
    if magic == [0x1f, 0x8b] {
        let available = length.saturating_mul(DEFLATE_GROWTH);
        read_from(&source, &mut MultiGzDecoder::new(whole), available)
    } else {
        read_from(&source, &mut whole, length)
    }
}

fn read_from(source: &Source, reader: &mut impl Read, available: u64) -> Result<Tensor, TensorFileError> {
    let mut magic = [0; 4];
    reader.read_exact(&mut magic).map_err(|e| source.io(e))?;
    let rank = u64::from(magic[3]);
    if magic[..2] != [0, 0] {
        return Err(source.damaged("it does not start like an IDX file"));
    }
    if magic[2] != 8 {
        let problem = format!("IDX element type {:#04x}", magic[2]);
        return Err(
            source.unsupported(problem, "only unsigned bytes (0x08) are read; use .npz for other types")
        );
    }
    let mut dims = Dims::new();
    for _ in 0..rank {
        let mut extent = [0; 4];
        reader.read_exact(&mut extent).map_err(|e| source.io(e))?;
        dims.push(u64::from(u32::from_be_bytes(extent)));
    }
    let ty = TensorType::new(DType::U8, dims);
    source.sized(&ty, available.saturating_sub(4 + 4 * rank))?;
    let tensor = source.fill(ty, reader)?;
    source.at_end(reader)?;
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::fs;
    use std::io::Write;

    fn idx(dims: &[u32], data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, dims.len() as u8];
        dims.iter().for_each(|d| bytes.extend(d.to_be_bytes()));
        bytes.extend(data);
        bytes
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn finds_and_loads_pairs_training_set_first() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        put("t10k-images-idx3-ubyte.gz", &gz(&idx(&[1, 2, 2], &[9; 4])));
        put("t10k-labels-idx1-ubyte", &idx(&[1], &[3]));
        put("train-images.idx3-ubyte", &idx(&[2, 1, 2], &[1, 2, 3, 255]));
        put("train-labels-idx1-ubyte.gz", &gz(&idx(&[2], &[7, 0])));
        put("readme.txt", b"");
        let pairs = find(folder.path()).unwrap();
        assert_eq!(pairs.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["train", "t10k"]);
        let train = load(&pairs[0]).unwrap();
        assert_eq!(train.images.ty(), &TensorType::new(DType::U8, [2, 1, 2]));
        assert_eq!(train.images.bytes(), [1, 2, 3, 255]);
        assert_eq!(train.labels, Tensor::from_i64([2], &[7, 0]));
        assert_eq!(load(&pairs[1]).unwrap().labels, Tensor::from_i64([1], &[3]));
    }

    #[test]
    fn says_which_file_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let error = find(folder.path()).unwrap_err().to_string();
        assert!(error.contains("train-images-idx3-ubyte.gz"), "{error}");
        fs::write(folder.path().join("train-images-idx3-ubyte"), idx(&[1, 1, 1], &[0])).unwrap();
        let error = find(folder.path()).unwrap_err().to_string();
        assert!(error.contains("train-labels-idx1-ubyte"), "{error}");
        assert!(find(&folder.path().join("nowhere")).is_err());
    }

    #[test]
    fn mismatched_counts_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let pair = IdxPair {
            name: "train".to_owned(),
            images: folder.path().join("i"),
            labels: folder.path().join("l"),
        };
        fs::write(&pair.images, idx(&[2, 1, 1], &[0, 1])).unwrap();
        fs::write(&pair.labels, idx(&[3], &[0, 1, 2])).unwrap();
        let error = load(&pair).unwrap_err().to_string();
        assert!(error.contains("labels are u8[3] for 2 images"), "{error}");
        fs::write(&pair.images, idx(&[], &[0])).unwrap();
        assert!(load(&pair).is_err());
    }

    #[test]
    fn damage_is_an_error_plain_and_gzipped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let check = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read(&path)
        };
        let good = idx(&[2, 3], &[1, 2, 3, 4, 5, 6]);
        assert!(check(&good).is_ok());
        let packed = gz(&good);
        assert!(check(&packed).is_ok());
        for cut in 0..good.len() {
            assert!(check(&good[..cut]).is_err(), "cut at {cut}");
        }
        for cut in 0..packed.len() {
            assert!(check(&packed[..cut]).is_err(), "gz cut at {cut}");
        }
        let mut wrong_sum = packed.clone();
        let at = wrong_sum.len() - 8;
        wrong_sum[at] ^= 1;
        assert!(check(&wrong_sum).is_err(), "checksum");
        let claim = idx(&[u32::MAX, u32::MAX, 1], &[0]);
        assert!(check(&claim).is_err());
        assert!(check(&gz(&claim)).is_err());
        assert!(check(&idx(&[u32::MAX; 255], &[])).is_err());
        let floats = [&[0, 0, 0x0d, 1, 0, 0, 0, 1][..], &[0; 4]].concat();
        assert!(check(&floats).unwrap_err().to_string().contains("0x0d"));
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "says why it did nothing")]
    fn reads_the_mnist_test_set() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let folder = root.join("../shared/data/mnist");
        if !folder.exists() {
            eprintln!("skipped: needs ../shared/data/mnist");
            return;
        }
        let pairs = find(&folder).unwrap();
        let set = load(&pairs[0]).unwrap();
        assert_eq!(set.images.ty(), &TensorType::new(DType::U8, [10_000, 28, 28]));
        // The first ten labels of the set, as published.
        assert_eq!(set.labels.i64()[..10], [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]);
    }
}
