//! A plan as CUDA C++.

use super::Units;
use super::plan::{Conv, GROUP, Plan, Step};
use crate::kernel::Kernel;
use std::fmt::Write;
use vdnn_ir::{Bytes, Precision};

/// What every kernel begins with.
pub(crate) const PRELUDE: &str = include_str!("prelude.cuh");

/// The whole kernel.
pub(super) fn kernel(plan: &Plan, name: &str) -> Kernel {
    let mut source = match plan.tensor.units {
        Units::WarpGroup => PRELUDE.to_owned() + &products(plan),
        Units::Warp if plan.precision == Precision::Bf16 => format!("#define VDNN_WARP_BF16\n{PRELUDE}"),
        Units::Warp => format!("#define VDNN_WARP_TF32\n{PRELUDE}"),
    };
    source.push_str(&body(plan, name));
    Kernel {
        source,
        entry: name.to_owned(),
        grid: [plan.tensor.blocks, 1, 1],
        threads: plan.tensor.workers * plan.tensor.groups * GROUP as u32,
        shared: Bytes(plan.shared),
        target: (plan.tensor.units == Units::WarpGroup).then_some("sm_90a"),
    }
}

/// The matrix instructions of the widths that a plan has.
pub(super) fn products(plan: &Plan) -> String {
    let mut widths: Vec<u64> = plan.convs.iter().map(|c| c.width).collect();
    widths.sort_unstable();
    widths.dedup();
    let mut out = String::from("#ifndef VDNN_EMULATED\n");
    for n in widths {
        let (kind, flags) = match plan.precision {
            Precision::Bf16 => (format!("m64n{n}k16.f32.bf16.bf16"), ", 1, 1, 0, 0"),
            _ => (format!("m64n{n}k8.f32.tf32.tf32"), ", 1, 1"),
        };
        let sums = n / 2;
        let list = |f: &dyn Fn(u64) -> String| (0..sums).map(f).collect::<Vec<_>>().join(", ");
        let _ = writeln!(
            out,
            "template <int ROWS> struct Product<{n}, ROWS> {{ static __device__ __forceinline__ void of(float (&d)[{sums}], u32 a, u32 b, int more) {{\n  \
             asm volatile(\"{{\\n.reg .pred p;\\n.reg .b64 x, y;\\nsetp.ne.b32 p, %{}, 0;\\nmov.b64 x, {{%{sums}, %{}}};\\nmov.b64 y, {{%{}, %{}}};\\n\"\n    \
             \"wgmma.mma_async.sync.aligned.{kind} {{{}}}, x, y, p{flags};\\n}}\\n\"\n    \
             : {}\n    : \"r\"(a), \"n\"(ROWS), \"r\"(b), \"n\"(8), \"r\"(more));\n}} }};",
            sums + 4,
            sums + 1,
            sums + 2,
            sums + 3,
            list(&|i| format!("%{i}")),
            list(&|i| format!("\"+f\"(d[{i}])")),
        );
    }
    out.push_str("#endif\n");
    out
}

/// The kernel without what it begins with.
pub(super) fn body(plan: &Plan, name: &str) -> String {
    let mut p = Printer { plan, out: String::new() };
    p.kernel(name);
    p.out
}

/// A kernel as far as it is printed.
struct Printer<'a> {
    plan: &'a Plan,
    out: String,
}

/// Prints a line, so deep.
macro_rules! line {
    ($p:expr, $depth:expr, $($arg:tt)*) => {{
        let _ = write!($p.out, "{:1$}", "", 2 * $depth);
        let _ = writeln!($p.out, $($arg)*);
    }};
}

mod epilogue;
mod load;
mod product;

impl Printer<'_> {
    fn rounds(&self) -> bool {
        self.plan.precision == Precision::Tf32
    }

    fn operands(&self) -> Vec<(usize, bool)> {
        let mut all = vec![(0, true)];
        let steps = |all: &mut Vec<(usize, bool)>, then: &[Step]| {
            for s in then {
                match *s {
                    Step::Bias(b) => all.push((b, false)),
                    Step::Scale(a, b) => all.extend([(a, false), (b, false)]),
                    Step::Add(r) => all.push((r, true)),
                    Step::Relu | Step::Clip(..) => {}
                }
            }
        };
        for conv in &self.plan.convs {
            all.push((conv.weight, true));
            steps(&mut all, &conv.then);
        }
        all.sort_unstable();
        all
    }

    fn kernel(&mut self, name: &str) {
        let p = self.plan;
        let t = p.tensor;
        let wide = u64::from(t.groups) * GROUP;
        let threads = wide * u64::from(t.workers);
        for (l, conv) in p.convs.iter().enumerate() {
            if let Some(order) = order(conv, p.per_chunk) {
                line!(self, 0, "__constant__ short {name}_order{l}[{}] = {{{order}}};", conv.factors.len());
            }
        }
        let element = if p.precision == Precision::Bf16 { "bf16" } else { "float" };
        let operands: Vec<String> = self
            .operands()
            .iter()
            .map(|&(o, own)| format!("const {}* __restrict__ o{o}", if own { element } else { "float" }))
            .collect();
        line!(
            self,
            0,
            "extern \"C\" __global__ void __launch_bounds__({threads}, 1) {name}({}, {element}* __restrict__ y) {{",
            operands.join(", ")
        );
        line!(self, 1, "extern __shared__ __align__(128) unsigned char shared[];");
        line!(self, 1, "const u32 base = address(shared);");
        line!(self, 1, "const int worker = uniform(threadIdx.x / {wide}), thread = threadIdx.x % {wide};");
        line!(
            self,
            1,
            "const int group = uniform(thread / {GROUP}), warp = thread % {GROUP} / 32, row = threadIdx.x % 32 / 4, lane = threadIdx.x % 4;"
        );
        line!(
            self,
            1,
            "const u32 slots = base + worker * {}, between = slots + {};",
            p.worker,
            u64::from(t.slots) * p.slot
        );
        line!(
            self,
            1,
            "const int first = blockIdx.x * {} + worker, all = {}, tiles = {};",
            t.workers,
            t.blocks * t.workers,
            p.batch * p.grid[0] * p.grid[1]
        );
        self.load();
        if !p.narrow {
            self.arrival();
        }
        if !p.narrow && t.slots > 1 {
            for q in 0..t.slots - 1 {
                let (ahead, slice) = (u64::from(q) / p.items, u64::from(q) % p.items);
                line!(
                    self,
                    1,
                    "if (first + {ahead} * all < tiles) load(slots + {}, first + {ahead} * all, {slice});",
                    u64::from(q) * p.slot
                );
                line!(self, 1, "copies_commit();");
            }
        }
        for l in 0..p.convs.len() {
            self.weights(l, name, threads);
        }
        line!(self, 1, "written();");
        line!(self, 1, "__syncthreads();");
        if p.narrow {
            line!(self, 1, "if (first < tiles) fetch(first);");
        }
        line!(self, 1, "for (int tile = first; tile < tiles; tile += all) {{");
        line!(
            self,
            2,
            "const int image = tile / {}, tile_y = tile / {} % {}, tile_x = tile % {};",
            p.grid[0] * p.grid[1],
            p.grid[1],
            p.grid[0],
            p.grid[1]
        );
        for l in 0..p.convs.len() {
            self.conv(l);
        }
        self.pool();
        line!(self, 1, "}}");
        line!(self, 0, "}}");
    }

    /// Where a row and column of a buffer lies, as an expression.
    fn place(&self, buffer: usize, y: &str, x: &str) -> String {
        let b = self.plan.buffers[buffer];
        let [py, px] = b.phases;
        let phase = if py * px > 1 {
            format!("({y} % {py} * {px} + {x} % {px}) * {} + ", b.plane)
        } else {
            String::new()
        };
        let (y, x) = (div(y, py), div(x, px));
        format!("({phase}{y} * {} + {x})", b.pitch)
    }

    fn meet(&mut self, depth: usize) {
        let wide = u64::from(self.plan.tensor.groups) * GROUP;
        line!(self, depth, "meet<{wide}>(1 + worker);");
    }
}

/// Which tap and chunk of channels each chunk of a product meets, if not in the order of memory.
fn order(conv: &Conv, per_chunk: u64) -> Option<String> {
    let in_order = conv
        .factors
        .iter()
        .enumerate()
        .all(|(k, f)| f.weight.is_some_and(|(t, c)| t * conv.chunks + c == k as u64));
    if in_order && conv.channels.is_multiple_of(per_chunk) {
        return None;
    }
    let list = conv
        .factors
        .iter()
        .map(|f| f.weight.map_or("-1".to_owned(), |(t, c)| (t * conv.chunks + c).to_string()));
    Some(list.collect::<Vec<_>>().join(", "))
}

fn div(text: &str, by: u64) -> String {
    if by == 1 { text.to_owned() } else { format!("{text} / {by}") }
}

fn literal(x: f32) -> String {
    format!("__int_as_float(0x{:08x})", x.to_bits())
}
