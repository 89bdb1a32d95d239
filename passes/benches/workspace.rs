//! Times the divisions of workspace: `cargo bench -p vdnn-passes --bench workspace`. A pool of
//! 512 MiB over 159 convolutions (ResNet-50's, three directions) with 12 options each, and the
//! front of one convolution of 256 images.

use std::time::Instant;
use vdnn_ir::random::splitmix64;
use vdnn_ir::{Bytes, Nanos};
use vdnn_passes::BatchSizes;
use vdnn_passes::micro_batch::pareto::Kernel;
use vdnn_passes::micro_batch::{wd, wr};

/// Median of some runs, in milliseconds.
fn median(mut run: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..11)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[expect(clippy::print_stdout, reason = "a benchmark's report")]
fn main() {
    let draw = |i: u64, n: u64| splitmix64(7, i) % n;
    // Fronts as divisions give them: half the workspace, a little more time.
    let lists: Vec<Vec<wd::Item>> = (0..159)
        .map(|l| {
            let (largest, fastest) = (16 + draw(2 * l, 1024), 100_000 + draw(2 * l + 1, 1_000_000));
            let item = |i: u64| wd::Item {
                workspace: Bytes((largest << 20) >> i),
                time: Nanos(fastest + fastest * i * i / 40 + draw(1000 * l + i, 1000)),
            };
            (0..12).map(item).collect()
        })
        .collect();
    let pool = Bytes(512 << 20);
    let taken = wd::divide_pool(&lists, pool).expect("the leanest fit");
    let used: u64 = lists.iter().zip(&taken).map(|(l, &at)| l[at].workspace.0).sum();
    let wd_ms = median(|| {
        std::hint::black_box(wd::divide_pool(std::hint::black_box(&lists), pool));
    });
    println!("pool of {pool} over 159 x 12: {wd_ms:.2} ms, {} used", Bytes(used));
    for sizes in [BatchSizes::PowerOfTwo, BatchSizes::All] {
        let mut kernels = Vec::new();
        for images in sizes.of(256) {
            for algo in 0..8u64 {
                let workspace = Bytes((images << 20) >> algo);
                let time = Nanos(images * (10_000 << (algo / 2)) + 5000);
                kernels.push(Kernel { algo, images, workspace, time });
            }
        }
        let mut points = 0;
        let ms = median(|| points = std::hint::black_box(wr::front(256, &kernels)).len());
        println!("front of 256 images, {sizes}: {} kernels, {points} points, {ms:.2} ms", kernels.len());
    }
}
