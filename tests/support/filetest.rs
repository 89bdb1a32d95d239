//! Tests of passes as text files.
//!
//! A file is commands, a graph, and the expected output:
//!
//! ```text
//! ; What the file shows.
//! ; test pass=simplify
//! graph "g" phase=imported mode=infer {
//!   ..
//! }
//! ; expect
//! graph "g" phase=simplified mode=infer {
//!   ..
//! }
//! ; stats simplify: relu-of-relu=1 removed=1
//! ```
//!
//! Commands: `; test pass=NAME key=value ..` (several lines: one pass after the other; the
//! graph is verified before the first and after each), `; test verify` (expects the
//! verifier's complaints), `; test parse` (expects the graph printed again, or the parse
//! error), `; test layout` and `; test plan` with options (after the passes: the layout as a
//! table, or the plan's commands after elision). `; precision tf32` prices at that one. Expected errors stand in lines `; error: ..`. Counters that are zero are not
//! printed. `VDNN_BLESS=1` writes what came out into the file.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use vdnn_cost::{CostModel, Precision};
use vdnn_ir::Graph;
use vdnn_ir::parse::parse_graph;
use vdnn_ir::verify::verify;
use vdnn_passes::elide::{ElideOptions, Elided, elide};
use vdnn_passes::lower::{ExpectedTerms, LowerOptions, expected_terms, lower};
use vdnn_passes::memory::{LayoutOptions, layout, layout_on};
use vdnn_passes::pass::{PassCtx, run_pass};
use vdnn_passes::registry;
use vdnn_passes::streams::{Lanes, assign, spread};
use vdnn_plan::Header;

/// The environment variable that rewrites expectations.
pub const BLESS: &str = "VDNN_BLESS";

const EXPECT: &str = "; expect";

/// Passes that must find nothing more to do on their own result.
const IDEMPOTENT: [&str; 4] = ["simplify", "fold-batch-norm", "mark-setup", "inplace"];

/// One command of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A pass and its options.
    Pass(String),
    /// The verifier.
    Verify,
    /// The parser and printer.
    Parse,
    /// The memory layout, with its options.
    Layout(String),
    /// Layout, lowering and elision, with their options.
    Plan(String),
}

/// A test file, read.
#[derive(Clone, Debug)]
pub struct FileTest {
    /// Where it is.
    pub path: PathBuf,
    /// What to do, in order.
    pub commands: Vec<Command>,
    /// What is priced.
    pub precision: Precision,
    /// Everything up to the expectation, without it.
    pub head: String,
    /// The expected output.
    pub expected: String,
}

impl FileTest {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read or has no proper command.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let at = text.lines().position(|l| l.trim_end() == EXPECT);
        let lines: Vec<&str> = text.lines().collect();
        let (head, expected) = lines.split_at(at.unwrap_or(lines.len()));
        let mut commands = Vec::new();
        for command in head.iter().filter_map(|l| l.strip_prefix("; test ")) {
            commands.push(match command.trim().split_once('=') {
                Some(("pass", pass)) => Command::Pass(pass.to_owned()),
                _ if command.trim() == "verify" => Command::Verify,
                _ if command.trim() == "parse" => Command::Parse,
                _ if command.starts_with("layout") => Command::Layout(command.to_owned()),
                _ if command.starts_with("plan") => Command::Plan(command.to_owned()),
                _ => return Err(format!("`{command}` is not pass=NAME, verify, parse, layout or plan")),
            });
        }
        if commands.is_empty() {
            return Err("no line `; test pass=NAME`, `; test verify` or `; test parse`".into());
        }
        let precision = head.iter().find_map(|l| l.strip_prefix("; precision "));
        let precision = precision.map_or(Ok(Precision::F32), str::parse)?;
        let join = |lines: &[&str]| lines.iter().flat_map(|l| [l, "\n"]).collect::<String>();
        Ok(Self {
            path: path.to_owned(),
            commands,
            precision,
            head: join(head),
            expected: join(expected.get(1..).unwrap_or_default()),
        })
    }

    /// Runs the commands and returns what the file should expect, with the names of all
    /// non-zero counters.
    ///
    /// # Errors
    /// If a pass cannot be made, or is not idempotent though it should be.
    pub fn output(&self) -> Result<(String, Vec<&'static str>), String> {
        let mut out = String::new();
        let mut counters = Vec::new();
        let mut graph = match parse_graph(&self.head) {
            Ok(graph) => graph,
            Err(e) if self.commands == [Command::Parse] => {
                return Ok((error_lines(&e.to_string()), counters));
            }
            Err(e) => return Err(format!("the input does not parse: {e}")),
        };
        if self.commands == [Command::Verify] {
            let complaint = verify(&graph).err().map(|e| e.to_string());
            return Ok((error_lines(&complaint.unwrap_or_else(|| "none".into())), counters));
        }
        if self.commands != [Command::Parse] {
            verify(&graph).map_err(|e| format!("the input does not verify:\n{e}"))?;
        }
        let cost = CostModel::named("h200", self.precision).ok_or("the h200 profile is missing")?;
        let cx = PassCtx { cost: &cost };
        let expected = expected_terms(&graph);
        let mut stats = String::new();
        for command in &self.commands {
            let Command::Pass(text) = command else { continue };
            let pass = registry::make(text).map_err(|e| e.to_string())?;
            let outcome = match run_pass(&*pass, &mut graph, &cx) {
                Ok(outcome) => outcome,
                Err(e) => return Ok((error_lines(&e.to_string()), counters)),
            };
            write!(stats, "; stats {}:", pass.name()).expect("writing to memory");
            for (name, count) in outcome.stats.iter().filter(|(_, n)| **n > 0) {
                write!(stats, " {name}={count}").expect("writing to memory");
                counters.push(*name);
            }
            stats.push('\n');
            if IDEMPOTENT.contains(&pass.name()) {
                let before = graph.to_string();
                let again = run_pass(&*pass, &mut graph, &cx).map_err(|e| e.to_string())?;
                if graph.to_string() != before || again.changed {
                    return Err(format!(
                        "{} is not idempotent:\n{}",
                        pass.name(),
                        diff(&before, &graph.to_string())
                    ));
                }
            }
        }
        let printed = graph.to_string();
        let reparsed = parse_graph(&printed).map_err(|e| format!("the output does not parse: {e}"))?;
        if reparsed.to_string() != printed {
            return Err(format!(
                "the output does not round-trip:\n{}",
                diff(&printed, &reparsed.to_string())
            ));
        }
        match self.commands.last() {
            Some(Command::Layout(text)) => out.push_str(&placed(&graph, text)?),
            Some(Command::Plan(text)) => out.push_str(&lowered(&graph, &expected, text, &cost)?),
            _ => out.push_str(&printed),
        }
        out.push_str(&stats);
        Ok((out, counters))
    }

    /// Compares, or rewrites the file if `bless`.
    ///
    /// # Errors
    /// A diff and how to accept it.
    pub fn check(&self, bless: bool) -> Result<(), String> {
        let (actual, _) = self.output()?;
        if actual == self.expected {
            return Ok(());
        }
        if bless {
            let text = format!("{}{EXPECT}\n{actual}", self.head);
            return std::fs::write(&self.path, text).map_err(|e| e.to_string());
        }
        Err(format!(
            "{} expects (-) what did not come out (+):\n{}\nif the new output is right, accept it with: \
             {BLESS}=1 cargo test -p vdnn-tests --test filetests",
            self.path.display(),
            diff(&self.expected, &actual)
        ))
    }
}

/// True if `; test layout` or `; test plan` has this option as `key=true`.
fn on(options: &str, key: &str) -> bool {
    options.split_whitespace().any(|o| o.strip_prefix(key) == Some("=true"))
}

/// The layout as a table. Option: `baseline`.
fn placed(graph: &Graph, options: &str) -> Result<String, String> {
    let options = LayoutOptions { baseline: on(options, "baseline"), thorough: false };
    Ok(layout(graph, &options).map_err(|e| e.to_string())?.table(graph))
}

/// The plan from its buffers on, checked, and what elision removed. Options: `baseline`,
/// `waits` and `copies` (what to elide; nothing unless `true`), `streams` (at most two compute
/// streams).
fn lowered(
    graph: &Graph,
    expected: &ExpectedTerms,
    options: &str,
    cost: &CostModel,
) -> Result<String, String> {
    let lanes = if on(options, "streams") { assign(graph, cost, 2) } else { Lanes::single() };
    let layout =
        layout_on(graph, &LayoutOptions { baseline: on(options, "baseline"), thorough: false }, &lanes);
    let header = Header {
        model_name: graph.name.clone(),
        mode: graph.mode,
        batch: 1,
        policy: "none".into(),
        algo: "memory".into(),
        device: "h200".into(),
        precision: vdnn_ir::Precision::F32,
        engines: None,
        model: None,
        options: Vec::new(),
    };
    let how = LowerOptions { header, device_budget: None, host_budget: None };
    let layout = layout.map_err(|e| e.to_string())?;
    let mut plan = lower(graph, &layout, expected, &how).map_err(|e| e.to_string())?;
    spread(&mut plan, &lanes);
    let elided =
        elide(&mut plan, &ElideOptions { waits: on(options, "waits"), copies: on(options, "copies") });
    vdnn_plan::check::check(&plan).map_err(|e| e.to_string())?;
    let text = plan.to_string();
    let skipped = ["vplan", "model", "mode", "batch", "policy", "algo", "device", "predicted"];
    let keep = |l: &&str| !skipped.contains(&l.split(' ').next().unwrap_or_default());
    let lines: String = text.lines().filter(keep).flat_map(|l| [l, "\n"]).collect();
    let Elided { waits, records, copies, .. } = elided;
    Ok(format!("{lines}; elided waits={waits} records={records} copies={copies}\n"))
}

fn error_lines(text: &str) -> String {
    text.lines().flat_map(|l| ["; error: ", l, "\n"]).collect()
}

/// The `.vir` files under a folder, in order.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "vir") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A line diff by longest common subsequence.
pub fn diff(old: &str, new: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    // common[i][j]: length of the longest common subsequence of a[i..] and b[j..].
    let mut common = vec![vec![0u32; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i][j] =
                if a[i] == b[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut out) = (0, 0, String::new());
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            writeln!(out, "  {}", a[i]).expect("writing to memory");
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || (i < a.len() && common[i + 1][j] >= common[i][j + 1]) {
            writeln!(out, "- {}", a[i]).expect("writing to memory");
            i += 1;
        } else {
            writeln!(out, "+ {}", b[j]).expect("writing to memory");
            j += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_marks_what_changed() {
        assert_eq!(diff("a\nb\nc", "a\nx\nc\nd"), "  a\n- b\n+ x\n  c\n+ d\n");
    }
}
