//! Tile programs: what one thread block does for its tile, as data.
//!
//! A program is the pyramid with everything resolved: buffers with their places, extents and
//! [`Track`]s, and a body that every block runs once per step. Nothing in the body depends on
//! the tile but through the tracks, so one program serves all blocks, and what prints it as a
//! kernel needs no geometry of its own.

use crate::chain::{Chain, Kind, Pointwise, Shape, Window};
use crate::cost::product;
use crate::geometry::{Geometry, Track};
use crate::tiling::{Mode, Tiling, TilingError};
use serde::{Deserialize, Serialize};
use vdnn_ir::types::Real;
use vdnn_ir::{Bytes, Precision};

/// Where a buffer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// The block's shared memory.
    Shared,
    /// The accumulators of the block's threads: an element is written and read by one thread.
    Registers,
}

/// What a buffer holds outside its layer's domain, which is what the next layer reads there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outside {
    /// In front of convolutions and mean pools.
    Zero,
    /// In front of maximum pools.
    MinusInfinity,
}

impl Outside {
    /// The number.
    pub fn value(self) -> f32 {
        match self {
            Self::Zero => 0.0,
            Self::MinusInfinity => f32::NEG_INFINITY,
        }
    }
}

/// A buffer of a block, `[channels, rows, columns]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// Where it lies.
    pub space: Space,
    /// First byte in its space.
    pub offset: Bytes,
    /// Channels.
    pub channels: u64,
    /// Row `y` is kept at `y` modulo the number of rows; else at `y` less the window's first.
    pub ring: bool,
    /// Content outside the domain.
    pub outside: Outside,
    /// Rows.
    pub y: Track,
    /// Columns.
    pub x: Track,
}

impl Buffer {
    /// Number of elements; saturates.
    pub fn elements(&self) -> u64 {
        product(&[self.channels, self.y.capacity, self.x.capacity])
    }
}

/// A pointwise function with its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, lo), hi)`.
    Clip {
        /// Lower bound.
        lo: Real,
        /// Upper bound.
        hi: Real,
    },
    /// `x * scale[c] + shift[c]`.
    Scale {
        /// Operand.
        scale: u32,
        /// Operand.
        shift: u32,
    },
    /// `x + r` at the same position.
    Add {
        /// Operand, of the result's shape.
        residual: u32,
    },
}

/// What a pool computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolKind {
    /// The maximum.
    Max,
    /// The mean.
    Mean {
        /// Divide by the taps in the padded image, else by those in the image.
        count_include_pad: bool,
        /// Rows and columns of the image.
        image: [u64; 2],
    },
}

/// One instruction of a body; buffers and operands by number. All act on what their result's
/// track says is new in the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Instruction {
    /// Copies the input (operand 0) into a buffer, inside the image.
    Load {
        /// Result.
        to: u32,
        /// Applied to every element.
        then: Vec<Step>,
    },
    /// Writes the buffer's outside value to the positions outside the image.
    Mask {
        /// The buffer.
        buffer: u32,
    },
    /// A convolution; each element's sum starts with the bias and goes through the group's
    /// channels, then kernel rows, then kernel columns.
    Conv {
        /// Buffer that is read.
        from: u32,
        /// Result.
        to: u32,
        /// Geometry.
        window: Window,
        /// Groups.
        groups: u64,
        /// Operand `[M,C/groups,ky,kx]`.
        weight: u32,
        /// Operand `[M]`.
        bias: Option<u32>,
        /// Applied to every sum.
        then: Vec<Step>,
    },
    /// A pool.
    Pool {
        /// Buffer that is read.
        from: u32,
        /// Result.
        to: u32,
        /// Geometry.
        window: Window,
        /// Maximum or mean.
        kind: PoolKind,
        /// Applied to every element.
        then: Vec<Step>,
    },
    /// Copies a buffer to the result, inside the image.
    Store {
        /// The buffer.
        from: u32,
    },
    /// All threads of the block wait for each other.
    Sync,
    /// The step ends: rows that leave the windows are given up.
    Advance,
}

/// What a block does in every step.
pub type Body = Vec<Instruction>;

/// A tile program.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Arithmetic: strict f32; TF32 or bf16 factors with sums in f32. With bf16, buffers in
    /// shared memory hold bf16.
    pub precision: Precision,
    /// The chain's input.
    pub input: Shape,
    /// The chain's result.
    pub output: Shape,
    /// Elements of each operand, [`Chain::operands`] in order.
    pub operands: Vec<u64>,
    /// Blocks along y and x, per image.
    pub grid: [u64; 2],
    /// Steps of a block.
    pub steps: std::ops::Range<i64>,
    /// Shared memory of a block.
    pub shared: Bytes,
    /// Accumulators of a block, all threads together.
    pub accumulators: Bytes,
    /// Buffers.
    pub buffers: Vec<Buffer>,
    /// What runs in every step.
    pub body: Body,
}

/// Bytes of an element in shared and in device memory.
pub(crate) fn element(precision: Precision) -> Bytes {
    if precision == Precision::Bf16 { Bytes(2) } else { Bytes(4) }
}

/// Bytes of an accumulator.
pub(crate) const ACCUMULATOR: Bytes = Bytes(4);

impl Program {
    /// The program of a chain cut this way.
    ///
    /// Without steps, buffers whose neighbours only live at the same time share bytes: they lie
    /// at the two ends of the shared memory in turn.
    ///
    /// # Errors
    /// If the tiling does not cut the chain.
    pub fn new(chain: &Chain, tiling: Tiling, precision: Precision) -> Result<Self, TilingError> {
        Ok(Self::of(chain, &Geometry::new(chain, tiling)?, precision))
    }

    /// The program of a chain and its geometry.
    pub fn of(chain: &Chain, geometry: &Geometry, precision: Precision) -> Self {
        let ring = geometry.tiling.mode != Mode::Recompute;
        let n = chain.layers().len();
        let (offsets, shared) = places(chain, geometry, precision);
        let buffers: Vec<Buffer> = (0..=n)
            .map(|b| {
                let [y, x] = geometry.tracks[b];
                let reader = chain.layers().get(b).map(|l| &l.kind);
                Buffer {
                    space: if b == n { Space::Registers } else { Space::Shared },
                    offset: offsets[b],
                    channels: chain.shapes()[b].channels,
                    ring,
                    outside: match reader {
                        Some(Kind::MaxPool { .. }) => Outside::MinusInfinity,
                        _ => Outside::Zero,
                    },
                    y,
                    x,
                }
            })
            .collect();
        Self {
            precision,
            input: chain.input(),
            output: chain.output(),
            operands: chain.operands().iter().map(|o| o.elements).collect(),
            grid: geometry.grid,
            steps: geometry.steps.clone(),
            shared,
            accumulators: Bytes(product(&[buffers[n].elements(), ACCUMULATOR.0])),
            body: body(chain, &buffers, ring),
            buffers,
        }
    }
}

/// Offsets of the buffers in shared memory, and its size.
pub(crate) fn places(chain: &Chain, geometry: &Geometry, precision: Precision) -> (Vec<Bytes>, Bytes) {
    let n = chain.layers().len();
    let size = |b: usize| {
        let [y, x] = &geometry.tracks[b];
        Bytes(product(&[chain.shapes()[b].channels, y.capacity, x.capacity, element(precision).0]))
    };
    let mut offsets = vec![Bytes::ZERO; n + 1];
    if geometry.tiling.mode != Mode::Recompute {
        let mut end = Bytes::ZERO;
        for (b, offset) in offsets.iter_mut().enumerate().take(n) {
            *offset = end;
            end = end.saturating_add(size(b));
        }
        return (offsets, end);
    }
    let pairs = (0..n).map(|b| if b + 1 < n { size(b).saturating_add(size(b + 1)) } else { size(b) });
    let total = pairs.max().unwrap_or_default();
    for (b, offset) in offsets.iter_mut().enumerate().take(n) {
        *offset = if b % 2 == 0 { Bytes::ZERO } else { total.saturating_sub(size(b)) };
    }
    (offsets, total)
}

fn body(chain: &Chain, buffers: &[Buffer], ring: bool) -> Body {
    let mut next = 1;
    let mut operand = || {
        next += 1;
        next - 1
    };
    let mut body = Vec::new();
    let mask = |body: &mut Body, b: usize| {
        // No padding, nothing to write.
        let outside = |t: &Track| !t.live.contains(t.held);
        if outside(&buffers[b].y) || outside(&buffers[b].x) {
            body.push(Instruction::Mask { buffer: b as u32 });
        }
    };
    let then = bind(chain.prologue(), &mut operand);
    body.push(Instruction::Load { to: 0, then });
    mask(&mut body, 0);
    body.push(Instruction::Sync);
    let n = chain.layers().len();
    for (i, layer) in chain.layers().iter().enumerate() {
        let (from, to) = (i as u32, i as u32 + 1);
        let image = [chain.shapes()[i].height, chain.shapes()[i].width];
        body.push(match layer.kind {
            Kind::Conv { window, groups, bias, .. } => {
                let weight = operand();
                let bias = bias.then(&mut operand);
                let then = bind(&layer.then, &mut operand);
                Instruction::Conv { from, to, window, groups, weight, bias, then }
            }
            Kind::MaxPool { window } => {
                let then = bind(&layer.then, &mut operand);
                Instruction::Pool { from, to, window, kind: PoolKind::Max, then }
            }
            Kind::AvgPool { window, count_include_pad } => {
                let then = bind(&layer.then, &mut operand);
                Instruction::Pool {
                    from,
                    to,
                    window,
                    kind: PoolKind::Mean { count_include_pad, image },
                    then,
                }
            }
        });
        if i + 1 < n {
            mask(&mut body, i + 1);
            body.push(Instruction::Sync);
        }
    }
    body.push(Instruction::Store { from: n as u32 });
    if ring {
        // With several layers, a synchronisation inside the body already lies between the last
        // read of a buffer and its next write.
        if n == 1 {
            body.push(Instruction::Sync);
        }
        body.push(Instruction::Advance);
    }
    body
}

fn bind(list: &[Pointwise], operand: &mut dyn FnMut() -> u32) -> Vec<Step> {
    let bound = list.iter().map(|p| match *p {
        Pointwise::Relu => Step::Relu,
        Pointwise::Clip { lo, hi } => Step::Clip { lo, hi },
        Pointwise::Scale => {
            let scale = operand();
            Step::Scale { scale, shift: operand() }
        }
        Pointwise::Add => Step::Add { residual: operand() },
    });
    bound.collect()
}
