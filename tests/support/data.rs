//! The reference data beside the repository, and its number generator.
//!
//! Everything here reads `../shared/data`; a test that needs it and does not find it says
//! so and passes.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use vdnn_ir::Tensor;

/// The workspace root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is inside the workspace").to_owned()
}

/// A path under `../shared/data`, or under the folder that `VDNNC_TEST_DATA` names instead;
/// `None`, with the line that says what was skipped, if it is not there.
#[expect(clippy::print_stderr, reason = "a skipped test must say so")]
pub fn shared(path: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("VDNNC_TEST_DATA").map(PathBuf::from);
    let full = folder.unwrap_or_else(|| root().join("../shared/data")).join(path);
    if full.exists() {
        return Some(full);
    }
    eprintln!("skipped: needs ../shared/data/{path}");
    None
}

/// FNV-1a, the seed of every generated tensor (golden/README.md).
pub fn fnv1a64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &c| (h ^ u64::from(c)).wrapping_mul(0x100_0000_01b3))
}

/// splitmix64 at position `i`.
pub fn mix(seed: u64, i: u64) -> u64 {
    let mut z = seed.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Uniform in `bias ± amp`, in f64.
pub fn uniform(seed: u64, i: u64, amp: f64, bias: f64) -> f64 {
    let u = (mix(seed, i) >> 40) as f64 * (1.0 / 16_777_216.0);
    bias + amp * (2.0 * u - 1.0)
}

/// `model_input(name, dims)` of the recipe.
pub fn model_input(name: &str, dims: &[u64]) -> Tensor {
    let seed = fnv1a64(format!("input:{name}").as_bytes());
    let n: u64 = dims.iter().product();
    let data: Vec<f32> = (0..n).map(|i| uniform(seed, i, 1.0, 0.0) as f32).collect();
    Tensor::from_f32(dims.iter().copied(), &data)
}

/// `image_input(name, [N,C,H,W])` of the recipe.
pub fn image_input(name: &str, dims: [u64; 4]) -> Tensor {
    let fine = fnv1a64(format!("input:{name}").as_bytes());
    let coarse = fnv1a64(format!("coarse:{name}").as_bytes());
    let [n, c, h, w] = dims;
    let (hh, ww) = (h.div_ceil(32), w.div_ceil(32));
    let mut data = Vec::with_capacity((n * c * h * w) as usize);
    let mut i = 0;
    for p in 0..n * c {
        for y in 0..h {
            for x in 0..w {
                let co = uniform(coarse, (p * hh + y / 32) * ww + x / 32, 1.0, 0.0);
                data.push((0.5 * uniform(fine, i, 1.0, 0.0) + co) as f32);
                i += 1;
            }
        }
    }
    Tensor::from_f32(dims, &data)
}

/// `labels(n, classes, key)` of the recipe.
pub fn labels(n: u64, classes: u64, key: &str) -> Tensor {
    let seed = fnv1a64(key.as_bytes());
    let data: Vec<i64> = (0..n).map(|i| (mix(seed, i) % classes) as i64).collect();
    Tensor::from_i64([n], &data)
}

/// A skeleton model made whole: the ONNX file and its generated weights in a folder of
/// their own.
#[derive(Debug)]
pub struct Skeleton {
    dir: tempfile::TempDir,
    stem: String,
}

impl Skeleton {
    /// Links `folder/stem.onnx` and generates `stem.weights.bin` from `stem.gen.tsv`.
    pub fn new(folder: &Path, stem: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::copy(folder.join(format!("{stem}.onnx")), dir.path().join(format!("{stem}.onnx")))
            .expect("the skeleton");
        let tsv = std::fs::read_to_string(folder.join(format!("{stem}.gen.tsv"))).expect("the recipe");
        let file =
            std::fs::File::create(dir.path().join(format!("{stem}.weights.bin"))).expect("weights file");
        let mut out = BufWriter::with_capacity(1 << 20, file);
        let mut at = 0u64;
        for line in tsv.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
            let c: Vec<&str> = line.split('\t').collect();
            let number = |i: usize| c[i].parse::<u64>().expect("a number");
            let (offset, bytes) = (number(2), number(3));
            let seed = u64::from_str_radix(c[4], 16).expect("a hex seed");
            let (amp, bias): (f64, f64) = (c[5].parse().expect("amp"), c[6].parse().expect("bias"));
            while at < offset {
                out.write_all(&[0]).expect("disk");
                at += 1;
            }
            let data: Vec<f32> = (0..bytes / 4).map(|i| uniform(seed, i, amp, bias) as f32).collect();
            out.write_all(bytemuck::cast_slice(&data)).expect("disk");
            at += bytes;
        }
        out.flush().expect("disk");
        Self { dir, stem: stem.to_owned() }
    }

    /// The ONNX file.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join(format!("{}.onnx", self.stem))
    }
}

/// Stems of the skeletons in a folder, sorted.
pub fn stems(folder: &Path) -> Vec<String> {
    let mut all: Vec<String> = std::fs::read_dir(folder)
        .expect("the folder")
        .filter_map(|e| Some(e.ok()?.file_name().to_str()?.strip_suffix(".gen.tsv")?.to_owned()))
        .collect();
    all.sort();
    all
}

/// Reads a safetensors file of f32, f64 and i64 tensors, everything widened to f64.
pub fn golden(path: &Path) -> BTreeMap<String, (Vec<u64>, Vec<f64>)> {
    let bytes = std::fs::read(path).expect("the golden file");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            let dims = view.shape().iter().map(|&d| d as u64).collect();
            let raw = view.data();
            let data = match view.dtype() {
                safetensors::Dtype::F32 => raw
                    .chunks_exact(4)
                    .map(|c| f64::from(f32::from_le_bytes(c.try_into().expect("4 bytes"))))
                    .collect(),
                safetensors::Dtype::F64 => {
                    raw.chunks_exact(8).map(|c| f64::from_le_bytes(c.try_into().expect("8 bytes"))).collect()
                }
                safetensors::Dtype::I64 => raw
                    .chunks_exact(8)
                    .map(|c| i64::from_le_bytes(c.try_into().expect("8 bytes")) as f64)
                    .collect(),
                other => panic!("{name}: {other:?}"),
            };
            (name, (dims, data))
        })
        .collect()
}

/// Largest absolute value.
pub fn magnitude(data: &[f64]) -> f64 {
    data.iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// Largest absolute difference to the reference.
pub fn difference(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "number of elements");
    got.iter().zip(want).fold(0.0, |m: f64, (g, w)| {
        let d = (f64::from(*g) - w).abs();
        if d.is_nan() { f64::INFINITY } else { m.max(d) }
    })
}

/// The `vdnnc` binary of this build, which cargo puts two folders above the test's own.
/// Builds it first, because cargo builds binaries only for tests of their own package.
pub fn vdnnc_binary() -> PathBuf {
    use std::sync::OnceLock;
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY
        .get_or_init(|| {
            let test = std::env::current_exe().expect("the test's path");
            let profile = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/test");
            let mut cargo = std::process::Command::new(env!("CARGO"));
            cargo.current_dir(root()).args(["build", "--quiet", "--package", "vdnnc"]);
            if profile.file_name().is_some_and(|n| n == "release") {
                cargo.arg("--release");
            }
            cargo.arg("--target-dir").arg(profile.parent().expect("target"));
            assert!(cargo.status().expect("cargo").success(), "building vdnnc");
            profile.join(format!("vdnnc{}", std::env::consts::EXE_SUFFIX))
        })
        .clone()
}
