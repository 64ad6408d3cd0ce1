//! Checks what a signer returned, and reads what dumps and renewals want to know.
//!
//! PEM elements enter; [`Credentials`] that every peer will accept leave, or the reason why not.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError, RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime, pem::PemObject},
    server::{ParsedCertificate, danger::ClientCertVerifier},
    sign::CertifiedKey,
    time_provider::DefaultTimeProvider,
};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use super::{
    Credentials, crypto_provider,
    proof::Roots,
    revocation::Revocations,
    verify::{client_verifier, identity_of},
};
use crate::identity::Identity;

/// Why a chain that a signer returned cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Not PEM, not X.509, or too few elements.
    #[error("the chain cannot be read: {0}")]
    Unreadable(String),
    /// The leaf names somebody else.
    #[error("the certificate is for {returned}, not for {requested}")]
    WrongIdentity {
        /// Who was asked for.
        requested: Identity,
        /// Who the leaf names.
        returned: String,
    },
    /// The leaf's key is not the one in our request.
    #[error("the certificate is for another key")]
    WrongKey,
    /// The chain does not verify against the roots it came with.
    #[error("the chain does not verify: {0}")]
    Unverified(String),
    /// The chain has ended or has not begun. The words stay the same for as long as it is so.
    #[error("the chain {0}; compare this node's clock with that of the certificate authority")]
    Untimely(String),
}

/// What the leaf and the rest of a chain say, for decisions about renewal and for dumps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateText {
    /// The certificate in PEM.
    pub pem: String,
    /// Serial number, decimal.
    pub serial_number: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

/// A chain that passed its checks.
pub(crate) struct Checked {
    pub(crate) credentials: Credentials,
    pub(crate) chain: Vec<CertificateText>,
    pub(crate) roots: Vec<CertificateText>,
}

/// Checks a signer's answer: PEM elements leaf, intermediates, and last the bundle of roots.
pub(crate) fn check(
    requested: &Identity,
    key_pkcs8: &[u8],
    elements: &[String],
    trust_domains: Arc<[Arc<str>]>,
    revocations: &Arc<Revocations>,
    now: SystemTime,
) -> Result<Checked, ChainError> {
    let Some((root_bundle, rest)) = elements.split_last().filter(|(_, rest)| !rest.is_empty())
    else {
        return Err(ChainError::Unreadable(format!(
            "{} elements, a leaf and roots are needed",
            elements.len()
        )));
    };
    let mut chain = Vec::new();
    for element in rest {
        chain.extend(certificates(element)?);
    }
    let root_certificates = certificates(root_bundle)?;
    let (Some(leaf), false) = (chain.first(), root_certificates.is_empty()) else {
        return Err(ChainError::Unreadable(
            "no certificate in the chain or in its roots".into(),
        ));
    };
    match identity_of(leaf) {
        Ok(identity) if identity == *requested => {}
        Ok(other) => {
            return Err(ChainError::WrongIdentity {
                requested: requested.clone(),
                returned: other.to_string(),
            });
        }
        Err(why) => {
            return Err(ChainError::WrongIdentity {
                requested: requested.clone(),
                returned: why.to_string(),
            });
        }
    }
    let texts = describe(&chain)?;
    let root_texts = describe(&root_certificates)?;
    let mut roots = RootCertStore::empty();
    for root in root_certificates {
        roots
            .add(root)
            .map_err(|e| ChainError::Unreadable(format!("root: {e}")))?;
    }
    let certified = Arc::new(certified_key(chain, key_pkcs8)?);
    let roots = Arc::new(Roots::new(roots).judging_by(revocations.clone()));
    let verifier = client_verifier(&roots, trust_domains)?;
    // Peers will verify it for both uses, so it is verified for both here.
    let at = UnixTime::since_unix_epoch(
        now.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    );
    verify_own(&certified, &roots.store, &verifier, at)?;
    let credentials = Credentials::new(certified, roots, verifier, Arc::new(DefaultTimeProvider))
        .map_err(|e| ChainError::Unverified(e.to_string()))?;
    Ok(Checked {
        credentials,
        chain: texts,
        roots: root_texts,
    })
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, ChainError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(|c| c.map_err(|e| ChainError::Unreadable(e.to_string())))
        .collect()
}

fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key_pkcs8: &[u8],
) -> Result<CertifiedKey, ChainError> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key_pkcs8.to_vec()));
    let signing = crypto_provider()
        .key_provider
        .load_private_key(key)
        .map_err(|e| ChainError::Unreadable(e.to_string()))?;
    let certified = CertifiedKey::new(chain, signing);
    certified.keys_match().map_err(|_| ChainError::WrongKey)?;
    Ok(certified)
}

fn verify_own(
    certified: &CertifiedKey,
    roots: &RootCertStore,
    as_client: &Arc<dyn ClientCertVerifier>,
    now: UnixTime,
) -> Result<(), ChainError> {
    let unverified = |e: rustls::Error| {
        untimely(&e).map_or_else(
            || ChainError::Unverified(e.to_string()),
            ChainError::Untimely,
        )
    };
    let (leaf, intermediates) = certified
        .cert
        .split_first()
        .ok_or_else(|| ChainError::Unreadable("an empty chain".into()))?;
    let parsed = ParsedCertificate::try_from(leaf).map_err(unverified)?;
    let algorithms = crypto_provider().signature_verification_algorithms;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms.all)
        .map_err(unverified)?;
    as_client
        .verify_client_cert(leaf, intermediates, now)
        .map_err(unverified)?;
    Ok(())
}

/// Where the time is all that is wrong: how.
fn untimely(error: &rustls::Error) -> Option<String> {
    let rustls::Error::InvalidCertificate(error) = error else {
        return None;
    };
    match error {
        CertificateError::Expired => Some("has ended".into()),
        CertificateError::ExpiredContext { not_after, .. } => {
            Some(format!("ended on {}", date(*not_after)))
        }
        CertificateError::NotValidYet => Some("is not valid yet".into()),
        CertificateError::NotValidYetContext { not_before, .. } => {
            Some(format!("is not valid before {}", date(*not_before)))
        }
        _ => None,
    }
}

fn date(at: UnixTime) -> String {
    let seconds = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
    let date = ASN1Time::from_timestamp(seconds);
    date.map_or_else(|_| seconds.to_string(), |date| date.to_string())
}

fn describe(chain: &[CertificateDer<'_>]) -> Result<Vec<CertificateText>, ChainError> {
    chain.iter().map(describe_one).collect()
}

fn describe_one(certificate: &CertificateDer<'_>) -> Result<CertificateText, ChainError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|e| ChainError::Unreadable(e.to_string()))?;
    let time = |seconds: i64| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    };
    Ok(CertificateText {
        pem: pem(certificate),
        serial_number: parsed.tbs_certificate.serial.to_str_radix(10),
        not_before: time(parsed.validity().not_before.timestamp()),
        not_after: time(parsed.validity().not_after.timestamp()),
    })
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::with_capacity(text.len() + text.len() / 64 + 56);
    out.push_str("-----BEGIN CERTIFICATE-----\n");
    // Base64 is ASCII, so every byte offset is a character boundary.
    for start in (0..text.len()).step_by(64) {
        out.push_str(&text[start..text.len().min(start + 64)]);
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}
