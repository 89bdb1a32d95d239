//! Opening the executor that the command line asks for.

use super::run::default_threads;
use crate::cli::{ComputeBackend, CudaArgs};
use crate::error::Failure;
use std::path::PathBuf;
use vdnn_runtime::backend::Backend;
use vdnn_runtime::cpu::{CpuBackend, CpuOptions};
use vdnn_runtime::cuda::libs::LibrarySearch;
use vdnn_runtime::cuda::{CudaBackend, CudaError, CudaOptions, Measurer};

/// What the command line says about an executor.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// Which.
    pub backend: ComputeBackend,
    /// Of the CPU kernels.
    pub threads: Option<usize>,
    /// Poison undefined memory.
    pub poison: bool,
    /// Of the GPU.
    pub cuda: &'a CudaArgs,
    /// Only kernels whose results do not differ from run to run.
    pub deterministic: bool,
}

impl Choice<'_> {
    /// A fresh executor.
    ///
    /// # Errors
    /// If there is no such GPU, or a library for it is missing.
    pub fn open(&self) -> Result<Box<dyn Backend>, Failure> {
        Ok(match self.backend {
            ComputeBackend::Cpu => {
                let threads = self.threads.unwrap_or_else(default_threads);
                let options = CpuOptions { threads, poison: self.poison, ..CpuOptions::default() };
                Box::new(CpuBackend::new(options))
            }
            ComputeBackend::Cuda => Box::new(cuda(self.cuda, self.poison, self.deterministic)?),
        })
    }

    /// Fails if the GPU cannot be used, before any work is done for it.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn probe(&self) -> Result<(), Failure> {
        match self.backend {
            ComputeBackend::Cpu => Ok(()),
            ComputeBackend::Cuda => {
                CudaBackend::probe(&cuda_options(self.cuda, self.poison, self.deterministic))
                    .map_err(cuda_failure)
            }
        }
    }
}

/// Opens the GPU.
///
/// # Errors
/// If there is none, or a library is missing.
pub fn cuda(args: &CudaArgs, poison: bool, deterministic: bool) -> Result<CudaBackend, Failure> {
    CudaBackend::new(cuda_options(args, poison, deterministic)).map_err(cuda_failure)
}

/// Opens the GPU to time kernels on.
///
/// # Errors
/// As [`cuda`].
pub fn measurer(args: &CudaArgs) -> Result<Measurer, Failure> {
    Measurer::new(&cuda_options(args, false, false)).map_err(cuda_failure)
}

fn cuda_options(args: &CudaArgs, poison: bool, deterministic: bool) -> CudaOptions {
    CudaOptions {
        device: args.cuda_device.clone(),
        graph: !args.no_graph,
        poison,
        delay_seed: args.delay_seed,
        drop_wait: args.drop_wait,
        cache_dir: cache_dir(),
        libs: LibrarySearch::from_environment(&args.cuda_libs),
        deterministic,
    }
}

/// What the user reads when the GPU cannot be used.
fn cuda_failure(e: CudaError) -> Failure {
    let missing = matches!(e, CudaError::MissingLibrary { .. });
    let failure = Failure::user(format!("the CUDA backend is not available: {e}"));
    if missing {
        failure.hint("name the folder with --cuda-libs DIR; `vdnnc devices` shows what is found")
    } else {
        failure.hint("`vdnnc devices` shows the GPUs and libraries")
    }
}

/// Where compiled kernels are kept: the user's cache folder, if there is one.
fn cache_dir() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("vdnnc").join("kernels"))
}
