//! From memory to shared memory: the input of every tile, and weights.

use super::{Printer, order};
use crate::tensor::plan::{CHUNK, GROUP, Step};
use std::fmt::Write;

impl Printer<'_> {
    /// The functions that bring the input to shared memory.
    pub(super) fn load(&mut self) {
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
            "const int i = id + k * {wide}, c = i % {chunks}, v = i / {chunks} / {}, u = i / {chunks} % {};",
            x.len, x.len
        );
        let inside = format!("(u32)(top + v) < {}u && (u32)(left + u) < {}u", y.extent, x.extent);
        if p.narrow {
            let element = if p.element == 2 { "bf16" } else { "float" };
            line!(self, 1, "{element} fetched[{each}][{channels}];");
            line!(self, 1, "auto fetch = [&](int t) {{");
            line!(self, 2, "const int id = thread;");
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
            line!(self, 2, "const int id = thread;");
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
        line!(self, 1, "auto load = [&](u32 to, int t, int item) {{");
        line!(self, 2, "const int id = again(thread);");
        self.streams("load");
        corner(self);
        line!(self, 2, "const auto* from = {from} + item * {};", chunks * p.per_chunk);
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
            line!(self, 1, "auto round = [&](u32 at, int item) {{");
            line!(self, 2, "const int id = again(thread);");
            self.streams("round");
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

    /// What items of the slots are but the input: copies or rounds the weights of the first
    /// convolution beside it, and those of the last one instead.
    fn streams(&mut self, what: &str) {
        let p = self.plan;
        let wide = u64::from(p.tensor.groups) * GROUP;
        for (l, conv) in p.convs.iter().enumerate().filter(|(_, c)| c.streamed) {
            let row = conv.taps * conv.channels;
            // Of the first: a slice of all outputs; of the last: all of some outputs.
            let (rows, depth, from, at) = if l == 0 {
                (conv.out, p.slice, format!("item * {}", p.slice * p.per_chunk), p.input())
            } else {
                (conv.width, p.depth(l), format!("(item - {}) * {}", p.slices, conv.width * row), 0)
            };
            line!(self, 2, "if (item {} {}) {{", if l == 0 { "<" } else { ">=" }, p.slices);
            line!(self, 0, "#pragma unroll 4");
            line!(self, 3, "for (int i = id; i < {}; i += {wide}) {{", rows * depth);
            line!(self, 4, "const int n = i / {depth}, k = i % {depth};");
            if what == "load" {
                line!(
                    self,
                    4,
                    "copy16(to + {at} + (k * {} + n) * {CHUNK}, o{} + {from} + n * {row} + k * {}, true);",
                    conv.pitch,
                    conv.weight,
                    p.per_chunk
                );
            } else {
                line!(self, 4, "const u32 to = at + {at} + (k * {} + n) * {CHUNK};", conv.pitch);
                line!(self, 4, "put16(to, rounded(get16(to)));");
            }
            line!(self, 3, "}}");
            if l > 0 {
                line!(self, 3, "return;");
            }
            line!(self, 2, "}}");
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
    pub(super) fn weights(&mut self, l: usize, name: &str, threads: u64) {
        let p = self.plan;
        let conv = &p.convs[l];
        let depth = p.depth(l);
        let pitch = conv.pitch;
        let row = conv.taps * conv.channels;
        self.biases(l, threads);
        if conv.streamed {
            return;
        }
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
    }

    fn biases(&mut self, l: usize, threads: u64) {
        let conv = &self.plan.convs[l];
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
}
