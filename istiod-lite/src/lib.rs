//! The control plane: objects in, what proxies must know out.

pub mod translate;
pub mod world;
