//! The zeros of a model as a picture.

use super::Report;
use crate::svg::{escape, open};
use std::fmt::Write;

const ROW: f64 = 14.0;
const LEFT: f64 = 260.0;
const WIDTH: f64 = 700.0;

/// One line per layer, its filters from left to right: the darker, the more of their weights are
/// zero. Red bars at the end: the share of a batch norm's channels that are dead.
pub fn svg(report: &Report) -> String {
    let rows = report.layers.len() + report.norms.len();
    let mut out = open(ROW * rows as f64 + 40.0);
    let mut y = 20.0;
    let label = |out: &mut String, y: f64, name: &str, share: f64| {
        let _ = writeln!(out, "<text x=\"4\" y=\"{:.1}\">{}</text>", y + 10.0, escape(&shorten(name)));
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\">{:.1} %</text>",
            LEFT + WIDTH + 8.0,
            y + 10.0,
            100.0 * share
        );
    };
    for (layer, zeros) in &report.layers {
        let share = zeros.zeros as f64 / zeros.elements.max(1) as f64;
        label(&mut out, y, &layer.name, share);
        let width = WIDTH / zeros.heat.len().max(1) as f64;
        for (i, share) in zeros.heat.iter().enumerate() {
            let shade = (255.0 * (1.0 - share)).round() as u8;
            let _ = writeln!(
                out,
                "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{:.1}\" fill=\"#{shade:02x}{shade:02x}ff\">\
                 <title>{} part {i}: {:.1} % zeros</title></rect>",
                LEFT + width * i as f64,
                ROW - 2.0,
                escape(&layer.name),
                100.0 * share
            );
        }
        y += ROW;
    }
    for norm in report.norms.iter().filter(|n| n.almost > 0) {
        let share = norm.almost as f64 / norm.channels.max(1) as f64;
        label(&mut out, y, &norm.name, share);
        let _ = writeln!(
            out,
            "<rect x=\"{LEFT:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#e15759\"/>",
            WIDTH * share,
            ROW - 2.0
        );
        y += ROW;
    }
    out.push_str("</svg>\n");
    out
}

fn shorten(name: &str) -> String {
    let count = name.chars().count();
    if count <= 40 {
        name.to_owned()
    } else {
        format!("…{}", name.chars().skip(count - 39).collect::<String>())
    }
}
