//! Tests of simplification.

