//! ztunnel
fn main() {}
