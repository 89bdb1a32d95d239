//! Predicted times of plans.
//!
//! A worker makes a tile in steps that wait for each other: the input, products, epilogues, the
//! pool. Its own time is their sum. Workers of a block share the matrix units all of the time and
//! instruction slots in part, so a block's time per round is that of one worker alone and that of
//! all workers' shared work, as if at right angles: the larger one if they differ, 1.4 times that if
//! they are equal. Bytes of the memory hide behind it in part.
//!
//! Constants that are called *fitted* are a robust least-squares fit of logarithms to 172 printed
//! kernels (six chains, TF32 and bf16, batch 64) measured on an H200 at 1.755 GHz, 2026-11-22. They
//! reproduce its times with a median error of 4 % and 25 % at worst, and 5 to 10 % (30 % at worst) of
//! chains that are left out of the fit; `tests/prices.rs` has the measurements.

use super::plan::{CHUNK, Conv, GROUP, Plan, Step};
use super::{Tensor, Units};
use vdnn_ir::{Nanos, Precision};

/// Nanoseconds of a clock cycle, at which matrix instructions of one worker fit their rated speed.
const CYCLE: f64 = 1.0 / 1.755;

/// What `mma.sync` takes of the time of `wgmma`: each warp reads the weights. Fitted.
const WARP: f64 = 2.2;

/// Nanoseconds from a copy's order to its arrival, where nothing hides it. Fitted.
const LATENCY: f64 = 1060.0;

/// The same for the residual of a pass, which products hide in part. Fitted.
const RESIDUAL: f64 = 570.0;

/// Nanoseconds of a thread to bring a chunk to TF32, which rounds it in its place. Fitted.
const ROUND: f64 = 105.0;

/// Nanoseconds of a warp group for 64 positions of 8 outputs behind a product. Fitted.
const EPILOGUE: f64 = 64.0;

/// Nanoseconds of a thread to read a chunk for the maximum of a pool. Fitted.
const POOL: f64 = 15.0;

/// Nanoseconds of a thread to bring one position of an input of few channels, one by one. Fitted.
const NARROW: f64 = 72.0;

/// Share of a warp group's time besides products and waits in which others cannot have the
/// instruction slots. Fitted.
const BUSY: f64 = 0.36;

/// Share of the memory's time that is not hidden. Fitted.
const EXPOSED: f64 = 0.6;

/// Bytes per nanosecond of the memory, as a copy kernel reaches, and of the second-level cache to
/// all multiprocessors (nominal).
const MEMORY: f64 = 4100.0;
const CACHE: f64 = 5500.0;

/// Nanoseconds from start to start of kernels.
const LAUNCH: f64 = 2000.0;

/// Cycles of a matrix instruction of 64 rows, so many outputs and 32 bytes of terms: the matrix unit
/// takes half a cycle per output, and shared memory gives 128 bytes per cycle of both factors.
fn cycles(width: u64) -> f64 {
    let width = width as f64;
    (width / 2.0).max(16.0 + width / 4.0)
}

/// The parts of a worker's time for a tile, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Parts {
    /// Of the matrix units.
    products: f64,
    /// Instructions of the worker's threads.
    threads: f64,
    /// Waiting for memory.
    waits: f64,
}

impl Parts {
    fn of(plan: &Plan) -> Self {
        let Tensor { groups, slots, units, .. } = plan.tensor;
        let groups = u64::from(groups);
        let width = (groups * GROUP) as f64;
        let mut parts = Self::default();
        for (l, conv) in plan.convs.iter().enumerate() {
            let passes = conv.out / conv.width;
            let instructions = groups * conv.each * plan.depth(l) / 2 * passes;
            let slow = if units == Units::Warp { WARP } else { 1.0 };
            parts.products += instructions as f64 * cycles(conv.width) * CYCLE * slow;
            parts.threads += EPILOGUE * (conv.each * conv.out / 8) as f64;
            if conv.then.iter().any(|s| matches!(s, Step::Add(_))) {
                parts.waits += RESIDUAL * passes as f64;
            }
        }
        let [y, x] = plan.spans[0];
        let positions = (y.len * x.len) as f64;
        if plan.narrow {
            // What comes next is fetched during the products.
            parts.threads += NARROW * positions / width;
        } else {
            let streamed: u64 =
                plan.convs.iter().enumerate().filter(|(_, c)| c.streamed).map(weights(plan)).sum();
            if plan.precision == Precision::Tf32 {
                let chunks = positions * (plan.slice * plan.slices) as f64 + streamed as f64;
                parts.threads += ROUND * chunks / width;
            }
            // A slot is filled so many items ahead; the first ones of a tile while the tile before
            // it ends.
            let (items, ahead) = (plan.items as f64, f64::from(slots) - 1.0);
            let waited = if slots == 1 { items } else { (items - ahead).max(0.0) / ahead };
            parts.waits += LATENCY * waited;
        }
        if let Some(pool) = &plan.pool {
            let [y, x] = plan.spans[plan.spans.len() - 1];
            let chunks = plan.convs[plan.convs.len() - 1].out / plan.per_chunk;
            parts.threads += POOL * (y.len * x.len * chunks * pool.window.taps()) as f64 / width;
        }
        parts
    }
}

/// Chunks of the weights of a convolution.
fn weights(plan: &Plan) -> impl Fn((usize, &Conv)) -> u64 {
    |(l, conv)| plan.depth(l) * conv.out
}

/// The predicted time of a plan.
pub(super) fn time(plan: &Plan) -> Nanos {
    let Tensor { workers, groups, blocks, .. } = plan.tensor;
    let tiles = plan.batch * plan.grid[0] * plan.grid[1];
    let rounds = tiles.div_ceil(u64::from(blocks) * u64::from(workers)) as f64;
    let parts = Parts::of(plan);
    let alone = parts.products + parts.threads + parts.waits;
    let shared = f64::from(workers) * (parts.products + BUSY * f64::from(groups) * parts.threads);
    let busy = rounds * (alone * alone + shared * shared).sqrt();

    let whole = |l: usize, channels: u64| {
        let [y, x] = plan.spans[l];
        (plan.batch * y.extent * x.extent * channels * plan.element) as f64
    };
    let last = &plan.convs[plan.convs.len() - 1];
    let residuals = last.then.iter().filter(|s| matches!(s, Step::Add(_))).count();
    let result = whole(plan.spans.len() - 1, last.out) * (1 + residuals) as f64;
    let memory = (whole(0, plan.convs[0].channels) + result) / MEMORY;

    let kept: u64 = plan.convs.iter().enumerate().filter(|(_, c)| !c.streamed).map(weights(plan)).sum();
    let start = LAUNCH + (kept * CHUNK) as f64 * f64::from(blocks) / CACHE;
    Nanos((busy.max(memory) + EXPOSED * busy.min(memory) + start).ceil() as u64)
}
