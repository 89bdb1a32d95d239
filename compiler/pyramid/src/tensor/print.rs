//! A plan as CUDA C++.

use super::plan::{CHUNK, Conv, Deal, GROUP, Plan, ROWS, Step};
use crate::kernel::Kernel;
use std::fmt::Write;
use vdnn_ir::{Bytes, Precision};

/// What every kernel begins with.
pub(super) const PRELUDE: &str = include_str!("prelude.cuh");

/// The whole kernel.
pub(super) fn kernel(plan: &Plan, name: &str) -> Kernel {
    let mut source = PRELUDE.to_owned();
    source.push_str(&products(plan));
    source.push_str(&body(plan, name));
    Kernel {
        source,
        entry: name.to_owned(),
        grid: [plan.tensor.blocks, 1, 1],
        threads: plan.tensor.workers * plan.tensor.groups * GROUP as u32,
        shared: Bytes(plan.shared),
        target: Some("sm_90a"),
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
            "template <> __device__ __forceinline__ void product<{n}>(float (&d)[{sums}], u64 a, u64 b, int more) {{\n  \
             asm volatile(\"{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{}, 0;\\nwgmma.mma_async.sync.aligned.{kind} {{{}}}, %{sums}, %{}, p{flags};\\n}}\\n\"\n    \
             : {}\n    : \"l\"(a), \"l\"(b), \"r\"(more));\n}}",
            sums + 2,
            list(&|i| format!("%{i}")),
            sums + 1,
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

struct Printer<'a> {
    plan: &'a Plan,
    out: String,
}

macro_rules! line {
    ($p:expr, $depth:expr, $($arg:tt)*) => {{
        let _ = write!($p.out, "{:1$}", "", 2 * $depth);
        let _ = writeln!($p.out, $($arg)*);
    }};
}

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
        line!(self, 1, "const int worker = threadIdx.x / {wide}, thread = threadIdx.x % {wide};");
        line!(
            self,
            1,
            "const int group = thread / {GROUP}, warp = thread % {GROUP} / 32, row = threadIdx.x % 32 / 4, lane = threadIdx.x % 4;"
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
        if !p.narrow && t.slots > 1 {
            for q in 0..t.slots - 1 {
                let (ahead, slice) = (u64::from(q) / p.slices, u64::from(q) % p.slices);
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
        } else {
            line!(self, 1, "int at = 0;");
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

    /// The functions that bring the input to shared memory.
    fn load(&mut self) {
        let p = self.plan;
        let [y, x] = p.spans[0];
        let wide = u64::from(p.tensor.groups) * GROUP;
        let chunks = p.slice;
        let channels = p.convs[0].channels;
        let items = y.len * x.len * chunks;
        let each = items.div_ceil(wide);
        let place = self.place(0, "v", "u");
        let corner = |p: &mut Self| {
            let plan = p.plan;
            line!(
                p,
                2,
                "const int top = t / {} % {} * {} + {}, left = t % {} * {} + {};",
                plan.grid[1],
                plan.grid[0],
                y.step,
                y.first,
                plan.grid[1],
                x.step,
                x.first
            );
        };
        let from =
            format!("o0 + (size_t)(t / {}) * {}", p.grid[0] * p.grid[1], y.extent * x.extent * channels);
        let item = format!(
            "const int i = thread + k * {wide}, c = i % {chunks}, v = i / {chunks} / {}, u = i / {chunks} % {};",
            x.len, x.len
        );
        let inside = format!("(u32)(top + v) < {}u && (u32)(left + u) < {}u", y.extent, x.extent);
        if p.narrow {
            let element = if p.element == 2 { "bf16" } else { "float" };
            line!(self, 1, "{element} fetched[{each}][{channels}];");
            line!(self, 1, "auto fetch = [&](int t) {{");
            corner(self);
            line!(self, 2, "const {element}* from = {from};");
            line!(self, 0, "#pragma unroll");
            line!(self, 2, "for (int k = 0; k < {each}; ++k) {{");
            line!(self, 3, "{item} (void)c;");
            line!(self, 3, "const bool in = i < {items} && {inside};");
            for c in 0..channels {
                line!(
                    self,
                    3,
                    "fetched[k][{c}] = in ? from[((top + v) * {} + left + u) * {channels} + {c}] : ({element})0;",
                    x.extent
                );
            }
            line!(self, 2, "}}");
            line!(self, 1, "}};");
            line!(self, 1, "auto put = [&] {{");
            line!(self, 0, "#pragma unroll");
            line!(self, 2, "for (int k = 0; k < {each}; ++k) {{");
            line!(self, 3, "{item}");
            line!(
                self,
                3,
                "if (i < {items}) put16(slots + (c * {} + {place}) * {CHUNK}, {});",
                p.buffers[0].chunk,
                self.packed("fetched[k]", channels)
            );
            line!(self, 2, "}}");
            line!(self, 1, "}};");
            return;
        }
        line!(self, 1, "auto load = [&](u32 to, int t, int slice) {{");
        corner(self);
        line!(self, 2, "const auto* from = {from} + slice * {};", chunks * p.per_chunk);
        line!(self, 0, "#pragma unroll 4");
        line!(self, 2, "for (int k = 0; k < {each}; ++k) {{");
        line!(self, 3, "{item}");
        line!(self, 3, "if (i >= {items}) break;");
        line!(self, 3, "const bool in = {inside};");
        line!(
            self,
            3,
            "copy16(to + (c * {} + {place}) * {CHUNK}, from + (in ? ((top + v) * {} + left + u) * {channels} + c * {} : 0), in);",
            p.buffers[0].chunk,
            x.extent,
            p.per_chunk
        );
        line!(self, 2, "}}");
        line!(self, 1, "}};");
        if self.rounds() {
            line!(self, 1, "auto round = [&](u32 at) {{");
            line!(self, 0, "#pragma unroll 4");
            line!(self, 2, "for (int k = 0; k < {each}; ++k) {{");
            line!(self, 3, "{item}");
            line!(self, 3, "if (i >= {items}) break;");
            line!(self, 3, "const u32 to = at + (c * {} + {place}) * {CHUNK};", p.buffers[0].chunk);
            line!(self, 3, "put16(to, rounded(get16(to)));");
            line!(self, 2, "}}");
            line!(self, 1, "}};");
        }
    }

    /// A chunk of a few elements and zeros.
    fn packed(&self, from: &str, channels: u64) -> String {
        let word = |w: u64| {
            let get = |c: u64| (c < channels).then(|| format!("{from}[{c}]"));
            if self.plan.element == 4 {
                return get(w).map_or("0".to_owned(), |f| format!("tf32({f})"));
            }
            match (get(2 * w), get(2 * w + 1)) {
                (Some(a), Some(b)) => format!("(u32){a} | (u32){b} << 16"),
                (Some(a), None) => format!("(u32){a}"),
                _ => "0".to_owned(),
            }
        };
        format!("Chunk{{{}, {}, {}, {}}}", word(0), word(1), word(2), word(3))
    }

    /// Weights and biases, once per block.
    fn weights(&mut self, l: usize, name: &str, threads: u64) {
        let p = self.plan;
        let conv = &p.convs[l];
        let depth = p.depth(l);
        let pitch = conv.out + 1;
        let row = conv.taps * conv.channels;
        line!(self, 0, "#pragma unroll 4");
        line!(self, 1, "for (int i = threadIdx.x; i < {}; i += {threads}) {{", conv.out * depth);
        line!(self, 2, "const int n = i / {depth}, k = i % {depth};");
        line!(self, 2, "Chunk c{{0, 0, 0, 0}};");
        let w = conv.weight;
        let rounds = self.rounds();
        let rounded = |text: &str| if rounds { format!("rounded({text})") } else { text.to_owned() };
        if order(conv, p.per_chunk).is_none() {
            let chunk = rounded(&format!("*(const Chunk*)(o{w} + n * {row} + k * {})", p.per_chunk));
            line!(self, 2, "c = {chunk};");
        } else {
            line!(self, 2, "const int from = {name}_order{l}[k];");
            if conv.channels.is_multiple_of(p.per_chunk) {
                let chunk = rounded(&format!("*(const Chunk*)(o{w} + n * {row} + from * {})", p.per_chunk));
                line!(self, 2, "if (from >= 0) c = {chunk};");
            } else {
                let from = format!("(o{w} + n * {row} + from * {})", conv.channels);
                line!(self, 2, "if (from >= 0) c = {};", self.packed(&from, conv.channels));
            }
        }
        line!(self, 2, "put16(base + {} + (k * {pitch} + n) * {CHUNK}, c);", conv.weights);
        line!(self, 1, "}}");
        if let Some(b) = conv.then.iter().find_map(|s| if let Step::Bias(b) = s { Some(*b) } else { None }) {
            line!(
                self,
                1,
                "for (int i = threadIdx.x; i < {}; i += {threads}) put4(base + {} + i * 4, bits(o{b}[i]));",
                conv.out,
                conv.biases
            );
        }
    }

    /// The matrix instructions of one slice and pass, their first rows at `a` and `b`.
    fn products(&mut self, l: usize, depth: usize, first: &str) {
        let p = self.plan;
        let conv = p.convs[l].clone();
        let groups = u64::from(p.tensor.groups);
        let rows = match conv.deal {
            Deal::Line { .. } => 8,
            Deal::Squares { pitch, .. } => pitch,
        };
        line!(self, depth, "products_fence();");
        for (k, pair) in conv.factors.chunks(2).enumerate() {
            let lead = pair[1].at - pair[0].at;
            let b = ((conv.out + 1) << 16) | (8 << 32);
            let b = b + 2 * k as u64 * (conv.out + 1);
            for m in 0..conv.each {
                let tile = match (conv.deal, groups) {
                    (Deal::Line { .. }, _) => m * ROWS,
                    (Deal::Squares { across, pitch }, 1) => m / across * 8 * pitch + m % across * 8,
                    // Added to `a` at run time.
                    _ => 0,
                };
                let a = (lead << 16) | (rows << 32);
                let at = pair[0].at + tile;
                let from = if groups > 1 && matches!(conv.deal, Deal::Squares { .. }) {
                    format!("a{m}")
                } else {
                    "a".to_owned()
                };
                let more = if k == 0 { first } else { "1" };
                line!(
                    self,
                    depth,
                    "product<{}>(sums[{m}], {from} + 0x{:x}ull, b + 0x{b:x}ull, {more});",
                    conv.width,
                    a + at
                );
            }
        }
        line!(self, depth, "products_commit();");
    }

    /// `a`: where the rows of a warp group begin, in chunks.
    fn rows_of(&mut self, l: usize, depth: usize, from: &str) {
        let conv = &self.plan.convs[l];
        let (each, deal) = (conv.each, conv.deal);
        if self.plan.tensor.groups == 1 {
            line!(self, depth, "const u64 a = {from} >> 4;");
            return;
        }
        match deal {
            Deal::Line { .. } => line!(self, depth, "const u64 a = ({from} >> 4) + group * {};", each * ROWS),
            Deal::Squares { across, pitch } => {
                for m in 0..each {
                    line!(self, depth, "const int square{m} = group * {each} + {m};");
                    line!(
                        self,
                        depth,
                        "const u64 a{m} = ({from} >> 4) + square{m} / {across} * {} + square{m} % {across} * 8;",
                        8 * pitch
                    );
                }
            }
        }
    }

    fn conv(&mut self, l: usize) {
        let p = self.plan;
        let conv = p.convs[l].clone();
        let slots = u64::from(p.tensor.slots);
        let passes = conv.out / conv.width;
        let last = l + 1 == p.convs.len() && p.pool.is_none();
        line!(self, 2, "{{  // convolution {l}: {:?}, {} of 64", conv.deal, conv.tiles);
        if l == 0 && p.narrow {
            if last {
                // All have read what is now written over.
                self.meet(3);
            }
            line!(self, 3, "put();");
            line!(self, 3, "written();");
            self.meet(3);
        }
        if l == 0 && !p.narrow {
            line!(self, 3, "float sums[{}][{}];", conv.each, conv.width / 2);
            line!(self, 0, "#pragma unroll 1");
            line!(self, 3, "for (int s = 0; s < {}; ++s) {{", p.slices);
            if slots > 1 {
                line!(self, 4, "const u32 slot = slots + at * {};", p.slot);
                line!(self, 4, "copies_wait<{}>();", slots - 2);
            } else {
                line!(self, 4, "const u32 slot = slots;");
                line!(self, 4, "if (s > 0) {{ products_wait(); }}");
                self.meet(4);
                line!(self, 4, "load(slot, tile, s);");
                line!(self, 4, "copies_commit();");
                line!(self, 4, "copies_wait<0>();");
            }
            if self.rounds() {
                line!(self, 4, "round(slot);");
            }
            line!(self, 4, "written();");
            line!(self, 4, "products_wait();");
            self.meet(4);
            if slots > 1 {
                let ahead = slots - 1;
                // Never more than one tile ahead.
                line!(self, 4, "const int next = s + {ahead} < {} ? tile : tile + all;", p.slices);
                line!(self, 4, "const int before = at == 0 ? {} : at - 1;", slots - 1);
                line!(
                    self,
                    4,
                    "if (next < tiles) load(slots + before * {}, next, (s + {ahead}) % {});",
                    p.slot,
                    p.slices
                );
                line!(self, 4, "copies_commit();");
                line!(self, 4, "at = at + 1 == {slots} ? 0 : at + 1;");
            }
            self.rows_of(l, 4, "slot");
            line!(
                self,
                4,
                "const u64 b = ((base + {}) >> 4) + s * {};",
                conv.weights,
                conv.factors.len() as u64 * (conv.out + 1)
            );
            self.products(l, 4, "s > 0");
            line!(self, 3, "}}");
            line!(self, 3, "const int pass = 0; (void)pass;");
            self.epilogue(l, 3, last);
            line!(self, 2, "}}");
            return;
        }
        let from = if l == 0 { "slots" } else { "between" };
        line!(self, 0, "#pragma unroll 1");
        line!(self, 3, "for (int pass = 0; pass < {passes}; ++pass) {{");
        line!(self, 4, "float sums[{}][{}];", conv.each, conv.width / 2);
        self.rows_of(l, 4, from);
        line!(self, 4, "const u64 b = ((base + {}) >> 4) + pass * {};", conv.weights, conv.width);
        self.products(l, 4, "0");
        if l == 0 && p.narrow {
            line!(
                self,
                4,
                "if ({passes} == 1 || pass == 0) {{ if (tile + all < tiles) fetch(tile + all); }}"
            );
        }
        self.epilogue(l, 4, last);
        line!(self, 3, "}}");
        line!(self, 2, "}}");
    }

    fn step(&mut self, depth: usize, step: &Step, conv: Option<&Conv>) {
        match *step {
            Step::Bias(_) => {
                let at = conv.map_or(0, |c| c.biases);
                line!(
                    self,
                    depth,
                    "{{ const Pair e = get_pair(base + {at} + col * 4); p += e.x; q += e.y; }}"
                );
            }
            Step::Relu => line!(self, depth, "p = p < 0.0f ? 0.0f : p; q = q < 0.0f ? 0.0f : q;"),
            Step::Clip(lo, hi) => {
                let (lo, hi) = (literal(lo.0), literal(hi.0));
                for v in ["p", "q"] {
                    line!(self, depth, "{v} = {v} < {lo} ? {lo} : {v}; {v} = {v} > {hi} ? {hi} : {v};");
                }
            }
            Step::Scale(a, b) => {
                line!(
                    self,
                    depth,
                    "p = fmaf(p, o{a}[col], o{b}[col]); q = fmaf(q, o{a}[col + 1], o{b}[col + 1]);"
                );
            }
            Step::Add(_) if self.plan.element == 4 => {
                line!(self, depth, "p += more[m][h][j].x; q += more[m][h][j].y;")
            }
            Step::Add(_) => {
                line!(self, depth, "p += real(more[m][h][j] << 16); q += real(more[m][h][j] & 0xffff0000u);");
            }
        }
    }

    /// Opens a loop over the tiles and rows of a thread: `y`, `x` of the tile, `v`, `u` of the
    /// image, `valid` in the tile and `in` the image as well.
    fn rows(&mut self, l: usize, depth: usize) {
        let p = self.plan;
        let conv = &p.convs[l];
        let (deal, each) = (conv.deal, conv.each);
        let [ys, xs] = p.spans[l + 1];
        line!(self, 0, "#pragma unroll");
        line!(self, depth, "for (int m = 0; m < {each}; ++m)");
        line!(self, 0, "#pragma unroll");
        line!(self, depth, "for (int h = 0; h < 2; ++h) {{");
        let tile = if p.tensor.groups == 1 { "m".to_owned() } else { format!("(group * {each} + m)") };
        match deal {
            Deal::Line { pitch } => {
                line!(
                    self,
                    depth + 1,
                    "const int r = {tile} * {ROWS} + warp * 16 + h * 8 + row, y_ = r / {pitch}, x_ = r % {pitch};"
                );
            }
            Deal::Squares { across, .. } => {
                line!(
                    self,
                    depth + 1,
                    "const int y_ = {tile} / {across} * 8 + warp * 2 + h, x_ = {tile} % {across} * 8 + row;"
                );
            }
        }
        line!(
            self,
            depth + 1,
            "const int v = tile_y * {} + {} + y_, u = tile_x * {} + {} + x_;",
            ys.step,
            ys.first,
            xs.step,
            xs.first
        );
        line!(self, depth + 1, "const bool valid = y_ < {} && x_ < {};", ys.len, xs.len);
        line!(self, depth + 1, "const bool in = (u32)v < {}u && (u32)u < {}u;", ys.extent, xs.extent);
    }

    /// From sums to the next buffer, or the result.
    fn epilogue(&mut self, l: usize, depth: usize, last: bool) {
        let p = self.plan;
        let conv = p.convs[l].clone();
        let [ys, xs] = p.spans[l + 1];
        let blocks = conv.width / 8;
        let element = if p.element == 4 { "float" } else { "bf16" };
        let offset = format!(
            "((size_t)image * {} + v * {} + u) * {} + pass * {}",
            ys.extent * xs.extent,
            xs.extent,
            conv.out,
            conv.width
        );
        let add = conv.then.iter().find_map(|s| if let Step::Add(r) = s { Some(*r) } else { None });
        if let Some(r) = add {
            // Under way while the matrix units work.
            let kind = if p.element == 4 { "Pair" } else { "u32" };
            line!(self, depth, "{kind} more[{}][2][{blocks}];", conv.each);
            self.rows(l, depth);
            line!(self, depth + 1, "const {element}* from = o{r} + {offset} + 2 * lane;");
            line!(self, 0, "#pragma unroll");
            line!(
                self,
                depth + 1,
                "for (int j = 0; j < {blocks}; ++j) if (valid && in) more[m][h][j] = *(const {kind}*)(from + 8 * j);"
            );
            line!(self, depth, "}}");
        }
        line!(self, depth, "products_wait();");
        line!(self, 0, "#pragma unroll");
        line!(self, depth, "for (int m = 0; m < {}; ++m) settled(sums[m]);", conv.each);
        if !last && l > 0 {
            // All have read what is now written over.
            self.meet(depth);
        }
        self.rows(l, depth);
        let transpose = last && p.element == 2 && blocks.is_multiple_of(4);
        if last {
            line!(self, depth + 1, "{element}* to = y + {offset};");
        } else {
            let place = self.place(l + 1, "y_", "x_");
            line!(self, depth + 1, "const u32 to = between + {place} * {CHUNK};");
        }
        if transpose {
            line!(self, depth + 1, "u32 words[4];");
        }
        line!(self, 0, "#pragma unroll");
        line!(self, depth + 1, "for (int j = 0; j < {blocks}; ++j) {{");
        let d = depth + 2;
        line!(self, d, "const int col = pass * {} + 8 * j + 2 * lane; (void)col;", conv.width);
        line!(self, d, "float p = sums[m][4 * j + 2 * h], q = sums[m][4 * j + 2 * h + 1];");
        for step in &conv.then {
            self.step(d, step, Some(&conv));
        }
        if last {
            if p.element == 4 {
                line!(self, d, "if (valid && in) *(Pair*)(to + 8 * j + 2 * lane) = Pair{{p, q}};");
            } else if transpose {
                line!(self, d, "words[j % 4] = bf16x2(p, q);");
                line!(self, d, "if (j % 4 == 3) {{");
                line!(
                    self,
                    d + 1,
                    "const Chunk c = transposed(words[0], words[1], words[2], words[3], lane);"
                );
                line!(self, d + 1, "if (valid && in) *(Chunk*)(to + 8 * (j - 3 + lane)) = c;");
                line!(self, d, "}}");
            } else {
                line!(self, d, "if (valid && in) *(u32*)(to + 8 * j + 2 * lane) = bf16x2(p, q);");
            }
        } else {
            let pooled = l + 1 == p.convs.len();
            let outside = if pooled { "__int_as_float(0xff800000)" } else { "0.0f" };
            line!(self, d, "if (!in) p = q = {outside};");
            let chunk = p.buffers[l + 1].chunk;
            if p.element == 4 {
                let (a, b) = if pooled { ("bits(p)", "bits(q)") } else { ("tf32(p)", "tf32(q)") };
                line!(
                    self,
                    d,
                    "if (valid) put8(to + ((2 * j + lane / 2) * {chunk}) * {CHUNK} + lane % 2 * 8, {a}, {b});"
                );
            } else {
                line!(self, d, "if (valid) put4(to + (j * {chunk}) * {CHUNK} + lane * 4, bf16x2(p, q));");
            }
        }
        line!(self, depth + 1, "}}");
        line!(self, depth, "}}");
        if !last {
            line!(self, depth, "written();");
            self.meet(depth);
        }
    }

    /// The maximum of windows of the last convolution's result, to the result.
    fn pool(&mut self) {
        let p = self.plan;
        let Some(pool) = &p.pool else { return };
        let buffer = p.buffers[p.convs.len()];
        let [ys, xs] = p.spans[p.spans.len() - 1];
        let wide = u64::from(p.tensor.groups) * GROUP;
        let channels = p.convs[p.convs.len() - 1].out;
        let chunks = channels / p.per_chunk;
        let items = ys.len * xs.len * chunks;
        let w = pool.window;
        let larger = if p.element == 4 { "larger_f32" } else { "larger_bf16" };
        line!(self, 0, "#pragma unroll 2");
        line!(self, 2, "for (int i = thread; i < {items}; i += {wide}) {{");
        line!(
            self,
            3,
            "const int c = i % {chunks}, y_ = i / {chunks} / {}, x_ = i / {chunks} % {};",
            xs.len,
            xs.len
        );
        line!(self, 3, "const int v = tile_y * {} + y_, u = tile_x * {} + x_;", ys.step, xs.step);
        line!(self, 3, "if (v >= {} || u >= {}) continue;", ys.extent, xs.extent);
        line!(
            self,
            3,
            "const u32 from = between + (c * {} + y_ * {} + x_ * {}) * {CHUNK};",
            buffer.chunk,
            w.strides[0] * buffer.pitch,
            w.strides[1]
        );
        line!(self, 3, "Chunk best = get16(from);");
        for i in 0..w.kernel[0] {
            for j in 0..w.kernel[1] {
                let at = i * w.dilations[0] * buffer.pitch + j * w.dilations[1];
                if at == 0 {
                    continue;
                }
                line!(self, 3, "best = {}(best, get16(from + {}));", larger, at * CHUNK);
            }
        }
        let words: Vec<String> = ["x", "y", "z", "w"].iter().map(|w| format!("best.{w}")).collect();
        if !pool.then.is_empty() {
            for word in &words {
                if p.element == 4 {
                    line!(self, 3, "{{ float p = real({word}), q = p;");
                } else {
                    line!(self, 3, "{{ float p = real({word} << 16), q = real({word} & 0xffff0000u);");
                }
                for step in &pool.then {
                    self.step(4, step, None);
                }
                line!(self, 4, "{word} = {}; }}", if p.element == 4 { "bits(p)" } else { "bf16x2(p, q)" });
            }
        }
        line!(
            self,
            3,
            "*(Chunk*)(y + ((size_t)image * {} + v * {} + u) * {channels} + c * {}) = best;",
            ys.extent * xs.extent,
            xs.extent,
            p.per_chunk
        );
        line!(self, 2, "}}");
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
