//! Reads the text form of a graph.

use crate::graph::Graph;

/// Where and why a text is not a graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// What was expected.
    pub message: String,
}

/// Reads a graph; ids are those of the text.
///
/// # Errors
/// The first place that does not parse or breaks a shape rule.
pub fn parse_graph(text: &str) -> Result<Graph, ParseError> {
    let _ = text;
    Err(ParseError { line: 1, column: 1, message: "not yet".into() })
}
