//! Errors of running a plan.
