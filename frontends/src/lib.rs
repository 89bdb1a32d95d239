//! File formats: ONNX in and out, the model zoo, tensor files. Knows only the IR.

pub mod onnx;
pub mod safe_file;
pub mod tensors;
pub mod zoo;
