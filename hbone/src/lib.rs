//! Who a workload is, and the tunnel that proves it.
//!
//! HBONE carries a TCP connection as one HTTP/2 CONNECT stream inside mutual TLS between two workload
//! identities. One connection, top to bottom:
//!
//! ```text
//!  app ── TCP ── [copy]── Tunnel ──[pool → client]══ TLS + HTTP/2 ══[server]── Tunnel ──[copy]── TCP ── app
//!                                        │                              │
//!                                   Certificates ── of(identity) ──  Certificate
//!                                        └── Signer (ca: CreateCertificate)
//! ```
//!
//! | file | part |
//! |---|---|
//! | `identity` | `spiffe://trust domain/ns/namespace/sa/account`, strictly parsed |
//! | `tls` | the only file of the tunnel that names rustls: cryptography, who verifies whom |
//! | `certs`, `ca` | one current certificate per identity; how it is asked for |
//! | `control_plane` | how discovery and the authority are reached |
//! | `records` | TLS records sealed and opened in place, for an engine of our own |
//! | `request` | what a CONNECT says |
//! | `server`, `incoming` | accept → handshake → requests and their answers |
//! | `client`, `pool`, `first` | dial → handshake → CONNECT; connections shared where they may be; what an app says meanwhile |
//! | `tunnel`, `copy`, `splice` | bytes, with half-close and back-pressure |
//! | `frames` | our own HTTP/2, without I/O |
//! | `handover` | established connections leave this process for another, unnoticed |
//! | `own` | our own engine: `records` and `frames` over a socket |
//! | `limits`, `gauge` | what a peer may do, and how we notice |
//! | `room` | how much unread data may be held |
//! | `farewell` | whom we refuse hears why |
//! | `engine` | the seam behind which an engine stands; keepalive, stream count |
//! | `ahead`, `socket` | reads and options of sockets |
//! | `disk` | small files that survive a restart, whole or not at all |
//!
//! Two engines can carry a connection ([`Engine`]): our own, which is the default, and `h2` over rustls, which
//! it is measured by. No type of either leaves this crate.

pub mod ca;
pub mod certs;
pub mod client;
pub mod control_plane;
pub mod copy;
pub mod datagrams;
pub mod disk;
pub mod frames;
pub mod handover;
pub mod identity;
pub mod incoming;
pub mod limits;
pub mod pool;
pub mod records;
pub mod request;
pub mod server;
pub mod socket;
pub mod tls;
pub mod tunnel;

mod ahead;
mod engine;
mod farewell;
mod first;
mod gauge;
mod own;
mod room;
mod splice;
mod turn;

pub use ca::CaClient;
pub use certs::{
    Certificate, CertificateError, CertificateFigures, CertificateState, Certificates,
    CertificatesConfig, Hold, SignError, Signer,
};
pub use client::{Connect, OpenError};
pub use copy::{BothWays, Counters, Ended, HalfEnd, Splicing, TcpPair, both_ways, tcp_both_ways};
pub use first::First;
pub use identity::{Identity, IdentityError};
pub use incoming::{Incoming, Malformed, Request, ResponseHeaders, Status};
pub use limits::{Engine, Limits, Refusal};
pub use own::write_by_turns;
pub use pool::{Destination, Dial, Pool, PoolConfig, PoolStats};
pub use request::{Authority, RequestHeaders};
pub use room::Reserve;
pub use server::{AcceptError, Connection, ConnectionError, accept};
pub use socket::Socket;
pub use tls::{Alert, Revocations, TlsError};
pub use tunnel::{Reader, Tunnel, TunnelError, TunnelIo, Writer};
