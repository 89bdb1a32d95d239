//! One module per command of the command line.

pub mod backend;
pub mod bench;
mod bench_conv;
pub mod calibrate;
pub mod check;
pub mod compile;
pub mod dataset;
pub mod devices;
mod equivalence;
pub mod evaluate;
pub mod inspect;
pub mod load;
pub mod profile;
mod prune;
pub mod replan;
pub mod reproduce;
pub mod run;
pub mod synthetic;
pub mod target;
pub mod train;
pub mod zoo;

use crate::cli::{Cli, Command};
use crate::error::Failure;

/// Runs the parsed command line.
///
/// # Errors
/// What the user should read; its exit status says whose fault it is.
pub fn dispatch(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        None => compile::run(&cli.compile),
        Some(Command::Run(args)) => run::run(&args),
        Some(Command::Train(args)) => train::run(&args),
        Some(Command::Bench(args)) => bench::run(&args),
        Some(Command::BenchConv(args)) => bench_conv::run(&args),
        Some(Command::Devices(args)) => devices::run(&args),
        Some(Command::Profile(args)) => profile::run(&args),
        Some(Command::Calibrate(args)) => calibrate::run(&args),
        Some(Command::Zoo(args)) => zoo::run(&args),
        Some(Command::Check(args)) => check::run(&args),
        Some(Command::Inspect(args)) => inspect::run(&args),
        Some(Command::Prune(args)) => prune::run(&args),
        Some(Command::Reproduce(args)) => reproduce::run(&args),
    }
}

/// Writes a result to stdout. A closed pipe is not an error worth reporting.
pub(crate) fn print(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    if !text.ends_with('\n') {
        let _ = out.write_all(b"\n");
    }
    let _ = out.flush();
}

/// Writes what was done besides the result to stderr.
#[expect(clippy::print_stderr, reason = "remarks go to stderr; stdout is data")]
pub(crate) fn note(text: &str) {
    eprintln!("{}", crate::error::visible(text));
}

/// Writes a remark to stderr.
#[expect(clippy::print_stderr, reason = "remarks go to stderr; stdout is data")]
pub(crate) fn warn(text: &str) {
    eprintln!("warning: {}", crate::error::visible(text));
}
