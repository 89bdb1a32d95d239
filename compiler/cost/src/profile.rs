//! Device profiles: the TOML schema, its validation, and the shipped files.
//!
//! A profile states measured or published numbers only; formulas live in [`crate::conv`]
//! and [`crate::roofline`]. Units are in the field names: tera-flops per second, gigabytes
//! (10^9) per second, microseconds.

use serde::Deserialize;
use std::collections::BTreeMap;
use vdnn_ir::graph::ConvAlgo;
use vdnn_ir::{Bytes, Layout};

/// The shipped profiles: name and text.
pub(crate) const SHIPPED: [(&str, &str); 6] = [
    ("h200", include_str!("../devices/h200.toml")),
    ("titan-x-maxwell", include_str!("../devices/titan-x-maxwell.toml")),
    ("p100", include_str!("../devices/p100.toml")),
    ("v100", include_str!("../devices/v100.toml")),
    ("rtx-2080-ti", include_str!("../devices/rtx-2080-ti.toml")),
    ("cpu", include_str!("../devices/cpu.toml")),
];

/// Why a profile cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ProfileError {
    /// Not TOML, or not this schema.
    #[error("device profile: {0}")]
    Syntax(String),
    /// A number out of range.
    #[error("device profile `{profile}`: {field} is {value}, which must be {must}")]
    Range {
        /// The profile's name.
        profile: String,
        /// Path of the field.
        field: String,
        /// What it says.
        value: f64,
        /// What it may be.
        must: &'static str,
    },
    /// A size that is none.
    #[error("device profile `{profile}`: {field}: {error}")]
    Size {
        /// The profile's name.
        profile: String,
        /// Path of the field.
        field: &'static str,
        /// What the size parser said.
        error: vdnn_ir::units::ParseBytesError,
    },
    /// A table of convolution efficiencies lacks the algorithm that needs no workspace.
    #[error("device profile `{profile}`: {table} must list implicit_gemm, which every convolution can use")]
    NoImplicitGemm {
        /// The profile's name.
        profile: String,
        /// Path of the table.
        table: String,
    },
    /// An algorithm is listed where cuDNN's vocabulary has none.
    #[error("device profile `{profile}`: {table} cannot list {algo}: {why}")]
    IllegalAlgo {
        /// The profile's name.
        profile: String,
        /// Path of the table.
        table: String,
        /// The algorithm.
        algo: String,
        /// The reason.
        why: &'static str,
    },
}

/// A device, as its file describes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    /// Name on the command line.
    pub name: String,
    /// What the driver calls the device, if it is a GPU this profile was measured on.
    pub gpu: Option<String>,
    /// Memory.
    pub memory: Memory,
    /// Peak rates of the arithmetic units.
    pub peak: Peak,
    /// Kernel launch.
    pub launch: Launch,
    /// The link to the host.
    pub copy: Copy,
    /// Matrix products.
    pub gemm: Gemm,
    /// Convolutions, per precision.
    pub conv: Conv,
}

/// Memory of a device.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Memory {
    /// What a plan may use, as a size such as `12GiB`.
    pub capacity: String,
    /// What of it a process takes besides its arena (context, libraries, their kernels), as a
    /// size; nothing if absent.
    pub overhead: Option<String>,
    /// Achieved rate of a streaming kernel, read plus written.
    pub bandwidth_gbps: f64,
}

/// Peak rates. A missing rate means that the device has no such units: strict f32 is used.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Peak {
    pub f32_tflops: f64,
    pub tf32_tflops: Option<f64>,
    pub bf16_tflops: Option<f64>,
}

/// Cost of starting a kernel.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Launch {
    pub overhead_us: f64,
}

/// The link to the host.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Copy {
    pub d2h_gbps: f64,
    pub h2d_gbps: f64,
    /// From issue to the first byte.
    pub latency_us: f64,
    /// Fraction of its own rate each direction keeps while the other one runs.
    pub both_ways: f64,
    /// Fraction of its rate a kernel loses to each copy direction that runs.
    pub kernel_loss: f64,
}

/// Matrix products: fraction of the peak of the precision that is used.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Gemm {
    pub f32: f64,
    pub tf32: Option<f64>,
    pub bf16: Option<f64>,
}

/// Convolutions.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Conv {
    /// Fraction of the memory's rate that convolutions reach.
    pub bandwidth: f64,
    /// Fraction of the f32 peak when a group has one input and one output channel.
    pub depthwise: f64,
    /// Workspace of the FFT of whole images over the spectra of x, w and y it must hold: a
    /// library may keep copies.
    #[serde(default = "one")]
    pub fft_workspace: f64,
    /// How often the FFT algorithms write or read their spectra, in all, when a transform fits
    /// inside a multiprocessor.
    #[serde(default = "two")]
    pub fft_passes: f64,
    pub f32: Directions,
    pub tf32: Option<Directions>,
    pub bf16: Option<Directions>,
}

fn one() -> f64 {
    1.0
}

/// Written once, read once.
fn two() -> f64 {
    2.0
}

/// Fraction of the peak each algorithm reaches on its own arithmetic (a transform
/// algorithm does less of it). An algorithm not listed does not exist on the device.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Directions {
    /// Layout the figures were taken in.
    #[serde(default)]
    pub layout: Layout,
    /// Channels of the result are worked on in multiples of this.
    pub result_tile: u64,
    /// Channels that are summed over are worked on in multiples of this.
    pub reduction_tile: u64,
    pub fprop: BTreeMap<ConvAlgo, f64>,
    pub dgrad: BTreeMap<ConvAlgo, f64>,
    pub wgrad: BTreeMap<ConvAlgo, f64>,
}

impl Profile {
    /// Reads and validates a profile.
    pub(crate) fn parse(text: &str) -> Result<Self, ProfileError> {
        let profile: Self = toml::from_str(text).map_err(|e| ProfileError::Syntax(e.to_string()))?;
        profile.validate()?;
        Ok(profile)
    }

    /// Reads a size of the profile.
    pub(crate) fn size(&self, field: &'static str, text: &str) -> Result<Bytes, ProfileError> {
        text.parse().map_err(|error| ProfileError::Size { profile: self.name.clone(), field, error })
    }

    fn check(&self, field: &str, value: f64, ok: bool, must: &'static str) -> Result<(), ProfileError> {
        // A NaN fails every comparison, so `ok` is false for it.
        if ok {
            return Ok(());
        }
        Err(ProfileError::Range { profile: self.name.clone(), field: field.to_owned(), value, must })
    }

    fn rate(&self, field: &str, value: Option<f64>) -> Result<(), ProfileError> {
        value.map_or(Ok(()), |v| self.check(field, v, (1e-3..=1e9).contains(&v), "between 0.001 and 1e9"))
    }

    fn efficiency(&self, field: &str, value: Option<f64>) -> Result<(), ProfileError> {
        value.map_or(Ok(()), |v| self.check(field, v, (1e-6..=1.0).contains(&v), "between 1e-6 and 1"))
    }

    fn validate(&self) -> Result<(), ProfileError> {
        self.rate("memory.bandwidth_gbps", Some(self.memory.bandwidth_gbps))?;
        self.rate("peak.f32_tflops", Some(self.peak.f32_tflops))?;
        self.rate("peak.tf32_tflops", self.peak.tf32_tflops)?;
        self.rate("peak.bf16_tflops", self.peak.bf16_tflops)?;
        self.rate("copy.d2h_gbps", Some(self.copy.d2h_gbps))?;
        self.rate("copy.h2d_gbps", Some(self.copy.h2d_gbps))?;
        for (field, us) in
            [("launch.overhead_us", self.launch.overhead_us), ("copy.latency_us", self.copy.latency_us)]
        {
            self.check(field, us, (0.0..=1e6).contains(&us), "between 0 and 1e6")?;
        }
        let both = self.copy.both_ways;
        self.check("copy.both_ways", both, (0.1..=1.0).contains(&both), "between 0.1 and 1")?;
        let loss = self.copy.kernel_loss;
        self.check("copy.kernel_loss", loss, (0.0..=0.4).contains(&loss), "between 0 and 0.4")?;
        for (field, e) in
            [("gemm.f32", Some(self.gemm.f32)), ("gemm.tf32", self.gemm.tf32), ("gemm.bf16", self.gemm.bf16)]
        {
            self.efficiency(field, e)?;
        }
        self.efficiency("conv.bandwidth", Some(self.conv.bandwidth))?;
        self.efficiency("conv.depthwise", Some(self.conv.depthwise))?;
        for (field, times) in
            [("conv.fft_workspace", self.conv.fft_workspace), ("conv.fft_passes", self.conv.fft_passes)]
        {
            self.check(field, times, (1.0..=16.0).contains(&times), "between 1 and 16")?;
        }
        let tables = [
            ("f32", Some(&self.conv.f32)),
            ("tf32", self.conv.tf32.as_ref()),
            ("bf16", self.conv.bf16.as_ref()),
        ];
        for (precision, table) in tables {
            let Some(table) = table else { continue };
            for (field, tile) in
                [("result_tile", table.result_tile), ("reduction_tile", table.reduction_tile)]
            {
                let field = format!("conv.{precision}.{field}");
                self.check(&field, tile as f64, (1..=256).contains(&tile), "between 1 and 256")?;
            }
            for (direction, list) in
                [("fprop", &table.fprop), ("dgrad", &table.dgrad), ("wgrad", &table.wgrad)]
            {
                self.validate_algos(precision, direction, list)?;
            }
        }
        Ok(())
    }

    fn validate_algos(
        &self,
        precision: &str,
        direction: &str,
        list: &BTreeMap<ConvAlgo, f64>,
    ) -> Result<(), ProfileError> {
        let table = format!("conv.{precision}.{direction}");
        if !list.contains_key(&ConvAlgo::ImplicitGemm) {
            return Err(ProfileError::NoImplicitGemm { profile: self.name.clone(), table });
        }
        for (&algo, &value) in list {
            self.efficiency(&format!("{table}.{algo}"), Some(value))?;
            let why = match algo {
                ConvAlgo::Engine(_) => "engines have measured times, not efficiencies",
                ConvAlgo::Gemm if direction != "fprop" => "explicit im2col exists forward only",
                ConvAlgo::Winograd if direction == "wgrad" => "fused Winograd has no weight gradient",
                ConvAlgo::Fft | ConvAlgo::FftTiling | ConvAlgo::Winograd | ConvAlgo::WinogradNonfused
                    if precision != "f32" =>
                {
                    "transforms run in f32 only"
                }
                _ => continue,
            };
            return Err(ProfileError::IllegalAlgo {
                profile: self.name.clone(),
                table,
                algo: algo.to_string(),
                why,
            });
        }
        Ok(())
    }
}
