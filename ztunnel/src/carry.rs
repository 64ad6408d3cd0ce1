//! What a connection that leaves and one that arrives have in common.
//!
//! * it waits until the pod is known              ([`known`])
//! * it is refused before any byte, with a reset  ([`refuse`])
//! * or it was carried, and ended somehow         ([`ended`])

use std::time::Duration;

use hbone::Ended;
use tokio::net::TcpStream;

use crate::pod::{Known, Pod};

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
            Err(Broken(format!("connection broke while {direction}: {end}")).into())
        }
    }
}

/// A connection that was carried and did not end as its ends meant it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Broken(String);
