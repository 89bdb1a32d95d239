//! ONNX: model files in, graphs and weights out, and trained weights back into a model file.

/// The ONNX schema (IR version 14, Apache-2.0) as `prost` types; byte fields are slices of
/// the decoded buffer. `tests/proto_is_generated.rs` regenerates it.
#[rustfmt::skip]
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    rustdoc::all,
    reason = "generated from proto/onnx-ml.proto, whose comments it carries; kept byte for byte"
)]
pub mod proto;
