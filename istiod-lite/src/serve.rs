//! The ports: who may knock, and what happens to a connection until it ends.
//!
//! | port | what |
//! |---|---|
//! | 15012 | gRPC over TLS: configuration and certificates      ([`grpc_tls`]) |
//! | 15010 | the same in the clear, off unless asked for         ([`grpc_plain`]) |
//! | 15014 | `/metrics`, `/version`, `/ready`, `/debug/…`        ([`monitoring`]) |
//!
//! A gRPC connection: TLS, then HTTP/2 with keep-alive pings, then after about half an hour it is
//! asked to come back, so that the proxies of a mesh spread over new replicas by themselves.

mod connection;
mod monitoring;
mod stranger;
mod tls;

pub use connection::{Age, Leaving, Peer, grpc_plain, grpc_tls};
pub use monitoring::{Debug, Version, monitoring};
pub use stranger::Stranger;
pub use tls::{ServerCertificate, ServerError};
