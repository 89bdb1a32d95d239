//! Tests of autodiff.

