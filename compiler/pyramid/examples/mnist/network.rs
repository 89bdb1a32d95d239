//! The MNIST network of a student project that fused layers on a GPU (four convolutions and a
//! fully connected layer), with weights of our own: random convolutions, the last layer fitted to
//! labelled images by ridge regression. Fused in several ways and layer by layer.

use std::ops::Range;
use std::path::{Path, PathBuf};
use vdnn_frontends::tensors::idx;
use vdnn_ir::Precision;
use vdnn_ir::random::splitmix64;
use vdnn_pyramid::interpret::interpret;
use vdnn_pyramid::{Chain, Counts, Kind, Layer, Mode, OperandUse, Pointwise, Program, Shape, Tiling, Window};

/// A way to run the convolutions: groups of layers with their tiles.
pub struct Variant {
    pub name: &'static str,
    groups: Vec<(Range<usize>, Program)>,
}

/// The convolutions with their weights.
pub struct Network {
    chain: Chain,
    /// Per layer weight and bias.
    parameters: Vec<[Vec<f32>; 2]>,
}

/// Images of 28 x 28, 0 to 1, and their digits.
pub struct Images {
    pub pixels: Vec<Vec<f32>>,
    pub labels: Vec<i64>,
}

/// The folder with the test images, if it is there.
pub fn folder() -> Option<PathBuf> {
    let data = std::env::var_os("VDNNC_TEST_DATA").map(PathBuf::from);
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    Some(data.unwrap_or_else(beside).join("mnist")).filter(|f| f.exists())
}

/// The first images of the folder's set.
pub fn images(folder: &Path, n: usize) -> Result<Images, String> {
    let pairs = idx::find(folder).map_err(|e| e.to_string())?;
    let set = idx::load(pairs.first().ok_or("no images")?).map_err(|e| e.to_string())?;
    let pixels = set.images.bytes().chunks_exact(28 * 28).take(n);
    let pixels = pixels.map(|image| image.iter().map(|&p| f32::from(p) / 255.0).collect());
    Ok(Images { pixels: pixels.collect(), labels: set.labels.i64().iter().copied().take(n).collect() })
}

impl Network {
    /// 1 to 6 channels 5x5 padding 2, to 16 4x4 stride 2, to 8 3x3 padding 1, to 4 3x3; ReLU
    /// behind each.
    pub fn new(seed: u64) -> Self {
        let conv = |out: u64, kernel: u64, stride: u64, padding: u64| {
            let window = Window::square(kernel, stride, padding);
            Layer { kind: Kind::Conv { window, groups: 1, out, bias: true }, then: vec![Pointwise::Relu] }
        };
        let layers = vec![conv(6, 5, 1, 2), conv(16, 4, 2, 0), conv(8, 3, 1, 1), conv(4, 3, 1, 0)];
        let input = Shape { channels: 1, height: 28, width: 28 };
        let chain = Chain::new(input, vec![], layers).expect("the layers fit");
        let parameters = (0..4).map(|l| {
            let random = |what: u64, n: u64, scale: f64| -> Vec<f32> {
                let stream = splitmix64(seed, 2 * l as u64 + what);
                let unit = |i| (splitmix64(stream, i) >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
                (0..n).map(|i| (scale * unit(i)) as f32).collect()
            };
            // Variance 2 / fan-in (He et al., ICCV 2015).
            let scale = (6.0 / chain.macs_per_element(l) as f64).sqrt();
            [random(0, chain.weight_elements(l), scale), random(1, chain.shapes()[l + 1].channels, 0.1)]
        });
        let parameters = parameters.collect();
        Self { chain, parameters }
    }

    /// Layer by layer first, then two, three, four layers and two pairs fused.
    pub fn variants(&self) -> Vec<Variant> {
        let whole = |l: usize| Tiling::square(self.chain.shapes()[l + 1].height);
        let walk = |rows: u64, cols: u64, step: u64| Tiling { rows, cols, mode: Mode::Reuse { step } };
        let t = Tiling::square;
        let list = [
            ("layer by layer", vec![(0..1, whole(0)), (1..2, whole(1)), (2..3, whole(2)), (3..4, whole(3))]),
            ("two fused", vec![(0..2, t(4)), (2..3, whole(2)), (3..4, whole(3))]),
            ("three fused", vec![(0..3, t(3)), (3..4, whole(3))]),
            ("four fused, 1x1", vec![(0..4, t(1))]),
            ("four fused, 4x4", vec![(0..4, t(4))]),
            ("four fused, rows", vec![(0..4, walk(11, 11, 1))]),
            ("two and two, 2x2", vec![(0..2, t(2)), (2..4, t(2))]),
        ];
        let program = |(layers, tiling): (Range<usize>, Tiling)| {
            let part = self.chain.part(layers.clone()).expect("layers of the chain");
            (layers, Program::new(&part, tiling, Precision::F32).expect("tiles that cut it"))
        };
        let variant =
            |(name, groups): (_, Vec<_>)| Variant { name, groups: groups.into_iter().map(program).collect() };
        list.into_iter().map(variant).collect()
    }

    /// What the convolutions make of an image, `[4,11,11]`, and what each group counted.
    pub fn features(&self, variant: &Variant, image: &[f32]) -> Result<(Vec<f32>, Vec<Counts>), String> {
        let mut x = image.to_vec();
        let mut counts = Vec::new();
        for (layers, program) in &variant.groups {
            let mut operands = vec![x.as_slice()];
            operands.extend(self.parameters[layers.clone()].iter().flatten().map(Vec::as_slice));
            let (y, counted) = interpret(program, &operands).map_err(|e| format!("{}: {e}", variant.name))?;
            counts.push(counted);
            x = y;
        }
        Ok((x, counts))
    }

    /// Multiply-adds of all layers, every position once.
    pub fn macs(&self) -> u64 {
        debug_assert_eq!(self.chain.operands()[0].of, OperandUse::Input);
        (0..4).map(|l| self.chain.macs(l)).sum()
    }
}

/// A fully connected layer from features to ten digits.
pub struct Classifier {
    /// Per digit the weights of the features and a constant.
    weights: Vec<Vec<f64>>,
}

impl Classifier {
    /// Ridge regression on one-hot labels: solves `(X'X + a I) W = X'Y` by Cholesky.
    pub fn fit(features: &[Vec<f32>], labels: &[i64]) -> Self {
        let n = features[0].len() + 1;
        let mut gram = vec![vec![0.0; n]; n];
        let mut right = vec![vec![0.0; n]; 10];
        for (x, &label) in features.iter().zip(labels) {
            let x = extended(x);
            for i in 0..n {
                for j in 0..=i {
                    gram[i][j] += x[i] * x[j];
                }
                right[label as usize][i] += x[i];
            }
        }
        for (i, row) in gram.iter_mut().enumerate() {
            row[i] += 50.0;
        }
        for i in 0..n {
            for j in 0..=i {
                let dot: f64 = (0..j).map(|k| gram[i][k] * gram[j][k]).sum();
                let v = gram[i][j] - dot;
                gram[i][j] = if i == j { v.sqrt() } else { v / gram[j][j] };
            }
        }
        for b in &mut right {
            for i in 0..n {
                let dot: f64 = (0..i).map(|k| gram[i][k] * b[k]).sum();
                b[i] = (b[i] - dot) / gram[i][i];
            }
            for i in (0..n).rev() {
                let dot: f64 = (i + 1..n).map(|k| gram[k][i] * b[k]).sum();
                b[i] = (b[i] - dot) / gram[i][i];
            }
        }
        Self { weights: right }
    }

    /// The digit.
    pub fn classify(&self, features: &[f32]) -> i64 {
        let x = extended(features);
        let score = |w: &Vec<f64>| w.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>();
        let scores: Vec<f64> = self.weights.iter().map(score).collect();
        let best = (0..10).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        best.map_or(-1, |d| d as i64)
    }
}

fn extended(features: &[f32]) -> Vec<f64> {
    features.iter().map(|&x| f64::from(x)).chain([1.0]).collect()
}
