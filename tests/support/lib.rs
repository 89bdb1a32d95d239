//! Helpers of the tests.

pub mod arbitrary;
pub mod data;
pub mod harness;
