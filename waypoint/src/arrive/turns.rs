//! Whose turn it is on a connection that carries one request after the other: the client's, or ours; and whether the
//! client has said that this is its last.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};

use http::header::CONNECTION;
use http::{Request, Version};
use http_body::{Body, Frame, SizeHint};

use crate::call::has_token;

/// It.
#[derive(Debug, Default)]
pub(super) struct Turns {
    serving: AtomicBool,
    /// No other request will come.
    last: AtomicBool,
    /// What comes is no request: another protocol is spoken.
    switched: AtomicBool,
    /// Requests that have come; it may wrap.
    count: AtomicU32,
}

/// An answer is being made and sent.
#[derive(Debug)]
pub(super) struct Serving(Arc<Turns>);

impl Turns {
    /// A request has come.
    pub(super) fn begin<B>(self: &Arc<Self>, request: &Request<B>) -> Serving {
        self.last.store(says_last(request), Relaxed);
        self.count.fetch_add(1, Relaxed);
        self.serving.store(true, Relaxed);
        Serving(self.clone())
    }

    /// Whether it is ours.
    pub(super) fn is_serving(&self) -> bool {
        self.serving.load(Relaxed)
    }

    /// Whether the client has said that it asks nothing after this.
    pub(super) fn is_last(&self) -> bool {
        self.last.load(Relaxed)
    }

    /// The connection is another protocol's from here on.
    pub(super) fn switch(&self) {
        self.switched.store(true, Relaxed);
    }

    /// Whether it is.
    pub(super) fn is_switched(&self) -> bool {
        self.switched.load(Relaxed)
    }

    /// Requests that have come.
    pub(super) fn count(&self) -> u32 {
        self.count.load(Relaxed)
    }
}

/// As RFC 9112, 9.3 has it.
fn says_last<B>(request: &Request<B>) -> bool {
    let says = |word| has_token(request.headers(), &CONNECTION, word);
    says("close") || request.version() == Version::HTTP_10 && !says("keep-alive")
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.serving.store(false, Relaxed);
    }
}

/// An answer's body, which ends our turn.
#[derive(Debug)]
pub(super) struct Last<B> {
    pub(super) body: B,
    pub(super) _serving: Serving,
}

impl<B: Body + Unpin> Body for Last<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_says_which_request_is_its_last() {
        for (version, connection, last) in [
            (Version::HTTP_11, None, false),
            (Version::HTTP_11, Some("keep-alive"), false),
            (Version::HTTP_11, Some("close"), true),
            (Version::HTTP_11, Some("te, Close"), true),
            (Version::HTTP_11, Some("closed, upgrade"), false),
            (Version::HTTP_10, None, true),
            (Version::HTTP_10, Some("keep-alive"), false),
            (Version::HTTP_10, Some("keep-alive, close"), true),
        ] {
            let mut request = Request::new(());
            *request.version_mut() = version;
            if let Some(connection) = connection {
                let value = connection.parse().unwrap();
                request.headers_mut().insert(CONNECTION, value);
            }
            assert_eq!(says_last(&request), last, "{version:?} {connection:?}");
        }
    }
}
