//! What a connection that leaves and one that arrives have in common.
//!
//! * it waits until the pod is known              ([`known`])
//! * it is refused before any byte, with a reset  ([`refuse`])
//! * or it was carried, and ended somehow         ([`ended`])

use std::time::Duration;

use hbone::{Ended, HalfEnd, TlsError, TunnelError};
use tokio::net::TcpStream;

use crate::hint::Hint;
use crate::pod::{Known, Pod};
use crate::traffic::Flag;

/// The control plane has not told of this pod.
#[derive(Debug, thiserror::Error)]
#[error(
    "the control plane has not told of this pod within {KNOWN_TIMEOUT:?}; is it running, and does it list the pod?"
)]
pub(crate) struct Unknown;

/// A pod starts faster than the news of it travels: its first connections wait for the control plane to tell who
/// they are.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) async fn known(pod: &Pod) -> Result<&Known, Unknown> {
    match pod.known() {
        Some(known) => Ok(known),
        None => tokio::time::timeout(KNOWN_TIMEOUT, pod.wait_known())
            .await
            .map_err(|_| Unknown),
    }
}

/// Ends a connection that was never carried, with a reset.
pub(crate) fn refuse<T, E>(tcp: TcpStream, why: impl Into<E>) -> Result<T, E> {
    // Linger 0 turns the close into a reset. If the socket is gone already there is nobody left to tell.
    let _ = socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
    drop(tcp);
    Err(why.into())
}

/// What the end of a copy means: a failure after the first byte belongs to the peers; it is told, not judged.
pub(crate) fn ended<E: From<Broken>>(done: Ended) -> Result<(), E> {
    match done.error() {
        // Another process may go on with it; then its report is that one's affair.
        None => Ok(()),
        Some(end) => {
            let direction = if done.received == *end {
                "receiving"
            } else {
                "sending"
            };
            let words = format!("connection broke while {direction}: {end}");
            let disbelieved = match end {
                HalfEnd::Tunnel(TunnelError::Disbelieved(why)) => Some(why.clone()),
                _ => None,
            };
            Err(Broken { words, disbelieved }.into())
        }
    }
}

/// A connection that was carried and did not end as its ends meant it.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
pub(crate) struct Broken {
    words: String,
    /// We have cut it: the peer of its tunnel was revoked while it was open, or nobody can tell.
    disbelieved: Option<Box<TlsError>>,
}

impl Broken {
    pub(crate) fn flag(&self) -> Flag {
        self.disbelieved.as_deref().map_or(Flag::None, flag_of_tls)
    }

    /// None where it is the peers' own affair.
    pub(crate) fn hint(&self) -> Option<Hint> {
        self.disbelieved.as_deref().map(Hint::of_tls)
    }
}

/// What the end of a tunnel means, likewise.
pub(crate) fn flag_of_tunnel(why: &TunnelError) -> Flag {
    match why {
        TunnelError::Disbelieved(why) => flag_of_tls(why),
        _ => Flag::None,
    }
}

/// What it means that a handshake failed, whichever end was not believed.
pub(crate) fn flag_of_tls(why: &TlsError) -> Flag {
    match why.is_revocation() {
        true => Flag::CertRevoked,
        false => Flag::TlsFailure,
    }
}
