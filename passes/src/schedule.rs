//! The final program order.
