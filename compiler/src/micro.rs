//! Measuring micro-batches: of the convolutions that a division could help, the sizes the
//! options allow, largest first, until they are small enough.

use crate::error::Failure;
use crate::measuring::{Filled, Kernel, KernelTimer, fill};
use crate::progress::Progress;
use vdnn_cost::measured::NOT_CAPTURED;
use vdnn_cost::{Measured, MeasuredOn, Precision};
use vdnn_ir::Bytes;
use vdnn_ir::slices::{ConvSlice, batch, conv_slice};
use vdnn_passes::micro_batch::sizes;
use vdnn_passes::{BatchSizes, Workspace};

/// A planned workspace is hardly ever smaller than this.
const SMALL: Bytes = Bytes(8 << 20);

/// Workspace below which no convolution needs to be divided under a bound.
pub fn enough(bound: Workspace) -> Bytes {
    match bound {
        Workspace::Planned => SMALL,
        Workspace::Limit(limit) => limit,
        // A share of the pool may be anything.
        Workspace::Total(total) => Bytes(total.0 / 64).min(SMALL),
    }
}

/// The micro-batches of a kernel, most images first; none if it is no convolution.
pub fn slices(kernel: &Kernel, policy: BatchSizes) -> Vec<(u64, Kernel)> {
    let whole =
        ConvSlice { op: kernel.op.clone(), inputs: kernel.inputs.clone(), outputs: kernel.outputs.clone() };
    let (inputs, outputs) = whole.types();
    let mut sizes = sizes(&whole, policy);
    sizes.pop();
    let slice = |&m: &u64| {
        let s = conv_slice(&whole.op, &inputs, &outputs, m)?;
        Some((m, Kernel { op: s.op, inputs: s.inputs, outputs: s.outputs }))
    };
    sizes.iter().rev().filter_map(slice).collect()
}

/// Where [`fill_micro_batches`] gets times from, and what they are of.
pub struct Source<'a> {
    /// Tables that are asked first.
    pub known: &'a [&'a Measured],
    /// The device.
    pub on: &'a MeasuredOn,
    /// Times the rest.
    pub timer: &'a mut dyn KernelTimer,
    /// Is handed what is new.
    pub keep: &'a mut dyn FnMut(&Measured) -> Result<(), Failure>,
}

/// Adds to `filled`, which has the kernels' own times, those of their micro-batches. A
/// convolution whose fastest engine needs no more than `enough` is not divided, and one of
/// `enough` images fewer not further, unless the batch has a remainder.
///
/// # Errors
/// If nothing more can be timed, or `keep` fails.
pub fn fill_micro_batches(
    (kernels, precision): (&[Kernel], Precision),
    policy: BatchSizes,
    least: Bytes,
    source: &mut Source<'_>,
    filled: &mut Filled,
) -> Result<(), Failure> {
    for kernel in kernels.iter().filter(|k| k.op.is_conv()) {
        if fastest(&filled.table, kernel, precision).is_none_or(|workspace| workspace <= least) {
            continue;
        }
        let images = batch(&kernel.op, &kernel.types().0).unwrap_or(0);
        for (m, slice) in slices(kernel, policy) {
            let progress = Progress::new(1, "micro-batch");
            let more = fill(
                (std::slice::from_ref(&slice), precision),
                source.known,
                source.on,
                source.timer,
                source.keep,
                &progress,
            )?;
            progress.finish();
            filled.table.merge(&more.table);
            filled.timed += more.timed;
            filled.skipped.extend(more.skipped);
            let small = fastest(&filled.table, &slice, precision).is_some_and(|workspace| workspace <= least);
            if small && images.is_multiple_of(m) {
                break;
            }
        }
    }
    Ok(())
}

/// Workspace of the fastest engine that was measured to run.
fn fastest(table: &Measured, kernel: &Kernel, precision: Precision) -> Option<Bytes> {
    let (inputs, outputs) = kernel.types();
    let rows = table.rows(&kernel.op, &inputs, &outputs, precision)?;
    let runs = rows.iter().filter(|r| !r.has(NOT_CAPTURED));
    runs.filter_map(|r| Some((r.time?, r.workspace))).min().map(|r| r.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measuring::TimerError;
    use vdnn_cost::MeasuredRow;
    use vdnn_ir::graph::{ConvAlgo, EngineConfig};
    use vdnn_ir::op::ConvAttrs;
    use vdnn_ir::{Nanos, Op, TensorType};

    /// A fast engine whose workspace grows with the images, a MiB each, and a slow one.
    struct Model(Vec<u64>);

    impl KernelTimer for Model {
        fn time(&mut self, kernel: &Kernel, _: Precision) -> Result<Vec<MeasuredRow>, TimerError> {
            let images = kernel.inputs[0].dims[0];
            self.0.push(images);
            let row = |engine, workspace, time| MeasuredRow {
                algo: EngineConfig::new(engine, &[]).map(ConvAlgo::Engine),
                workspace: Bytes(workspace),
                time: Some(Nanos(time)),
                flags: vec![],
            };
            Ok(vec![row(1, images << 20, images), row(2, 0, 10 * images)])
        }
    }

    #[test]
    fn sizes_are_measured_until_they_fit() {
        let two = |v: u64| [v, v].as_slice().into();
        let attrs = ConvAttrs {
            kernel: two(3),
            strides: two(1),
            before: two(1),
            after: two(1),
            dilations: two(1),
            groups: 1,
        };
        for (images, least, expected) in [
            (256, 64, vec![256, 128, 64]),
            (256, 256, vec![256]),
            // A remainder may be of any size below.
            (100, 64, vec![100, 64, 32, 16, 8, 4]),
            (96, 16, vec![96, 64, 32, 16]),
        ] {
            let x = TensorType::f32([images, 4, 8, 8]);
            let kernel = Kernel {
                op: Op::Conv(attrs.clone()),
                inputs: vec![x.clone(), TensorType::f32([4, 4, 3, 3])],
                outputs: vec![x.clone()],
            };
            let relu = Op::Unary(vdnn_ir::op::UnaryKind::Relu);
            let other = Kernel { op: relu, inputs: vec![x.clone()], outputs: vec![x] };
            let kernels = [kernel, other];
            let on = MeasuredOn::default();
            let mut timer = Model(Vec::new());
            let mut kept = Measured::default();
            let mut keep = |t: &Measured| {
                kept.merge(t);
                Ok(())
            };
            let progress = Progress::new(1, "t");
            let all = (&kernels[..1], Precision::F32);
            let mut filled = fill(all, &[], &on, &mut timer, &mut keep, &progress).expect("times");
            let mut source = Source { known: &[], on: &on, timer: &mut timer, keep: &mut keep };
            let least = Bytes(least << 20);
            fill_micro_batches(
                (&kernels, Precision::F32),
                BatchSizes::PowerOfTwo,
                least,
                &mut source,
                &mut filled,
            )
            .expect("times");
            assert_eq!(timer.0, expected, "{images} images, {least}");
            assert_eq!(filled.table, kept);
            assert_eq!(filled.timed, expected.len());
        }
        assert_eq!(enough(Workspace::Limit(Bytes(5))), Bytes(5));
    }
}
