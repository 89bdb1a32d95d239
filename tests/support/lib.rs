//! Helpers of the tests.

pub mod data;
pub mod harness;
pub mod mutate;
