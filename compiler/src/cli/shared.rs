//! From the options that every compilation takes to what a compilation needs to know.

use super::{DeviceName, Elision, SharedArgs};
use crate::error::Failure;
use crate::options::CompileOptions;
use crate::slicing::Slices;
use clap::Parser;
use std::collections::BTreeMap;
use vdnn_cost::Precision;
use vdnn_ir::{Bytes, Mode};
use vdnn_passes::sparsify::Sparse;
use vdnn_passes::streams::Streams;
use vdnn_passes::{AlgoMode, Fuse};
use vdnn_runtime::cuda::DeviceSelector;

/// A command of nothing but shared options.
#[derive(Parser)]
#[command(no_binary_name = true)]
struct Alone {
    #[command(flatten)]
    shared: SharedArgs,
}

impl SharedArgs {
    /// Those of these words, as on the command line; the others have their defaults.
    ///
    /// # Errors
    /// What is wrong with a word.
    pub fn of<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, Failure> {
        let alone = Alone::try_parse_from(words).map_err(|e| {
            let text = e.to_string();
            Failure::user(text.lines().next().unwrap_or_default().trim_start_matches("error: "))
        })?;
        Ok(alone.shared)
    }

    /// The typed options.
    pub fn options(&self, mode: Mode) -> CompileOptions {
        CompileOptions {
            mode,
            policy: self.policy,
            algo: self.algo.unwrap_or(AlgoMode::Dynamic),
            batch: self.batch,
            dims: self.dims.iter().cloned().collect(),
            device: self.device.to_string(),
            memory: self.memory,
            overhead: Bytes::ZERO,
            host_memory: self.host_memory,
            deterministic: self.deterministic,
            kernels: BTreeMap::new(),
            kernels_made_for: None,
            micro_batch: self.micro.micro_batch,
            workspace: self.micro.bound(),
            sync: self.sync,
            packing: self.pack_offload,
            precision: self.precision.unwrap_or(Precision::F32),
            fuse: self.fuse.unwrap_or(Fuse::Off),
            recompute: self.recompute,
            sparse: Sparse { on_host: self.device.to_string() == "cpu", ..self.sparse.sparse() },
            fuse_depth: self.fuse_depth,
            fuse_footprint: None,
            thorough_layout: false,
            slices: self.micro_batch_regions,
            streams: self.streams.unwrap_or(Streams::Count(1)),
            keep_gradients: self.keep_gradients,
            elide_waits: !self.no_elide.contains(&Elision::Waits),
            elide_copies: !self.no_elide.contains(&Elision::Copies),
        }
    }

    /// The GPU at hand that the plan is for, if it is for one.
    pub fn gpu_at_hand(&self) -> Option<&DeviceSelector> {
        match &self.device {
            DeviceName::Gpu(selector) => Some(selector),
            DeviceName::Profile(_) | DeviceName::File(_) => None,
        }
    }

    /// The same where the CPU is to run the plan: its kernels need no workspace.
    pub fn options_on_cpu(&self, mode: Mode) -> CompileOptions {
        let options = self.options(mode);
        let sparse = Sparse { on_host: true, ..options.sparse };
        CompileOptions { algo: self.algo.unwrap_or(AlgoMode::Memory), sparse, ..options }
    }

    /// The same where a GPU is to run the plan, which has other defaults.
    pub fn options_on_gpu(&self, mode: Mode) -> CompileOptions {
        CompileOptions {
            precision: self.precision.unwrap_or(Precision::Tf32),
            fuse: self.fuse.unwrap_or(Fuse::Auto),
            // More streams take more memory, which slices are there to save.
            streams: self.streams.unwrap_or(match self.micro_batch_regions {
                Slices::Off => Streams::Auto,
                _ => Streams::Count(1),
            }),
            ..self.options(mode)
        }
    }
}

pub(super) fn parse_dim(text: &str) -> Result<(String, u64), String> {
    let error = || format!("`{text}` is not NAME=N with a positive N");
    let (name, n) = text.split_once('=').ok_or_else(error)?;
    let n: u64 = n.parse().map_err(|_| error())?;
    if name.is_empty() || n == 0 {
        return Err(error());
    }
    Ok((name.to_owned(), n))
}

pub(crate) fn parse_depth(text: &str) -> Result<usize, String> {
    let depth = text.parse().ok().filter(|n| (1..=8).contains(n));
    depth.ok_or_else(|| format!("`{text}` is not a number of convolutions from 1 to 8"))
}

pub(super) fn parse_precision(text: &str) -> Result<Precision, String> {
    match text {
        "f32" => Ok(Precision::F32),
        "tf32" => Ok(Precision::Tf32),
        "bf16" => Ok(Precision::Bf16),
        _ => Err(format!("`{text}` is not a precision; choose f32, tf32 or bf16")),
    }
}
