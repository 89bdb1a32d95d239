//! Measuring on several GPUs of one kind at once, into one database.

use crate::error::Failure;
use crate::measuring::{Kernel, KernelTimer, fill};
use crate::micro;
use crate::progress::Progress;
use std::path::Path;
use vdnn_benchdb::BenchDb;
use vdnn_cost::{Measured, MeasuredOn, Precision};
use vdnn_ir::Bytes;
use vdnn_passes::BatchSizes;

/// What is to be measured.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// The kernels, each once.
    pub kernels: &'a [Kernel],
    /// Of their products.
    pub precision: Precision,
    /// Micro-batches of their convolutions.
    pub sizes: BatchSizes,
    /// As [`micro::fill_micro_batches`] has it.
    pub enough: Bytes,
    /// Times that need not be measured.
    pub known: &'a [&'a Measured],
    /// What the devices are.
    pub on: &'a MeasuredOn,
    /// Where the times go.
    pub db: &'a Path,
}

/// Measures what is not known, kernel i with its micro-batches on device i modulo their number,
/// each device in a thread of its own with a timer that `open` makes there. Returns how many
/// kernels were timed.
///
/// # Errors
/// The failure of the first device that has one, after all are done.
pub fn fill_on_several<T: KernelTimer>(
    work: Work<'_>,
    devices: usize,
    open: &(dyn Fn(usize) -> Result<T, Failure> + Sync),
) -> Result<usize, Failure> {
    let results: Vec<Result<usize, Failure>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..devices).map(|device| scope.spawn(move || share(work, device, devices, open))).collect();
        let done = threads.into_iter().map(|t| t.join());
        done.map(|r| r.unwrap_or_else(|_| Err(Failure::internal("a measuring thread panicked")))).collect()
    });
    results.into_iter().sum()
}

/// The part of one device.
fn share<T: KernelTimer>(
    work: Work<'_>,
    device: usize,
    devices: usize,
    open: &(dyn Fn(usize) -> Result<T, Failure> + Sync),
) -> Result<usize, Failure> {
    let Work { kernels, precision, sizes, enough, known, on, db } = work;
    let mine: Vec<Kernel> = kernels.iter().skip(device).step_by(devices.max(1)).cloned().collect();
    let mut db = BenchDb::open(db).map_err(Failure::user)?;
    let mut keep = |rows: &Measured| db.add(rows).map_err(Failure::user);
    let mut timer = open(device)?;
    let progress = Progress::new(mine.len() as u64, &format!("device {device}"));
    let mut filled = fill((&mine, precision), known, on, &mut timer, &mut keep, &progress)?;
    progress.finish();
    let mut source = micro::Source { known, on, timer: &mut timer, keep: &mut keep };
    micro::fill_micro_batches((&mine, precision), sizes, enough, &mut source, &mut filled)?;
    Ok(filled.timed)
}
