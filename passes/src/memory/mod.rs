//! Static memory layout.
