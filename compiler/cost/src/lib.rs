//! Device profiles and the cost model. Used by the passes, to decide, and by the
//! simulator, to predict. A leaf above the IR: knows neither plans nor passes.
//!
//! A time is a roofline over a device profile (`devices/*.toml`, each number with its
//! source). All results are whole nanoseconds, rounded once, and depend on nothing but the
//! profile, the op and its types; with one algorithm they never decrease when a tensor grows.

mod conv;
mod division;
pub mod measured;
mod occupancy;
mod profile;
mod pyramid;
mod rates;
mod roofline;
#[cfg(test)]
mod tests;

pub use conv::ConvDir;
pub use measured::{Measured, MeasuredError, MeasuredKernel, MeasuredOn, MeasuredRow};
pub use profile::ProfileError;
pub use pyramid::{PyramidOption, rings};
pub use rates::DeviceRates;
pub use vdnn_ir::Precision;
pub use vdnn_pyramid::search::least_division;

use conv::ConvShape;
use profile::Profile;
use roofline::Roofline;
use std::sync::{Arc, LazyLock};
use vdnn_ir::graph::ConvAlgo;
use vdnn_ir::op::work;
use vdnn_ir::packed;
use vdnn_ir::{Bytes, Layout, Nanos, Op, TensorType};

/// Share of zeros expected in what a ReLU made: that of symmetric inputs.
pub const RELU_ZEROS: f64 = 0.5;

/// Share of the link's rate that kernels reach which pack and unpack: VGG-16, 256 images, TF32, policy
/// `conv` on an H200, 2026-11-22, 7.88 GB both ways together in 178 ms.
pub const PACKED_RATE: f64 = 0.80;

/// Direction of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CopyDir {
    /// Device to host.
    D2h,
    /// Host to device.
    H2d,
}

/// One way to run a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvOption {
    /// The algorithm.
    pub algo: ConvAlgo,
    /// Scratch it needs.
    pub workspace: Bytes,
    /// Predicted time.
    pub time: Nanos,
}

/// Parts per million: the scale of the shares a simulator multiplies rates by.
pub const PPM: u64 = 1_000_000;

/// What kernels could reach on a device at one precision, for those who price kernels that no
/// op stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// Convolutions, operations per nanosecond (a multiply-add is two).
    pub arithmetic: f64,
    /// A streaming kernel, bytes read and written per nanosecond.
    pub bandwidth: f64,
    /// From start to start of kernels that follow each other.
    pub launch: Nanos,
}

/// Predicts times on one device at one precision.
#[derive(Clone, Debug)]
pub struct CostModel {
    profile: Profile,
    precision: Precision,
    capacity: Bytes,
    overhead: Bytes,
    roofline: Roofline,
    /// Times that take precedence over the roofline.
    measured: Arc<Measured>,
    deterministic: bool,
    /// Predictions of pyramids, which take a search each.
    pyramids: Arc<pyramid::Searched>,
}

/// The shipped times: what `vdnnc profile` measured on an H200 for the networks of the
/// benchmarks, less the algorithms that another one beats in time and workspace.
fn h200_times() -> Arc<Measured> {
    static TIMES: LazyLock<Arc<Measured>> = LazyLock::new(|| {
        let text = include_str!("../devices/h200.times");
        Arc::new(text.parse().expect("the shipped table is valid"))
    });
    Arc::clone(&TIMES)
}

impl CostModel {
    /// The model of a shipped profile (`h200`, `titan-x-maxwell`, `p100`, `v100`,
    /// `rtx-2080-ti`, `cpu`), with the measured times shipped for it, or `None` if there is no
    /// such profile. A precision the device has no units for runs in f32, as the libraries do.
    pub fn named(device: &str, precision: Precision) -> Option<Self> {
        let (_, text) = profile::SHIPPED.iter().find(|(name, _)| *name == device)?;
        let model = Self::from_toml(text, precision).expect("shipped profiles are valid");
        Some(model.with_shipped_times())
    }

    /// The model of a profile in the format of the shipped ones.
    ///
    /// # Errors
    /// If the text is not TOML, a field is missing or unknown, or a number is out of range.
    pub fn from_toml(text: &str, precision: Precision) -> Result<Self, ProfileError> {
        let profile = Profile::parse(text)?;
        let capacity = profile.size("memory.capacity", &profile.memory.capacity)?;
        let overhead = match &profile.memory.overhead {
            Some(text) => profile.size("memory.overhead", text)?,
            None => Bytes::ZERO,
        };
        let roofline = Roofline::new(&profile, precision);
        let measured = Arc::default();
        Ok(Self {
            profile,
            precision,
            capacity,
            overhead,
            roofline,
            measured,
            deterministic: false,
            pyramids: Arc::default(),
        })
    }

    /// The same model with measured times, which it prefers to its own wherever it has them.
    /// They must be of this device and of the libraries the plans are to run with.
    #[must_use]
    pub fn with_measured(self, measured: impl Into<Arc<Measured>>) -> Self {
        Self { measured: measured.into(), ..self }
    }

    /// The same model with the times shipped for its GPU, if there are any.
    #[must_use]
    pub fn with_shipped_times(self) -> Self {
        let times = h200_times();
        if self.profile.gpu.as_ref() == Some(&times.on.device) { self.with_measured(times) } else { self }
    }

    /// The same model, offering measured convolution algorithms only if their results do not
    /// differ from run to run.
    #[must_use]
    pub fn with_deterministic(self, deterministic: bool) -> Self {
        Self { deterministic, ..self }
    }

    /// True if only measured algorithms whose results do not differ from run to run are offered.
    pub fn deterministic(&self) -> bool {
        self.deterministic
    }

    /// The measured times.
    pub fn measured(&self) -> &Measured {
        &self.measured
    }

    /// Names of the shipped profiles.
    pub fn names() -> &'static [&'static str] {
        &["h200", "titan-x-maxwell", "p100", "v100", "rtx-2080-ti", "cpu"]
    }

    /// The profile's name.
    pub fn device_name(&self) -> &str {
        &self.profile.name
    }

    /// The precision asked for.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The layout in which this device's fast convolutions want images, at this precision.
    pub fn layout(&self) -> Layout {
        self.roofline.layout()
    }

    /// The same model for graphs whose images have this layout. Convolutions that were not measured
    /// keep their predictions, which are of the layout of the device.
    #[must_use]
    pub fn in_layout(self, layout: Layout) -> Self {
        Self { roofline: self.roofline.in_layout(layout), ..self }
    }

    /// Device memory a process may use.
    pub fn capacity(&self) -> Bytes {
        self.capacity
    }

    /// What of a process's device memory is not its arena: context, libraries, their kernels.
    pub fn overhead(&self) -> Bytes {
        self.overhead
    }

    /// Name of the shipped profile that was measured on this GPU, by the driver's name of it.
    pub fn shipped_for(gpu: &str) -> Option<&'static str> {
        let is = |text: &str| Profile::parse(text).is_ok_and(|p| p.gpu.as_deref() == Some(gpu));
        profile::SHIPPED.iter().find(|(_, text)| is(text)).map(|(name, _)| *name)
    }

    /// The shipped times, if any were taken on this device with these libraries.
    pub fn shipped_times(on: &MeasuredOn) -> Option<Arc<Measured>> {
        let times = h200_times();
        times.on.is_same(on).then_some(times)
    }

    /// Time of one kernel, measured if it was; `algo` must be one of [`Self::conv_options`]
    /// for convolutions (any other, or none, is priced as implicit GEMM).
    pub fn kernel(
        &self,
        op: &Op,
        inputs: &[&TensorType],
        outputs: &[&TensorType],
        algo: Option<ConvAlgo>,
    ) -> Nanos {
        if let Some(time) = self.measured.time(op, inputs, outputs, self.precision, algo) {
            return time;
        }
        if let Op::Pyramid(pyramid) = op
            && let Some(time) = self.pyramid(pyramid, inputs)
        {
            return time;
        }
        let Some(shape) = ConvShape::of(op, inputs, outputs) else {
            return self.roofline.op(op, inputs, outputs);
        };
        let traffic = work::traffic(op, inputs, outputs);
        let time = |algo| self.roofline.conv(&shape, algo, traffic);
        algo.and_then(time)
            .or_else(|| time(ConvAlgo::ImplicitGemm))
            .unwrap_or_else(|| self.roofline.op(op, inputs, outputs))
    }

    /// Every algorithm that can run this convolution direction, fastest first (ties by
    /// workspace, then by algorithm). Never empty. If the convolution was measured, what was
    /// measured to run, which may all need workspace; else the roofline's, of which one needs
    /// none.
    pub fn conv_options(&self, op: &Op, inputs: &[&TensorType], outputs: &[&TensorType]) -> Vec<ConvOption> {
        let measured = self.measured.conv_options(op, inputs, outputs, self.precision, self.deterministic);
        if !measured.is_empty() {
            return measured;
        }
        match ConvShape::of(op, inputs, outputs) {
            Some(shape) => self.roofline.options(&shape, op, inputs, outputs),
            None => vec![ConvOption {
                algo: ConvAlgo::ImplicitGemm,
                workspace: Bytes::ZERO,
                time: self.kernel(op, inputs, outputs, None),
            }],
        }
    }

    /// A classic algorithm, priced by the roofline whatever was measured; `None` if it cannot run
    /// this convolution direction, or the profile has no rate for it.
    pub fn classic_option(
        &self,
        op: &Op,
        inputs: &[&TensorType],
        outputs: &[&TensorType],
        algo: ConvAlgo,
    ) -> Option<ConvOption> {
        let shape = ConvShape::of(op, inputs, outputs)?;
        self.roofline.options(&shape, op, inputs, outputs).into_iter().find(|o| o.algo == algo)
    }

    /// True if the kernel was measured, at this precision, with whatever result.
    pub fn is_measured(&self, op: &Op, inputs: &[&TensorType], outputs: &[&TensorType]) -> bool {
        self.measured.rows(op, inputs, outputs, self.precision).is_some()
    }

    /// The rates behind the predictions that are not measured.
    pub fn peaks(&self) -> Peaks {
        self.roofline.peaks()
    }

    /// Time of one copy with nothing else on the link.
    pub fn copy(&self, dir: CopyDir, bytes: Bytes) -> Nanos {
        let link = &self.profile.copy;
        let rate = match dir {
            CopyDir::D2h => link.d2h_gbps,
            CopyDir::H2d => link.h2d_gbps,
        };
        Nanos((link.latency_us * 1e3 + bytes.as_f64() / rate).ceil() as u64)
    }

    /// Bytes of plain copies that take as long as packed ones of tensors of so many bytes.
    pub fn as_plain(tensors: Bytes) -> Bytes {
        let masks = packed::MASK.as_f64() / (4 * packed::CHUNK) as f64;
        Bytes((tensors.as_f64() * (masks + 1.0 - RELU_ZEROS) / PACKED_RATE) as u64)
    }

    /// Time of one copy of a tensor that crosses the link packed ([`vdnn_ir::packed`]), with nothing
    /// else on it. [`RELU_ZEROS`] of its elements are taken for zeros, and kernels that pack for
    /// [`PACKED_RATE`] of the rate of copies.
    pub fn packed_copy(&self, dir: CopyDir, ty: &TensorType) -> Nanos {
        let masks = ty.elements().div_ceil(packed::CHUNK) as f64 * packed::MASK.as_f64();
        let crossing = masks + ty.bytes().as_f64() * (1.0 - RELU_ZEROS);
        self.copy(dir, Bytes((crossing / PACKED_RATE).ceil() as u64))
    }

    /// Rate of a copy while the other direction runs too, in millionths of its rate alone.
    pub fn link_share(&self) -> u64 {
        ((self.profile.copy.both_ways * PPM as f64).round() as u64).clamp(1, PPM)
    }

    /// Rate of a kernel while `directions` (0 to 2) copy directions run, in millionths of
    /// its rate alone: copies read or write the memory the kernel uses.
    pub fn kernel_share(&self, directions: u64) -> u64 {
        let loss = (self.profile.copy.kernel_loss * PPM as f64).round() as u64;
        PPM.saturating_sub(loss.saturating_mul(directions.min(2))).max(1)
    }
}
