//! Fast f32 kernels.
