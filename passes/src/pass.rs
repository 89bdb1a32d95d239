//! What a pass is.

use std::collections::BTreeMap;
use vdnn_cost::CostModel;
use vdnn_ir::op::infer::InferError;
use vdnn_ir::verify::VerifyErrors;
use vdnn_ir::{Graph, Phase};

/// Named counters of one pass run.
pub type Stats = BTreeMap<&'static str, u64>;

/// What a pass may look at besides the graph.
#[derive(Clone, Copy, Debug)]
pub struct PassCtx<'a> {
    /// Prices of kernels and copies.
    pub cost: &'a CostModel,
}

/// What a pass did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// False if the graph is as before.
    pub changed: bool,
    /// Counters.
    pub stats: Stats,
}

/// Why a pass failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PassError {
    /// The user's model or options cannot be compiled this way.
    #[error("{0}")]
    Unsupported(String),
    /// A pass built an ill-typed node: our bug.
    #[error("pass {pass}: {error}")]
    Infer {
        /// The pass.
        pass: &'static str,
        /// What inference said.
        error: InferError,
    },
    /// A pass left a graph that does not verify: our bug.
    #[error("pass {pass} broke the graph:\n{errors}")]
    Broke {
        /// The pass.
        pass: &'static str,
        /// What the verifier said.
        errors: VerifyErrors,
    },
}

/// A graph-to-graph pass: a named value with a phase contract.
pub trait Pass {
    /// Name in reports, on the command line and in text tests.
    fn name(&self) -> &'static str;
    /// The graph's phase must be at least this.
    fn requires(&self) -> Phase;
    /// The graph's phase afterwards is the larger of this and what it was.
    fn produces(&self) -> Phase;
    /// Rewrites the graph. Must be deterministic.
    ///
    /// # Errors
    /// If the graph cannot be handled; the graph is then unspecified.
    fn run(&self, graph: &mut Graph, cx: &PassCtx<'_>) -> Result<Outcome, PassError>;
}

/// Runs a pass, sets the phase and verifies the result.
///
/// # Errors
/// Those of the pass, and [`PassError::Broke`] if the result does not verify.
pub fn run_pass(pass: &dyn Pass, graph: &mut Graph, cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
    assert!(graph.phase >= pass.requires(), "pass {} needs phase {}", pass.name(), pass.requires());
    let outcome = pass.run(graph, cx)?;
    graph.phase = graph.phase.max(pass.produces());
    vdnn_ir::verify::verify(graph).map_err(|errors| PassError::Broke { pass: pass.name(), errors })?;
    Ok(outcome)
}
