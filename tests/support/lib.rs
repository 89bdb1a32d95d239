//! Helpers of the tests.

pub mod arbitrary;
// The frontends' tests build the same little models; a builder of two crates' tests lives
// with the lower one.
#[expect(missing_docs, reason = "a test support file of the frontends, which needs no documentation there")]
#[path = "../../frontends/tests/support/build.rs"]
pub mod build;
pub mod conformance;
pub mod data;
// As the builder above, one of the passes' own tests.
#[path = "../../passes/src/recompute/testnet.rs"]
pub mod dense;
pub mod filetest;
pub mod fuzzing;
pub mod golden;
pub mod harness;
pub mod light;
pub mod mutate;
pub mod op_cases;
