//! Whoever signs: a certificate authority, or its client.

use std::{future::Future, pin::Pin};

use crate::{identity::Identity, tls::ChainError};

/// Signs what it is asked to sign: a certificate authority, or its client ([`crate::ca::CaClient`]).
pub trait Signer: Send + Sync + 'static {
    /// A chain for `identity` and the public key in the request (PEM): leaf, intermediates, and as
    /// the last element all roots.
    fn sign(
        &self,
        identity: &Identity,
        csr_pem: String,
    ) -> impl Future<Output = Result<Vec<String>, SignError>> + Send;
}

/// Why nothing was signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// Our own credentials were not accepted, or we may not have this identity.
    #[error("the certificate authority refused: {0}")]
    Refused(String),
    /// The authority cannot be reached or did not answer.
    #[error("the certificate authority does not answer: {0}")]
    Unavailable(String),
    /// The token or key that goes with the request could not be had.
    #[error("the request could not be made: {0}")]
    Local(String),
    /// The authority failed, or did not like the request.
    #[error("the certificate authority failed: {0}")]
    Failed(String),
    /// What came back is not usable.
    #[error("the certificate authority's answer is not usable: {0}")]
    Answer(#[from] ChainError),
}

/// [`Signer`] behind a pointer: one type of store for every signer.
pub(super) trait AnySigner: Send + Sync {
    fn sign<'a>(&'a self, identity: &'a Identity, csr_pem: String) -> Signing<'a>;
}

pub(super) type Signing<'a> =
    Pin<Box<dyn Future<Output = Result<Vec<String>, SignError>> + Send + 'a>>;

impl<S: Signer> AnySigner for S {
    fn sign<'a>(&'a self, identity: &'a Identity, csr_pem: String) -> Signing<'a> {
        Box::pin(Signer::sign(self, identity, csr_pem))
    }
}
