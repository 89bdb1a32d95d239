//! Offload and prefetch pairs.
