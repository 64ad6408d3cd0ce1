//! An identity's key and chain once they are checked: what handshakes are made with.

use std::{fmt, sync::Arc, time::SystemTime};

use crate::{
    identity::Identity,
    tls::{self, CertificateText, ChainError, Credentials, Revocations},
};

/// An identity's key and chain, with TLS configured for it.
pub struct Certificate {
    identity: Identity,
    chain: Vec<CertificateText>,
    roots: Vec<CertificateText>,
    revocations: Arc<Revocations>,
    pub(crate) credentials: Credentials,
}

impl Certificate {
    /// A certificate from its parts, for callers that have their own source of certificates.
    ///
    /// # Errors
    /// When the chain is not for this identity and key or does not verify.
    pub fn new(
        identity: &Identity,
        key_pkcs8: &[u8],
        elements: &[String],
        trust_domain_aliases: &[String],
    ) -> Result<Self, ChainError> {
        let nobody = Arc::default();
        Self::judging_by(&nobody, identity, key_pkcs8, elements, trust_domain_aliases)
    }

    /// The same where somebody says who was revoked.
    pub(super) fn judging_by(
        revocations: &Arc<Revocations>,
        identity: &Identity,
        key_pkcs8: &[u8],
        elements: &[String],
        trust_domain_aliases: &[String],
    ) -> Result<Self, ChainError> {
        let trust_domains = std::iter::once(identity.trust_domain())
            .chain(trust_domain_aliases.iter().map(String::as_str))
            .map(Arc::from)
            .collect();
        let checked = tls::check(
            identity,
            key_pkcs8,
            elements,
            trust_domains,
            revocations,
            SystemTime::now(),
        )?;
        Ok(Self {
            identity: identity.clone(),
            chain: checked.chain,
            roots: checked.roots,
            revocations: revocations.clone(),
            credentials: checked.credentials,
        })
    }

    /// By which its peers are judged beside its roots.
    pub(crate) fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Leaf first, then intermediates.
    pub fn chain(&self) -> &[CertificateText] {
        &self.chain
    }

    /// The roots that peers are verified against.
    pub fn roots(&self) -> &[CertificateText] {
        &self.roots
    }

    /// The end of the leaf, or of the first that ends between it and the root: no peer believes it for longer.
    pub fn not_after(&self) -> SystemTime {
        let ends = self.chain.iter().map(|it| it.not_after);
        ends.min().unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Start of validity of the leaf.
    pub fn not_before(&self) -> SystemTime {
        self.chain
            .first()
            .map_or(SystemTime::UNIX_EPOCH, |leaf| leaf.not_before)
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("identity", &self.identity)
            .field("not_after", &self.not_after())
            .finish_non_exhaustive()
    }
}
