//! The certificate that a client shows when it connects: taken only if it leads to our roots.
//!
//! Nobody has to show one, and who does is not believed for it alone: that the key is that of a machine in the book is asked
//! later, of each request ([`super::Machines::known`]). That of a machine ([`MachineName`]) that has ended is taken here as of its last
//! second: how long a machine may be away is not for TLS to say. Those of others say nothing here, and must count now.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use hbone::control_plane::MachineName;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::ca::Authority;

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Of which machine it is.
    pub machine: MachineName,
    /// SHA-256 of its public key, in hex.
    pub key: String,
    /// Its end.
    pub not_after: SystemTime,
}

impl Shown {
    /// Reads a machine's certificate; others are none.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let machine = MachineName::of(certificate)?;
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        Some(Self {
            machine,
            key: fingerprint(parsed.public_key().raw),
            not_after: super::time(parsed.validity().not_after.timestamp()),
        })
    }
}

/// By which the book knows a public key, given as SubjectPublicKeyInfo in DER.
pub fn fingerprint(key: &[u8]) -> String {
    let hash = digest(&SHA256, key);
    hash.as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Asks clients for a certificate; they may have none.
pub(crate) struct Clients {
    authority: Arc<Authority>,
    provider: Arc<CryptoProvider>,
}

impl Clients {
    pub(crate) fn new(authority: Arc<Authority>, provider: Arc<CryptoProvider>) -> Self {
        Self {
            authority,
            provider,
        }
    }

    /// By the roots as they are now: they are rotated.
    fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, Error> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(self.authority.roots().as_bytes()) {
            roots.add(root.map_err(|_| Error::General("our roots are no PEM".into()))?)?;
        }
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))
    }
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let bad = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
        let mut at = Duration::from_secs(now.as_secs());
        if let Some(shown) = Shown::of(leaf) {
            let end = shown.not_after.duration_since(SystemTime::UNIX_EPOCH);
            at = at.min(end.map_err(bad)?);
        }
        self.verifier()?
            .verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(at))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clients")
    }
}
