//! The last moment before bytes move: somebody took the connection, and what the app has said already goes to it first.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use hbone::{OpenError, TcpPair};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{Failed, Opened};
use crate::carry::refuse;
use crate::connections::{Carrier, Live};
use crate::local;

/// The other end of a connection, before anything has moved.
pub(crate) enum Reached {
    Tunnel(hbone::Tunnel, Arc<Live>),
    /// A tunnel inside a tunnel.
    Inside(hbone::Tunnel, Arc<Live>),
    Plain(TcpStream, Arc<Live>),
    Local(Box<local::Reached>),
}

impl Reached {
    /// Begins to copy. What the app has said already goes before the rest; a tunnel has it.
    pub(super) async fn join(self, tcp: TcpStream, said: &[u8]) -> Result<Opened, Failed> {
        match self {
            Self::Tunnel(tunnel, live) => {
                if let Ok(freezer) = tunnel.freezer() {
                    live.carried_by(Carrier::Tunnel(freezer, tunnel.stream()));
                }
                let copying = hbone::both_ways(tcp, tunnel, live.counting());
                Ok(Opened::Tunnel(Box::new(copying)))
            }
            // No other process can go on with it: its keys belong to the stream of another tunnel.
            Self::Inside(mut tunnel, live) => {
                if let Err(why) = say_first(&mut tunnel, said, &live).await {
                    return refuse(tcp, why);
                }
                let copying = hbone::both_ways(tcp, tunnel, live.counting());
                Ok(Opened::Tunnel(Box::new(copying)))
            }
            Self::Plain(mut up, live) => {
                if let Err(why) = pass_on(&mut up, said, &live).await {
                    return refuse(tcp, why);
                }
                let pair = TcpPair::new(tcp, up);
                live.carried_by(Carrier::Pair(pair.freezer()));
                let copying = Box::new(pair.both_ways(live.counting()));
                Ok(match live.goes_out() {
                    true => Opened::Outside(copying, live),
                    false => Opened::Pair(copying),
                })
            }
            Self::Local(reached) => Ok(Opened::Joined(Box::new(reached.join(tcp, said).await?))),
        }
    }
}

/// The same where it is another kind of tunnel, which nothing was sent along with.
async fn say_first(tunnel: &mut hbone::Tunnel, said: &[u8], live: &Live) -> Result<(), Failed> {
    if !said.is_empty() {
        let sent = tunnel.send(said.to_vec().into()).await;
        sent.map_err(|why| OpenError::ConnectionLost(why.to_string()))?;
        live.counters().sent.fetch_add(said.len() as u64, Relaxed);
    }
    Ok(())
}

/// What the app said while it was tried through a tunnel goes to who took it without one.
pub(crate) async fn pass_on(up: &mut TcpStream, said: &[u8], live: &Live) -> Result<(), Failed> {
    if !said.is_empty() {
        // A new socket takes more than that at once.
        up.write_all(said).await.map_err(Failed::Connect)?;
        live.counters().sent.fetch_add(said.len() as u64, Relaxed);
    }
    Ok(())
}
