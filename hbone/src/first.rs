//! What an app says before there is a tunnel for it.
//!
//! It is read from the app's socket at most once, may go along with the request for the tunnel, and is kept until a
//! tunnel has it: so whoever is refused by one peer can ask another. Whether that is still allowed it knows too
//! ([`First::may_be_repeated`]).

use std::sync::{
    OnceLock,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use tokio::net::TcpStream;

use crate::{client::OpenError, copy};

/// The first bytes of an app, from the moment they are read until a tunnel has them.
#[derive(Debug, Default)]
pub struct First {
    said: OnceLock<Vec<u8>>,
    /// They were sent, and nobody has said that they were not passed on.
    out: AtomicBool,
}

impl First {
    /// Nothing of it can have come to the app that was called: it may be said to another.
    pub fn may_be_repeated(&self) -> bool {
        !self.out.load(Relaxed)
    }

    /// What was read from the app's socket: who goes on without a tunnel must say it before anything else.
    pub fn said(&self) -> &[u8] {
        self.said.get().map_or(&[], Vec::as_slice)
    }

    /// To be sent with a request. From now on it counts as sent.
    pub(crate) fn along(&self, app: &TcpStream) -> Result<&[u8], OpenError> {
        if self.said.get().is_none() {
            let said = copy::said(app).map_err(|error| {
                // The kernel tells it once; whoever read again would take it for an end in order.
                self.out.store(true, Relaxed);
                OpenError::ConnectionLost(format!("the app's connection broke: {error}"))
            })?;
            // Nothing yet: it may have said something when it is asked again.
            if !said.is_empty() {
                self.said.get_or_init(|| said);
            }
        }
        self.out.store(!self.said().is_empty(), Relaxed);
        Ok(self.said())
    }

    /// To be sent on a tunnel that is open.
    pub(crate) fn behind(&self) -> Vec<u8> {
        self.out.store(true, Relaxed);
        self.said().to_vec()
    }

    /// The peer has said that it opened no tunnel, or has not looked at the request: there is nobody to whom it could
    /// have passed on what came along (RFC 9110, 9.3.6).
    pub(crate) fn came_back(&self) {
        self.out.store(false, Relaxed);
    }
}
