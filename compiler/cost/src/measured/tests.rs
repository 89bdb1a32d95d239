//! Tests of the table and its text form.

use super::*;
use crate::CostModel;
use vdnn_ir::graph::EngineConfig;
use vdnn_ir::op::{ConvAttrs, UnaryKind};
use vdnn_ir::{Layout, Real};

fn conv() -> Op {
    Op::Conv(ConvAttrs::square(3, 1, 1, 1))
}

fn operands() -> [TensorType; 3] {
    [[8, 16, 28, 28], [32, 16, 3, 3], [8, 32, 28, 28]].map(TensorType::f32)
}

fn engine(n: u16) -> ConvAlgo {
    ConvAlgo::Engine(EngineConfig::new(n, &[(2, 7), (27, -1)]).expect("two knobs"))
}

fn row(algo: Option<ConvAlgo>, workspace: u64, time: Option<u64>, flags: &[&str]) -> MeasuredRow {
    let flags = flags.iter().map(|&f| f.to_owned()).collect();
    MeasuredRow { algo, workspace: Bytes(workspace), time: time.map(Nanos), flags }
}

/// A convolution with six engines, and a ReLU.
fn table() -> Measured {
    let on = MeasuredOn {
        device: "NVIDIA H200".to_owned(),
        capability: "9.0".to_owned(),
        driver: "13.0".to_owned(),
        cudnn: "9.19.0".to_owned(),
        date: "2026-11-21".to_owned(),
    };
    let mut t = Measured::new(on);
    let [x, w, y] = operands();
    for r in [
        row(Some(engine(5)), 4096, Some(100), &["winograd", NONDETERMINISTIC]),
        row(Some(engine(1)), 64, Some(300), &[]),
        row(Some(engine(9)), 1 << 20, Some(150), &["fft"]),
        row(Some(engine(2)), 64, None, &[]),
        row(Some(engine(3)), 512, Some(300), &[]),
        row(Some(engine(6)), 0, Some(1), &[NOT_CAPTURED]),
    ] {
        t.insert(&conv(), &[&x, &w], &[&y], Precision::F32, r);
    }
    t.insert(&Op::Unary(UnaryKind::Relu), &[&y], &[&y], Precision::Tf32, row(None, 0, Some(77), &[]));
    t
}

#[test]
fn the_text_form_is_sorted_and_reads_back() {
    let t = table();
    let text = t.to_string();
    assert_eq!(text.parse().as_ref(), Ok(&t));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[0],
        "vdnnc-times 1; device=NVIDIA H200; capability=9.0; driver=13.0; cudnn=9.19.0; date=2026-11-21"
    );
    let key = format!("f32; {}; f32[8,16,28,28] f32[32,16,3,3] -> f32[8,32,28,28]", conv());
    assert_eq!(lines[1], format!("{key}; eng1_k2=7_k27=-1; 64; 300;"));
    assert_eq!(lines[2], format!("{key}; eng2_k2=7_k27=-1; 64; -;"));
    assert_eq!(lines[4], format!("{key}; eng5_k2=7_k27=-1; 4096; 100; nondeterministic,winograd"));
    assert_eq!(lines.len(), 8);
    assert_eq!(t.len(), 7);
    // The order of insertion does not show.
    let mut reversed = Measured::new(t.on.clone());
    let backwards: Vec<&str> = lines[1..].iter().rev().copied().collect();
    for line in backwards {
        reversed.line(line).expect("a line of the table");
    }
    assert_eq!(reversed.to_string(), text);
}

#[test]
fn a_new_time_replaces_the_old_one_and_merging_prefers_the_other() {
    let mut t = table();
    let [x, w, y] = operands();
    let again = row(Some(engine(1)), 64, Some(250), &[]);
    t.insert(&conv(), &[&x, &w], &[&y], Precision::F32, again.clone());
    assert_eq!(t.len(), 7);
    assert_eq!(t.rows(&conv(), &[&x, &w], &[&y], Precision::F32).unwrap()[0], again);
    let mut old = table();
    old.merge(&t);
    assert_eq!(old, t);
}

#[test]
fn keys_are_op_types_layout_and_for_products_the_precision() {
    let t = table();
    let [x, w, y] = operands();
    assert!(t.rows(&conv(), &[&x, &w], &[&y], Precision::Tf32).is_none());
    let nhwc = [&x, &w, &y].map(|t| t.in_layout(Layout::ChannelsLast));
    assert!(t.rows(&conv(), &[&nhwc[0], &nhwc[1]], &[&nhwc[2]], Precision::F32).is_none());
    let relu = Op::Unary(UnaryKind::Relu);
    for precision in Precision::ALL {
        assert_eq!(t.time(&relu, &[&y], &[&y], precision, None), Some(Nanos(77)));
    }
    let mut t = table();
    let dropout = |seed| Op::Dropout { ratio: Real(0.5), seed, first: seed / 2 };
    t.insert(&dropout(3), &[&y], &[&y], Precision::F32, row(None, 0, Some(5), &[]));
    assert_eq!(t.time(&dropout(8), &[&y], &[&y], Precision::F32, None), Some(Nanos(5)));
    assert_eq!(t.to_string().parse().as_ref(), Ok(&t));
}

#[test]
fn the_cost_model_offers_what_was_measured_and_the_roofline_otherwise() {
    let [x, w, y] = operands();
    let (inputs, outputs) = ([&x, &w], [&y]);
    let plain = CostModel::named("h200", Precision::F32).expect("shipped");
    let cost = plain.clone().with_measured(table());
    let options = cost.conv_options(&conv(), &inputs, &outputs);
    let algos: Vec<_> = options.iter().map(|o| o.algo).collect();
    assert_eq!(algos, [5, 9, 1, 3].map(engine), "fastest first, ties by workspace");
    assert!(options.iter().all(|o| o.workspace > Bytes::ZERO), "cuDNN need not have one without");
    for o in &options {
        assert_eq!(cost.kernel(&conv(), &inputs, &outputs, Some(o.algo)), o.time);
    }
    let strict = cost.clone().with_deterministic(true);
    let algos: Vec<_> = strict.conv_options(&conv(), &inputs, &outputs).iter().map(|o| o.algo).collect();
    assert_eq!(algos, [9, 1, 3].map(engine));

    // Not in the table: another batch, another precision, an algorithm not tried.
    let [x2, w2, y2] = [[4, 16, 28, 28], [32, 16, 3, 3], [4, 32, 28, 28]].map(TensorType::f32);
    assert_eq!(
        cost.conv_options(&conv(), &[&x2, &w2], &[&y2]),
        plain.conv_options(&conv(), &[&x2, &w2], &[&y2])
    );
    let tf32 = CostModel::named("h200", Precision::Tf32).expect("shipped").with_measured(table());
    assert!(tf32.conv_options(&conv(), &inputs, &outputs).iter().all(|o| o.algo != engine(5)));
    let classic = Some(ConvAlgo::ImplicitGemm);
    assert_eq!(
        cost.kernel(&conv(), &inputs, &outputs, classic),
        plain.kernel(&conv(), &inputs, &outputs, classic)
    );
    let relu = Op::Unary(UnaryKind::Relu);
    assert_eq!(cost.kernel(&relu, &[&y], &[&y], None), Nanos(77));
    assert_eq!(cost.kernel(&relu, &[&x], &[&x], None), plain.kernel(&relu, &[&x], &[&x], None));
}

#[test]
fn only_failures_measured_means_the_roofline() {
    let [x, w, y] = operands();
    let mut t = Measured::default();
    t.insert(&conv(), &[&x, &w], &[&y], Precision::F32, row(Some(engine(0)), 0, None, &[]));
    let plain = CostModel::named("h200", Precision::F32).expect("shipped");
    let cost = plain.clone().with_measured(t);
    assert_eq!(cost.conv_options(&conv(), &[&x, &w], &[&y]), plain.conv_options(&conv(), &[&x, &w], &[&y]));
}

#[test]
fn what_is_no_table_is_refused_with_its_line() {
    let good = table().to_string();
    let bad = |from: &str, to: &str| {
        let text = good.replace(from, to);
        assert_ne!(text, good);
        text.parse::<Measured>().unwrap_err()
    };
    assert_eq!(bad("vdnnc-times 1", "vdnnc-times 2").line, 1);
    assert_eq!(bad("; date=", "; day=").line, 1);
    let error = bad("; 100;", "; fast;");
    assert_eq!((error.line, error.why.as_str()), (5, "`fast` is not a whole number"));
    assert_eq!(bad("eng9_", "engine9_").line, 7);
    assert_eq!(bad(" -> ", " ").line, 2);
    assert_eq!("".parse::<Measured>().unwrap_err().line, 1);
    assert_eq!(bad("; 100; ", "; 100; x; ").why, "8 fields, not 7");
}
