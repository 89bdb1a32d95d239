//! Speed of the CPU kernels on shapes of well-known networks.
//!
//! `cargo bench -p vdnn-runtime [-- FILTER [THREADS]]` prints, per kernel, the best time of
//! several runs with GFLOP/s (a multiply-add is two) and GB/s of operands touched once.
//! With one thread, where the system tells it, the time is the mean processor time of the
//! runs: other load on the machine hardly moves it.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::slice::from_ref;
use std::time::{Duration, Instant};
use vdnn_ir::kernel::{Kernels, Operand, TensorMut};
use vdnn_ir::op::{BinaryKind, ConvAttrs, LossReduction, Op, PoolAttrs, UnaryKind, infer::infer, work};
use vdnn_ir::{DType, Dims, Tensor, TensorType};
use vdnn_runtime::cpu::kernels::CpuKernels;

/// `n` images of `c` channels, `hw` square; `m` output channels; square kernel, stride, pad.
struct Conv {
    name: &'static str,
    n: u64,
    c: u64,
    hw: u64,
    m: u64,
    k: u64,
    s: u64,
    p: u64,
    groups: u64,
}

const fn conv(name: &'static str, [n, c, hw, m, k, s, p, groups]: [u64; 8]) -> Conv {
    Conv { name, n, c, hw, m, k, s, p, groups }
}

const CONVS: [Conv; 19] = [
    conv("resnet stem", [8, 3, 224, 64, 7, 2, 3, 1]),
    conv("resnet 56 1x1 64-64", [8, 64, 56, 64, 1, 1, 0, 1]),
    conv("resnet 56 3x3", [8, 64, 56, 64, 3, 1, 1, 1]),
    conv("resnet 56 1x1 64-256", [8, 64, 56, 256, 1, 1, 0, 1]),
    conv("resnet 56/2 3x3", [8, 128, 56, 128, 3, 2, 1, 1]),
    conv("resnet 56/2 1x1", [8, 256, 56, 512, 1, 2, 0, 1]),
    conv("resnet 28 3x3", [8, 128, 28, 128, 3, 1, 1, 1]),
    conv("resnet 14 3x3", [8, 256, 14, 256, 3, 1, 1, 1]),
    conv("resnet 14 1x1 1024-256", [8, 1024, 14, 256, 1, 1, 0, 1]),
    conv("resnet 7 3x3", [8, 512, 7, 512, 3, 1, 1, 1]),
    conv("resnet 7 1x1 512-2048", [8, 512, 7, 2048, 1, 1, 0, 1]),
    conv("resnet 56 3x3 b1", [1, 64, 56, 64, 3, 1, 1, 1]),
    conv("resnet 14 3x3 b1", [1, 256, 14, 256, 3, 1, 1, 1]),
    conv("resnet 7 3x3 b1", [1, 512, 7, 512, 3, 1, 1, 1]),
    conv("lenet 1", [64, 1, 28, 6, 5, 1, 2, 1]),
    conv("lenet 2", [64, 6, 14, 16, 5, 1, 0, 1]),
    conv("resnext 56 3x3 g32", [8, 128, 56, 128, 3, 1, 1, 32]),
    conv("mobilenet dw 112", [8, 32, 112, 32, 3, 1, 1, 32]),
    conv("mobilenet dw 56/2", [8, 144, 56, 144, 3, 2, 1, 144]),
];

fn filled(ty: TensorType) -> Tensor {
    let mut state = 1u32;
    let data: Vec<f32> = (0..ty.elements())
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 16_777_216.0 - 0.5
        })
        .collect();
    Tensor::from_f32(ty.dims, &data)
}

/// Processor time of the calling thread (Linux).
fn processor_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

struct Bench {
    filter: String,
    kernels: CpuKernels,
}

impl Bench {
    fn run(&self, name: &str, op: &Op, inputs: &[Tensor], n_outputs: usize) {
        let label = format!("{:<24} {}", op.name(), name);
        if !label.contains(&self.filter) {
            return;
        }
        let types: Vec<&TensorType> = inputs.iter().map(Tensor::ty).collect();
        let out_types = infer(op, &types, n_outputs).expect("an op that fits its inputs");
        let mut outs: Vec<Tensor> = out_types.iter().map(|t| Tensor::zeros(t.clone())).collect();
        let operands: Vec<Operand<'_>> = inputs.iter().map(|t| Operand::Ref(t.view())).collect();
        let mut best = Duration::MAX;
        let (mut started, mut busy) = (Instant::now(), None);
        for round in 0.. {
            if round == 1 {
                // The first run fills caches and buffers.
                (started, busy) = (Instant::now(), processor_time());
            }
            let mut muts: Vec<TensorMut<'_>> = out_types
                .iter()
                .zip(&mut outs)
                .map(|(ty, t)| TensorMut { ty, bytes: t.bytes_mut() })
                .collect();
            let start = Instant::now();
            self.kernels.launch(op, &operands, &mut muts).expect("a launch");
            best = best.min(start.elapsed());
            if round >= 3 && started.elapsed() > Duration::from_millis(300) {
                if let (1, Some(from), Some(to)) = (self.kernels.threads(), busy, processor_time()) {
                    best = (to - from) / round;
                }
                break;
            }
        }
        let outs: Vec<&TensorType> = out_types.iter().collect();
        let seconds = best.as_secs_f64();
        println!(
            "{label:<52} {:>9.3} ms {:>8.1} GFLOP/s {:>7.1} GB/s",
            seconds * 1e3,
            work::flops(op, &types, &outs).0 as f64 / seconds / 1e9,
            work::traffic(op, &types, &outs).0 as f64 / seconds / 1e9,
        );
    }
}

fn pair(x: u64) -> Dims {
    [x, x].into_iter().collect()
}

fn convolutions(bench: &Bench) {
    for c in &CONVS {
        let attrs = ConvAttrs {
            kernel: pair(c.k),
            strides: pair(c.s),
            before: pair(c.p),
            after: pair(c.p),
            dilations: pair(1),
            groups: c.groups,
        };
        let out = (c.hw + 2 * c.p - c.k) / c.s + 1;
        let x = filled(TensorType::f32([c.n, c.c, c.hw, c.hw]));
        let w = filled(TensorType::f32([c.m, c.c / c.groups, c.k, c.k]));
        let dy = filled(TensorType::f32([c.n, c.m, out, out]));
        let (x_dims, w_dims) = (x.ty().dims.clone(), w.ty().dims.clone());
        bench.run(c.name, &Op::Conv(attrs.clone()), &[x.clone(), w.clone()], 1);
        bench.run(c.name, &Op::ConvDgrad { conv: attrs.clone(), x_dims }, &[dy.clone(), w], 1);
        bench.run(c.name, &Op::ConvWgrad { conv: attrs, w_dims }, &[x, dy], 1);
    }
}

fn others(bench: &Bench) {
    for (m, n, k) in [(1024, 1024, 1024), (64, 120, 400), (1, 4096, 9216), (64, 4096, 9216), (8, 1000, 2048)]
    {
        let (a, b) = (filled(TensorType::f32([m, k])), filled(TensorType::f32([n, k])));
        let op = Op::Gemm { trans_a: false, trans_b: true, alpha: 1.0.into(), beta: 1.0.into() };
        bench.run(&format!("{m}x{n}x{k}"), &op, &[a, b], 1);
    }
    let x = filled(TensorType::f32([8, 64, 112, 112]));
    let y = x.clone();
    let c = filled(TensorType::f32([64]));
    let var = Tensor::from_f32([64], &[1.0; 64]);
    bench.run("8x64x112", &Op::Unary(UnaryKind::Relu), from_ref(&x), 1);
    bench.run("8x64x112", &Op::UnaryGrad(UnaryKind::Relu), &[x.clone(), y.clone()], 1);
    bench.run("8x64x112 sigmoid", &Op::Unary(UnaryKind::Sigmoid), from_ref(&x), 1);
    bench.run("8x64x112", &Op::Binary(BinaryKind::Add), &[x.clone(), y.clone()], 1);
    let dropout = Op::Dropout { ratio: 0.5.into(), seed: 1, first: 0 };
    bench.run("8x64x112", &dropout, &[x.clone(), Tensor::from_i64([], &[3])], 1);
    let bn = [x.clone(), c.clone(), c.clone(), c.clone(), var.clone()];
    bench.run("8x64x112", &Op::BatchNormInfer { eps: 1e-5.into(), momentum: 0.9.into() }, &bn, 1);
    bench.run("8x64x112", &Op::BatchNormTrain { eps: 1e-5.into(), momentum: 0.9.into() }, &bn, 5);
    bench.run("8x64x112", &Op::BatchNormGrad, &[x.clone(), y, c.clone(), c, var], 3);
    let pool = PoolAttrs {
        kernel: pair(3),
        strides: pair(2),
        before: pair(1),
        after: pair(1),
        dilations: pair(1),
        ceil_mode: false,
    };
    let x_dims = x.ty().dims.clone();
    let small = filled(TensorType::f32([8, 64, 56, 56]));
    bench.run("8x64x112 3x3/2", &Op::MaxPool(pool.clone()), from_ref(&x), 2);
    let idx = Tensor::zeros(TensorType::new(DType::U8, [8, 64, 56, 56]));
    let grad = Op::MaxPoolGrad { pool: pool.clone(), x_dims: x_dims.clone() };
    bench.run("8x64x112 3x3/2", &grad, &[small.clone(), idx], 1);
    bench.run("8x64x112 3x3/2", &Op::AvgPool { pool: pool.clone(), count_include_pad: true }, &[x], 1);
    bench.run("8x64x112 3x3/2", &Op::AvgPoolGrad { pool, count_include_pad: true, x_dims }, &[small], 1);
    let logits = filled(TensorType::f32([64, 1000]));
    let labels = Tensor::zeros(TensorType::new(DType::I64, [64]));
    let loss = Op::SoftmaxCrossEntropy { reduction: LossReduction::Mean, ignore_index: None };
    bench.run("64x1000", &loss, &[logits.clone(), labels.clone()], 2);
    let w = || filled(TensorType::f32([1 << 22]));
    bench.run("4M", &Op::SgdUpdate, &[w(), w(), w(), Tensor::from_f32([3], &[0.1, 0.9, 1e-4])], 2);
    let perm = [0u64, 2, 3, 1].into_iter().collect();
    bench.run("8x256x28 to nhwc", &Op::Transpose { perm }, &[filled(TensorType::f32([8, 256, 28, 28]))], 1);
}

fn main() {
    // Cargo passes `--bench`; the rest is ours.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let threads = args
        .get(1)
        .and_then(|a| a.parse().ok())
        .or_else(|| std::thread::available_parallelism().ok().map(std::num::NonZero::get));
    let bench = Bench {
        filter: args.first().cloned().unwrap_or_default(),
        kernels: CpuKernels::new(threads.unwrap_or(1)),
    };
    println!("{} threads", bench.kernels.threads());
    convolutions(&bench);
    others(&bench);
}
