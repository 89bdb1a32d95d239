//! A picture of speed-ups: one group of bars per convolution, one bar per limit.

use std::fmt::Write;

/// One group of bars.
#[derive(Clone, Debug)]
pub struct Group {
    /// What stands under it.
    pub name: String,
    /// A bar per series; none where there is nothing to compare.
    pub bars: Vec<Option<f64>>,
}

const COLOURS: [&str; 6] = ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#9c755f"];
const HEIGHT: f64 = 260.0;
const TOP: f64 = 40.0;
const LEFT: f64 = 44.0;
const BAR: f64 = 9.0;

/// The picture, with a line at 1.
pub fn bars(title: &str, series: &[String], groups: &[Group]) -> String {
    let group_width = BAR * series.len().max(1) as f64 + 8.0;
    let width = LEFT + group_width * groups.len() as f64 + 20.0;
    let most = groups.iter().flat_map(|g| &g.bars).flatten().fold(1.2f64, |m, &b| m.max(b));
    let y = |value: f64| TOP + HEIGHT * (1.0 - value / most);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{:.0}\" \
         font-family=\"sans-serif\" font-size=\"10\">\n<text x=\"{LEFT}\" y=\"14\" font-size=\"13\">{}</text>\n",
        TOP + HEIGHT + 190.0,
        escape(title)
    );
    let mut x = LEFT;
    for (name, colour) in series.iter().zip(COLOURS.iter().cycle()) {
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"22\" width=\"9\" height=\"9\" fill=\"{colour}\"/><text x=\"{}\" y=\"30\">{}</text>",
            x + 12.0,
            escape(name)
        );
        x += 24.0 + 7.0 * name.len() as f64;
    }
    let step = if most > 4.0 { 1.0 } else { 0.5 };
    for i in 0..=(most / step) as u32 {
        let value = f64::from(i) * step;
        let (colour, stroke) = if value == 1.0 { ("#000", 1.0) } else { ("#ddd", 0.5) };
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{width}\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"{colour}\" \
             stroke-width=\"{stroke}\"/><text x=\"{1}\" y=\"{2:.1}\" text-anchor=\"end\">{value}</text>",
            y(value),
            LEFT - 4.0,
            y(value) + 3.0
        );
    }
    for (i, group) in groups.iter().enumerate() {
        let left = LEFT + group_width * i as f64 + 4.0;
        for (j, bar) in group.bars.iter().enumerate() {
            let Some(value) = bar else { continue };
            let _ = writeln!(
                out,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{}\" height=\"{:.1}\" fill=\"{}\"><title>{} {}: \
                 {value:.3}</title></rect>",
                left + BAR * j as f64,
                y(*value),
                BAR - 1.0,
                TOP + HEIGHT - y(*value),
                COLOURS[j % COLOURS.len()],
                escape(&group.name),
                escape(series.get(j).map_or("", String::as_str))
            );
        }
        let (x, y) = (left + group_width / 2.0 - 4.0, TOP + HEIGHT + 10.0);
        let _ = writeln!(
            out,
            "<text transform=\"translate({x:.1},{y:.1}) rotate(60)\">{}</text>",
            escape(&group.name)
        );
    }
    out.push_str("</svg>\n");
    out
}

fn escape(s: &str) -> String {
    s.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_per_value_and_names_cannot_break_out() {
        let groups = [
            Group { name: "a<b>".into(), bars: vec![Some(2.0), None] },
            Group { name: "c".into(), bars: vec![Some(1.0), Some(0.5)] },
        ];
        let svg = bars("t & u", &["64 MiB".into(), "512 MiB".into()], &groups);
        assert_eq!(svg.matches("<title>").count(), 3);
        assert!(svg.contains("a&lt;b&gt;") && !svg.contains("a<b>") && svg.contains("t &amp; u"));
        assert!(bars("none", &[], &[]).ends_with("</svg>\n"));
    }
}
