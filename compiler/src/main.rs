//! The command `vdnnc`: parse, dispatch, exit with the right status.

use clap::Parser;
use std::process::ExitCode;
use vdnnc::cli::Cli;

#[expect(clippy::print_stderr, reason = "the one place that reports errors")]
fn main() -> ExitCode {
    // Ctrl-c must not leave half-written files; failing to install the handler is no reason to stop.
    let _ = ctrlc::set_handler(|| {
        let _guard = vdnn_frontends::safe_file::remove_temporaries();
        std::process::exit(130);
    });
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(u8::from(e.use_stderr()));
        }
    };
    match vdnnc::commands::dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}
