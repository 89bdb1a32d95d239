//! Opening the executor that the command line asks for.

use super::run::default_threads;
use crate::cli::{ComputeBackend, CudaArgs, SharedArgs};
use crate::error::Failure;
use crate::measuring::{Kernel, KernelTimer, TimerError};
use std::path::PathBuf;
use vdnn_cost::{MeasuredOn, MeasuredRow, Precision};
use vdnn_ir::{Bytes, ConvSchedule, Nanos};
use vdnn_runtime::backend::Backend;
use vdnn_runtime::cpu::{CpuBackend, CpuOptions};
use vdnn_runtime::cuda::libs::LibrarySearch;
use vdnn_runtime::cuda::{
    self, CudaBackend, CudaError, CudaOptions, DeviceFacts, DeviceSelector, MeasureLimits, Measurer,
};

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
    /// What plans are made for.
    pub shared: &'a SharedArgs,
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
            ComputeBackend::Cuda => Box::new(cuda(self.cuda, self.shared, self.poison)?),
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
                CudaBackend::probe(&cuda_options(self.cuda, self.shared, self.poison)).map_err(cuda_failure)
            }
        }
    }
}

/// Opens the GPU.
///
/// # Errors
/// If there is none, or a library is missing.
pub fn cuda(args: &CudaArgs, shared: &SharedArgs, poison: bool) -> Result<CudaBackend, Failure> {
    CudaBackend::new(cuda_options(args, shared, poison)).map_err(cuda_failure)
}

fn cuda_options(args: &CudaArgs, shared: &SharedArgs, poison: bool) -> CudaOptions {
    CudaOptions {
        graph: !args.no_graph,
        poison,
        delay_seed: args.delay_seed,
        drop_wait: args.drop_wait,
        fail_launch: args.fail_launch,
        deterministic: shared.deterministic,
        ..options(shared, &selector(args, shared))
    }
}

/// The GPU that runs: the one named to run, else the one planned for, else the first.
pub fn selector(args: &CudaArgs, shared: &SharedArgs) -> DeviceSelector {
    args.cuda_device.as_ref().or(shared.gpu_at_hand()).cloned().unwrap_or_default()
}

fn options(shared: &SharedArgs, device: &DeviceSelector) -> CudaOptions {
    CudaOptions {
        device: device.clone(),
        cache_dir: cache_folder().map(|folder| folder.join("kernels")),
        libs: LibrarySearch::from_environment(&shared.gpu.cuda_libs),
        ..CudaOptions::default()
    }
}

/// A GPU, and what its times are kept under; makes no context.
///
/// # Errors
/// If there is no such GPU, or a library is missing.
pub fn identify(
    shared: &SharedArgs,
    device: &DeviceSelector,
    date: &str,
) -> Result<(DeviceFacts, MeasuredOn), Failure> {
    cuda::identify(&options(shared, device), date).map_err(cuda_failure)
}

/// Opens a GPU to time things on.
///
/// # Errors
/// If there is none, or a library is missing.
pub fn measurer(shared: &SharedArgs, device: &DeviceSelector) -> Result<Measurer, Failure> {
    Measurer::new(&options(shared, device)).map_err(cuda_failure)
}

/// Times kernels on a GPU, which is opened for the first of them.
#[derive(Debug)]
pub struct LazyTimer {
    options: CudaOptions,
    limits: MeasureLimits,
    measurer: Option<Measurer>,
}

impl LazyTimer {
    /// Tries everything.
    pub fn thorough(shared: &SharedArgs, device: &DeviceSelector) -> Self {
        Self { options: options(shared, device), limits: MeasureLimits::default(), measurer: None }
    }

    /// Tries few convolution engines.
    pub fn quick(shared: &SharedArgs, device: &DeviceSelector) -> Self {
        let few = MeasureLimits { ranked: 5, fallback: 1, others: 0, repeats: 8, ..MeasureLimits::default() };
        Self { limits: few, ..Self::thorough(shared, device) }
    }

    fn open(&mut self) -> Result<&mut Measurer, Failure> {
        if self.measurer.is_none() {
            self.measurer = Some(Measurer::new(&self.options).map_err(cuda_failure)?);
        }
        self.measurer.as_mut().ok_or_else(|| Failure::internal("it was just opened"))
    }
}

impl LazyTimer {
    /// Time of a convolution as a schedule runs it, all micro-batches one after the other.
    /// `None` if this device or library cannot run it.
    ///
    /// # Errors
    /// If there is no device, or it fails.
    pub fn schedule(
        &mut self,
        kernel: &Kernel,
        precision: Precision,
        schedule: &ConvSchedule,
        workspace: Bytes,
    ) -> Result<Option<Nanos>, Failure> {
        let limits = self.limits;
        let measurer = self.open()?;
        let (inputs, outputs) = kernel.types();
        match measurer
            .measure_schedule(&kernel.op, &inputs, &outputs, precision, schedule, workspace, &limits)
        {
            Ok(time) => Ok(Some(time)),
            Err(e @ CudaError::Driver { .. }) => {
                Err(Failure::user(format!("running {} as {schedule}: {e}", kernel.describe())))
            }
            Err(_) => Ok(None),
        }
    }
}

impl KernelTimer for LazyTimer {
    fn time(&mut self, kernel: &Kernel, precision: Precision) -> Result<Vec<MeasuredRow>, TimerError> {
        let limits = self.limits;
        let measurer = self.open().map_err(TimerError::Device)?;
        let (inputs, outputs) = kernel.types();
        measurer.measure(&kernel.op, &inputs, &outputs, precision, &limits).map_err(|e| match e {
            // The device itself is in a bad state; nothing after this would be true.
            CudaError::Driver { .. } => {
                TimerError::Device(Failure::user(format!("measuring {}: {e}", kernel.describe())))
            }
            other => TimerError::Kernel(other.to_string()),
        })
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

/// Where compiled kernels and measured times are kept: in the user's cache folder, if there is
/// one.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("vdnnc"))
}
