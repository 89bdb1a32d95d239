//! `vdnnc profile MODEL…`: times every kernel the models need on the GPU at hand.

use super::backend;
use super::bench::open;
use super::load;
use crate::cli::ProfileArgs;
use crate::error::Failure;
use crate::pipeline;
use crate::progress::Progress;
use crate::timing::Timings;
use std::io::Write;
use std::path::Path;
use vdnn_cost::Measured;
use vdnn_frontends::safe_file::write_atomic;
use vdnn_ir::{Graph, Op, Stage, TensorType};
use vdnn_runtime::cuda::MeasureLimits;

/// One kernel to time.
struct Kernel {
    op: Op,
    inputs: Vec<TensorType>,
    outputs: Vec<TensorType>,
}

impl Kernel {
    fn types(&self) -> (Vec<&TensorType>, Vec<&TensorType>) {
        (self.inputs.iter().collect(), self.outputs.iter().collect())
    }
}

/// Runs the command. What was measured is written after every model, so that an interrupted
/// run can be taken up again.
///
/// # Errors
/// What the user should read.
pub fn run(args: &ProfileArgs) -> Result<(), Failure> {
    let mut measurer = backend::measurer(&args.cuda)?;
    let limits = if args.quick {
        MeasureLimits { ranked: 5, fallback: 1, others: 0, repeats: 8, ..MeasureLimits::default() }
    } else {
        MeasureLimits::default()
    };
    let on = measurer.on(&args.date);
    let mut table = match load::times(&args.output) {
        Ok(table) if table.on.device == on.device && table.on.cudnn == on.cudnn => table,
        Ok(other) => {
            return Err(Failure::user(format!(
                "{} holds times of {} with cuDNN {}; this is {} with {}",
                args.output.display(),
                other.on.device,
                other.on.cudnn,
                on.device,
                on.cudnn
            ))
            .hint("give another -o file"));
        }
        Err(_) if !args.output.exists() => Measured::new(on),
        Err(e) => return Err(e),
    };
    for target in &args.targets {
        let options = args.shared.options_on_gpu(args.mode);
        let cost = load::cost_model(&options.device, options.precision)?;
        let model = open(target, args.mode, args.seed, &options)?;
        let mut graph = model.imported.graph.clone();
        pipeline::to_joint(
            &mut graph,
            args.mode,
            options.keep_gradients,
            options.fuse,
            &cost,
            &mut Timings::default(),
        )?;
        let kernels = kernels(&graph);
        let progress = Progress::new(kernels.len() as u64, target);
        let mut skipped = Vec::new();
        for kernel in &kernels {
            let (inputs, outputs) = kernel.types();
            if table.rows(&kernel.op, &inputs, &outputs, options.precision).is_none() {
                match measurer.measure(&kernel.op, &inputs, &outputs, options.precision, &limits) {
                    Ok(rows) => {
                        for row in rows {
                            table.insert(&kernel.op, &inputs, &outputs, options.precision, row);
                        }
                    }
                    Err(e) => skipped.push(format!("{}: {e}", kernel.op.name())),
                }
            }
            progress.tick(kernel.op.name());
        }
        progress.finish();
        write(&args.output, &table)?;
        super::print(&format!("{target}: {} kernels, {} rows in the table", kernels.len(), table.len()));
        for text in skipped {
            super::print(&format!("  not measured: {text}"));
        }
    }
    Ok(())
}

/// Every kernel of a joint graph, each once.
fn kernels(graph: &Graph) -> Vec<Kernel> {
    let mut all: Vec<Kernel> = Vec::new();
    for (_, node) in graph.nodes() {
        if node.stage == Stage::Setup || node.op.is_transfer() || !node.op.views().is_empty() {
            continue;
        }
        let types = |list: &[vdnn_ir::ValueId]| list.iter().map(|&v| graph.ty(v).clone()).collect();
        let kernel =
            Kernel { op: node.op.clone(), inputs: types(&node.inputs), outputs: types(&node.outputs) };
        let known =
            all.iter().any(|k| k.op == kernel.op && k.inputs == kernel.inputs && k.outputs == kernel.outputs);
        if !known {
            all.push(kernel);
        }
    }
    all
}

fn write(path: &Path, table: &Measured) -> Result<(), Failure> {
    write_atomic(path, |w| w.write_all(table.to_string().as_bytes()))
        .map_err(|e| Failure::user(format!("{}: {e}", path.display())))
}
