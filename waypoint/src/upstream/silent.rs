//! How long the gateway of another network is waited for.
//!
//! One whose node is gone refuses nothing: it is silent. It is left after [`PATIENCE`], so that there is time to look for somebody
//! else; one that was silent a moment ago gets [`LESS`], and is asked last of several. It is asked all the same, for there may be no
//! other way, and the first answer makes it as good as it was.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

/// Longer than two lost SYNs: as ztunnels have it.
const PATIENCE: Duration = Duration::from_secs(4);
/// Longer than the way round the earth and back.
const LESS: Duration = Duration::from_secs(1);
/// What was silent is remembered for so long.
const MEMORY: Duration = Duration::from_secs(5);
/// Gateways that are remembered: of all that there are, in all but the largest meshes.
const REMEMBERED: usize = 256;

/// Gateways that were silent a moment ago.
#[derive(Debug, Default)]
pub(super) struct Silent(Mutex<HashMap<SocketAddr, Instant>>);

impl Silent {
    /// Whether that one was.
    pub(super) fn is(&self, gateway: SocketAddr) -> bool {
        let until = self.lock().get(&gateway).copied();
        until.is_some_and(|until| Instant::now() < until)
    }

    /// What comes of the attempt to connect to it, in the time that it has.
    pub(super) async fn dialled<T>(
        &self,
        gateway: SocketAddr,
        dialling: impl Future<Output = io::Result<T>>,
    ) -> io::Result<T> {
        let within = match self.is(gateway) {
            true => LESS,
            false => PATIENCE,
        };
        let dialled = timeout(within, dialling).await.unwrap_or_else(|_| {
            let words = format!("no answer within {within:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, words))
        });
        match &dialled {
            // To refuse is to answer; whatever else comes of it, nobody has.
            Err(error) if error.kind() != io::ErrorKind::ConnectionRefused => self.add(gateway),
            _ => {
                self.lock().remove(&gateway);
            }
        }
        dialled
    }

    fn add(&self, gateway: SocketAddr) {
        let (mut silent, now) = (self.lock(), Instant::now());
        if silent.len() >= REMEMBERED {
            silent.retain(|_, until| now < *until);
        }
        if silent.len() < REMEMBERED {
            silent.insert(gateway, now + MEMORY);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    /// How long an attempt took, in whole seconds, and whether it came to anything.
    async fn tried(
        silent: &Silent,
        gateway: SocketAddr,
        dialling: impl Future<Output = io::Result<()>>,
    ) -> (u64, bool) {
        let began = Instant::now();
        let dialled = silent.dialled(gateway, dialling).await;
        (began.elapsed().as_secs(), dialled.is_ok())
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_silent_is_left_sooner_the_next_time_and_has_it_all_back_with_an_answer() {
        let silent = Silent::default();
        let [one, other] = ["10.9.0.1:15008", "10.9.0.2:15008"].map(|at| at.parse().unwrap());
        assert_eq!(tried(&silent, one, pending()).await, (4, false));
        assert!(silent.is(one) && !silent.is(other));
        assert_eq!(tried(&silent, one, pending()).await, (1, false));
        assert_eq!(tried(&silent, other, pending()).await, (4, false));
        for answer in [Ok(()), Err(io::ErrorKind::ConnectionRefused.into())] {
            let reached = answer.is_ok();
            assert_eq!(tried(&silent, one, ready(answer)).await, (0, reached));
            assert!(!silent.is(one));
            assert_eq!(tried(&silent, one, pending()).await, (4, false));
        }
        tokio::time::sleep(MEMORY).await;
        assert!(!silent.is(one), "that is long ago");
        let gone = Err(io::ErrorKind::HostUnreachable.into());
        assert_eq!(tried(&silent, one, ready(gone)).await, (0, false));
        assert!(silent.is(one));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_remembered_than_there_is_room_for() {
        let silent = Silent::default();
        let at = |port: usize| SocketAddr::from(([10, 9, 0, 1], u16::try_from(port).unwrap()));
        for port in 0..REMEMBERED + 10 {
            silent.add(at(port));
        }
        assert_eq!(silent.lock().len(), REMEMBERED);
        tokio::time::sleep(MEMORY).await;
        silent.add(at(REMEMBERED));
        assert_eq!(silent.lock().len(), 1);
    }
}
