//! The `zkmw` binary.
fn main() {}
