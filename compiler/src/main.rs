//! The command `vdnnc`.

fn main() {}
