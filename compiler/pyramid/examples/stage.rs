//! Writes the kernel of ResNet-50's first stage to standard output:
//! `cargo run -p vdnn-pyramid --example stage -- BATCH "rings 2 4 6 4 3 5 3 3 blocks 132"`.

use std::io::Write;
use vdnn_ir::Precision;
use vdnn_ir::types::Layout;
use vdnn_pyramid::stage::{Stage, StageConfig, kernel};

fn main() -> Result<(), String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [batch, config] = args.as_slice() else { return Err("name a batch and a configuration".to_owned()) };
    let batch: u64 = batch.parse().map_err(|_| "a batch is a number")?;
    let config: StageConfig = config.parse()?;
    let stage = Stage { blocks: 3, height: 56, width: 56, side: true };
    let kernel =
        kernel(&stage, &config, Precision::Tf32, Layout::ChannelsLast, batch).map_err(|e| e.to_string())?;
    std::io::stdout().write_all(kernel.source.as_bytes()).map_err(|e| e.to_string())
}
