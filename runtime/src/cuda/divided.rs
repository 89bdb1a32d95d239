//! Convolutions whose batch is divided: one launch per micro-batch, in order on one stream, in
//! the one workspace. Images are found by their addresses; the parts of a weight gradient are
//! added by the launches themselves. Nothing waits between them, so all are part of a captured
//! step.

use super::cudnn::{self, Dnn};
use super::error::CudaError;
use super::kernels::{self, Modules};
use super::launch::{LaunchSpec, Operand, Prepared};
use cudarc::driver::sys::CUstream;
use vdnn_ir::slices::{batch, conv_slice, image_bytes, input_has_images, output_has_images};
use vdnn_ir::{ConvSchedule, TensorType};

/// Launches one after the other.
#[derive(Debug)]
struct Sequence(Vec<Box<dyn Prepared>>);

impl Prepared for Sequence {
    fn enqueue(&self, stream: CUstream) -> Result<(), CudaError> {
        self.0.iter().try_for_each(|launch| launch.enqueue(stream))
    }
}

/// Prepares every micro-batch of a convolution.
///
/// # Errors
/// Those of [`cudnn::prepare`] for each; [`CudaError::BadPlan`] if the schedule is not of the
/// batch.
pub(super) fn prepare(
    spec: &LaunchSpec<'_>,
    schedule: &ConvSchedule,
    dnn: &Dnn,
    modules: &mut Modules,
) -> Result<Box<dyn Prepared>, CudaError> {
    let bad = || CudaError::BadPlan {
        why: format!("`{}`: {schedule} is no division of this convolution's batch", spec.name),
    };
    let inputs: Vec<&TensorType> = spec.inputs.iter().map(|o| o.ty).collect();
    let outputs: Vec<&TensorType> = spec.outputs.iter().map(|o| o.ty).collect();
    let images = batch(spec.op, &inputs).filter(|&n| schedule.covers(n)).ok_or_else(bad)?;
    let mut launches = Vec::new();
    for (algo, range) in schedule.slices(images) {
        let slice = conv_slice(spec.op, &inputs, &outputs, range.end - range.start).ok_or_else(bad)?;
        let operand = |whole: &Operand<'_>, ty, moves: bool| {
            let offset = if moves { image_bytes(whole.ty, range.start).0 } else { 0 };
            Operand { ty, ptr: whole.ptr + offset }
        };
        let ins: Vec<Operand<'_>> = spec
            .inputs
            .iter()
            .zip(&slice.inputs)
            .enumerate()
            .map(|(i, (whole, ty))| operand(whole, ty, input_has_images(spec.op, i)))
            .collect();
        let outs: Vec<Operand<'_>> = spec
            .outputs
            .iter()
            .zip(&slice.outputs)
            .map(|(whole, ty)| operand(whole, ty, output_has_images(spec.op)))
            .collect();
        let part = LaunchSpec {
            op: &slice.op,
            inputs: &ins,
            outputs: &outs,
            algo: Some(algo),
            accumulate: !output_has_images(spec.op) && range.start > 0,
            ..*spec
        };
        launches.push(cudnn::prepare(&part, dnn, &mut || kernels::epilogue(&part, modules))?);
    }
    Ok(Box::new(Sequence(launches)))
}
