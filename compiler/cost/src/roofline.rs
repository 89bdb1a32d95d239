//! Prices of kernels: launch overhead plus the slower of arithmetic and memory (Williams,
//! Waterman and Patterson, *Roofline*, CACM 2009).

use crate::conv::{ALGOS, ConvDir, ConvShape};
use crate::profile::{Directions, Profile};
use crate::{ConvOption, Peaks, Precision};
use std::collections::BTreeMap;
use vdnn_ir::graph::ConvAlgo;
use vdnn_ir::op::work;
use vdnn_ir::{Bytes, Layout, Nanos, Op, TensorType};

/// Rates of one device at one precision, in operations and bytes per nanosecond.
#[derive(Clone, Debug)]
pub(crate) struct Roofline {
    /// Launch overhead, nanoseconds.
    launch: f64,
    /// Device memory, bytes per nanosecond.
    bandwidth: f64,
    /// f32 arithmetic outside matrix units.
    f32_peak: f64,
    /// Matrix products.
    gemm_peak: f64,
    /// Convolutions, before the algorithm's efficiency.
    conv_peak: f64,
    /// Fraction of `bandwidth` that convolutions reach.
    conv_bandwidth: f64,
    depthwise: f64,
    /// FFT workspace over the spectra, and passes over it.
    fft_workspace: f64,
    fft_passes: f64,
    directions: Directions,
}

impl Roofline {
    /// The rates of a valid profile. A precision the device has no units for runs in f32.
    pub(crate) fn new(profile: &Profile, precision: Precision) -> Self {
        let p = &profile.peak;
        let f32_peak = p.f32_tflops * 1e3;
        let units = match precision {
            Precision::F32 => None,
            Precision::Tf32 => p.tf32_tflops.zip(profile.gemm.tf32).zip(profile.conv.tf32.as_ref()),
            Precision::Bf16 => p.bf16_tflops.zip(profile.gemm.bf16).zip(profile.conv.bf16.as_ref()),
        };
        let (gemm_peak, conv_peak, directions) = match units {
            Some(((tflops, gemm), conv)) => (tflops * 1e3 * gemm, tflops * 1e3, conv),
            None => (f32_peak * profile.gemm.f32, f32_peak, &profile.conv.f32),
        };
        Self {
            launch: profile.launch.overhead_us * 1e3,
            bandwidth: profile.memory.bandwidth_gbps,
            f32_peak,
            gemm_peak,
            conv_peak,
            conv_bandwidth: profile.conv.bandwidth,
            depthwise: profile.conv.depthwise,
            fft_workspace: profile.conv.fft_workspace,
            fft_passes: profile.conv.fft_passes,
            directions: directions.clone(),
        }
    }

    /// The rates without any efficiency.
    pub(crate) fn peaks(&self) -> Peaks {
        let launch = Nanos(self.launch.round() as u64);
        Peaks { arithmetic: self.conv_peak, bandwidth: self.bandwidth, launch }
    }

    fn time(&self, launches: u64, flops: f64, rate: f64, traffic: f64) -> Nanos {
        // Rounded once, up, so that nothing takes no time. A float-to-int cast saturates.
        Nanos((launches as f64 * self.launch + (flops / rate).max(traffic / self.bandwidth)).ceil() as u64)
    }

    /// Time of any op but a convolution.
    pub(crate) fn op(&self, op: &Op, inputs: &[&TensorType], outputs: &[&TensorType]) -> Nanos {
        // Views move nothing; transfers are copies and are priced as such.
        if op.is_transfer() || !op.views().is_empty() {
            return Nanos::ZERO;
        }
        let flops = work::flops(op, inputs, outputs).as_f64();
        let rate =
            if matches!(op, Op::Gemm { .. } | Op::MatMul { .. }) { self.gemm_peak } else { self.f32_peak };
        self.time(1, flops, rate, traffic(op, inputs, outputs).as_f64())
    }

    /// Efficiencies of the algorithms in one direction.
    fn table(&self, dir: ConvDir) -> &BTreeMap<ConvAlgo, f64> {
        match dir {
            ConvDir::Fprop => &self.directions.fprop,
            ConvDir::Dgrad => &self.directions.dgrad,
            ConvDir::Wgrad => &self.directions.wgrad,
        }
    }

    /// The same rates, said to be of this layout.
    pub(crate) fn in_layout(self, layout: Layout) -> Self {
        Self { directions: Directions { layout, ..self.directions }, ..self }
    }

    /// Layout of the convolutions' operands.
    pub(crate) fn layout(&self) -> Layout {
        self.directions.layout
    }

    /// Workspace of a legal algorithm.
    fn workspace(&self, shape: &ConvShape<'_>, algo: ConvAlgo) -> Bytes {
        let bytes = shape.workspace(algo);
        match algo {
            // Not through a float where nothing changes; the cast saturates.
            ConvAlgo::Fft if self.fft_workspace > 1.0 => {
                Bytes((bytes.as_f64() * self.fft_workspace).ceil() as u64)
            }
            _ => bytes,
        }
    }

    /// Time of a convolution, or `None` if the algorithm cannot run it.
    pub(crate) fn conv(&self, shape: &ConvShape<'_>, algo: ConvAlgo, traffic: Bytes) -> Option<Nanos> {
        let efficiency = *self.table(shape.dir).get(&algo)?;
        if !shape.legal(algo) {
            return None;
        }
        let scratch = match algo {
            ConvAlgo::Fft | ConvAlgo::FftTiling => shape.fft_traffic(algo, self.fft_passes),
            _ => shape.workspace_traffic(algo).as_f64(),
        };
        let traffic = (traffic.as_f64() + scratch) / self.conv_bandwidth;
        let launches = shape.launches(algo);
        if shape.is_depthwise() {
            // No reduction over channels, so no matrix product: all implicit algorithms run
            // the same direct kernel.
            let flops = shape.arithmetic(ConvAlgo::ImplicitGemm);
            return Some(self.time(launches, flops, self.f32_peak * self.depthwise, traffic));
        }
        let work = shape.arithmetic(algo)
            * shape.tile_waste(self.directions.result_tile, self.directions.reduction_tile);
        Some(self.time(launches, work, self.conv_peak * efficiency, traffic))
    }

    /// Every algorithm for a convolution, fastest first.
    pub(crate) fn options(
        &self,
        shape: &ConvShape<'_>,
        op: &Op,
        inputs: &[&TensorType],
        outputs: &[&TensorType],
    ) -> Vec<ConvOption> {
        let traffic = work::traffic(op, inputs, outputs);
        let mut options: Vec<ConvOption> = ALGOS
            .iter()
            .filter_map(|&algo| {
                let time = self.conv(shape, algo, traffic)?;
                Some(ConvOption { algo, workspace: self.workspace(shape, algo), time })
            })
            .collect();
        options.sort_by_key(|o| (o.time, o.workspace, o.algo));
        options
    }
}

/// Bytes a kernel moves: every operand once, except where the algorithm passes several
/// times over the large one.
fn traffic(op: &Op, inputs: &[&TensorType], outputs: &[&TensorType]) -> Bytes {
    let passes = |n: u64| {
        let large = inputs.iter().chain(outputs).map(|t| t.bytes()).max().unwrap_or_default();
        Bytes(large.0.saturating_mul(n))
    };
    match op {
        // Statistics read x; the normalisation reads x and writes y.
        Op::BatchNormTrain { .. } => passes(3),
        // Sums read what is not known yet.
        Op::BatchNormTrainReluJoined { known, .. } => {
            let whole = outputs.first().copied();
            let bytes = whole.map_or(0, |y| y.bytes().0);
            let channels =
                |t: Option<&TensorType>, d: usize| t.and_then(|t| t.dims.get(d)).copied().unwrap_or(0);
            let all = channels(whole, 1);
            let known = if *known { channels(inputs.get(4).copied(), 0) } else { 0 };
            let summed = if all == 0 {
                0
            } else {
                u128::from(bytes) * u128::from(all.saturating_sub(known)) / u128::from(all)
            };
            Bytes(bytes.saturating_mul(2).saturating_add(u64::try_from(summed).unwrap_or(u64::MAX)))
        }
        Op::BatchNormReluGradJoined { added, .. } => {
            let whole = outputs.first().map_or(0, |dx| dx.bytes().0);
            Bytes(whole.saturating_mul(if *added { 6 } else { 5 }))
        }
        // And the other summand.
        Op::BatchNormTrainRelu { .. } => passes(if inputs.len() > 5 { 4 } else { 3 }),
        // With y: it gates dy, which is written for the other branch and read again.
        Op::BatchNormReluGrad { .. } => passes(if inputs.len() > 6 { 7 } else { 5 }),
        // The two sums read dy and x; dx reads both again and is written.
        Op::BatchNormGrad | Op::BatchNormInferGrad { .. } => passes(5),
        // Maximum, sum, result: two reads and one write after the first read.
        Op::Softmax { .. } | Op::LogSoftmax { .. } | Op::SoftmaxCrossEntropy { .. } => passes(4),
        // The zeros of dx are written before the scatter.
        Op::MaxPoolGrad { .. } | Op::SliceGrad { .. } => {
            let zeros = outputs.iter().map(|t| t.bytes()).fold(Bytes::ZERO, Bytes::saturating_add);
            work::traffic(op, inputs, outputs).saturating_add(zeros)
        }
        _ => work::traffic(op, inputs, outputs),
    }
}
