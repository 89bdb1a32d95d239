//! What comes behind the products: pointwise functions, the next buffer, pools, the result.

use super::{Printer, literal};
use crate::tensor::plan::{CHUNK, Conv, Deal, GROUP, ROWS, Step};
use std::fmt::Write;

impl Printer<'_> {
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
    pub(super) fn epilogue(&mut self, l: usize, depth: usize, last: bool) {
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
    pub(super) fn pool(&mut self) {
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
