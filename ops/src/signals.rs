//! Somebody outside wants the process to end: SIGTERM and SIGINT.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Hears them.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on they end the process only if somebody waits for them, and none is missed.
    ///
    /// # Errors
    /// When the system gives no way to hear them.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one. Cancel safe.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal as Number, raise};

    use super::*;

    #[tokio::test]
    async fn one_that_comes_before_somebody_waits_is_not_missed_and_none_counts_twice() {
        let mut signals = Signals::listen().unwrap();
        raise(Number::SIGTERM).unwrap();
        signals.next().await;
        let mut next = Box::pin(signals.next());
        tokio::select! {
            biased;
            () = &mut next => panic!("there was one only"),
            () = tokio::task::yield_now() => {}
        }
        raise(Number::SIGINT).unwrap();
        next.await;
    }
}
