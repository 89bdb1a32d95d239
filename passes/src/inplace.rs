//! Decides which outputs take their input's bytes.
