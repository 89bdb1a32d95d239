//! A device profile from a few rates: of a GPU that was calibrated, or whose data sheet is all
//! that is known.
//!
//! How much of a peak convolutions and products reach differs less between GPUs than the peaks
//! do; the shares are those of the H200's profile, and measured kernel times take precedence
//! over all of them.

use std::fmt::Write;
use vdnn_ir::Bytes;

/// What is known of a device. Rates in 10^12 operations and 10^9 bytes per second, times in
/// microseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceRates {
    /// Name of the profile.
    pub name: String,
    /// What the driver calls the device.
    pub gpu: String,
    /// Where the numbers come from; lines of a comment.
    pub source: String,
    /// Device memory a process may use.
    pub capacity: Bytes,
    /// What of it is not the arena's.
    pub overhead: Bytes,
    /// Of a streaming kernel, read plus written.
    pub bandwidth_gbps: f64,
    /// Products in strict f32.
    pub f32_tflops: f64,
    /// Products in TF32, if there are units for it.
    pub tf32_tflops: Option<f64>,
    /// Products in bf16, if there are units for it.
    pub bf16_tflops: Option<f64>,
    /// From start to start of dependent kernels.
    pub launch_us: f64,
    /// Device to host, pinned, alone.
    pub d2h_gbps: f64,
    /// Host to device, pinned, alone.
    pub h2d_gbps: f64,
    /// From issue of a copy to its first byte.
    pub latency_us: f64,
    /// Fraction of its rate a direction keeps while the other one runs.
    pub both_ways: f64,
}

impl DeviceRates {
    /// The profile's text, which [`CostModel::from_toml`](crate::CostModel::from_toml) reads.
    pub fn to_toml(&self) -> String {
        let mut t = String::new();
        for line in self.source.lines() {
            let _ = writeln!(t, "# {line}");
        }
        let kernel_loss = (self.d2h_gbps.max(self.h2d_gbps) / self.bandwidth_gbps).clamp(0.0, 0.4);
        let _ = write!(
            t,
            "name = {}\ngpu = {}\n\n[memory]\ncapacity = \"{}B\"\noverhead = \"{}B\"\nbandwidth_gbps = {:.1}\n\n\
             [peak]\nf32_tflops = {:.2}\n",
            quoted(&self.name),
            quoted(&self.gpu),
            self.capacity.0,
            self.overhead.0,
            self.bandwidth_gbps,
            self.f32_tflops
        );
        for (field, rate) in [("tf32_tflops", self.tf32_tflops), ("bf16_tflops", self.bf16_tflops)] {
            if let Some(rate) = rate {
                let _ = writeln!(t, "{field} = {rate:.2}");
            }
        }
        let _ = write!(
            t,
            "\n[launch]\noverhead_us = {:.2}\n\n[copy]\nd2h_gbps = {:.2}\nh2d_gbps = {:.2}\nlatency_us = {:.2}\n\
             both_ways = {:.3}\nkernel_loss = {kernel_loss:.4} # a copy's share of the memory's rate\n\n\
             # From here on shares of the peaks, as measured on an H200.\n",
            self.launch_us, self.d2h_gbps, self.h2d_gbps, self.latency_us, self.both_ways
        );
        t.push_str(SHARES);
        t
    }
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

const SHARES: &str = r#"[gemm]
f32 = 0.85
tf32 = 0.80
bf16 = 0.75

[conv]
bandwidth = 0.78
depthwise = 0.05

[conv.f32]
result_tile = 32
reduction_tile = 4
[conv.f32.fprop]
implicit_gemm = 0.45
implicit_precomp_gemm = 0.75
gemm = 0.65
fft = 0.40
fft_tiling = 0.51
winograd_nonfused = 0.72
[conv.f32.dgrad]
implicit_gemm = 0.35
implicit_precomp_gemm = 0.60
fft = 0.40
fft_tiling = 0.51
winograd_nonfused = 0.72
[conv.f32.wgrad]
implicit_gemm = 0.30
implicit_precomp_gemm = 0.50
fft = 0.35
fft_tiling = 0.45
winograd_nonfused = 0.62

[conv.tf32]
layout = "channels_last"
result_tile = 64
reduction_tile = 32
[conv.tf32.fprop]
implicit_gemm = 0.18
implicit_precomp_gemm = 0.95
[conv.tf32.dgrad]
implicit_gemm = 0.18
implicit_precomp_gemm = 0.90
[conv.tf32.wgrad]
implicit_gemm = 0.09
implicit_precomp_gemm = 0.48

[conv.bf16]
layout = "channels_last"
result_tile = 64
reduction_tile = 32
[conv.bf16.fprop]
implicit_gemm = 0.17
implicit_precomp_gemm = 0.92
[conv.bf16.dgrad]
implicit_gemm = 0.17
implicit_precomp_gemm = 0.92
[conv.bf16.wgrad]
implicit_gemm = 0.16
implicit_precomp_gemm = 0.88
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CopyDir, CostModel, Measured, MeasuredKernel, Precision};
    use vdnn_ir::{Layout, Op};

    /// What the H200's profile says.
    fn h200() -> DeviceRates {
        DeviceRates {
            name: "h200 \"again\"".to_owned(),
            gpu: "NVIDIA H200".to_owned(),
            source: "measured on 2026-11-21\ndriver 13.0".to_owned(),
            capacity: Bytes(139 << 30),
            overhead: Bytes(700_000_000),
            bandwidth_gbps: 4200.0,
            f32_tflops: 50.6,
            tf32_tflops: Some(397.0),
            bf16_tflops: Some(790.0),
            launch_us: 2.5,
            d2h_gbps: 55.4,
            h2d_gbps: 55.6,
            latency_us: 8.0,
            both_ways: 0.914,
        }
    }

    #[test]
    fn the_rates_of_the_h200_give_the_h200s_predictions() {
        let text = h200().to_toml();
        assert!(text.starts_with("# measured on 2026-11-21\n# driver 13.0\nname = "), "{text}");
        for precision in Precision::ALL {
            let made = CostModel::from_toml(&text, precision).expect("a profile");
            let shipped = CostModel::named("h200", precision).expect("shipped");
            assert_eq!(made.device_name(), "h200 \"again\"");
            assert_eq!((made.capacity(), made.overhead()), (shipped.capacity(), shipped.overhead()));
            assert_eq!((made.layout(), made.link_share()), (shipped.layout(), shipped.link_share()));
            let bytes = Bytes(1 << 30);
            for dir in [CopyDir::D2h, CopyDir::H2d] {
                assert_eq!(made.copy(dir, bytes), shipped.copy(dir, bytes));
            }
            // Every kernel that was measured, as if none had been.
            let [made, guessed] = [made, shipped.clone()].map(|m| m.with_measured(Measured::default()));
            assert!(shipped.measured().len() > 1000);
            // But for pyramids, whose prices calibration does not measure: they are fitted.
            let layers = |k: &MeasuredKernel<'_>| !matches!(k.op, Op::Pyramid(_));
            for kernel in shipped.measured().kernels().filter(layers) {
                let (inputs, outputs): (Vec<_>, Vec<_>) =
                    (kernel.inputs.iter().collect(), kernel.outputs.iter().collect());
                let time = |m: &CostModel| m.kernel(kernel.op, &inputs, &outputs, None);
                assert_eq!(time(&made), time(&guessed), "{}", kernel.op);
                if kernel.op.is_conv() {
                    let options = |m: &CostModel| m.conv_options(kernel.op, &inputs, &outputs);
                    assert_eq!(options(&made), options(&guessed), "{}", kernel.op);
                }
            }
        }
    }

    #[test]
    fn a_gpu_without_matrix_units_plans_in_rows() {
        let rates = DeviceRates { tf32_tflops: None, bf16_tflops: None, ..h200() };
        let made = CostModel::from_toml(&rates.to_toml(), Precision::Tf32).expect("a profile");
        assert_eq!(made.layout(), Layout::RowMajor);
    }

    #[test]
    fn profiles_are_found_by_the_drivers_name() {
        assert_eq!(CostModel::shipped_for("NVIDIA H200"), Some("h200"));
        assert_eq!(CostModel::shipped_for("NVIDIA H2"), None);
    }
}
