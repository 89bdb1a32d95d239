//! Matrix instructions of convolutions.

use super::Printer;
use crate::tensor::plan::{Deal, ROWS};
use std::fmt::Write;

impl Printer<'_> {
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
            let b = (conv.pitch << 16) + 2 * k as u64 * conv.pitch;
            for m in 0..conv.each {
                let tile = match (conv.deal, groups) {
                    (Deal::Line { .. }, _) => m * ROWS,
                    (Deal::Squares { across, pitch }, 1) => m / across * 8 * pitch + m % across * 8,
                    // Added to `a` at run time.
                    _ => 0,
                };
                let a = lead << 16;
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
                    "product<{}, {rows}>(sums[{m}], {from} + 0x{:x}u, b + 0x{b:x}u, {more});",
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
            line!(self, depth, "const u32 a = {from} >> 4;");
            return;
        }
        match deal {
            Deal::Line { .. } => line!(self, depth, "const u32 a = ({from} >> 4) + group * {};", each * ROWS),
            Deal::Squares { across, pitch } => {
                for m in 0..each {
                    line!(self, depth, "const int square{m} = group * {each} + {m};");
                    line!(
                        self,
                        depth,
                        "const u32 a{m} = ({from} >> 4) + square{m} / {across} * {} + square{m} % {across} * 8;",
                        8 * pitch
                    );
                }
            }
        }
    }

    /// A convolution: products, then what comes behind them.
    pub(super) fn conv(&mut self, l: usize) {
        let p = self.plan;
        let conv = p.convs[l].clone();
        let passes = conv.out / conv.width;
        let last = l + 1 == p.convs.len() && p.pool.is_none();
        line!(self, 2, "{{  // convolution {l}: {:?}, {} of 64", conv.deal, conv.tiles);
        if l == 0 && !p.narrow {
            line!(self, 3, "float sums[{}][{}];", conv.each, conv.width / 2);
            line!(self, 3, "constexpr int pass = 0; (void)pass;");
            line!(self, 0, "#pragma unroll 1");
            line!(self, 3, "for (int s = 0; s < {}; ++s) {{", p.slices);
            line!(self, 4, "const u32 slot = arrived(tile, s);");
            self.rows_of(l, 4, "slot");
            if conv.streamed {
                line!(self, 4, "const u32 b = (slot + {}) >> 4;", p.input());
            } else {
                let slice = conv.factors.len() as u64 * conv.pitch;
                line!(self, 4, "const u32 b = ((base + {}) >> 4) + s * {slice};", conv.weights);
            }
            self.products(l, 4, "s > 0");
            line!(self, 4, "ahead(tile, s);");
            line!(self, 3, "}}");
            self.epilogue(l, 3, last);
            line!(self, 2, "}}");
            return;
        }
        if l == 0 {
            if last {
                // All have read what is now written over.
                self.meet(3);
            }
            line!(self, 3, "put();");
            line!(self, 3, "written();");
            self.meet(3);
        }
        line!(self, 0, "#pragma unroll 1");
        line!(self, 3, "for (int pass = 0; pass < {passes}; ++pass) {{");
        line!(self, 4, "float sums[{}][{}];", conv.each, conv.width / 2);
        self.rows_of(l, 4, if l == 0 { "slots" } else { "between" });
        if conv.streamed {
            line!(self, 4, "const u32 b = arrived(tile, {} + pass) >> 4;", p.slices);
        } else {
            line!(self, 4, "const u32 b = ((base + {}) >> 4) + pass * {};", conv.weights, conv.width);
        }
        self.products(l, 4, "0");
        if conv.streamed {
            line!(self, 4, "ahead(tile, {} + pass);", p.slices);
        }
        if l == 0 {
            line!(self, 4, "if (pass == 0 && tile + all < tiles) fetch(tile + all);");
        }
        self.epilogue(l, 4, last);
        line!(self, 3, "}}");
        line!(self, 2, "}}");
    }

    /// The functions that wait for the next slot, and that order what comes so many slots later:
    /// behind the products, which run meanwhile.
    pub(super) fn arrival(&mut self) {
        let p = self.plan;
        let slots = u64::from(p.tensor.slots);
        line!(self, 1, "int at = 0; (void)at;");
        line!(self, 1, "auto arrived = [&](int tile, int item) {{");
        if slots > 1 {
            line!(self, 2, "const u32 slot = slots + at * {};", p.slot);
            line!(self, 2, "copies_wait<{}>();", slots - 2);
        } else {
            line!(self, 2, "const u32 slot = slots;");
            line!(self, 2, "products_wait();");
            self.meet(2);
            line!(self, 2, "load(slot, tile, item);");
            line!(self, 2, "copies_commit();");
            line!(self, 2, "copies_wait<0>();");
        }
        if self.rounds() {
            line!(self, 2, "round(slot, item);");
        }
        line!(self, 2, "written();");
        line!(self, 2, "products_wait();");
        self.meet(2);
        line!(self, 2, "at = at + 1 == {slots} ? 0 : at + 1;");
        line!(self, 2, "return slot;");
        line!(self, 1, "}};");
        line!(self, 1, "auto ahead = [&](int tile, int item) {{");
        if slots > 1 {
            let ahead = slots - 1;
            // Never more than one tile ahead. What was in that slot was read before all met.
            line!(self, 2, "const int next = item + {ahead} < {} ? tile : tile + all;", p.items);
            line!(self, 2, "const int free = (at + {}) % {slots};", slots - 2);
            line!(
                self,
                2,
                "if (next < tiles) load(slots + free * {}, next, (item + {ahead}) % {});",
                p.slot,
                p.items
            );
            line!(self, 2, "copies_commit();");
        }
        line!(self, 1, "}};");
    }
}
