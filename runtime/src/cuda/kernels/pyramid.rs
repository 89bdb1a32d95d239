//! Pyramids: the kernel of a chain of layers, printed by `vdnn-pyramid` for its configuration.

use super::context::Cx;
use super::source::{Kernel, Source};
use super::step::{Args, Step};
use crate::cuda::error::CudaError;
use vdnn_ir::op::PyramidAttrs;
use vdnn_ir::{DType, Precision, TensorType};
use vdnn_pyramid::kernel::{Config, configs, kernel};
use vdnn_pyramid::machine::Machine;
use vdnn_pyramid::{OperandUse, chain_of};

/// Whose shared memory a pyramid without a configuration is printed for.
const MACHINE: &str = "h200";

/// A pyramid. Without a configuration, which plans always have, it runs as the one that is
/// predicted to be the fastest for which there is a kernel.
pub(super) fn pyramid(cx: &mut Cx<'_>, pyramid: &PyramidAttrs) -> Result<(), CudaError> {
    let inputs: Vec<&TensorType> = cx.spec.inputs.iter().map(|o| o.ty).collect();
    let Some(chain) = chain_of(pyramid, &inputs) else {
        return Err(cx.unsupported("a layer with numbers that no kernel takes"));
    };
    let (precision, x) = (cx.spec.precision, cx.input(0)?);
    // What the kernel will take the pointers for.
    let element = if precision == Precision::Bf16 { DType::BF16 } else { DType::F32 };
    for (operand, o) in chain.operands().iter().zip(cx.spec.inputs) {
        let wide = matches!(operand.of, OperandUse::Bias | OperandUse::Scale | OperandUse::Shift);
        if o.ty.dtype != if wide { DType::F32 } else { element } {
            return Err(cx.unsupported(format!("{:?} of type {} at {precision}", operand.of, o.ty)));
        }
    }
    let (layout, batch) = (x.ty.layout, x.ty.dims[0]);
    let made = |config: &Config| kernel(&chain, config, precision, layout, batch);
    let printed = if pyramid.config.is_empty() {
        let machine = Machine::named(MACHINE)
            .map(|machine| Machine { multiprocessors: u64::from(cx.processors), ..machine });
        let ways = machine.map(|m| configs(&chain, precision, layout, batch, &m)).unwrap_or_default();
        ways.iter().find_map(|c| made(c).ok()).ok_or_else(|| cx.unsupported("no configuration fits it"))?
    } else {
        let config = pyramid.config.parse().map_err(|e: String| cx.unsupported(e))?;
        made(&config).map_err(|e| cx.unsupported(e.to_string()))?
    };
    let mut args = Args::new();
    for i in 0..cx.spec.inputs.len() {
        args = args.ptr(cx.input(i)?.ptr);
    }
    let args = args.ptr(cx.output(0)?.ptr);
    let shared = u32::try_from(printed.shared.0)
        .map_err(|_| cx.unsupported(format!("{} of shared memory", printed.shared)))?;
    cx.push(Step {
        kernel: Kernel {
            source: Source::Pyramid,
            line: printed.source,
            name: printed.entry,
            target: printed.target,
        },
        grid: printed.grid,
        block: printed.threads,
        shared,
        args,
    });
    Ok(())
}
