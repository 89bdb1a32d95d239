//! `vdnnc zoo NAME -o m.onnx`.

use crate::cli::ZooArgs;
use crate::error::Failure;
use vdnn_frontends::zoo::{ZooOptions, build, write};

/// Runs the command.
///
/// # Errors
/// What the user should read.
pub fn run(args: &ZooArgs) -> Result<(), Failure> {
    let options = ZooOptions { batch: args.batch, classes: args.classes, seed: args.seed };
    let model = build(&args.name, &options).map_err(Failure::user)?;
    write(&model, &args.output).map_err(|e| Failure::user(format!("{}: {e}", args.output.display())))
}
