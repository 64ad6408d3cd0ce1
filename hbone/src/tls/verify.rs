//! Who is accepted at the other end.
//!
//! A peer's chain enters; it is accepted, or refused with a [`TlsError`] that travels through rustls
//! to whoever waits for the handshake (the peer sees the alert `certificate_unknown`). The same is asked
//! of the chain of a session that is resumed.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{
    ChainError, TlsError, crypto_provider,
    proof::{Claim, Purpose, Roots},
};
use crate::identity::Identity;

/// Verifies a client: chain to the roots (rustls' own verifier), then SPIFFE identity, then trust domain.
#[derive(Debug)]
struct AcceptedClient {
    chain: Arc<dyn ClientCertVerifier>,
    roots: Arc<Roots>,
    trust_domains: Arc<[Arc<str>]>,
}

pub(super) fn client_verifier(
    roots: &Arc<Roots>,
    trust_domains: Arc<[Arc<str>]>,
) -> Result<Arc<dyn ClientCertVerifier>, ChainError> {
    let store = roots.store.clone();
    let chain = WebPkiClientVerifier::builder_with_provider(store, crypto_provider())
        .build()
        .map_err(|e| ChainError::Unverified(e.to_string()))?;
    Ok(Arc::new(AcceptedClient {
        chain,
        roots: roots.clone(),
        trust_domains,
    }))
}

impl ClientCertVerifier for AcceptedClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let claim = Claim {
            purpose: Purpose::Client,
            roots: &self.roots,
            leaf,
            intermediates,
        };
        let peer = claim.prove(now, || {
            let verified = self.chain.verify_client_cert(leaf, intermediates, now);
            verified.map(|_| ())
        })?;
        if !self
            .trust_domains
            .iter()
            .any(|td| **td == *peer.trust_domain())
        {
            return Err(refuse(TlsError::TrustDomain(peer)));
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Verifies a server: chain to the roots, then that it is one of those expected.
#[derive(Debug)]
pub(super) struct ExpectedServer {
    roots: Arc<Roots>,
    expected: Arc<[Identity]>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ExpectedServer {
    pub(super) fn new(roots: Arc<Roots>, expected: Arc<[Identity]>) -> Self {
        Self {
            roots,
            expected,
            algorithms: crypto_provider().signature_verification_algorithms,
        }
    }
}

impl ServerCertVerifier for ExpectedServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let claim = Claim {
            purpose: Purpose::Server,
            roots: &self.roots,
            leaf,
            intermediates,
        };
        let presented = claim.prove(now, || {
            let parsed = ParsedCertificate::try_from(leaf)?;
            let (roots, algorithms) = (&self.roots.store, self.algorithms.all);
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                roots,
                intermediates,
                now,
                algorithms,
            )
        })?;
        if !self.expected.contains(&presented) {
            return Err(refuse(TlsError::IdentityMismatch {
                presented,
                expected: self.expected.to_vec(),
            }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Our refusal, carried through rustls; the peer sees the alert `certificate_unknown`.
pub(super) fn refuse(why: TlsError) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
}

/// The one identity a certificate names. X.509-SVID: exactly one URI name, and it is the SPIFFE ID.
pub(super) fn identity_of(certificate: &CertificateDer<'_>) -> Result<Identity, TlsError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|e| TlsError::NotSpiffe(e.to_string()))?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|e| TlsError::NotSpiffe(e.to_string()))?;
    let mut uris = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().map_err(|e| TlsError::NotSpiffe(format!("{e}"))),
        (None, _) => Err(TlsError::NotSpiffe("it names no URI".into())),
        (Some(_), Some(_)) => Err(TlsError::NotSpiffe("it names several URIs".into())),
    }
}
