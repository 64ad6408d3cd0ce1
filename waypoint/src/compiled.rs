//! What a request sees of a service: everything that touches it, compiled once.
