//! The attack checklist (docs/attacks.md) through real ztunnels and a real waypoint. The tunnels themselves are attacked in
//! `lab/tests/peer_hostile`; here it is what is spoken within them.
//!
//! | | what | module |
//! |---|---|---|
//! | H1-1 to H1-5 | requests that could be read in two ways, also on their way from HTTP/2 to HTTP/1.1 | `smuggling` |
//! | H1-6, H2-7, H2-11 | apps that do not keep to the protocol | `backends` |
//! | H2-1 to H2-11 | clients that do not | `floods` |
//! | AZ-6, AZ-7 | who is at the door, and what for | `doors` |
//! | | what was let through, and would be no more | `changes` |
//! | AZ-6, H1-2 | past what is said of requests | `past` |
//! | F-8, H1-7 | too much of everything | `overload` |
//! | H2, H1-7 | the same by programs that attackers use | `programs` |

#[path = "attacks/backends.rs"]
mod backends;
#[path = "attacks/changes.rs"]
mod changes;
#[path = "attacks/doors.rs"]
mod doors;
#[path = "attacks/floods.rs"]
mod floods;
#[path = "attacks/overload.rs"]
mod overload;
#[path = "attacks/past.rs"]
mod past;
#[path = "attacks/peer.rs"]
mod peer;
#[path = "attacks/programs.rs"]
mod programs;
#[path = "attacks/smuggling.rs"]
mod smuggling;
#[path = "attacks/strict.rs"]
mod strict;

#[path = "../../../lab/tests/support/authority.rs"]
#[allow(dead_code)] // a share of it is used
mod authority;
#[path = "../../../hbone/tests/common/raw.rs"]
#[allow(dead_code, unreachable_pub)] // the scripted peer of the tunnel's own tests
mod raw;

use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::crypto::CryptoProvider;

use self::authority::Ca;
use super::shop::Shop;

/// For the scripted peers.
fn crypto_provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Whatever was done: others are served, and nothing of it is held.
fn unharmed(shop: &Shop<'_>, what: &str, memory: u64) -> Result<()> {
    let heard = shop.runtime.block_on(shop.get("/"));
    let served = heard.and_then(|heard| heard.is(200));
    served.with_context(|| format!("after {what}"))?;
    // What was open when it ended is still being let go of.
    let more = || resident(shop).map(|now| now.saturating_sub(memory));
    let let_go = shop.until("memory to be given back", |_| {
        more().is_ok_and(|more| more < MOST)
    });
    let_go.with_context(|| format!("after {what}: {:?} bytes more than before", more()))
}

/// Memory of the waypoint's process, in bytes.
fn resident(shop: &Shop<'_>) -> Result<u64> {
    let pid = shop.waypoint.pod().component().process()?.pid();
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: u64 = statm.split_whitespace().nth(1).context("statm")?.parse()?;
    Ok(pages * 4096)
}

/// How much larger the proxy may be than before any of it, in bytes.
const MOST: u64 = 96 << 20;
