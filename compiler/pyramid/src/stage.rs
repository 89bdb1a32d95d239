//! A stage of bottleneck blocks as one kernel whose layers follow one another image by image, what
//! lies between them in rings of a few images.

use crate::machine::Machine;
use std::fmt;
use std::str::FromStr;
use vdnn_ir::op::{ConvAttrs, PyramidAttrs, PyramidKind, PyramidLayer, PyramidStep};
use vdnn_ir::types::Layout;
use vdnn_ir::{Bytes, DType, Nanos, Precision, TensorType};

/// Channels inside a block.
const NARROW: u64 = 64;
/// Channels between blocks.
const WIDE: u64 = 256;
/// Operations per nanosecond that all layers together reach.
const RATE: f64 = 250e3;

/// A stage of bottleneck blocks: 1x1 to 64 channels, 3x3, 1x1 to 256 channels with the residual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Blocks.
    pub blocks: u32,
    /// Rows of its images.
    pub height: u64,
    /// Columns of its images.
    pub width: u64,
    /// The first block's residual is a 1x1 convolution of the stage's input, which has 64 channels;
    /// else it is the input, of 256.
    pub side: bool,
}

/// How a stage runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageConfig {
    /// Images that a ring holds.
    pub rings: u32,
}

impl fmt::Display for StageConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rings {}", self.rings)
    }
}

impl FromStr for StageConfig {
    type Err = String;

    /// Reads `rings 6`.
    fn from_str(text: &str) -> Result<Self, String> {
        let rings = text.strip_prefix("rings ").and_then(|n| n.parse().ok()).filter(|&n| n > 0);
        rings
            .map(|rings| Self { rings })
            .ok_or_else(|| format!("`{text}` is no way to run a stage: `rings N`"))
    }
}

/// The stage that a pyramid is; `inputs` are the types of its operands. `None` if its layers are not
/// exactly those of one: f32, every convolution with a bias, 3x3 with padding 1, no strides, rows
/// and columns multiples of 8.
pub fn stage_of(pyramid: &PyramidAttrs, inputs: &[&TensorType]) -> Option<Stage> {
    let x = *inputs.first()?;
    let &[_, channels, height, width] = x.dims.as_slice() else { return None };
    let plain = inputs.iter().all(|t| t.dtype == DType::F32);
    if !plain || height % 8 != 0 || width % 8 != 0 || height * width == 0 {
        return None;
    }
    // Per layer, the value that it reads, its window, what follows it and its channels.
    let mut weights = inputs[1..].chunks_exact(2);
    let mut layers = Vec::new();
    for (i, layer) in pyramid.layers.iter().enumerate() {
        let PyramidKind::Conv { conv, bias: true } = &layer.kind else { return None };
        layers.push((layer.reads(i), kernel_of(conv)?, layer, *weights.next()?[0].dims.first()?));
    }
    let side = channels == NARROW;
    if !side && channels != WIDE {
        return None;
    }
    let relu = |l: &PyramidLayer| l.then.as_slice() == [PyramidStep::Relu];
    let (mut at, mut blocks) = (0, 0);
    while at < layers.len() {
        // Numbers of the block's input and of its residual.
        let (input, with_side) = (at, side && blocks == 0);
        let &[first, second] = layers.get(at..at + 2)? else { return None };
        let opens = (first.0, first.1, first.3) == (input, 1, NARROW) && relu(first.2);
        let goes_on = (second.0, second.1, second.3) == (input + 1, 3, NARROW) && relu(second.2);
        at += 2;
        let mut residual = input;
        if with_side {
            let side = layers.get(at)?;
            if (side.0, side.1, side.3) != (input, 1, WIDE) || !side.2.then.is_empty() {
                return None;
            }
            at += 1;
            residual = at;
        }
        let last = layers.get(at)?;
        let of = u32::try_from(residual).ok()?;
        let ends = last.2.then.as_slice() == [PyramidStep::AddLayer { of }, PyramidStep::Relu];
        if !opens || !goes_on || !ends || (last.0, last.1, last.3) != (input + 2, 1, WIDE) {
            return None;
        }
        at += 1;
        blocks += 1;
    }
    (blocks > 0).then_some(Stage { blocks, height, width, side })
}

/// 1 or 3, of a convolution that keeps rows and columns.
fn kernel_of(conv: &ConvAttrs) -> Option<u64> {
    let pad = match conv.kernel.as_slice() {
        [1, 1] => 0,
        [3, 3] => 1,
        _ => return None,
    };
    (*conv == ConvAttrs::square(conv.kernel[0], 1, pad, 1)).then_some(conv.kernel[0])
}

/// The rings of a stage.
pub fn workspace(stage: &Stage, config: &StageConfig, batch: u64) -> Bytes {
    let blocks = u64::from(stage.blocks);
    let channels = blocks * (2 * NARROW + WIDE) - WIDE + u64::from(stage.side) * WIDE;
    let image = channels.saturating_mul(stage.height).saturating_mul(stage.width).saturating_mul(4);
    Bytes(image.saturating_mul(u64::from(config.rings).min(batch)))
}

/// Predicted time of a stage on an H200.
pub fn predict(stage: &Stage, _config: &StageConfig, batch: u64) -> Nanos {
    let blocks = u64::from(stage.blocks) as f64;
    let block = (WIDE * NARROW * 2 + 9 * NARROW * NARROW) as f64;
    let first = if stage.side { (NARROW * NARROW) as f64 } else { 0.0 };
    let pixels = stage.height as f64 * stage.width as f64 * batch as f64;
    Nanos((2.0 * pixels * (blocks * block + first) / RATE) as u64 + 20_000)
}

/// Ways to run a stage that are worth measuring; none if there is no kernel.
pub fn configs(
    _stage: &Stage,
    precision: Precision,
    layout: Layout,
    _batch: u64,
    machine: &Machine,
) -> Vec<StageConfig> {
    if precision != Precision::Tf32 || layout != Layout::ChannelsLast || machine.name != "h200" {
        return Vec::new();
    }
    vec![StageConfig { rings: 6 }]
}
