//! istiod-lite
fn main() {}
