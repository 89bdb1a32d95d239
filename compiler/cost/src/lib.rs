//! Device profiles and the cost model. Used by the passes, to decide, and by the
//! simulator, to predict. A leaf above the IR: knows neither plans nor passes.

use vdnn_ir::graph::ConvAlgo;
use vdnn_ir::{Bytes, Nanos, Op, TensorType};

/// Direction of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CopyDir {
    /// Device to host.
    D2h,
    /// Host to device.
    H2d,
}

/// Arithmetic the device's matrix units use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Precision {
    /// Strict f32.
    F32,
    /// TF32 products, f32 sums.
    Tf32,
    /// bf16 products, f32 sums.
    Bf16,
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

/// Predicts times on one device at one precision.
#[derive(Clone, Debug)]
pub struct CostModel {
    _private: (),
}

impl CostModel {
    /// The model of a shipped profile (`h200`, `titan-x-maxwell`, `p100`, `v100`,
    /// `rtx-2080-ti`, `cpu`), or `None` if there is no such profile.
    pub fn named(device: &str, precision: Precision) -> Option<Self> {
        let _ = (device, precision);
        None
    }
    /// Names of the shipped profiles.
    pub fn names() -> &'static [&'static str] {
        &["h200", "titan-x-maxwell", "p100", "v100", "rtx-2080-ti", "cpu"]
    }
    /// The profile's name.
    pub fn device_name(&self) -> &str {
        ""
    }
    /// Device memory a plan may use.
    pub fn capacity(&self) -> Bytes {
        Bytes(0)
    }
    /// Time of one kernel; `algo` must be one of [`Self::conv_options`] for convolutions.
    pub fn kernel(
        &self,
        op: &Op,
        inputs: &[&TensorType],
        outputs: &[&TensorType],
        algo: Option<ConvAlgo>,
    ) -> Nanos {
        let _ = (op, inputs, outputs, algo);
        Nanos(0)
    }
    /// Every algorithm that can run this convolution direction, fastest first (ties by
    /// workspace, then by algorithm). Never empty; the one without workspace is always in it.
    pub fn conv_options(&self, op: &Op, inputs: &[&TensorType], outputs: &[&TensorType]) -> Vec<ConvOption> {
        let _ = (op, inputs, outputs);
        Vec::new()
    }
    /// Time of one copy with nothing else on the link.
    pub fn copy(&self, dir: CopyDir, bytes: Bytes) -> Nanos {
        let _ = (dir, bytes);
        Nanos(0)
    }
}
