//! Tests of autodiff.
