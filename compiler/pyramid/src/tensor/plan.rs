//! Everything about a kernel but its text: which positions of every layer a tile holds, where
//! they lie in shared memory, and the steps of every product.
//!
//! Shared memory is made of *chunks*, 16 bytes of channels of one position. A buffer is
//! `[chunk][position]`, so a tap of a window, moved by some positions, is another first address of
//! the same matrix: eight positions side by side are the eight rows of a core matrix of `wgmma`
//! without swizzle (PTX ISA, *Asynchronous warpgroup level matrix instructions*). For a
//! convolution with strides, positions are split by their phases, so that its windows are side
//! by side too.

use super::Tensor;
use crate::chain::{Chain, Kind, Pointwise, Window};
use crate::cuda::CudaError;
use vdnn_ir::Precision;
use vdnn_ir::types::Real;

/// Bytes of a chunk.
pub(super) const CHUNK: u64 = 16;

/// Threads of a warp group.
pub(super) const GROUP: u64 = 128;

/// Positions of one matrix instruction.
pub(super) const ROWS: u64 = 64;

/// Most shared memory of a block.
pub(super) const MOST_SHARED: u64 = 227 << 10;

/// Registers of a multiprocessor, and most of a thread.
const REGISTERS: u64 = 1 << 16;
const MOST_REGISTERS: u64 = 255;

/// Registers of a thread for addresses and what is on the way, more than compilers took for
/// dozens of kernels; fewer where one warp group copies the few channels of an input itself.
const OTHER: u64 = 104;
const OTHER_NARROW: u64 = 72;

/// The same for each tile of 64 positions of a warp group above three.
const OTHER_TILE: u64 = 32;

/// The positions of a tensor that a tile holds, along one axis: `first + tile * step` and so many.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub first: i64,
    pub step: i64,
    pub len: u64,
    /// Extent of the whole tensor.
    pub extent: u64,
}

/// A tensor in shared memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffer {
    /// Phases in y and x.
    pub phases: [u64; 2],
    /// Positions from row to row of a phase.
    pub pitch: u64,
    /// Positions of a phase.
    pub plane: u64,
    /// Positions from chunk to chunk: odd, so that chunks of a position lie in different banks.
    pub chunk: u64,
}

impl Buffer {
    fn new(rows: u64, cols: u64, phases: [u64; 2]) -> Self {
        let pitch = cols.div_ceil(phases[1]);
        let plane = rows.div_ceil(phases[0]) * pitch;
        Self { phases, pitch, plane, chunk: (phases[0] * phases[1] * plane) | 1 }
    }

    /// The place of a row and column.
    pub fn at(&self, y: u64, x: u64) -> u64 {
        let [py, px] = self.phases;
        (y % py * px + x % px) * self.plane + y / py * self.pitch + x / px
    }
}

/// How positions of a result are dealt to the rows of matrix instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deal {
    /// 64 after each other over rows of so many, with some to spare at the ends of rows.
    Line { pitch: u64 },
    /// Squares of 8x8, so many side by side.
    Squares { across: u64, pitch: u64 },
}

/// Pointwise functions with the numbers of their operands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Bias(usize),
    Relu,
    Clip(Real, Real),
    Scale(usize, usize),
    Add(usize),
}

/// A chunk of the factors of one product: where it begins in the input's buffer, and which tap
/// and chunk of channels of the weight it meets; `None` for zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Factor {
    pub at: u64,
    pub weight: Option<(u64, u64)>,
}

/// One convolution.
#[derive(Clone, Debug)]
pub(super) struct Conv {
    pub channels: u64,
    pub out: u64,
    pub taps: u64,
    /// Chunks of a tap.
    pub chunks: u64,
    /// Of one slice of the input; an even number.
    pub factors: Vec<Factor>,
    pub deal: Deal,
    /// Matrix instructions over the positions.
    pub tiles: u64,
    /// Of these, per warp group.
    pub each: u64,
    /// Outputs of a pass.
    pub width: u64,
    /// Brought to the slots for every tile.
    pub streamed: bool,
    /// Chunks from one term of the sums to the next: one more than there are outputs, for the
    /// same reason as in buffers.
    pub pitch: u64,
    /// First byte of the weights in shared memory, and of the biases.
    pub weights: u64,
    pub biases: u64,
    pub weight: usize,
    pub then: Vec<Step>,
}

/// A maximum pool at the end.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    pub window: Window,
    pub then: Vec<Step>,
}

/// A kernel in figures.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub precision: Precision,
    /// Bytes of an element and elements of a chunk.
    pub element: u64,
    pub per_chunk: u64,
    /// `[y, x]` of the input and of each layer's result.
    pub spans: Vec<[Span; 2]>,
    /// The input of each convolution, and of the pool.
    pub buffers: Vec<Buffer>,
    pub convs: Vec<Conv>,
    pub pool: Option<Pool>,
    pub tensor: Tensor,
    /// Chunks of a slice of the input, and slices.
    pub slice: u64,
    pub slices: u64,
    /// What goes through the slots for a tile: slices of the input, then parts of weights.
    pub items: u64,
    /// Channels are copied one by one: fewer than a chunk.
    pub narrow: bool,
    /// Tiles along y and x, images.
    pub grid: [u64; 2],
    pub batch: u64,
    /// Bytes of a slot; of a worker's slots and what lies between layers; of everything.
    pub slot: u64,
    pub worker: u64,
    pub shared: u64,
}

fn unsupported(what: &'static str) -> CudaError {
    CudaError::Unsupported { what }
}

impl Plan {
    /// The plan of a chain.
    pub fn new(chain: &Chain, tensor: &Tensor, precision: Precision, batch: u64) -> Result<Self, CudaError> {
        let element = match precision {
            Precision::F32 => return Err(CudaError::Precision(precision)),
            Precision::Tf32 => 4,
            Precision::Bf16 => 2,
        };
        let per_chunk = CHUNK / element;
        if !chain.prologue().is_empty() {
            return Err(unsupported("functions of the input"));
        }
        let out = chain.output();
        let (rows, cols) = (u64::from(tensor.rows), u64::from(tensor.cols));
        let most = chain.shapes().iter().map(|s| s.elements()).max().unwrap_or(0).saturating_mul(batch);
        // Positions and offsets within an image are 32 bits; tiles of a batch too.
        if most >= 1 << 40 || chain.shapes().iter().any(|s| s.elements() >= 1 << 30) || batch >= 1 << 20 {
            return Err(CudaError::TooLarge);
        }
        if rows > out.height || cols > out.width {
            return Err(crate::tiling::TilingError::Tile {
                rows,
                cols,
                height: out.height,
                width: out.width,
            }
            .into());
        }
        let grid = [out.height.div_ceil(rows), out.width.div_ceil(cols)];
        if batch * grid[0] * grid[1] >= 1 << 30 {
            return Err(CudaError::TooLarge);
        }
        let spans = spans(chain, [rows, cols])?;
        let layers = chain.layers();
        let mut operand = 1;
        let mut steps = |list: &[Pointwise]| -> Vec<Step> {
            let mut next = |n: usize| {
                operand += n;
                operand - n
            };
            list.iter()
                .map(|p| match *p {
                    Pointwise::Relu => Step::Relu,
                    Pointwise::Clip { lo, hi } => Step::Clip(lo, hi),
                    Pointwise::Scale => {
                        let s = next(2);
                        Step::Scale(s, s + 1)
                    }
                    Pointwise::Add => Step::Add(next(1)),
                })
                .collect()
        };
        let mut plan = Self {
            precision,
            element,
            per_chunk,
            spans,
            buffers: Vec::new(),
            convs: Vec::new(),
            pool: None,
            tensor: *tensor,
            slice: 0,
            slices: 1,
            items: 1,
            narrow: false,
            grid,
            batch,
            slot: 0,
            worker: 0,
            shared: 0,
        };
        for (l, layer) in layers.iter().enumerate() {
            let window = layer.kind.window();
            let [y, x] = plan.spans[l];
            match &layer.kind {
                Kind::Conv { groups: 1, out, bias, .. } => {
                    plan.buffers.push(Buffer::new(y.len, x.len, window.strides));
                    // The weight and the bias come before what the functions read.
                    let weight = steps(&[Pointwise::Add]);
                    let mut then = if *bias { steps(&[Pointwise::Add]) } else { Vec::new() };
                    for s in &mut then {
                        if let Step::Add(b) = *s {
                            *s = Step::Bias(b)
                        }
                    }
                    then.extend(steps(&layer.then));
                    let &[Step::Add(weight)] = weight.as_slice() else { return Err(CudaError::TooLarge) };
                    plan.conv(l, chain.shapes()[l].channels, *out, window, weight, then)?;
                }
                Kind::MaxPool { window } if l > 0 && l + 1 == layers.len() => {
                    plan.buffers.push(Buffer::new(y.len, x.len, [1, 1]));
                    let then = steps(&layer.then);
                    if then.iter().any(|s| !matches!(s, Step::Relu | Step::Clip(..))) {
                        return Err(unsupported("these functions behind a pool"));
                    }
                    plan.pool = Some(Pool { window: *window, then });
                }
                _ => return Err(unsupported("groups, means, and pools in front of other layers")),
            }
        }
        plan.place()?;
        Ok(plan)
    }

    fn conv(
        &mut self,
        l: usize,
        channels: u64,
        out: u64,
        window: &Window,
        weight: usize,
        then: Vec<Step>,
    ) -> Result<(), CudaError> {
        let per = self.per_chunk;
        if !out.is_multiple_of(8) || out > 2048 {
            return Err(unsupported("output channels that are no multiple of 8"));
        }
        if l == 0 && !channels.is_multiple_of(per) {
            if channels > per {
                return Err(unsupported("input channels of part of a chunk"));
            }
            self.narrow = true;
        }
        let chunks = channels.div_ceil(per);
        let buffer = self.buffers[l];
        let taps = window.taps();
        // A 1x1 convolution of the input takes it slice by slice.
        let mut slice = chunks;
        if l == 0 {
            if taps == 1 {
                let wanted = u64::from(self.tensor.slice);
                slice = if chunks.is_multiple_of(wanted) { wanted } else { chunks };
            }
            if u64::from(self.tensor.slice) != slice && self.tensor.slice != 8 {
                return Err(unsupported("slices of so many chunks"));
            }
            (self.slice, self.slices) = (slice, chunks / slice);
        }
        let [_, kx] = window.kernel;
        let tap = |t: u64| buffer.at(t / kx * window.dilations[0], t % kx * window.dilations[1]);
        let mut factors: Vec<Factor> = (0..taps)
            .flat_map(|t| (0..slice).map(move |c| (t, c)))
            .map(|(t, c)| Factor { at: c * buffer.chunk + tap(t), weight: Some((t, c)) })
            .collect();
        if slice % 2 == 1 {
            // Pairs are of different taps then: the second lies behind the first.
            factors.sort_by_key(|f| f.at);
        }
        if factors.len() % 2 == 1 {
            factors.push(Factor { weight: None, ..factors[factors.len() - 1] });
        }
        let [y, x] = self.spans[l + 1];
        let line = ((y.len - 1) * buffer.pitch + x.len).div_ceil(ROWS);
        let squares = y.len.div_ceil(8) * x.len.div_ceil(8);
        let (deal, tiles) = if squares <= line {
            (Deal::Squares { across: x.len.div_ceil(8), pitch: buffer.pitch }, squares)
        } else {
            (Deal::Line { pitch: buffer.pitch }, line)
        };
        let each = tiles.div_ceil(u64::from(self.tensor.groups));
        // Outputs that a thread has sums for, and what is added to each is on the way.
        let threads = u64::from(self.tensor.workers) * u64::from(self.tensor.groups) * GROUP;
        let registers = (REGISTERS / threads / 8 * 8).min(MOST_REGISTERS);
        let fetched = if l == 0 && self.narrow {
            let [y, x] = self.spans[0];
            let other = if self.tensor.groups == 1 { OTHER_NARROW } else { OTHER };
            (y.len * x.len).div_ceil(u64::from(self.tensor.groups) * GROUP) * channels + other
        } else {
            OTHER + OTHER_TILE * each.saturating_sub(3)
        };
        let room = registers.saturating_sub(fetched);
        let adds = then.iter().filter(|s| matches!(s, Step::Add(_))).count() as u64 * self.element;
        let most = (8 * room / each / (4 + adds)).min(256);
        // Several passes read the input again after the first has ended.
        let last = l + 1 + 1 == self.spans.len();
        let width = if last && self.slices_of(l) == 1 {
            let limit = most.min(if self.tensor.streamed { 64 } else { 128 });
            (1..=out / 8).map(|n| 8 * n).filter(|w| out.is_multiple_of(*w) && *w <= limit).max()
        } else {
            Some(out).filter(|&w| w <= most)
        };
        let Some(width) = width else {
            return Err(CudaError::Room {
                what: "a thread's accumulators",
                need: out / 2 * each,
                most: room,
            });
        };
        let streamed = self.tensor.streamed && (l == 0 || last);
        if streamed
            && (self.narrow
                || taps > 1
                || self.tensor.slots < 2
                || factors.iter().any(|f| f.weight.is_none()))
        {
            return Err(unsupported("streamed weights of windows"));
        }
        let pitch = if streamed && l > 0 { width + 1 } else { out + 1 };
        self.convs.push(Conv {
            streamed,
            pitch,
            channels,
            out,
            taps,
            chunks,
            factors,
            deal,
            tiles,
            each,
            width,
            weights: 0,
            biases: 0,
            weight,
            then,
        });
        Ok(())
    }

    /// Bytes of a slice of the input in its slot.
    pub fn input(&self) -> u64 {
        self.buffers[0].chunk * self.slice * CHUNK
    }

    fn slices_of(&self, l: usize) -> u64 {
        if l == 0 { self.slices } else { 1 }
    }

    /// Chunks of products of a convolution, all slices.
    pub fn depth(&self, l: usize) -> u64 {
        self.convs[l].factors.len() as u64 * self.slices_of(l)
    }

    /// Offsets in shared memory: workers first, so that rows to spare of matrices that reach
    /// over the end of a buffer still lie in shared memory.
    fn place(&mut self) -> Result<(), CudaError> {
        let tensor = self.tensor;
        if tensor.workers == 0
            || tensor.groups == 0
            || tensor.slots == 0
            || tensor.blocks == 0
            || u64::from(tensor.workers) * u64::from(tensor.groups) * GROUP > 1024
            || tensor.workers > 15
        {
            return Err(unsupported("so many workers"));
        }
        if self.convs.is_empty() {
            return Err(unsupported("chains without a convolution"));
        }
        let slots = u64::from(tensor.slots);
        let parts = |c: &Conv| if c.streamed { c.out / c.width } else { 0 };
        self.items = self.slices + self.convs.iter().skip(1).map(parts).sum::<u64>();
        if self.tensor.streamed && (self.convs.len() < 2 || self.pool.is_some()) {
            return Err(unsupported("streamed weights of these chains"));
        }
        if self.narrow && slots != 1 || slots > self.items + 1 {
            return Err(unsupported("so many slots"));
        }
        self.slot =
            self.input() + if self.tensor.streamed { self.slice * self.convs[0].pitch * CHUNK } else { 0 };
        for (l, conv) in self.convs.iter().enumerate().skip(1) {
            if conv.streamed {
                self.slot = self.slot.max(self.depth(l) * conv.pitch * CHUNK);
            }
        }
        let chunks = |l: usize| if l == 0 { 0 } else { self.convs[l - 1].out / self.per_chunk };
        let between =
            (1..self.buffers.len()).map(|l| self.buffers[l].chunk * chunks(l) * CHUNK).max().unwrap_or(0);
        self.worker = (slots * self.slot + between).next_multiple_of(128);
        let mut at = self.worker * u64::from(tensor.workers);
        for l in 0..self.convs.len() {
            let depth = self.depth(l);
            let conv = &mut self.convs[l];
            conv.weights = at;
            if !conv.streamed {
                at += depth * conv.pitch * CHUNK;
            }
            conv.biases = at;
            at += (conv.out * 4).next_multiple_of(CHUNK);
        }
        self.shared = at;
        // What the last rows of the last matrix can reach.
        let reach = |l: usize| {
            let (conv, buffer) = (&self.convs[l], self.buffers[l]);
            let last = match conv.deal {
                Deal::Line { .. } => conv.each * u64::from(tensor.groups) * ROWS,
                Deal::Squares { across, pitch } => {
                    ((conv.each * u64::from(tensor.groups)).div_ceil(across) * 8) * pitch + across * 8
                }
            };
            let first = if l == 0 { (slots - 1) * self.slot } else { slots * self.slot };
            first + (conv.factors.iter().map(|f| f.at).max().unwrap_or(0) + last + buffer.chunk) * CHUNK
        };
        let reach =
            (0..self.convs.len()).map(reach).max().unwrap_or(0) + self.worker * u64::from(tensor.workers - 1);
        self.shared = self.shared.max(reach);
        if self.shared > MOST_SHARED {
            return Err(CudaError::Room { what: "shared memory", need: self.shared, most: MOST_SHARED });
        }
        Ok(())
    }
}

/// What a tile holds of every tensor, nothing cut off at the borders.
fn spans(chain: &Chain, tile: [u64; 2]) -> Result<Vec<[Span; 2]>, CudaError> {
    let axis = |axis: usize| {
        let mut span =
            Span { first: 0, step: tile[axis] as i64, len: tile[axis], extent: chain.output().extent(axis) };
        let mut all = vec![span];
        for (l, layer) in chain.layers().iter().enumerate().rev() {
            let window = layer.kind.window();
            let stride = window.strides[axis];
            span = Span {
                first: span.first * stride as i64 - window.before[axis] as i64,
                step: span.step * stride as i64,
                len: (span.len - 1) * stride + window.span(axis) as u64,
                extent: chain.shapes()[l].extent(axis),
            };
            let far = span.step.saturating_mul(1 << 10).max(span.len as i64).max(-span.first);
            if far > 1 << 30 || span.len > 1 << 12 {
                return Err(CudaError::TooLarge);
            }
            all.push(span);
        }
        all.reverse();
        Ok(all)
    };
    Ok(axis(0)?.into_iter().zip(axis(1)?).map(|(y, x)| [y, x]).collect())
}
