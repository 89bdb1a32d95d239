//! A figure as grouped bars: published pale, ours solid, red where a cell is outside its
//! tolerance.

use super::table::Figure;
use std::fmt::Write;

const BAR: f64 = 9.0;
const HEIGHT: f64 = 220.0;
const TOP: f64 = 34.0;
const LEFT: f64 = 56.0;

/// The picture of one figure.
pub fn svg(figure: &Figure) -> String {
    let most = figure.cells.iter().map(|c| c.theirs.max(c.ours)).fold(0.0, f64::max).max(1e-9);
    let y = |v: f64| TOP + HEIGHT * (1.0 - v.max(0.0) / most);
    let mut body = String::new();
    let mut x = LEFT;
    let mut last = "";
    for c in &figure.cells {
        if c.row != last {
            x += if last.is_empty() { 6.0 } else { 18.0 };
            last = &c.row;
            let _ = writeln!(
                body,
                "<text x=\"{x:.0}\" y=\"{:.0}\" font-weight=\"bold\">{}</text>",
                TOP + HEIGHT + 62.0,
                escape(&c.row)
            );
        }
        let ours = if c.holds() { "#4e79a7" } else { "#e15759" };
        for (i, (value, colour, who)) in
            [(c.theirs, "#c3cfdd", "published"), (c.ours, ours, "ours")].into_iter().enumerate()
        {
            let _ = writeln!(
                body,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{BAR}\" height=\"{:.1}\" fill=\"{colour}\">\
                 <title>{} {}, {who}: {value:.*} {}</title></rect>",
                x + BAR * i as f64,
                y(value),
                TOP + HEIGHT - y(value),
                escape(&c.row),
                escape(&c.column),
                figure.digits,
                figure.unit
            );
        }
        let (tx, ty) = (x + BAR, TOP + HEIGHT + 8.0);
        let _ = writeln!(
            body,
            "<text x=\"{tx:.1}\" y=\"{ty:.1}\" font-size=\"9\" transform=\"rotate(60 {tx:.1} {ty:.1})\">{}</text>",
            escape(&c.column)
        );
        x += 2.0 * BAR + 5.0;
    }
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0} {:.0}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<text x=\"4\" y=\"16\">{}: published pale, ours solid</text>\n",
        x + 20.0,
        TOP + HEIGHT + 74.0,
        escape(&figure.title)
    );
    for i in 0..=4 {
        let value = most * f64::from(i) / 4.0;
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{x:.0}\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{1}\" y=\"{0:.1}\" text-anchor=\"end\">{value:.2$}</text>",
            y(value),
            LEFT - 4.0,
            figure.digits
        );
    }
    out.push_str(&body);
    out.push_str("</svg>\n");
    out
}

fn escape(s: &str) -> String {
    s.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
