//! The images of `vdnnc reproduce cusnn`, as the networks take them.

use crate::cli::Preprocess;
use crate::error::Failure;
use std::path::Path;
use vdnn_frontends::tensors::npz;
use vdnn_ir::random::splitmix64;
use vdnn_ir::{DType, Tensor, TensorType};

/// Images before they are made what a model takes.
#[derive(Debug)]
pub(super) enum Images {
    /// u8 `[N, height, width, 3]`, red first.
    Rgb(Tensor),
    /// f32, as the model takes them.
    Ready(Tensor),
    /// One of random pixels, of the model's size.
    Random,
}

impl Images {
    /// Those of an archive: `rgb`, else `input`.
    ///
    /// # Errors
    /// If it cannot be read or has neither.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let fail = |e: &dyn std::fmt::Display| Failure::user(format!("{}: {e}", path.display()));
        let mut all = npz::read(path).map_err(|e| fail(&e))?;
        if let Some(rgb) = all.remove("rgb") {
            let ty = rgb.ty();
            if ty.dtype != DType::U8 || ty.rank() != 4 || ty.dims[3] != 3 {
                return Err(fail(&format!("`rgb` is {ty}, not u8 [N, height, width, 3]")));
            }
            return Ok(Self::Rgb(rgb));
        }
        let input = all.remove("input").filter(|t| t.ty().dtype == DType::F32);
        input.map(Self::Ready).ok_or_else(|| fail(&"no u8 array `rgb` and no f32 array `input`"))
    }

    /// The first `limit` images for a model whose input is `ty` (a batch of one), and what was
    /// done with them.
    ///
    /// # Errors
    /// If they are of another size.
    pub(super) fn for_model(
        &self,
        ty: &TensorType,
        model: &str,
        how: Preprocess,
        limit: Option<u64>,
    ) -> Result<(Tensor, &'static str), Failure> {
        let how = match how {
            Preprocess::Auto if model == "resnet50-conv4" => Preprocess::Caffe,
            Preprocess::Auto => Preprocess::Torch,
            other => other,
        };
        let take = |n: u64| n.min(limit.unwrap_or(n));
        match self {
            Self::Ready(t) => {
                let rank = t.ty().rank().max(1);
                let n = t.ty().dims.first().copied().unwrap_or(0);
                let mut dims = t.ty().dims.clone();
                if rank > 1 {
                    dims[0] = take(n);
                }
                let ty = TensorType::new(DType::F32, dims);
                let bytes = t.bytes().get(..ty.bytes().0 as usize);
                let first = bytes.and_then(|b| Tensor::from_bytes(ty, b));
                Ok((first.ok_or_else(|| Failure::user("`input` has no images"))?, "as given"))
            }
            Self::Rgb(t) => {
                let fits = ty.rank() == 4 && ty.dims[1] == 3 && t.ty().dims[1..3] == ty.dims[2..];
                if !fits {
                    return Err(Failure::user(format!(
                        "the images are {}, the model's input is {ty}",
                        t.ty()
                    )));
                }
                let n = take(t.ty().dims[0]);
                Ok((planes(t.bytes(), [n, ty.dims[2], ty.dims[3]], how), name(how)))
            }
            Self::Random => {
                let &[_, 3, height, width] = ty.dims.as_slice() else {
                    let values: Vec<f32> = (0..ty.elements()).map(|i| unit(splitmix64(7, i))).collect();
                    return Ok((Tensor::from_f32(ty.dims.iter().copied(), &values), "random"));
                };
                let pixels: Vec<u8> =
                    (0..3 * height * width).map(|i| (splitmix64(7, i) >> 56) as u8).collect();
                Ok((planes(&pixels, [1, height, width], how), name(how)))
            }
        }
    }
}

/// From -1 to 1.
fn unit(bits: u64) -> f32 {
    (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

fn name(how: Preprocess) -> &'static str {
    match how {
        Preprocess::Auto | Preprocess::Torch => "torch",
        Preprocess::Caffe => "caffe",
        Preprocess::Raw => "raw",
    }
}

/// f32 `[N, 3, height, width]` of RGB pixels.
fn planes(rgb: &[u8], [n, height, width]: [u64; 3], how: Preprocess) -> Tensor {
    let value = |channel: usize, pixel: &[u8]| -> f32 {
        match how {
            Preprocess::Auto | Preprocess::Torch => {
                let (mean, deviation) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
                (f32::from(pixel[channel]) / 255.0 - mean[channel]) / deviation[channel]
            }
            Preprocess::Caffe => f32::from(pixel[2 - channel]) - [103.939, 116.779, 123.68][channel],
            Preprocess::Raw => f32::from(pixel[2 - channel]),
        }
    };
    let area = (height * width) as usize;
    let mut values = Vec::with_capacity(n as usize * 3 * area);
    for image in rgb.chunks_exact(3 * area).take(n as usize) {
        for channel in 0..3 {
            values.extend(image.chunks_exact(3).map(|pixel| value(channel, pixel)));
        }
    }
    Tensor::from_f32([n, 3, height, width], &values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_become_planes_in_the_order_and_range_of_the_network() {
        // Two images of one row and two pixels.
        let rgb = [255, 0, 128, 10, 20, 30, 1, 2, 3, 4, 5, 6];
        let images = Images::Rgb(
            Tensor::from_bytes(TensorType::new(DType::U8, [2, 1, 2, 3]), &rgb).expect("twelve bytes"),
        );
        let ty = TensorType::f32([1, 3, 1, 2]);
        let of = |model: &str, how, limit| images.for_model(&ty, model, how, limit).expect("they fit");
        let (raw, name) = of("x", Preprocess::Raw, None);
        assert_eq!((name, raw.ty()), ("raw", &TensorType::f32([2, 3, 1, 2])));
        assert_eq!(raw.f32(), [128., 30., 0., 20., 255., 10., 3., 6., 2., 5., 1., 4.]);
        let (caffe, name) = of("resnet50-conv4", Preprocess::Auto, Some(1));
        assert_eq!((name, caffe.ty().dims[0]), ("caffe", 1));
        assert_eq!(caffe.f32()[..2], [128.0 - 103.939, 30.0 - 103.939]);
        let (torch, name) = of("densenet169", Preprocess::Auto, Some(9));
        assert_eq!((name, torch.ty().dims[0]), ("torch", 2));
        assert!((torch.f32()[0] - (1.0 - 0.485) / 0.229).abs() < 1e-6);
        assert!((torch.f32()[4] - (128.0 / 255.0 - 0.406) / 0.225).abs() < 1e-6);
        let other = TensorType::f32([1, 3, 2, 2]);
        assert!(images.for_model(&other, "x", Preprocess::Auto, None).is_err());
        let (random, _) = Images::Random.for_model(&other, "x", Preprocess::Raw, None).expect("any size");
        assert!(random.f32().iter().all(|v| (0.0..256.0).contains(v)) && random.f32()[0] != random.f32()[1]);
    }
}
