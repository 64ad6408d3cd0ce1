//! What happens on the way, and who is told.

use std::time::Duration;

use super::Kind;
use crate::parse::Rejected;

/// What happens on the way; for readiness, logs and metrics.
#[derive(Debug)]
pub enum ClientEvent<'a> {
    /// A stream is open.
    Connected,
    /// A response was applied; the first one of each type makes a proxy ready.
    Applied {
        /// Its type.
        type_url: &'static str,
        /// Its size on the wire, decoded from gRPC.
        bytes: usize,
        /// Resources set.
        set: usize,
        /// Names removed.
        removed: usize,
        /// Names refused, and told to the server.
        rejected: &'a [Rejected],
    },
    /// The stream ended, or could not be opened; state is kept.
    Disconnected {
        /// What the other end or the network said; `None` = it closed in good order.
        reason: Option<String>,
        /// When the next attempt follows.
        retry_in: Duration,
    },
}

impl ClientEvent<'_> {
    /// Says it in the log.
    pub fn log(&self) {
        match self {
            Self::Connected => tracing::info!("xds: stream open"),
            Self::Applied {
                type_url,
                set,
                removed,
                rejected,
                ..
            } => {
                let refused = rejected.len();
                tracing::debug!(type_url, set, removed, rejected = refused, "xds: applied");
                for rejected in *rejected {
                    tracing::warn!(type_url, resource = %rejected.name, reason = %rejected.reason, "xds: resource refused, the last good one stays");
                }
            }
            Self::Disconnected {
                reason: None,
                retry_in,
            } => tracing::debug!(?retry_in, "xds: the control plane closed the stream"),
            Self::Disconnected {
                reason: Some(reason),
                retry_in,
            } => tracing::warn!(
                error = reason,
                ?retry_in,
                "xds: no stream to the control plane; going on with what is known"
            ),
        }
    }
}

/// Which types were not answered since the start: a proxy is ready when none is left.
#[derive(Debug)]
pub struct FirstAnswers(Vec<Kind>);

impl FirstAnswers {
    /// Of those types.
    pub fn of(follows: &[Kind]) -> Self {
        Self(follows.to_vec())
    }

    /// Whether each was answered, with this event.
    pub fn are_complete_with(&mut self, event: &ClientEvent<'_>) -> bool {
        if let ClientEvent::Applied { type_url, .. } = event {
            self.0.retain(|kind| kind.type_url() != *type_url);
        }
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complete_only_when_every_type_was_answered() {
        let applied = |kind: Kind| ClientEvent::Applied {
            type_url: kind.type_url(),
            bytes: 1,
            set: 0,
            removed: 0,
            rejected: &[],
        };
        let mut first = FirstAnswers::of(&[Kind::Authorizations, Kind::Addresses]);
        assert!(!first.are_complete_with(&ClientEvent::Connected));
        assert!(!first.are_complete_with(&applied(Kind::Authorizations)));
        assert!(!first.are_complete_with(&applied(Kind::Authorizations)));
        assert!(!first.are_complete_with(&applied(Kind::Resources)));
        assert!(first.are_complete_with(&applied(Kind::Addresses)));
        assert!(first.are_complete_with(&ClientEvent::Connected));
    }
}
