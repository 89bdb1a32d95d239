//! Options of `vdnnc reproduce`.

use super::{ComputeBackend, GpuArgs};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use vdnn_runtime::cuda::DeviceSelector;

/// `vdnnc reproduce`.
#[derive(Debug, Args)]
pub struct ReproduceArgs {
    /// vdnn: the figures of the vDNN paper (MICRO 2016). vdnn-seed: the memory of its open
    /// implementation. fused-layer: traffic, buffers and recomputation of fused-layer CNN
    /// accelerators (MICRO 2016). cusnn: zeros of feature maps, and what a GPU gains by leaving
    /// them out of 3x3 convolutions (PACT 2022).
    #[arg(value_name = "vdnn|vdnn-seed|fused-layer|cusnn")]
    pub what: Artefact,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Write each figure as bars into this folder.
    #[arg(long, value_name = "DIR")]
    pub svg: Option<PathBuf>,
    /// Of cusnn.
    #[command(flatten)]
    pub cusnn: CusnnArgs,
}

/// Options of `vdnnc reproduce cusnn`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of cusnn")]
pub struct CusnnArgs {
    /// ONNX models, or names of the zoo's networks, which get seeded random weights. Default:
    /// densenet169.onnx and resnet50-conv4.onnx of --data.
    #[arg(value_name = "MODEL|NAME")]
    pub models: Vec<String>,
    /// A folder with trained models, and images in images.npz.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Images: `rgb`, u8 [N, height, width, 3], or `input`, f32 as the models take them.
    /// Default: those of --data, else one of random pixels.
    #[arg(long, value_name = "FILE.npz")]
    pub images: Option<PathBuf>,
    /// What is made of `rgb`: torch (RGB over 255, less the mean, over the deviation of ImageNet),
    /// caffe (BGR less the means), raw (BGR as it is: what cuSNN's own program feeds), or auto:
    /// caffe for resnet50-conv4, else torch.
    #[arg(long, value_name = "auto|torch|caffe|raw", default_value = "auto")]
    pub preprocess: Preprocess,
    /// Images at most of which zeros are counted.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Images that are timed on the GPU.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    pub timed_images: u64,
    /// cuda: also time on a GPU, if there is one; cpu: count zeros only.
    #[arg(long, value_name = "cpu|cuda", default_value = "cuda")]
    pub backend: ComputeBackend,
    /// The GPU, by number or UUID.
    #[arg(long, value_name = "N|UUID")]
    pub cuda_device: Option<DeviceSelector>,
    /// Libraries and measured times.
    #[command(flatten)]
    pub gpu: GpuArgs,
}

/// What becomes of the pixels of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preprocess {
    /// By the model's name.
    Auto,
    /// RGB in 0 to 1, normalised.
    Torch,
    /// BGR in 0 to 255, centred.
    Caffe,
    /// BGR in 0 to 255.
    Raw,
}

/// What can be reproduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Artefact {
    /// Rhu et al., vDNN, MICRO 2016.
    Vdnn,
    /// `james98kr/vDNN_Implementation`.
    VdnnSeed,
    /// Alwani et al., Fused-Layer CNN Accelerators, MICRO 2016.
    FusedLayer,
    /// The artifact of cuSNN, PACT 2022.
    Cusnn,
}

impl Artefact {
    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vdnn => "vdnn",
            Self::VdnnSeed => "vdnn-seed",
            Self::FusedLayer => "fused-layer",
            Self::Cusnn => "cusnn",
        }
    }
}
