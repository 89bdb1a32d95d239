//! Tables, JSON and the picture of `vdnnc reproduce cusnn`.

use super::Case;
use super::gpu::{CLASSIC, LayerRow, StepRow, Timed, Way};
use super::zeros::{Layer, by_size, spread};
use crate::commands::bench::report::{energy_json, energy_text};
use crate::sparsity::activations;
use crate::svg::escape;
use serde_json::{Value, json};
use std::fmt::Write;
use vdnn_ir::Nanos;

/// What the artifact shows of its own runs, on its authors' GPUs.
const PUBLISHED: &str = "\
the artifact shows: DenseNet-169 12.55 ms against 15.84 (1.26 x), 798 mJ against 927; layers of ResNet-152
3.14 x in the mean over the best of the three, 3.3 to 3.6 at 14x14, 6.8 to 8.0 at 7x7
";

fn us(t: Option<Nanos>) -> String {
    t.map_or_else(|| "-".to_owned(), |t| format!("{:.1}", t.as_f64() / 1e3))
}

fn times(t: Option<f64>) -> String {
    t.map_or_else(|| "-".to_owned(), |t| format!("{t:.2} x"))
}

/// A model's tables.
pub(super) fn text(case: &Case) -> String {
    let mut t = format!(
        "{}: {} {} ({})\n",
        case.model,
        case.images,
        if case.images == 1 { "image" } else { "images" },
        case.preprocess
    );
    let sum = activations::total(&case.zeros.relus);
    let _ = writeln!(
        t,
        "{:.1} % of what {} ReLUs give is zero (inspect --sparsity --input lists them)",
        100.0 * sum.share(),
        case.zeros.relus.len()
    );
    let layers = &case.zeros.layers;
    if layers.is_empty() {
        t.push_str("no 3x3 convolution of stride 1 and padding 1 reads a feature map\n");
    }
    let size = |l: &Layer| l.size;
    for (size, n, [mean, least, most]) in by_size(layers, size, |l| Some(l.zeros.share())) {
        let _ = writeln!(
            t,
            "inputs of {n:>2} 3x3 convolutions at {size:>3}: {:.1} % zeros in the mean, {:.1} to {:.1}",
            100.0 * mean,
            100.0 * least,
            100.0 * most
        );
    }
    match &case.timed {
        Ok(timed) => timed_text(&mut t, layers, timed),
        Err(why) => {
            for l in layers {
                let [from, to] = l.channels;
                let shape = format!("{from}->{to}");
                let _ =
                    writeln!(t, "  {:<28}{shape:>10}{:>5}{:>8.1} %", l.name, l.size, 100.0 * l.zeros.share());
            }
            let _ = writeln!(t, "times and energy: skipped: {why}");
        }
    }
    t
}

fn timed_text(t: &mut String, layers: &[Layer], timed: &Timed) {
    let _ = writeln!(
        t,
        "\non {}, f32, batch 1; microseconds on the feature maps of the images; dense kernels on the first, sparse on \
         {}\n  {:<28}{:>10}{:>5}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
        timed.device,
        timed.images,
        "layer",
        "channels",
        "size",
        "zeros",
        "IMPLICIT",
        "PRECOMP",
        "GEMM",
        "dense",
        "sparse",
        "of three",
        "of all"
    );
    for (l, row) in layers.iter().zip(&timed.layers) {
        let [from, to] = l.channels;
        let [three, all] = row.gains();
        let _ = writeln!(
            t,
            "  {:<28}{:>10}{:>5}{:>7.1} %{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
            l.name,
            format!("{from}->{to}"),
            l.size,
            100.0 * l.zeros.share(),
            us(row.classic[0]),
            us(row.classic[1]),
            us(row.classic[2]),
            us(row.dense),
            us(row.sparse),
            times(three),
            times(all)
        );
    }
    for (what, [three, all]) in means(layers, &timed.layers) {
        let _ = writeln!(
            t,
            "  sparse {what}: {} over the best of the three, {} over the best dense kernel",
            times(three),
            times(all)
        );
    }
    let _ = writeln!(
        t,
        "\n  {:<26}{:>12}{:>10}{:>10}{:>12}  energy",
        "whole step, one graph", "ms", "gain", "3x3 sparse", "difference"
    );
    for row in &timed.steps {
        let _ = writeln!(
            t,
            "  {:<26}{:>12.3}{:>10}{:>10}{:>12.1e}  {}{}",
            row.way.text(),
            row.step().as_f64() / 1e6,
            times(gain(timed, row)),
            row.sparse,
            row.deviation,
            row.energy.as_ref().map(energy_text).unwrap_or_default(),
            if row.captured { "" } else { " (no graph)" }
        );
    }
    for (way, why) in &timed.missing {
        let _ = writeln!(t, "  {:<26}not timed: {why}", way.text());
    }
    t.push_str(PUBLISHED);
}

/// How much faster than the baseline.
fn gain(timed: &Timed, row: &StepRow) -> Option<f64> {
    let baseline = timed.steps.iter().find(|r| r.way == Way::ImplicitGemm)?;
    Some(baseline.step().as_f64() / row.step().as_f64().max(1.0))
}

/// Mean gains over all layers, and by size.
fn means(layers: &[Layer], rows: &[LayerRow]) -> Vec<(String, [Option<f64>; 2])> {
    let both: Vec<(&Layer, &LayerRow)> = layers.iter().zip(rows).collect();
    let all = |which: usize| -> Vec<f64> { rows.iter().filter_map(|r| r.gains()[which]).collect() };
    let mean = |v: Vec<f64>| (!v.is_empty()).then(|| spread(&v)[0]);
    let mut found = vec![("on average".to_owned(), [mean(all(0)), mean(all(1))])];
    let of = |which: usize| by_size(&both, |b| b.0.size, |b| b.1.gains()[which]);
    for ((size, n, three), (_, _, all)) in of(0).into_iter().zip(of(1)) {
        found.push((format!("at {size:>3} ({n} layers)"), [Some(three[0]), Some(all[0])]));
    }
    found
}

/// The same for programs.
pub(super) fn json(case: &Case) -> Value {
    let layers = &case.zeros.layers;
    let timed = case.timed.as_ref().ok();
    let layer = |(i, l): (usize, &Layer)| {
        let mut v = json!({
            "name": l.name, "channels_in": l.channels[0], "channels_out": l.channels[1], "size": l.size,
            "elements": l.zeros.elements, "zeros": l.zeros.zeros, "zero_share": l.zeros.share(),
        });
        if let Some(row) = timed.and_then(|t| t.layers.get(i)) {
            for (algo, time) in CLASSIC.iter().zip(row.classic) {
                v[format!("{}_ns", algo.kind())] = json!(time.map(|t| t.0));
            }
            v["dense_ns"] = json!(row.dense.map(|t| t.0));
            v["sparse_ns"] = json!(row.sparse.map(|t| t.0));
            let [three, all] = row.gains();
            v["gain_over_three"] = json!(three);
            v["gain_over_dense"] = json!(all);
        }
        v
    };
    let sizes = by_size(layers, |l| l.size, |l| Some(l.zeros.share()));
    let size = |(size, n, [mean, least, most]): (u64, usize, [f64; 3])| json!({ "size": size, "layers": n, "mean": mean, "min": least, "max": most });
    let mut v = json!({
        "model": case.model, "images": case.images, "preprocess": case.preprocess,
        "relus": activations::json(&case.zeros.relus),
        "layers": layers.iter().enumerate().map(layer).collect::<Vec<_>>(),
        "zero_share_by_size": sizes.into_iter().map(size).collect::<Vec<_>>(),
        "skipped": case.timed.as_ref().err(),
    });
    if let Some(timed) = timed {
        let step = |r: &StepRow| {
            json!({
                "plan": r.way.name(), "step_ns": r.step().0, "steps_ns": r.steps.iter().map(|s| s.0).collect::<Vec<_>>(),
                "energy": r.energy.as_ref().map(energy_json), "graph": r.captured, "difference": r.deviation,
                "sparse_layers": r.sparse, "gain": gain(timed, r),
            })
        };
        let mean = |(what, [three, all]): (String, [Option<f64>; 2])| json!({ "layers": what, "gain_over_three": three, "gain_over_dense": all });
        v["device"] = json!(timed.device);
        v["timed_images"] = json!(timed.images);
        v["steps"] = timed.steps.iter().map(step).collect();
        v["means"] = means(layers, &timed.layers).into_iter().map(mean).collect();
        let missing = |(way, why): &(Way, String)| json!({ "plan": way.name(), "why": why });
        v["not_timed"] = timed.missing.iter().map(missing).collect();
    }
    v
}

const BAR: f64 = 7.0;
const HEIGHT: f64 = 220.0;
const TOP: f64 = 40.0;
const LEFT: f64 = 50.0;

/// Per layer: the gain over the best of the three and over the best dense kernel, or the share of
/// zeros where nothing was timed.
pub(super) fn svg(case: &Case) -> String {
    let layers = &case.zeros.layers;
    let rows: Vec<[Option<f64>; 2]> = match &case.timed {
        Ok(t) if t.layers.iter().any(|r| r.sparse.is_some()) => {
            t.layers.iter().map(LayerRow::gains).collect()
        }
        _ => Vec::new(),
    };
    let gains = !rows.is_empty();
    let bars: Vec<[Option<f64>; 2]> =
        if gains { rows } else { layers.iter().map(|l| [Some(100.0 * l.zeros.share()), None]).collect() };
    let most = if gains { bars.iter().flatten().flatten().copied().fold(1.0, f64::max) } else { 100.0 };
    let y = |v: f64| TOP + HEIGHT * (1.0 - v / most);
    let step = 2.0 * BAR + 4.0;
    let width = LEFT + step * layers.len() as f64 + 20.0;
    let (unit, title) = if gains {
        (
            " x",
            "activation-sparse 3x3 convolutions: over the best of the three (dark), over the best dense kernel (pale)",
        )
    } else {
        (" %", "zeros in the inputs of 3x3 convolutions")
    };
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {:.0}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<text x=\"4\" y=\"16\">{}: {title}</text>\n",
        TOP + HEIGHT + 150.0,
        escape(&case.model)
    );
    let mut lines: Vec<f64> = (0..=4).map(|i| most * f64::from(i) / 4.0).collect();
    if gains {
        lines.push(1.0);
    }
    for value in lines {
        let colour = if gains && value == 1.0 { "#e15759" } else { "#ddd" };
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{width:.0}\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"{colour}\"/><text x=\"{1}\" \
             y=\"{0:.1}\" text-anchor=\"end\">{value:.1}{unit}</text>",
            y(value),
            LEFT - 4.0
        );
    }
    for (i, (layer, values)) in layers.iter().zip(&bars).enumerate() {
        let x = LEFT + 6.0 + step * i as f64;
        for (j, (value, colour)) in values.iter().zip(["#4e79a7", "#c3cfdd"]).enumerate() {
            let Some(value) = value else { continue };
            let _ = writeln!(
                out,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{BAR}\" height=\"{:.1}\" fill=\"{colour}\"><title>{} at {}: \
                 {value:.2}{unit}, {:.1} % zeros</title></rect>",
                x + BAR * j as f64,
                y(*value),
                TOP + HEIGHT - y(*value),
                escape(&layer.name),
                layer.size,
                100.0 * layer.zeros.share()
            );
        }
        let (tx, ty) = (x + 4.0, TOP + HEIGHT + 8.0);
        let _ = writeln!(
            out,
            "<text x=\"{tx:.1}\" y=\"{ty:.1}\" font-size=\"8\" transform=\"rotate(60 {tx:.1} {ty:.1})\">{}</text>",
            escape(&layer.name)
        );
    }
    out.push_str("</svg>\n");
    out
}
