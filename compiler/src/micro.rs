//! Measuring micro-batches: of the convolutions that a division could help, the sizes the
//! options allow, largest first, until they are small enough.

use crate::error::Failure;
use crate::measuring::{Filled, Kernel, KernelTimer, fill};
use crate::progress::Progress;
use std::fmt;
use vdnn_cost::measured::NOT_CAPTURED;
use vdnn_cost::{CostModel, Measured, MeasuredOn, Precision};
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::slices::{ConvSlice, batch, conv_slice};
use vdnn_ir::{Bytes, Graph, Nanos};
use vdnn_passes::micro_batch::{Menu, sizes};
use vdnn_passes::{BatchSizes, Workspace};

/// A planned workspace is hardly ever smaller than this.
const SMALL: Bytes = Bytes(8 << 20);
/// A convolution that takes this long may gain by a division even in the workspace it wants:
/// some engines do not take large batches.
const LARGE: Nanos = Nanos(1_000_000);

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
/// convolution whose fastest engine needs no more than `enough` is divided only if it takes a
/// millisecond and a quarter of its batch runs more than proportionally faster; and one of
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
        let Some((time, workspace)) = fastest(&filled.table, kernel, precision) else { continue };
        let images = batch(&kernel.op, &kernel.types().0).unwrap_or(0);
        let slices = slices(kernel, policy);
        // Sizes above this one may be no better than the batch.
        let mut largest = images;
        if workspace <= least {
            let part = slices.iter().find(|(m, _)| *m <= images / 4).filter(|_| time >= LARGE);
            let Some((m, slice)) = part else { continue };
            fill_one(slice, precision, source, filled)?;
            let gains = |(part, _): (Nanos, Bytes)| {
                u128::from(part.0) * u128::from(images) * 100 < u128::from(time.0) * u128::from(*m) * 98
            };
            if !fastest(&filled.table, slice, precision).is_some_and(gains) {
                continue;
            }
            largest = *m;
        }
        for (m, slice) in &slices {
            fill_one(slice, precision, source, filled)?;
            let small = fastest(&filled.table, slice, precision).is_some_and(|(_, w)| w <= least);
            if small && *m <= largest && images.is_multiple_of(*m) {
                break;
            }
        }
    }
    Ok(())
}

/// Adds the times of one kernel, if they are not there.
fn fill_one(
    kernel: &Kernel,
    precision: Precision,
    source: &mut Source<'_>,
    filled: &mut Filled,
) -> Result<(), Failure> {
    let known: Vec<&Measured> = std::iter::once(&filled.table).chain(source.known.iter().copied()).collect();
    let progress = Progress::new(1, "micro-batch");
    let one = (std::slice::from_ref(kernel), precision);
    let more = fill(one, &known, source.on, source.timer, source.keep, &progress)?;
    progress.finish();
    filled.table.merge(&more.table);
    filled.timed += more.timed;
    filled.skipped.extend(more.skipped);
    Ok(())
}

/// Time and workspace of the fastest engine that was measured to run.
fn fastest(table: &Measured, kernel: &Kernel, precision: Precision) -> Option<(Nanos, Bytes)> {
    let (inputs, outputs) = kernel.types();
    let rows = table.rows(&kernel.op, &inputs, &outputs, precision)?;
    let runs = rows.iter().filter(|r| !r.has(NOT_CAPTURED));
    runs.filter_map(|r| Some((r.time?, r.workspace))).min()
}

/// The graph of one kernel.
///
/// # Errors
/// If the op does not take these operands.
pub fn alone(kernel: &Kernel) -> Result<Graph, String> {
    let mut graph = Graph::new("kernel");
    let values: Vec<_> =
        kernel.inputs.iter().enumerate().map(|(i, t)| graph.add_input(format!("x{i}"), t.clone())).collect();
    graph.add(kernel.op.clone(), &values, NodeSpec::forward("kernel")).map_err(|e| e.0)?;
    Ok(graph)
}

/// What a limit of the workspace leaves of the speed of convolutions.
#[derive(Clone, Debug, PartialEq)]
pub struct UnderLimit {
    /// The limit.
    pub limit: Bytes,
    /// Those with measured times.
    pub convolutions: usize,
    /// Those of them that run at 95 % of their unlimited speed or more.
    pub near: usize,
    /// Those that are divided for it.
    pub divided: usize,
    /// The least share of the unlimited speed, and of which; 0 for one that does not run.
    pub least: Option<(f64, String)>,
}

/// Compares, of the convolutions that `cost` has measured, the fastest way within a limit with
/// the fastest whole batch; each different one counts once.
pub fn under_limit(kernels: &[Kernel], cost: &CostModel, sizes: BatchSizes, limit: Bytes) -> UnderLimit {
    let (menu, whole) = (Menu::new(sizes), Menu::new(BatchSizes::Undivided));
    let mut seen = UnderLimit { limit, convolutions: 0, near: 0, divided: 0, least: None };
    for kernel in kernels.iter().filter(|k| k.op.is_conv()) {
        let (inputs, outputs) = kernel.types();
        let rows = cost.measured().rows(&kernel.op, &inputs, &outputs, cost.precision());
        if rows.is_none_or(|rows| rows.iter().all(|r| r.time.is_none())) {
            continue;
        }
        let Ok(graph) = alone(kernel) else { continue };
        let Some((_, node)) = graph.nodes().next() else { continue };
        let Some(unlimited) = whole.choices(&graph, cost, node).first().map(|c| c.time) else { continue };
        let within = menu.choices(&graph, cost, node).iter().find(|c| c.workspace <= limit).cloned();
        let share = within.as_ref().map_or(0.0, |c| unlimited.0 as f64 / c.time.0.max(1) as f64);
        seen.convolutions += 1;
        seen.near += usize::from(share >= 0.95);
        seen.divided += usize::from(within.is_some_and(|c| c.schedule.is_divided()));
        if seen.least.as_ref().is_none_or(|(least, _)| share < *least) {
            seen.least = Some((share, kernel.describe()));
        }
    }
    seen
}

impl fmt::Display for UnderLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, convolutions, near, divided, least } = self;
        write!(
            f,
            "within {limit} {near} of {convolutions} convolutions at 95 % of their unlimited speed, {divided} \
             divided"
        )?;
        match least {
            Some((share, of)) => write!(f, "; least {share:.3}: {of}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measuring::TimerError;
    use vdnn_cost::MeasuredRow;
    use vdnn_ir::graph::{ConvAlgo, EngineConfig};
    use vdnn_ir::op::ConvAttrs;
    use vdnn_ir::{Nanos, Op, TensorType};

    /// A fast engine whose workspace grows with the images, a MiB each, and that takes up to a
    /// number of them, and a slow one.
    struct Model(Vec<u64>, u64);

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
            let mut rows = vec![row(2, 0, 100_000 * images)];
            rows.extend((images <= self.1).then(|| row(1, images << 20, images)));
            Ok(rows)
        }
    }

    #[test]
    fn sizes_are_measured_until_they_fit() {
        let attrs = ConvAttrs::square(3, 1, 1, 1);
        for (images, least, fast, expected) in [
            (256, 64, 256, vec![256, 128, 64]),
            (256, 256, 256, vec![256]),
            // A remainder may be of any size below.
            (100, 64, 256, vec![100, 64, 32, 16, 8, 4]),
            (96, 16, 256, vec![96, 64, 32, 16]),
            // The fast engine does not take the whole batch, or not even a quarter.
            (256, 16, 128, vec![256, 64, 128, 32, 16]),
            (256, 16, 32, vec![256, 64]),
            (19, 0, 4, vec![19, 4, 16, 8, 2, 1]),
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
            let mut timer = Model(Vec::new(), fast);
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
