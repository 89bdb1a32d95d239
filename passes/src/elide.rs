//! Removes redundant waits and useless copies.
