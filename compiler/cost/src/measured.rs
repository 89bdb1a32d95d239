//! Kernel times measured on one device with one set of libraries, as a table in text form.
//!
//! ```text
//! vdnnc-times 1; device=NVIDIA H200; driver=13.0; cudnn=9.19.0; date=2026-11-21
//! f32; conv(kernel:[3,3],..); f32[32,64,56,56] f32[64,64,3,3] -> f32[32,64,56,56]; eng70_k2=4; 0; 512345; fft
//! ```
//!
//! One line per way to run a kernel: precision, op, operand types, algorithm (`-` where the
//! op has only one kernel), workspace in bytes, nanoseconds (`-`: tried, and it does not run),
//! flags. Lines are sorted by everything but the time, so that a new measurement changes
//! lines in place.
//!
//! The precision counts for matrix products and convolutions; every other op runs the same
//! kernel at all of them and is kept under f32. The seed of a dropout does not count.

use crate::{ConvOption, Precision};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use vdnn_ir::graph::ConvAlgo;
use vdnn_ir::{Bytes, Nanos, Op, TensorType};

/// First word of the text form, with the format's version.
const MAGIC: &str = "vdnnc-times 1";
/// Flag of a kernel whose results differ from run to run.
pub const NONDETERMINISTIC: &str = "nondeterministic";
/// Flag of a weight gradient that was seen to add to its result, so that it can be one of
/// several micro-batches.
pub const ACCUMULATES: &str = "accumulates";
/// Flag of a kernel that cannot be part of a captured step; never offered.
pub const NOT_CAPTURED: &str = "not-captured";

/// What the times were taken on. Times of another device or library mean nothing, and engine
/// numbers of another cuDNN name other kernels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeasuredOn {
    /// Name of the device.
    pub device: String,
    /// CUDA version of the driver.
    pub driver: String,
    /// Version of cuDNN.
    pub cudnn: String,
    /// Day, `YYYY-MM-DD`.
    pub date: String,
}

/// One way to run a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeasuredRow {
    /// The convolution algorithm; `None` for ops that have one kernel.
    pub algo: Option<ConvAlgo>,
    /// Workspace it needs.
    pub workspace: Bytes,
    /// Its time; `None` if it was tried and does not run.
    pub time: Option<Nanos>,
    /// Words without spaces, commas and semicolons, such as `fft`, sorted.
    pub flags: Vec<String>,
}

impl MeasuredRow {
    /// True if it carries the flag.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|f| f == flag)
    }
}

/// All ways to run one op on operands of one type.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    precision: Precision,
    inputs: Vec<TensorType>,
    outputs: Vec<TensorType>,
    /// Sorted by algorithm, one row each.
    rows: Vec<MeasuredRow>,
}

/// A table of measured times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Where it comes from.
    pub on: MeasuredOn,
    /// By op; the entries of an op in the order of their text.
    entries: BTreeMap<Op, Vec<Entry>>,
}

/// Why a text is no table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("measured times, line {line}: {why}")]
pub struct MeasuredError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub why: String,
}

/// The op under which times are kept: kernels do not depend on a dropout's seed.
fn canonical(op: &Op) -> Cow<'_, Op> {
    match op {
        Op::Dropout { ratio, seed } if *seed != 0 => Cow::Owned(Op::Dropout { ratio: *ratio, seed: 0 }),
        _ => Cow::Borrowed(op),
    }
}

/// The precision under which times are kept.
fn kept_under(op: &Op, precision: Precision) -> Precision {
    let products = op.is_conv() || matches!(op, Op::Gemm { .. } | Op::MatMul { .. });
    if products { precision } else { Precision::F32 }
}

fn same(a: &[TensorType], b: &[&TensorType]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == *b)
}

fn types(list: &[TensorType]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

impl Entry {
    fn signature(&self) -> String {
        format!("{} -> {}", types(&self.inputs), types(&self.outputs))
    }
}

impl Measured {
    /// An empty table.
    pub fn new(on: MeasuredOn) -> Self {
        Self { on, entries: BTreeMap::new() }
    }

    /// True without a row.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.entries.values().flatten().map(|e| e.rows.len()).sum()
    }

    /// Adds a row; one of the same kernel and algorithm is replaced.
    pub fn insert(
        &mut self,
        op: &Op,
        inputs: &[&TensorType],
        outputs: &[&TensorType],
        precision: Precision,
        mut row: MeasuredRow,
    ) {
        row.flags.sort_unstable();
        row.flags.dedup();
        let op = canonical(op);
        let precision = kept_under(&op, precision);
        let entries = self.entries.entry(op.into_owned()).or_default();
        let found = entries
            .iter_mut()
            .find(|e| e.precision == precision && same(&e.inputs, inputs) && same(&e.outputs, outputs));
        let rows = match found {
            Some(entry) => &mut entry.rows,
            None => {
                let owned = |list: &[&TensorType]| list.iter().map(|&t| t.clone()).collect();
                let entry =
                    Entry { precision, inputs: owned(inputs), outputs: owned(outputs), rows: Vec::new() };
                let key = (entry.precision, entry.signature());
                let at = entries.partition_point(|e| (e.precision, e.signature()) < key);
                entries.insert(at, entry);
                &mut entries[at].rows
            }
        };
        match rows.binary_search_by_key(&row.algo, |r| r.algo) {
            Ok(at) => rows[at] = row,
            Err(at) => rows.insert(at, row),
        }
    }

    /// Every row of a kernel, by algorithm; `None` if it was never measured.
    pub fn rows(
        &self,
        op: &Op,
        inputs: &[&TensorType],
        outputs: &[&TensorType],
        precision: Precision,
    ) -> Option<&[MeasuredRow]> {
        let precision = kept_under(op, precision);
        let entries = self.entries.get(&*canonical(op))?;
        entries
            .iter()
            .find(|e| e.precision == precision && same(&e.inputs, inputs) && same(&e.outputs, outputs))
            .map(|e| e.rows.as_slice())
    }

    /// Takes over every row of `other`, which wins where both have one.
    pub fn merge(&mut self, other: &Self) {
        for (op, entries) in &other.entries {
            for e in entries {
                let (inputs, outputs): (Vec<_>, Vec<_>) =
                    (e.inputs.iter().collect(), e.outputs.iter().collect());
                for row in &e.rows {
                    self.insert(op, &inputs, &outputs, e.precision, row.clone());
                }
            }
        }
    }

    /// The ways to run a convolution that were measured to run, fastest first (ties by
    /// workspace, then by algorithm). Empty if there is none.
    pub(crate) fn conv_options(
        &self,
        op: &Op,
        inputs: &[&TensorType],
        outputs: &[&TensorType],
        precision: Precision,
        deterministic: bool,
    ) -> Vec<ConvOption> {
        let rows = self.rows(op, inputs, outputs, precision).unwrap_or_default();
        let mut options: Vec<ConvOption> = rows
            .iter()
            .filter(|r| !(r.has(NOT_CAPTURED) || deterministic && r.has(NONDETERMINISTIC)))
            .filter_map(|r| Some(ConvOption { algo: r.algo?, workspace: r.workspace, time: r.time? }))
            .collect();
        options.sort_by_key(|o| (o.time, o.workspace, o.algo));
        options
    }

    /// The time of one kernel, if it was measured to run.
    pub(crate) fn time(
        &self,
        op: &Op,
        inputs: &[&TensorType],
        outputs: &[&TensorType],
        precision: Precision,
        algo: Option<ConvAlgo>,
    ) -> Option<Nanos> {
        let rows = self.rows(op, inputs, outputs, precision)?;
        rows.iter().find(|r| r.algo == algo).and_then(|r| r.time)
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MeasuredOn { device, driver, cudnn, date } = &self.on;
        let fields = [("device", device), ("driver", driver), ("cudnn", cudnn), ("date", date)];
        f.write_str(MAGIC)?;
        for (name, value) in fields {
            // What would end the field or the line.
            write!(f, "; {name}={}", value.replace([';', '\n', '\r'], " ").trim())?;
        }
        writeln!(f)?;
        for precision in Precision::ALL {
            for (op, entries) in &self.entries {
                for e in entries.iter().filter(|e| e.precision == precision) {
                    for row in &e.rows {
                        let algo = row.algo.map_or_else(|| "-".to_owned(), |a| a.to_string());
                        let time = row.time.map_or_else(|| "-".to_owned(), |t| t.0.to_string());
                        let signature = e.signature();
                        write!(f, "{precision}; {op}; {signature}; {algo}; {}; {time};", row.workspace.0)?;
                        if !row.flags.is_empty() {
                            write!(f, " {}", row.flags.join(","))?;
                        }
                        writeln!(f)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl FromStr for Measured {
    type Err = MeasuredError;

    fn from_str(text: &str) -> Result<Self, MeasuredError> {
        let mut lines = text.lines().enumerate();
        let error = |at: usize, why: String| MeasuredError { line: at + 1, why };
        let (_, head) = lines.next().ok_or_else(|| error(0, "the table is empty".to_owned()))?;
        let mut table = Self::new(header(head).map_err(|why| error(0, why))?);
        for (at, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
            table.line(line).map_err(|why| error(at, why))?;
        }
        Ok(table)
    }
}

fn header(line: &str) -> Result<MeasuredOn, String> {
    let mut parts = line.split(';').map(str::trim);
    if parts.next() != Some(MAGIC) {
        return Err(format!("a table of measured times begins with `{MAGIC}`"));
    }
    let mut on = MeasuredOn::default();
    for part in parts {
        let (name, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is not NAME=VALUE"))?;
        let field = match name.trim() {
            "device" => &mut on.device,
            "driver" => &mut on.driver,
            "cudnn" => &mut on.cudnn,
            "date" => &mut on.date,
            other => return Err(format!("unknown field `{other}`")),
        };
        value.trim().clone_into(field);
    }
    Ok(on)
}

impl Measured {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let parts: Vec<&str> = line.split(';').map(str::trim).collect();
        let &[precision, op, signature, algo, workspace, time, flags] = parts.as_slice() else {
            return Err(format!("{} fields, not 7", parts.len()));
        };
        let number = |s: &str| s.parse::<u64>().map_err(|_| format!("`{s}` is not a whole number"));
        let (inputs, outputs) =
            signature.split_once("->").ok_or_else(|| format!("`{signature}` is not INPUTS -> OUTPUTS"))?;
        let list = |s: &str| s.split_whitespace().map(str::parse).collect::<Result<Vec<TensorType>, _>>();
        let (inputs, outputs) = (list(inputs)?, list(outputs)?);
        let row = MeasuredRow {
            algo: if algo == "-" { None } else { Some(algo.parse()?) },
            workspace: Bytes(number(workspace)?),
            time: if time == "-" { None } else { Some(Nanos(number(time)?)) },
            flags: flags.split(',').map(str::trim).filter(|f| !f.is_empty()).map(str::to_owned).collect(),
        };
        let inputs: Vec<_> = inputs.iter().collect();
        let outputs: Vec<_> = outputs.iter().collect();
        self.insert(&op.parse()?, &inputs, &outputs, precision.parse()?, row);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CostModel;
    use vdnn_ir::graph::EngineConfig;
    use vdnn_ir::op::{ConvAttrs, UnaryKind};
    use vdnn_ir::{Layout, Real};

    fn conv() -> Op {
        let two = |v: u64| [v, v].as_slice().into();
        Op::Conv(ConvAttrs {
            kernel: two(3),
            strides: two(1),
            before: two(1),
            after: two(1),
            dilations: two(1),
            groups: 1,
        })
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
        assert_eq!(lines[0], "vdnnc-times 1; device=NVIDIA H200; driver=13.0; cudnn=9.19.0; date=2026-11-21");
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
        let dropout = |seed| Op::Dropout { ratio: Real(0.5), seed };
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
        assert_eq!(
            cost.conv_options(&conv(), &[&x, &w], &[&y]),
            plain.conv_options(&conv(), &[&x, &w], &[&y])
        );
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
}
