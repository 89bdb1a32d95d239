//! ONNX: model files in, graphs and weights out, and trained weights back into a model file.
//!
//! `mmap` maps the file, `model` decodes it and sorts its nodes, `inputs` binds the open
//! dimensions, `import` walks the nodes and asks `ops` for each; `constant` and `fold` compute
//! what is known already, and `params` turns weights into parameters. `tensor` and `external`
//! read weights and check every size against the data, `sparse` those stored without their
//! zeros. `export` goes the other way.

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

mod constant;
mod error;
mod export;
mod external;
mod fold;
mod hash;
mod import;
mod inputs;
pub mod mmap;
mod model;
mod node;
mod ops;
mod params;
mod prescan;
mod sparse;
mod tensor;

pub use error::{ImportError, ImportErrors, Site};
pub use export::{ExportError, write_with_sparse_weights, write_with_weights};
pub use hash::content_sha256;
pub use import::{ImportOptions, Imported, import_bytes, import_file, import_model};
pub use model::{MAX_IR_VERSION, MAX_OPSET, MIN_OPSET};
pub use ops::operators;
