//! How a connection ends that should be elsewhere: this pod leaves, or what the connection is for has another waypoint.
//!
//! 1. its client is asked to go: with the next answer over HTTP/1.1, at once over HTTP/2   ([`Arrived::going`])
//! 2. what has not gone when that was long enough ago is ended                              ([`Arrived::over`])

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::{Arrived, NEWS};
use crate::compiled::Front;

impl Arrived {
    /// Whether its client is to go elsewhere.
    pub(super) fn should_go(&self) -> bool {
        self.proxy.drain.accepting().is_cancelled() || self.front.is_leaving()
    }

    /// Waits until its client is to go. Returns for how long a connection over which nothing is asked is left open: the
    /// next request may be on its way, and of one that meets a closed door nobody could say whether it was served.
    pub(super) async fn going(&self) -> Duration {
        // Who comes when it goes has not heard of it, and is told when others must have.
        let late = self.front.is_leaving();
        let moved = async {
            let until = self.front.leaving().await;
            if late {
                sleep(NEWS).await;
            }
            until.saturating_duration_since(Instant::now()) / 2
        };
        tokio::select! {
            () = self.proxy.drain.accepting().cancelled() => self.proxy.config.drain_deadline() / 2,
            patience = moved => patience,
        }
    }

    /// Ends when what it is for has left this waypoint, and did long enough ago.
    pub(crate) async fn over(&self) {
        let mut front = self.front.clone();
        loop {
            sleep_until(front.leaving().await).await;
            match self.fronted() {
                Some(back) => front = back,
                None => return,
            }
        }
    }

    /// What it is for, if that is still behind this waypoint.
    pub(crate) fn fronted(&self) -> Option<Front> {
        self.to.front(&self.proxy.state.load().fronts).cloned()
    }
}
