//! Test data: where it lies, and the external weights that its recipe regenerates.
#![allow(dead_code, reason = "each test binary uses a part of this")]

pub mod build;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// `../shared/data` beside the workspace, if it is there; says so if not.
pub fn data() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(|d| d.join("Cargo.lock").exists())?;
    let data = root.join("../shared/data");
    if data.is_dir() {
        return Some(data);
    }
    let mut err = std::io::stderr();
    let _ = writeln!(err, "skipped: needs ../shared/data");
    None
}

/// The ONNX files of a folder, sorted.
pub fn models(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .map(|entries| entries.filter_map(|e| e.ok().map(|e| e.path())).collect())
        .unwrap_or_default();
    found.retain(|p| p.extension().is_some_and(|e| e == "onnx"));
    found.sort();
    found
}

/// FNV-1a, 64 bits.
pub fn fnv1a64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Splitmix64 as a function of a seed and a position.
pub fn mix(seed: u64, i: u64) -> u64 {
    let mut z = seed.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number in [-1, 1) from a seed and a position.
pub fn unit(seed: u64, i: u64) -> f64 {
    2.0 * ((mix(seed, i) >> 40) as f64 * (1.0 / 16_777_216.0)) - 1.0
}

/// `bias + amp * unit` in f64, rounded once.
pub fn uniform(seed: u64, i: u64, amp: f64, bias: f64) -> f32 {
    (bias + amp * unit(seed, i)) as f32
}

/// One line of a `.gen.tsv`: a tensor of the weight file.
#[derive(Debug)]
pub struct Tensor {
    pub name: String,
    pub offset: u64,
    pub bytes: u64,
    pub seed: u64,
    pub amp: f64,
    pub bias: f64,
}

/// The tensors of the weight file that belongs to a model.
pub fn recipe(model: &Path) -> Vec<Tensor> {
    let text = fs::read_to_string(model.with_extension("gen.tsv")).unwrap_or_default();
    text.lines()
        .filter(|l| !l.starts_with('#') && !l.is_empty())
        .map(|line| {
            let c: Vec<&str> = line.split('\t').collect();
            Tensor {
                name: c[0].into(),
                offset: c[2].parse().unwrap(),
                bytes: c[3].parse().unwrap(),
                seed: u64::from_str_radix(c[4], 16).unwrap(),
                amp: c[5].parse().unwrap(),
                bias: c[6].parse().unwrap(),
            }
        })
        .collect()
}

/// Copies a model into `folder`, with a weight file of the right size that is all holes.
pub fn with_holes(model: &Path, folder: &Path) -> PathBuf {
    let copy = folder.join(model.file_name().unwrap());
    fs::copy(model, &copy).unwrap();
    if let Some(size) = recipe(model).iter().map(|t| t.offset + t.bytes).max() {
        File::create(copy.with_extension("weights.bin")).unwrap().set_len(size).unwrap();
    }
    copy
}

/// Copies a model into `folder`, with its weights generated bit for bit.
pub fn with_weights(model: &Path, folder: &Path) -> PathBuf {
    let copy = folder.join(model.file_name().unwrap());
    fs::copy(model, &copy).unwrap();
    let tensors = recipe(model);
    if tensors.is_empty() {
        return copy;
    }
    let mut out = BufWriter::new(File::create(copy.with_extension("weights.bin")).unwrap());
    let mut at = 0;
    for t in tensors {
        out.write_all(&vec![0; (t.offset - at) as usize]).unwrap();
        for i in 0..t.bytes / 4 {
            out.write_all(&uniform(t.seed, i, t.amp, t.bias).to_le_bytes()).unwrap();
        }
        at = t.offset + t.bytes;
    }
    out.flush().unwrap();
    copy
}
