//! Labelled images in memory.

use crate::error::Failure;
use std::path::Path;
use vdnn_frontends::tensors::{idx, npz};
use vdnn_ir::{DType, Dims, Tensor};

/// Images `[N,C,H,W]` as f32 and one class label each.
#[derive(Debug)]
pub struct Dataset {
    /// Shape of one image, `[C,H,W]`.
    pub image_dims: Dims,
    images: Vec<f32>,
    /// Labels.
    pub labels: Vec<i64>,
}

impl Dataset {
    /// Reads a folder of IDX files or an `.npz`; bytes become `(b/255 - mean) / std`, floats
    /// `(x - mean) / std`.
    ///
    /// # Errors
    /// If there is no image and label array of one length.
    pub fn read(path: &Path, mean: f32, std: f32) -> Result<Self, Failure> {
        let fail = |e: &dyn std::fmt::Display| Failure::user(format!("{}: {e}", path.display()));
        if !std.is_finite() || std == 0.0 {
            return Err(Failure::user("--std must be a number other than 0"));
        }
        let (images, labels) = if path.is_dir() {
            read_folder(path)?
        } else {
            let arrays = npz::read(path).map_err(|e| fail(&e))?;
            let images = arrays.iter().find(|(_, t)| t.ty().rank() >= 3).map(|(_, t)| t.clone());
            let labels = arrays
                .iter()
                .find(|(_, t)| t.ty().rank() == 1 && !t.ty().dtype.is_float())
                .map(|(_, t)| t.clone());
            match (images, labels) {
                (Some(i), Some(l)) => (i, l),
                _ => {
                    return Err(fail(
                        &"needs an image array of rank 3 or 4 and an integer label array of rank 1",
                    ));
                }
            }
        };
        Self::new(&images, &labels, mean, std).map_err(|e| fail(&e))
    }

    fn new(images: &Tensor, labels: &Tensor, mean: f32, std: f32) -> Result<Self, String> {
        let dims = &images.ty().dims;
        let labels = integers(labels).ok_or("labels must be integers")?;
        if dims.first() != Some(&(labels.len() as u64)) {
            return Err(format!("{} images but {} labels", dims.first().unwrap_or(&0), labels.len()));
        }
        let scale: Vec<f32> = match images.ty().dtype {
            DType::U8 => images.bytes().iter().map(|&b| (f32::from(b) / 255.0 - mean) / std).collect(),
            DType::F32 => images.f32().iter().map(|&x| (x - mean) / std).collect(),
            other => return Err(format!("images of type {other}; u8 or f32 is needed")),
        };
        let (image_dims, images): (Dims, Vec<f32>) = match dims.as_slice() {
            [_, h, w] => ([1, *h, *w].as_slice().into(), scale),
            // Channels last (what image libraries write) is told by an extent of 1 or 3 at the end.
            [n, h, w, c @ (1 | 3)] if dims[1] > 4 => {
                ([*c, *h, *w].as_slice().into(), channels_first(&scale, *n, h * w, *c))
            }
            [_, c, h, w] => ([*c, *h, *w].as_slice().into(), scale),
            _ => return Err(format!("images of rank {}; 3 or 4 is needed", dims.len())),
        };
        Ok(Self { image_dims, images, labels })
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True without samples.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The samples `indices` as one batch: images and i64 labels.
    pub fn batch(&self, indices: &[usize]) -> (Tensor, Tensor) {
        let size = self.images.len() / self.labels.len().max(1);
        let mut pixels = Vec::with_capacity(size * indices.len());
        for &i in indices {
            pixels.extend_from_slice(&self.images[i * size..(i + 1) * size]);
        }
        let labels: Vec<i64> = indices.iter().map(|&i| self.labels[i]).collect();
        let n = indices.len() as u64;
        let dims = std::iter::once(n).chain(self.image_dims.iter().copied());
        (Tensor::from_f32(dims, &pixels), Tensor::from_i64([n], &labels))
    }
}

fn channels_first(data: &[f32], n: u64, pixels: u64, c: u64) -> Vec<f32> {
    let (n, pixels, c) = (n as usize, pixels as usize, c as usize);
    let mut out = Vec::with_capacity(data.len());
    for image in 0..n {
        for channel in 0..c {
            for p in 0..pixels {
                out.push(data[(image * pixels + p) * c + channel]);
            }
        }
    }
    out
}

/// All IDX pairs of a folder, one after the other.
fn read_folder(path: &Path) -> Result<(Tensor, Tensor), Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::user(format!("{}: {e}", path.display()));
    let mut all: Option<(Tensor, Tensor)> = None;
    for pair in idx::find(path).map_err(Failure::user)? {
        let set = idx::load(&pair).map_err(Failure::user)?;
        all = Some(match all {
            None => (set.images, set.labels),
            Some((images, labels)) => {
                let joined = append(&images, &set.images).zip(append(&labels, &set.labels));
                joined.ok_or_else(|| fail(&"the IDX files hold images of different sizes"))?
            }
        });
    }
    all.ok_or_else(|| fail(&"holds no *-images-idx3-ubyte and *-labels-idx1-ubyte files"))
}

/// The rows of two tensors of one row type, or `None`.
pub fn append(a: &Tensor, b: &Tensor) -> Option<Tensor> {
    let (x, y) = (a.ty(), b.ty());
    if x.dtype != y.dtype || x.dims.is_empty() || x.dims.len() != y.dims.len() || x.dims[1..] != y.dims[1..] {
        return None;
    }
    let mut ty = x.clone();
    ty.dims[0] += y.dims[0];
    Tensor::from_bytes(ty, &[a.bytes(), b.bytes()].concat())
}

/// The elements of an integer tensor.
pub fn integers(t: &Tensor) -> Option<Vec<i64>> {
    Some(match t.ty().dtype {
        DType::I64 => t.i64().to_vec(),
        DType::I32 => t
            .bytes()
            .chunks_exact(4)
            .map(|c| i64::from(i32::from_le_bytes([c[0], c[1], c[2], c[3]])))
            .collect(),
        DType::U8 | DType::Bool => t.bytes().iter().map(|&b| i64::from(b)).collect(),
        _ => return None,
    })
}
