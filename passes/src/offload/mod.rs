//! Offload and prefetch: which feature maps leave the device ([`policy`]) and when the
//! copies start and are awaited ([`insert`]), and which lie packed on the host.

pub mod insert;
mod packing;
pub mod policy;

#[cfg(test)]
mod tests;

pub use insert::InsertOffload;
pub use policy::{Selection, selection};
