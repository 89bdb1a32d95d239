//! Kernels for tests of a plan's waits.

use super::modules::Modules;
use super::source::{Kernel, Source};
use super::step::{Args, Step, THREADS};
use crate::cuda::error::CudaError;
use crate::cuda::launch::Prepared;
use cudarc::driver::sys::CUdeviceptr;

/// Blocks of a comparison: several for each multiprocessor of any device.
const BLOCKS: u64 = 1024;

/// A kernel of one thread that spins for as many nanoseconds as the 32-bit word at `length`
/// says when it runs.
pub(crate) fn delay_by(length: CUdeviceptr, modules: &mut Modules) -> Result<Box<dyn Prepared>, CudaError> {
    let kernel = Kernel::fixed(Source::Proof, "spin_for");
    let step = Step { kernel, grid: [1; 3], block: 1, shared: 0, args: Args::new().ptr(length) };
    Ok(Box::new(modules.bind(vec![step])?))
}

/// A kernel that fails when it runs; the context is lost with it.
pub(crate) fn trap(modules: &mut Modules) -> Result<Box<dyn Prepared>, CudaError> {
    let step = Step {
        kernel: Kernel::fixed(Source::Proof, "trap"),
        grid: [1; 3],
        block: 1,
        shared: 0,
        args: Args::new(),
    };
    Ok(Box::new(modules.bind(vec![step])?))
}

/// Adds to the 32-bit word at `found` how many of `words` 32-bit words differ.
pub(crate) fn count_different(
    a: CUdeviceptr,
    b: CUdeviceptr,
    words: u64,
    found: CUdeviceptr,
    modules: &mut Modules,
) -> Result<Box<dyn Prepared>, CudaError> {
    let blocks = words.div_ceil(u64::from(THREADS)).clamp(1, BLOCKS) as u32;
    let args = Args::new().ptr(a).ptr(b).u64(words).ptr(found);
    let step = Step::new(Kernel::fixed(Source::Proof, "count_different"), blocks, args);
    Ok(Box::new(modules.bind(vec![step])?))
}
