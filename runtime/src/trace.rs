//! One timeline schema for all backends.
