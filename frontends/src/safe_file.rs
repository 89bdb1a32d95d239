//! Files replaced only as a whole.
