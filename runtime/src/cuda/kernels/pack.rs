//! Copies over the link that leave zeros out ([`vdnn_ir::packed`]).

use super::modules::Modules;
use super::source::{Kernel, Source};
use super::step::{Args, Step};
use crate::cuda::error::CudaError;
use crate::cuda::launch::Prepared;
use cudarc::driver::sys::CUdeviceptr;
use vdnn_ir::packed::{CHUNK, can_pack};
use vdnn_ir::{DType, TensorType};
use vdnn_plan::CopyForm;

/// Chunks that a block does at a time, and its threads; the source calls it GROUPS.
const GROUPS: u64 = 4;
const THREADS: u32 = GROUPS as u32 * (CHUNK / 8) as u32;

/// Most blocks: each keeps a multiprocessor from the step.
const BLOCKS: u64 = 24;

/// The kernel that packs or unpacks a tensor of this type.
pub(super) fn step(
    form: CopyForm,
    tensor: &TensorType,
    from: CUdeviceptr,
    to: CUdeviceptr,
) -> Result<Step, CudaError> {
    let instance = match form {
        CopyForm::Pack => "PACK",
        CopyForm::Unpack => "UNPACK",
        CopyForm::Plain => "",
    };
    if instance.is_empty() || !can_pack(tensor) {
        return Err(CudaError::BadPlan { why: format!("a copy of {tensor} by kernels that pack") });
    }
    let element = if tensor.dtype == DType::BF16 { "u16" } else { "u32" };
    let blocks = tensor.elements().div_ceil(CHUNK * GROUPS).min(BLOCKS) as u32;
    let args = Args::new().ptr(from).u64(tensor.elements()).ptr(to);
    let kernel = Kernel::instance(Source::Pack, instance, element);
    Ok(Step { kernel, grid: [blocks, 1, 1], block: THREADS, shared: 0, args })
}

/// Prepares a copy of a tensor of this type that packs or unpacks it.
///
/// # Errors
/// [`CudaError::BadPlan`] for a plain copy or elements that are not packed; also if the kernel cannot
/// be compiled or loaded.
pub(crate) fn copy_packed(
    form: CopyForm,
    tensor: &TensorType,
    from: CUdeviceptr,
    to: CUdeviceptr,
    modules: &mut Modules,
) -> Result<Box<dyn Prepared>, CudaError> {
    Ok(Box::new(modules.bind(vec![step(form, tensor, from, to)?])?))
}
