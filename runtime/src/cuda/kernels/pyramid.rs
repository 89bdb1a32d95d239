//! Pyramids: the kernel of a chain of layers, or of a stage of blocks, printed by `vdnn-pyramid` for
//! its configuration.

use super::context::Cx;
use super::source::{Kernel, Source};
use super::step::{Args, ITEMS, Step, THREADS};
use crate::cuda::error::CudaError;
use cudarc::driver::sys::CUdeviceptr;
use vdnn_ir::op::PyramidAttrs;
use vdnn_ir::{DType, Precision, TensorType};
use vdnn_pyramid::kernel::{self as printed, Config, configs, kernel};
use vdnn_pyramid::machine::Machine;
use vdnn_pyramid::stage::{self, Stage, StageConfig, stage_of};
use vdnn_pyramid::{OperandUse, chain_of};

/// Whose shared memory a pyramid without a configuration is printed for.
const MACHINE: &str = "h200";

/// A pyramid. Without a configuration, which plans always have, it runs as the one that is
/// predicted to be the fastest for which there is a kernel.
pub(super) fn pyramid(cx: &mut Cx<'_>, pyramid: &PyramidAttrs) -> Result<(), CudaError> {
    let inputs: Vec<&TensorType> = cx.spec.inputs.iter().map(|o| o.ty).collect();
    if let Some(found) = stage_of(pyramid, &inputs) {
        return match pyramid.config.parse() {
            Ok(Config::Stage(config)) => blocks(cx, &found, config),
            _ => Err(cx.unsupported("a stage needs a configuration, and with it a workspace")),
        };
    }
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
    launch(cx, printed, &[])
}

/// A stage of blocks, whose counters start at zero.
fn blocks(cx: &mut Cx<'_>, found: &Stage, config: StageConfig) -> Result<(), CudaError> {
    let x = cx.input(0)?;
    let (layout, batch) = (x.ty.layout, x.ty.dims[0]);
    let printed = stage::kernel(found, &config, cx.spec.precision, layout, batch)
        .map_err(|e| cx.unsupported(e.to_string()))?;
    // Blocks wait for one another.
    if config.blocks > cx.processors {
        let why = format!("{} blocks that run at once on {} multiprocessors", config.blocks, cx.processors);
        return Err(cx.unsupported(why));
    }
    let need = stage::workspace(found, &config, batch);
    let Some(workspace) = cx.spec.workspace.filter(|w| w.bytes >= need && w.ptr.is_multiple_of(16)) else {
        return Err(cx.unsupported(format!("a workspace of less than {need}")));
    };
    let words = stage::counters(found, batch).0 / 4;
    let fills = u32::try_from((words / 4).div_ceil(u64::from(THREADS * ITEMS)))
        .map_err(|_| cx.unsupported("a batch of so many images"))?;
    let args = Args::new().ptr(workspace.ptr).u32(0).u64(words);
    cx.push(Step::new(Kernel::fixed(Source::Update, "fill32"), fills, args));
    launch(cx, printed, &[workspace.ptr])
}

/// The launch of a kernel: operands, the result, and what else it takes.
fn launch(cx: &mut Cx<'_>, printed: printed::Kernel, more: &[CUdeviceptr]) -> Result<(), CudaError> {
    let mut args = Args::new();
    for i in 0..cx.spec.inputs.len() {
        args = args.ptr(cx.input(i)?.ptr);
    }
    let args = more.iter().fold(args.ptr(cx.output(0)?.ptr), |args, &at| args.ptr(at));
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
