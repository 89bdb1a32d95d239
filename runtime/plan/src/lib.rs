//! The plan: what an executor runs. This crate owns the contract between the planner and
//! the executors: the types, their text and binary forms, and the checker that proves a
//! plan before it runs. It shares no code with the planner.

pub mod plan;
pub mod sig;

pub use plan::{
    Arena, Binding, BufId, Buffer, CmdId, Command, EventId, Header, ModelRef, Output, Param, ParamSource,
    Plan, SetupId, SetupOp, StreamId, StreamKind,
};
pub use sig::Sig;
