//! Proven peers that attack (the classes of HTTP/2 CVEs since 2023), against the real program, on the wire, with either
//! engine: each is answered with the right code, leaves a line that names it, costs next to nothing, and nobody else notices.
//!
//! One lab serves both engines: node 0 runs the one and node 1 the other.
//!
//! | | attack | test |
//! |---|---|---|
//! | H2-1 | rapid reset | `clients::FLOODS` |
//! | H2-2 | CONTINUATION without end | `clients::FLOODS` |
//! | H2-3 | made you reset | `clients::FLOODS` |
//! | H2-4 | small blocks that unfold into large lists; windows of zero, held | `clients::lists`, `windows` |
//! | H2-5 | `host` over and over | `clients::lists` |
//! | H2-6 | empty DATA and HEADERS, PING, SETTINGS, WINDOW_UPDATE | `clients::FLOODS` |
//! | H2-7 | trailers without an end, DATA after a reset | `clients::tunnels`, `servers` |
//! | H2-8 | a `content-length` that is not true | `clients::a_length` |
//! | H2-9 | a reader that stops | `windows` |
//! | H2-10 | names and values that are none | `clients::requests` |
//! | H2-11 | frames and SETTINGS beyond all measure | `clients::ends`, `servers` |

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

#[path = "../support/authority.rs"]
#[allow(dead_code)] // a share of it is used
mod authority;
mod clients;
mod door;
#[path = "../../../hbone/tests/common/raw.rs"]
#[allow(dead_code, unreachable_pub)] // the scripted peer of the tunnel's own tests
mod raw;
mod servers;
#[path = "../support/mod.rs"]
mod support;
mod windows;

use std::sync::Arc;

use authority::Ca;
use rustls::crypto::CryptoProvider;

/// For the scripted peers.
fn crypto_provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
