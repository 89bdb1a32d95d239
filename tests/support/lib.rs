//! Helpers of the tests.

pub mod arbitrary;
pub mod conformance;
pub mod data;
pub mod filetest;
pub mod harness;
pub mod light;
pub mod mutate;
