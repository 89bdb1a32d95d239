//! What can be wrong with a model, collected so that one run reports everything.

use std::fmt;
use std::path::PathBuf;
use vdnn_ir::op::infer::InferError;

/// Where in a model a problem is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The node's name, or that of its first output if it has none.
    pub node: String,
    /// Operator.
    pub op: String,
    /// Operator domain, `ai.onnx` for the default one.
    pub domain: String,
    /// Version of that domain the model imports; 0 if it imports none.
    pub opset: i64,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node `{}` ({}, {} opset {})", self.node, self.op, self.domain, self.opset)
    }
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// The file cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The bytes are no ONNX model, or one of a version that is not understood.
    #[error("not a usable ONNX model: {0}")]
    Format(String),
    /// A legal model that needs something this compiler does not have.
    #[error("{site} is not supported: {reason}")]
    Unsupported {
        /// Where.
        site: Site,
        /// What is missing.
        reason: String,
    },
    /// A node that breaks the rules of its operator.
    #[error("{site} is invalid: {reason}")]
    Invalid {
        /// Where.
        site: Site,
        /// Which rule.
        reason: String,
    },
    /// An initializer that cannot be loaded.
    #[error("initializer `{name}`: {reason}")]
    Initializer {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Nodes that depend on their own results.
    #[error("the graph has a cycle through node `{node}`")]
    Cycle {
        /// A node on the cycle.
        node: String,
    },
    /// Anything about the graph as a whole: its inputs, outputs and names.
    #[error("{0}")]
    Graph(String),
}

/// Everything wrong with a model; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportErrors {
    /// The model's file, if it came from one.
    pub file: Option<PathBuf>,
    /// The problems, in the order of the model's nodes.
    pub errors: Vec<ImportError>,
}

impl ImportErrors {
    /// A single problem.
    pub(super) fn one(error: ImportError) -> Self {
        Self { file: None, errors: vec![error] }
    }
}

/// Most problems a message lists: more than any real model has, fewer than a broken one may.
const MAX_SHOWN: usize = 200;

impl fmt::Display for ImportErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "cannot import {}: ", file.display())?;
        }
        match self.errors.as_slice() {
            [one] => write!(f, "{one}"),
            many => {
                write!(f, "{} problems", many.len())?;
                many.iter().take(MAX_SHOWN).try_for_each(|e| write!(f, "\n  {e}"))?;
                match many.len().saturating_sub(MAX_SHOWN) {
                    0 => Ok(()),
                    more => write!(f, "\n  and {more} more"),
                }
            }
        }
    }
}

impl std::error::Error for ImportErrors {}

/// Why one node could not be imported; becomes an [`ImportError`] with the node's site.
#[derive(Debug)]
pub(super) enum Fail {
    /// Legal ONNX, not implemented.
    Unsupported(String),
    /// Illegal ONNX.
    Invalid(String),
    /// Already reported.
    Reported,
}

impl Fail {
    pub(super) fn at(self, site: Site) -> Option<ImportError> {
        match self {
            Self::Unsupported(reason) => Some(ImportError::Unsupported { site, reason }),
            Self::Invalid(reason) => Some(ImportError::Invalid { site, reason }),
            Self::Reported => None,
        }
    }
}

impl From<InferError> for Fail {
    fn from(e: InferError) -> Self {
        Self::Invalid(e.0)
    }
}

/// An error for legal ONNX that is not implemented.
pub(super) fn unsupported<T>(reason: impl Into<String>) -> Result<T, Fail> {
    Err(Fail::Unsupported(reason.into()))
}

/// An error for illegal ONNX.
pub(super) fn invalid<T>(reason: impl Into<String>) -> Result<T, Fail> {
    Err(Fail::Invalid(reason.into()))
}
