//! Canonicalisation and simplification.
