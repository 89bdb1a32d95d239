//! The published tables: every cell with a tolerance keeps it, and the command says so.

use serde_json::Value;
use vdnnc::commands::reproduce::table::{Figure, Tolerance};
use vdnnc::commands::reproduce::{Report, fused_layer, vdnn, vdnn_seed};

fn outside(report: &Report) -> Vec<String> {
    let name = |f: &Figure| {
        let id = f.id;
        f.failures()
            .map(move |c| format!("{id} {} {}: {} for {}", c.row, c.column, c.ours, c.theirs))
            .collect()
    };
    report.figures.iter().flat_map(|f| -> Vec<String> { name(f) }).collect()
}

fn judged(report: &Report, id: &str) -> usize {
    let figure = report.figures.iter().find(|f| f.id == id).unwrap_or_else(|| panic!("no {id}"));
    figure.cells.iter().filter(|c| c.tolerance != Tolerance::Reported).count()
}

#[test]
fn the_papers_figures_come_out() {
    let report = vdnn::report().expect("a report");
    assert_eq!(outside(&report), Vec::<String>::new());
    // All of them were judged: six networks by two policies, four deep networks, four
    // maxima of offloading and base(m) but GoogLeNet's, six speeds of all but GoogLeNet.
    assert_eq!(judged(&report, "fig12"), 12);
    assert_eq!(judged(&report, "fig15"), 4);
    assert_eq!(judged(&report, "fig11-maximum"), 6 * 4 + 5);
    assert_eq!(judged(&report, "fig14"), 5 * 6);
    assert_eq!(judged(&report, "reduction"), 3);
}

#[test]
fn the_open_implementations_memory_comes_out() {
    let report = vdnn_seed::report().expect("a report");
    assert_eq!(outside(&report), Vec::<String>::new());
    assert_eq!(judged(&report, "seed-memory-opt"), 45);
}

#[test]
fn the_fused_layers_traffic_buffers_and_recomputation_come_out() {
    let report = fused_layer::report().expect("a report");
    assert_eq!(outside(&report), Vec::<String>::new());
    assert_eq!(judged(&report, "fused-traffic"), 4);
    assert_eq!(judged(&report, "fused-buffers"), 2);
    assert_eq!(judged(&report, "fused-recompute"), 5);
    assert_eq!(judged(&report, "fused-border"), 4);
    let ours = |id: &str, column: &str| {
        let figure = report.figures.iter().find(|f| f.id == id).expect("a figure");
        figure.cells.iter().find(|c| c.column == column).expect("a cell").ours
    };
    assert_eq!(ours("fused-traffic", "fused"), 3_813_376.0 / 1_048_576.0);
    assert_eq!(ours("fused-buffers", "kept rows"), 355.632);
    let mut command = assert_cmd::Command::new(vdnn_tests::data::vdnnc_binary());
    let out = command.args(["reproduce", "fused-layer", "--json"]).assert().success();
    let json: Value = serde_json::from_slice(&out.get_output().stdout).expect("JSON");
    assert_eq!((&json["judged"], &json["artefact"]), (&15.into(), &"fused-layer".into()));
}

#[test]
fn the_command_prints_json_and_draws_bars() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut command = assert_cmd::Command::new(vdnn_tests::data::vdnnc_binary());
    let out = command.args(["reproduce", "vdnn-seed", "--json", "--svg"]).arg(dir.path()).assert().success();
    let json: Value = serde_json::from_slice(&out.get_output().stdout).expect("JSON");
    assert_eq!(json["judged"], 45);
    assert_eq!(json["outside"], serde_json::json!([]));
    let svg = std::fs::read_to_string(dir.path().join("seed-memory-opt.svg")).expect("a picture");
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    assert_eq!(svg.matches("<rect").count(), 2 * 45);
}
