//! Bytes both ways between two sockets of this machine.

use std::sync::atomic::Ordering;

use tokio::net::TcpStream;

use crate::copy::{Counters, Ended, HalfEnd};

/// Copies until both directions have ended, and says how.
pub async fn tcp_both_ways(mut a: TcpStream, mut b: TcpStream, counters: &Counters) -> Ended {
    match tokio::io::copy_bidirectional(&mut a, &mut b).await {
        Ok((sent, received)) => {
            counters.sent.fetch_add(sent, Ordering::Relaxed);
            counters.received.fetch_add(received, Ordering::Relaxed);
            Ended {
                sent: HalfEnd::Finished,
                received: HalfEnd::Finished,
            }
        }
        Err(error) => Ended {
            sent: HalfEnd::Socket(error.kind()),
            received: HalfEnd::CutOff,
        },
    }
}
