//! Kernel times measured on one device with one set of libraries, as a table in text form.
//!
//! ```text
//! vdnnc-times 1; device=NVIDIA H200; capability=9.0; driver=13.0; cudnn=9.19.0; date=2026-11-21
//! f32; conv(kernel:[3,3],..); f32[32,64,56,56] f32[64,64,3,3] -> f32[32,64,56,56]; eng70_k2=4; 0; 512345; fft
//! ```
//!
//! One line per way to run a kernel: precision, op, operand types, algorithm (`-` where the
//! op has only one kernel), workspace in bytes, nanoseconds (`-`: tried, and it does not run),
//! flags. Lines are sorted by everything but the time, so that a new measurement changes
//! lines in place.
//!
//! The precision counts for matrix products, convolutions and pyramids; every other op runs the same
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
/// Flag of an algorithm that was found to be slower than another one that serves as well and
/// needs no more workspace, and was not timed to the end; it has no time.
pub const SLOWER: &str = "slower";

/// What the times were taken on. Times of another device or library mean nothing, and engine
/// numbers of another cuDNN name other kernels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeasuredOn {
    /// Name of the device.
    pub device: String,
    /// Its compute capability, such as `9.0`; empty if the table does not say.
    pub capability: String,
    /// CUDA version of the driver.
    pub driver: String,
    /// Version of cuDNN.
    pub cudnn: String,
    /// Day, `YYYY-MM-DD`.
    pub date: String,
}

impl MeasuredOn {
    /// True if times of the one hold for the other: device, driver and cuDNN are the same,
    /// and the compute capabilities where both say.
    pub fn is_same(&self, other: &Self) -> bool {
        let (a, b) = (self, other);
        let silent = a.capability.is_empty() || b.capability.is_empty();
        a.device == b.device
            && a.driver == b.driver
            && a.cudnn == b.cudnn
            && (silent || a.capability == b.capability)
    }
}

impl fmt::Display for MeasuredOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, capability, driver, cudnn, .. } = self;
        write!(f, "{device}")?;
        if !capability.is_empty() {
            write!(f, " (compute capability {capability})")?;
        }
        write!(f, ", driver {driver}, cuDNN {cudnn}")
    }
}

/// One way to run a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeasuredRow {
    /// The convolution algorithm; `None` for ops that have one kernel.
    pub algo: Option<ConvAlgo>,
    /// Workspace it needs.
    pub workspace: Bytes,
    /// Its time; `None` if it was tried and does not run, or is [`SLOWER`].
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

/// What one kernel's rows are kept under, and the rows.
#[derive(Clone, Copy, Debug)]
pub struct MeasuredKernel<'a> {
    /// The op; a dropout's seed is 0.
    pub op: &'a Op,
    /// Types of the operands.
    pub inputs: &'a [TensorType],
    /// Types of the results.
    pub outputs: &'a [TensorType],
    /// Precision of its products; f32 for ops without any.
    pub precision: Precision,
    /// By algorithm, one each.
    pub rows: &'a [MeasuredRow],
}

impl MeasuredKernel<'_> {
    /// The operand types as the text form has them: `INPUTS -> OUTPUTS`.
    pub fn signature(&self) -> String {
        signature(self.inputs, self.outputs)
    }
}

fn signature(inputs: &[TensorType], outputs: &[TensorType]) -> String {
    format!("{} -> {}", types(inputs), types(outputs))
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
        Op::Dropout { ratio, seed, first } if (*seed, *first) != (0, 0) => {
            Cow::Owned(Op::Dropout { ratio: *ratio, seed: 0, first: 0 })
        }
        _ => Cow::Borrowed(op),
    }
}

/// The precision under which times are kept.
fn kept_under(op: &Op, precision: Precision) -> Precision {
    let products = op.is_conv() || matches!(op, Op::Gemm { .. } | Op::MatMul { .. } | Op::Pyramid(_));
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
        signature(&self.inputs, &self.outputs)
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

    /// Every kernel, by op, precision and operand types.
    pub fn kernels(&self) -> impl Iterator<Item = MeasuredKernel<'_>> {
        self.entries.iter().flat_map(|(op, entries)| {
            entries.iter().map(move |e| MeasuredKernel {
                op,
                inputs: &e.inputs,
                outputs: &e.outputs,
                precision: e.precision,
                rows: &e.rows,
            })
        })
    }

    /// Adds a row from its parts in text form, as a line of the table has them; flags are
    /// separated by commas.
    ///
    /// # Errors
    /// Which part is not what it should be.
    pub fn insert_text(
        &mut self,
        precision: &str,
        op: &str,
        signature: &str,
        algo: &str,
        (workspace, time): (Bytes, Option<Nanos>),
        flags: &str,
    ) -> Result<(), String> {
        let (inputs, outputs) =
            signature.split_once("->").ok_or_else(|| format!("`{signature}` is not INPUTS -> OUTPUTS"))?;
        let list = |s: &str| s.split_whitespace().map(str::parse).collect::<Result<Vec<TensorType>, _>>();
        let (inputs, outputs) = (list(inputs)?, list(outputs)?);
        let row = MeasuredRow {
            algo: if algo == "-" { None } else { Some(algo.parse()?) },
            workspace,
            time,
            flags: flags.split(',').map(str::trim).filter(|f| !f.is_empty()).map(str::to_owned).collect(),
        };
        let inputs: Vec<_> = inputs.iter().collect();
        let outputs: Vec<_> = outputs.iter().collect();
        self.insert(&op.parse()?, &inputs, &outputs, precision.parse()?, row);
        Ok(())
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

    /// The ops of the table from one on, in their order.
    pub(crate) fn from(&self, op: &Op) -> impl Iterator<Item = &Op> {
        self.entries.range(op..).map(|(op, _)| op)
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
        let MeasuredOn { device, capability, driver, cudnn, date } = &self.on;
        let fields = [
            ("device", device),
            ("capability", capability),
            ("driver", driver),
            ("cudnn", cudnn),
            ("date", date),
        ];
        f.write_str(MAGIC)?;
        for (name, value) in fields {
            if name == "capability" && value.is_empty() {
                continue;
            }
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
            "capability" => &mut on.capability,
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
        let time = if time == "-" { None } else { Some(Nanos(number(time)?)) };
        self.insert_text(precision, op, signature, algo, (Bytes(number(workspace)?), time), flags)
    }
}

#[cfg(test)]
mod tests;
