//! cni-plugin
fn main() {}
