//! `src/onnx/proto.rs` is what `proto/onnx-ml.proto` generates. The file is committed so
//! that building needs no code generator; `VDNN_BLESS=1` rewrites it.

use std::error::Error;
use std::fs;
use std::path::Path;

#[test]
fn generated_types_match_the_schema() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("src/onnx/proto.rs");
    let out = tempfile::tempdir()?;

    let schema = protox::compile(["onnx-ml.proto"], [root.join("proto")])?;
    prost_build::Config::new().bytes(["."]).out_dir(out.path()).compile_fds(schema)?;
    let fresh = fs::read(out.path().join("onnx.rs"))?;

    if std::env::var_os("VDNN_BLESS").is_some() {
        fs::write(&committed, &fresh)?;
        return Ok(());
    }
    assert!(
        fs::read(&committed)? == fresh,
        "proto.rs differs from what the schema generates; VDNN_BLESS=1 cargo test --test proto_is_generated rewrites it"
    );
    Ok(())
}
