//! `vdnnc calibrate`: a profile of the GPU at hand.

use super::backend::{self, cuda};
use super::bench::{inputs, open};
use super::load::{self, FromWeights};
use super::target::gpu_profile;
use crate::cli::CalibrateArgs;
use crate::driver;
use crate::error::Failure;
use std::io::Write;
use vdnn_cost::{CostModel, DeviceRates, Measured, MeasuredOn, Precision};
use vdnn_frontends::safe_file::write_atomic;
use vdnn_ir::op::UnaryKind;
use vdnn_ir::{Bytes, DType, Mode, Nanos, Op, TensorType};
use vdnn_passes::Policy;
use vdnn_runtime::cuda::{DeviceFacts, LinkTimes, MeasureLimits, Measurer};
use vdnn_runtime::executor::Executor;

/// Order of the products that give the peaks.
const ORDER: u64 = 8192;
/// Elements of the tensor that a streaming kernel reads and writes.
const STREAMED: u64 = 256 << 20;
/// Size of the copies.
const COPIED: Bytes = Bytes(256 << 20);
/// Steps of the network whose process is weighed; the first ones load code and capture.
const STEPS: u32 = 4;

/// What was measured.
#[derive(Clone, Copy, Debug)]
struct Figures {
    /// All the device has, as the driver counts it.
    total: Bytes,
    /// What a process held besides its arena.
    overhead: Bytes,
    /// A ReLU of [`STREAMED`] f32 elements.
    streamed: Nanos,
    /// A ReLU of one element.
    tiny: Nanos,
    /// Products of order [`ORDER`] in f32, TF32 and bf16, where they run.
    products: [Option<Nanos>; 3],
    link: LinkTimes,
}

/// Runs the command. Other processes on the GPU would be counted to the overhead and slow the
/// rest down: there should be none.
///
/// # Errors
/// If there is no GPU, or it fails, or the profile cannot be written.
pub fn run(args: &CalibrateArgs) -> Result<(), Failure> {
    let selector = backend::selector(&args.cuda, &args.shared);
    let (facts, on) = backend::identify(&args.shared, &selector, &args.date)?;
    // First, while this process has loaded nothing else.
    let (overhead, total) = overhead(args, &facts)?;
    let mut measurer = backend::measurer(&args.shared, &selector)?;
    let figures = measure(&mut measurer, overhead, total)?;
    let rates = rates(args.name.as_deref().unwrap_or(&facts.name), &on, &figures);
    let text = rates.to_toml();
    CostModel::from_toml(&text, Precision::F32)
        .map_err(|e| Failure::user(format!("what was measured makes no profile: {e}")))?;
    write_atomic(&args.output, |w| w.write_all(text.as_bytes()))
        .map_err(|e| Failure::user(format!("{}: {e}", args.output.display())))?;
    super::print(&format!(
        "{on}\n  memory     {} in all, {} of it taken besides the arena\n  bandwidth  {:.0} GB/s\n  products   \
         {:.1} TFLOP/s in f32, {} in TF32, {} in bf16\n  launch     {:.2} us\n  copies     {:.1} GB/s out, {:.1} in, \
         {:.0} % of that both ways at once, {:.1} us at least\nwritten to {}",
        rates.capacity,
        rates.overhead,
        rates.bandwidth_gbps,
        rates.f32_tflops,
        or_none(rates.tf32_tflops),
        or_none(rates.bf16_tflops),
        rates.launch_us,
        rates.d2h_gbps,
        rates.h2d_gbps,
        100.0 * rates.both_ways,
        rates.latency_us,
        args.output.display()
    ));
    Ok(())
}

fn or_none(rate: Option<f64>) -> String {
    rate.map_or_else(|| "none".to_owned(), |r| format!("{r:.1}"))
}

/// What a process that trains ResNet-50 holds on the device besides the plan's arena, and what
/// the device has.
fn overhead(args: &CalibrateArgs, facts: &DeviceFacts) -> Result<(Bytes, Bytes), Failure> {
    let mut options = args.shared.options_on_gpu(Mode::Train);
    (options.policy, options.batch) = (Policy::None, Some(8));
    let cost = gpu_profile(facts, &None, options.precision)?.with_measured(Measured::default());
    let model = open("resnet50", Mode::Train, 0, &options)?;
    let plan = driver::compile(model.imported.graph.clone(), model.imported.batch, None, &options, &cost)
        .map_err(load::over_budget)?
        .plan;
    let (arena, inputs) = (plan.device.bytes, inputs(&plan)?);
    let backend = cuda(&args.cuda, &args.shared, false)?;
    let mut executor =
        Executor::load(plan, &FromWeights(&model.imported.weights), backend).map_err(Failure::user)?;
    let (mut most, mut all) = (Bytes::ZERO, Bytes::ZERO);
    for _ in 0..STEPS {
        executor.step(&inputs).map_err(Failure::user)?;
        let (free, total) = executor.backend().device().memory().map_err(Failure::user)?;
        most = most.max(total.saturating_sub(free));
        all = total;
    }
    Ok((most.saturating_sub(arena), all))
}

fn measure(measurer: &mut Measurer, overhead: Bytes, total: Bytes) -> Result<Figures, Failure> {
    let link = measurer.link(COPIED).map_err(Failure::user)?;
    let mut relu = |n: u64| {
        let ty = TensorType::f32([n]);
        time(measurer, &Op::Unary(UnaryKind::Relu), [&[&ty], &[&ty]], Precision::F32)?
            .ok_or_else(|| Failure::user("a ReLU does not run on this GPU"))
    };
    let (streamed, tiny) = (relu(STREAMED)?, relu(1)?);
    let mut products = [None; 3];
    for (slot, precision) in products.iter_mut().zip(Precision::ALL) {
        let operand = if precision == Precision::Bf16 { DType::BF16 } else { DType::F32 };
        let (a, y) = (TensorType::new(operand, [ORDER, ORDER]), TensorType::f32([ORDER, ORDER]));
        let op = Op::MatMul { trans_a: false, trans_b: false };
        // A GPU without units for a precision refuses it or runs it as another.
        *slot = time(measurer, &op, [&[&a, &a], &[&y]], precision).unwrap_or(None);
    }
    Ok(Figures { total, overhead, streamed, tiny, products, link })
}

fn time(
    measurer: &mut Measurer,
    op: &Op,
    [inputs, outputs]: [&[&TensorType]; 2],
    precision: Precision,
) -> Result<Option<Nanos>, Failure> {
    let limits = MeasureLimits::default();
    let rows = measurer.measure(op, inputs, outputs, precision, &limits).map_err(Failure::user)?;
    Ok(rows.first().and_then(|row| row.time))
}

/// The profile that figures make.
fn rates(name: &str, on: &MeasuredOn, f: &Figures) -> DeviceRates {
    let per_us = |work: f64, t: Nanos| work / t.as_f64().max(1.0);
    let [f32_tflops, tf32, bf16] = f.products.map(|t| {
        let flops = 2.0 * (ORDER * ORDER * ORDER) as f64;
        t.map(|t| per_us(flops, t) / 1e3)
    });
    let f32_tflops = f32_tflops.unwrap_or(1.0);
    let bytes = f.link.bytes.as_f64();
    let tiny = f.link.tiny;
    // What is left of a copy's time when the least a copy takes is taken off.
    let net = |t: Nanos| t.saturating_sub(tiny).max(Nanos(1));
    let share = |alone: Nanos, both: Nanos| alone.as_f64() / both.as_f64().max(1.0);
    let both = (share(f.link.d2h, f.link.d2h_both) + share(f.link.h2d, f.link.h2d_both)) / 2.0;
    // Some more, in tens of megabytes: other networks load other kernels.
    let overhead = (f.overhead.as_f64() * 1.05 / 1e7).ceil() as u64 * 10_000_000;
    DeviceRates {
        name: name.to_owned(),
        gpu: on.device.clone(),
        source: format!("vdnnc calibrate, {}: {on}.", on.date),
        capacity: Bytes(f.total.0 / Bytes::MIB.0 * Bytes::MIB.0),
        overhead: Bytes(overhead),
        bandwidth_gbps: per_us(2.0 * 4.0 * STREAMED as f64, f.streamed),
        f32_tflops,
        // Units that are not there are not faster.
        tf32_tflops: tf32.filter(|&r| r > 1.2 * f32_tflops),
        bf16_tflops: bf16.filter(|&r| r > 1.2 * f32_tflops),
        launch_us: f.tiny.as_f64() / 1e3,
        d2h_gbps: per_us(bytes, net(f.link.d2h)),
        h2d_gbps: per_us(bytes, net(f.link.h2d)),
        latency_us: tiny.as_f64() / 1e3,
        both_ways: both.clamp(0.1, 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vdnn_cost::CopyDir;

    /// Times an H200 would need by its shipped profile.
    fn h200() -> Figures {
        let at = |work: f64, rate: f64| Nanos((work / rate).round() as u64);
        let product = |tflops: f64| Some(at(2.0 * (ORDER * ORDER * ORDER) as f64, tflops * 1e3));
        let copy = |gbps: f64| Nanos(8_000) + at(COPIED.as_f64(), gbps);
        Figures {
            total: Bytes(139 << 30),
            overhead: Bytes(650_000_000),
            streamed: at(8.0 * STREAMED as f64, 4200.0),
            tiny: Nanos(2_500),
            products: [product(50.6), product(397.0), product(790.0)],
            link: LinkTimes {
                bytes: COPIED,
                d2h: copy(55.4),
                h2d: copy(55.6),
                d2h_both: copy(50.7),
                h2d_both: copy(50.7),
                tiny: Nanos(8_000),
            },
        }
    }

    fn on() -> MeasuredOn {
        MeasuredOn {
            device: "NVIDIA H200".to_owned(),
            capability: "9.0".to_owned(),
            driver: "13.0".to_owned(),
            cudnn: "9.19.0".to_owned(),
            date: "2026-11-21".to_owned(),
        }
    }

    #[test]
    fn figures_of_an_h200_make_its_profile() {
        let rates = rates("mine", &on(), &h200());
        assert_eq!(rates.overhead, Bytes(690_000_000));
        let text = rates.to_toml();
        assert!(text.starts_with("# vdnnc calibrate, 2026-11-21: NVIDIA H200"), "{text}");
        assert!(text.contains("driver 13.0, cuDNN 9.19.0"), "{text}");
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 0.01;
        for precision in Precision::ALL {
            let made = CostModel::from_toml(&text, precision).expect("a profile");
            let shipped = CostModel::named("h200", precision).expect("shipped");
            assert_eq!((made.capacity(), made.layout()), (shipped.capacity(), shipped.layout()));
            assert!(near(made.link_share() as f64, shipped.link_share() as f64));
            for dir in [CopyDir::D2h, CopyDir::H2d] {
                let t = |m: &CostModel| m.copy(dir, Bytes(100 << 20)).as_f64();
                assert!(near(t(&made), t(&shipped)));
            }
            // Sizes that nobody measured.
            let (a, y) = (TensorType::f32([1111, 2222]), TensorType::f32([1111, 1111]));
            let op = Op::MatMul { trans_a: false, trans_b: true };
            let t = |m: &CostModel| m.kernel(&op, &[&a, &a], &[&y], None).as_f64();
            assert!(near(t(&made), t(&shipped)), "{precision}: {} {}", t(&made), t(&shipped));
        }
    }

    #[test]
    fn units_that_are_not_there_make_no_rate() {
        let f = h200();
        let slow = Figures { products: [f.products[0], f.products[0], None], ..f };
        let rates = rates("old", &on(), &slow);
        assert_eq!((rates.tf32_tflops, rates.bf16_tflops), (None, None));
        CostModel::from_toml(&rates.to_toml(), Precision::Tf32).expect("a profile");
    }
}
