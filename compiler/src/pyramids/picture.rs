//! The picture of pyramids: a row per group, a panel per layer, each panel the layer's image with
//! the positions that a tile in the middle needs of it, its halo apart.

use super::{Pyramid, Pyramids};
use std::fmt::Write;
use vdnn_pyramid::{Geometry, Interval, Kind, Track};

const PANEL: f64 = 150.0;
const GAP: f64 = 40.0;
const ROW: f64 = PANEL + 76.0;
const LEFT: f64 = 16.0;
/// Of the image on every side, for padding.
const MARGIN: f64 = 14.0;
/// Most groups that are drawn.
const MOST: usize = 24;

/// The picture of the fused groups, those with the most time saved first.
pub fn svg(pyramids: &Pyramids) -> String {
    let mut groups: Vec<_> = pyramids.fused().collect();
    groups.sort_by_key(|p| std::cmp::Reverse(p.unfused.saturating_sub(p.time())));
    groups.truncate(MOST);
    let panels = groups.iter().map(|p| p.names.len() + 1).max().unwrap_or(1);
    let (width, height) = (LEFT + panels as f64 * (PANEL + GAP), 44.0 + ROW * groups.len().max(1) as f64);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <text x=\"{LEFT}\" y=\"18\">One tile's part of every layer: its own positions blue, its halo (computed \
         or read by neighbours, too) orange, padding grey; dashed: what a block that walks down \
         holds at one step</text>\n"
    );
    if groups.is_empty() {
        let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"44\">No pyramid pays.</text>");
    }
    for (i, p) in groups.iter().enumerate() {
        let top = 44.0 + ROW * i as f64;
        let title = format!(
            "{}: {}, {:.2}x the operations, {} shared, {:.2}x faster",
            p.names.join(" + "),
            p.config,
            p.recompute,
            p.shared,
            p.gain()
        );
        let _ =
            writeln!(out, "<text x=\"{LEFT}\" y=\"{top:.0}\" font-weight=\"bold\">{}</text>", escape(&title));
        pyramid(&mut out, top + 8.0, p);
    }
    out.push_str("</svg>\n");
    out
}

fn pyramid(out: &mut String, top: f64, pyramid: &Pyramid) {
    let chain = &pyramid.chain;
    let Ok(geometry) = Geometry::new(chain, pyramid.tiling) else { return };
    let tile = geometry.grid.map(|n| n / 2);
    for (b, [y, x]) in geometry.tracks.iter().enumerate() {
        let shape = chain.shapes()[b];
        let left = LEFT + b as f64 * (PANEL + GAP);
        let scale = (PANEL - 2.0 * MARGIN) / shape.height.max(shape.width) as f64;
        let (x0, y0) = (left + MARGIN, top + MARGIN);
        let mut rect = |rows: Interval, cols: Interval, style: &str, what: &str| {
            let _ = writeln!(
                out,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" {style}><title>{what}: rows \
                 {rows}, columns {cols}</title></rect>",
                x0 + scale * cols.lo as f64,
                y0 + scale * rows.lo as f64,
                scale * cols.len() as f64,
                scale * rows.len() as f64
            );
        };
        let image = [shape.height, shape.width].map(Interval::of_extent);
        rect(image[0], image[1], "fill=\"#f4f4f4\" stroke=\"#999\"", "image");
        rect(y.held(tile[0]), x.held(tile[1]), "fill=\"#bbb\"", "with padding");
        rect(y.live(tile[0]), x.live(tile[1]), "fill=\"#f28e2b\" fill-opacity=\"0.85\"", "needed");
        let own = [own(y, tile[0]), own(x, tile[1])];
        rect(own[0], own[1], "fill=\"#4e79a7\" fill-opacity=\"0.9\"", "own");
        if geometry.steps.end > 1 {
            let rows = y.window(tile[0], geometry.steps.end / 2);
            let style = "fill=\"none\" stroke=\"#222\" stroke-dasharray=\"3 2\"";
            rect(rows, x.held(tile[1]), style, "in shared memory at one step");
        }
        let name = match b.checked_sub(1).map(|l| &chain.layers()[l].kind) {
            None => "input".to_owned(),
            Some(kind) => {
                let w = kind.window();
                let what = if matches!(kind, Kind::Conv { .. }) { "conv" } else { "pool" };
                format!("{what} {}x{} stride {}", w.kernel[0], w.kernel[1], w.strides[0])
            }
        };
        let _ = writeln!(
            out,
            "<text x=\"{left:.0}\" y=\"{:.0}\">{}</text><text x=\"{left:.0}\" y=\"{:.0}\" fill=\"#666\">{shape}, \
             tile {}x{}</text>",
            top + PANEL + 8.0,
            escape(&name),
            top + PANEL + 22.0,
            y.live(tile[0]).len(),
            x.live(tile[1]).len()
        );
    }
}

/// A tile's share of a layer: as wide as tiles are apart, in the middle of what it needs.
fn own(track: &Track, tile: u64) -> Interval {
    let need = track.hull.shift(tile as i64 * track.per_tile);
    let halo = need.len() as i64 - track.per_tile;
    let lo = need.lo + halo.max(0) / 2;
    Interval::new(lo, lo + track.per_tile.min(need.len() as i64)).intersect(track.live(tile))
}

fn escape(s: &str) -> String {
    s.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
