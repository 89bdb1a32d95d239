//! The suites every backend must pass, and a table of how well it does.
//!
//! Run by `cargo test` on the CPU backend, and on the CUDA backend where there is a device.
//! The program needs only itself and the CUDA libraries, so it can be carried to another
//! machine; see CONTRIBUTING.md. Arguments are substrings of the suites to run; `--part=I/N`
//! takes every Nth of these from the Ith on, counted from 0, so that several processes share them;
//! `--skip=TEXT` leaves out suites with that in their names; with `--no-poison` ops do not run on
//! memory filled with NaN, so that a checker sees what is read uninitialised.

mod device;
mod exact;
mod golden;
mod micro;
mod nets;
mod ops;

use device::Device;
use std::cell::Cell;
use std::process::ExitCode;
use std::time::Instant;

/// One line of the table.
struct Row {
    suite: String,
    checks: usize,
    /// Largest relative error met, and the limit at that place.
    worst: f64,
    limit: f64,
    /// What is wrong, if anything.
    failures: Vec<String>,
}

/// Failures shown per suite.
const SHOWN: usize = 6;

#[expect(clippy::print_stdout, reason = "the test's report")]
fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let listing = std::env::args().any(|a| a == "--list");
    if listing {
        println!("backends: test\n\n1 test, 0 benchmarks");
        return ExitCode::SUCCESS;
    }
    let (part, parts) = match part() {
        Ok(part) => part,
        Err(e) => {
            println!("{e}");
            return ExitCode::FAILURE;
        }
    };
    let skipped: Vec<String> =
        std::env::args().filter_map(|a| Some(a.strip_prefix("--skip=")?.to_owned())).collect();
    let poison = !std::env::args().any(|a| a == "--no-poison");
    let counted = Cell::new(0usize);
    let mut failed = false;
    for device in Device::all() {
        if let Err(why) = device.available() {
            println!("{device}: skipped: {why}");
            continue;
        }
        let is_wanted = |suite: &str| {
            let name = format!("{device}/{suite}");
            if !wanted.is_empty() && !wanted.iter().any(|w| name.contains(w.as_str())) {
                return false;
            }
            if skipped.iter().any(|s| name.contains(s.as_str())) {
                return false;
            }
            counted.replace(counted.get() + 1) % parts == part
        };
        println!(
            "{:<40} {:>7} {:>10} {:>10} {:>8}",
            format!("{device}"),
            "checks",
            "worst",
            "limit",
            "seconds"
        );
        let mut since = Instant::now();
        let mut report = |row: Row| {
            let seconds = std::mem::replace(&mut since, Instant::now()).elapsed().as_secs_f64();
            let verdict = if row.failures.is_empty() { "" } else { "  FAILED" };
            println!(
                "{:<40} {:>7} {:>10.2e} {:>10.2e} {seconds:>8.1}{verdict}",
                row.suite, row.checks, row.worst, row.limit
            );
            for failure in row.failures.iter().take(SHOWN) {
                println!("    {failure}");
            }
            if row.failures.len() > SHOWN {
                println!("    and {} more", row.failures.len() - SHOWN);
            }
            failed |= !row.failures.is_empty();
        };
        ops::run(device, poison, &is_wanted, &mut report);
        micro::run(device, poison, &is_wanted, &mut report);
        nets::run(device, &is_wanted, &mut report);
        nets::run_controls(device, &is_wanted, &mut report);
        exact::run(device, &is_wanted, &mut report);
        // Looks for files, and says so if they are not there; the CPU has tests of its own for these.
        let all = wanted.is_empty() || wanted.iter().any(|w| "cuda/golden/".contains(w.as_str()));
        if wanted.iter().any(|w| w.contains("golden")) || all && device == Device::Cuda {
            golden::run(device, &is_wanted, &mut report);
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Which of how many parts of the suites to run.
fn part() -> Result<(usize, usize), String> {
    let Some(text) = std::env::args().find_map(|a| Some(a.strip_prefix("--part=")?.to_owned())) else {
        return Ok((0, 1));
    };
    let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    numbers.filter(|(i, n)| i < n).ok_or_else(|| format!("--part={text}: not I/N with I below N"))
}
