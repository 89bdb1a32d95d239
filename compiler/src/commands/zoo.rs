//! `vdnnc zoo NAME -o m.onnx`.

use crate::cli::ZooArgs;
use crate::error::Failure;
use vdnn_frontends::zoo::{ZooOptions, generate};

/// Runs the command.
///
/// # Errors
/// What the user should read.
pub fn run(args: &ZooArgs) -> Result<(), Failure> {
    let options = ZooOptions { batch: args.batch, classes: args.classes, seed: args.seed };
    generate(&args.name, &options, &args.output).map_err(Failure::user)
}
