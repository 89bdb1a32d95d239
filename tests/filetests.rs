//! Runs the text tests under `tests/filetests` and checks that they cover the passes.

use libtest_mimic::{Arguments, Failed, Trial};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use vdnn_passes::{registry, simplify};
use vdnn_tests::filetest::{BLESS, Command, FileTest, files};

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests");
    let bless = std::env::var_os(BLESS).is_some_and(|v| v == "1");
    let paths = files(&folder);
    let mut tests: Vec<Result<FileTest, String>> = Vec::new();
    let mut trials = Vec::new();
    for path in &paths {
        let name = path.strip_prefix(&folder).unwrap_or(path).display().to_string();
        let test = FileTest::read(path);
        tests.push(test.clone());
        trials.push(Trial::test(name, move || Ok(test.and_then(|t| t.check(bless))?)));
    }
    let tests: Arc<Vec<FileTest>> = Arc::new(tests.into_iter().flatten().collect());
    let all = Arc::clone(&tests);
    trials.push(Trial::test("every_registered_pass_has_a_file", move || every_pass_has_a_file(&all)));
    trials
        .push(Trial::test("every_simplify_rule_is_applied_by_a_file", move || every_rule_is_applied(&tests)));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn every_pass_has_a_file(tests: &[FileTest]) -> Result<(), Failed> {
    let tested: BTreeSet<&str> = tests
        .iter()
        .flat_map(|t| &t.commands)
        .filter_map(|c| match c {
            Command::Pass(text) => text.split_whitespace().next(),
            _ => None,
        })
        .collect();
    let missing: Vec<&str> =
        registry::PASSES.iter().map(|e| e.name).filter(|n| !tested.contains(n)).collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(format!("passes without a file: {}", missing.join(", ")).into())
    }
}

fn every_rule_is_applied(tests: &[FileTest]) -> Result<(), Failed> {
    let mut applied = BTreeSet::new();
    for test in tests.iter().filter(|t| t.commands.contains(&Command::Pass("simplify".into()))) {
        applied.extend(test.output()?.1);
    }
    let missing: Vec<&str> = simplify::rule_names().filter(|n| !applied.contains(n)).collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(format!("rules no file applies: {}", missing.join(", ")).into())
    }
}
