//! Predicted times of plans: enough to put ways to cut a chain in order.

use super::plan::{Plan, ROWS};
use vdnn_ir::{Nanos, Precision};

/// Multiply-adds of a multiprocessor per nanosecond by `wgmma` with both factors in shared
/// memory, TF32; bf16 does twice as many.
const PRODUCTS: f64 = 1500.0;

/// Bytes per nanosecond of the memory, and of the second-level cache.
const MEMORY: f64 = 4000.0;
const CACHE: f64 = 5500.0;

/// Nanoseconds of a worker for one step of its tile: barriers and latencies.
const STEP: f64 = 200.0;

/// Nanoseconds of a worker for 64 positions of 8 outputs behind a product.
const EPILOGUE: f64 = 14.0;

/// The predicted time of a plan.
pub(super) fn time(plan: &Plan) -> Nanos {
    let tensor = plan.tensor;
    let images = plan.batch as f64;
    let tiles = images * (plan.grid[0] * plan.grid[1]) as f64;
    let workers = f64::from(tensor.blocks * tensor.workers);
    let rounds = (tiles / workers).ceil();
    let rate = if plan.precision == Precision::Bf16 { 2.0 * PRODUCTS } else { PRODUCTS };
    let mut products = 0.0;
    let mut alone = 0.0;
    for (l, conv) in plan.convs.iter().enumerate() {
        let tiles = (conv.each * u64::from(tensor.groups) * ROWS) as f64;
        // The first factor is read again for every pass: narrow ones wait for it.
        let width = conv.width as f64;
        let slow = (1.0 + 64.0 / width) / 2.0;
        products += tiles * (plan.depth(l) * plan.per_chunk * conv.out) as f64 * slow.max(0.75);
        let passes = (conv.out / conv.width) as f64;
        let slices = if l == 0 { plan.slices as f64 } else { 1.0 };
        alone += STEP * (passes + slices) + EPILOGUE * (conv.each * conv.out / 8) as f64;
    }
    let products = products / rate;
    if plan.pool.is_some() {
        alone += STEP;
    }
    let spans = &plan.spans;
    let (first, last) = (spans[0], spans[spans.len() - 1]);
    let channels = plan.convs[0].channels;
    let bytes = |s: &[crate::tensor::plan::Span; 2], c: u64| (s[0].len * s[1].len * c * plan.element) as f64;
    let out = plan.convs[plan.convs.len() - 1].out;
    let adds =
        plan.convs[plan.convs.len() - 1].then.iter().filter(|s| matches!(s, super::plan::Step::Add(_)));
    let results = bytes(&last, out) * (1 + adds.count()) as f64;
    let whole = (first[0].extent * first[1].extent * channels * plan.element) as f64 * images;
    let memory = (whole + results * tiles) / MEMORY;
    let streamed = plan.convs.iter().enumerate().filter(|(_, c)| c.streamed);
    let streamed = streamed.map(|(l, c)| plan.depth(l) * c.out * 16).sum::<u64>() as f64;
    let cache = (bytes(&first, channels) + results + streamed) * tiles / CACHE;
    // Without a slice ahead the input's latency is a step of its own.
    let wait = if plan.tensor.slots > 1 || plan.narrow { 0.0 } else { 2.0 * STEP * plan.slices as f64 };
    let busy = rounds * (products * f64::from(tensor.workers)).max(products + alone + wait);
    let weights = plan.convs.iter().enumerate().map(|(l, c)| plan.depth(l) * c.out * 16).sum::<u64>() as f64;
    let start = weights * f64::from(tensor.blocks) / CACHE;
    Nanos((busy.max(memory).max(cache) + start + 0.2 * busy.min(memory)).ceil() as u64)
}
