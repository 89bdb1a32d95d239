//! The plan: what an executor runs. This crate owns the contract between the planner and
//! the executors: the types, their text and binary forms, and the checker that proves a
//! plan before it runs. It shares no code with the planner.

pub mod check;
pub mod codec;
mod cursor;
#[cfg(test)]
mod example;
mod names;
pub mod parse;
pub mod plan;
pub mod print;
pub mod rows;
pub mod sig;
pub mod stats;

pub use check::{CheckStats, PlanError, PlanErrors, check};
pub use codec::{LoadError, encode, load};
pub use parse::{ParseError, parse_plan};
pub use plan::{
    Arena, Binding, BufId, Buffer, CmdId, Command, CopyForm, EngineOrigin, EventId, Header, ModelRef, Output,
    Param, ParamSource, Plan, Predicted, SetupId, SetupLoad, SetupOp, StreamId, StreamKind,
};
pub use sig::Sig;
pub use stats::{PlanStats, stats};
