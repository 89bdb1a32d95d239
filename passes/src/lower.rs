//! Graph and layout to plan.
