//! Bad policies are refused when they are written, not found out later: a validating webhook. And pods that ask for a proxy of
//! their own are given one: a mutating webhook.
//!
//! Enters: `POST /validate` or `POST /inject` of an API server, an AdmissionReview. Leaves: its answer.
//!
//! | step | where |
//! |---|---|
//! | connections: TLS with our own certificate; a bounded number of them   | `guests` |
//! | requests: bounded in bytes, in time, and in how many are worked on    | `door` |
//! | the review is read, whatever it holds, and answered                   | `review` |
//! | what is admitted is what the world understands: one check, one wording | `judge` |
//! | what is right but will not do what it looks like                       | `caution` |
//! | what becomes of a pod                                                 | [`crate::inject`] |
//!
//! An API server does not say who it is, so anybody may ask: an answer tells nothing that was not
//! in the question, except whether a Gateway or Service of that name is there.

mod caution;
mod door;
mod guests;
mod judge;
mod review;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use api::k8s::objects::ObjectKey;
use ops::drain::Drain;

use crate::inject::Injector;
use crate::metrics::Metrics;
use crate::serve::{ServerCertificate, ServerError};

/// Whether an object is there; none where that kind is not read, or not yet.
pub type Exists = Arc<dyn Fn(&ObjectKey) -> Option<bool> + Send + Sync>;

/// What a judgement takes into account beside the object.
#[derive(Clone)]
pub struct Judge {
    /// Policies in it hold for the whole mesh.
    pub root_namespace: Arc<str>,
    /// Whether dry-run policies are sent to proxies.
    pub dry_run: bool,
    /// For targets that are named.
    pub exists: Exists,
    /// Passed and failed.
    pub metrics: Arc<Metrics>,
}

/// No webhook.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The port.
    #[error("webhook: cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    /// Our certificate.
    #[error("webhook: {0}")]
    Certificate(#[from] ServerError),
}

/// Serves `/validate` and, with an injector, `/inject` on `listen` until the drain; returns where.
///
/// `certificate` is that of port 15012: its names hold `istiod.<namespace>.svc`, under which an API
/// server dials, and whoever made it keeps it current.
pub async fn start(
    listen: SocketAddr,
    certificate: &Arc<ServerCertificate>,
    judge: Judge,
    injector: Option<Injector>,
    drain: &Drain,
) -> Result<SocketAddr, WebhookError> {
    let failed = |error| WebhookError::Listen(listen, error);
    let listener = ops::admin::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let mut tls = rustls::ServerConfig::clone(&*certificate.config()?);
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let tls = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let desk = Arc::new(door::Desk::new(judge, injector));
    drain.spawn(guests::receive(listener, tls, desk, drain.clone()));
    Ok(address)
}

#[cfg(test)]
mod tests;
