//! The driver: the only crate that knows every other one.

pub mod alternatives;
pub mod cli;
pub mod commands;
pub mod driver;
pub mod emit;
pub mod error;
pub mod html;
pub mod measuring;
pub mod micro;
pub mod options;
pub mod pipeline;
pub mod progress;
pub mod pyramids;
pub mod recorded;
pub mod report;
pub mod search;
pub mod several;
pub mod slicing;
pub mod sparsity;
pub mod streams;
pub mod svg;
pub mod timing;
