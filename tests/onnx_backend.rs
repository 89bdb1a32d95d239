//! The ONNX backend suite, run through the whole compiler on the CPU executor, with the table
//! of what passes, `conformance/COMPATIBILITY.md`.
//!
//! The suite's data is not part of the repository (`conformance/fetch.sh`); without it only
//! our own cases run.

use libtest_mimic::{Arguments, Trial};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;
use vdnn_tests::conformance::{self, Beyond, Case, Known, Outcome, display, objection};
use vdnn_tests::{data, light};

/// Folders of the suite whose cases are models with data sets.
const CATEGORIES: [&str; 4] = ["node", "pytorch-converted", "pytorch-operator", "simple"];

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the table is the point of the run")]
fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let folder = data::root().join("tests/conformance");
    let suite = conformance::suite();
    let ignored = match conformance::ignored(&folder.join("ignored.txt")) {
        Ok(ignored) => ignored,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::FAILURE;
        }
    };
    let mut cases = read(&conformance::own_cases(), &["own"]);
    if let Some(suite) = &suite {
        cases.extend(read(suite, &CATEGORIES));
    } else {
        eprintln!(
            "skipped: needs target/onnx-backend/{}, which tests/conformance/fetch.sh makes",
            conformance::VERSION
        );
    }
    let results: Vec<(Case, Outcome)> = if arguments.list {
        cases.into_iter().map(|c| (c, Outcome::Passed(Known::Nothing))).collect()
    } else {
        run(cases)
    };

    let mut rows: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (case, outcome) in &results {
        let complaints = rows.entry(case.row()).or_default();
        let problem = objection(case, outcome);
        match (problem, ignored.get(&case.name)) {
            (Some(p), None) => complaints.push(format!("{}: {p}", case.name)),
            (Some(p), Some(_)) if matches!(outcome, Outcome::Panicked(_)) => {
                complaints.push(format!("{}: {p}", case.name));
            }
            (None, Some(_)) => complaints.push(format!("{} passes; take it off the list", case.name)),
            _ => {}
        }
    }
    let mut trials: Vec<Trial> = rows
        .into_iter()
        .map(|(row, complaints)| {
            let text = complaints.join("\n");
            Trial::test(row, move || if text.is_empty() { Ok(()) } else { Err(text.into()) })
        })
        .collect();
    if let Some(suite) = &suite {
        let names: BTreeSet<&str> = results.iter().map(|(c, _)| c.name.as_str()).collect();
        let unknown: Vec<String> = ignored.keys().filter(|n| !names.contains(n.as_str())).cloned().collect();
        trials.push(Trial::test("the_ignore_list_names_cases_of_the_suite", move || {
            if unknown.is_empty() { Ok(()) } else { Err(unknown.join(", ").into()) }
        }));
        trials.extend(light::trials(&suite.join("light")));
        let page = page(&results, &ignored);
        if !arguments.list {
            println!("{page}");
        }
        let path = folder.join("COMPATIBILITY.md");
        trials.push(Trial::test("the_compatibility_page_is_up_to_date", move || {
            Ok(bless_or_compare(&path, &page)?)
        }));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn read(root: &Path, categories: &[&str]) -> Vec<Case> {
    let read = |c: &&str| conformance::cases(root, c).unwrap_or_else(|e| panic!("{e}"));
    categories.iter().flat_map(read).collect()
}

/// Runs the cases on two threads; results stay in order.
fn run(cases: Vec<Case>) -> Vec<(Case, Outcome)> {
    let half = cases.len().div_ceil(2).max(1);
    let results: Vec<Vec<Outcome>> = std::thread::scope(|s| {
        let workers: Vec<_> =
            cases.chunks(half).map(|part| s.spawn(|| part.iter().map(conformance::run).collect())).collect();
        workers.into_iter().map(|w| w.join().expect("panics of cases are caught")).collect()
    });
    cases.into_iter().zip(results.into_iter().flatten()).collect()
}

fn bless_or_compare(path: &Path, page: &str) -> Result<(), String> {
    if std::env::var_os("VDNN_BLESS").is_some_and(|v| v == "1") {
        return std::fs::write(path, page).map_err(|e| e.to_string());
    }
    match std::fs::read_to_string(path) {
        Ok(found) if found == page => Ok(()),
        _ => Err("COMPATIBILITY.md differs from this run; VDNN_BLESS=1 rewrites it".to_owned()),
    }
}

/// Counts of one row of the table.
#[derive(Clone, Copy, Default)]
struct Count {
    cases: usize,
    /// Passed with every input bound at run time, with operands known, with everything known.
    passed: [usize; 3],
    refused: usize,
    ignored: usize,
    panicked: usize,
}

impl Count {
    fn add(&mut self, outcome: &Outcome, ignored: bool) {
        self.cases += 1;
        match outcome {
            Outcome::Passed(known) => self.passed[*known as usize] += 1,
            Outcome::Panicked(_) => self.panicked += 1,
            _ if ignored => self.ignored += 1,
            Outcome::Refused(_) | Outcome::Wrong(_) => self.refused += 1,
        }
    }
    fn row(&self, name: &str) -> String {
        let [run, operands, folded] = self.passed;
        format!(
            "| {name} | {} | {run} | {operands} | {folded} | {} | {} |\n",
            self.cases, self.refused, self.ignored
        )
    }
}

const HEADER: &str = "| operator | cases | run | operands known | folded | refused | ignored |\n\
                      |---|---:|---:|---:|---:|---:|---:|\n";

fn page(results: &[(Case, Outcome)], ignored: &BTreeMap<String, String>) -> String {
    let mut total = Count::default();
    let mut rows: BTreeMap<String, Count> = BTreeMap::new();
    let mut unknown: BTreeMap<String, usize> = BTreeMap::new();
    let mut other: BTreeMap<&str, usize> = BTreeMap::new();
    let mut in_scope = 0;
    for (case, outcome) in results.iter().filter(|(c, _)| !c.name.starts_with("own/")) {
        let listed = ignored.contains_key(&case.name);
        total.add(outcome, listed);
        in_scope += usize::from(case.beyond.is_none());
        if let Some(Beyond::Operator(o)) = &case.beyond {
            *unknown.entry(display(o)).or_default() += 1;
        } else {
            rows.entry(case.row()).or_default().add(outcome, listed);
        }
        if matches!(outcome, Outcome::Refused(_)) && !listed {
            let reason = match &case.beyond {
                Some(Beyond::Operator(_)) => "an operator without an importer",
                Some(Beyond::Opset(_)) => "an opset outside of those understood",
                Some(Beyond::Container(_)) => "an input or output that is a sequence or an optional",
                Some(Beyond::ElementType(_)) => {
                    "a 2- to 8-bit float or integer, string or u32/u64 element type"
                }
                Some(Beyond::Empty(_)) => "an output without elements",
                None => "a fault of this compiler",
            };
            *other.entry(reason).or_default() += 1;
        }
    }
    let mut page = format!(
        "# ONNX compatibility\n\n\
         The backend suite of the package `onnx` {}, through the whole compiler: import, passes,\n\
         plan, checker, CPU executor. `VDNN_BLESS=1 cargo test -p vdnn-tests --test onnx_backend`\n\
         rewrites this page.\n\n\
         {} cases: {} give the expected values, {} are refused with the reason, {} are on the ignore\n\
         list, {} panic. {in_scope} cases have only operators, element types and shapes that the compiler\n\
         takes on; all of these pass but the ignored ones. The nine light models compile and run in both\n\
         modes.\n\n",
        conformance::VERSION,
        total.cases,
        total.passed.iter().sum::<usize>(),
        total.refused,
        total.ignored,
        total.panicked,
    );
    page.push_str(
        "*run*: every input is bound when the plan runs. *operands known*: shapes, axes, bounds and other\n\
         scalars or integers are constants of the model, as exporters write them. *folded*: passes only with\n\
         all inputs constant: the operator is computed at import and refused on values.\n\n## Operators\n\n",
    );
    page.push_str(HEADER);
    for (name, count) in &rows {
        page.push_str(&count.row(name));
    }
    page.push_str("\n## Why cases are refused\n\n| reason | cases |\n|---|---:|\n");
    for (reason, n) in &other {
        let _ = writeln!(page, "| {reason} | {n} |");
    }
    page.push_str("\nCases with operators that have no importer, by the first such operator:\n\n");
    let list: Vec<String> = unknown.iter().map(|(name, n)| format!("{name} ({n})")).collect();
    page.push_str(&wrap(&list.join(", ")));
    page.push_str(".\n\n## Ignored\n\n| case | why |\n|---|---|\n");
    for (name, reason) in ignored {
        let _ = writeln!(page, "| {name} | {reason} |");
    }
    page
}

/// Breaks text into lines of at most 96 characters.
fn wrap(text: &str) -> String {
    let mut out = String::new();
    let mut width = 0;
    for word in text.split(' ') {
        if width + word.len() + 1 > 96 {
            out.push('\n');
            width = 0;
        } else if width > 0 {
            out.push(' ');
            width += 1;
        }
        out.push_str(word);
        width += word.len();
    }
    out
}
