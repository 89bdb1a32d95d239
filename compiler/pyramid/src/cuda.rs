//! Tile programs as CUDA C++.
//!
//! A kernel has a block per tile (`blockIdx.x`, `blockIdx.y`) and image (`blockIdx.z`), takes the
//! operands in order and then the result, each image's tensors one after the other, and needs
//! [`Program::shared`] bytes of dynamic shared memory. All extents are literals, so compilers
//! unroll what they like; accumulators are an array that is only indexed by unrolled loops.
//!
//! Plain loops over elements, one sum per accumulator: what matrix instructions will be compared
//! with, bit for bit with [`crate::interpret`] if products are not fused into sums.

use crate::chain::Window;
use crate::geometry::Track;
use crate::program::{ACCUMULATOR, Buffer, Instruction, PoolKind, Program, Space, Step};
use crate::tiling::TilingError;
use crate::verify::ProgramError;
use std::fmt::Write;
use vdnn_ir::Precision;

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaOptions {
    /// Threads of a block.
    pub threads: u32,
    /// Round once per multiply-add instead of twice.
    pub fma: bool,
}

/// Why a program has no kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// It is not well-formed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The tiles do not cut the chain.
    #[error(transparent)]
    Tiling(#[from] TilingError),
    /// There is no kernel for this.
    #[error("there is no fused kernel for {what}; leave the layers apart")]
    Unsupported {
        /// What it cannot do.
        what: &'static str,
    },
    /// A block would need more than there is.
    #[error("the kernel needs {need} of a block's {what}, of which there are {most}; take smaller tiles")]
    Room {
        /// Of what.
        what: &'static str,
        /// How much is needed.
        need: u64,
        /// How much there is.
        most: u64,
    },
    /// Not strict f32.
    #[error("there are no plain loops for {0}; make the program with f32")]
    Precision(Precision),
    /// Indices of 32 bits cannot address it.
    #[error("a tensor or image of this program is too large for indices of 32 bits")]
    TooLarge,
    /// A layer other than the last in accumulators, or the last in shared memory.
    #[error("only a buffer that is stored and nothing else reads can be in accumulators")]
    Spaces,
}

/// What every kernel begins with.
const PRELUDE: &str = "\
struct Span { int lo, hi; };
__device__ __forceinline__ Span cut(int lo, int hi, Span to) {
  lo = lo > to.lo ? lo : to.lo;
  hi = hi < to.hi ? hi : to.hi;
  return lo < hi ? Span{lo, hi} : Span{0, 0};
}
__device__ __forceinline__ int ring(int y, int rows) { return (y % rows + rows) % rows; }
__device__ __forceinline__ int taps(int first, int kernel, int dilation, int lo, int hi) {
  int n = 0;
  for (int k = 0; k < kernel; ++k) { const int at = first + k * dilation; n += lo <= at && at < hi; }
  return n;
}
";

/// The kernel of a program. Several kernels can share a source: only the first needs `prelude`.
///
/// # Errors
/// If the program is malformed, not strict f32, or too large for 32-bit indices.
pub fn cuda(program: &Program, name: &str, prelude: bool, options: CudaOptions) -> Result<String, CudaError> {
    program.verify()?;
    if program.precision != Precision::F32 {
        return Err(CudaError::Precision(program.precision));
    }
    let most = i32::MAX as u64 / 4;
    let far = |t: &Track| {
        let ends = [t.hull, t.window, t.live, t.held].into_iter().flat_map(|i| [i.lo, i.hi]);
        let tiles = program.grid[0].max(program.grid[1]) as i64;
        let steps = program.steps.end.max(-program.steps.start);
        let moved = t.per_tile.saturating_mul(tiles).saturating_add(t.per_step.saturating_mul(steps));
        ends.map(i64::abs).max().unwrap_or(0).saturating_add(moved) > most as i64
    };
    let large = program.operands.iter().chain([&program.output.elements()]).any(|&n| n > most)
        || program.shared.0 > most
        || program.accumulators.0 > most
        || program.buffers.iter().any(|b| far(&b.y) || far(&b.x));
    if large {
        return Err(CudaError::TooLarge);
    }
    let reads = |b: usize| {
        program.body.iter().any(|i| match i {
            Instruction::Conv { from, .. } | Instruction::Pool { from, .. } => *from as usize == b,
            _ => false,
        })
    };
    let stored = |b: usize| program.body.contains(&Instruction::Store { from: b as u32 });
    let accumulated =
        program.buffers.iter().enumerate().filter(|(_, b)| b.space == Space::Registers).map(|(i, _)| i);
    let accumulated: Vec<usize> = accumulated.collect();
    if accumulated.len() != 1 || accumulated.iter().any(|&b| reads(b) || !stored(b)) {
        return Err(CudaError::Spaces);
    }
    let mut p = Printer { program, options, out: String::new() };
    if prelude {
        p.out.push_str(PRELUDE);
    }
    p.kernel(name);
    Ok(p.out)
}

struct Printer<'a> {
    program: &'a Program,
    options: CudaOptions,
    out: String,
}

impl Printer<'_> {
    fn line(&mut self, depth: usize, text: &str) {
        let _ = writeln!(self.out, "{:1$}{text}", "", 2 * depth);
    }

    fn kernel(&mut self, name: &str) {
        let p = self.program;
        let operands: Vec<String> =
            (0..p.operands.len()).map(|o| format!("const float* __restrict__ o{o}")).collect();
        let threads = self.options.threads;
        self.line(
            0,
            &format!(
                "extern \"C\" __global__ void __launch_bounds__({threads}) {name}({}, float* __restrict__ y) {{",
                operands.join(", ")
            ),
        );
        self.line(1, "extern __shared__ float shared[];");
        self.line(1, "const int tile_y = blockIdx.y, tile_x = blockIdx.x;");
        self.line(1, &format!("o0 += (size_t)blockIdx.z * {};", p.operands[0]));
        let mut residuals: Vec<u32> = p.body.iter().flat_map(residuals).collect();
        residuals.dedup();
        for r in residuals {
            self.line(1, &format!("o{r} += (size_t)blockIdx.z * {};", p.operands[r as usize]));
        }
        self.line(1, &format!("y += (size_t)blockIdx.z * {};", p.output.elements()));
        let each = (p.accumulators.0 / ACCUMULATOR.0).div_ceil(u64::from(threads));
        self.line(1, &format!("float sums[{}];", each.max(1)));
        for (b, buffer) in p.buffers.iter().enumerate() {
            let [held, window, new, computed] = spans(&buffer.x, "tile_x", "0");
            self.line(1, &format!("const Span x{b}_held = {held};"));
            let at = |text: String| text.replace("HELD", &format!("x{b}_held"));
            self.line(1, &format!("const Span x{b}_window = {};", at(window)));
            self.line(1, &format!("const Span x{b}_new = {};", at(new)));
            self.line(1, &format!("const Span x{b} = {};", computed.replace("NEW", &format!("x{b}_new"))));
            let [held, ..] = spans(&buffer.y, "tile_y", "0");
            self.line(1, &format!("const Span y{b}_held = {held};"));
        }
        self.line(1, &format!("for (int step = {}; step < {}; ++step) {{", p.steps.start, p.steps.end));
        for (b, buffer) in p.buffers.iter().enumerate() {
            let [_, window, new, computed] = spans(&buffer.y, "tile_y", "step");
            let at = |text: String| text.replace("HELD", &format!("y{b}_held"));
            self.line(2, &format!("const Span y{b}_window = {};", at(window)));
            self.line(2, &format!("const Span y{b}_new = {};", at(new)));
            self.line(2, &format!("const Span y{b} = {};", computed.replace("NEW", &format!("y{b}_new"))));
        }
        for instruction in &p.body {
            self.instruction(instruction);
        }
        self.line(1, "}");
        self.line(0, "}");
    }

    fn buffer(&self, b: u32) -> &Buffer {
        &self.program.buffers[b as usize]
    }

    /// The element of a buffer in shared memory.
    fn at(&self, b: u32, c: &str, y: &str, x: &str) -> String {
        let buffer = self.buffer(b);
        let (rows, cols) = (buffer.y.capacity.max(1), buffer.x.capacity);
        let row = if buffer.ring { format!("ring({y}, {rows})") } else { format!("({y} - y{b}_window.lo)") };
        let offset = buffer.offset.0 / ACCUMULATOR.0;
        format!("shared[{offset} + (({c}) * {rows} + {row}) * {cols} + ({x}) - x{b}_window.lo]")
    }

    /// Opens loops over what is new of a buffer: `c`, `y`, `x` at depth 4, or 3 where the spans
    /// are the caller's. Elements of accumulators go to `sums[a]`.
    fn elements(&mut self, b: u32, rows: &str, cols: &str) {
        let buffer = self.buffer(b).clone();
        let (channels, threads) = (buffer.channels, self.options.threads);
        if buffer.space == Space::Shared {
            self.line(2, &format!("for (int e = threadIdx.x, n = ({rows}.hi - {rows}.lo) * ({cols}.hi - {cols}.lo); e < {channels} * n; e += {threads}) {{"));
            self.line(3, &format!("const int wide = {cols}.hi - {cols}.lo, c = e / n, v = e % n / wide + {rows}.lo, u = e % n % wide + {cols}.lo;"));
            return;
        }
        let plane = buffer.y.capacity * buffer.x.capacity;
        let each = (channels * plane).div_ceil(u64::from(threads));
        self.line(0, "#pragma unroll");
        self.line(2, &format!("for (int a = 0; a < {each}; ++a) {{"));
        self.line(3, &format!("const int e = threadIdx.x + a * {threads}, c = e / {};", plane.max(1)));
        self.line(
            3,
            &format!(
                "const int v = e / {} % {} + y{b}_window.lo, u = e % {} + x{b}_window.lo;",
                buffer.x.capacity.max(1),
                buffer.y.capacity.max(1),
                buffer.x.capacity.max(1)
            ),
        );
        self.line(3, &format!(
            "if (c >= {channels} || v < {rows}.lo || v >= {rows}.hi || u < {cols}.lo || u >= {cols}.hi) continue;"
        ));
    }

    fn then(&mut self, list: &[Step]) {
        let shape = self.program.output;
        for step in list {
            let line = match step {
                Step::Relu => "t = t < 0.0f ? 0.0f : t;".to_owned(),
                Step::Clip { lo, hi } => {
                    let (lo, hi) = (literal(lo.0), literal(hi.0));
                    format!("t = t < {lo} ? {lo} : t; t = t > {hi} ? {hi} : t;")
                }
                Step::Scale { scale, shift } => {
                    self.sum(&format!("o{shift}[c]"), "t", &format!("o{scale}[c]"))
                }
                Step::Add { residual } => {
                    format!("t += o{residual}[(c * {} + v) * {} + u];", shape.height, shape.width)
                }
            };
            self.line(3, &line);
        }
    }

    /// `t = a + b * c`.
    fn sum(&self, a: &str, b: &str, c: &str) -> String {
        if self.options.fma {
            format!("t = fmaf({b}, {c}, {a});")
        } else {
            format!("t = __fadd_rn(__fmul_rn({b}, {c}), {a});")
        }
    }

    fn keep(&mut self, b: u32) {
        let to = match self.buffer(b).space {
            Space::Shared => self.at(b, "c", "v", "u"),
            Space::Registers => "sums[a]".to_owned(),
        };
        self.line(3, &format!("{to} = t;"));
        self.line(2, "}");
    }

    fn instruction(&mut self, instruction: &Instruction) {
        let p = self.program;
        match instruction {
            Instruction::Load { to, then } => {
                self.elements(*to, &format!("y{to}"), &format!("x{to}"));
                self.line(3, &format!("float t = o0[(c * {} + v) * {} + u];", p.input.height, p.input.width));
                self.then(then);
                self.keep(*to);
            }
            Instruction::Mask { buffer: b } => {
                self.elements(*b, &format!("y{b}_new"), &format!("x{b}_new"));
                self.line(
                    3,
                    &format!("if (v >= y{b}.lo && v < y{b}.hi && u >= x{b}.lo && u < x{b}.hi) continue;"),
                );
                self.line(3, &format!("float t = {};", literal(self.buffer(*b).outside.value())));
                self.keep(*b);
            }
            Instruction::Conv { from, to, window, groups, weight, bias, then } => {
                let per_group = self.buffer(*from).channels / groups;
                let out_per_group = self.buffer(*to).channels / groups;
                self.elements(*to, &format!("y{to}"), &format!("x{to}"));
                self.first(window);
                let start = bias.map_or("0.0f".to_owned(), |b| format!("o{b}[c]"));
                self.line(3, &format!("float t = {start};"));
                let first_channel = format!("c / {out_per_group} * {per_group}");
                self.line(3, &format!("const float* w = o{weight} + c * {};", per_group * window.taps()));
                self.line(3, &format!("for (int k = 0; k < {per_group}; ++k)"));
                let tap = self.tap(*from, window, &format!("{first_channel} + k"));
                let sum = self.sum("t", "*w++", &tap);
                self.line(5, &sum);
                self.then(then);
                self.keep(*to);
            }
            Instruction::Pool { from, to, window, kind, then } => {
                self.elements(*to, &format!("y{to}"), &format!("x{to}"));
                self.first(window);
                let start = if *kind == PoolKind::Max { f32::NEG_INFINITY } else { 0.0 };
                self.line(3, &format!("float t = {};", literal(start)));
                let tap = self.tap(*from, window, "c");
                if *kind == PoolKind::Max {
                    self.line(5, &format!("{{ const float s = {tap}; t = s > t ? s : t; }}"));
                } else {
                    self.line(5, &format!("t += {tap};"));
                }
                if let PoolKind::Mean { count_include_pad, image } = kind {
                    let counts: Vec<String> = ["top", "left"]
                        .iter()
                        .enumerate()
                        .map(|(axis, first)| {
                            let pad = |n: u64| if *count_include_pad { n } else { 0 };
                            format!(
                                "taps({first}, {}, {}, -{}, {})",
                                window.kernel[axis],
                                window.dilations[axis],
                                pad(window.before[axis]),
                                image[axis] + pad(window.after[axis])
                            )
                        })
                        .collect();
                    self.line(3, &format!("t /= (float)({} * {});", counts[0], counts[1]));
                }
                self.then(then);
                self.keep(*to);
            }
            Instruction::Store { from } => {
                self.elements(*from, &format!("y{from}"), &format!("x{from}"));
                self.line(
                    3,
                    &format!("y[(c * {} + v) * {} + u] = sums[a];", p.output.height, p.output.width),
                );
                self.line(2, "}");
            }
            Instruction::Sync => self.line(2, "__syncthreads();"),
            // The spans are those of the next step; rings need no copies.
            Instruction::Advance => {}
        }
    }

    /// Where the window of the element begins.
    fn first(&mut self, window: &Window) {
        let [sy, sx] = window.strides;
        let [by, bx] = window.before;
        self.line(3, &format!("const int top = v * {sy} - {by}, left = u * {sx} - {bx};"));
    }

    /// Opens the loops over a window's taps and returns the element that one reads.
    fn tap(&mut self, from: u32, window: &Window, channel: &str) -> String {
        let [ky, kx] = window.kernel;
        let [dy, dx] = window.dilations;
        self.line(4, &format!("for (int i = 0; i < {ky}; ++i) for (int j = 0; j < {kx}; ++j)"));
        self.at(from, channel, &format!("(top + i * {dy})"), &format!("left + j * {dx}"))
    }
}

/// Residuals that an instruction adds.
fn residuals(instruction: &Instruction) -> Vec<u32> {
    let then = match instruction {
        Instruction::Load { then, .. } | Instruction::Conv { then, .. } | Instruction::Pool { then, .. } => {
            then
        }
        _ => return Vec::new(),
    };
    then.iter().filter_map(|s| if let Step::Add { residual } = s { Some(*residual) } else { None }).collect()
}

/// What is held, the window, what is new and what is computed, as expressions; `HELD` and `NEW`
/// stand for the first and the third.
fn spans(t: &Track, tile: &str, step: &str) -> [String; 4] {
    let moved = |at: i64| format!("{at} + {tile} * {}", t.per_tile);
    let stepped = |at: i64| format!("{} + {step} * {}", moved(at), t.per_step);
    [
        format!("cut({}, {}, Span{{{}, {}}})", moved(t.hull.lo), moved(t.hull.hi), t.held.lo, t.held.hi),
        format!("cut({}, {}, HELD)", stepped(t.window.lo), stepped(t.window.hi)),
        format!("cut({}, {}, HELD)", stepped(t.window.hi - t.fresh), stepped(t.window.hi)),
        format!("cut(NEW.lo, NEW.hi, Span{{{}, {}}})", t.live.lo, t.live.hi),
    ]
}

/// An f32 as C++ reads it back exactly.
fn literal(x: f32) -> String {
    format!("__int_as_float(0x{:08x})", x.to_bits())
}
