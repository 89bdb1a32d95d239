//! A stage of bottleneck blocks as one kernel whose layers follow one another image by image, what
//! lies between them in rings of a few images.
//!
//! Unlike a pyramid's tiles, which a block takes through all layers, every block has one *role*, a layer
//! or two that meet, keeps its weights in shared memory and hands its results to the blocks of the
//! next role through global memory, of which so little is in use that it stays in the second-level
//! cache. Nothing is computed twice, nothing waits for a whole batch, and images of a batch need
//! no more room than a few of them. The roles: the first 1x1 convolution; per block of the network
//! the 3x3 convolution, and its last 1x1 convolution with the residual and the first one of the next
//! block. Who waits for whom is counted per eight rows of an image.

mod print;

use crate::cuda::CudaError;
use crate::kernel::Kernel;
use crate::machine::Machine;
use std::fmt;
use std::str::FromStr;
use vdnn_ir::op::{PyramidAttrs, PyramidLayer, PyramidStep};
use vdnn_ir::types::Layout;
use vdnn_ir::{Bytes, DType, Nanos, Precision, TensorType};

/// Channels inside a block.
const NARROW: u64 = 64;
/// Channels between blocks.
const WIDE: u64 = 256;
/// Most images in a batch, and most rows and columns: positions are 32 bits.
const MOST_IMAGES: u64 = 1 << 16;
const MOST_EXTENT: u64 = 1 << 10;

/// Which part of the multiprocessors' time each role takes, in the order of [`Role`]; fitted, as
/// shares of 132, to where none of ResNet-50's roles waits longer than others (H200, 2026-11-22).
const SHARES: [f64; 5] = [9.0, 16.3, 33.0, 24.0, 17.0];

/// Microseconds of one of [`SHARES`] on one of 132 multiprocessors per 1,000 positions, and of a launch until
/// all roles have something to do. Fitted to the same stage at 16 to 256 images.
const SHARE: f64 = 2.792;
const START: f64 = 77.0;

/// What a block does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The first convolution.
    Enter,
    /// A 3x3 convolution.
    Window,
    /// The end of the first block, whose residual is a convolution, with what follows it.
    Side,
    /// The end of a block with what follows it.
    Join,
    /// The end of the last block.
    Leave,
}

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

/// Most rings of a stage.
const MOST_RINGS: usize = 14;

/// How a stage runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageConfig {
    /// Images that each ring holds, at least 2, in the order of [`Stage::rings`]; 0 behind the last.
    rings: [u32; MOST_RINGS],
    /// Blocks of threads, all of which must run at once: at most one per multiprocessor.
    pub blocks: u32,
}

impl StageConfig {
    /// `None` if there are more rings than any stage has.
    pub fn new(rings: &[u32], blocks: u32) -> Option<Self> {
        let mut all = [0; MOST_RINGS];
        all.get_mut(..rings.len())?.copy_from_slice(rings);
        Some(Self { rings: all, blocks })
    }

    /// Images of the rings of a stage; 0 if the configuration is one of a smaller stage.
    fn rings(&self, stage: &Stage) -> &[u32] {
        &self.rings[..stage.rings().count().min(MOST_RINGS)]
    }

    /// Rings that let every warp group of all roles have a tile, with a little to spare: less is slower,
    /// more is not faster (measured).
    fn balanced(stage: &Stage, blocks: u32) -> Option<Self> {
        let all = shared_out(&stage.roles(), blocks)?;
        let tiles = (stage.height / 8 * stage.width / 8) as f64;
        let flight = |roles: std::ops::RangeInclusive<usize>| {
            all.get(roles).unwrap_or_default().iter().map(|&n| 3.0 * f64::from(n)).sum::<f64>() / tiles
        };
        let rings = (0..stage.rings().count()).map(|i| {
            let (kind, enter) = (i % 3, 2 * (i / 3));
            let images = match kind {
                0 => flight(enter..=enter + 1) + 0.93,
                1 => flight(enter + 1..=enter + 2) + 0.93,
                _ => flight(enter + 2..=enter + 4) + 1.53,
            };
            (images.ceil() as u32).clamp(2, 64)
        });
        Self::new(&rings.collect::<Vec<_>>(), blocks)
    }
}

impl Stage {
    /// Channels of the rings: per block of what its 3x3 convolution reads, of what that makes, and of
    /// its result, but the last.
    pub fn rings(&self) -> impl Iterator<Item = u64> + use<> {
        let all = 3 * self.blocks as usize;
        [NARROW, NARROW, WIDE].into_iter().cycle().take(all.saturating_sub(1))
    }

    /// The role of each kind of block, first to last.
    fn roles(&self) -> Vec<Role> {
        let ends = (1..=self.blocks).map(|b| match b {
            b if b == self.blocks => Role::Leave,
            1 => Role::Side,
            _ => Role::Join,
        });
        std::iter::once(Role::Enter).chain(ends.flat_map(|end| [Role::Window, end])).collect()
    }
}

/// How many of `blocks` every role has: one at least, and each next one where most is left to do.
fn shared_out(roles: &[Role], blocks: u32) -> Option<Vec<u32>> {
    let mut all = vec![1u32; roles.len()];
    let left = |all: &[u32], i: usize| SHARES[roles[i] as usize] / f64::from(all[i]);
    for _ in roles.len()..usize::try_from(blocks).ok()? {
        let busiest =
            (0..roles.len()).max_by(|&i, &j| left(&all, i).total_cmp(&left(&all, j)).then(j.cmp(&i)))?;
        all[busiest] += 1;
    }
    (all.iter().sum::<u32>() == blocks).then_some(all)
}

impl fmt::Display for StageConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("rings")?;
        for ring in self.rings.iter().take_while(|n| **n > 0) {
            write!(f, " {ring}")?;
        }
        write!(f, " blocks {}", self.blocks)
    }
}

impl FromStr for StageConfig {
    type Err = String;

    /// Reads `rings 2 4 6 4 3 5 3 3 blocks 132`.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |t: &str| t.parse::<u32>().ok().filter(|&n| n > 0);
        let way = || {
            let (rings, blocks) = text.strip_prefix("rings ")?.split_once(" blocks ")?;
            let rings = rings.split(' ').map(number).collect::<Option<Vec<u32>>>()?;
            Self::new(&rings, number(blocks)?)
        };
        way()
            .ok_or_else(|| format!("`{text}` is no way to run a stage, such as `rings 3 3 4 3 3 blocks 132`"))
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
    let side = channels == NARROW;
    if !side && channels != WIDE {
        return None;
    }
    let blocks = u32::try_from(pyramid.layers.len().saturating_sub(usize::from(side)) / 3).ok()?;
    if blocks == 0 || pyramid.layers != PyramidAttrs::stage(blocks, side).layers {
        return None;
    }
    // Those with a ReLU alone stay inside a block.
    let outputs =
        |layer: &PyramidLayer| if layer.then.as_slice() == [PyramidStep::Relu] { NARROW } else { WIDE };
    let weights = inputs[1..].chunks_exact(2).map(|operands| operands[0].dims.first().copied());
    let wanted = pyramid.layers.iter().map(|layer| Some(outputs(layer)));
    weights.eq(wanted).then_some(Stage { blocks, height, width, side })
}

/// The bytes of counters at the front of the workspace, which must be zero when the kernel begins.
pub fn counters(stage: &Stage, batch: u64) -> Bytes {
    let roles = 1 + 2 * u64::from(stage.blocks);
    Bytes((4 * roles).saturating_mul(batch).saturating_mul(stage.height / 8).next_multiple_of(256))
}

/// What a kernel needs besides operands and the result: counters, then rings.
pub fn workspace(stage: &Stage, config: &StageConfig, batch: u64) -> Bytes {
    let position = stage.height.saturating_mul(stage.width);
    let channels: u64 = config.rings(stage).iter().zip(stage.rings()).map(|(&n, c)| c * u64::from(n)).sum();
    Bytes(counters(stage, batch).0.saturating_add((4 * channels).saturating_mul(position)))
}

/// Predicted time of a stage on an H200: that of the role with the most to do per block.
pub fn predict(stage: &Stage, config: &StageConfig, batch: u64) -> Nanos {
    let roles = stage.roles();
    let Some(blocks) = shared_out(&roles, config.blocks) else { return Nanos(u64::MAX) };
    let busiest = roles.iter().zip(blocks).map(|(r, n)| SHARES[*r as usize] / f64::from(n));
    let positions = stage.height as f64 * stage.width as f64 * batch as f64 / 1e3;
    Nanos(((START + busiest.fold(0.0, f64::max) * positions * SHARE) * 1e3) as u64)
}

/// Ways to run a stage that are worth measuring; none if there is no kernel.
pub fn configs(
    stage: &Stage,
    precision: Precision,
    layout: Layout,
    batch: u64,
    machine: &Machine,
) -> Vec<StageConfig> {
    let blocks = u32::try_from(machine.multiprocessors).unwrap_or(u32::MAX);
    let runs = |c: &StageConfig| shares(stage, c, precision, layout, batch).is_ok();
    // Prices are fitted to this one.
    StageConfig::balanced(stage, blocks).into_iter().filter(|c| machine.name == "h200" && runs(c)).collect()
}

/// The kernel of a stage over `batch` images. Its parameters are pointers: the operands of the pyramid
/// in order, the result, and [`workspace`] bytes whose [`counters`] are zero. It needs all of its
/// blocks to run at once.
///
/// # Errors
/// If there is no kernel of this kind for the stage, precision and layout.
pub fn kernel(
    stage: &Stage,
    config: &StageConfig,
    precision: Precision,
    layout: Layout,
    batch: u64,
) -> Result<Kernel, CudaError> {
    let blocks = shares(stage, config, precision, layout, batch)?;
    Ok(print::kernel(stage, config, batch, &stage.roles(), &blocks))
}

/// How many blocks of threads each role of [`kernel`] has.
fn shares(
    stage: &Stage,
    config: &StageConfig,
    precision: Precision,
    layout: Layout,
    batch: u64,
) -> Result<Vec<u32>, CudaError> {
    let unsupported = |what| Err(CudaError::Unsupported { what });
    match (precision, layout) {
        (Precision::Tf32, Layout::ChannelsLast) => {}
        (Precision::Tf32, _) => return unsupported("stages of row-major images"),
        _ => return Err(CudaError::Precision(precision)),
    }
    if !stage.side {
        return unsupported("stages whose first residual is their input");
    }
    if batch == 0 || batch > MOST_IMAGES || stage.height.max(stage.width) > MOST_EXTENT {
        return Err(CudaError::TooLarge);
    }
    if stage.blocks < 2 {
        return unsupported("stages of one block");
    }
    let rings = config.rings(stage);
    if rings.len() < stage.rings().count() || rings.iter().any(|n| !(2..=64).contains(n)) {
        return unsupported("rings of less than 2 or more than 64 images, or too few");
    }
    shared_out(&stage.roles(), config.blocks)
        .ok_or(CudaError::Unsupported { what: "a stage with more roles than blocks" })
}
